import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { readBackwards } from '../../../src/vm/log/line-file.ts'

let folder: string
let path: string
beforeEach(() => {
  folder = mkdtempSync('/tmp/aerie-u-')
  path = join(folder, 'console.log')
})
afterEach(() => {
  rmSync(folder, { recursive: true })
})

describe('reading a file from its end', () => {
  const read = (text: string | Buffer, count = Number.POSITIVE_INFINITY): string[] => {
    writeFileSync(path, text)
    const seen: string[] = []
    readBackwards(path, (line) => {
      seen.push(line)
      return seen.length < count
    })
    return seen
  }

  test('gives its lines newest first, and stops when it is told to', () => {
    expect(read('a\nb\nc\n')).toEqual(['c', 'b', 'a'])
    expect(read('a\nb\nc\n', 2)).toEqual(['c', 'b'])
    expect(read('a\nb\nno end')).toEqual(['no end', 'b', 'a'])
    expect(read('a\n\n\nb\n')).toEqual(['b', 'a'])
    expect(read('')).toEqual([])
    expect(read('\n')).toEqual([])
    expect(read('x')).toEqual(['x'])
  })

  test('gives every line whole, wherever the pieces that it reads end', () => {
    const all = Array.from({ length: 400 }, (_, index) => `${index}:${'x'.repeat((index * 997) % 3000)}`)

    expect(read(`${all.join('\n')}\n`)).toEqual(all.toReversed())
    for (const size of [65_535, 65_536, 65_537, 131_072])
      expect(read(`${'a'.repeat(size)}\n${'b'.repeat(size)}\n`)).toEqual(['b'.repeat(size), 'a'.repeat(size)])
  })

  test('of a file that is not there gives nothing', () => {
    readBackwards(join(folder, 'none'), () => {
      throw new Error('a line of nothing')
    })
  })

  test('of a guest that never ended a line takes no time that grows with its square', () => {
    const start = performance.now()

    const [last = ''] = read(Buffer.alloc(64 * 2 ** 20, 'x'))

    expect(last.length).toBeGreaterThan(100_000)
    expect(last.length).toBeLessThan(4 * 2 ** 20)
    expect(performance.now() - start).toBeLessThan(3000)
  })

  test('goes on before a line that is too long', () => {
    expect(read(`first\n${'x'.repeat(5 * 2 ** 20)}\nlast\n`).map((line) => line.length)).toEqual([
      4,
      expect.any(Number) as number,
      5,
    ])
  })
})
