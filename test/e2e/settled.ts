import { expect } from 'bun:test'
import { readdirSync } from 'node:fs'
import { basename, join } from 'node:path'
import type { Vm } from '../../src/contract/vm.ts'
import { cgroupsOf, machinesOf, until, type Daemon } from './daemon.ts'

const ON_ITS_WAY: readonly string[] = ['pending', 'starting', 'stopping', 'deleting', 'unknown']

/**
 * What a settled state folder may hold: for each row its files, for each running one its machine and its cgroups, and
 * nothing else; and every running one answers.
 *
 * @param processes  of one machine
 */
export const expectSettled = async (daemon: Daemon, processes = 1, seconds = 30): Promise<Vm[]> => {
  await until(
    async () => (await daemon.client.call('vm.list', {})).every((vm) => !ON_ITS_WAY.includes(vm.status)),
    seconds,
  )
  const vms = await daemon.client.call('vm.list', {})
  const running = vms.filter((vm) => vm.status === 'running')
  // the row says first that a machine has ended, then its folder goes
  await until(
    () =>
      readdirSync(join(daemon.run, 'm')).length === running.length &&
      machinesOf(daemon.state).length === running.length * processes,
    10,
  ).catch(() => undefined)
  expect(readdirSync(join(daemon.state, 'vms')).sort()).toEqual(vms.map((vm) => vm.uid).sort())
  expect(readdirSync(join(daemon.run, 'm')).sort()).toEqual(running.map((vm) => vm.id.toString(36)).sort())
  const machines = machinesOf(daemon.state)
  expect(machines.length).toBe(running.length * processes)
  expect(running.map((vm) => vm.pid ?? 0).filter((pid) => !machines.includes(pid))).toEqual([])
  const groups = cgroupsOf(daemon.state).map((path) => basename(path))
  expect(groups.filter((name) => !running.some((vm) => name.endsWith(`-${vm.uid}`)))).toEqual([])
  for (const vm of running) {
    expect(
      await daemon.client.call('vm.exec', { params: { name: vm.name }, body: { argv: ['echo', 'alive'] } }),
    ).toMatchObject({ exit_code: 0, stdout: 'alive\n' })
  }
  return vms
}

/** The named places at which `--crash-at` ends a daemon, in the order of each verb's effects. */
export const STEPS = {
  create: [
    'row-inserted',
    'folder-made',
    'disk-made',
    'prepared',
    'before-machine',
    'machine-started',
    'machine-recorded',
  ],
  start: ['starting', 'before-machine', 'machine-started', 'machine-recorded', 'ready'],
  stop: ['stopping', 'end-recorded'],
  standby: ['held', 'saved', 'standby-recorded'],
  restore: ['restoring', 'before-machine', 'machine-started', 'machine-recorded', 'saved-let-go', 'restored'],
  fork: [
    'clones-reserved',
    'held',
    'folder-made',
    'disk-made',
    'template-taken',
    'prepared',
    'machine-started',
    'machine-recorded',
    'ready',
  ],
  delete: ['deleting', 'machine-gone', 'before-files-removed', 'files-removed'],
} as const
