/**
 * Paths below an open folder, part by part.
 *
 * A path is a way that others may bend while we go it: who swaps a folder for a link leads us elsewhere, as root. A
 * descriptor stays the folder that it was opened as, so what is below it is named `/proc/self/fd/N/NAME` (proc(5)): one
 * part, and nothing above it is looked up again. It also has no limit of depth, and takes names as bytes.
 */
import { closeSync, constants, openSync } from 'node:fs'
import { bytesOfName } from './tar-name.ts'

/**
 * open(2): a descriptor that only says where something is, which needs no right to read it. Not among the constants of
 * node:fs.
 */
const O_PATH = 0x20_0000
export const OPEN_FOLDER = O_PATH | constants.O_DIRECTORY

/** Makes the path of a folder's own descriptor. */
export const pathOfFd = (fd: number): string => `/proc/self/fd/${fd}`

/** Makes the path of what has this name in a folder. A name is a byte string of one part. */
export const pathIn = (folder: number, name: string): Buffer =>
  bytesOfName(`${pathOfFd(folder)}/${name === '' ? '.' : name}`)

/** Opens a folder in a folder, and no link to one. @throws ENOENT, ENOTDIR (also: it is a link), EACCES */
export const openFolderIn = (folder: number, name: string): number =>
  openSync(pathIn(folder, name), OPEN_FOLDER | constants.O_NOFOLLOW)

/**
 * The folders on the way from a root to where one is now, open. Entries of an archive mostly stand beside each other.
 */
export class FolderWalk implements Disposable {
  readonly #root: number
  readonly #open: { readonly name: string; readonly fd: number }[] = []

  constructor(root: string) {
    this.#root = openSync(root, OPEN_FOLDER)
  }

  /**
   * The folder at these parts below the root.
   *
   * @param missing  called with a folder and a name that `openFolderIn` failed for; returns the descriptor after all, or throws
   */
  to(
    parts: readonly string[],
    missing: (folder: number, name: string, depth: number, error: unknown) => number,
  ): number {
    let depth = 0
    while (depth < this.#open.length && this.#open[depth]?.name === parts[depth]) depth++
    for (const { fd } of this.#open.splice(depth)) closeSync(fd)
    let at = this.#open.at(-1)?.fd ?? this.#root
    for (; depth < parts.length; depth++) {
      const name = parts[depth] ?? ''
      let fd: number
      try {
        fd = openFolderIn(at, name)
      } catch (error) {
        fd = missing(at, name, depth, error)
      }
      this.#open.push({ name, fd })
      at = fd
    }
    return at
  }

  [Symbol.dispose](): void {
    for (const { fd } of this.#open.splice(0)) closeSync(fd)
    closeSync(this.#root)
  }
}
