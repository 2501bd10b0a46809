import type { VmListQuery } from '../../../contract/vm.ts'
import { VmListQuery as Query } from '../../../contract/vm.ts'
import { VmState } from '../../../contract/vm-state.ts'
import { bySchema, list, text, usageInvalid, type Values } from '../../flags.ts'
import { suggest } from '../../suggest.ts'

const STATES = VmState.anyOf.map((one) => one.const)

/** What narrows and orders a list of vms. */
export const LIST_FLAGS = {
  status: list('Only vms in this state', 'STATE', { words: STATES }),
  metadata: list('Only vms with this label; all must match', 'KEY=VALUE', { short: 'l', aliases: ['label'] }),
  name: text('Only names with this part', 'PART'),
  runtime: bySchema(Query.properties.runtime, { hidden: true }),
  limit: bySchema(Query.properties.limit, { help: 'At most so many' }),
  offset: bySchema(Query.properties.offset, { help: 'Leave out the first so many' }),
  sort: bySchema(Query.properties.sort, { help: 'Order by' }),
  order: bySchema(Query.properties.order, { help: 'Up or down' }),
} as const

export const listQuery = (flags: Values<typeof LIST_FLAGS>, states?: readonly string[]): VmListQuery => {
  const asked = flags.status?.flatMap((one) => one.split(','))
  for (const one of asked ?? []) {
    if (STATES.includes(one as VmState)) continue
    const near = suggest(one, STATES)
    throw usageInvalid({
      reason: `Cannot use --status "${one}": expected ${STATES.join(', ')}`,
      ...(near !== undefined && { hint: `Did you mean "${near}"?` }),
    })
  }
  const status = asked ?? states
  return {
    ...(status && { status: status.join(',') }),
    ...(flags.metadata && { metadata: [...flags.metadata] }),
    ...(flags.name !== undefined && { q: flags.name }),
    ...(flags.runtime !== undefined && { runtime: flags.runtime }),
    ...(flags.limit !== undefined && { limit: flags.limit }),
    ...(flags.offset !== undefined && { offset: flags.offset }),
    ...(flags.sort !== undefined && { sort: flags.sort }),
    ...(flags.order !== undefined && { order: flags.order }),
  }
}
