import { Type, type Static } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import { embedded } from '../linux/embedded.ts'

export const TalonReport = Type.Object({
  jail: Type.Object({
    landlock_abi: Type.Integer(),
    seccomp_kill_process: Type.Boolean(),
    user_namespaces: Type.Boolean(),
  }),
  memory: Type.Object({ transparent_hugepages: Type.Union([Type.String(), Type.Null()]) }),
})
export type TalonReport = Static<typeof TalonReport>

/** What talon's jail can enforce on this host, by its own word (`talon check`); undefined where it does not run. */
export const talonReport = (): TalonReport | undefined => {
  const ran = Bun.spawnSync({ cmd: [`/proc/self/fd/${embedded('talon').fd}`, 'check'], argv0: 'talon', env: {} })
  let report: unknown
  try {
    report = JSON.parse(ran.stdout.toString())
  } catch {
    return undefined
  }
  return Value.Check(TalonReport, report) ? report : undefined
}

/** Why talon cannot be jailed here, and so runs nothing; undefined where it can. */
export const talonUnfit = (): string | undefined => {
  const report = talonReport()
  if (!report) return 'the embedded talon does not run here'
  if (!report.jail.user_namespaces) return 'its jail needs user namespaces, and this host forbids them'
  return report.jail.seccomp_kill_process ? undefined : 'its jail needs seccomp, and this kernel has none'
}
