import { readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { Value } from '@sinclair/typebox/value'
import { Type, type Static } from '@sinclair/typebox'
import baseErofs from '../../dist/seed/base.erofs' with { type: 'file' }
import kernelConfig from '../../dist/seed/kernel.config' with { type: 'file' }
import kernelImage from '../../dist/seed/kernel' with { type: 'file' }
import kernelModules from '../../dist/seed/modules.tar' with { type: 'file' }
import licensesPath from '../../dist/seed/licenses.seed' with { type: 'file' }
import manifestPath from '../../dist/seed/manifest.seed' with { type: 'file' }
import { ImageConfig } from '../contract/image.ts'
import type { Host } from '../host.ts'
import { Fault } from '../lib/fault.ts'
import { replaceFile } from '../linux/file.ts'

/** What `scripts/build` wrote of a kernel and a base image that it embedded; each absent where it was built without. */
const Seed = Type.Object({
  kernel: Type.Optional(
    Type.Object({
      /** A digest of everything that the seed is made of. */
      key: Type.Optional(Type.String()),
      name: Type.String(),
      version: Type.String(),
      format: Type.Union([Type.Literal('bzimage'), Type.Literal('vmlinux')]),
      modules: Type.Array(Type.String()),
      source: Type.String(),
    }),
  ),
  base: Type.Optional(Type.Object({ key: Type.Optional(Type.String()), config: ImageConfig })),
})

const readSeed = () => Value.Parse(Seed, JSON.parse(readFileSync(manifestPath, 'utf8')))

/**
 * Tells what this executable brings of a kernel and an image; the kernel's configuration is text of its own, empty
 * where none is known.
 */
export const seedContents = () => {
  const { kernel, base } = readSeed()
  return {
    kernel: kernel
      ? {
          version: kernel.version,
          size_bytes: statSync(kernelImage).size,
          modules: kernel.modules.length,
          source: kernel.source,
        }
      : null,
    kernelConfig: readFileSync(kernelConfig, 'utf8'),
    base: base ? { name: 'base', size_bytes: statSync(baseErofs).size } : null,
  }
}

/** Reads the licences of this program and of everything in its file, as text. */
export const licenses = (): string => readFileSync(licensesPath, 'utf8')

/** A kernel or an image that an executable brings, with the files that it is. */
export interface Seeds {
  readonly kernel?: NonNullable<Static<typeof Seed>['kernel']> & { readonly image: string; readonly modulesTar: string }
  readonly base?: NonNullable<Static<typeof Seed>['base']> & { readonly erofs: string }
}

const embeddedSeeds = (): Seeds => {
  const { kernel, base } = readSeed()
  return {
    ...(kernel &&
      statSync(kernelImage).size > 0 && { kernel: { ...kernel, image: kernelImage, modulesTar: kernelModules } }),
    ...(base && statSync(baseErofs).size > 0 && { base: { ...base, erofs: baseErofs } }),
  }
}

/**
 * Which seeds a state folder has had, and what came of them there: by `key` a start sees that nothing is to be done.
 */
const Taken = Type.Partial(
  Type.Object({
    kernel: Type.Object({ key: Type.String(), digest: Type.String() }),
    base: Type.Object({ key: Type.String(), digest: Type.String() }),
  }),
)
type Taken = Static<typeof Taken>

const readTaken = (path: string): Taken | undefined => {
  try {
    return Value.Parse(Taken, JSON.parse(readFileSync(path, 'utf8')))
  } catch {
    return undefined // none yet, or nothing that we wrote: then the oldest is taken for the seed's
  }
}

/**
 * Takes the kernel and the image that the executable brings, each once. An executable with other ones than the last
 * brings them as the default and as `base`, unless a person has chosen another meanwhile; what the last one brought
 * goes when no vm stands on it.
 *
 * Order of effects: the kernel or image with its row → the note of it. A crash between leaves a step that is done again.
 */
export const adoptSeeds = async (
  host: Pick<Host, 'config' | 'images' | 'kernels'>,
  seeds: Seeds = embeddedSeeds(),
): Promise<void> => {
  const path = join(host.config.state, 'seeds.json')
  let taken = readTaken(path)
  const note = (more: Taken) => {
    taken = { ...taken, ...more }
    replaceFile(path, `${JSON.stringify(taken)}\n`)
  }
  const first = taken === undefined
  if (seeds.kernel && taken?.kernel?.key !== keyOf(seeds.kernel, seeds.kernel.version))
    note({ kernel: await takeKernel(host, seeds.kernel, first ? oldestKernel(host) : taken?.kernel?.digest, !first) })
  if (seeds.base && taken?.base?.key !== keyOf(seeds.base, 'base'))
    note({ base: await takeBase(host, seeds.base, first ? oldestImage(host) : taken?.base?.digest, !first) })
}

const keyOf = (seed: { readonly key?: string }, otherwise: string): string => seed.key ?? otherwise

// A state of an older release has no note: there the seeds came before anything else. That is likely and not sure, so
// nothing is deleted.
const oldestKernel = (host: Pick<Host, 'kernels'>): string | undefined =>
  host.kernels.list().sort((a, b) => Date.parse(a.created_at) - Date.parse(b.created_at))[0]?.digest
const oldestImage = (host: Pick<Host, 'images'>): string | undefined =>
  host.images.list().sort((a, b) => Date.parse(a.created_at) - Date.parse(b.created_at))[0]?.digest

const takeKernel = async (
  host: Pick<Host, 'kernels'>,
  seed: NonNullable<Seeds['kernel']>,
  before: string | undefined,
  sure: boolean,
) => {
  const known = host.kernels.list()
  const now = known.find((one) => one.default)
  const own = now === undefined || now.digest === before
  // The name of a kernel that a person has imported stays that one's.
  const nameIsFree = known.every((one) => one.name !== seed.name || one.digest === before)
  const name = nameIsFree ? seed.name : `${seed.name}-${keyOf(seed, seed.version).slice(0, 8)}`
  const { digest } = await host.kernels.adopt({ ...seed, name }, seed.image, seed.modulesTar, own)
  if (sure && before !== undefined && before !== digest && own) unlessUsed(() => host.kernels.delete(before))
  return { key: keyOf(seed, seed.version), digest }
}

const takeBase = async (
  host: Pick<Host, 'images'>,
  seed: NonNullable<Seeds['base']>,
  before: string | undefined,
  sure: boolean,
) => {
  const now = host.images.list().find((one) => one.name === 'base')
  const own = now === undefined || now.digest === before
  if (!own) return { key: keyOf(seed, 'base'), digest: before ?? '' }
  const { digest } = await host.images.adopt('base', seed.erofs, seed.config)
  // One that still has a name has been given it by a person.
  const named = host.images.list().some((one) => one.digest === before && one.name !== null)
  if (sure && before !== undefined && before !== digest && !named) unlessUsed(() => host.images.delete(before))
  return { key: keyOf(seed, 'base'), digest }
}

const unlessUsed = (remove: () => void): void => {
  try {
    remove()
  } catch (error) {
    if (!(error instanceof Fault && (error.kind === 'conflict' || error.kind === 'not_found'))) throw error
  }
}
