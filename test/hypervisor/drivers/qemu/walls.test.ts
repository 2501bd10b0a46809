import { expect, test } from 'bun:test'
import { sayWalls } from '../../../../src/hypervisor/drivers/qemu/qemu.ts'
import { hasNamespaces } from '../../../../src/hypervisor/drivers/qemu/start.ts'
import { commonWalls } from '../../../../src/hypervisor/driver.ts'

test.each<[boolean, boolean, string, string]>([
  [true, true, 'ok', 'a user of its own and namespaces'],
  [true, false, 'ok', 'QEMU runs with namespaces'],
  [false, true, 'warn', 'a user of its own and seccomp alone'],
  [false, false, 'warn', 'QEMU runs with seccomp alone'],
])('namespaces %p and root %p are said: %s', (namespaces, root, status, message) => {
  const said = sayWalls(namespaces, root)

  expect<unknown>([said.status, said.message.includes(message), said.hint === null]).toEqual([status, true, namespaces])
})

test('a machine has the walls of its specification', () => {
  const jail = { uid: 1, gid: 1, groups: [] }

  expect(commonWalls({ jail, cgroups: ['/c'] })).toEqual(['own-user', 'cgroup'])
  expect(commonWalls({ jail: undefined, cgroups: [] })).toEqual([])
})

test('whether namespaces can be had is found by having some', async () => {
  const ours = Bun.spawnSync(['unshare', ...(process.getuid?.() === 0 ? [] : ['-U']), '-m', '-n', '-i', 'true'])

  expect(await hasNamespaces()).toBe(ours.exitCode === 0)
})
