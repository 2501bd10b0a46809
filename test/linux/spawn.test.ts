import { describe, expect, test } from 'bun:test'
import { closeSync, openSync, readdirSync, readFileSync } from 'node:fs'
import { cgroupSupport, makeCgroup, removeCgroup } from '../../src/linux/cgroup.ts'
import { embedded } from '../../src/linux/embedded.ts'
import { closeFd } from '../../src/linux/fd.ts'
import { pidfdExited, pidfdSignal } from '../../src/linux/pidfd.ts'
import { environmentOf, processStat, startTimeOf } from '../../src/linux/proc.ts'
import { socketPair } from '../../src/linux/socket.ts'
import { launch, type Launched, type LaunchSpec } from '../../src/linux/spawn.ts'
import { connectFd, filled, isRoot, openFds, temporaryFolder, testWhere, until } from './support.ts'

const sh = (script: string, more: Partial<LaunchSpec> = {}): LaunchSpec => ({
  argv: ['sh', '-c', script],
  exe: '/bin/sh',
  env: { PATH: '/usr/bin:/bin' },
  ...more,
})

/** Runs to the end with stdout into a file; what it said. */
const output = async (spec: LaunchSpec, fds: readonly (readonly [number, number])[] = []): Promise<string> => {
  using folder = temporaryFolder()
  const path = folder.file('out')
  const out = openSync(path, 'w')
  const running = await launch(spec, { stdout: out, stderr: out, fds })
  closeSync(out)
  await running.exited
  closeFd(running.pidfd)
  return readFileSync(path, 'utf8')
}
/** The processes with this command line. */
const running = (cmdline: string): string[] =>
  readdirSync('/proc').filter((name) => {
    try {
      return /^\d+$/.test(name) && readFileSync(`/proc/${name}/cmdline`, 'utf8') === cmdline
    } catch {
      return false
    }
  })
const end = async (running: Launched) => {
  pidfdSignal(running.pidfd, 9)
  const exit = await running.exited
  closeFd(running.pidfd)
  return exit
}

describe('launch', () => {
  test('the program runs under the pid and the start time that are returned', async () => {
    const running = await launch({ argv: ['sleeper', '60'], exe: '/bin/sleep', env: { MARK: 'm' } })

    expect(readFileSync(`/proc/${running.pid}/cmdline`, 'utf8')).toBe('sleeper\x0060\0')
    expect(startTimeOf(running.pid)).toBe(running.startTime)
    expect(environmentOf(running.pid, 'MARK')).toBe('m')
    expect(pidfdExited(running.pidfd)).toBeUndefined()
    expect(await end(running)).toEqual({ code: null, signal: 9 })
  })

  test('its exit code is told', async () => {
    const running = await launch(sh('exit 42'))
    expect(await running.exited).toEqual({ code: 42, signal: null })
    closeFd(running.pidfd)
  })

  test('it leads a session of its own and has no descriptor but its own', async () => {
    const said = await output(sh('ls /proc/$$/fd; cat <&9; cut -d" " -f1,6 /proc/self/stat; echo $$'), [
      [filled('nine '), 9],
    ])

    const [zero, one, two, nine, rest = '', pid] = said.split('\n')
    expect([zero, one, two, nine]).toEqual(['0', '1', '2', '9'])
    expect(rest.startsWith('nine ')).toBe(true)
    expect(rest.split(' ')[2]).toBe(pid)
  })

  test('a descriptor can be the program', async () => {
    const exe = openSync('/bin/echo', 'r')
    expect(await output({ argv: ['echo', 'from a descriptor'], exe: { fd: exe } })).toBe('from a descriptor\n')
    closeSync(exe)
  })

  test('a connected socket reaches it and its end is seen here', async () => {
    const [ours, theirs] = socketPair()
    const running = await launch(sh('read line <&7; echo "got $line" >&7'), { fds: [[theirs, 7]] })
    closeFd(theirs)
    const answer = Promise.withResolvers<string>()
    let text = ''
    await connectFd(ours, {
      open: (socket) => {
        socket.write('hello\n')
      },
      data: (_, bytes) => {
        text += bytes.toString()
      },
      close: () => {
        answer.resolve(text)
      },
    })

    expect(await answer.promise).toBe('got hello\n')
    closeFd(running.pidfd)
  })

  test('what cannot be executed is an error with its code, and leaves nothing', async () => {
    const fds = openFds().size
    const table: readonly (readonly [Partial<LaunchSpec>, string])[] = [
      [{ exe: '/proc/absent' }, 'exec_missing'],
      [{ exe: '/etc/passwd' }, 'exec_denied'],
      [{ cwd: '/proc/absent' }, 'cwd_missing'],
      [{ exe: 'relative' }, 'spec_invalid'],
      [{ argv: [] }, 'spec_invalid'],
      [{ argv: ['a\0b'] }, 'spec_invalid'],
      [{ cgroups: ['/sys/fs/cgroup/absent'] }, 'cgroup_missing'],
      [{ rlimits: { bogus: [1, 1] } }, 'spec_invalid'],
      [{ argv: ['x'.repeat(2 ** 20)] }, 'spec_too_large'],
      [{ argv: ['x'.repeat(200_000)] }, 'exec_failed'],
    ]
    for (const [fields, code] of table) {
      await expect(launch(sh('true', fields))).rejects.toMatchObject({ name: 'WingError', code })
    }
    await expect(launch(sh('true'), { fds: [[100_000, 5]] })).rejects.toThrow()
    Bun.gc(true)
    await Bun.sleep(20)
    expect(openFds().size).toBeLessThanOrEqual(fds + 3) // wing itself stays open, and Bun's own
  })

  test('an aborted launch rejects with the reason and starts nothing', async () => {
    const reason = new Error('changed my mind')
    await expect(launch(sh('sleep 60'), { signal: AbortSignal.abort(reason) })).rejects.toBe(reason)

    const stop = new AbortController()
    const launching = launch(sh('exec sleep 61.5'), { signal: stop.signal })
    stop.abort(reason)
    await expect(launching).rejects.toBe(reason)
    expect(running('sleep\x0061.5\0')).toEqual([])
  })

  test('a launch that runs out of descriptors leaves nothing behind', async () => {
    using folder = temporaryFolder()
    const source = folder.file('starved.ts')
    await Bun.write(
      source,
      `
      import { openSync, closeSync } from 'node:fs'
      import { launch } from '${import.meta.dir}/../../src/linux/spawn.ts'
      const spec = { argv: ['sleep', '62.5'], exe: '/bin/sleep' }
      const first = await launch(spec)
      process.kill(first.pid, 'SIGKILL')
      await first.exited
      const held = [], codes = new Set()
      try { for (;;) held.push(openSync('/dev/null', 'r')) } catch {}
      let launched = 0
      for (let free = 0; free < 12; free++) { // each time one more descriptor is to be had
        try {
          const running = await launch(spec)
          process.kill(running.pid, 'SIGKILL')
          await running.exited
          closeSync(running.pidfd)
          launched++
        } catch (error) { codes.add(error.code) }
        closeSync(held.pop())
        await Bun.sleep(5) // Bun takes note of an ended child, and lets its descriptor go, in the event loop
      }
      console.log(JSON.stringify([launched > 0, [...codes]]))`,
    )
    const starved = Bun.spawn(['sh', '-c', 'ulimit -n 200; exec "$0" "$1"', process.execPath, source])
    await starved.exited

    expect(JSON.parse(await starved.stdout.text())).toEqual([true, ['EMFILE']])
    expect(running('sleep\x0062.5\0')).toEqual([])
  })

  test('it outlives the process that launched it', async () => {
    using folder = temporaryFolder()
    const source = folder.file('daemon.ts')
    await Bun.write(
      source,
      `
      import { launch } from '${import.meta.dir}/../../src/linux/spawn.ts'
      const { pid } = await launch({ argv: ['sleep', '60'], exe: '/bin/sleep' })
      console.log(pid)
      process.kill(process.pid, 'SIGKILL')`,
    )
    const daemon = Bun.spawn([process.execPath, source])
    await daemon.exited
    const pid = Number(await daemon.stdout.text())

    expect(processStat(pid)).toMatchObject({ session: pid, state: expect.stringMatching(/[SR]/) })
    process.kill(pid, 'SIGKILL')
    await until(() => processStat(pid) === undefined || processStat(pid)?.state === 'Z', 'it is gone')
  })

  test('any number of descriptors leaves the launcher its own', async () => {
    embedded('wing') // a number among those that descriptors are placed on, on their way
    const files = Array.from({ length: 24 }, (_, index) => filled(`${index} `))

    const said = await output(
      sh(files.map((_, index) => `cat /proc/self/fd/${100 + index}`).join(';')),
      files.map((fd, index) => [fd, 100 + index] as const),
    )

    for (const fd of files) closeFd(fd)
    expect(said).toBe(files.map((_, index) => `${index} `).join(''))
  })

  test('a launch does not keep this process alive', async () => {
    using folder = temporaryFolder()
    const source = folder.file('short.ts')
    await Bun.write(
      source,
      `
      import { launch } from '${import.meta.dir}/../../src/linux/spawn.ts'
      console.log((await launch({ argv: ['sleep', '3'], exe: '/bin/sleep' })).pid)`,
    )
    const before = performance.now()
    const run = Bun.spawn([process.execPath, source])
    await run.exited

    expect(performance.now() - before).toBeLessThan(2500)
    process.kill(Number(await run.stdout.text()), 'SIGKILL')
  })

  testWhere(
    isRoot && cgroupSupport().controllers.length > 0,
    'needs root and cgroups',
    'another user, limits and a cgroup are in place when it runs',
    async () => {
      const { name, folders } = makeCgroup(`spawn-${process.pid}`, {})
      try {
        const said = await output(
          sh(`id -u; id -g; ulimit -n; grep -c ${name} /proc/self/cgroup; grep NoNewPrivs /proc/self/status`, {
            uid: 65534,
            gid: 65534,
            rlimits: { nofile: [77, 77] },
            cgroups: folders,
          }),
        )
        expect(folders.length).toBeGreaterThan(0)
        expect(said).toBe(`65534\n65534\n77\n${folders.length}\nNoNewPrivs:\t1\n`)
      } finally {
        await removeCgroup(name)
      }
    },
  )

  testWhere(isRoot, 'needs root', 'in a pid namespace it is still our child, and its exit is told', async () => {
    const running = await launch(sh('sleep 0.1; exit 9', { namespaces: ['pid'] }))

    expect(processStat(running.pid)).toMatchObject({ parent: process.pid, session: running.pid })
    expect(startTimeOf(running.pid)).toBe(running.startTime)
    expect(await running.exited).toEqual({ code: 9, signal: null })
    expect(processStat(running.pid)).toBeUndefined()
    closeFd(running.pidfd)
    await expect(launch({ argv: ['x'], exe: '/proc/absent', namespaces: ['pid'] })).rejects.toMatchObject({
      code: 'exec_missing',
    })
  })

  test('fifty at once all run, and leave no descriptor', async () => {
    const fds = openFds().size
    const exits = await Promise.all(
      Array.from({ length: 50 }, async (_, n) => {
        const running = await launch(sh(`exit ${n}`))
        const exit = await running.exited
        closeFd(running.pidfd)
        return exit.code
      }),
    )
    Bun.gc(true)
    await Bun.sleep(20)

    expect(exits).toEqual(Array.from({ length: 50 }, (_, n) => n))
    expect(openFds().size).toBeLessThanOrEqual(fds + 2)
  })
})
