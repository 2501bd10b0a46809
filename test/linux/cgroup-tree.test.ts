import { describe, expect, test } from 'bun:test'
import { chmodSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { cgroupTree } from '../../src/linux/cgroup-tree.ts'
import { cgroupSupport } from '../../src/linux/cgroup.ts'
import { isRoot, temporaryFolder, testWhere } from './support.ts'

/** A folder that looks like a group: its files decide, wherever it is mounted. */
const group = (path: string, files: Readonly<Record<string, string>> = {}): void => {
  mkdirSync(path, { recursive: true })
  for (const [name, text] of Object.entries({ 'cgroup.procs': '', ...files })) writeFileSync(`${path}/${name}`, text)
}
const v1 = (point: string, controllers: string, root = '/') =>
  `33 31 0:30 ${root} ${point} rw,relatime shared:5 - cgroup cgroup rw,${controllers}\n`
const v2 = (point: string, root = '/') => `41 31 0:38 ${root} ${point} rw - cgroup2 cgroup2 rw,nsdelegate\n`
const OWN = new Map([['', '/']])

describe('cgroupTree', () => {
  test('the v2 tree of a whole host has all controllers', () => {
    using folder = temporaryFolder()
    group(folder.path, {
      'cgroup.controllers': 'cpuset cpu io memory pids\n',
      'cgroup.subtree_control': 'memory pids\n',
      'cgroup.procs': '1\n2\n',
    })
    const tree = cgroupTree(v2(folder.path), OWN)

    expect(tree.hierarchies).toEqual([
      { version: 2, base: folder.path, controllers: ['memory', 'cpu', 'cpuacct', 'pids'] },
    ])
    expect(tree.missing.size).toBe(0)
    expect(cgroupSupport(tree)).toEqual({
      controllers: ['memory', 'cpu', 'cpuacct', 'pids'],
      reason: `v2 at ${folder.path}`,
    })
  })

  test('v1 has a tree a controller, and v2 takes what is left', () => {
    using folder = temporaryFolder()
    for (const name of ['memory', 'cpu,cpuacct', 'unified']) group(folder.file(name))
    writeFileSync(folder.file('unified/cgroup.controllers'), 'pids\n')
    writeFileSync(folder.file('unified/cgroup.subtree_control'), '')
    const mounts =
      v1(folder.file('memory'), 'memory') +
      v1(folder.file('cpu,cpuacct'), 'cpu,cpuacct') +
      v1('/proc/absent', 'name=systemd') +
      v2(folder.file('unified'))
    const tree = cgroupTree(mounts, OWN)

    expect(tree.hierarchies).toEqual([
      { version: 1, base: folder.file('memory'), controllers: ['memory'] },
      { version: 1, base: folder.file('cpu,cpuacct'), controllers: ['cpu', 'cpuacct'] },
      { version: 2, base: folder.file('unified'), controllers: ['pids'] },
    ])
    expect(tree.missing.size).toBe(0)
  })

  test('a group beside processes cannot share out what its parent has', () => {
    using folder = temporaryFolder()
    group(folder.path, {
      'cgroup.type': 'domain\n',
      'cgroup.controllers': 'cpu memory pids\n',
      'cgroup.subtree_control': 'pids\n',
      'cgroup.procs': '7\n',
    })
    const tree = cgroupTree(v2(folder.path), OWN)

    expect(tree.hierarchies).toEqual([{ version: 2, base: folder.path, controllers: ['cpuacct', 'pids'] }])
    expect(tree.missing).toEqual(
      new Map([
        ['memory', `processes stand in ${folder.path} itself`],
        ['cpu', `processes stand in ${folder.path} itself`],
      ]),
    )
    expect(cgroupSupport(tree).reason).toContain('memory: processes stand in')
  })

  test('a controller that nobody has is missing with its reason', () => {
    using folder = temporaryFolder()
    group(folder.path, { 'cgroup.controllers': 'hugetlb\n', 'cgroup.subtree_control': '' })

    expect(cgroupTree(v2(folder.path), OWN).missing.get('memory')).toBe('cgroup v2 has not been given it here')
    expect(cgroupTree('', OWN)).toEqual({
      hierarchies: [],
      missing: new Map(
        (['memory', 'cpu', 'cpuacct', 'pids'] as const).map((name) => [
          name,
          'the kernel has no cgroup file system mounted',
        ]),
      ),
    })
  })

  test('a mount that shows a part of the tree is followed from there, and odd paths are not followed out', () => {
    using folder = temporaryFolder()
    group(folder.file('with space'))
    group(folder.file('with space/app'))
    const mounts = v1(folder.file('with\\040space'), 'memory', '/docker/1')

    for (const own of ['/docker/1/app', '/docker/1', '/elsewhere', '/../other']) {
      expect(cgroupTree(mounts, new Map([['memory', own]])).hierarchies[0]?.base).toBe(folder.file('with space'))
    }
  })

  testWhere(
    isRoot,
    'needs root to become an ordinary user',
    'an ordinary user gets the topmost folder that is its own, or a reason',
    async () => {
      using folder = temporaryFolder()
      chmodSync(folder.path, 0o755)
      for (const path of ['', '/user.slice', '/user.slice/user@7.service', '/user.slice/user@7.service/app.slice']) {
        group(folder.path + path, {
          'cgroup.controllers': 'memory pids\n',
          'cgroup.subtree_control': 'memory pids\n',
          'cgroup.type': 'domain\n',
        })
      }
      await Bun.$`chown -R 65534:65534 ${folder.file('user.slice/user@7.service')}`
      // Both Bun and the sources may stand in a home that is closed to others: the code goes where everybody reads it,
      // and the program is what this process runs already.
      const source = join(import.meta.dir, '../../src/linux/cgroup-tree.ts')
      await Bun.build({ entrypoints: [source], target: 'bun', outdir: folder.path })
      const ask = (own: string) => {
        const script = `
        import { cgroupTree } from '${folder.file('cgroup-tree.js')}'
        const { hierarchies, missing } = cgroupTree(${JSON.stringify(v2(folder.path))}, new Map([['', ${JSON.stringify(own)}]]))
        console.log(JSON.stringify([hierarchies, missing.get('memory')]))`
        return Bun.spawnSync(['/proc/self/exe', '-e', script], { uid: 65534, gid: 65534, env: {}, cwd: '/' })
      }
      const inside = ask('/user.slice/user@7.service/app.slice')
      const outside = ask('/user.slice/session-1.scope')

      expect(inside.stderr.toString()).toBe('')
      expect(JSON.parse(inside.stdout.toString())).toEqual([
        [{ version: 2, base: folder.file('user.slice/user@7.service'), controllers: ['memory', 'cpuacct', 'pids'] }],
        null,
      ])
      expect(JSON.parse(outside.stdout.toString())).toEqual([[], `${folder.path} is not writable for this user`])
    },
  )

  test('this host has an answer', () => {
    const { controllers, reason } = cgroupSupport()

    expect(reason.length).toBeGreaterThan(5)
    if (isRoot && controllers.length === 0) expect(reason).toContain(':')
  })
})
