import type { Operation, Scope } from '../contract/operation.ts'
import { Type } from '@sinclair/typebox'
import { fault } from '../lib/fault.ts'
import type { Tokens } from '../system/tokens.ts'

export const tokenMissing = fault(
  'token_missing',
  'unauthorized',
  {},
  () => 'Cannot serve this request: it carries no token',
  'Send `Authorization: Bearer …`; `aerie token create NAME` makes one',
)
export const tokenInvalid = fault(
  'token_invalid',
  'unauthorized',
  {},
  () => 'Cannot serve this request: its token is unknown, revoked or expired',
)
export const tokenScope = fault(
  'token_scope',
  'forbidden',
  { has: Type.String(), needs: Type.String() },
  (d) => `Cannot serve this request: it needs scope "${d.needs}", and the token has "${d.has}"`,
)
export const hostRefused = fault(
  'host_refused',
  'forbidden',
  { host: Type.String() },
  (d) => `Cannot serve this request: host "${d.host}" is not this daemon's`,
  'Use the address that the daemon listens on',
)
export const originRefused = fault(
  'origin_refused',
  'forbidden',
  { origin: Type.String() },
  (d) => `Cannot serve this request: it comes from a page of "${d.origin}"`,
)

const RANK = { read: 0, exec: 1, admin: 2 } as const satisfies Record<Scope, number>

/** Who may ask: on the Unix socket its file mode says so, on TCP a token does. */
export interface Listener {
  readonly kind: 'unix' | 'tcp'
  /**
   * Host names that a request may be addressed to; a page that rebinds its own name to our address is refused by them.
   */
  readonly hosts: ReadonlySet<string>
}

const hostOf = (text: string): string => text.toLowerCase().replace(/:\d+$/, '')

/**
 * Lets a request through or says why not: before its body is read and before it is matched to a schema.
 *
 * @returns whether the caller has shown that it may use this daemon: what is for everybody is let through for strangers
 * too
 * @throws `host_refused`, `origin_refused`, `token_missing`, `token_invalid`, `token_scope`
 */
export const check = (
  listener: Listener,
  request: Request,
  operation: Operation | undefined,
  tokens: Tokens,
): boolean => {
  if (listener.kind === 'unix') return true
  const host = request.headers.get('host') ?? ''
  if (!listener.hosts.has(hostOf(host))) throw hostRefused({ host })
  const origin = request.headers.get('origin')
  if (origin !== null && origin !== `http://${host}` && origin !== `https://${host}`) throw originRefused({ origin })
  if (operation?.path === '/healthz') return false
  // Never from the query string: it ends in logs, histories and referrers.
  const bearer =
    /^Bearer +(\S+)$/i.exec(request.headers.get('authorization') ?? '')?.[1] ??
    request.headers.get('x-volant-api-key') ??
    undefined
  if (bearer === undefined) throw tokenMissing({})
  const scope = tokens.scopeOf(bearer)
  if (scope === undefined) throw tokenInvalid({})
  const needs = operation?.scope ?? 'read'
  if (RANK[scope] < RANK[needs]) throw tokenScope({ has: scope, needs })
  return true
}
