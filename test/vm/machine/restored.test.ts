import { describe, expect, test } from 'bun:test'
import { existsSync, mkdirSync, utimesSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { Duplex } from 'node:stream'
import { encodeJson, FRAME } from '../../../src/guest/frames.ts'
import type { HypervisorDriver, Machine } from '../../../src/hypervisor/driver.ts'
import { driver } from '../../../src/hypervisor/drivers/fake/fake.ts'
import { Hypervisors } from '../../../src/hypervisor/hypervisors.ts'
import { deferred } from '../../../src/lib/promise.ts'
import type { Kernels } from '../../../src/kernel/kernels.ts'
import { closeSaved } from '../../../src/snapshot/snapshots.ts'
import { restore } from '../../../src/vm/restore.ts'
import { byUid } from '../../../src/vm/row/lookup.ts'
import { change } from '../../../src/vm/row/moves.ts'
import { testHost } from '../host.ts'

/** What the agent of a restored guest does when it is told who it is. */
type Answer = 'acknowledges' | 'refuses' | 'ends'

/** A sleeping vm whose machine is one at the driver's interface, with an agent that answers as told. */
const bedOf = () => {
  const bed = testHost()
  const row = bed.vm('web', { state: 'standby' })
  const { overlay } = bed.paths(row)
  mkdirSync(dirname(overlay), { recursive: true })
  writeFileSync(overlay, 'disk')
  utimesSync(overlay, 1000, 1000)
  const made = bed.host.snapshots.create()
  closeSaved(made)
  bed.host.snapshots.record(bed.host.store, made.id, row.uid)
  change(bed.host.store, row.uid, { snapshot: made.id })

  const guest = { answer: 'acknowledges' as Answer, writes: false }
  const asked: string[] = []
  const machine = (): Machine => {
    const ended = deferred<{ reason: 'panic'; code: number; message: string }>()
    const verb = (name: string) => () => {
      asked.push(name)
      if (name === 'resume' && guest.writes) writeFileSync(overlay, 'more')
      if (name === 'resume' && guest.answer === 'ends') ended.resolve({ reason: 'panic', code: 1, message: '' })
      return Promise.resolve()
    }
    return {
      identity: { bootId: '', process: { pid: 1, startTime: '' }, helpers: [], folder: '', uuid: '' },
      ended: ended.promise,
      consoleSocket: '',
      connect: () =>
        Promise.resolve(
          new Duplex({
            read: () => undefined,
            write(_chunk, _encoding, done) {
              if (guest.answer === 'acknowledges') this.push(encodeJson(FRAME.ok, {}))
              if (guest.answer === 'refuses')
                this.push(encodeJson(FRAME.error, { code: 'internal', message: 'entropy' }))
              done()
            },
          }),
        ),
      pause: verb('pause'),
      resume: verb('resume'),
      state: () => Promise.resolve('running'),
      powerButton: verb('button'),
      kill: verb('kill'),
    }
  }
  const waking: HypervisorDriver = { ...driver, restore: () => Promise.resolve(machine()) }
  const host = {
    ...bed.host,
    hypervisors: new Hypervisors([waking], { name: 'fake', accelerator: 'none', reason: 'a test' }),
    kernels: { imageOf: () => '/kernel', initramfs: () => Promise.resolve('/initramfs') } as unknown as Kernels,
  }
  return {
    host,
    uid: row.uid,
    guest,
    asked,
    row: () => byUid(host.store, row.uid),
    [Symbol.asyncDispose]: () => bed[Symbol.asyncDispose](),
    isKept: () => existsSync(join(host.config.state, 'snapshots', made.id, 'memory')),
  }
}

describe('what was saved', () => {
  test('is let go when the guest stands', async () => {
    await using bed = bedOf()
    const { host, uid, row, isKept } = bed

    expect((await restore(host, uid)).status).toBe('running')

    expect(row()).toMatchObject({ state: 'running', snapshot: null, boot: { identityDue: false } })
    expect(isKept()).toBe(false)
  })

  test.each(['refuses', 'ends'] as const)('is kept where the guest %s, and wakes it the next time', async (answer) => {
    await using bed = bedOf()
    const { host, uid, guest, asked, row, isKept } = bed
    guest.answer = answer

    await expect(restore(host, uid)).rejects.toMatchObject({
      code: answer === 'refuses' ? 'guest_refused' : 'vm_restore_failed',
    })

    expect(asked.at(-1)).toBe('kill')
    expect(host.vms.live.size).toBe(0)
    expect(row()).toMatchObject({ state: 'standby', boot: { machine: null, identityDue: false } })
    expect(row()?.snapshot).not.toBeNull()
    expect(isKept()).toBe(true)
    guest.answer = 'acknowledges'
    expect((await restore(host, uid)).status).toBe('running')
    expect(isKept()).toBe(false)
  })

  test('goes where the guest has written to its disk, and its halted machine is kept', async () => {
    await using bed = bedOf()
    const { host, uid, guest, asked, row, isKept } = bed
    guest.answer = 'refuses'
    guest.writes = true

    await expect(restore(host, uid)).rejects.toMatchObject({ code: 'guest_refused' })

    expect(asked).toEqual(['resume', 'pause'])
    expect(row()).toMatchObject({ state: 'paused', snapshot: null, boot: { identityDue: true } })
    expect(isKept()).toBe(false)
    expect(host.vms.live.get(uid)?.machine).toBeDefined()
  })
})
