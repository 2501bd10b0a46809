import { join } from 'node:path'
import { describe, expect, test } from 'bun:test'
import { openStore } from '../../../src/store/open.ts'
import { remove } from '../../../src/vm/delete.ts'
import { pauseBefore, REBOOTS_MAX } from '../../../src/vm/machine/reboot-pace.ts'
import { reboot, resumeReboot } from '../../../src/vm/machine/reboot.ts'
import { byUid } from '../../../src/vm/row/lookup.ts'
import { start } from '../../../src/vm/start.ts'
import { stop } from '../../../src/vm/stop.ts'
import type { VmRow } from '../../../src/store/schema.ts'
import { testHost } from '../host.ts'

const QUICK = 1000
const STEADY = 60_000

describe('a guest that reboots', () => {
  const booted = (rows: VmRow[]) => (row: VmRow) => {
    rows.push(row)
    return Promise.resolve()
  }

  test('waits twice as long each time, up to a minute, and then is a crash', async () => {
    await using bed = testHost()
    const { uid } = bed.vm('a')
    const pauses = Array.from({ length: REBOOTS_MAX + 1 }, () => pauseBefore(bed.host.store, uid, QUICK))

    expect(pauses).toEqual([0, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000, 60_000, undefined])
  })

  test.each([
    ['after a boot that lasted', [QUICK, QUICK, QUICK, STEADY, QUICK, QUICK], [0, 1000, 2000, 0, 0, 1000]],
    ['seldom, for ever', Array.from({ length: 40 }, () => STEADY), Array.from({ length: 40 }, () => 0)],
  ])('begins anew %s', async (_, ran, pauses) => {
    await using bed = testHost()
    const { uid } = bed.vm('a')

    expect(ran.map((ms) => pauseBefore(bed.host.store, uid, ms))).toEqual(pauses)
  })

  test('costs no other vm its pace', async () => {
    await using bed = testHost()
    const [{ uid }, other] = [bed.vm('a'), bed.vm('b')]
    for (let turn = 0; turn < 5; turn++) pauseBefore(bed.host.store, uid, QUICK)

    expect(pauseBefore(bed.host.store, other.uid, QUICK)).toBe(0)
  })

  test('keeps its pace when the daemon starts anew, and begins anew when somebody starts its vm', async () => {
    await using bed = testHost()
    const { uid } = bed.vm('a', { state: 'stopped' })
    for (let turn = 0; turn < 5; turn++) pauseBefore(bed.host.store, uid, QUICK)
    const again = openStore(join(bed.host.config.state, 'state.db')) // as the next daemon does
    expect(byUid(again, uid)?.quickReboots).toBe(5)
    expect(pauseBefore(again, uid, QUICK)).toBe(16_000)
    again.$client.close()

    await start(bed.host, uid, {}).catch(() => undefined) // there is no driver here

    expect(byUid(bed.host.store, uid)?.quickReboots).toBe(0)
  })

  test('and whose daemon goes away while it waits has its boot of the next one, after the same pause', async () => {
    await using bed = testHost()
    const rows: VmRow[] = []
    const first = bed.vm('a', { state: 'starting', quickReboots: 1, boot: { startedAt: 1 } })
    const later = bed.vm('b', { state: 'starting', quickReboots: 5, boot: { startedAt: 1 } })

    await resumeReboot(bed.host, first, booted(rows))
    await resumeReboot(bed.host, later, booted(rows))

    expect(rows.map((row) => row.uid)).toEqual([first.uid])
    expect(byUid(bed.host.store, later.uid)).toMatchObject({
      state: 'starting',
      statusMessage: 'the guest rebooted again: it starts in 8 s',
      quickReboots: 5,
    })
    expect(await stop(bed.host, 'b', {})).toMatchObject({ status: 'stopped' })
  })

  test('once boots at once, and too often ends crashed with the reason', async () => {
    await using bed = testHost()
    const rows: VmRow[] = []
    const vm = bed.vm('web', { state: 'starting' })

    await reboot(bed.host, vm, QUICK, booted(rows))
    expect(rows.map((row) => row.uid)).toEqual([vm.uid])
    for (let turn = 1; turn < REBOOTS_MAX; turn++) pauseBefore(bed.host.store, vm.uid, QUICK)
    await reboot(bed.host, vm, QUICK, booted(rows))

    expect(rows.length).toBe(1)
    expect(byUid(bed.host.store, vm.uid)).toMatchObject({
      state: 'crashed',
      statusMessage: 'the guest rebooted 11 times, each time less than 60 s after its start',
    })
  })

  test('and waits says so, and its queue is free: a stop has its turn at once and no boot follows', async () => {
    await using bed = testHost()
    const rows: VmRow[] = []
    const vm = bed.vm('web', { state: 'starting', boot: { startedAt: 1 } })
    pauseBefore(bed.host.store, vm.uid, QUICK)

    await bed.host.vms.queue.run(vm.uid, () => reboot(bed.host, vm, QUICK, booted(rows)))
    expect(byUid(bed.host.store, vm.uid)?.statusMessage).toBe('the guest rebooted again: it starts in 1 s')
    expect(await stop(bed.host, 'web', {})).toMatchObject({ status: 'stopped' })

    // Another one waits as long from now on: when it boots, the first would have.
    const other = bed.vm('other', { state: 'starting', boot: { startedAt: 1 } })
    const again = Promise.withResolvers<VmRow>()
    pauseBefore(bed.host.store, other.uid, QUICK)
    await reboot(bed.host, other, QUICK, (row) => {
      again.resolve(row)
      return Promise.resolve()
    })
    await again.promise
    await bed.host.vms.queue.idle()
    expect(rows).toEqual([])
    expect(byUid(bed.host.store, vm.uid)?.state).toBe('stopped')
  })

  test('and waits is deleted at once', async () => {
    await using bed = testHost()
    const rows: VmRow[] = []
    const vm = bed.vm('web', { state: 'starting', boot: { startedAt: 1 } })
    bed.paths(vm)
    pauseBefore(bed.host.store, vm.uid, QUICK)

    await bed.host.vms.queue.run(vm.uid, () => reboot(bed.host, vm, QUICK, booted(rows)))
    await remove(bed.host, vm.uid)

    expect(byUid(bed.host.store, vm.uid)).toBeUndefined()
    expect(rows).toEqual([])
  })

  test('and has waited boots', async () => {
    await using bed = testHost()
    const vm = bed.vm('web', { state: 'starting', boot: { startedAt: 1 } })
    pauseBefore(bed.host.store, vm.uid, QUICK)
    const again = Promise.withResolvers<VmRow>()

    await reboot(bed.host, vm, QUICK, (row) => {
      again.resolve(row)
      return Promise.resolve()
    })

    const row = await again.promise
    expect(row).toMatchObject({ uid: vm.uid, statusMessage: 'the guest rebooted' })
    expect(row.boot.startedAt).toBeGreaterThan(1)
  })
})
