import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Fault } from '../../src/lib/fault.ts'

/** Three folders: what is copied, where to, and one that no copy may touch, with a secret in it. */
export interface CopyFolders {
  readonly from: string
  readonly to: string
  readonly outside: string
}

/** Makes folders for one test after the other, all of which `remove` takes away. */
export const copyFolders = (): { next(): CopyFolders; remove(): void } => {
  const home = mkdtempSync(join(tmpdir(), 'aerie-copy-'))
  let count = 0
  return {
    next: () => {
      const base = join(home, String(count++))
      const folders = { from: join(base, 'from'), to: join(base, 'to'), outside: join(base, 'outside') }
      for (const folder of Object.values(folders)) mkdirSync(folder, { recursive: true })
      writeFileSync(join(folders.outside, 'secret'), 'untouched')
      return folders
    },
    remove: () => {
      rmSync(home, { recursive: true, force: true })
    },
  }
}

export const bytesOf = async (stream: ReadableStream<Uint8Array>) =>
  Buffer.from(await new Response(stream).arrayBuffer())

export const streamOf = (...parts: Uint8Array[]): ReadableStream<Uint8Array> =>
  new Blob(parts as Uint8Array<ArrayBuffer>[]).stream()

export const faultOf = async (promise: Promise<unknown>): Promise<Fault> => {
  const error = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  )
  if (!(error instanceof Fault)) throw new Error(`expected a fault, got ${String(error)}`)
  return error
}
