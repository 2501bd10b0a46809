import { closeSync, constants, mkdirSync, openSync, readdirSync, rmSync } from 'node:fs'
import { link, open } from 'node:fs/promises'
import { join } from 'node:path'
import type { Saved } from '../hypervisor/driver.ts'
import { newId } from '../lib/id.ts'

/*
 * What is saved of a machine stands in a folder of its vm's own, `saved-…`, with the files `state` and `memory`. The vm's row names the one
 * that counts: it is written whole and has reached the disk before the row says so, and what no row names is removed.
 */

const FILES = ['state', 'memory'] as const
const PREFIX = 'saved-'

export interface NewSaved extends Saved {
  /** The folder's name, for the row. */
  readonly name: string
}

/** A folder with two new, empty files. @throws ENOSPC */
export const newSaved = (vmFolder: string): NewSaved => {
  const name = `${PREFIX}${newId('s').slice(2)}`
  mkdirSync(join(vmFolder, name), { mode: 0o700 })
  return { name, ...openBoth(join(vmFolder, name), constants.O_RDWR | constants.O_CREAT | constants.O_EXCL) }
}

/** Two new, empty files without a name: they go with their last descriptor, however this process ends. */
export const unnamedSaved = (vmFolder: string): Saved => {
  const { name, ...saved } = newSaved(vmFolder)
  rmSync(join(vmFolder, name), { recursive: true })
  return saved
}

export const openSaved = (vmFolder: string, name: string): Saved => openBoth(join(vmFolder, name), constants.O_RDONLY)

const openBoth = (folder: string, flags: number): Saved => {
  const state = openSync(join(folder, 'state'), flags, 0o600)
  try {
    return { state, memory: openSync(join(folder, 'memory'), flags, 0o600) }
  } catch (error) {
    closeSync(state)
    throw error
  }
}

export const closeSaved = (saved: Saved): void => {
  closeSync(saved.state)
  closeSync(saved.memory)
}

/** The same files in another vm's folder, by their second name: nothing is copied, and each lives as long as one of its names. */
export const linkSaved = async (vmFolder: string, name: string, toFolder: string): Promise<string> => {
  mkdirSync(join(toFolder, name), { mode: 0o700 })
  for (const file of FILES) await link(join(vmFolder, name, file), join(toFolder, name, file))
  return name
}

/** Resolves when a file's content, or a folder's names, have reached the disk. */
export const durable = async (path: string): Promise<void> => {
  await using file = await open(path, 'r')
  await file.sync()
}

/** Makes the names of what was saved last as long as its content does. */
export const keepSaved = async (vmFolder: string, name: string): Promise<void> => {
  await durable(join(vmFolder, name))
  await durable(vmFolder)
}

/** Removes what was saved of a vm, but for the one that its row names. */
export const dropSaved = (vmFolder: string, but: string | null): void => {
  let names: string[]
  try {
    names = readdirSync(vmFolder)
  } catch {
    return
  } // it has no folder yet, or none any more
  for (const name of names)
    if (name.startsWith(PREFIX) && name !== but) rmSync(join(vmFolder, name), { recursive: true, force: true })
}
