import { describe, expect, test } from 'bun:test'
import { existsSync } from 'node:fs'
import { SyscallError } from '../../src/linux/errno.ts'
import { kvmProbe, kvmSupport, type KvmProbe } from '../../src/linux/kvm.ts'
import { isRoot, openFds, testWhere } from './support.ts'

const good: KvmProbe = {
  apiVersion: 12,
  vmErrno: 0,
  vcpusRecommended: 8,
  vcpusMax: 1024,
  immediateExit: 1,
  readonlyMem: 1,
  irqchip: 1,
  splitIrqchip: 1,
  ioeventfd: 1,
  irqfd: 1,
  tscDeadline: 1,
}
const refused = (errno: number) => () => {
  throw new SyscallError(errno, 'open', '/dev/kvm')
}

describe('kvm', () => {
  testWhere(
    isRoot && existsSync('/dev/kvm'),
    'no /dev/kvm for this user',
    'the device says what it can, and the trial VM is gone again',
    () => {
      const before = openFds().size
      const probe = kvmProbe()

      expect(probe.apiVersion).toBe(12)
      expect(probe.vcpusMax).toBeGreaterThanOrEqual(probe.vcpusRecommended)
      expect(openFds().size).toBe(before)
    },
  )

  test('it is usable where the CPU has the extension and the device answers', () => {
    for (const flag of ['vmx', 'svm']) {
      expect(kvmSupport(new Set(['fpu', flag]), () => good)).toEqual({
        usable: true,
        reason: `/dev/kvm answers and the CPU shows ${flag}`,
        probe: good,
      })
    }
  })

  test('a device that answers on a CPU without the extension is not usable', () => {
    expect(kvmSupport(new Set(['fpu']), () => good)).toMatchObject({
      usable: false,
      reason: expect.stringContaining('neither vmx nor svm'),
    })
  })

  test('every way to be unusable has its sentence', () => {
    const flags = new Set(['svm'])
    const reasons = [
      kvmSupport(flags, refused(2)),
      kvmSupport(flags, refused(13)),
      kvmSupport(flags, refused(1)),
      kvmSupport(flags, refused(19)),
      kvmSupport(flags, refused(5)),
      kvmSupport(flags, () => ({ ...good, apiVersion: 11 })),
      kvmSupport(flags, () => ({ ...good, vmErrno: 16 })),
    ]

    expect(reasons.every(({ usable }) => !usable)).toBe(true)
    expect(reasons.map(({ reason }) => reason)).toEqual([
      '/dev/kvm is not there: the module kvm_intel or kvm_amd is not loaded',
      '/dev/kvm is closed to this user: add it to the group "kvm"',
      '/dev/kvm is closed to this process by its cgroup or sandbox',
      '/dev/kvm has no hardware behind it',
      '/dev/kvm cannot be opened: EIO',
      '/dev/kvm speaks version 11, not 12',
      '/dev/kvm makes no VM: EBUSY',
    ])
  })

  test('this machine gets an answer with a reason', () => {
    const { usable, reason } = kvmSupport()

    expect([typeof usable, reason.length > 10]).toEqual(['boolean', true])
  })

  test.each([
    ['not there', 2, /modprobe kvm/],
    ['closed to this user', 13, /usermod -aG \S+ |setfacl -m u:/],
    ['closed by a sandbox', 1, /--device \/dev\/kvm/],
    ['without hardware', 19, /firmware/],
  ])('what is %s has the fix of that, and not of something else', (_, errno, fix) => {
    const said = kvmSupport(new Set(['svm']), refused(errno))

    expect(said.fix).toMatch(fix)
    if (errno === 13 || errno === 1) expect(said.fix).not.toMatch(/firmware|modprobe/)
  })
})
