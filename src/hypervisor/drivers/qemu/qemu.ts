import type { Check } from '../../../contract/system.ts'
import type { DriverOffer, Ground } from '../../driver.ts'
import { driverOf, hasNamespaces } from './start.ts'

/** QEMU, wherever its program is installed: with KVM, or with TCG where there is none. */
export const qemu: DriverOffer = {
  name: 'qemu',
  find: ({ config, accelerator }) => {
    const program = Bun.which(config.qemu)
    return program ? { driver: driverOf({ program, accelerator }) } : { lacks: `"${config.qemu}" is not installed` }
  },
  check: async (ground) => [await checkOf(ground), ...(Bun.which(ground.config.qemu) ? [await walls()] : [])],
}

/** Tells what a QEMU that a guest broke out of would find between itself and this host. */
const walls = async (): Promise<Check> => sayWalls(await hasNamespaces(), process.getuid?.() === 0)

/** Says which walls QEMU has; exported for its test. */
export const sayWalls = (namespaces: boolean, root: boolean): Check => {
  const own = root ? 'a user of its own and ' : ''
  return namespaces
    ? {
        name: 'qemu-walls',
        status: 'ok',
        message: `QEMU runs with ${own}namespaces, an empty root and seccomp`,
        hint: null,
      }
    : {
        name: 'qemu-walls',
        status: 'warn',
        message: `QEMU runs with ${own}seccomp alone: this host forbids namespaces, so a guest that breaks out of it sees the host's files, network and processes`,
        hint: root
          ? 'Give the daemon CAP_SYS_ADMIN'
          : '`sysctl user.max_user_namespaces` must not be 0, nor `kernel.unprivileged_userns_clone`; `kernel.apparmor_restrict_unprivileged_userns` must be 0; or run the daemon as root',
      }
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
