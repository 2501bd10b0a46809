import { describe, expect, test } from 'bun:test'
import { closeFd } from '../../src/linux/fd.ts'
import { pidfdExited, pidfdOpen, pidfdReap, pidfdSignal, whenExited } from '../../src/linux/pidfd.ts'
import { openFds, stranger } from './support.ts'

const NOBODY = { code: null, signal: null }

describe('pidfd', () => {
  test('a child of ours tells its exit code and its signal, and Bun still gets them', async () => {
    for (const [script, exit] of [
      ['exit 5', { code: 5, signal: null }],
      ['kill -9 $$', { code: null, signal: 9 }],
    ] as const) {
      const child = Bun.spawn(['sh', '-c', script])
      const fd = pidfdOpen(child.pid)
      // In one turn of the event loop, so that Bun cannot have waited for it yet.
      const end = Date.now() + 5000
      let seen = pidfdExited(fd)
      while (!seen && Date.now() < end) seen = pidfdExited(fd)

      expect(seen).toEqual(exit)
      expect(await child.exited).toBe(exit.code ?? 128 + 9)
      expect(pidfdExited(fd)).toEqual(NOBODY)
      closeFd(fd)
    }
  })

  test('signals go to the process and to nobody after its end', async () => {
    const child = Bun.spawn(['sleep', '60'])
    const fd = pidfdOpen(child.pid)

    expect(pidfdExited(fd)).toBeUndefined()
    expect(pidfdSignal(fd, 0)).toBe(true)
    expect(() => pidfdSignal(fd, 1000)).toThrow('EINVAL')
    expect(pidfdSignal(fd, 15)).toBe(true)
    await child.exited
    expect(pidfdSignal(fd, 15)).toBe(false)
    closeFd(fd)
  })

  test('no process, a thread and nonsense are refused', () => {
    expect(() => pidfdOpen(2 ** 22)).toThrow('pidfd_open: ESRCH')
    expect(() => pidfdOpen(0)).toThrow('EINVAL')
    expect(() => pidfdOpen(-1)).toThrow('EINVAL')
    expect(() => pidfdExited(100_000)).toThrow('EBADF')
    expect(() => pidfdExited(0)).toThrow()
  })

  test('whenExited waits for the event of a process that is no child of ours, without a poll', async () => {
    const fd = pidfdOpen(stranger(1))
    const before = performance.now()
    const cpu = process.cpuUsage()

    expect(await whenExited(fd)).toEqual(NOBODY)
    expect(performance.now() - before).toBeGreaterThan(700)
    expect(performance.now() - before).toBeLessThan(4000)
    expect(process.cpuUsage(cpu).user).toBeLessThan(500_000) // µs: half of what a busy wait would take
    closeFd(fd)
  })

  test('whenExited answers at once for one that has ended, and hears its signal for one that has not', async () => {
    const ended = Bun.spawn(['true'])
    const fd = pidfdOpen(ended.pid)
    await ended.exited
    expect(await whenExited(fd)).toEqual(NOBODY)
    closeFd(fd)

    const running = pidfdOpen(stranger(30))
    const reason = new Error('enough')
    const stop = new AbortController()
    const waiting = whenExited(running, stop.signal)
    stop.abort(reason)
    await expect(waiting).rejects.toBe(reason)
    await expect(whenExited(running, stop.signal)).rejects.toBe(reason)
    expect(pidfdExited(running)).toBeUndefined()
    pidfdSignal(running, 9)
    closeFd(running)
  })

  test('a hundred waits at once leave no descriptor', async () => {
    const before = openFds().size
    await Promise.all(
      Array.from({ length: 100 }, async () => {
        const fd = pidfdOpen(stranger(0.05))
        await whenExited(fd)
        closeFd(fd)
      }),
    )
    Bun.gc(true)
    await Bun.sleep(20)

    expect(openFds().size).toBeLessThanOrEqual(before + 2)
  })

  test('what is no child of ours cannot be reaped', () => {
    const fd = pidfdOpen(stranger(0.2))
    expect(() => pidfdReap(fd)).toThrow('ECHILD')
    closeFd(fd)
  })
})
