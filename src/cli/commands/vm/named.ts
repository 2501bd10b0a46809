import { Type } from '@sinclair/typebox'
import type { Client } from '../../../client/client.ts'
import type { Vm } from '../../../contract/vm.ts'
import { fault, Fault } from '../../../lib/fault.ts'
import { didYouMean } from '../../../lib/reference.ts'

const vmNotNamed = fault(
  'vm_not_found',
  'not_found',
  { name: Type.String(), meant: Type.Array(Type.String()) },
  (d) => `Cannot find vm "${d.name}"`,
  (d) => didYouMean(d.meant, ''),
)

/**
 * Finds the vm that is named as a whole, by its uid, its name or its number. To look at it the beginning of a uid is
 * enough; what is to be deleted or written over has to be what was meant.
 *
 * @throws `vm_not_found`
 */
export const named = async (client: Client, name: string): Promise<Vm> => {
  const vm = await client.call('vm.get', { params: { name } }).catch((error: unknown) => {
    if (!(error instanceof Fault) || error.code !== 'vm_ambiguous') throw error
    const { matches } = error.data as { readonly matches?: unknown }
    throw vmNotNamed({ name, meant: Array.isArray(matches) ? matches.map(String) : [] }, error)
  })
  if (![vm.uid, vm.name, String(vm.id)].includes(name)) throw vmNotNamed({ name, meant: [vm.name] })
  return vm
}
