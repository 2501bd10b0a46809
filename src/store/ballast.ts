import { randomBytes } from 'node:crypto'
import { mkdirSync, readdirSync, rmSync, statfsSync } from 'node:fs'
import { open, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'

/**
 * How much room is kept for the daemon's own records, and in how many pieces: a change of a vm takes some pages, and
 * whoever fills the disk takes the rest of a piece at once.
 */
const PIECES = 16
const PIECE_BYTES = 2 ** 19
const BALLAST_BYTES = PIECES * PIECE_BYTES
/**
 * How much more than what is missing of the ballast must be free before it is made, so that it is not itself what fills
 * the disk.
 */
const SLACK_BYTES = 2 * BALLAST_BYTES

const freeBytes = (folder: string): number => {
  const { bavail, bsize } = statfsSync(folder)
  return bavail * bsize
}

/**
 * Files that only take room, and are thrown off one by one when the disk is full: guests fill the disk that the record
 * of this host stands on, and what stops and deletes them must be written down. They are made again when there is room.
 */
export class Ballast {
  readonly #folder: string
  #filling: Promise<void> | undefined

  /** `state` is the folder whose disk it keeps room on. */
  constructor(state: string) {
    this.#folder = join(state, 'ballast')
  }

  #pieces(): string[] {
    try {
      return readdirSync(this.#folder)
    } catch {
      return []
    }
  }

  get isWhole(): boolean {
    return this.#pieces().filter((name) => !name.endsWith('.new')).length === PIECES
  }

  /** Gives the room of one piece to whoever writes next; false where none is left to give. */
  throwOff(): boolean {
    const piece = this.#pieces()[0]
    if (piece === undefined) return false
    rmSync(join(this.#folder, piece), { force: true })
    return true
  }

  /** Makes what is missing of it where there is room. Never rejects: a disk that is full is what it is for. */
  async make(): Promise<void> {
    if (this.isWhole) return
    await (this.#filling ??= this.#fillAll()
      .catch(() => undefined)
      .finally(() => {
        this.#filling = undefined
      }))
  }

  async #fillAll(): Promise<void> {
    mkdirSync(this.#folder, { recursive: true, mode: 0o700 })
    const there = new Set(this.#pieces().filter((name) => !name.endsWith('.new')))
    const missing = (PIECES - there.size) * PIECE_BYTES
    if (freeBytes(this.#folder) < missing + SLACK_BYTES) return
    const bytes = randomBytes(PIECE_BYTES) // a file system that compresses would keep no room of zeros
    for (let at = 0; at < PIECES; at++) if (!there.has(String(at))) await this.#write(String(at), bytes)
  }

  async #write(name: string, bytes: Uint8Array): Promise<void> {
    const temporary = join(this.#folder, `${name}.new`)
    try {
      await using file = await open(temporary, 'w', 0o600)
      await file.writeFile(bytes)
      await file.sync()
      await rename(temporary, join(this.#folder, name))
    } catch (error) {
      await rm(temporary, { force: true })
      throw error
    }
  }

  /** Tells whether a disk in this folder has room for somebody who will go on writing, and the daemon has its own. */
  async leavesRoom(folder: string): Promise<boolean> {
    await this.make()
    return this.isWhole && freeBytes(folder) >= BALLAST_BYTES
  }
}
