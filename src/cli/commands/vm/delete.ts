import { Type } from '@sinclair/typebox'
import { HOLDS_MACHINE } from '../../../contract/vm-state.ts'
import { fault } from '../../../lib/fault.ts'
import { yes } from '../../flags.ts'
import { onEach } from '../../shapes.ts'
import { named } from './named.ts'

const vmRuns = fault(
  'vm_runs',
  'conflict',
  { name: Type.String(), status: Type.String() },
  (d) => `Cannot delete vm "${d.name}": it is ${d.status}`,
  'Stop it first, or use --force',
)

export const remove = onEach('vm', {
  flags: { force: yes('Also vms that run', { short: 'f' }) },
  async act(client, name, flags) {
    // What is deleted is what was looked at.
    const vm = await named(client, name)
    if (!flags.force && HOLDS_MACHINE.includes(vm.status)) throw vmRuns({ name: vm.name, status: vm.status })
    await client.call('vm.delete', { params: { name: vm.uid } })
    return { name: vm.name }
  },
})
