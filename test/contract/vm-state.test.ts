import { describe, expect, test } from 'bun:test'
import { after, HOLDS_MACHINE, ON_BOOT, VM_MOVES, VmState, type VmState as State } from '../../src/contract/vm-state.ts'

const STATES = VmState.anyOf.map((one) => one.const) as State[]
/** A row is inserted in this state, and nothing moves into it. */
const FIRST: State = 'pending'
/** The row goes when its last file has gone. */
const FINAL: State = 'deleting'

const next = (from: State): State[] => VM_MOVES.filter((move) => move[0] === from).map((move) => move[3])

describe('the table of moves', () => {
  test('names states of the schema only', () => {
    for (const [from, , , to] of VM_MOVES) {
      expect(STATES).toContain(from)
      expect(STATES).toContain(to)
    }
  })

  test('has no pair of state and cause twice', () => {
    const pairs = VM_MOVES.map(([from, by]) => `${from} ${by}`)

    expect(pairs.filter((pair, index) => pairs.indexOf(pair) !== index)).toEqual([])
  })

  test('gives one cause one kind: a verb is never also an event', () => {
    const kinds = Map.groupBy(VM_MOVES, (move) => move[1])

    for (const [cause, moves] of kinds)
      expect({ cause, kinds: [...new Set(moves.map((move) => move[2]))] }).toEqual({
        cause,
        kinds: [moves[0]?.[2] ?? 'verb'],
      })
  })

  test('reaches every state from the first', () => {
    const reached = new Set<State>([FIRST])
    for (const state of reached) for (const to of next(state)) reached.add(to) // a set grows under its own iteration

    expect([...reached].sort()).toEqual([...STATES].sort())
  })

  test('leads out of every state but the final one', () => {
    expect(STATES.filter((state) => next(state).length === 0)).toEqual([FINAL])
  })

  test('lets every state come to an end', () => {
    for (const state of STATES) {
      const reached = new Set<State>([state])
      for (const at of reached) for (const to of next(at)) reached.add(to)
      expect({ state, ends: reached.has(FINAL) }).toEqual({ state, ends: true })
    }
  })

  test('lets a person delete a vm in whatever state it is', () => {
    expect(STATES.filter((state) => state !== FINAL && after(state, 'delete') !== FINAL)).toEqual([])
  })

  test('takes the end of a machine in whatever state it finds the vm', () => {
    const mayEnd = HOLDS_MACHINE.filter((state) => state !== FIRST)

    expect(mayEnd.filter((state) => after(state, 'exited') !== 'stopped')).toEqual([])
  })

  test('moves nothing into the first state, and nothing onto itself', () => {
    const moves: readonly (readonly [State, string, string, State])[] = VM_MOVES

    expect(moves.filter((move) => move[3] === FIRST || move[0] === move[3])).toEqual([])
  })

  test('is what after() reads', () => {
    for (const [from, by, , to] of VM_MOVES) expect(after(from, by)).toBe(to)
    expect(after('stopped', 'pause')).toBeUndefined()
    expect(after('deleting', 'delete')).toBeUndefined()
  })
})

/** Seed 003's single hops. Its Created is our `starting`, its Shutdown our `stopping`. */
const SEED: Readonly<Record<string, readonly State[]>> = {
  starting: ['running', 'stopping'],
  running: ['paused', 'stopping'],
  paused: ['running', 'stopping', 'standby'],
  stopping: ['running', 'stopped'],
  stopped: ['starting'],
  standby: ['paused', 'stopped'],
}

for (const [from, targets] of Object.entries(SEED)) {
  test(`the single hops of the seed out of ${from} are in the table`, () => {
    expect(next(from as State)).toEqual(expect.arrayContaining([...targets]))
  })
}

test('a starting daemon knows what to do with a row in every state', () => {
  expect(Object.keys(ON_BOOT).sort()).toEqual([...STATES].sort())
})

test('a state may hold a machine exactly if the daemon looks for one when it starts, or undoes the create', () => {
  const looked = STATES.filter((state) => ON_BOOT[state] !== 'keep' && state !== FINAL)

  expect([...HOLDS_MACHINE].sort()).toEqual(looked.sort())
})
