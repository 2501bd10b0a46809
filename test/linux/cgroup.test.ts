import { describe, expect, test } from 'bun:test'
import { existsSync, readFileSync } from 'node:fs'
import {
  cgroupPids,
  cgroupSupport,
  cgroupUsage,
  killCgroup,
  listCgroups,
  makeCgroup,
  removeCgroup,
} from '../../src/linux/cgroup.ts'
import { closeFd } from '../../src/linux/fd.ts'
import { launch } from '../../src/linux/spawn.ts'
import { temporaryFolder, testWhere, until } from './support.ts'

const { controllers, reason } = cgroupSupport()
const has = (...names: readonly (typeof controllers)[number][]) => names.every((name) => controllers.includes(name))
let count = 0
const fresh = () => `test-${process.pid}-${count++}`
const MIB = 2 ** 20

/** A shell in the group; the caller waits for `exited` or kills the group. */
const inGroup = async (folders: readonly string[], script: string) => {
  const running = await launch({
    argv: ['sh', '-c', script],
    exe: '/bin/sh',
    env: { PATH: '/usr/bin:/bin' },
    cgroups: folders,
  })
  void running.exited.then(() => {
    closeFd(running.pidfd)
  })
  return running
}

describe('cgroups', () => {
  testWhere(
    has('memory', 'cpu', 'pids'),
    reason,
    'a group is made with its limits in every tree, changed, listed and removed',
    async () => {
      const name = fresh()
      const group = makeCgroup(name, { memoryMaxBytes: 64 * MIB, cpuWeight: 200, cpuMax: 1.5, pidsMax: 50 })
      try {
        expect(group.ignored).toEqual([])
        expect(group.folders.length).toBeGreaterThan(0)
        const file = (one: string, two: string) =>
          group.folders
            .flatMap((folder) => [`${folder}/${one}`, `${folder}/${two}`])
            .filter(existsSync)
            .map((path) => readFileSync(path, 'utf8').trim())
        expect(file('memory.limit_in_bytes', 'memory.max')).toEqual([String(64 * MIB)])
        expect([['200'], ['2048']]).toContainEqual(file('cpu.shares', 'cpu.weight'))
        expect([['150000'], ['150000 100000']]).toContainEqual(file('cpu.cfs_quota_us', 'cpu.max'))
        expect(file('pids.max', '-')).toEqual(['50'])
        expect(listCgroups()).toContain(name)
        expect(makeCgroup(name, { memoryMaxBytes: 32 * MIB }).ignored).toEqual([])
        expect(file('memory.limit_in_bytes', 'memory.max')).toEqual([String(32 * MIB)])
      } finally {
        await removeCgroup(name)
      }
      expect(listCgroups()).not.toContain(name)
      for (const folder of group.folders) expect(existsSync(folder)).toBe(false)
      await removeCgroup(name) // what is gone can be removed
    },
  )

  testWhere(has('memory', 'cpuacct', 'pids'), reason, 'what its processes take is counted', async () => {
    const name = fresh()
    const group = makeCgroup(name, {})
    try {
      const running = await inGroup(group.folders, 'i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; exec sleep 60')
      await until(() => (cgroupUsage(name).cpuUs ?? 0) > 20_000, 'CPU time')

      const usage = cgroupUsage(name)
      expect(cgroupPids(name)).toEqual([running.pid])
      expect(usage.pids).toBe(1)
      expect(usage.memoryBytes).toBeGreaterThan(10_000)
      expect(usage.oomKills).toBe(0)
      if (usage.memoryPeakBytes !== undefined)
        expect(usage.memoryPeakBytes).toBeGreaterThanOrEqual(usage.memoryBytes ?? 0)
    } finally {
      await removeCgroup(name)
    }
    expect(cgroupUsage(name)).toEqual({
      memoryBytes: undefined,
      memoryPeakBytes: undefined,
      cpuUs: undefined,
      pids: undefined,
      oomKills: undefined,
    })
  })

  testWhere(has('memory'), reason, 'who takes more memory than the limit is killed, and that is counted', async () => {
    const name = fresh()
    const group = makeCgroup(name, { memoryMaxBytes: 16 * MIB })
    try {
      const running = await inGroup(group.folders, 'exec dd if=/dev/zero of=/dev/null bs=200M count=1')

      expect(await running.exited).toEqual({ code: null, signal: 9 })
      expect(cgroupUsage(name).oomKills).toBeGreaterThanOrEqual(1)
    } finally {
      await removeCgroup(name)
    }
  })

  testWhere(has('pids'), reason, 'all processes are killed, those that fork without end too', async () => {
    const name = fresh()
    const group = makeCgroup(name, { pidsMax: 60 })
    try {
      await inGroup(group.folders, 'while :; do (sleep 30 &) 2>/dev/null; done')
      await inGroup(group.folders, 'trap "" TERM HUP; sleep 61 & sleep 62 & wait')
      await until(() => cgroupPids(name).length > 20, 'processes')

      await killCgroup(name)
      expect(cgroupPids(name)).toEqual([])
      await killCgroup(name)
    } finally {
      await removeCgroup(name)
    }
  })

  testWhere(
    has('memory'),
    reason,
    'daemons that make and remove groups side by side all get their limits',
    async () => {
      using folder = temporaryFolder()
      const source = folder.file('daemon.ts')
      await Bun.write(
        source,
        `
      import { makeCgroup, removeCgroup } from '${import.meta.dir}/../../src/linux/cgroup.ts'
      const ignored = new Set()
      for (let n = 0; n < 40; n++) {
        const name = 'race-' + process.pid + '-' + n
        for (const reason of makeCgroup(name, { memoryMaxBytes: 2 ** 26, pidsMax: 9 }).ignored) ignored.add(reason)
        await removeCgroup(name)
      }
      console.log(JSON.stringify([...ignored]))`,
      )
      const daemons = Array.from({ length: 3 }, () => Bun.spawn([process.execPath, source]))

      for (const daemon of daemons) expect(JSON.parse(await daemon.stdout.text())).toEqual([])
    },
    30_000,
  )

  testWhere(controllers.length > 0, reason, 'a group with processes is removed with them', async () => {
    const name = fresh()
    const group = makeCgroup(name, {})
    const running = await inGroup(group.folders, 'exec sleep 60')
    await removeCgroup(name)

    expect(await running.exited).toEqual({ code: null, signal: 9 })
    expect(group.folders.filter(existsSync)).toEqual([])
  })

  test('a host that gives no groups gives a vm without limits, and the reasons', async () => {
    const none = {
      hierarchies: [],
      missing: new Map([
        ['memory', 'no'],
        ['cpu', 'nor this'],
      ] as const),
    }
    const group = makeCgroup('x', { memoryMaxBytes: 1, cpuMax: 1 }, none)

    expect(group).toEqual({ name: 'x', folders: [], ignored: ['memory: no', 'cpu: nor this'] })
    expect(makeCgroup('x', {}, none).ignored).toEqual([])
    expect(cgroupPids('x', none)).toEqual([])
    await removeCgroup('x', 100, none)
  })

  test('a tree that cannot be written costs its limits only', () => {
    const tree = { hierarchies: [{ version: 1, base: '/proc', controllers: ['memory'] }], missing: new Map() } as const

    expect(makeCgroup('x', { memoryMaxBytes: 1 }, tree)).toEqual({
      name: 'x',
      folders: [],
      ignored: ['/proc/aerie/x: ENOENT'],
    })
  })

  test('a name that leads elsewhere is refused', () => {
    const tree = { hierarchies: [{ version: 2, base: '/tmp', controllers: [] }], missing: new Map() } as const
    for (const name of ['', '..', '../x', 'a/b', '.hidden', 'x'.repeat(201), 'a\nb'])
      expect(() => makeCgroup(name, {}, tree)).toThrow(RangeError)
  })
})
