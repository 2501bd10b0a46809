import { join } from 'node:path'

/** A Unix socket's path, its NUL included, must fit `sun_path` (108 bytes, unix(7)). */
export const SOCKET_PATH_MAX = 107

export type Environment = Readonly<Record<string, string | undefined>>

/** The two folders of a daemon and the socket that its clients use. */
export interface Places {
  readonly mode: 'system' | 'user'
  readonly state: string
  readonly run: string
  readonly socket: string
}

export const systemPlaces: Places = {
  mode: 'system',
  state: '/var/lib/aerie',
  run: '/run/aerie',
  socket: '/run/aerie/aerie.sock',
}

/** The places of one user's own daemon, by the XDG base directory specification. */
export const userPlaces = (env: Environment, uid: number): Places => {
  const home = env['HOME'] ?? (uid === 0 ? '/root' : '/')
  const state = join(env['XDG_STATE_HOME'] || join(home, '.local/state'), 'aerie')
  const run = env['XDG_RUNTIME_DIR'] ? join(env['XDG_RUNTIME_DIR'], 'aerie') : join('/tmp', `aerie-${uid}`)
  return { mode: 'user', state, run, socket: join(run, 'aerie.sock') }
}
