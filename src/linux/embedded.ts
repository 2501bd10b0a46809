import { readFileSync } from 'node:fs'
import kestrelPath from '../../dist/native/kestrel' with { type: 'file' }
import talonPath from '../../dist/native/talon' with { type: 'file' }
import wingPath from '../../dist/native/wing' with { type: 'file' }
import { memfdSealed } from './memfd.ts'

const PATHS = { kestrel: kestrelPath, talon: talonPath, wing: wingPath }

/**
 * A native program of this build: a sealed memory file that stays open for the life of this process, and the SHA-256 of
 * its bytes.
 */
export interface Embedded {
  readonly fd: number
  /** 64 hex digits. */
  readonly digest: string
}

const opened = new Map<string, Embedded>()

/**
 * Opens a program that is embedded in this executable, made ready at its first use. It has no path that anybody could
 * replace between two uses, and needs no folder that allows execution; start it as `/proc/self/fd/N`.
 */
export const embedded = (name: keyof typeof PATHS): Embedded => {
  const known = opened.get(name)
  if (known) return known
  const bytes = readFileSync(PATHS[name])
  const program = {
    fd: memfdSealed(name, bytes, { executable: true }),
    digest: new Bun.CryptoHasher('sha256').update(bytes).digest('hex'),
  }
  opened.set(name, program)
  return program
}
