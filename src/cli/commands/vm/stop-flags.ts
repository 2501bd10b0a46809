import type { VmStop } from '../../../contract/vm.ts'
import { VmStop as Body } from '../../../contract/vm.ts'
import { yes, type Values } from '../../flags.ts'
import { schemaFlags } from '../../schema-flags.ts'

const FIELDS = schemaFlags(Body, {
  more: {
    timeout_s: { help: "Grace before the machine is ended (the vm's own)", short: 't', aliases: ['time'] },
    kill: { flag: yes('--no-kill: a guest that does not go keeps running, and the stop fails') },
  },
})
export const STOP_FLAGS = { ...FIELDS.flags, force: yes('End the machine at once', { short: 'f' }) }

/** Makes the body of a stop from its flags; `--force` gives no grace. */
export const stopBody = (flags: Values<typeof STOP_FLAGS>): VmStop => ({
  ...FIELDS.said(flags),
  ...(flags.force && { timeout_s: 0 }),
})
