import { type Vm, vmEvents } from '../../contract/vm.ts'
import type { Host, MachineHost } from '../../host.ts'
import { unexpected } from '../../lib/errors.ts'
import { Fault } from '../../lib/fault.ts'
import type { VmRow } from '../../store/schema.ts'
import { immediate } from '../../store/store.ts'
import { lastLines } from '../log/console-lines.ts'
import { purge } from './purge.ts'
import { pathsOf } from '../row/layout.ts'
import { byUid } from '../row/lookup.ts'
import { move } from '../row/moves.ts'
import { view } from '../row/view.ts'

/** Shows a vm that has just been made. */
export const viewMade = (host: Pick<Host, 'store'>, { uid }: VmRow): Vm => {
  const made = byUid(host.store, uid)
  if (!made) throw new Error('the row has gone')
  return view(made)
}

/** Takes back a vm that nobody was told of: its reason stays in a durable event. */
export const takeBack = async (host: MachineHost, row: VmRow, error: unknown): Promise<void> => {
  const now = byUid(host.store, row.uid)
  if (!now || now.state === 'deleting') return
  const fault = error instanceof Fault ? error : unexpected(error)
  const message = `${fault.message}${consoleTail(host, row)}`.slice(0, 4000)
  immediate(host.store, (tx) => {
    host.store.events.append(tx, vmEvents, {
      type: 'VM_CREATE_FAILED',
      name: row.name,
      uid: row.uid,
      message,
      data: { status: 'failed', mac_address: row.mac },
    })
  })
  move(host.store, row.uid, 'delete')
  await purge(host, row.uid)
}

/** Reads the last lines of the console, which is gone with the vm. */
const consoleTail = (host: Pick<Host, 'config'>, row: VmRow): string => {
  try {
    const lines = lastLines(pathsOf(host.config, row).consoleLog, 5)
    return lines.length === 0 ? '' : `\nconsole: ${lines.join('\nconsole: ')}`
  } catch {
    return ''
  }
}
