import { chmodSync, mkdirSync } from 'node:fs'

/** Makes sure of a folder with exactly these permission bits, whatever the umask; it is made where it is not there. */
export const ensureFolder = (path: string, mode: number): void => {
  mkdirSync(path, { recursive: true })
  chmodSync(path, mode)
}
