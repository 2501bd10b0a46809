import { describe, expect, test } from 'bun:test'
import { readConfig } from '../../../../src/config.ts'
import { checks } from '../../../../src/hypervisor/drivers/talon/checks.ts'
import { talon } from '../../../../src/hypervisor/drivers/talon/talon.ts'

const groundOf = (landlock_abi_min: number) => ({
  config: readConfig({ config: '/dev/null', landlock_abi_min }, {}, 0),
  kvm: { usable: true, reason: '', probe: undefined },
  accelerator: 'kvm' as const,
})

describe('a kernel whose Landlock is older than the configuration asks for', () => {
  test('gets no talon, and the reason names the setting', () => {
    expect(talon.find(groundOf(99))).toEqual({
      lacks: expect.stringMatching(/asks for Landlock 99 or newer \(landlock_abi_min\)/) as string,
    })
  })

  test('is told by the doctor: a warning where another hypervisor runs guests, else a failure', async () => {
    for (const [another, status] of [
      [true, 'warn'],
      [false, 'fail'],
    ] as const) {
      const [jail] = await checks(groundOf(99), another)

      expect(jail).toMatchObject({ name: 'talon', status, message: expect.stringContaining('Landlock 99') as string })
    }
  })

  test('runs talon where nothing is asked', () => {
    expect(talon.find(groundOf(0))).toMatchObject({ driver: { name: 'talon' } })
  })
})
