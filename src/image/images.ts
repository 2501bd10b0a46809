import { createHash } from 'node:crypto'
import { closeSync, fsyncSync, openSync, readdirSync, renameSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { asc, eq, like, sql, type SQL } from 'drizzle-orm'
import { type Static, Type } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import { imageEvents, ImageConfig, type Image, type ImageImportQuery } from '../contract/image.ts'
import { requestInvalid } from '../lib/errors.ts'
import { fault, Fault } from '../lib/fault.ts'
import { ensureFolder } from '../lib/folder.ts'
import { newId } from '../lib/id.ts'
import { signalNumber } from '../lib/signal.ts'
import { didYouMean, ID_BEGINNING_MIN, lookUp, MATCHES_MAX, type Use } from '../lib/reference.ts'
import { archiveFault, archiveInvalid, limitsOf, copySynced, sha256File } from './archive.ts'
import { wing } from '../linux/wing.ts'
import { whyUnreadable } from '../store/json-column.ts'
import { imageNames, images, vms } from '../store/schema.ts'
import { immediate, prepared, type Store } from '../store/store.ts'

export const imageNotFound = fault(
  'image_not_found',
  'not_found',
  { image: Type.String(), meant: Type.Optional(Type.Array(Type.String())) },
  (d) => `Cannot find image "${d.image}"`,
  (d) => didYouMean(d.meant ?? [], '`aerie image ls` lists the images; `aerie image import NAME FILE.tar` makes one'),
)
export const imageAmbiguous = fault(
  'image_ambiguous',
  'conflict',
  { image: Type.String(), matches: Type.Array(Type.String()) },
  (d) => `Cannot tell which image "${d.image}" is: it fits ${d.matches.join(', ')}`,
  'Give more of the digest, or a name',
)
export const imageInUse = fault(
  'image_in_use',
  'conflict',
  { image: Type.String(), vms: Type.Array(Type.String()) },
  (d) => `Cannot delete image "${d.image}": vms use it: ${d.vms.join(', ')}`,
  'Delete those vms first',
)

const imageDamaged = fault(
  'image_damaged',
  'conflict',
  { image: Type.String(), reason: Type.String() },
  (d) => `Cannot use image "${d.image}": its record is damaged (${d.reason})`,
  'Import it again under another name',
)

/** Lets an image be used whose configuration can be read. @throws `image_damaged` */
const whole = (row: ImageRow): ImageRow => {
  const reason = whyUnreadable(row.config)
  if (reason !== undefined) throw imageDamaged({ image: row.digest, reason })
  return row
}

type ImageRow = typeof images.$inferSelect
/** An image, and the name that led to it; null where a digest did. */
interface Found {
  readonly row: ImageRow
  readonly name: string | null
}
const selectByName = prepared((store) =>
  store
    .select()
    .from(imageNames)
    .innerJoin(images, eq(images.digest, imageNames.digest))
    .where(eq(imageNames.name, sql.placeholder('name')))
    .prepare(),
)
const selectByDigest = prepared((store) =>
  store
    .select()
    .from(images)
    .where(eq(images.digest, sql.placeholder('digest')))
    .prepare(),
)

const view = (row: ImageRow, name: string | null): Image => ({
  name,
  digest: row.digest,
  status: whyUnreadable(row.config) === undefined ? row.status : 'failed',
  format: row.format,
  size_bytes: row.sizeBytes,
  config: row.config,
  created_at: new Date(row.createdAt).toISOString(),
})

/** Keys in one order, so that one configuration has one digest. */
const canonical = (value: unknown): string =>
  JSON.stringify(value, (_, at: unknown) =>
    typeof at === 'object' && at !== null && !Array.isArray(at)
      ? Object.fromEntries(Object.entries(at).sort(([a], [b]) => (a < b ? -1 : 1)))
      : at,
  )

const words = (text: string | undefined, field: string): string[] | undefined => {
  if (text === undefined) return undefined
  try {
    const list: unknown = JSON.parse(text)
    if (Array.isArray(list) && list.every((word) => typeof word === 'string')) return list
  } catch {
    /* one sentence for both */
  }
  throw requestInvalid({ field, reason: 'it is no JSON array of strings' })
}

/** @throws `request_invalid` where one is no KEY=value */
const pairs = (list: string[] | undefined): string[] | undefined => {
  const wrong = list?.find((pair) => !/^[^=\0]+=[^\0]*$/.test(pair))
  if (wrong !== undefined)
    throw requestInvalid({ field: 'env', reason: `${JSON.stringify(wrong.slice(0, 100))} is no KEY=value` })
  return list
}

const Said = Type.Union([Type.String(), Type.Null()])
/** What `wing pack image` answers; null is what the archive does not say. */
const Packed = Type.Object({
  format: Type.String(),
  config: Type.Composite([
    Type.Omit(ImageConfig, ['user', 'working_dir', 'stop_signal']),
    Type.Object({ user: Said, working_dir: Said, stop_signal: Said }),
  ]),
  erofs_sha256: Type.String({ pattern: '^[0-9a-f]{64}$' }),
  bytes: Type.Integer(),
})

/**
 * The images of this host: an EROFS by its digest, shared by every vm, and a configuration. An image's identity is the
 * digest of both, so the same tree with another entrypoint is another image over one file.
 *
 * Order of effects of an import: temporary file → EROFS written and synced → renamed to its digest → rows in one transaction. A crash
 * leaves a temporary file or an EROFS without a row, and `sweep` removes both.
 */
export class Images {
  readonly #store: Store
  readonly #folder: string

  constructor(store: Store, state: string) {
    this.#store = store
    this.#folder = join(state, 'images')
    ensureFolder(this.#folder, 0o711)
  }

  pathOf(row: { readonly erofsDigest: string }): string {
    return join(this.#folder, `${row.erofsDigest}.erofs`)
  }

  /** @throws `archive_*`, `request_invalid`, `disk_exhausted` */
  async import(query: ImageImportQuery, archive: ReadableStream<Uint8Array>, signal: AbortSignal): Promise<Image> {
    const asked = {
      entrypoint: words(query.entrypoint, 'entrypoint'),
      cmd: words(query.cmd, 'cmd'),
      env: pairs(words(query.env, 'env')),
      user: query.user,
      working_dir: query.workdir,
    }
    const temporary = join(this.#folder, `.${newId('tmp')}`)
    const scratch = `${temporary}.scratch`
    try {
      const out = openSync(temporary, 'wx+', 0o644)
      const layers = openSync(scratch, 'wx+', 0o600)
      let packed: Static<typeof Packed>
      try {
        packed = Value.Parse(
          Packed,
          await wing(['pack', 'image', '--out-fd', '4', '--scratch-fd', '5', ...limitsOf(query)], {
            stdin: archive,
            fds: [
              [out, 4],
              [layers, 5],
            ],
            signal,
          }),
        )
        fsyncSync(out)
      } finally {
        closeSync(out)
        closeSync(layers)
      }
      const own = packed.config
      const config: ImageConfig = {
        stop_signal: knownSignal(own.stop_signal ?? ''),
        env: mergeEnv(own.env, asked.env ?? []),
        exposed_ports: own.exposed_ports,
        user: asked.user ?? own.user ?? '',
        working_dir: asked.working_dir ?? own.working_dir ?? '',
        // as with `docker run --entrypoint`: a new entrypoint does not get the old command
        entrypoint: asked.entrypoint ?? own.entrypoint,
        cmd: asked.cmd ?? (asked.entrypoint ? [] : own.cmd),
      }
      renameSync(temporary, this.pathOf({ erofsDigest: packed.erofs_sha256 }))
      return this.#record(query.name, packed.format, packed.erofs_sha256, packed.bytes, config)
    } catch (error) {
      throw error instanceof Fault ? error : archiveFault(error)
    } finally {
      rmSync(temporary, { force: true })
      rmSync(scratch, { force: true })
    }
  }

  /** Takes an EROFS that is already made (the `base` image inside a released executable). */
  async adopt(name: string, erofs: string, config: ImageConfig): Promise<Image> {
    const temporary = join(this.#folder, `.${newId('tmp')}`)
    await copySynced(erofs, temporary)
    const digest = await sha256File(temporary)
    renameSync(temporary, this.pathOf({ erofsDigest: digest }))
    return this.#record(name, 'rootfs', digest, statSync(erofs).size, config)
  }

  #record(name: string, format: string, erofsDigest: string, sizeBytes: number, config: ImageConfig): Image {
    const digest = `sha256:${createHash('sha256')
      .update(canonical({ config, erofs: erofsDigest }))
      .digest('hex')}`
    immediate(this.#store, (tx) => {
      tx.insert(images)
        .values({ digest, format, erofsDigest, sizeBytes, config, status: 'ready', createdAt: Date.now() })
        .onConflictDoNothing()
        .run()
      tx.insert(imageNames)
        .values({ name, digest })
        .onConflictDoUpdate({ target: imageNames.name, set: { digest } })
        .run()
      tx.events.append(tx, imageEvents, { type: 'IMAGE_IMPORTED', name, message: digest, data: { digest } })
    })
    return this.get(name)
  }

  list(): Image[] {
    return this.#store
      .select()
      .from(images)
      .leftJoin(imageNames, eq(imageNames.digest, images.digest))
      .orderBy(asc(imageNames.name))
      .all()
      .map((row) => view(row.images, row.image_names?.name ?? null))
  }

  /** @throws `image_not_found`, `image_ambiguous` */
  get(ref: string): Image {
    const { row, name } = this.find(ref, 'read')
    return view(row, name ?? this.#namesOf(row.digest)[0] ?? null)
  }

  /**
   * Finds the image that a person means, by name, digest or the beginning of a digest. @throws `image_not_found`,
   * `image_ambiguous`, `image_damaged`
   */
  resolve(ref: string, tx = this.#store): ImageRow {
    return whole(this.find(ref, 'read', tx).row)
  }

  /**
   * Finds an image with the name by which it was found; null where that was a digest. @throws `image_not_found`,
   * `image_ambiguous`
   */
  find(ref: string, use: Use, tx = this.#store): Found {
    const named = (name: string): Found[] => {
      const found = selectByName(tx).get({ name })
      return found ? [{ row: found.images, name }] : []
    }
    const hex = ref.startsWith('sha256:') ? ref.slice('sha256:'.length) : ref
    const digests = (where: SQL): Found[] =>
      tx
        .select()
        .from(images)
        .where(where)
        .limit(MATCHES_MAX)
        .all()
        .map((row) => ({ row, name: null }))
    return lookUp(
      ref,
      {
        exact: [
          () => (/^[0-9a-f]{64}$/.test(hex) ? digests(eq(images.digest, `sha256:${hex}`)) : []),
          named,
          () => (ref.endsWith(':latest') ? named(ref.slice(0, -':latest'.length)) : []),
        ],
        beginning: () =>
          new RegExp(`^[0-9a-f]{${ID_BEGINNING_MIN},64}$`).test(hex)
            ? digests(like(images.digest, `sha256:${hex}%`))
            : [],
        like: () =>
          tx
            .select()
            .from(imageNames)
            .where(sql`substr(${imageNames.name}, 1, ${ref.length}) = ${ref}`)
            .limit(MATCHES_MAX)
            .all()
            .map((row) => row.name),
        nameOf: (found) => found.name ?? found.row.digest,
        notFound: (image, meant) => imageNotFound({ image, meant: [...meant] }),
        ambiguous: (image, matches) => imageAmbiguous({ image, matches: matches.map((digest) => digest.slice(0, 19)) }),
      },
      use,
    )
  }

  #namesOf(digest: string, tx = this.#store): string[] {
    return tx
      .select()
      .from(imageNames)
      .where(eq(imageNames.digest, digest))
      .all()
      .map((row) => row.name)
  }

  /** Reads a row by the digest that a vm keeps. @throws `image_damaged` */
  byDigest(digest: string): ImageRow {
    const row = selectByDigest(this.#store).get({ digest })
    if (!row) throw imageNotFound({ image: digest })
    return whole(row)
  }

  /**
   * Deletes one name, and the image with its last one; a digest, written whole, deletes the image with all its names.
   *
   * @throws `image_not_found`, `image_ambiguous`, `image_in_use`
   */
  delete(ref: string): void {
    immediate(this.#store, (tx) => {
      const { row, name } = this.find(ref, 'change', tx)
      const last = name === null || this.#namesOf(row.digest, tx).length <= 1
      if (last) {
        const users = tx
          .select({ name: vms.name })
          .from(vms)
          .where(eq(vms.imageDigest, row.digest))
          .all()
          .map((r) => r.name)
        if (users.length > 0) throw imageInUse({ image: ref, vms: users })
        tx.delete(images).where(eq(images.digest, row.digest)).run()
      } else tx.delete(imageNames).where(eq(imageNames.name, name)).run()
      tx.events.append(tx, imageEvents, {
        type: 'IMAGE_DELETED',
        name: name ?? ref,
        message: row.digest,
        data: { digest: row.digest },
      })
    })
    this.sweep()
  }

  /** Removes files that no row owns; imports that run now are known by their age. */
  sweep(olderThanMs = 24 * 3_600_000): void {
    const known = new Set(
      this.#store
        .select({ erofs: images.erofsDigest })
        .from(images)
        .all()
        .map((row) => `${row.erofs}.erofs`),
    )
    for (const name of readdirSync(this.#folder)) {
      const path = join(this.#folder, name)
      const stale = name.startsWith('.')
        ? Date.now() - statSync(path, { throwIfNoEntry: false })!.mtimeMs > olderThanMs
        : !known.has(name)
      if (stale) rmSync(path, { force: true })
    }
  }

  /** Tells whether the file of an image is there and holds what its name says. */
  async verify(row: ImageRow): Promise<boolean> {
    return (await sha256File(this.pathOf(row))) === row.erofsDigest
  }
}

/** @throws `archive_invalid` where a vm of the image could not be stopped as the image wants it */
const knownSignal = (name: string): string => {
  if (name === '' || signalNumber(name) !== undefined) return name
  const reason = `Cannot use the image's StopSignal ${JSON.stringify(name.slice(0, 100))}: signal(7) has no such signal`
  throw archiveInvalid({ reason, problem: 'stop_signal_unknown' })
}

const mergeEnv = (base: readonly string[], over: readonly string[]): string[] => {
  const merged = new Map<string, string>()
  for (const pair of [...base, ...over]) merged.set(pair.split('=', 1)[0] ?? '', pair)
  return [...merged.values()]
}
