import { describe, expect, test } from 'bun:test'
import { readdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import libraryPath from '../../dist/native/libaerie_host.so' with { type: 'file' }
import { host, openHostLibrary } from '../../src/linux/host-library.ts'
import { KVM_PROBE_FIELDS } from '../../src/linux/kvm.ts'
import { openFds, temporaryFolder } from './support.ts'

/** Size of a structure, or offset of `Name.field`, by the Rust side's own account. */
const layout = (name: string): number => {
  const bytes = Buffer.from(name)
  return Number(host().aerie_layout(bytes, bytes.length))
}
const snake = (camel: string) => camel.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)

describe('the host library', () => {
  test('structures have the layout that this side reads', () => {
    KVM_PROBE_FIELDS.forEach((field, index) => {
      expect([field, layout(`KvmProbe.${snake(field)}`)]).toEqual([field, index * 4])
    })
    expect(layout('KvmProbe')).toBe(KVM_PROBE_FIELDS.length * 4)
    const others = { ExitStatus: ['known', 'code', 'status'], Peer: ['pid', 'uid', 'gid'] }
    for (const [name, fields] of Object.entries(others)) {
      fields.forEach((field, index) => {
        expect([field, layout(`${name}.${field}`)]).toEqual([field, index * 4])
      })
      expect(layout(name)).toBe(fields.length * 4)
    }
    const space = ['bytes_total', 'bytes_free', 'bytes_available', 'magic']
    space.forEach((field, index) => {
      expect([field, layout(`Space.${field}`)]).toEqual([field, index * 8])
    })
    expect(layout('Space')).toBe(space.length * 8)
  })

  test('a name that is no structure is ENOENT', () => {
    expect([layout('KvmProbe.'), layout(''), layout('KvmProb')]).toEqual([-2, -2, -2])
  })

  test('a null pointer and a wrong size are errors, not crashes', () => {
    expect(host().aerie_layout(null, 4)).toBe(-14) // EFAULT
    expect(host().aerie_socketpair(0, null)).toBe(-14)
    expect(host().aerie_kvm_probe(new Int32Array(2), 8)).toBe(-22) // EINVAL
    expect(host().aerie_peer(0, null, 12)).toBe(-14)
    expect(host().aerie_unix_listen(null, 4, 0, 0, 0, 0)).toBe(-14)
    expect(host().aerie_recv_fds(0, null, 4, null, null)).toBe(-14)
    expect(host().aerie_send_fds(0, Buffer.from('x'), 1, null, 1)).toBe(-14)
  })

  test('loading leaves neither a file nor a descriptor', () => {
    const ours = () => [...openFds().values()].filter((target) => target.includes('aerie_host')).length // others of this process come and go
    const files = readdirSync(tmpdir())
    const fds = ours()
    const library = openHostLibrary(libraryPath)

    expect(library.aerie_abi_version()).toBe(1)
    expect(readdirSync(tmpdir()).filter((name) => !files.includes(name) && name.includes('.so'))).toEqual([])
    expect(ours()).toBe(fds)
  })

  test('works from a compiled executable, in another folder, without an environment', async () => {
    using folder = temporaryFolder()
    const source = folder.file('main.ts')
    const program = folder.file('program')
    await Bun.write(
      source,
      `
      import { kvmSupport } from '${import.meta.dir}/../../src/linux/kvm.ts'
      import { launch } from '${import.meta.dir}/../../src/linux/spawn.ts'
      import { host } from '${import.meta.dir}/../../src/linux/host-library.ts'
      const running = await launch({ argv: ['sh', '-c', 'exit 7'], exe: '/bin/sh' })
      console.log(JSON.stringify([host().aerie_abi_version(), typeof kvmSupport().reason, await running.exited]))`,
    )
    const build = Bun.spawnSync([process.execPath, 'build', '--compile', '--outfile', program, source], {
      cwd: folder.path,
    })
    expect(build.stderr.toString()).not.toContain('error')
    const run = Bun.spawnSync([program], { cwd: '/', env: {} })

    expect(run.stderr.toString()).toBe('')
    expect(JSON.parse(run.stdout.toString())).toEqual([1, 'string', { code: 7, signal: null }])
    expect(readdirSync(folder.path).filter((name) => name.includes('.so'))).toEqual([])
  })
})
