import { closeSync, existsSync, fstatSync, openSync, readSync, watch, type FSWatcher } from 'node:fs'
import type { LogLine, LogQuery } from '../contract/vm.ts'
import type { Host } from '../host.ts'
import { parseDuration } from '../lib/bytes.ts'
import type { VmRow } from '../store/schema.ts'
import { firstByte, readBackwards, textOf, type AppLine } from './app-log.ts'
import { plain } from './console-log.ts'
import { sinceInvalid } from './errors.ts'
import { places } from './places.ts'
import { byUid, find } from './record.ts'

type Source = 'app' | 'console' | 'vmm' | 'agent'
const CHUNK = 262_144
const STREAMS = { 1: 'stdout', 2: 'stderr', 3: 'agent' } as const

/** @throws `since_invalid` */
const sinceMs = (text: string | undefined): number => {
  if (text === undefined) return 0
  const bare = /^\d+$/.test(text), ago = parseDuration(text)
  if (ago !== undefined && !bare) return Date.now() - ago
  const at = bare ? Number(text) * 1000 : /^\d{4}-\d\d-\d\d/.test(text) ? Date.parse(text) : Number.NaN // Date.parse alone reads "-5m" as a year
  if (!Number.isSafeInteger(at)) throw sinceInvalid({ since: text })
  return at
}

/** One line of a file as the API shows it; undefined where it is of another source, older than asked, or was cut by a crash. */
const reader = (name: string, source: Source, since: number) => (line: string): LogLine | undefined => {
  if (source === 'console' || source === 'vmm') return { name, source, stream: source, line: plain(line), timestamp: null }
  let record: AppLine
  try { record = JSON.parse(line) as AppLine } catch { return undefined }
  if (record.s === 0 || (record.s === 3) !== (source === 'agent') || record.t < since) return undefined
  return { name, source, stream: STREAMS[record.s], line: textOf(record), timestamp: new Date(record.t).toISOString() }
}

const fileOf = (host: Host, row: VmRow, source: Source): string => {
  const at = places(host.config, row)
  return source === 'console' ? at.consoleLog : source === 'vmm' ? at.vmmLog : at.appLog
}

/**
 * The log of a vm, and with `follow` what is added until the vm is deleted or the reader leaves. Works on stopped vms. A reader that is
 * slow holds nobody: it has its own place in the file.
 *
 * @throws `vm_not_found`, `vm_ambiguous`, `since_invalid`
 */
export const logs = (host: Host, ref: string, query: LogQuery, client: AbortSignal): AsyncGenerator<LogLine> => {
  const row = find(host.store, ref), since = sinceMs(query.since)
  const sources: Source[] = query.source === 'all' ? ['vmm', 'console', 'agent', 'app'] : [query.source ?? 'app']
  return stream(host, row, sources, query, since, client)
}

async function* stream(host: Host, row: VmRow, sources: readonly Source[], query: LogQuery, since: number, client: AbortSignal): AsyncGenerator<LogLine> {
  const tails = sources.map((source) => new Tail(fileOf(host, row, source), reader(row.name, source, since)))
  for (const tail of tails) yield* tail.last(query.tail)
  if (query.follow !== true) return
  const changed = new Changes(tails.map((tail) => tail.path), client)
  let moved = host.events.appended(client).then(() => 'moved' as const)
  try {
    while (!client.aborted) {
      let some = false
      for (const tail of tails) for (const line of tail.more()) { some = true; yield line }
      if (some) continue
      const row_ = byUid(host.store, row.uid)
      if (!row_ || row_.state === 'stopped' || row_.state === 'crashed' || row_.state === 'deleting') return
      if (await Promise.race([changed.next(), moved]) === 'moved') moved = host.events.appended(client).then(() => 'moved')
    }
  } finally { changed.close() }
}

/** A place in one file of lines that grows, and may be rotated away (`.1`). */
class Tail {
  readonly path: string
  readonly #read: (line: string) => LogLine | undefined
  #at = 0
  #inode = 0n
  #rest = Buffer.alloc(0)

  constructor(path: string, read: (line: string) => LogLine | undefined) { this.path = path; this.#read = read }

  *last(count: number | undefined): Generator<LogLine> {
    if (existsSync(this.path)) {
      const fd = openSync(this.path, 'r')
      try { const at = fstatSync(fd, { bigint: true }); this.#at = Number(at.size); this.#inode = at.ino } finally { closeSync(fd) }
    }
    const kept: LogLine[] = []
    if (count === 0) return
    if (count !== undefined) {
      for (const path of [this.path, `${this.path}.1`]) {
        if (kept.length >= count) break
        readBackwards(path, (line) => { const one = this.#read(line); if (one) kept.push(one); return kept.length < count })
      }
      yield* kept.reverse()
      return
    }
    const end = this.#at
    for (const path of [`${this.path}.1`, this.path]) {
      if (!existsSync(path)) continue
      yield* this.#lines(path, 0, path === this.path ? end : Number.MAX_SAFE_INTEGER)
    }
  }

  *more(): Generator<LogLine> {
    if (!existsSync(this.path)) return
    const fd = openSync(this.path, 'r')
    let inode: bigint, size: number
    try { const at = fstatSync(fd, { bigint: true }); inode = at.ino; size = Number(at.size) } finally { closeSync(fd) }
    if (inode !== this.#inode && this.#inode !== 0n) {
      yield* this.#lines(`${this.path}.1`, this.#at, Number.MAX_SAFE_INTEGER)
      this.#at = 0
    }
    this.#inode = inode
    if (size < this.#at) this.#at = 0
    if (size > this.#at) { yield* this.#lines(this.path, this.#at, size); this.#at = size }
  }

  *#lines(path: string, from: number, to: number): Generator<LogLine> {
    if (!existsSync(path)) return
    const fd = openSync(path, 'r'), chunk = Buffer.alloc(CHUNK)
    try {
      for (let at = Math.max(from, firstByte(fd)); at < to;) {
        const read = readSync(fd, chunk, 0, Math.min(CHUNK, to - at), at)
        if (read === 0) break
        at += read
        let bytes = Buffer.concat([this.#rest, chunk.subarray(0, read)])
        for (let end = bytes.indexOf(10); end >= 0; end = bytes.indexOf(10)) {
          const one = this.#read(bytes.subarray(0, end).toString('utf8').replace(/\r$/, ''))
          if (one) yield one
          bytes = bytes.subarray(end + 1)
        }
        this.#rest = Buffer.from(bytes.byteLength > CHUNK ? bytes.subarray(-CHUNK) : bytes)
      }
    } finally { closeSync(fd) }
  }
}

/** Tells when one of some files was written (inotify(7)), also after it was turned over: the watch of a name is on what has it now. */
class Changes {
  readonly #watchers = new Map<string, FSWatcher>()
  #wake: () => void = () => undefined
  #pending = false

  constructor(paths: readonly string[], client: AbortSignal) {
    for (const path of new Set(paths)) this.#watch(path)
    client.addEventListener('abort', () => { this.#wake() }, { once: true })
  }

  #watch(path: string): void {
    this.#watchers.get(path)?.close()
    this.#watchers.delete(path)
    try {
      this.#watchers.set(path, watch(path, (event) => {
        if (event === 'rename' && this.#watchers.has(path)) this.#watch(path)
        this.#pending = true
        this.#wake()
      }))
    } catch { /* it is not there: its vm is being deleted, which is an event */ }
  }

  next(): Promise<void> {
    return new Promise((resolve) => {
      const done = () => { this.#pending = false; resolve() }
      this.#wake = done
      if (this.#pending) done()
    })
  }

  close(): void {
    for (const watcher of this.#watchers.values()) watcher.close()
    this.#watchers.clear()
  }
}
