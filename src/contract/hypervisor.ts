import type { Static } from '@sinclair/typebox'
import { oneOf } from './operation.ts'

/** Names every hypervisor driver there is: the only place outside the drivers' folders and `daemon.ts` that does. */
export const HypervisorName = oneOf('qemu', 'talon', 'fake')
export type HypervisorName = Static<typeof HypervisorName>
