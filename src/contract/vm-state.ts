import { oneOf } from './operation.ts'
import type { Static } from '@sinclair/typebox'

export const VmState = oneOf(
  'pending',
  'starting',
  'running',
  'paused',
  'standby',
  'stopping',
  'stopped',
  'crashed',
  'deleting',
  'unknown',
)
export type VmState = Static<typeof VmState>

/**
 * Every legal move of a vm. A verb is asked by a person; an event is reported by the host.
 *
 * Seed 003's single hops are a subset: its Created is `starting`, its Shutdown is `stopping`.
 * `deleting` is final: the row goes when its last file has gone.
 */
export const VM_MOVES = [
  // from       by           kind     to
  ['pending', 'prepared', 'event', 'starting'],
  ['pending', 'saved', 'event', 'standby'], // a clone that sleeps
  ['pending', 'cloned', 'event', 'stopped'], // a clone of a disk alone
  ['pending', 'delete', 'verb', 'deleting'],
  ['starting', 'ready', 'event', 'running'],
  ['starting', 'exited', 'event', 'stopped'],
  ['starting', 'broke', 'event', 'crashed'],
  ['starting', 'lost', 'event', 'unknown'],
  ['starting', 'stop', 'verb', 'stopping'],
  ['starting', 'delete', 'verb', 'deleting'],
  ['running', 'pause', 'verb', 'paused'],
  ['running', 'halted', 'event', 'paused'], // a disk of the host is full: the guest waits for room
  ['running', 'stop', 'verb', 'stopping'],
  ['running', 'rebooted', 'event', 'starting'],
  ['running', 'exited', 'event', 'stopped'],
  ['running', 'broke', 'event', 'crashed'],
  ['running', 'lost', 'event', 'unknown'],
  ['running', 'delete', 'verb', 'deleting'],
  ['paused', 'resume', 'verb', 'running'],
  ['paused', 'went_on', 'event', 'running'], // there is room again
  ['paused', 'stop', 'verb', 'stopping'],
  ['paused', 'standby', 'verb', 'standby'],
  ['paused', 'exited', 'event', 'stopped'], // its workload had ended when it was paused
  ['paused', 'broke', 'event', 'crashed'],
  ['paused', 'lost', 'event', 'unknown'],
  ['paused', 'delete', 'verb', 'deleting'],
  ['standby', 'restore', 'verb', 'paused'],
  ['standby', 'stop', 'verb', 'stopped'],
  ['standby', 'delete', 'verb', 'deleting'],
  ['stopping', 'exited', 'event', 'stopped'],
  ['stopping', 'stayed', 'event', 'running'], // a stop without kill whose guest did not go in time
  ['stopping', 'lost', 'event', 'unknown'],
  ['stopping', 'delete', 'verb', 'deleting'],
  ['stopped', 'start', 'verb', 'starting'],
  ['stopped', 'delete', 'verb', 'deleting'],
  ['crashed', 'start', 'verb', 'starting'],
  ['crashed', 'delete', 'verb', 'deleting'],
  ['unknown', 'found', 'event', 'running'],
  ['unknown', 'found_paused', 'event', 'paused'],
  ['unknown', 'exited', 'event', 'stopped'],
  ['unknown', 'broke', 'event', 'crashed'],
  ['unknown', 'stop', 'verb', 'stopping'],
  ['unknown', 'delete', 'verb', 'deleting'],
] as const satisfies readonly (readonly [VmState, string, 'verb' | 'event', VmState])[]

export type Cause = (typeof VM_MOVES)[number][1]

/** Tells the state that a cause leads to; undefined where no such move exists. */
export const after = (from: VmState, by: Cause): VmState | undefined =>
  VM_MOVES.find((move) => move[0] === from && move[1] === by)?.[3]

/** What the daemon does with a row that it finds in this state when it starts. */
export const ON_BOOT = {
  pending: 'undo', // its create never answered and nothing of it runs
  starting: 'probe',
  running: 'probe',
  paused: 'probe',
  unknown: 'probe',
  stopping: 'finish', // asks again
  deleting: 'finish',
  standby: 'keep',
  stopped: 'keep',
  crashed: 'keep',
} as const satisfies Record<VmState, 'undo' | 'probe' | 'finish' | 'keep'>

/** States in which a machine (a VMM process) may exist: they count against the host's capacity. */
export const HOLDS_MACHINE: readonly VmState[] = ['pending', 'starting', 'running', 'paused', 'stopping', 'unknown']
