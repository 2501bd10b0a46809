import { Type, type Static } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import { embedded } from '../../../linux/embedded.ts'

const Report = Type.Object({
  jail: Type.Object({
    landlock_abi: Type.Integer(),
    seccomp_kill_process: Type.Boolean(),
    user_namespaces: Type.Boolean(),
  }),
  memory: Type.Object({ transparent_hugepages: Type.Union([Type.String(), Type.Null()]) }),
})
type Report = Static<typeof Report>

const command = () => ({ cmd: [`/proc/self/fd/${embedded('talon').fd}`, 'check'], argv0: 'talon', env: {} })

const read = (text: string): Report | undefined => {
  try {
    const said: unknown = JSON.parse(text)
    return Value.Check(Report, said) ? said : undefined
  } catch {
    return undefined
  }
}

/** Asks talon what its jail can enforce on this host; undefined where it does not run. */
export const report = async (): Promise<Report | undefined> => {
  try {
    return read(await new Response(Bun.spawn({ ...command(), stderr: 'ignore' }).stdout).text())
  } catch {
    return undefined
  }
}

let landlock: Promise<boolean> | undefined

/** Tells whether this kernel has a Landlock for talon's jail; asked once. */
export const hasLandlock = (): Promise<boolean> =>
  (landlock ??= report().then((said) => (said?.jail.landlock_abi ?? 0) > 0))

/** Reads the report while nothing else waits: at the start of a daemon. */
const reportNow = (): Report | undefined => read(Bun.spawnSync(command()).stdout.toString())

/** Says why talon cannot be jailed here, and so runs nothing; undefined where it can. */
export const unfit = (): string | undefined => {
  const said = reportNow()
  if (!said) return 'the embedded talon does not run here'
  if (!said.jail.user_namespaces) return 'its jail needs user namespaces, and this host forbids them'
  return said.jail.seccomp_kill_process ? undefined : 'its jail needs seccomp, and this kernel has none'
}

/**
 * Says that this kernel's Landlock is older than the configuration asks for; undefined where it is not, or nothing is
 * asked.
 */
export const lacksLandlock = (abiMin: number): string | undefined => {
  if (abiMin === 0) return undefined
  const found = reportNow()?.jail.landlock_abi ?? 0
  return found < abiMin ? sayLandlock(found, abiMin) : undefined
}

/** Says that the Landlock of this kernel is older than the configuration asks for. */
export const sayLandlock = (found: number, abiMin: number): string =>
  `the configuration asks for Landlock ${abiMin} or newer (landlock_abi_min), and this kernel has ${found === 0 ? 'none' : found}`
