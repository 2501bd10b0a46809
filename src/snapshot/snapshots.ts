import {
  closeSync,
  constants,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
} from 'node:fs'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { eq } from 'drizzle-orm'
import type { Saved } from '../hypervisor/driver.ts'
import { newId } from '../lib/id.ts'
import { snapshots } from '../store/schema.ts'
import { isReferenced, type Store } from '../store/store.ts'

/*
 * A *snapshot* is what is saved of a machine at one moment: a row, and a folder of its id below `snapshots/` with the
 * files `state` and `memory`. It belongs to no vm: whoever goes on from it refers to it (a vm that sleeps, any number
 * of clones that sleep), and it goes with the last reference.
 *
 *   folder with two empty files → the driver fills them → both, and their names, have reached the disk → one transaction writes the row and
 *   the first reference to it
 *
 * So a row has whole files always. A folder without a row is what a crash left, and `sweep` removes it.
 */

const PREFIX = 'snap_'
/** What a release of before called the folders, in that of each vm. */
const OLD_PREFIX = 'saved-'

/** Two files that a driver writes, under the id that their snapshot will have. */
export interface NewSnapshot extends Saved {
  readonly id: string
}

/** What was saved of machines: rows of the store, and a folder for each. */
export class Snapshots {
  readonly #store: Store
  readonly #folder: string
  readonly #vms: string

  constructor(store: Store, state: string) {
    this.#store = store
    this.#folder = join(state, 'snapshots')
    this.#vms = join(state, 'vms')
  }

  #folderOf(id: string): string {
    return join(this.#folder, id)
  }

  /** Makes the folder of a new snapshot with two empty files, the caller's to close. @throws ENOSPC */
  create(): NewSnapshot {
    const id = newId('snap')
    mkdirSync(this.#folderOf(id), { recursive: true, mode: 0o700 })
    return { id, ...openBoth(this.#folderOf(id), constants.O_RDWR | constants.O_CREAT | constants.O_EXCL) }
  }

  /** Makes two empty files without a name: they go with their last descriptor, however this process ends. */
  unnamed(): Saved {
    const { id, ...saved } = this.create()
    this.discard(id)
    return saved
  }

  /** Makes the names of a snapshot's files last as long as their content does; call it before `record`. */
  async keep(id: string): Promise<void> {
    await durable(this.#folderOf(id))
    await durable(this.#folder)
  }

  /** Writes the row of a snapshot that is whole on disk; call it in the transaction of the first reference to it. */
  record(tx: Store, id: string, sourceUid: string): void {
    tx.insert(snapshots).values({ id, sourceUid, createdAt: Date.now() }).run()
  }

  /** Opens both files of a snapshot, the caller's to close. */
  open(id: string): Saved {
    return openBoth(this.#folderOf(id), constants.O_RDONLY)
  }

  /** Tells when the last byte of a snapshot was written, in milliseconds since 1970. @throws ENOENT */
  writtenAt(id: string): number {
    return Math.max(...['state', 'memory'].map((name) => statSync(join(this.#folderOf(id), name)).mtimeMs))
  }

  /** Removes the files of a snapshot that has no row. */
  discard(id: string): void {
    rmSync(this.#folderOf(id), { recursive: true, force: true })
  }

  /**
   * Deletes the row of a snapshot unless somebody still refers to it, which the database tells; call it in the
   * transaction that takes a reference away. What it returns removes the files; call that when the transaction has
   * reached the disk.
   */
  release(tx: Store, id: string | null): () => void {
    if (id === null || !this.#forget(tx, id)) return () => undefined
    return () => {
      this.discard(id)
    }
  }

  #forget(tx: Store, id: string): boolean {
    try {
      tx.delete(snapshots).where(eq(snapshots.id, id)).run()
      return true
    } catch (error) {
      if (isReferenced(error)) return false
      throw error
    }
  }

  /**
   * Moves what a release of before kept in the folders of vms to where it belongs; a crash in between is gone on with
   * at the next start.
   */
  takeOver(): void {
    for (const { id } of this.#store.select().from(snapshots).all()) {
      if (existsSync(this.#folderOf(id))) continue
      const old = names(this.#vms)
        .map((uid) => join(this.#vms, uid, `${OLD_PREFIX}${id.slice(PREFIX.length)}`))
        .find((folder) => existsSync(folder))
      if (old === undefined) continue
      mkdirSync(this.#folder, { recursive: true, mode: 0o700 })
      renameSync(old, this.#folderOf(id))
    }
    if (!existsSync(this.#folder)) return
    const folder = openSync(this.#folder, constants.O_RDONLY)
    fsyncSync(folder) // the new names last before the old ones go
    closeSync(folder)
    for (const uid of names(this.#vms))
      for (const name of names(join(this.#vms, uid)))
        if (name.startsWith(OLD_PREFIX)) rmSync(join(this.#vms, uid, name), { recursive: true, force: true })
  }

  /** Removes rows that nobody refers to, and folders without a row. */
  sweep(): void {
    const kept = new Set<string>()
    for (const { id } of this.#store.select().from(snapshots).all()) if (!this.#forget(this.#store, id)) kept.add(id)
    for (const name of names(this.#folder)) if (!kept.has(name)) this.discard(name)
  }
}

const names = (folder: string): string[] => {
  try {
    return readdirSync(folder)
  } catch {
    return [] // it is not there yet, or is no folder
  }
}

const openBoth = (folder: string, flags: number): Saved => {
  const state = openSync(join(folder, 'state'), flags, 0o600)
  try {
    return { state, memory: openSync(join(folder, 'memory'), flags, 0o600) }
  } catch (error) {
    closeSync(state)
    throw error
  }
}

/** Closes both files of what was saved. */
export const closeSaved = (saved: Saved): void => {
  closeSync(saved.state)
  closeSync(saved.memory)
}

/** Resolves when a file's content, or a folder's names, have reached the disk. */
export const durable = async (path: string): Promise<void> => {
  await using file = await open(path, 'r')
  await file.sync()
}
