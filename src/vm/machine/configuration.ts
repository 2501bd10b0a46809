import { randomBytes } from 'node:crypto'
import { constants } from 'node:os'
import { resolve } from 'node:path/posix'
import type { ExecStart } from '../../contract/exec.ts'
import type { ImageConfig } from '../../contract/image.ts'
import type { VmSpec } from '../../contract/vm-spec.ts'
import { requestTooLarge } from '../../guest/errors.ts'
import { ARGUMENTS_MAX } from '../../guest/frames.ts'
import type { Configuration } from '../../guest/session.ts'
import { signalNumber } from '../../lib/signal.ts'
import type { GuestHost, GuestOf } from './part.ts'
import { guestShare } from './parts.ts'

/** The agent keeps this much of what the workload says while the daemon is away, in bytes of its memory. */
const LOG_BYTES = 1_048_576
const DEFAULT_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
/**
 * Finds the number of the stop signal, SIGTERM where the image names none; one that is unknown is in images of releases
 * which did not refuse it.
 */
const stopSignal = (name: string): number => signalNumber(name) ?? constants.signals.SIGTERM

/**
 * Tells what the workload of a vm is, by Docker's rules: entrypoint then command; a request's entrypoint drops the
 * image's command.
 */
export const argvOf = (
  workload: Pick<VmSpec['workload'], 'entrypoint' | 'cmd'>,
  image: Pick<ImageConfig, 'entrypoint' | 'cmd'>,
): string[] => [
  ...(workload.entrypoint ?? image.entrypoint),
  ...(workload.cmd ?? (workload.entrypoint ? [] : image.cmd)),
]

type Workload = VmSpec['workload']

/**
 * Makes the environment of what runs in a guest: Docker's own, then the image's, then the vm's. kestrel adds the HOME
 * of the user.
 */
const environment = (
  workload: Pick<Workload, 'env'>,
  image: ImageConfig,
  hostname: string,
  tty: boolean,
): Record<string, string> => ({
  PATH: DEFAULT_PATH,
  HOSTNAME: hostname,
  ...(tty ? { TERM: 'xterm-256color' } : {}),
  ...Object.fromEntries(
    image.env
      .filter((pair) => pair.indexOf('=') > 0)
      .map((pair) => [pair.slice(0, pair.indexOf('=')), pair.slice(pair.indexOf('=') + 1)]),
  ),
  ...workload.env,
})

/** Tells where and as whom the programs of a vm run. */
const runAs = (
  workload: Pick<Workload, 'workdir' | 'user'>,
  image: Pick<ImageConfig, 'working_dir' | 'user'>,
): { readonly cwd: string; readonly user: string } => ({
  cwd: workload.workdir ?? (image.working_dir || '/'),
  user: workload.user ?? image.user,
})

/**
 * Tells what a command in a vm starts from, as with `docker exec`: what the workload has, and over it what the caller
 * wants.
 */
export const execOf = (
  vm: { readonly name: string; readonly spec: { readonly workload: Pick<Workload, 'env' | 'workdir' | 'user'> } },
  image: ImageConfig,
  want: Pick<ExecStart, 'env' | 'cwd' | 'user' | 'tty'>,
): { readonly env: Record<string, string>; readonly cwd: string; readonly user: string } => {
  const own = runAs(vm.spec.workload, image)
  return {
    env: { ...environment(vm.spec.workload, image, vm.name, want.tty === true), ...want.env },
    cwd: want.cwd === undefined ? own.cwd : resolve(own.cwd, want.cwd),
    user: want.user ?? own.user,
  }
}

/** Makes a new configuration for one boot of a vm: its secret, entropy and time are made here and used once. */
export const configure = (host: GuestHost, vm: GuestOf, image: ImageConfig): Configuration => {
  const { spec } = vm
  const argv = argvOf(spec.workload, image)
  return {
    secret: randomBytes(32).toString('hex'),
    entropy: randomBytes(32).toString('hex'),
    time_ns: Date.now() * 1_000_000,
    hostname: vm.name,
    machine_id: vm.machineId,
    ...guestShare(host, vm),
    workload:
      argv.length === 0
        ? null
        : {
            argv,
            env: environment(spec.workload, image, vm.name, spec.workload.tty),
            ...runAs(spec.workload, image),
            tty: spec.workload.tty,
            hold: spec.workload.hold,
            stop_signal: stopSignal(image.stop_signal),
          },
    grace_ms: spec.policy.stop_timeout_s * 1000,
    log_bytes: LOG_BYTES,
    shm_bytes: spec.storage.shm_size_mb * 2 ** 20,
  }
}

/** A configuration in its frame has at most this many bytes around it. */
const FRAME_BYTES = 64

/**
 * Checks that the agent takes the configuration of a vm. @throws `request_invalid` where the agent would not take the
 * configuration of this vm: its boot would wait for nothing
 */
export const fits = (host: GuestHost, vm: GuestOf, image: ImageConfig): void => {
  const limit = ARGUMENTS_MAX - FRAME_BYTES
  if (Buffer.byteLength(JSON.stringify(configure(host, vm, image))) > limit) throw requestTooLarge({ limit })
}
