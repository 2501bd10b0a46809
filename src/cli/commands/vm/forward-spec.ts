import { usageInvalid } from '../../flags.ts'

export type Local = { readonly host: string; readonly port: number } | { readonly unix: string }
export type Remote = { readonly port: number } | { readonly unix: string }

/** One forward: where it listens on this host, and what it leads to in the guest. */
export interface Forward {
  readonly local: Local
  readonly remote: Remote
}

const portOf = (said: string, minimum: number): number | undefined =>
  /^\d{1,5}$/.test(said) && Number(said) >= minimum && Number(said) <= 65_535 ? Number(said) : undefined

/**
 * `80`, `8080:80`, `0:80`, `127.0.0.1:8080:80`, `/tmp/db.sock:5432`, `5432:/run/db.sock`: this host's side first, its
 * loopback where no address is said.
 */
export const parseForward = (said: string): Forward => {
  const invalid = (reason: string) =>
    usageInvalid({
      reason: `Cannot forward "${said}": ${reason}`,
      hint: "Write [[ADDRESS:]PORT:]PORT, or a socket's path in place of a port",
    })
  const near = /^(?:(?<path>\/[^:]*)|(?:(?<host>\[[^\]]+\]|[^:/[\]]+):)??(?<port>\d+))(?::(?<far>\d+|\/.*))?$/.exec(
    said,
  )?.groups
  if (!near) throw invalid('that is no port, and no path of a socket')
  const { path, host, port, far = host === undefined ? port : undefined } = near
  if (far === undefined) throw invalid("the guest's side is missing")
  const remotePort = portOf(far, 1)
  const localPort = portOf(port ?? '', 0)
  if (!far.startsWith('/') && remotePort === undefined) throw invalid("the guest's port is no number from 1 to 65535")
  if (path === undefined && localPort === undefined) throw invalid('the port of this host is no number from 0 to 65535')
  return {
    local:
      path === undefined
        ? { host: host?.replace(/^\[|\]$/g, '') ?? '127.0.0.1', port: localPort ?? 0 }
        : { unix: path },
    remote: far.startsWith('/') ? { unix: far } : { port: remotePort ?? 0 },
  }
}

/** Writes the local end as people do: `HOST:PORT`, or the path of a socket. */
export const sayLocal = (local: Local): string =>
  'unix' in local ? local.unix : `${local.host.includes(':') ? `[${local.host}]` : local.host}:${local.port}`

/** Writes the guest's end: a port, or the path of a socket. */
export const sayRemote = (remote: Remote): string => ('unix' in remote ? remote.unix : String(remote.port))
