import { constants } from 'node:os'
import { describe, expect, test } from 'bun:test'
import { signalNumber } from '../../src/lib/signal.ts'

describe('a signal', () => {
  test('is known by every name that this system has for it', () => {
    const own = Object.entries(constants.signals)

    expect(own.length).toBeGreaterThan(30)
    expect(own.map(([name]) => [name, signalNumber(name)])).toEqual(own)
  })

  test.each([
    ['SIGRTMIN+3', 37],
    ['RTMIN+3', 37],
    ['sigrtmin+15', 49],
    ['SIGRTMIN', 34],
    ['SIGRTMIN+0', 34],
    ['SIGRTMIN+30', 64],
    ['SIGRTMIN-1', 33],
    ['SIGRTMAX', 64],
    ['SIGRTMAX-1', 63],
    ['rtmax-30', 34],
    ['SIGCLD', 17],
    ['SIGPOLL', 29],
    ['sigIOT', 6],
    ['SIGINFO', 30],
    ['SIGSTKFLT', 16],
    ['Quit', 3],
    [' WINCH ', 28],
    ['1', 1],
    ['37', 37],
    ['064', 64],
  ])('%s is %d', (name, number) => {
    expect(signalNumber(name)).toBe(number)
  })

  test.each([
    '',
    'SIG',
    'SIGNONSENSE',
    'SIGSIGTERM',
    '0',
    '65',
    '-1',
    '9.5',
    '0x9',
    'SIGRTMIN+31',
    'SIGRTMIN-3',
    'SIGRTMAX+1',
    'SIGRTMAX-33',
    'SIGRTMIN+',
    'SIGRTMIN+1+1',
    'constructor',
    'SIGTOSTRING',
    'TERM KILL',
  ])('"%s" is none', (name) => {
    expect(signalNumber(name)).toBeUndefined()
  })
})
