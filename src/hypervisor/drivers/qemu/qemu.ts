import type { Check } from '../../../contract/system.ts'
import type { DriverOffer, Ground, HypervisorDriver } from '../../driver.ts'
import type { QemuOptions } from './argv.ts'
import { adopt, start } from './start.ts'

/**
 * QEMU as a driver: `q35` (its `microvm` hangs at random under TCG), the vsock device by our own vhost-user backend, every file an
 * inherited descriptor: no folder of ours need be open to the user that it runs as.
 *
 * `-action shutdown=pause`: a guest that ends leaves QEMU standing, so an end while no daemon looks is read later; `-no-reboot`: a reboot
 * ends the machine too. A panic arrives as a reset, and the console tells the two apart.
 */
export const driverOf = (options: QemuOptions): HypervisorDriver => ({
  name: 'qemu',
  nics: ['user'],
  start: (spec, signal) => start(options, spec, undefined, signal),
  restore: (spec, from, signal) => start(options, spec, from, signal),
  adopt,
})

/** QEMU, wherever its program is installed: with KVM, or with TCG where there is none. */
export const qemu: DriverOffer = {
  name: 'qemu',
  find: ({ config, accelerator }) => {
    const program = Bun.which(config.qemu)
    return program ? { driver: driverOf({ program, accelerator }) } : { lacks: `"${config.qemu}" is not installed` }
  },
  check: async (ground) => [await checkOf(ground)],
}

const checkOf = async ({ config, kvm }: Ground): Promise<Check> => {
  const said = (status: Check['status'], message: string, hint: string | null = null): Check => ({
    name: 'qemu',
    status,
    message,
    hint,
  })
  const found = Bun.which(config.qemu)
  if (!found && kvm.usable)
    return said('warn', `"${config.qemu}" is not on the PATH: talon runs guests, but none with --network user`)
  if (!found)
    return said(
      'fail',
      `"${config.qemu}" is not on the PATH`,
      'apt-get install --no-install-recommends qemu-system-x86',
    )
  const version = /version (\d+)\.(\d+)/.exec(
    await new Response(Bun.spawn([found, '--version'], { stderr: 'ignore' }).stdout).text(),
  )
  if (!version) return said('fail', `${found} does not say its version`)
  return Number(version[1]) >= 7
    ? said('ok', `${found} ${version[1]}.${version[2]}`)
    : said('fail', `${found} ${version[1]}.${version[2]} is older than 7.0`, 'Install a newer QEMU')
}
