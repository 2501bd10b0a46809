import { describe, expect, test } from 'bun:test'
import { existsSync, mkdirSync } from 'node:fs'
import type { VmState } from '../../../src/contract/vm-state.ts'
import type { End, EndReason, Machine } from '../../../src/hypervisor/driver.ts'
import { cgroupSupport, makeCgroup } from '../../../src/linux/cgroup.ts'
import type { BootRow } from '../../../src/store/schema.ts'
import { recordEnd, recordPendingEnds } from '../../../src/vm/machine/end.ts'
import type { LiveVm } from '../../../src/vm/machine/live.ts'
import { byUid } from '../../../src/vm/row/lookup.ts'
import { change } from '../../../src/vm/row/moves.ts'
import { list } from '../../../src/vm/row/list.ts'
import { testHost } from '../host.ts'

const end = (reason: EndReason, message = ''): End => ({ reason, code: null, message })

/** What is left of a vm in this state when its machine has ended so. */
const after = async (state: VmState, ended: End, boot: Partial<BootRow> = {}, auto_remove = false) => {
  await using bed = testHost()
  const vm = bed.vm(
    'web',
    {
      state,
      boot: {
        machine: { bootId: 'b', process: { pid: 7, startTime: '1' }, helpers: [], folder: '/f', uuid: 'u' },
        ...boot,
      },
    },
    { auto_remove },
  )
  const at = bed.paths(vm)
  const said: string[] = []
  mkdirSync(at.run, { recursive: true })
  const machine = {
    kill: () => {
      said.push(byUid(bed.host.store, vm.uid)?.state ?? 'gone')
      return Promise.resolve()
    },
  } as unknown as Machine
  const live = {
    uid: vm.uid,
    name: vm.name,
    machine,
    drainIfConnected: () => Promise.resolve(),
    close: () => undefined,
  } as unknown as LiveVm
  bed.host.vms.live.set(vm.uid, live)

  await recordEnd(bed.host, live, ended)

  const now = byUid(bed.host.store, vm.uid)
  return {
    state: now?.state ?? 'gone',
    exit: now?.boot.exitMessage,
    status: now?.statusMessage,
    machine: now?.boot.machine ?? null,
    atKill: said,
    live: bed.host.vms.live.size,
    run: existsSync(at.run),
    events: bed.events.after(0, 10).map((event) => event.type),
  }
}

describe('the end of a machine', () => {
  test('whose guest powered off stops the vm', async () => {
    expect(await after('running', end('poweroff'))).toMatchObject({
      state: 'stopped',
      exit: 'the guest powered off',
      machine: null,
      live: 0,
      run: false,
      events: ['VM_STOPPED'],
    })
  })

  test('whose kernel panicked crashes it, with the reason', async () => {
    expect(await after('running', end('panic', 'no init'))).toMatchObject({
      state: 'crashed',
      status: "the guest's kernel panicked: no init",
      machine: null,
      events: ['VM_CRASHED'],
    })
  })

  test('that was killed from outside crashes it, unless its workload had ended before', async () => {
    expect(await after('running', end('killed'))).toMatchObject({
      state: 'crashed',
      status: 'the machine was killed from outside',
    })
    expect(await after('running', end('killed'), { exitCode: 3, exitMessage: 'exited with code 3' })).toMatchObject({
      state: 'stopped',
      exit: 'exited with code 3',
    })
  })

  test('keeps what the agent said of it', async () => {
    expect(
      await after('running', end('poweroff'), { exitMessage: 'the agent failed at root: bad disk' }),
    ).toMatchObject({ exit: 'the agent failed at root: bad disk' })
  })

  test('that was asked for stops it, however it came', async () => {
    for (const reason of ['poweroff', 'killed', 'panic', 'gone'] as const)
      expect(await after('stopping', end(reason))).toMatchObject({ state: 'stopped' })
  })

  test('by a reboot of the guest begins the vm anew', async () => {
    expect(await after('running', end('reboot'))).toMatchObject({ state: 'starting', status: 'the guest rebooted' })
    expect(await after('stopping', end('reboot'))).toMatchObject({ state: 'stopped' })
  })

  test('is a legal end in every state that may have a machine, for every reason', async () => {
    for (const state of ['running', 'paused', 'stopping', 'unknown'] as const) {
      for (const reason of ['poweroff', 'panic', 'killed', 'failed', 'gone'] as const) {
        for (const exitCode of [null, 0])
          expect({
            state,
            reason,
            exitCode,
            is: ['stopped', 'crashed'].includes((await after(state, end(reason), { exitCode })).state),
          }).toEqual({ state, reason, exitCode, is: true })
      }
    }
  }, 20_000)

  test('under a boot, or a delete, is theirs to write down', async () => {
    expect(await after('starting', end('killed'))).toMatchObject({ state: 'starting', events: [] })
    expect(await after('deleting', end('killed'))).toMatchObject({ state: 'deleting', events: [] })
  })

  test('is in the row before the process is let go: it may hold the reason for a daemon that crashes here', async () => {
    expect((await after('running', end('poweroff'))).atKill).toEqual(['stopped'])
  })

  test('takes a vm with it that removes itself', async () => {
    expect(await after('running', end('poweroff'), {}, true)).toMatchObject({
      state: 'gone',
      events: ['VM_STOPPED', 'VM_DELETED'],
    })
    expect(await after('running', end('panic'), {}, true)).toMatchObject({ state: 'gone' })
  })
})

describe.skipIf(!cgroupSupport().controllers.includes('memory'))('an end by the limit of memory', () => {
  test('is told as what it was, and no other end is', async () => {
    await using bed = testHost()
    const stateId = bed.host.daemon.stateId.replace(/^.{8}/, process.pid.toString(16).padStart(8, '0'))
    const host = { ...bed.host, daemon: { ...bed.host.daemon, stateId } }
    const seen: Record<string, string | null | undefined> = {}
    for (const [name, script] of [
      ['eats', 'tail /dev/zero'],
      ['dies', 'kill -9 $$'],
    ] as const) {
      const row = bed.vm(name, { state: 'running' })
      const { folders } = makeCgroup(`${stateId}-${row.uid}`, { memoryMaxBytes: 24 * 2 ** 20 })
      const joins = folders.map((folder) => `echo $$ > ${folder}/cgroup.procs`).join('; ')
      await Bun.spawn(['sh', '-c', `${joins}; ${script}`], { stderr: 'ignore' }).exited
      const machine = { kill: () => Promise.resolve() } as unknown as Machine
      const live = {
        uid: row.uid,
        name,
        machine,
        drainIfConnected: () => Promise.resolve(),
        close: () => undefined,
      } as unknown as LiveVm

      await recordEnd(host, live, end('killed', 'QEMU was killed by signal 9'))

      seen[name] = byUid(host.store, row.uid)?.statusMessage
    }

    expect(seen).toEqual({
      eats: expect.stringContaining('took more than the 1024 MiB of memory that it may') as string,
      dies: 'the machine was killed from outside: QEMU was killed by signal 9',
    })
    expect(bed.events.after(0, 10).find((event) => event.name === 'eats')).toMatchObject({
      type: 'VM_CRASHED',
      message: seen['eats'] ?? '',
    })
  })
})

describe('an end that the disk has no room for', () => {
  test('lets everything go all the same, and is written down when there is room', async () => {
    await using bed = testHost()
    const machine = { bootId: 'b', process: { pid: 7, startTime: '1' }, helpers: [], folder: '/f', uuid: 'u' }
    const row = bed.vm('web', { state: 'running', boot: { machine } })
    const at = bed.paths(row)
    mkdirSync(at.run, { recursive: true })
    const gone: string[] = []
    const live = {
      uid: row.uid,
      name: 'web',
      machine: {
        kill: () => {
          gone.push('machine')
          return Promise.resolve()
        },
      },
      drainIfConnected: () => Promise.resolve(),
      close: () => {
        gone.push('live')
      },
    } as unknown as LiveVm
    bed.host.store.$client.run(
      "CREATE TEMP TRIGGER full BEFORE UPDATE ON vms BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END",
    )

    await expect(recordEnd(bed.host, live, end('killed'))).rejects.toThrow()
    expect([gone, existsSync(at.run), byUid(bed.host.store, row.uid)?.state]).toEqual([
      ['machine', 'live'],
      false,
      'running',
    ])
    await recordPendingEnds(bed.host)
    expect(byUid(bed.host.store, row.uid)?.state).toBe('running')

    bed.host.store.$client.run('DROP TRIGGER full')
    await recordPendingEnds(bed.host)
    await recordPendingEnds(bed.host)

    expect(byUid(bed.host.store, row.uid)).toMatchObject({ state: 'crashed', boot: { machine: null } })
    expect(bed.events.after(0, 10).map((event) => event.type)).toEqual(['VM_CRASHED'])
  })
})

test('a change without a move is seen in the list too', async () => {
  await using bed = testHost()
  const { uid } = bed.vm('web')
  expect(list(bed.host.store, {}).vms[0]).toMatchObject({ exit_code: null, pid: null })

  change(bed.host.store, uid, {
    boot: {
      exitCode: 7,
      machine: { bootId: 'b', process: { pid: 7, startTime: '1' }, helpers: [], folder: '/f', uuid: 'u' },
    },
  })

  expect(list(bed.host.store, {}).vms[0]).toMatchObject({ exit_code: 7, pid: 7 })
})
