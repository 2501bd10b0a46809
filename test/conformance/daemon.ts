import { closeSync, openSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { join } from 'node:path'
import { converse } from '../../src/guest/conversation.ts'
import type {
  End,
  HypervisorDriver,
  Machine,
  MachineIdentity,
  MachineSpec,
  Saved,
} from '../../src/hypervisor/driver.ts'

/*
 * A daemon of one machine, as a process of its own: what a machine owes to its daemon shows when that is killed and
 * another one comes. Both halves are in this file: run with the path of a module whose default is a driver it answers
 * JSON lines, imported it asks.
 */

/** Names of what is saved. */
interface Files {
  readonly state: string
  readonly memory: string
}

const opened = async <T>(
  { state, memory }: Files,
  flags: string,
  use: (saved: Saved) => Promise<T> | undefined,
): Promise<T | undefined> => {
  const saved = { state: openSync(state, flags, 0o600), memory: openSync(memory, flags, 0o600) }
  try {
    return await use(saved)
  } finally {
    closeSync(saved.state)
    closeSync(saved.memory)
  }
}

type Ask =
  | { readonly op: 'start'; readonly spec: MachineSpec }
  | { readonly op: 'adopt'; readonly identity: MachineIdentity }
  | { readonly op: 'connect'; readonly port: number }
  | { readonly op: 'snapshot'; readonly files: Files }
  | { readonly op: 'restore'; readonly spec: MachineSpec; readonly files: Files }
  | { readonly op: 'state' | 'pause' | 'resume' | 'powerButton' | 'kill' | 'ended' | 'metrics' | 'console' }

const answer = async (
  driver: HypervisorDriver,
  held: { machine?: Machine },
  ask: Ask & { readonly ms: number },
): Promise<unknown> => {
  const signal = AbortSignal.timeout(ask.ms)
  if (ask.op === 'start') {
    held.machine = await driver.start(ask.spec, signal)
    return held.machine.identity
  }
  if (ask.op === 'restore') {
    const machine = await opened(ask.files, 'r', (saved) => driver.restore?.(ask.spec, saved, signal))
    if (machine) held.machine = machine
    return machine?.identity
  }
  if (ask.op === 'adopt') {
    const machine = await driver.adopt(ask.identity, signal)
    if (machine) held.machine = machine
    return machine?.identity ?? null
  }
  const { machine } = held
  if (!machine) throw new Error('no machine')
  switch (ask.op) {
    case 'connect':
      ;(await machine.connect(ask.port, signal)).destroy()
      return true
    case 'snapshot':
      return await opened(ask.files, 'wx+', (saved) => machine.snapshot?.(saved, signal))
    case 'metrics': {
      const { conversation, ok } = await converse(machine, 'metrics', {}, signal)
      conversation.close()
      return ok
    }
    case 'console':
      return machine.consoleSocket
    case 'ended':
      return await machine.ended
    case 'kill':
      return await machine.kill()
    default:
      return await machine[ask.op](signal)
  }
}

if (import.meta.main) {
  const { default: driver } = (await import(process.argv[2] ?? '')) as { default: HypervisorDriver }
  const held: { machine?: Machine } = {}
  for await (const line of createInterface(process.stdin)) {
    const ask = JSON.parse(line) as Ask & { readonly id: number; readonly ms: number }
    const say = (said: object) => {
      process.stdout.write(`${JSON.stringify({ id: ask.id, ...said })}\n`)
    }
    answer(driver, held, ask).then(
      (value) => {
        say({ value: value ?? null })
      },
      (error: Error & { code?: string }) => {
        say({ code: error.code ?? error.name, message: error.message })
      },
    )
  }
}

/** The other half: one process that starts or adopts a machine, until it is crashed. */
export class RemoteDaemon {
  readonly #child: Bun.Subprocess<'pipe', 'pipe', 'inherit'>
  readonly #answers = new Map<number, PromiseWithResolvers<unknown>>()
  readonly #ms: number
  #next = 1

  constructor(driverModule: string, ms: number) {
    this.#ms = ms
    this.#child = Bun.spawn([process.execPath, import.meta.path, driverModule], {
      stdio: ['pipe', 'pipe', 'inherit'],
      cwd: join(import.meta.dir, '../..'),
    })
    void this.#read()
  }

  async #read(): Promise<void> {
    let text = ''
    for await (const part of this.#child.stdout) {
      const lines = (text + Buffer.from(part).toString('utf8')).split('\n')
      text = lines.pop() ?? ''
      for (const line of lines) {
        const { id, value, code, message } = JSON.parse(line) as {
          id: number
          value?: unknown
          code?: string
          message?: string
        }
        if (code === undefined) this.#answers.get(id)?.resolve(value)
        else this.#answers.get(id)?.reject(Object.assign(new Error(message), { code }))
        this.#answers.delete(id)
      }
    }
    for (const one of this.#answers.values()) one.reject(new Error('the daemon has gone'))
  }

  async #ask(ask: Ask, ms = this.#ms): Promise<unknown> {
    const id = this.#next++
    const answer = Promise.withResolvers<unknown>()
    answer.promise.catch(() => undefined)
    this.#answers.set(id, answer)
    this.#child.stdin.write(`${JSON.stringify({ id, ms, ...ask })}\n`)
    await this.#child.stdin.flush()
    return await answer.promise
  }

  start = async (spec: MachineSpec) => (await this.#ask({ op: 'start', spec })) as MachineIdentity
  adopt = async (identity: MachineIdentity) => (await this.#ask({ op: 'adopt', identity })) as MachineIdentity | null
  restore = async (spec: MachineSpec, files: Files) =>
    (await this.#ask({ op: 'restore', spec, files })) as MachineIdentity
  snapshot = async (files: Files) => {
    await this.#ask({ op: 'snapshot', files })
  }
  connect = async (port: number) => await this.#ask({ op: 'connect', port })
  state = async () => (await this.#ask({ op: 'state' })) as string
  pause = async () => {
    await this.#ask({ op: 'pause' })
  }
  resume = async () => {
    await this.#ask({ op: 'resume' })
  }
  powerButton = async () => {
    await this.#ask({ op: 'powerButton' })
  }
  kill = async () => {
    await this.#ask({ op: 'kill' })
  }
  ended = async () => (await this.#ask({ op: 'ended' })) as End
  metrics = async (ms?: number) => (await this.#ask({ op: 'metrics' }, ms)) as Record<string, unknown>
  console = async () => (await this.#ask({ op: 'console' })) as string

  /** Ends it as a crash does: nothing that it holds is let go in order. */
  async crash(): Promise<void> {
    this.#child.kill('SIGKILL')
    await this.#child.exited
  }
}
