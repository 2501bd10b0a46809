import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { cpSync, copyFileSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { basename, join } from 'node:path'
import { clean, cli, haveBinary, startDaemon, type Daemon } from './daemon.ts'

const {
  AERIE_TEST_KERNEL: vmlinuz,
  AERIE_TEST_MODULES: modules,
  AERIE_TEST_KERNEL_61_DEB: old,
  AERIE_TEST_DEBIAN: tree,
} = process.env

/** What people bring: other kernels than the one inside, and the root of a real distribution. */
describe.skipIf(!haveBinary)('what Debian brings', () => {
  let daemon: Daemon
  beforeAll(async () => {
    daemon = await startDaemon()
  })
  afterAll(async () => {
    await clean(daemon)
  })
  const run = (args: readonly string[]) => cli(daemon, ['run', '--memory', '192m', ...args])

  test.skipIf(old === undefined)(
    'its 6.1 kernel is imported as a package and boots',
    async () => {
      expect(await cli(daemon, ['kernel', 'import', '--name', 'old', old ?? ''])).toMatchObject({
        code: 0,
        stdout: 'old\n',
      })

      const release = /linux-image-([^_]+)_/.exec(basename(old ?? ''))?.[1]
      expect(await run(['--kernel', 'old', 'base', '--', 'uname', '-r'])).toEqual({
        code: 0,
        stdout: `${release}\n`,
        stderr: '',
      })
    },
    240_000,
  )

  test.skipIf(vmlinuz === undefined || modules === undefined)(
    'a kernel is imported from a folder with its modules and boots',
    async () => {
      const folder = mkdtempSync('/tmp/aerie-kernel-')
      const version = basename(modules ?? '')
      try {
        copyFileSync(vmlinuz ?? '', join(folder, 'vmlinuz'))
        mkdirSync(join(folder, 'lib/modules'), { recursive: true })
        cpSync(modules ?? '', join(folder, 'lib/modules', version), { recursive: true, verbatimSymlinks: true })
        const inside = (await daemon.client.call('kernel.list', {})).find((kernel) => kernel.version === version)

        expect(await cli(daemon, ['kernel', 'import', '--name', 'folder', folder])).toMatchObject({
          code: 0,
          stdout: 'folder\n',
        })

        const imported = (await daemon.client.call('kernel.list', {})).find((kernel) => kernel.name === 'folder')
        expect(imported).toMatchObject({
          version,
          modules: expect.arrayContaining(['erofs', 'overlay', 'virtio_blk']) as unknown,
        })
        if (inside) expect(imported?.digest).toBe(inside.digest) // made of the package: a folder gives the same bytes
        expect(await run(['--kernel', 'folder', 'base', '--', 'uname', '-r'])).toEqual({
          code: 0,
          stdout: `${version}\n`,
          stderr: '',
        })
      } finally {
        rmSync(folder, { recursive: true })
      }
    },
    240_000,
  )

  test.skipIf(tree === undefined)(
    'the root of a Debian is imported from a folder, and a vm of it is one',
    async () => {
      expect(await cli(daemon, ['image', 'import', 'debian', tree ?? '', '--cmd', '["/bin/bash"]'])).toMatchObject({
        code: 0,
      })

      const ran = await run([
        'debian',
        '--',
        'bash',
        '-c',
        '. /etc/os-release; echo "$ID $VERSION_ID"; readlink /bin /bin/sh; stat -c "%a %U %G" / /tmp /root; ls /usr/share/doc | sort | head -3; echo ok > /root/file; cat /root/file; exit 3',
      ])

      expect(ran.stderr).toBe('')
      expect(ran.stdout).toStartWith('debian 12\nusr/bin\ndash\n755 ')
      expect(ran.stdout).toContain('\n1777 ')
      if (process.getuid?.() === 0) expect(ran.stdout).toContain('755 root root\n1777 root root\n700 root root\n')
      expect(ran.stdout).toEndWith('base-files\nbase-passwd\nbash\nok\n')
      expect(ran.code).toBe(3)
    },
    240_000,
  )
})
