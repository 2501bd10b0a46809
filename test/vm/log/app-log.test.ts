import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { appendFileSync, existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { AppLog, type AppRun, contentOf } from '../../../src/vm/log/app-log.ts'

let folder: string
let path: string
beforeEach(() => {
  folder = mkdtempSync('/tmp/aerie-u-')
  path = join(folder, 'app.jsonl')
})
afterEach(() => {
  rmSync(folder, { recursive: true, force: true })
})

const open = (maxBytes = 1_000_000) => new AppLog(path, maxBytes)
const runs = (of = path): AppRun[] =>
  existsSync(of)
    ? readFileSync(of, 'utf8')
        .split('\n')
        .filter((line) => line !== '')
        .map((line) => JSON.parse(line) as AppRun)
    : []
const bytes = (of = path): Buffer =>
  Buffer.concat(
    runs(of).map((run) => {
      const content = contentOf(run)
      return typeof content === 'string' ? Buffer.from(content) : content
    }),
  )
const text = (of = path): string => bytes(of).toString()

/** What an agent sends: each piece at the offset where the last one ended. */
const sayer = (log: AppLog, from = 0) => {
  let offset = from
  return (said: string | Uint8Array, stream: 1 | 2 | 3 = 1, timeMs = 1000) => {
    const bytes = Buffer.from(said as string)
    log.take({ stream, offset, timeMs, bytes })
    offset += bytes.byteLength
    return offset
  }
}

describe('runs', () => {
  test('are written as they come, with their stream, their time and the place after them', () => {
    const log = open()
    const say = sayer(log)
    say('one\ntwo\nthr', 1, 5)
    say('ee\n', 1, 6)
    say('oops\n', 2, 7)

    expect(runs()).toEqual([
      { o: 11, t: 5, s: 1, x: 'one\ntwo\nthr' },
      { o: 14, t: 6, s: 1, x: 'ee\n' },
      { o: 19, t: 7, s: 2, x: 'oops\n' },
    ])
    expect(log.next).toBe(19)
  })

  test('hold what has no end yet, at once', () => {
    const log = open()
    sayer(log)('ready> ')

    expect(runs()).toEqual([{ o: 7, t: 1000, s: 1, x: 'ready> ' }])
    expect(log.next).toBe(7)
  })

  test('that are long are kept in parts that lose nothing', () => {
    const log = open()
    const said = `${'x'.repeat(16_384)}\n${'y'.repeat(40_000)}\nend\n`
    const end = sayer(log)(said)

    expect(text()).toBe(said)
    expect(log.next).toBe(end)
    for (const run of runs()) expect((run.x ?? '').length).toBeLessThanOrEqual(16_384)
  })

  test('keep every byte, whatever is in them and wherever they are cut', () => {
    const all = Buffer.from(Array.from({ length: 65_536 }, (_, n) => (n * 7 + (n >> 8)) & 0xff))
    const said = Buffer.concat([
      Buffer.from('\n\na\r\n\0\x1b[31mred\uFEFFünïcode 😀'),
      Buffer.from([0xed, 0xab, 0xee, 0xdb, 3, 10]),
      all,
    ])
    let seed = 7
    const random = (below: number) => {
      seed = (seed * 1664525 + 1013904223) >>> 0
      return seed % below
    }
    const say = sayer(open())
    for (let at = 0; at < said.byteLength; ) {
      const size = 1 + random(5000)
      say(said.subarray(at, at + size))
      at += size
    }

    expect(bytes().equals(said)).toBe(true)
  })

  for (const [name, byte] of [
    ['empty lines', 10],
    ['bytes that are no UTF-8', 0xff],
    ['control characters', 1],
    ['zeros', 0],
    ['quotes', 34],
    ['letters', 65],
  ] as const) {
    test(`of ${name} take at most some twice what was said`, () => {
      const log = open(100_000_000)
      sayer(log)(Buffer.alloc(1_000_000, byte))

      expect(statSync(path).size).toBeLessThan(2_100_000)
      expect(bytes().equals(Buffer.alloc(1_000_000, byte))).toBe(true)
    })
  }
})

describe('the file', () => {
  test('is there before the first run, for its owner alone', () => {
    open()

    expect(statSync(path).mode & 0o777).toBe(0o600)
  })

  test('is turned over when it is full: the last bytes and one older file are kept', () => {
    const say = sayer(open(1000))
    for (let i = 0; i < 100; i++) say(`line ${i}\n`)

    const kept = `${text(`${path}.1`)}${text()}`.split('\n').slice(0, -1)
    expect(statSync(path).size).toBeLessThanOrEqual(1000)
    expect(statSync(`${path}.1`).size).toBeLessThanOrEqual(1000)
    expect(kept.at(-1)).toBe('line 99')
    expect(kept).toEqual(Array.from({ length: kept.length }, (_, index) => `line ${100 - kept.length + index}`))
  })

  test('is never larger than it may be, however much comes at once', () => {
    const say = sayer(open(100_000))
    for (let i = 0; i < 10; i++) say(Buffer.alloc(1_000_000, 10))

    expect(statSync(path).size).toBeLessThanOrEqual(100_000)
    expect(statSync(`${path}.1`).size).toBeLessThanOrEqual(100_000)
  })

  test('that cannot be written says so, throws nothing, and takes nothing as taken', () => {
    const log = open()
    const say = sayer(log)
    say('one\n')
    rmSync(folder, { recursive: true })

    expect(log.take({ stream: 1, offset: 4, timeMs: 1, bytes: Buffer.from('two\n') })).toBe(false)
    expect(log.next).toBe(4)
    expect(() => log.restart()).not.toThrow()
  })
})

describe('after a restart of the daemon', () => {
  test('the log goes on after its last run', () => {
    sayer(open())('one\ntwo\nhel')

    const log = open()

    expect(log.next).toBe(11)
    sayer(log, 11)('lo\n')
    expect(text()).toBe('one\ntwo\nhello\n')
  })

  test('a last run that the crash cut short is had again', () => {
    const say = sayer(open())
    say('one\n')
    say('two\n')
    writeFileSync(path, readFileSync(path).subarray(0, -9))

    const log = open()

    expect(log.next).toBe(4)
    sayer(log, 4)('two\n')
    const whole = readFileSync(path, 'utf8')
      .split('\n')
      .filter((line) => line !== '')
      .flatMap((line) => {
        try {
          return [JSON.parse(line) as AppRun]
        } catch {
          return []
        }
      })
    expect(whole.map((run) => run.x)).toEqual(['one\n', 'two\n'])
  })

  test('a log that was just turned over knows its place from the older file', () => {
    const say = sayer(open(100))
    for (let i = 0; i < 10; i++) say(`line ${i}\n`)
    const next = open(100).next
    rmSync(path)

    expect(open(100).next).toBeLessThanOrEqual(next)
    expect(open(100).next).toBeGreaterThan(0)
  })

  test('a file of nothing but a torn line starts at 0', () => {
    appendFileSync(path, '{"o":99,"t"')

    expect(open().next).toBe(0)
  })

  test('a boot that began anew is not taken for the one before it', () => {
    const log = open()
    sayer(log)('the first boot said this\n')
    log.restart()
    expect(log.next).toBe(0)

    expect(open().next).toBe(0) // though the daemon crashed before the new boot had said anything
    sayer(log)('hi\n')
    expect(open().next).toBe(3)
  })

  test('what an older release wrote, a line a record, reads as it was', () => {
    writeFileSync(
      path,
      [
        { o: 4, t: 1, s: 1, d: 'one' },
        { o: 8, t: 1, s: 1, d: 'ha', p: true },
        { o: 12, t: 1, s: 1, d: 'lf', c: true },
        { o: 15, t: 1, s: 1, b: Buffer.from([0xff, 0xfe]).toString('base64') },
      ]
        .map((line) => `${JSON.stringify(line)}\n`)
        .join(''),
    )

    expect(open().next).toBe(15)
    expect(bytes().equals(Buffer.concat([Buffer.from('one\nhalf\n'), Buffer.from([0xff, 0xfe, 10])]))).toBe(true)
  })
})

test('whoever waits for the log is woken when it is in the file', () => {
  const log = open()
  const seen: number[] = []
  log.on('append', () => {
    seen.push(runs().length)
  })
  const say = sayer(log)
  say('one\ntwo\n')
  say('held')

  expect(seen).toEqual([1, 2])
})
