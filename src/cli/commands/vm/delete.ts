import { Type } from '@sinclair/typebox'
import { HOLDS_MACHINE } from '../../../contract/vm-state.ts'
import { fault } from '../../../lib/fault.ts'
import { didYouMean } from '../../../lib/lookup.ts'
import { yes } from '../../flags.ts'
import { onEach } from '../../shapes.ts'

const vmRuns = fault(
  'vm_runs',
  'conflict',
  { name: Type.String(), status: Type.String() },
  (d) => `Cannot delete vm "${d.name}": it is ${d.status}`,
  'Stop it first, or use --force',
)

const vmNotNamed = fault(
  'vm_not_found',
  'not_found',
  { name: Type.String(), meant: Type.String() },
  (d) => `Cannot find vm "${d.name}"`,
  (d) => didYouMean([d.meant], ''),
)

export const remove = onEach('vm', {
  flags: { force: yes('Also vms that run', { short: 'f' }) },
  async act(client, name, flags) {
    // What is deleted is what was looked at, and it was named as a whole: a look takes the beginning of a uid too.
    const vm = await client.call('vm.get', { params: { name } })
    if (![vm.uid, vm.name, String(vm.id)].includes(name)) throw vmNotNamed({ name, meant: vm.name })
    if (!flags.force && HOLDS_MACHINE.includes(vm.status)) throw vmRuns({ name: vm.name, status: vm.status })
    await client.call('vm.delete', { params: { name: vm.uid } })
    return { name: vm.name }
  },
})
