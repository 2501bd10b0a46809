import type { VmStop } from '../../../contract/vm.ts'
import { duration, yes, type Values } from '../../flags.ts'

export const STOP_FLAGS = {
  timeout: duration("Grace before the machine is ended (the vm's own)", 3600_000, { short: 't', aliases: ['time'] }),
  force: yes('End the machine at once', { short: 'f' }),
  kill: yes('--no-kill: a guest that does not go keeps running, and the stop fails'),
} as const

export const stopBody = (flags: Values<typeof STOP_FLAGS>): VmStop => ({
  ...(flags.timeout !== undefined && { timeout_s: Math.ceil(flags.timeout / 1000) }),
  ...(flags.force && { timeout_s: 0 }),
  ...(flags.kill !== undefined && { kill: flags.kill }),
})
