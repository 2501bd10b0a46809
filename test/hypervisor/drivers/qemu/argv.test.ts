import { expect, test } from 'bun:test'
import type { MachineSpec } from '../../../../src/hypervisor/driver.ts'
import { argv } from '../../../../src/hypervisor/drivers/qemu/argv.ts'
import { shapeOfToday } from '../../../../src/hypervisor/drivers/qemu/saved.ts'

const SPEC: MachineSpec = {
  mark: 'm/v',
  uuid: '00000000-0000-4000-8000-000000000000',
  folder: '/run/m/1',
  kernel: '/k',
  initramfs: '/i',
  cmdline: 'quiet',
  vcpus: 1,
  memoryMib: 64,
  disks: [],
  diskRate: { bytesPerS: 0, flushesPerS: 0 },
  nics: [],
  cid: 3,
  consoleLog: '/c',
  consoleLogMib: 1,
  forkable: false,
  vmmLog: '/v',
  jail: undefined,
  cgroups: [],
}
const of = (spec: Partial<MachineSpec>, disks: readonly number[] = []) =>
  argv({ program: '/q', accelerator: 'tcg' }, { ...SPEC, ...spec }, { disks, taps: [], restored: false })
const after = (args: readonly string[], flag: string) =>
  args.flatMap((arg, index) => (arg === flag ? [args[index + 1] ?? ''] : []))

test('every network card has a backend and a device of its own', () => {
  for (const count of [0, 1, 8]) {
    const nics = Array.from({ length: count }, (_, index) => ({
      kind: 'user' as const,
      mac: `02:00:00:00:00:0${index}`,
    }))

    const args = of({ nics })

    expect(after(args, '-netdev')).toEqual(nics.map((_, index) => `user,id=n${index}`))
    expect(after(args, '-device').filter((device) => device.startsWith('virtio-net'))).toEqual(
      nics.map(({ mac }, index) => `virtio-net-pci,netdev=n${index},mac=${mac},romfile=`),
    )
  }
})

test('every disk has the descriptor that was handed on for it', () => {
  const disks = ['root', 'overlay', 'vol0'].map((serial) => ({
    path: `/${serial}`,
    readOnly: serial === 'root',
    serial,
  }))

  const args = of({ disks }, [12, 13, 14])

  expect(after(args, '-add-fd').slice(-3)).toEqual(['fd=12,set=10', 'fd=13,set=11', 'fd=14,set=12'])
})

test('writable disks share one limit of bytes, and read-only ones have none', () => {
  const disks = ['root', 'overlay', 'vol0'].map((serial) => ({
    path: `/${serial}`,
    readOnly: serial === 'root',
    serial,
  }))
  const nodes = (args: readonly string[]) =>
    after(args, '-blockdev')
      .map((text) => JSON.parse(text) as Record<string, unknown>)
      .map((node) => [node['node-name'], node['throttle-group']])

  const limited = of({ disks, diskRate: { bytesPerS: 1000, flushesPerS: 5 } }, [12, 13, 14])
  const free = of({ disks }, [12, 13, 14])

  expect(nodes(limited)).toEqual([
    ['d0', undefined],
    ['f1', undefined],
    ['d1', 'own'],
    ['f2', undefined],
    ['d2', 'own'],
  ])
  expect(after(limited, '-object').some((text) => text.includes('"bps-total":1000'))).toBe(true)
  expect(nodes(free)).toEqual([
    ['d0', undefined],
    ['d1', undefined],
    ['d2', undefined],
  ])
  expect(after(free, '-object').some((text) => text.includes('throttle'))).toBe(false)
})

test('a shape of a release with one card at most is one of today', () => {
  expect(shapeOfToday({ vcpus: 1, nic: true })).toEqual({ vcpus: 1, nics: ['user'] })
  expect(shapeOfToday({ vcpus: 1, nic: false })).toEqual({ vcpus: 1, nics: [] })
  for (const other of [{ vcpus: 1, nics: ['user', 'user'] }, null, 'text', undefined])
    expect(shapeOfToday(other)).toBe(other as never)
})
