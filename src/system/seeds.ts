import { readFileSync, statSync } from 'node:fs'
import { Value } from '@sinclair/typebox/value'
import { Type } from '@sinclair/typebox'
import baseErofs from '../../dist/seed/base.erofs' with { type: 'file' }
import kernelConfig from '../../dist/seed/kernel.config' with { type: 'file' }
import kernelImage from '../../dist/seed/kernel' with { type: 'file' }
import kernelModules from '../../dist/seed/modules.tar' with { type: 'file' }
import licensesPath from '../../dist/seed/licenses.seed' with { type: 'file' }
import manifestPath from '../../dist/seed/manifest.seed' with { type: 'file' }
import { ImageConfig } from '../contract/image.ts'
import type { Host } from '../host.ts'

/** What `scripts/build` wrote of a kernel and a base image that it embedded; each absent where it was built without. */
const Seed = Type.Object({
  kernel: Type.Optional(
    Type.Object({
      name: Type.String(),
      version: Type.String(),
      format: Type.Union([Type.Literal('bzimage'), Type.Literal('vmlinux')]),
      modules: Type.Array(Type.String()),
      source: Type.String(),
    }),
  ),
  base: Type.Optional(Type.Object({ config: ImageConfig })),
})

const readSeed = () => Value.Parse(Seed, JSON.parse(readFileSync(manifestPath, 'utf8')))

/** What this executable brings of a kernel and an image; the kernel's configuration is text of its own, empty where none is known. */
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

/** The licences of this program and of everything in its file, as text. */
export const licenses = (): string => readFileSync(licensesPath, 'utf8')

/** A released executable brings a kernel and an image: on a fresh state folder they are taken once, and a person may delete or replace them. */
export const adoptSeeds = async (host: Host): Promise<void> => {
  const seed = readSeed()
  if (seed.kernel && host.kernels.list().length === 0 && statSync(kernelImage).size > 0) {
    await host.kernels.adopt(seed.kernel, kernelImage, kernelModules)
  }
  if (seed.base && host.images.list().length === 0 && statSync(baseErofs).size > 0) {
    await host.images.adopt('base', baseErofs, seed.base.config)
  }
}
