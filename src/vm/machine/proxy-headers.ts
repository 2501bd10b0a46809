import type { IncomingHttpHeaders } from 'node:http'

/** The path of a proxied request: what is the workload's, undecoded, and what stands before it. */
export interface ProxiedPath {
  readonly rest: string
  readonly base: string
}

/** The target of a proxied request, and the path that the caller sees it under. */
export interface Proxied extends ProxiedPath {
  /** The workload's port in the guest. */
  readonly port: number
}

/** Headers that say something of one connection, not of the message (RFC 9110, section 7.6.1). */
const HOP_BY_HOP = [
  'connection',
  'keep-alive',
  'proxy-authenticate',
  'proxy-authorization',
  'proxy-connection',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
]
/** Headers that a caller shows to us: they are not the guest's to see. */
const OURS = ['authorization', 'x-volant-api-key', 'cookie', 'host', 'x-request-id', 'x-forwarded-prefix']
/**
 * Headers that act on the whole origin of a page, and the origin is the API's: a guest could ask for passwords in its
 * name, take its storage away, lead its pages elsewhere or have their failures reported to strangers.
 */
const OF_ORIGIN = [
  'set-cookie',
  'set-cookie2',
  'www-authenticate',
  'clear-site-data',
  'refresh',
  'strict-transport-security',
  'public-key-pins',
  'alt-svc',
  'nel',
  'report-to',
  'reporting-endpoints',
  'service-worker-allowed',
  'origin-agent-cluster',
  'x-request-id',
]
/** Headers that name a location: below the proxy's own path, or not at all. */
const LOCATION_HEADERS = ['location', 'content-location']
/** The guest's pages share the origin of the API: they run without it. */
const SANDBOX = 'sandbox allow-scripts allow-forms'

/** Lists the headers that a message says are of its connection alone. */
const ofConnection = (value: string | null | undefined): string[] =>
  (value ?? '').split(',').map((name) => name.trim().toLowerCase())

/** Makes the headers that the workload is sent. */
export const forGuest = (headers: Headers, { port, base }: Proxied): Record<string, string> => {
  const dropped = new Set([...HOP_BY_HOP, ...OURS, ...ofConnection(headers.get('connection'))])
  const kept = [...headers].filter(([name]) => !dropped.has(name))
  return {
    ...Object.fromEntries(kept),
    host: `localhost:${port}`,
    connection: 'close',
    'x-forwarded-prefix': base,
  }
}

/** Picks the headers of the workload's answer that reach the caller. */
export const forCaller = (headers: IncomingHttpHeaders, to: Proxied): Headers => {
  const dropped = new Set([...HOP_BY_HOP, ...OF_ORIGIN, ...LOCATION_HEADERS, ...ofConnection(headers.connection)])
  const out = new Headers()
  for (const [name, value] of Object.entries(headers)) {
    if (value === undefined || dropped.has(name)) continue
    for (const one of Array.isArray(value) ? value : [value]) out.append(name, one)
  }
  for (const name of LOCATION_HEADERS) {
    const location = locationOf(headers[name], to)
    if (location !== undefined) out.set(name, location)
  }
  out.set('content-security-policy', SANDBOX)
  return out
}

const WORKLOAD = new Set(['localhost', '127.0.0.1', '[::1]'])

/**
 * Writes a location that the workload names as the caller sees it: below the proxy's path. A workload that heeds
 * X-Forwarded-Prefix has put it there itself. One elsewhere is undefined.
 */
const locationOf = (said: string | string[] | undefined, { port, base, rest }: Proxied): string | undefined => {
  if (typeof said !== 'string') return undefined
  let url: URL
  try {
    url = new URL(said, `http://localhost:${port}/${rest}`)
  } catch {
    return undefined
  }
  const itsPort = url.port === '' ? (url.protocol === 'https:' ? 443 : 80) : Number(url.port)
  if (!['http:', 'https:'].includes(url.protocol) || !WORKLOAD.has(url.hostname) || itsPort !== port) return undefined
  const inside = url.pathname === base || url.pathname.startsWith(`${base}/`) ? '' : base
  return `${inside}${url.pathname}${url.search}${url.hash}`
}
