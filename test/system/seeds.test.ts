import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { existsSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { kernels } from '../../src/store/schema.ts'
import { adoptSeeds, type Seeds } from '../../src/system/seeds.ts'
import { testHost, type TestHost } from '../vm/host.ts'

let bed: TestHost
beforeEach(() => {
  bed = testHost()
  // What the bed needs for its vms is no part of this.
  bed.host.store.$client.run('DELETE FROM kernels')
  bed.host.store.$client.run('DELETE FROM image_names')
  bed.host.store.$client.run('DELETE FROM images')
})
afterEach(async () => {
  await bed[Symbol.asyncDispose]()
})

const config = {
  entrypoint: [],
  cmd: ['/bin/sh'],
  env: [],
  user: '',
  working_dir: '',
  stop_signal: '',
  exposed_ports: [],
}
/** What a build of aerie brings: two builds differ in every byte. */
const build = (name: string, kernelName = `6.12-${name}`): Seeds => {
  const file = (kind: string) => {
    const path = join(bed.host.config.state, `${name}.${kind}`)
    writeFileSync(path, `${kind} of ${name}`)
    return path
  }
  return {
    kernel: {
      key: `kernel ${name}`,
      name: kernelName,
      version: kernelName,
      format: 'vmlinux',
      modules: [],
      source: '',
      image: file('kernel'),
      modulesTar: file('modules'),
    },
    base: { key: `base ${name}`, config, erofs: file('erofs') },
  }
}
const defaultKernel = () => bed.host.kernels.list().find((one) => one.default)?.name
const baseOf = (seeds: Seeds) =>
  bed.host.images.list().find((one) => one.name === 'base')?.size_bytes ===
  `erofs of ${seeds.base?.key?.slice(5)}`.length
/** A kernel that a person imports. */
const importKernel = (name: string, isDefault: boolean) => {
  if (isDefault) bed.host.store.update(kernels).set({ isDefault: false }).run()
  bed.host.store
    .insert(kernels)
    .values({
      digest: `sha256:${'e'.repeat(63)}${isDefault ? 1 : 2}`,
      name,
      version: name,
      format: 'vmlinux',
      modules: [],
      sizeBytes: 1,
      isDefault,
      createdAt: Date.now() + 1000,
    })
    .run()
}

describe('a file that is newer than its state', () => {
  test('brings its kernel and its base as the defaults, and those of before go', async () => {
    await adoptSeeds(bed.host, build('one'))
    expect([defaultKernel(), baseOf(build('one'))]).toEqual(['6.12-one', true])

    await adoptSeeds(bed.host, build('second'))

    expect([defaultKernel(), baseOf(build('second'))]).toEqual(['6.12-second', true])
    expect(bed.host.kernels.list()).toHaveLength(1)
    expect(bed.host.images.list()).toHaveLength(1)
  })

  test('keeps what vms stand on', async () => {
    await adoptSeeds(bed.host, build('one'))
    const [kernel] = bed.host.kernels.list()
    const [image] = bed.host.images.list()
    bed.vm('web', { kernelDigest: kernel?.digest ?? '', imageDigest: image?.digest ?? '' })

    await adoptSeeds(bed.host, build('second'))

    expect(defaultKernel()).toBe('6.12-second')
    expect(bed.host.kernels.list().map((one) => one.name)).toContain('6.12-one')
    expect(bed.host.images.list().map((one) => one.digest)).toContain(image?.digest ?? '')
  })

  test('leaves a default that a person has chosen', async () => {
    await adoptSeeds(bed.host, build('one'))
    importKernel('mine', true)
    await bed.host.images.adopt('base', build('mine').base?.erofs ?? '', { ...config, cmd: ['mine'] })

    await adoptSeeds(bed.host, build('second'))

    expect(defaultKernel()).toBe('mine')
    expect(bed.host.kernels.list().map((one) => one.name)).toContain('6.12-second')
    expect(bed.host.images.get('base').config.cmd).toEqual(['mine'])
  })

  test('takes no name that a person has given', async () => {
    await adoptSeeds(bed.host, build('one'))
    importKernel('fast', false)

    await adoptSeeds(bed.host, build('second', 'fast'))

    expect(bed.host.kernels.resolve('fast').sizeBytes).toBe(1)
    expect(defaultKernel()).toStartWith('fast-')
  })

  test('takes the first seed of a state of before for what it replaces, and deletes nothing there', async () => {
    await adoptSeeds(bed.host, build('one'))
    rmSync(join(bed.host.config.state, 'seeds.json'))
    importKernel('later', false)

    await adoptSeeds(bed.host, build('second'))

    expect(defaultKernel()).toBe('6.12-second')
    expect(bed.host.kernels.list().map((one) => one.name)).toContain('6.12-one')
    expect(baseOf(build('second'))).toBe(true)
  })
})

describe('a file that the state knows', () => {
  test('changes nothing: what a person has deleted stays away', async () => {
    await adoptSeeds(bed.host, build('one'))
    bed.host.images.delete('base')
    bed.host.kernels.delete('6.12-one')

    await adoptSeeds(bed.host, build('one'))

    expect([bed.host.images.list(), bed.host.kernels.list()]).toEqual([[], []])
  })

  test('and one that brings nothing notes nothing', async () => {
    await adoptSeeds(bed.host, {})

    expect(existsSync(join(bed.host.config.state, 'seeds.json'))).toBe(false)
  })
})
