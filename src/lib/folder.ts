import { chmodSync, mkdirSync } from 'node:fs'

/** A folder with exactly these permission bits, whatever the umask: made where it is not there. */
export const ensureFolder = (path: string, mode: number): void => {
  mkdirSync(path, { recursive: true })
  chmodSync(path, mode)
}
