import { join } from 'node:path'
import type { Config } from '../../config.ts'

/**
 * Tells where the files of one vm stand. The runtime folder's name is short (base 36 of the row's number): sockets live
 * there.
 */
export const pathsOf = (config: Config, vm: { readonly id: number; readonly uid: string }) => {
  const folder = join(config.state, 'vms', vm.uid)
  const run = join(config.machines, vm.id.toString(36))
  return {
    folder,
    run,
    overlay: join(folder, 'overlay.img'),
    appLog: join(folder, 'app.jsonl'),
    consoleLog: join(folder, 'console.log'),
    vmmLog: join(folder, 'vmm.log'),
    session: join(run, 'vsock_1024'),
  }
}
