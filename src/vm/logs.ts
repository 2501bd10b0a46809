import { watch, type FSWatcher } from 'node:fs'
import type { LogLine, LogQuery } from '../contract/log.ts'
import type { Host } from '../host.ts'
import { parseDuration } from '../lib/bytes.ts'
import type { VmRow } from '../store/schema.ts'
import { share } from '../lib/turn.ts'
import { sleep } from '../lib/promise.ts'
import { type Source, Tail } from './log/tail.ts'
import { sinceInvalid } from './row/errors.ts'
import { pathsOf } from './row/layout.ts'
import { byUid, find } from './row/lookup.ts'

/** How long the start of a line is held back from somebody who reads along, in the hope of its end. */
const HELD_MS = 300

/**
 * Reads a time as milliseconds since 1970: RFC 3339, Unix seconds, or a duration back from now. @throws `since_invalid`
 */
const sinceMs = (text: string | undefined): number => {
  if (text === undefined) return 0
  const bare = /^\d+$/.test(text)
  const ago = parseDuration(text)
  if (ago !== undefined && !bare) return Date.now() - ago
  const at = bare ? Number(text) * 1000 : /^\d{4}-\d\d-\d\d/.test(text) ? Date.parse(text) : Number.NaN // Date.parse alone reads "-5m" as a year
  if (!Number.isSafeInteger(at)) throw sinceInvalid({ since: text })
  return at
}

const fileOf = (host: Pick<Host, 'config'>, row: VmRow, source: Source): string => {
  const at = pathsOf(host.config, row)
  return source === 'console' ? at.consoleLog : source === 'vmm' ? at.vmmLog : at.appLog
}

/**
 * Reads the log of a vm, and with `follow` what is added until the vm is deleted or the reader leaves. Works on stopped
 * vms. A reader that is slow holds nobody: it has its own place in the file.
 *
 * @throws `vm_not_found`, `vm_ambiguous`, `since_invalid`
 */
export const logs = (
  host: Pick<Host, 'config' | 'store'>,
  ref: string,
  query: LogQuery,
  client: AbortSignal,
): AsyncGenerator<LogLine> => {
  const row = find(host.store, ref, 'read')
  const since = sinceMs(query.since)
  const sources: Source[] = query.source === 'all' ? ['vmm', 'console', 'agent', 'app'] : [query.source ?? 'app']
  return stream(host, row, sources, query, since, client)
}

async function* stream(
  host: Pick<Host, 'config' | 'store'>,
  row: VmRow,
  sources: readonly Source[],
  query: LogQuery,
  since: number,
  client: AbortSignal,
): AsyncGenerator<LogLine> {
  const tails = sources.map((source) => new Tail(fileOf(host, row, source), row.name, source, since))
  const follow = query.follow === true
  for (const tail of tails) yield* fairly(tail.last(query.tail, follow))
  if (!follow) return
  const changed = new Changes(
    tails.map((tail) => tail.path),
    client,
  )
  let moved = host.store.events.appended(client).then(() => 'moved' as const)
  try {
    while (!client.aborted) {
      const state = byUid(host.store, row.uid)?.state // asked before the files are: what was said until then is surely in them
      let some = false
      for (const tail of tails)
        for await (const line of fairly(tail.more())) {
          some = true
          yield line
        }
      if (some) continue
      if (state === undefined || state === 'stopped' || state === 'crashed' || state === 'deleting') {
        for (const tail of tails) yield* tail.rest()
        return
      }
      // A prompt has no end, and whoever reads along waits for it.
      const waits = tails.some((tail) => tail.holds) ? [sleep(HELD_MS, client).then(() => 'late' as const)] : []
      const woken = await Promise.race([changed.next(), moved, ...waits])
      if (woken === 'late') for (const tail of tails) yield* tail.rest()
      if (woken === 'moved') moved = host.store.events.appended(client).then(() => 'moved')
    }
  } finally {
    changed.close()
  }
}

/** Gives the event loop to others between two lines: a log may be of nothing but empty ones. */
async function* fairly(lines: AsyncIterable<LogLine>): AsyncGenerator<LogLine> {
  for await (const line of lines) {
    yield line
    const turn = share()
    if (turn) await turn
  }
}

/**
 * Tells when one of some files was written (inotify(7)), also after it was turned over: the watch of a name is on what
 * has it now.
 */
class Changes {
  readonly #watchers = new Map<string, FSWatcher>()
  #wake: () => void = () => undefined
  #pending = false

  constructor(paths: readonly string[], client: AbortSignal) {
    for (const path of new Set(paths)) this.#watch(path)
    client.addEventListener(
      'abort',
      () => {
        this.#wake()
      },
      { once: true },
    )
  }

  #watch(path: string): void {
    this.#watchers.get(path)?.close()
    this.#watchers.delete(path)
    try {
      this.#watchers.set(
        path,
        watch(path, (event) => {
          if (event === 'rename' && this.#watchers.has(path)) this.#watch(path)
          this.#pending = true
          this.#wake()
        }),
      )
    } catch {
      /* it is not there: its vm is being deleted, which is an event */
    }
  }

  next(): Promise<void> {
    return new Promise((resolve) => {
      const done = () => {
        this.#pending = false
        resolve()
      }
      this.#wake = done
      if (this.#pending) done()
    })
  }

  close(): void {
    for (const watcher of this.#watchers.values()) watcher.close()
    this.#watchers.clear()
  }
}
