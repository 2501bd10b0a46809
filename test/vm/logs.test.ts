import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { appendFileSync, closeSync, openSync, truncateSync, writeFileSync } from 'node:fs'
import type { LogLine, LogQuery } from '../../src/contract/log.ts'
import { punchHole } from '../../src/linux/file.ts'
import type { VmRow } from '../../src/store/schema.ts'
import { AppLog } from '../../src/vm/log/app-log.ts'
import { lastLines } from '../../src/vm/log/console-lines.ts'
import { logs } from '../../src/vm/logs.ts'
import { move } from '../../src/vm/row/moves.ts'
import { testHost, type TestHost } from './host.ts'

let bed: TestHost
let row: VmRow
let at: ReturnType<TestHost['paths']>
let log: AppLog
let offset = 0
beforeEach(() => {
  bed = testHost()
  row = bed.vm('web')
  at = bed.paths(row)
  offset = 0
  log = new AppLog(at.appLog, 100_000)
  writeFileSync(at.consoleLog, '')
  writeFileSync(at.vmmLog, '')
})
afterEach(async () => {
  await bed[Symbol.asyncDispose]()
})

const say = (text: string, stream: 1 | 2 | 3 = 1, timeMs = Date.now()) => {
  log.take({ stream, offset, timeMs, bytes: Buffer.from(text) })
  offset += Buffer.byteLength(text)
}
const never = new AbortController().signal
const read = async (query: LogQuery = {}): Promise<LogLine[]> =>
  await Array.fromAsync(logs(bed.host, 'web', query, never))
const texts = async (query: LogQuery = {}): Promise<string[]> => (await read(query)).map((line) => line.line)

describe('a log', () => {
  test('shows what the workload said, by stream, with its time', async () => {
    say('out\n', 1, 1000)
    say('err\n', 2, 2000)

    expect(await read()).toEqual([
      { name: 'web', source: 'app', stream: 'stdout', line: 'out', timestamp: '1970-01-01T00:00:01.000Z' },
      { name: 'web', source: 'app', stream: 'stderr', line: 'err', timestamp: '1970-01-01T00:00:02.000Z' },
    ])
  })

  test('is shown by its source, or with all the others', async () => {
    say('app\n')
    say('agent\n', 3)
    appendFileSync(at.consoleLog, 'boot\r\n')
    appendFileSync(at.vmmLog, 'qemu\n')

    expect(await texts({ source: 'app' })).toEqual(['app'])
    expect(await read({ source: 'agent' })).toMatchObject([{ source: 'agent', stream: 'agent', line: 'agent' }])
    expect(await read({ source: 'console' })).toEqual([
      { name: 'web', source: 'console', stream: 'console', line: 'boot', timestamp: null },
    ])
    expect(await texts({ source: 'vmm' })).toEqual(['qemu'])
    expect((await texts({ source: 'all' })).sort()).toEqual(['agent', 'app', 'boot', 'qemu'])
  })

  test('of a vm that said nothing is empty, and so is one whose files are not there', async () => {
    expect(await read()).toEqual([])
    bed.paths(bed.vm('new'))
    expect(await Array.fromAsync(logs(bed.host, 'new', { source: 'all', tail: 3 }, never))).toEqual([])
  })

  test('does not show where a boot began, nor a line that a crash cut', async () => {
    say('one\n')
    log.restart()
    offset = 0
    say('two\n')
    appendFileSync(at.appLog, '{"o":99,')

    expect(await texts()).toEqual(['one', 'two'])
    expect(await texts({ tail: 2 })).toEqual(['one', 'two'])
  })

  test('of a console has nothing that a terminal would obey', async () => {
    appendFileSync(at.consoleLog, '\x1b[31mred\x1b[0m\x07 \x1b]0;title\x07end\x00\n')

    const [line = ''] = await texts({ source: 'console' })

    expect(line).not.toMatch(/[\x00-\x1f\x7f]/)
    expect(line).toContain('red')
  })
})

describe('a line in several records', () => {
  const long = 'x'.repeat(50_000)

  test('is one line, shown when it has ended: a long one, and one that the other stream got ahead of', async () => {
    say('half')
    say('err\n', 2)
    say(` done\n${long}\nlast`)
    say('oops\n', 2)

    const whole = [
      ['stderr', 'err'],
      ['stdout', 'half done'],
      ['stdout', long],
      ['stderr', 'oops'],
      ['stdout', 'last'],
    ]
    expect((await read()).map((one) => [one.stream, one.line])).toEqual(whole)
    expect((await read()).map((one) => one.partial)).toEqual([undefined, undefined, undefined, undefined, true])
    // counted from the end, a line stands where its last byte does
    const back = [
      ['stderr', 'oops'],
      ['stdout', 'last'],
      ['stdout', long],
      ['stdout', 'half done'],
      ['stderr', 'err'],
    ]
    for (let tail = 1; tail <= 5; tail++) {
      const wanted = back.slice(0, tail)
      expect((await read({ tail })).map((one) => [one.stream, one.line])).toEqual(
        whole.filter((one) => wanted.some(([, line]) => line === one[1])),
      )
    }
  })

  test('has the character in it that two records share', async () => {
    const euro = Buffer.from('1 €\n')
    for (const [stream, bytes] of [
      [1, euro.subarray(0, 3)],
      [2, Buffer.from('!\n')],
      [1, euro.subarray(3)],
    ] as const) {
      log.take({ stream, offset, timeMs: 1, bytes })
      offset += bytes.byteLength
    }

    expect(await texts()).toEqual(['!', '1 €'])
    expect(await texts({ tail: 1 })).toEqual(['1 €'])
  })

  test("that never ends is shown at the end of its boot, and never joined with the next one's", async () => {
    say('Password: ')
    log.restart()
    offset = 0
    say('hello\n')

    expect(await texts()).toEqual(['Password: ', 'hello'])
    expect(await texts({ tail: 5 })).toEqual(['Password: ', 'hello'])
  })

  test('without an end costs a megabyte at most, and is shown in pieces', async () => {
    log = new AppLog(at.appLog, 100_000_000)
    for (let i = 0; i < 100; i++) say('y'.repeat(50_000))
    say('\n')

    for (const lines of [await read(), await read({ tail: 100 }), await read({ tail: 1 })]) {
      expect(lines.length).toBe(5)
      expect(lines.map((one) => one.line).join('')).toBe('y'.repeat(5_000_000))
      expect(lines.map((one) => one.partial)).toEqual([true, true, true, true, undefined])
      for (const one of lines) expect(one.line.length).toBeLessThan(1_100_000)
    }
  })
})

describe('what was written', () => {
  const CASES: readonly (readonly [string, Uint8Array])[] = [
    ['bytes that are no UTF-8', Buffer.from([0xed, 0xab, 0xee, 0xdb, 3, 10])],
    ['a last line without its end', Buffer.from('one\ntwo')],
    ['a prompt alone', Buffer.from('ready> ')],
    ['empty lines', Buffer.from('\n\n\n')],
    ['carriage returns', Buffer.from('1%\r50%\r100%\r\n')],
    ['zeros', Buffer.from('a\0b\0\n\0')],
    ['a line of three megabytes', Buffer.from(`${'x'.repeat(3_000_000)}\n`)],
    ['three megabytes that are no UTF-8, and then a word', Buffer.from(`${'\xff'.repeat(3_000_000)}\nend`, 'latin1')],
    ['a byte order mark', Buffer.from('\uFEFFhi\n')],
  ]
  for (const [name, said] of CASES) {
    test(`comes back byte for byte: ${name}`, async () => {
      log = new AppLog(at.appLog, 100_000_000)
      for (let from = 0; from < said.byteLength; from += 65_536)
        log.take({ stream: 1, offset: from, timeMs: 1, bytes: said.subarray(from, from + 65_536) })

      for (const lines of [await read(), await read({ tail: 1_000_000 })]) {
        const bytes = Buffer.concat(
          lines.map((one) =>
            Buffer.concat([Buffer.from(one.line, one.encoding ?? 'utf8'), Buffer.from(one.partial ? '' : '\n')]),
          ),
        )
        expect(bytes.equals(said)).toBe(true)
      }
    })
  }

  test('is counted from behind in little memory, a million lines of it', async () => {
    log = new AppLog(at.appLog, 100_000_000)
    say('first\n')
    for (let i = 0; i < 20; i++) say('\n'.repeat(50_000))
    say('last\n')
    const before = process.memoryUsage().rss
    let count = 0
    let highest = 0
    for await (const _ of logs(bed.host, 'web', { tail: 1_000_000 }, never)) {
      if (++count % 100_000 === 0) highest = Math.max(highest, process.memoryUsage().rss)
    }

    expect(count).toBe(1_000_000)
    expect(highest - before).toBeLessThan(150 * 2 ** 20)
  })
})

describe('a reader that finds nothing', () => {
  test('leaves the event loop to others between two pieces of the file', async () => {
    log = new AppLog(at.appLog, 100_000_000)
    for (let i = 0; i < 200; i++) say(`${'noise '.repeat(20_000)}\n`)
    for (const query of [{ source: 'agent' }, { source: 'agent', tail: 5 }] as const) {
      let turns = 0
      let reading = true
      const turn = (): void => {
        turns++
        if (reading) setImmediate(turn)
      }
      setImmediate(turn)

      expect(await texts(query)).toEqual([])

      reading = false
      expect(turns).toBeGreaterThan(10) // 24 MB in pieces of 256 KiB at most
    }
  })
})

describe('the tail', () => {
  test('is the last lines of one source, oldest first', async () => {
    for (let i = 0; i < 20; i++) {
      say(`line ${i}\n`)
      say(`noise ${i}\n`, 3)
    }

    expect(await texts({ tail: 3 })).toEqual(['line 17', 'line 18', 'line 19'])
    expect(await texts({ tail: 0 })).toEqual([])
    expect((await texts({ tail: 1000 })).length).toBe(20)
  })

  test('reaches into the older file', async () => {
    log = new AppLog(at.appLog, 500)
    for (let i = 0; i < 30; i++) say(`line ${i}\n`)

    expect(await texts({ tail: 12 })).toEqual(Array.from({ length: 12 }, (_, index) => `line ${18 + index}`))
    expect((await texts()).at(-1)).toBe('line 29')
  })
})

describe('since', () => {
  test('is a time, a Unix time in seconds, or a duration back from now', async () => {
    const now = Date.now()
    say('old\n', 1, now - 7_200_000)
    say('new\n', 1, now - 60_000)

    for (const since of ['1h', '5m', new Date(now - 3_600_000).toISOString(), String(Math.floor(now / 1000) - 3600)])
      expect(await texts({ since })).toEqual(['new'])
    expect(await texts({ since: '1d' })).toEqual(['old', 'new'])
    expect(await texts({ since: '1s' })).toEqual([])
  })

  test('that is none of them is refused before anything is sent', () => {
    for (const since of ['yesterday', '', '5 parsecs', '-5m', '9'.repeat(60)]) {
      expect(() => logs(bed.host, 'web', { since }, never)).toThrow(
        expect.objectContaining({ code: 'since_invalid', data: { since } }) as Error,
      )
    }
  })
})

describe('a reader that follows', () => {
  /** Reads in the background until it is stopped. */
  const follow = (query: LogQuery = {}) => {
    const stop = new AbortController()
    const seen: string[] = []
    const ended = (async () => {
      for await (const line of logs(bed.host, 'web', { follow: true, ...query }, stop.signal)) seen.push(line.line)
    })()
    const sees = async (count: number) => {
      for (const end = Date.now() + 3000; seen.length < count && Date.now() < end; ) await Bun.sleep(2)
      return seen
    }
    return {
      seen,
      sees,
      ended,
      stop: async () => {
        stop.abort()
        await ended
      },
    }
  }

  test('sees what was, then what comes', async () => {
    say('before\n')
    const reader = follow()
    expect(await reader.sees(1)).toEqual(['before'])

    say('after\n')

    expect(await reader.sees(2)).toEqual(['before', 'after'])
    await reader.stop()
  })

  test('of a workload that has said nothing yet hears its first word', async () => {
    const reader = follow()
    await Bun.sleep(20)

    say('hello\n')

    expect(await reader.sees(1)).toEqual(['hello'])
    await reader.stop()
  })

  test('sees a line whole that was half there when it came', async () => {
    say('half')
    say('err\n', 2) // writes the half
    const all = follow()
    const one = follow({ tail: 1 })
    expect(await all.sees(1)).toEqual(['err'])
    expect(await one.sees(1)).toEqual(['err'])

    say(' done\n')

    expect(await all.sees(2)).toEqual(['err', 'half done'])
    expect(await one.sees(2)).toEqual(['err', 'half done'])
    await all.stop()
    await one.stop()
  })

  test('sees a prompt without an end, and then the rest of its line', async () => {
    const reader = follow()
    say('ready> ')
    expect(await reader.sees(1)).toEqual(['ready> '])

    say('42\n')

    expect(await reader.sees(2)).toEqual(['ready> ', '42'])
    await reader.stop()
  })

  test('sees every line once while the file is turned over under it', async () => {
    log = new AppLog(at.appLog, 2000)
    const reader = follow()

    for (let i = 0; i < 200; i++) {
      say(`line ${i}\n`)
      if (i % 20 === 0) await reader.sees(i + 1)
    }

    expect(await reader.sees(200)).toEqual(Array.from({ length: 200 }, (_, index) => `line ${index}`))
    await reader.stop()
  })

  test('of the console sees what the machine writes', async () => {
    const reader = follow({ source: 'console', tail: 0 })
    await Bun.sleep(10)
    appendFileSync(at.consoleLog, 'panic\n')

    expect(await reader.sees(1)).toEqual(['panic'])
    await reader.stop()
  })

  test('is let go when the vm has stopped and the last line was read', async () => {
    const reader = follow()
    say('bye\n')

    move(bed.host.store, row.uid, 'exited')
    await reader.ended

    expect(reader.seen).toEqual(['bye'])
  })

  test('leaves nothing behind, however much was said to it', async () => {
    const reader = follow()
    for (let i = 0; i < 50; i++) {
      say(`line ${i}\n`)
      await reader.sees(i + 1)
    }

    expect(bed.events.waiting).toBeLessThanOrEqual(1)
    await reader.stop()
    expect(bed.events.waiting).toBe(0)
  })
})

describe('a console whose old part was given back to the disk', () => {
  /** A log of `mib` mebibytes that are holes, then these lines. */
  const punched = (mib: number, text: string) => {
    truncateSync(at.consoleLog, mib * 2 ** 20)
    appendFileSync(at.consoleLog, text)
    const fd = openSync(at.consoleLog, 'r+')
    try {
      punchHole(fd, 0, mib * 2 ** 20)
    } finally {
      closeSync(fd)
    }
  }

  test('is read from where it holds something', async () => {
    punched(64 * 1024, 'one\ntwo\nthree\n')
    const start = performance.now()

    expect((await texts({ source: 'console' })).slice(-2)).toEqual(['two', 'three'])
    expect((await texts({ source: 'console', tail: 100 })).slice(-2)).toEqual(['two', 'three'])
    expect(lastLines(at.consoleLog, 1000).slice(-2)).toEqual(['two', 'three'])
    expect(performance.now() - start).toBeLessThan(1000) // 64 GiB of zeros would take minutes
  })
})
