import { describe, expect, test } from 'bun:test'
import { isBytes, isWord, osText } from '../../src/lib/os-text.ts'

const bytes = (...values: number[]) => Uint8Array.from(values)

describe('a word of a command line', () => {
  test.each([
    ['text', Buffer.from('aä😀\n'), 'aä😀\n'],
    ['a replacement character that was written', Buffer.from('\ufffd'), '\ufffd'],
    ['a byte that begins nothing', bytes(0xff), '\udcff'],
    ['bytes between text', bytes(0x61, 0xe4, 0x62), 'a\udce4b'],
    ['a letter that is cut', bytes(0xf0, 0x9f, 0x98), '\udcf0\udc9f\udc98'],
    ['a cut letter before a whole one', bytes(0xc3, 0xc3, 0xa4), '\udcc3ä'],
    ['a letter that is longer than it has to be', bytes(0xc0, 0x80), '\udcc0\udc80'],
    ['a surrogate as three bytes', bytes(0xed, 0xb3, 0xbf), '\udced\udcb3\udcbf'],
    ['a byte order mark', bytes(0xef, 0xbb, 0xbf, 0x78), '\ufeffx'],
    ['nothing', bytes(), ''],
  ])('keeps %s', (_, said, text) => {
    expect(osText(said)).toBe(text)
  })

  test('is bytes where it is no UTF-8, and no word where half of a letter of UTF-16 is in it', () => {
    expect(['a', '😀', '\ufffd', '\udcff'].map(isBytes)).toEqual([false, false, false, true])
    expect(['a', '\udcff', 'a\udc80😀\udcc3'].map(isWord)).toEqual([true, true, true])
    expect(['\ud800', '\udc7f', '\udd00', '\udcff\ud83d'].map(isWord)).toEqual([false, false, false, false])
  })
})
