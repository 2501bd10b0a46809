import { closeSync, fstatSync, openSync, readSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { Duplex } from 'node:stream'
import type { Host } from '../host.ts'
import type { LiveVm } from './machine/live.ts'
import { pathsOf } from './row/layout.ts'
import { find } from './row/lookup.ts'

/** What a new viewer is shown of what was before. */
const SCROLL_BACK = 65_536

/** Bytes of the live view that wait for one slow viewer; more are left out of it. */
const VIEW_MAX = 1_048_576

interface Viewer {
  take(bytes: Uint8Array): void
  over(): void
}

/** The serial console of one machine: the VMM serves one client, this is it, and every viewer gets a copy. */
class Fan {
  readonly viewers = new Set<Viewer>()
  readonly #socket: Socket

  constructor(path: string, ended: () => void) {
    this.#socket = connect(path)
    this.#socket.on('data', (bytes: Buffer) => {
      for (const viewer of this.viewers) viewer.take(bytes)
    })
    this.#socket.on('error', () => undefined)
    this.#socket.on('close', () => {
      ended()
      for (const viewer of this.viewers) viewer.over()
      this.viewers.clear()
    })
  }

  /** @param taken  is called when the machine has taken the bytes, or never will */
  type(bytes: Uint8Array, taken: () => void): void {
    this.#socket.write(bytes, taken)
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
 * Opens a console: what was before first, then what comes, to any number of viewers; on a vm without a machine only
 * what was before. A viewer that is slow misses nothing of the log, only of its live view. What is typed waits until
 * the machine takes it.
 *
 * @throws `vm_not_found`, `vm_ambiguous`
 */
export const viewConsole = (host: Pick<Host, 'config' | 'store' | 'vms'>, ref: string): Promise<Duplex> => {
  const row = find(host.store, ref, 'read')
  const live = host.vms.live.get(row.uid)
  const fan = live?.machine ? fanOf(live, live.machine.consoleSocket) : undefined
  const view = new Duplex({
    allowHalfOpen: false,
    read: () => undefined,
    write: (bytes: Uint8Array, _encoding, taken) => {
      if (fan) fan.type(bytes, taken)
      else taken()
    },
    destroy: (error, done) => {
      if (live && fan) leave(live, fan, viewer)
      done(error)
    },
  })
  const viewer: Viewer = {
    take: (bytes) => {
      if (view.readableLength < VIEW_MAX) view.push(bytes)
    },
    over: () => view.push(null),
  }
  try {
    const before = scrollBack(pathsOf(host.config, row).consoleLog)
    if (before.byteLength > 0) view.push(before)
  } catch {
    /* it has never said anything */
  }
  if (fan) fan.viewers.add(viewer)
  else viewer.over()
  return Promise.resolve(view)
}

const fanOf = (live: LiveVm, path: string): Fan => {
  const known = fans.get(live)
  if (known) return known
  const fan = new Fan(path, () => {
    if (fans.get(live) === fan) fans.delete(live)
  })
  fans.set(live, fan)
  return fan
}

const leave = (live: LiveVm, fan: Fan, viewer: Viewer): void => {
  fan.viewers.delete(viewer)
  if (fan.viewers.size > 0) return
  if (fans.get(live) === fan) fans.delete(live)
  fan.close()
}
