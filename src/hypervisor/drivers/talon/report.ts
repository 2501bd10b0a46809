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

/** What talon's jail can enforce on this host, by its own word (`talon check`); undefined where it does not run. */
export const report = (): Report | undefined => {
  const ran = Bun.spawnSync({ cmd: [`/proc/self/fd/${embedded('talon').fd}`, 'check'], argv0: 'talon', env: {} })
  let said: unknown
  try {
    said = JSON.parse(ran.stdout.toString())
  } catch {
    return undefined
  }
  return Value.Check(Report, said) ? said : undefined
}

/** Says why talon cannot be jailed here, and so runs nothing; undefined where it can. */
export const unfit = (): string | undefined => {
  const said = report()
  if (!said) return 'the embedded talon does not run here'
  if (!said.jail.user_namespaces) return 'its jail needs user namespaces, and this host forbids them'
  return said.jail.seccomp_kill_process ? undefined : 'its jail needs seccomp, and this kernel has none'
}
