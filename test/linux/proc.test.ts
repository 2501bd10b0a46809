import { describe, expect, test } from 'bun:test'
import {
  bootId,
  cgroupsOf,
  cpuFlags,
  environmentOf,
  memory,
  processStat,
  residentBytes,
  startTimeOf,
} from '../../src/linux/proc.ts'
import { temporaryFolder, until } from './support.ts'

describe('proc', () => {
  test('a process is read whatever its name is', async () => {
    using folder = temporaryFolder()
    const program = folder.file('a) Z 1 (x')
    await Bun.$`cp /bin/sleep ${program}`
    const child = Bun.spawn([program, '60'])
    await until(() => processStat(child.pid)?.state === 'S', 'sleep sleeps')

    expect(processStat(child.pid)).toMatchObject({ state: 'S', parent: process.pid })
    expect(startTimeOf(child.pid)).toMatch(/^\d+$/)
    child.kill()
    await child.exited
    expect(processStat(child.pid)).toBeUndefined()
    expect([cgroupsOf(child.pid), residentBytes(child.pid), environmentOf(child.pid, 'A')]).toEqual([
      undefined,
      undefined,
      undefined,
    ])
  })

  test('a later process has a later start', async () => {
    const first = Bun.spawn(['sleep', '5'])
    await Bun.sleep(30)
    const second = Bun.spawn(['sleep', '5'])

    expect(Number(startTimeOf(second.pid))).toBeGreaterThan(Number(startTimeOf(first.pid)))
    first.kill()
    second.kill()
  })

  test('the boot has an id that stays', () => {
    expect(bootId()).toMatch(/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/)
    expect(bootId()).toBe(bootId())
  })

  test('CPU flags and memory are read from what the kernel writes', () => {
    expect(cpuFlags('processor\t: 0\nflags\t\t: fpu vmx sse\nprocessor\t: 1\nflags\t\t: fpu\n')).toEqual(
      new Set(['fpu', 'vmx', 'sse']),
    )
    expect(cpuFlags('')).toEqual(new Set())
    expect(cpuFlags().size).toBeGreaterThan(5)
    expect(memory('MemTotal:       100 kB\nMemFree:  1 kB\nMemAvailable:   40 kB\n')).toEqual({
      totalBytes: 102_400,
      availableBytes: 40_960,
    })
    expect(memory().totalBytes).toBeGreaterThan(memory().availableBytes)
    expect(residentBytes(process.pid)).toBeGreaterThan(1_000_000)
  })

  test('the environment of a process is what it was started with', async () => {
    const child = Bun.spawn(['sleep', '5'], { env: { MARK: 'a/b=c', EMPTY: '' } })
    await until(() => environmentOf(child.pid, 'MARK') !== undefined, 'exec')

    expect([
      environmentOf(child.pid, 'MARK'),
      environmentOf(child.pid, 'EMPTY'),
      environmentOf(child.pid, 'ARK'),
    ]).toEqual(['a/b=c', '', undefined])
    child.kill()
  })

  test('cgroups are found by controller', () => {
    const groups = cgroupsOf(process.pid)

    expect(groups?.size).toBeGreaterThan(0)
    for (const path of groups?.values() ?? []) expect(path.startsWith('/')).toBe(true)
  })
})
