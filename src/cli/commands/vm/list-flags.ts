import { VmListQuery } from '../../../contract/vm-list.ts'
import { VmState } from '../../../contract/vm-state.ts'
import { list, usageInvalid, type Values } from '../../flags.ts'
import { defined, schemaFlags } from '../../schema-flags.ts'
import { suggest } from '../../suggest.ts'

const STATES = VmState.anyOf.map((one) => one.const)

const FIELDS = schemaFlags(VmListQuery, {
  omit: ['status', 'plugin', 'metadata'],
  more: {
    q: { as: 'name', help: 'Only names with this part', placeholder: 'PART' },
    runtime: { hidden: true },
    limit: { help: 'At most so many' },
    offset: { help: 'Leave out the first so many' },
    sort: { help: 'Order by' },
    order: { help: 'Up or down' },
  },
})

/** What narrows and orders a list of vms. */
export const LIST_FLAGS = {
  status: list('Only vms in this state', 'STATE', { words: STATES }),
  metadata: list('Only vms with this label; all must match', 'KEY=VALUE', { short: 'l', aliases: ['label'] }),
  ...FIELDS.flags,
}

/** Makes the query of a list from its flags. @throws `usage_invalid` for a state that there is none of */
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
    ...FIELDS.said(flags),
    ...defined({ status: status?.join(','), metadata: flags.metadata && [...flags.metadata] }),
  }
}
