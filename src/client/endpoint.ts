import { Type } from '@sinclair/typebox'
import { fault } from '../lib/fault.ts'
import { SOCKET_PATH_MAX } from '../lib/paths.ts'

/** The address of a daemon: its Unix socket, or an HTTP origin with a token. */
export type Endpoint =
  | { readonly kind: 'unix'; readonly path: string }
  | { readonly kind: 'http'; readonly origin: string; readonly token: string | undefined }

export const endpointInvalid = fault(
  'endpoint_invalid',
  'invalid',
  { endpoint: Type.String(), reason: Type.String() },
  (d) => `Cannot use "${d.endpoint}" as the address of a daemon: ${d.reason}`,
  'Write unix:///run/aerie/aerie.sock or http://127.0.0.1:7777',
)

/** Reads `unix:///path`, `/path`, `http://host:port` or `https://host[:port]`. */
export const parseEndpoint = (text: string, token?: string): Endpoint => {
  const invalid = (reason: string) => endpointInvalid({ endpoint: text, reason })
  const path = text.startsWith('unix://') ? text.slice('unix://'.length) : text.startsWith('/') ? text : undefined
  if (path !== undefined) {
    if (!path.startsWith('/')) throw invalid('its path is not absolute')
    if (Buffer.byteLength(path) > SOCKET_PATH_MAX) throw invalid(`a socket's path has at most ${SOCKET_PATH_MAX} bytes`)
    return { kind: 'unix', path }
  }
  if (!/^https?:\/\//.test(text)) throw invalid('it names no protocol')
  const url = URL.parse(text)
  if (!url) throw invalid('it is no URL')
  if (url.username !== '' || url.password !== '')
    throw invalid('a secret does not belong into an address; put it into AERIE_TOKEN')
  if (url.pathname !== '/' || url.search !== '' || url.hash !== '') throw invalid('it has more than a host and a port')
  return { kind: 'http', origin: url.origin, token }
}

/** Writes an endpoint as people do: `unix://PATH`, or its origin. A token is never in it. */
export const sayEndpoint = (endpoint: Endpoint): string =>
  endpoint.kind === 'unix' ? `unix://${endpoint.path}` : endpoint.origin
