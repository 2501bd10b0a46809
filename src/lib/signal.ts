/** Signals of Linux on x86-64 by their names in signal(7), without the prefix. */
const SIGNALS: Readonly<Record<string, number>> = {
  HUP: 1,
  INT: 2,
  QUIT: 3,
  ILL: 4,
  TRAP: 5,
  ABRT: 6,
  IOT: 6,
  BUS: 7,
  FPE: 8,
  KILL: 9,
  USR1: 10,
  SEGV: 11,
  USR2: 12,
  PIPE: 13,
  ALRM: 14,
  TERM: 15,
  STKFLT: 16,
  CHLD: 17,
  CLD: 17,
  CONT: 18,
  STOP: 19,
  TSTP: 20,
  TTIN: 21,
  TTOU: 22,
  URG: 23,
  XCPU: 24,
  XFSZ: 25,
  VTALRM: 26,
  PROF: 27,
  WINCH: 28,
  IO: 29,
  POLL: 29,
  PWR: 30,
  INFO: 30,
  SYS: 31,
  UNUSED: 31,
}

/** The kernel's first real-time signal. The C library counts from 34: it keeps the first two for itself. */
const RT_FIRST = 32
const RTMIN = 34
const RTMAX = 64

/**
 * Finds the number of a signal by its name in signal(7), in any case, with or without `SIG`: also `RTMIN`, `RTMIN+n`,
 * `RTMAX-n`; or by its number. Undefined for what is none.
 */
export const signalNumber = (text: string): number | undefined => {
  const said = text.trim().toUpperCase()
  if (/^\d+$/.test(said)) return inRange(Number(said), 1)
  const name = said.replace(/^SIG/, '')
  const [, base, sign, distance = '0'] = /^(RTMIN|RTMAX)(?:([+-])(\d{1,2}))?$/.exec(name) ?? []
  if (base === undefined) return Object.hasOwn(SIGNALS, name) ? SIGNALS[name] : undefined
  return inRange((base === 'RTMIN' ? RTMIN : RTMAX) + Number(`${sign ?? '+'}${distance}`), RT_FIRST)
}

const inRange = (number: number, least: number): number | undefined =>
  number >= least && number <= RTMAX ? number : undefined
