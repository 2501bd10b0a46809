import { createHash } from 'node:crypto'
import {
  closeSync,
  existsSync,
  fchmodSync,
  fsyncSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
} from 'node:fs'
import { join } from 'node:path'
import { and, asc, desc, eq, like, ne, sql, type SQL } from 'drizzle-orm'
import { type Static, Type } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import { kernelEvents, type Kernel } from '../contract/kernel.ts'
import { archiveFault, copySynced, limitsOf, sha256File } from '../image/archive.ts'
import { fault, Fault } from '../lib/fault.ts'
import { ensureFolder } from '../lib/folder.ts'
import { newId } from '../lib/id.ts'
import { didYouMean, ID_BEGINNING_MIN, lookUp, MATCHES_MAX, type Use } from '../lib/reference.ts'
import { embedded } from '../linux/embedded.ts'
import { wing } from '../linux/wing.ts'
import { kernels, vms } from '../store/schema.ts'
import { immediate, prepared, type Store } from '../store/store.ts'

export const kernelNotFound = fault(
  'kernel_not_found',
  'not_found',
  { kernel: Type.String(), meant: Type.Optional(Type.Array(Type.String())) },
  (d) => (d.kernel === '' ? 'Cannot find a guest kernel: this host has none' : `Cannot find kernel "${d.kernel}"`),
  (d) =>
    didYouMean(
      d.meant ?? [],
      '`aerie kernel import FILE.deb` takes one, e.g. of `apt-get download linux-image-cloud-amd64`',
    ),
)
export const kernelAmbiguous = fault(
  'kernel_ambiguous',
  'conflict',
  { kernel: Type.String(), matches: Type.Array(Type.String()) },
  (d) => `Cannot tell which kernel "${d.kernel}" is: it fits ${d.matches.join(', ')}`,
  'Give more of the digest, or a name',
)
export const kernelInUse = fault(
  'kernel_in_use',
  'conflict',
  { kernel: Type.String(), vms: Type.Array(Type.String()) },
  (d) => `Cannot delete kernel "${d.kernel}": vms use it: ${d.vms.join(', ')}`,
  'Delete those vms first',
)

type KernelRow = typeof kernels.$inferSelect

/** The time for one file of the cache, ms; it takes a second or two. */
const BUILD_MS = 60_000

const selectDefault = prepared((store) =>
  store.select().from(kernels).orderBy(desc(kernels.isDefault), desc(kernels.createdAt)).limit(1).prepare(),
)
const selectByDigest = prepared((store) =>
  store
    .select()
    .from(kernels)
    .where(eq(kernels.digest, sql.placeholder('digest')))
    .prepare(),
)

const view = (row: KernelRow): Kernel => ({
  digest: row.digest,
  name: row.name,
  version: row.version,
  format: row.format,
  modules: row.modules,
  size_bytes: row.sizeBytes,
  default: row.isDefault,
  created_at: new Date(row.createdAt).toISOString(),
})

/** What `wing pack kernel` answers. */
const Packed = Type.Object({
  version: Type.String(),
  format: Type.Union([Type.Literal('bzimage'), Type.Literal('vmlinux')]),
  sha256: Type.String({ pattern: '^[0-9a-f]{64}$' }),
  modules: Type.Array(Type.Object({ name: Type.String() })),
})

/**
 * The guest kernels of this host: a boot image and the modules that its initramfs needs, by the digest of both.
 *
 * The initramfs is ours (the agent and those modules), made once for a kernel and an agent and kept in the cache, as is the image unpacked for
 * VMMs that take no bzImage: losing them costs a rebuild.
 * Order of effects of an import: temporary folder → files written and synced → renamed to the digest → row. `sweep` removes the rest.
 */
export class Kernels {
  readonly #store: Store
  readonly #folder: string
  readonly #cache: string
  readonly #building = new Map<string, Promise<string>>()

  constructor(store: Store, state: string) {
    this.#store = store
    this.#folder = join(state, 'kernels')
    this.#cache = join(state, 'cache', 'initramfs')
    for (const folder of [this.#folder, join(state, 'cache'), this.#cache]) ensureFolder(folder, 0o711)
  }

  imageOf(digest: string): string {
    return join(this.#folder, digest.slice('sha256:'.length), 'kernel')
  }

  /** @throws `archive_*`, `kernel_missing`, `kernel_module_missing`, `disk_exhausted` */
  async import(
    query: { readonly name?: string; readonly default?: boolean; readonly max_size_mb?: number },
    archive: ReadableStream<Uint8Array>,
    signal: AbortSignal,
  ): Promise<Kernel> {
    const temporary = join(this.#folder, `.${newId('tmp')}`)
    ensureFolder(temporary, 0o711)
    try {
      const image = openSync(join(temporary, 'kernel'), 'wx+', 0o644)
      const modules = openSync(join(temporary, 'modules.tar'), 'wx+', 0o644)
      let packed: Static<typeof Packed>
      try {
        packed = Value.Parse(
          Packed,
          await wing(['pack', 'kernel', '--out-fd', '4', '--modules-fd', '5', ...limitsOf(query)], {
            stdin: archive,
            fds: [
              [image, 4],
              [modules, 5],
            ],
            signal,
          }),
        )
        fchmodSync(image, 0o644) // a VMM of another user opens it by its path
        fsyncSync(image)
        fsyncSync(modules)
      } finally {
        closeSync(image)
        closeSync(modules)
      }
      return await this.#record(
        temporary,
        packed.version,
        packed.format,
        packed.sha256,
        packed.modules.map((m) => m.name),
        query,
      )
    } catch (error) {
      throw error instanceof Fault ? error : archiveFault(error)
    } finally {
      rmSync(temporary, { recursive: true, force: true })
    }
  }

  /** Takes a kernel that is already unpacked (the one inside a released executable). */
  async adopt(
    kernel: {
      readonly name: string
      readonly version: string
      readonly format: 'bzimage' | 'vmlinux'
      readonly modules: readonly string[]
    },
    image: string,
    modules: string,
    isDefault: boolean,
  ): Promise<Kernel> {
    const temporary = join(this.#folder, `.${newId('tmp')}`)
    ensureFolder(temporary, 0o711)
    try {
      await copySynced(image, join(temporary, 'kernel'))
      await copySynced(modules, join(temporary, 'modules.tar'))
      const sha256 = await sha256File(image)
      return await this.#record(temporary, kernel.version, kernel.format, sha256, [...kernel.modules], {
        name: kernel.name,
        default: isDefault,
      })
    } finally {
      rmSync(temporary, { recursive: true, force: true })
    }
  }

  async #record(
    temporary: string,
    version: string,
    format: 'bzimage' | 'vmlinux',
    sha256: string,
    modules: string[],
    query: { readonly name?: string; readonly default?: boolean; readonly max_size_mb?: number },
  ): Promise<Kernel> {
    const modulesDigest = await sha256File(join(temporary, 'modules.tar'))
    const hex = createHash('sha256')
      .update(JSON.stringify({ image: sha256, modules: modulesDigest }))
      .digest('hex')
    const digest = `sha256:${hex}`
    const final = join(this.#folder, hex)
    if (!existsSync(final)) renameSync(temporary, final)
    const name = query.name ?? version
    immediate(this.#store, (tx) => {
      const first = tx.select().from(kernels).limit(1).get() === undefined
      if (query.default === true) tx.update(kernels).set({ isDefault: false }).run()
      // a name moves to the newest; the kernel that had it is still there by its digest, for the vms that use it
      tx.update(kernels)
        .set({ name: sql`${kernels.digest}` })
        .where(and(eq(kernels.name, name), ne(kernels.digest, digest)))
        .run()
      tx.insert(kernels)
        .values({
          digest,
          name,
          version,
          format,
          modules,
          createdAt: Date.now(),
          isDefault: query.default === true || first,
          sizeBytes: statSync(join(final, 'kernel')).size + statSync(join(final, 'modules.tar')).size,
        })
        .onConflictDoUpdate({
          target: kernels.digest,
          set: { name, ...(query.default === true ? { isDefault: true } : {}) },
        })
        .run()
      tx.events.append(tx, kernelEvents, { type: 'KERNEL_IMPORTED', name, message: digest, data: { digest } })
    })
    return view(this.byDigest(digest))
  }

  list(): Kernel[] {
    return this.#store.select().from(kernels).orderBy(desc(kernels.isDefault), asc(kernels.name)).all().map(view)
  }

  /**
   * Finds the kernel that a person means, by digest, name, version or the beginning of a digest; the default where
   * nothing is named.
   *
   * @throws `kernel_not_found`, `kernel_ambiguous`
   */
  resolve(ref: string | undefined, use: Use = 'read', tx = this.#store): KernelRow {
    if (ref === undefined) {
      const row = selectDefault(tx).get()
      if (!row) throw kernelNotFound({ kernel: '' })
      return row
    }
    const select = (where: SQL) => tx.select().from(kernels).where(where).limit(MATCHES_MAX).all()
    const hex = ref.startsWith('sha256:') ? ref.slice('sha256:'.length) : ref
    return lookUp(
      ref,
      {
        exact: [
          () => select(eq(kernels.digest, `sha256:${hex}`)),
          () => select(eq(kernels.name, ref)),
          () => select(eq(kernels.version, ref)),
        ],
        beginning: () =>
          new RegExp(`^[0-9a-f]{${ID_BEGINNING_MIN},64}$`).test(hex)
            ? select(like(kernels.digest, `sha256:${hex}%`))
            : [],
        like: () => select(sql`substr(${kernels.name}, 1, ${ref.length}) = ${ref}`).map((row) => row.name),
        nameOf: (row) => row.name,
        notFound: (kernel, meant) => kernelNotFound({ kernel, meant: [...meant] }),
        ambiguous: (kernel, matches) => kernelAmbiguous({ kernel, matches: [...matches] }),
      },
      use,
    )
  }

  /** @throws `kernel_not_found`, `kernel_ambiguous` */
  get(ref: string): Kernel {
    return view(this.resolve(ref))
  }

  byDigest(digest: string): KernelRow {
    const row = selectByDigest(this.#store).get({ digest })
    if (!row) throw kernelNotFound({ kernel: digest })
    return row
  }

  /** @throws `kernel_not_found`, `kernel_ambiguous`, `kernel_in_use` */
  delete(ref: string): void {
    immediate(this.#store, (tx) => {
      const row = this.resolve(ref, 'change', tx)
      const users = tx
        .select({ name: vms.name })
        .from(vms)
        .where(eq(vms.kernelDigest, row.digest))
        .all()
        .map((r) => r.name)
      if (users.length > 0) throw kernelInUse({ kernel: row.name, vms: users })
      tx.delete(kernels).where(eq(kernels.digest, row.digest)).run()
      tx.events.append(tx, kernelEvents, {
        type: 'KERNEL_DELETED',
        name: row.name,
        message: row.digest,
        data: { digest: row.digest },
      })
    })
    this.sweep()
  }

  /** Gives the initramfs for a kernel, made at its first use. */
  initramfs(digest: string): Promise<string> {
    const agent = embedded('kestrel')
    return this.#once(join(this.#cache, `${digest.slice(7, 39)}-${agent.digest.slice(0, 16)}.cpio`), async (out) => {
      const modules = openSync(join(this.#folder, digest.slice(7), 'modules.tar'), 'r')
      try {
        await wing(['pack', 'initramfs', '--kestrel-fd', '5', '--modules-fd', '6', '--out-fd', '4'], {
          fds: [
            [out, 4],
            [agent.fd, 5],
            [modules, 6],
          ],
          signal: AbortSignal.timeout(BUILD_MS),
        })
      } finally {
        closeSync(modules)
      }
    })
  }

  /** Gives the kernel as an ELF, for a VMM that boots nothing else. @throws `archive_invalid` */
  async vmlinux(digest: string): Promise<string> {
    const image = this.imageOf(digest)
    if (this.byDigest(digest).format === 'vmlinux') return image
    return await this.#once(join(this.#cache, `${digest.slice(7, 39)}.vmlinux`), async (out) => {
      await wing(['pack', 'vmlinux', '--out-fd', '4'], {
        stdin: Bun.file(image).stream(),
        fds: [[out, 4]],
        signal: AbortSignal.timeout(BUILD_MS),
      })
    }).catch((error: unknown) => {
      throw archiveFault(error)
    })
  }

  /** Gives a file of the cache, built at its first use, by any number of askers at once only once. */
  #once(path: string, build: (out: number) => Promise<void>): Promise<string> {
    if (existsSync(path)) return Promise.resolve(path)
    const running = this.#building.get(path)
    if (running) return running
    const building = makeFile(path, build).finally(() => {
      this.#building.delete(path)
    })
    this.#building.set(path, building)
    return building
  }

  sweep(): void {
    const known = new Set(
      this.#store
        .select({ digest: kernels.digest })
        .from(kernels)
        .all()
        .map((row) => row.digest.slice(7)),
    )
    for (const name of readdirSync(this.#folder)) {
      const path = join(this.#folder, name)
      if (
        name.startsWith('.')
          ? Date.now() - (statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0) > 3_600_000
          : !known.has(name)
      ) {
        rmSync(path, { recursive: true, force: true })
      }
    }
  }
}

const makeFile = async (path: string, build: (out: number) => Promise<void>): Promise<string> => {
  const temporary = `${path}.${newId('tmp')}`
  const out = openSync(temporary, 'wx+', 0o644)
  try {
    await build(out)
    fchmodSync(out, 0o644)
    renameSync(temporary, path)
    return path
  } catch (error) {
    rmSync(temporary, { force: true })
    throw error
  } finally {
    closeSync(out)
  }
}
