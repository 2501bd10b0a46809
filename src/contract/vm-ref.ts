import { Type } from '@sinclair/typebox'

/**
 * Names a vm in a path: its uid, its name, its number, or, where nothing is ended, deleted, moved or written over, the
 * beginning of its uid (four characters or more after `vm_`) that fits it alone.
 */
export const VmRef = Type.Object({ name: Type.String({ minLength: 1, maxLength: 64 }) })

/** Faults of every operation on one vm. */
export const ONE_VM = ['vm_not_found', 'vm_ambiguous', 'vm_damaged'] as const
/** Faults of every operation on the guest of one vm. */
export const RUNNING_VM = [...ONE_VM, 'vm_wrong_state', 'agent_unavailable', 'guest_busy', 'image_damaged'] as const
