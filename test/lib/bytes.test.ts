import { describe, expect, test } from 'bun:test'
import { parseBytes, parseDuration, sayBytes } from '../../src/lib/bytes.ts'

describe('a size', () => {
  const SIZES: readonly (readonly [string, number | undefined])[] = [
    ['0', 0],
    ['1', 1],
    ['512', 512],
    ['1b', 1],
    ['1k', 1024],
    ['1K', 1024],
    ['1kb', 1024],
    ['1KiB', 1024],
    ['64m', 64 * 2 ** 20],
    ['1g', 2 ** 30],
    ['2T', 2 * 2 ** 40],
    ['1.5GiB', 1.5 * 2 ** 30],
    ['0.5k', 512],
    [' 10 g ', 10 * 2 ** 30],
    ['8191t', 8191 * 2 ** 40],
    ['', undefined],
    [' ', undefined],
    ['k', undefined],
    ['-1', undefined],
    ['+1', undefined],
    ['1e3', undefined],
    ['0x10', undefined],
    ['1,5g', undefined],
    ['1.', undefined],
    ['.5k', undefined],
    ['1kk', undefined],
    ['1p', undefined],
    ['1 k b', undefined],
    ['Infinity', undefined],
    ['NaN', undefined],
    ['9007199254740993', undefined],
    ['9999999t', undefined],
    ['1g\n2', undefined],
  ]
  for (const [text, bytes] of SIZES)
    test(`${JSON.stringify(text)} is ${bytes ?? 'none'}`, () => {
      expect(parseBytes(text)).toBe(bytes as number)
    })

  const SAID: readonly (readonly [number, string])[] = [
    [0, '0 B'],
    [1, '1 B'],
    [999, '999 B'],
    [1000, '0.977 KiB'],
    [1024, '1.00 KiB'],
    [1536, '1.50 KiB'],
    [10 * 1024, '10.0 KiB'],
    [100 * 1024, '100 KiB'],
    [2 ** 20, '1.00 MiB'],
    [23.45 * 2 ** 30, '23.4 GiB'],
    [2 ** 40, '1.00 TiB'],
    [2 ** 50, '1.00 PiB'],
    [2 ** 60, '1024 PiB'],
  ]
  for (const [bytes, text] of SAID)
    test(`of ${bytes} is said "${text}"`, () => {
      expect(sayBytes(bytes)).toBe(text)
    })
})

describe('a duration', () => {
  const TIMES: readonly (readonly [string, number | undefined])[] = [
    ['0', 0],
    ['30', 30_000],
    ['1.5', 1500],
    ['500ms', 500],
    ['5s', 5000],
    ['5m', 300_000],
    ['2h', 7_200_000],
    ['1d', 86_400_000],
    ['1h30m', 5_400_000],
    ['1m1s1ms', 61_001],
    ['1.5h', 5_400_000],
    ['', undefined],
    ['m', undefined],
    ['-5m', undefined],
    ['5 m', undefined],
    ['5m ', undefined],
    ['5x', undefined],
    ['5m3', undefined],
    ['1e3', undefined],
    ['5M', undefined],
    ['soon', undefined],
    ['1h-30m', undefined],
  ]
  for (const [text, ms] of TIMES)
    test(`${JSON.stringify(text)} is ${ms ?? 'none'}`, () => {
      expect(parseDuration(text)).toBe(ms as number)
    })

  test('that no number holds is none', () => {
    expect(parseDuration('9'.repeat(400))).toBeUndefined()
    expect(parseDuration(`${'9'.repeat(400)}d`)).toBeUndefined()
  })
})
