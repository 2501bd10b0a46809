import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { appendFileSync, existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { AppLog, bytesOf, type AppLine } from '../../../src/vm/log/app-log.ts'

let folder: string
let path: string
beforeEach(() => {
  folder = mkdtempSync('/tmp/aerie-u-')
  path = join(folder, 'app.jsonl')
})
afterEach(() => {
  rmSync(folder, { recursive: true })
})

const open = (maxBytes = 1_000_000) => new AppLog(path, maxBytes)
const lines = (of = path): AppLine[] =>
  existsSync(of)
    ? readFileSync(of, 'utf8')
        .split('\n')
        .filter((line) => line !== '')
        .map((line) => JSON.parse(line) as AppLine)
    : []
const texts = (of = path): string[] => lines(of).map((line) => bytesOf(line).toString())

/** What an agent sends: each piece at the offset where the last one ended. */
const sayer = (log: AppLog, from = 0) => {
  let offset = from
  return (text: string | Uint8Array, stream: 1 | 2 | 3 = 1, timeMs = 1000) => {
    const bytes = Buffer.from(text as string)
    log.take({ stream, offset, timeMs, bytes })
    offset += bytes.byteLength
    return offset
  }
}

describe('lines', () => {
  test('are written when they are whole, with their stream, their time and the place after them', () => {
    const log = open()
    const say = sayer(log)
    say('one\ntwo\nthr', 1, 5)
    say('ee\n', 1, 6)
    say('oops\n', 2, 7)

    expect(lines()).toEqual([
      { o: 4, t: 5, s: 1, d: 'one' },
      { o: 8, t: 5, s: 1, d: 'two' },
      { o: 14, t: 6, s: 1, d: 'three' },
      { o: 19, t: 7, s: 2, d: 'oops' },
    ])
    expect(log.next).toBe(19)
  })

  test('that are empty, or end in a carriage return, are kept as they are', () => {
    sayer(open())('\n\na\r\n')

    expect(texts()).toEqual(['', '', 'a\r'])
  })

  test('whose end has not come are held back, and written first when another stream gets ahead', () => {
    const say = sayer(open())
    say('half')
    expect(lines()).toEqual([])

    say('err\n', 2)
    say(' done\n')

    expect(lines().map(({ s, d, p, c }) => [s, d, p, c])).toEqual([
      [1, 'half', true, undefined],
      [2, 'err', undefined, undefined],
      [1, ' done', undefined, true],
    ])
  })

  test('whose end never comes are written when the workload has ended', () => {
    const log = open()
    const say = sayer(log)
    say('no newline')
    log.flush()
    log.flush()

    expect(lines()).toEqual([{ o: 10, t: 1000, s: 1, p: true, d: 'no newline' }])
    expect(log.next).toBe(10)
  })

  test('longer than 16 KiB are kept in parts that lose nothing', () => {
    const log = open()
    const long = 'x'.repeat(16_384)
    const longer = 'y'.repeat(40_000)
    const say = sayer(log)
    const end = say(`${long}\n${longer}\nend\n`)

    expect(lines().map(({ d = '', p, c }) => [d.length, p, c])).toEqual([
      [16_384, undefined, undefined],
      [16_384, true, undefined],
      [16_384, true, true],
      [40_000 - 2 * 16_384, undefined, true],
      [3, undefined, undefined],
    ])
    expect(texts().join('')).toBe(`${long}${longer}end`)
    expect(log.next).toBe(end)
  })

  test('are never cut in the middle of a character', () => {
    sayer(open())(`${'x'.repeat(16_383)}ü€😀${'z'.repeat(16_381)}😀\n`)

    expect(texts().join('')).toBe(`${'x'.repeat(16_383)}ü€😀${'z'.repeat(16_381)}😀`)
    expect(lines().every((line) => line.d !== undefined)).toBe(true)
  })

  test('that are no UTF-8 keep their bytes', () => {
    const bytes = Buffer.from([0xff, 0xfe, 0x00, 0x41, 0x0a])
    const say = sayer(open())
    say(bytes)
    say(Buffer.from([0xef, 0xbb, 0xbf, 0x42, 0x0a]))

    expect(lines()[0]).toMatchObject({ b: bytes.subarray(0, 4).toString('base64') })
    expect(texts()).toEqual(['��\0A', '﻿B'])
  })

  test('come out the same in whatever portions they come', () => {
    const text = `first\n${'long '.repeat(9000)}\nünïcode 😀\n\nlast\n`
    const bytes = Buffer.from(text)
    let seed = 7
    const random = (below: number) => {
      seed = (seed * 1664525 + 1013904223) >>> 0
      return seed % below
    }
    const say = sayer(open())
    for (let at = 0; at < bytes.byteLength; ) {
      const size = 1 + random(5000)
      say(bytes.subarray(at, at + size))
      at += size
    }

    const joined = lines()
      .map((line) => `${bytesOf(line).toString()}${line.p ? '' : '\n'}`)
      .join('')
    expect(joined).toBe(text)
  })
})

describe('the file', () => {
  test('is there before the first line, for its owner alone', () => {
    open()

    expect(statSync(path).mode & 0o777).toBe(0o600)
  })

  test('is turned over when it is full: the last bytes and one older file are kept', () => {
    const say = sayer(open(1000))
    for (let i = 0; i < 100; i++) say(`line ${i}\n`)

    const kept = [...texts(`${path}.1`), ...texts()]
    expect(statSync(path).size).toBeLessThan(1100)
    expect(statSync(`${path}.1`).size).toBeLessThan(1100)
    expect(kept.at(-1)).toBe('line 99')
    expect(kept).toEqual(Array.from({ length: kept.length }, (_, index) => `line ${100 - kept.length + index}`))
  })
})

describe('after a restart of the daemon', () => {
  test('the log goes on after its last line', () => {
    sayer(open())('one\ntwo\nhel')

    const log = open()

    expect(log.next).toBe(8)
    sayer(log, 8)('hello\n')
    expect(texts()).toEqual(['one', 'two', 'hello'])
  })

  test('a line that was half written goes on, though others came after it, and one of the boot before does not', () => {
    const first = open()
    const say = sayer(first)
    say('half')
    say('err\n', 2)
    first.flush()

    const log = open()
    sayer(log, log.next)(' done\nnew\n')
    expect(lines().map(({ d, p, c }) => [d, p, c])).toEqual([
      ['half', true, undefined],
      ['err', undefined, undefined],
      [' done', undefined, true],
      ['new', undefined, undefined],
    ])

    sayer(log, log.next)('cut')
    log.flush()
    log.restart()
    sayer(open())('fresh\n')
    expect(lines().at(-1)).toMatchObject({ d: 'fresh' })
    expect(lines().at(-1)?.c).toBeUndefined()
  })

  test('a last line that the crash cut short is had again', () => {
    sayer(open())('one\ntwo\n')
    writeFileSync(path, readFileSync(path).subarray(0, -9))

    const log = open()

    expect(log.next).toBe(4)
    sayer(log, 4)('two\n')
    const whole = readFileSync(path, 'utf8')
      .split('\n')
      .filter((line) => line !== '')
      .flatMap((line) => {
        try {
          return [JSON.parse(line) as AppLine]
        } catch {
          return []
        }
      })
    expect(whole.map((line) => line.d)).toEqual(['one', 'two'])
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
})

test('a stream that is opened again sends what was held back again, and it is there once', () => {
  const log = open()
  sayer(log)('one\nhel')

  const from = log.resume()

  expect(from).toBe(4)
  sayer(log, from)('hello\n')
  expect(texts()).toEqual(['one', 'hello'])
})

test('whoever waits for lines is woken when they are in the file', () => {
  const log = open()
  const seen: number[] = []
  log.on('append', () => {
    seen.push(lines().length)
  })
  const say = sayer(log)
  say('one\ntwo\n')
  say('held')
  say(' back\n')

  expect(seen).toEqual([2, 3])
})
