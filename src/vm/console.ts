import { closeSync, fstatSync, openSync, readSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import type { Host } from '../host.ts'
import type { LiveVm } from './machine/live.ts'
import { pathsOf } from './row/layout.ts'
import { find } from './row/lookup.ts'

/** What a new viewer is shown of what was before. */
const SCROLL_BACK = 65_536

interface Viewer {
  readonly take: (bytes: Uint8Array) => unknown
  readonly over: () => void
}

/** The serial console of one machine: the VMM serves one client, this is it, and every viewer gets a copy. */
class Fan {
  readonly viewers = new Set<Viewer>()
  readonly #socket: Socket

  constructor(path: string, ended: () => void) {
    this.#socket = connect(path)
    this.#socket.on('data', (bytes: Buffer) => {
      for (const viewer of this.viewers) void viewer.take(bytes)
    })
    this.#socket.on('error', () => undefined)
    this.#socket.on('close', () => {
      ended()
      for (const viewer of this.viewers) viewer.over()
      this.viewers.clear()
    })
  }

  type(bytes: Uint8Array): void {
    this.#socket.write(bytes)
  }
  close(): void {
    this.#socket.destroy()
  }
}

const fans = new WeakMap<LiveVm, Fan>()

const scrollBack = (path: string): Uint8Array => {
  const fd = openSync(path, 'r')
  try {
    const { size } = fstatSync(fd)
    const bytes = Buffer.alloc(Math.min(size, SCROLL_BACK))
    return bytes.subarray(0, readSync(fd, bytes, 0, bytes.byteLength, Math.max(0, size - bytes.byteLength)))
  } finally {
    closeSync(fd)
  }
}

/**
 * Shows a console: what was before first, then what comes, to any number of viewers; on a vm without a machine only what was before.
 * A viewer that is slow misses nothing of the log, only of its live view: what waits for it is bounded by the caller.
 *
 * @throws `vm_not_found`, `vm_ambiguous`
 */
export const viewConsole = (
  host: Host,
  ref: string,
  take: (bytes: Uint8Array) => unknown,
  over: () => void,
): { type(bytes: Uint8Array): void; leave(): void } => {
  const row = find(host.store, ref)
  const live = host.live.get(row.uid)
  try {
    const before = scrollBack(pathsOf(host.config, row).consoleLog)
    if (before.byteLength > 0) void take(before) // an empty message would be the end
  } catch {
    /* it has never said anything */
  }
  if (!live?.machine) {
    queueMicrotask(over)
    return { type: () => undefined, leave: () => undefined }
  }
  let fan = fans.get(live)
  if (!fan) {
    fan = new Fan(live.machine.consoleSocket, () => {
      fans.delete(live)
    })
    fans.set(live, fan)
  }
  const viewer = { take, over }
  const chosen = fan
  chosen.viewers.add(viewer)
  return {
    type: (bytes) => {
      chosen.type(bytes)
    },
    leave: () => {
      chosen.viewers.delete(viewer)
      if (chosen.viewers.size === 0) {
        fans.delete(live)
        chosen.close()
      }
    },
  }
}
