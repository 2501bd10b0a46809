import type { Vm } from '../../../contract/vm.ts'
import type { VmState } from '../../../contract/vm-state.ts'
import { sayBytes } from '../../../lib/bytes.ts'
import { sayAgo, type Paint, type Table } from '../../table.ts'

const PAINT: Partial<Record<VmState, Paint>> = {
  running: 'green',
  crashed: 'red',
  unknown: 'red',
  paused: 'yellow',
  standby: 'yellow',
  stopped: 'dim',
}

const sayStatus = (vm: Vm): string =>
  vm.status === 'stopped' && vm.exit_code !== null
    ? `stopped (${vm.exit_code})`
    : vm.status === 'running' && vm.started_at !== null
      ? `running, ${sayAgo(vm.started_at).replace(/ ago$/, '')}`
      : vm.status

/** Makes the table of vms that `aerie ps` prints. */
export const vmTable = (vms: readonly Vm[]): Table => ({
  columns: [
    { title: 'NAME' },
    { title: 'STATUS', paint: (cell) => PAINT[cell.split(/[ ,]/, 1)[0] as VmState] },
    { title: 'IMAGE', cut: true },
    { title: 'CPUS', right: true },
    { title: 'MEMORY', right: true },
    { title: 'COMMAND', cut: true },
    { title: 'CREATED' },
  ],
  rows: vms.map((vm) => [
    vm.name,
    sayStatus(vm),
    vm.image,
    String(vm.cpu_cores),
    sayBytes(vm.memory_mb * 2 ** 20),
    [...(vm.entrypoint ?? []), ...(vm.cmd ?? [])].join(' '),
    sayAgo(vm.created_at),
  ]),
})
