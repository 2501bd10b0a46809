import type { Vm } from '../../../contract/vm.ts'
import { HOLDS_MACHINE } from '../../../contract/vm-state.ts'
import { yes } from '../../flags.ts'
import { listing } from '../../shapes.ts'
import { LIST_FLAGS, listQuery } from './list-flags.ts'
import { vmTable } from './vm-table.ts'

const nameOf = (vm: Vm): string => vm.name

export const list = listing({
  flags: LIST_FLAGS,
  list: (client, flags) => client.call('vm.list', { query: listQuery(flags) }),
  table: vmTable,
  nameOf,
})

export const ps = listing({
  flags: { all: yes('Also vms that do not run', { short: 'a' }), ...LIST_FLAGS },
  list: (client, flags) => client.call('vm.list', { query: listQuery(flags, flags.all ? undefined : HOLDS_MACHINE) }),
  table: vmTable,
  nameOf,
})
