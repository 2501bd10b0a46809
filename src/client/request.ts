import type { OperationId } from '../contract/operations.ts'
import type { Route } from '../contract/routes.ts'
import { routes } from '../contract/routes.ts' with { type: 'macro' }

const ROUTES = routes()

/** The parts of an input, as the code that builds a request sees them: typed by the operation for callers only. */
export interface Parts {
  readonly params?: Readonly<Record<string, unknown>> | undefined
  readonly query?: Readonly<Record<string, unknown>> | undefined
  readonly body?: unknown
}

/** Gives the method and path of an operation. */
export const routeOf = (id: OperationId): Route => ROUTES[id]

/** Fills the parameters of a path: `/api/v1/vms/:name/stop` and `{name: "web"}` → `/api/v1/vms/web/stop`. */
export const fillPath = (path: string, params: Parts['params'] = {}): string =>
  path.replace(/:(\w+)|\*/g, (_, key: string | undefined) => {
    const value = params[key ?? '*']
    if (value === undefined) throw new TypeError(`Path ${path} needs "${key ?? '*'}"`)
    return key === undefined
      ? String(value).split('/').map(encodeURIComponent).join('/')
      : encodeURIComponent(String(value))
  })

/** Writes the query of a target. A list repeats its key; what is undefined is not said. */
export const searchOf = (query: Parts['query'] = {}): string => {
  const search = new URLSearchParams()
  for (const [key, value] of Object.entries(query)) {
    for (const one of Array.isArray(value) ? (value as unknown[]) : [value])
      if (one !== undefined) search.append(key, String(one))
  }
  const text = search.toString()
  return text === '' ? '' : `?${text}`
}

/** Makes the target of a request (RFC 9112, section 3.2): the path of an operation, filled, and its query. */
export const targetOf = (id: OperationId, parts: Parts): string =>
  fillPath(routeOf(id).path, parts.params) + searchOf(parts.query)
