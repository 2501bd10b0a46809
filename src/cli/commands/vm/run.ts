import { sayPicked } from '../../made.ts'
import type { Client } from '../../../client/client.ts'
import type { Vm } from '../../../contract/vm.ts'
import type { VmCreate } from '../../../contract/vm-spec.ts'
import { Fault } from '../../../lib/fault.ts'
import { orAbort } from '../../../lib/promise.ts'
import type { Exec } from '../../../client/exec-stream.ts'
import { Doing } from '../../progress.ts'
import { newName } from '../../../lib/id.ts'
import { command, type Context } from '../../command.ts'
import { EXIT_INTERRUPTED, EXIT_TIMEOUT } from '../../exit.ts'
import { duration, usageInvalid, yes } from '../../flags.ts'
import { TERMINAL_FLAGS, ttyChoice } from '../../guest-flags.ts'
import { beforeDeadline, chooseJoin, codeOf, stay, type Left, type Stay } from '../../stay.ts'
import { terminalSize } from '../../stdio.ts'
import { settled } from './settled.ts'
import { messageOf } from '../../../lib/thrown.ts'
import { VM_FLAGS, vmCreateOf } from '../../vm-flags.ts'

const FLAGS = {
  ...VM_FLAGS,
  ...TERMINAL_FLAGS,
  rm: yes('Delete the vm at its end (without --name that is so anyway; --no-rm keeps it)'),
  detach: yes('Print the name when the vm is ready, and leave it running', { short: 'd' }),
  timeout: duration('End the command after so long, with code 124', 7 * 86_400_000),
} as const

/** Names that we make up may be taken; the odds are one in ten million. */
const NAME_TRIES = 3

/** What a vm of ours is deleted with: not the caller's patience, he may be gone. */
const REMOVE_MS = 15_000

const create = async (client: Client, body: VmCreate, named: boolean, signal: AbortSignal): Promise<Vm> => {
  for (let tries = 1; ; tries++) {
    const name = body.name ?? newName()
    try {
      return await client.call('vm.create', { body: { ...body, name } }, { signal })
    } catch (error) {
      // The create goes on without its caller, so an interrupted run takes it back by the name that it gave.
      if (signal.aborted) await remove(client, name)
      if (named || tries === NAME_TRIES || !(error instanceof Fault && error.code === 'vm_exists')) throw error
    }
  }
}

const remove = async (client: Client, name: string): Promise<void> => {
  try {
    await client.call('vm.delete', { params: { name } }, { signal: AbortSignal.timeout(REMOVE_MS) })
  } catch (error) {
    if (error instanceof Fault && (error.kind === 'not_found' || error.kind === 'conflict')) return // it went by itself, or is going
    throw error
  }
}

/** What a vm whose command took too long is given to stop, ms: nobody waits longer for a guest that does not answer. */
const STOP_MS = 3000

/** Stops a vm, and waits for it as long as that makes sense; the daemon goes on with it in any case. */
const stopped = async (context: Context, client: Client, uid: string): Promise<void> => {
  const over = AbortSignal.timeout(STOP_MS)
  try {
    await client.call('vm.stop', { params: { name: uid }, body: {} }, { signal: over })
  } catch (error) {
    // That the time was over is the answer; a vm that stays behind is only worth a word.
    if (!over.aborted) context.out.warn(messageOf(error))
  }
}

/** Stays with a command; one that was never reached in its time is over. */
const stayIn = (exec: Exec | undefined, join: Stay): Promise<Left> | { readonly how: 'timeout' } =>
  exec === undefined ? { how: 'timeout' } : stay(exec, join)

const detached = async (context: Context, client: Client, body: VmCreate): Promise<number> => {
  const vm = await client.call('vm.create', { body })
  sayPicked(context.out, body, vm)
  await context.out.done(vm)
  return 0
}

export const run = command({
  usage: '[FLAGS] IMAGE [--] [COMMAND…]',
  detail: `Boots a fresh microVM, runs a command in it and ends with the command's own exit code.
Without --name the vm is deleted at the end; with --name it stays, stopped.
Nothing of stdin is read without -i, as with docker run; on a terminal -it is what you get, but in a background job.
Exit code: the command's own; 128+n where signal n ended it; 126, 127 as in a shell; 124 after --timeout; 125 for every fault of aerie.`,
  flags: FLAGS,
  args: { min: 1, max: 1, nouns: ['image'] },
  command: true,
  async run(context, { flags, args, rest }) {
    const keep = flags.rm === undefined ? flags.name !== undefined || flags.detach === true : !flags.rm
    const base = vmCreateOf(args[0] ?? '', flags, rest, context.env)
    if (flags.detach) {
      if (flags.timeout !== undefined)
        throw usageInvalid({ reason: 'Cannot use --timeout with --detach: nobody waits for the command' })
      return detached(context, await context.client('start'), { ...base, tty: flags.tty === true, auto_remove: !keep })
    }
    const join = await chooseJoin({ ...flags, ...ttyChoice(flags) }, context.programs)

    const interrupted = new AbortController()
    let interruptedBy = EXIT_INTERRUPTED
    const interrupt = (name: NodeJS.Signals, number: number) => {
      if (interrupted.signal.aborted) process.exit(interruptedBy) // whoever asks twice does not wait for what is taken back
      interruptedBy = 128 + number
      interrupted.abort(new DOMException(name, 'AbortError'))
    }
    process.on('SIGINT', interrupt).on('SIGTERM', interrupt).on('SIGHUP', interrupt)
    using doing = new Doing(context.out.quiet)
    doing.say('looking for a daemon, or starting one')
    const client = await context.client('start')
    doing.say(`booting a vm from "${base.image}"`)
    let vm: Vm
    try {
      vm = await create(
        client,
        { ...base, tty: join.tty, hold: true, auto_remove: !keep },
        flags.name !== undefined,
        interrupted.signal,
      )
    } catch (error) {
      if (interrupted.signal.aborted) return interruptedBy
      throw error
    }
    sayPicked(context.out, base, vm)
    await using cleanup = new AsyncDisposableStack()
    if (!keep) {
      // The command's exit code is the answer; a vm that stays behind is only worth a word.
      cleanup.defer(() =>
        remove(client, vm.uid).catch((error: unknown) => {
          context.out.warn(messageOf(error))
        }),
      )
    }
    doing.say(`starting the command in ${vm.name}`)
    const params = { name: vm.uid }
    const opening = client.process(
      'vm.attach',
      { params },
      { stdin: join.stdin, replay: true, ...(join.tty && terminalSize()) },
    )
    const deadline = flags.timeout === undefined ? undefined : Date.now() + flags.timeout
    let exec: Exec | undefined
    try {
      exec = await beforeDeadline(orAbort(opening, interrupted.signal), deadline)
    } catch (error) {
      if (interrupted.signal.aborted) return interruptedBy
      throw error
    }
    process.off('SIGINT', interrupt).off('SIGTERM', interrupt).off('SIGHUP', interrupt)
    doing.done()

    const left = await stayIn(exec, {
      ...join,
      detachable: keep && join.tty,
      timeoutMs: deadline === undefined ? undefined : Math.max(1, deadline - Date.now()),
      probe: (signal) => client.call('vm.stat', { params, query: { path: '/' } }, { signal }),
      warn: (text) => {
        context.out.warn(text)
      },
    })
    if (left.how === 'ended') {
      if (left.message !== null) context.out.warn(left.message)
      if (keep) await settled(client, vm.uid)
      return codeOf(left)
    }
    if (left.how === 'gone') return left.exit
    if (left.how === 'detached') {
      context.out.note(`${vm.name} runs on; "aerie attach ${vm.name}" comes back`)
      return 0
    }
    if (keep) await stopped(context, client, vm.uid)
    context.out.note(`${vm.name} was ended after ${(flags.timeout ?? 0) / 1000} s`)
    return EXIT_TIMEOUT
  },
})
