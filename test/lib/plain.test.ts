import { describe, expect, test } from 'bun:test'
import { plain, plainJson, plainJsonText, withoutControls } from '../../src/lib/plain.ts'

/** What a guest may say to a terminal, and what is left of it. */
const SAID: readonly (readonly [string, string, string])[] = [
  ['a colour', 'a\x1b[31mred\x1b[0mb', 'aredb'],
  ['a colour by the eight-bit CSI', 'a\u009b31mred\u009b0mb', 'aredb'],
  ['a private mode', '\x1b[?1049hx\x1b[?25l', 'x'],
  ['a CSI with intermediates', '\x1b[4 qx\x1b[!p', 'x'],
  ['a title that BEL ends', '\x1b]0;title\x07end', 'end'],
  ['a title that ST ends', '\x1b]0;title\x1b\\end', 'end'],
  ['a title by the eight-bit OSC and ST', '\u009d0;title\u009cend', 'end'],
  ['a link', '\x1b]8;;http://x\x1b\\text\x1b]8;;\x1b\\', 'text'],
  ['a request for the terminal’s settings', '\x1bP$q"p\x1b\\x', 'x'],
  ['DCS, SOS, PM and APC in eight bits', '\u0090a\u009c1\u0098b\u009c2\u009ec\u009c3\u009fd\u009c4', '1234'],
  ['SOS, PM and APC', '\x1bXa\x1b\\1\x1b^b\x1b\\2\x1b_c\x1b\\3', '123'],
  ['a character set and a reset', '\x1b(0x\x1bcy\x1b#8z', 'xyz'],
  ['a cut CSI', 'x\x1b[31', 'x'],
  ['a cut title', 'x\x1b]0;tit', 'x'],
  ['a cut escape', 'x\x1b', 'x'],
  ['single characters', 'a\x00\x07\x08\x0e\x7f\u0085\u008db', 'ab'],
  ['a sequence in a string', '\x1b]0;a\x1b[31mb', 'b'],
  ['no control at all', 'grüße, 世界 [31m ]0;x', 'grüße, 世界 [31m ]0;x'],
  ['a tab', 'a\tb', 'a\tb'],
]

describe('what a terminal would act on', () => {
  test.each(SAID)('goes whole: %s', (_, said, left) => {
    expect(withoutControls(said)).toBe(left)
  })

  test.each(SAID)('is shown in one line: %s', (_, said) => {
    expect(plain(said)).not.toMatch(/[\x00-\x1f\x7f-\x9f]/)
  })

  test.each(SAID)('is escaped in JSON, and the value is the same: %s', (_, said) => {
    for (const json of [plainJson({ said }), plainJsonText(JSON.stringify({ said }))]) {
      expect(json).not.toMatch(/[\x00-\x1f\x7f-\x9f]/)
      expect(JSON.parse(json)).toEqual({ said })
    }
  })

  test('every control character, by itself, goes', () => {
    const all = Array.from({ length: 0xa0 }, (_, code) => String.fromCharCode(code)).filter(
      (char) => char < ' ' || char > '~',
    )

    for (const char of all) expect(withoutControls(`a${char}`)).toBe(char === '\t' || char === '\n' ? `a${char}` : 'a')
  })

  test('costs what the text is long', () => {
    const from = performance.now()
    withoutControls('\x1b]0;'.repeat(200_000) + '\x1b['.repeat(200_000) + '\x9b1;'.repeat(200_000))

    expect(performance.now() - from).toBeLessThan(2000)
  })
})

test('a line of the log is one that no terminal obeys', () => {
  const ran = Bun.spawnSync([
    process.execPath,
    '-e',
    `import { newLog } from '${import.meta.dir}/../../src/lib/log.ts'
newLog('info').info({ reason: 'a\\u009b31mb\\u007f\\x1b[2J' }, 'said')`,
  ])
  const line = ran.stderr.toString()

  expect(line.slice(0, -1)).not.toMatch(/[\x00-\x1f\x7f-\x9f]/)
  expect(JSON.parse(line)).toMatchObject({ msg: 'said', reason: 'a\u009b31mb\u007f\x1b[2J' })
})
