/**
 * Text of a guest (or of whoever else is not trusted) for a terminal that must not obey it. All that a terminal acts on
 * is C0, DEL and C1 and the sequences that begin with one of them (ECMA-48; xterm's ctlseqs): there is one list of them
 * here, and three ways to show them.
 */

/** Every control character. */
const CONTROL = /[\u0000-\u001f\u007f-\u009f]/g
/** The control characters that JSON.stringify leaves as they are. */
const CONTROL_IN_JSON = /[\u007f-\u009f]/g

/**
 * Whole sequences, each with the eight-bit form of its introducer, then what is left of control characters but tab and
 * line feed. A sequence that is cut short goes as far as there is text that a terminal would take for a part of it.
 */
const SEQUENCE = new RegExp(
  [
    // CSI: parameters, intermediates, one final character
    '(?:\\x1b\\[|\\x9b)[\\x30-\\x3f]*[\\x20-\\x2f]*[\\x40-\\x7e]?',
    // DCS, SOS, OSC, PM, APC: any text up to ST or BEL
    '(?:\\x1b[PX\\]^_]|[\\x90\\x98\\x9d-\\x9f])[^\\x07\\x1b\\x9c]*(?:\\x07|\\x1b\\\\|\\x9c)?',
    // Every other escape: intermediates, one final character
    '\\x1b[\\x20-\\x2f]*[\\x30-\\x7e]?',
    '[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f]',
  ].join('|'),
  'g',
)

const escaped = (char: string): string => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`

/** Writes text as one line that no terminal obeys: what a terminal would act on is shown (`\x1b`) and not done. */
export const plain = (text: string): string =>
  text.replace(CONTROL, (char) =>
    char === '\n' ? '⏎' : char === '\t' ? ' ' : `\\x${char.charCodeAt(0).toString(16).padStart(2, '0')}`,
  )

/** Takes whole escape sequences and other control characters out of a text; tabs and line feeds stay. */
export const withoutControls = (text: string): string => text.replace(SEQUENCE, '')

/** Writes a value as JSON that no terminal obeys, and that reads back as the same value. */
export const plainJson = (value: unknown, space?: number): string =>
  JSON.stringify(value, null, space).replace(CONTROL_IN_JSON, escaped)

/** Escapes the control characters of a text that is JSON already; its lines and tabs stay. */
export const plainJsonText = (json: string): string =>
  json.replace(CONTROL, (char) => (char === '\n' || char === '\t' || char === '\r' ? char : escaped(char)))
