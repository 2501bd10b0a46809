import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import {
  chmodSync,
  closeSync,
  ftruncateSync,
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { encodeHeader, padding, TAR_END, type Header } from '../../src/client/tar-header.ts'
import { clean, cli, createVm, haveBinary, startDaemon, type Daemon } from './daemon.ts'

/** An archive of these entries, a string standing for a file's content. */
const archive = (...entries: (Partial<Header> & { name: string; content?: string })[]): Uint8Array =>
  Buffer.concat([
    ...entries.flatMap(({ content = '', ...it }) => {
      const body = Buffer.from(content)
      const header = encodeHeader({ type: 'file', mode: 0o644, uid: 0, gid: 0, mtime: 1, size: body.length, ...it })
      return [header, body, Buffer.alloc(padding(body.length))]
    }),
    TAR_END,
  ])

/** Copies in, out and across between this host and two real guests, which all tests share. */
describe.skipIf(!haveBinary)('copies of files', () => {
  let daemon: Daemon
  let here = ''
  beforeAll(async () => {
    daemon = await startDaemon()
    await Promise.all(['a', 'b'].map((name) => createVm(daemon, { name, cmd: ['sleep', '100000'] })))
    here = mkdtempSync('/tmp/aerie-files-')
  }, 240_000)
  afterAll(async () => {
    rmSync(here, { recursive: true, force: true })
    await clean(daemon)
  })

  const cp = (...args: string[]) => cli(daemon, ['cp', ...args])
  const ok = async (...args: string[]) => {
    expect(await cp(...args)).toMatchObject({ code: 0 })
  }
  const feed = (target: string, stdin: Uint8Array, ...flags: string[]) =>
    cli(daemon, ['cp', ...flags, '-', target], { stdin: new Blob([stdin as Uint8Array<ArrayBuffer>]) })
  /** What a shell of the guest says. */
  const sh = async (vm: string, script: string) =>
    (await cli(daemon, ['exec', vm, '--', 'sh', '-c', script])).stdout.trimEnd()
  const write = (name: string, content: string | Uint8Array = 'new\n') => {
    writeFileSync(join(here, name), content)
    return join(here, name)
  }

  test('no stream leads a guest over a link that it made itself', async () => {
    await sh('b', 'mkdir -p /srv')
    await sh('a', 'mkdir -p /x; ln -s /etc /x/l; mkdir -p /y/l; echo evil >/y/l/pwned')
    const streams = [
      archive({ name: 'l', type: 'symlink', linkname: '/etc' }, { name: 'l/pwned', mode: 0o4755, content: 'evil' }),
      archive({ name: 'l', type: 'symlink', linkname: '/' }, { name: 'l/etc/cron.d/pwned', content: 'evil' }),
      archive(
        { name: 'l', type: 'symlink', linkname: '/etc' },
        { name: 'h', type: 'link', linkname: 'l' },
        { name: 'h/pwned', content: 'evil' },
      ),
      archive({ name: 'l', type: 'symlink', linkname: '/etc' }, { name: 'l/', type: 'directory', mode: 0o777 }),
    ]

    for (const stream of streams) {
      expect(await feed('b:/srv', stream)).toMatchObject({ code: 5 })
      const put = { params: { name: 'b' }, query: { path: '/srv' } }
      const refused = await daemon.client
        .upload('vm.copy.in', put, new Blob([stream as Uint8Array<ArrayBuffer>]).stream())
        .catch((error: unknown) => error)
      expect(refused).toMatchObject({ code: 'guest_refused', data: { agent_code: 'tar_invalid' } })
    }
    await ok('a:/x', 'b:/srv/x')
    expect((await cp('a:/y/.', 'b:/srv/x')).code).toBe(0) // the link was there before this copy

    expect(await sh('b', 'ls /etc/cron.d 2>/dev/null; stat -c %a /etc; cat /etc/pwned; rm /etc/pwned')).toBe(
      '755\nevil',
    )
  }, 240_000)

  test('set-id bits and devices come with -a only', async () => {
    await sh('a', 'mkdir /s; cp /bin/busybox /s/su; chown 7 /s/su; chmod 4755 /s/su; mknod /s/null c 1 3')

    const plain = await cp('a:/s', 'b:/plain')
    await ok('-a', 'a:/s', 'b:/whole')
    const tar = archive({ name: 'su', mode: 0o6755, content: 'x' })
    await sh('b', 'mkdir /t /ta')
    expect((await feed('b:/t', tar)).code).toBe(0)
    expect((await feed('b:/ta', tar, '-a')).code).toBe(0)

    expect(plain).toMatchObject({ code: 0, stderr: expect.stringContaining('left out "plain/null"') as string })
    expect(await sh('b', 'stat -c "%a %F" /plain/* /whole/* /t/su /ta/su')).toBe(
      '755 regular file\n644 character special file\n4755 regular file\n755 regular file\n6755 regular file',
    )
  }, 240_000)

  test('what is no plain file stays what it is', async () => {
    await sh('a', 'mkfifo /fifo; echo old >/real; ln -s real /link; echo old >/one; chmod 640 /one; ln /one /two')
    const file = write('new')

    const refused = await Promise.all([cp(file, 'a:/dev/null'), cp(file, 'a:/fifo')])
    await ok(file, 'a:/link')
    await ok(file, 'a:/one')

    expect(refused.map((one) => one.code)).toEqual([5, 5])
    expect(refused[0]?.stderr).toContain('a device stands there')
    expect(await sh('a', 'stat -c %F /dev/null /fifo; cat /real /two; stat -c %a /one; readlink /link')).toBe(
      'character special file\nfifo\nnew\nnew\n640\nreal',
    )

    const kept = write('kept', 'old\n')
    chmodSync(kept, 0o600)
    linkSync(kept, join(here, 'also'))
    symlinkSync('kept', join(here, 'lnk'))
    Bun.spawnSync(['mkfifo', join(here, 'p')])
    expect(await cp('a:/real', join(here, 'p'))).toMatchObject({
      stderr: expect.stringContaining('a FIFO stands there') as string,
    })
    await ok('a:/real', join(here, 'lnk'))
    expect(lstatSync(join(here, 'p')).isFIFO()).toBe(true)
    expect(lstatSync(join(here, 'lnk')).isSymbolicLink()).toBe(true)
    expect(readFileSync(join(here, 'also'), 'utf8')).toBe('new\n')
    expect(statSync(kept).mode & 0o777).toBe(0o600)
  }, 240_000)

  test('a source that cannot be copied is a fault, and never nothing at all', async () => {
    const file = write('plain')
    Bun.spawnSync(['mkfifo', join(here, 'source')])
    await sh('a', 'mkfifo /pipe; mkdir -p /dir; ln -s /dir /dirlink; touch /dir/in')

    const said = await Promise.all([
      cp(`${file}/`, 'a:/nothing'),
      cp(`${file}/.`, 'a:/nothing'),
      cp('a:/etc/passwd/', here),
      cp('a:/pipe', join(here, 'x')),
      cp('a:/dev/null', join(here, 'x')),
      cp(file, 'a:/no/such/folder'),
      cp('a:/no/such', here),
      cp('a:/etc/passwd', join(here, 'no/such')),
      cp('a:/etc/passwd', 'a:/etc'),
      cp('a:/dir', 'a:/dir'),
    ])
    await ok('a:/dirlink/', join(here, 'followed'))

    expect(said.map((one) => one.code)).toEqual([3, 3, 5, 2, 2, 4, 4, 4, 5, 5])
    expect(readdirSync(join(here, 'followed'))).toEqual(['in'])
    expect(await sh('a', 'ls / | grep nothing; ls /dir; [ -s /etc/passwd ] && echo kept')).toBe('in\nkept')
  }, 240_000)

  test.each([
    ['a link into a folder that is not there', (at: string) => symlinkSync('no/where', at), 4, 'no such folder', ''],
    ['a link to itself', (at: string) => symlinkSync('circle', at), 3, 'lead in circles', ''],
    ['a link to bytes', (at: string) => symlinkSync(Buffer.from('gone\xff', 'latin1'), at), 3, 'not UTF-8', ''],
    ['a file where a folder should be', (at: string) => writeFileSync(at, ''), 4, 'no such folder', '/x'],
    ['a circle where a folder should be', (at: string) => symlinkSync('circle', at), 3, 'lead in circles', '/x'],
  ])('to %s there is no way, and that is said', async (_, make, code, reason, below) => {
    const folder = mkdtempSync(join(here, 'target-'))
    make(join(folder, 'circle'))

    const said = await cp('a:/etc/passwd', `${join(folder, 'circle')}${below}`)

    expect([said.code, readdirSync(folder)]).toEqual([code, ['circle']])
    expect(said.stderr).toContain(reason)
    expect(said.stderr).not.toContain('defect')
  })

  test.each(['/dev/null', '/dev/vda', '/q-fifo'])(
    '%s is not copied from one guest to another as nothing',
    async (at) => {
      await sh('a', 'test -p /q-fifo || mkfifo /q-fifo')

      const said = await cp(`a:${at}`, 'b:/q-new')

      expect([said.code, await sh('b', 'ls /q-new 2>/dev/null')]).toEqual([2, ''])
      expect(said.stderr).toContain(`"${at}": it is neither a file nor a folder`)
    },
  )

  test('names are bytes, in, out and across', async () => {
    const folder = join(here, 'odd')
    mkdirSync(folder)
    for (const byte of [0xe4, 0xf6]) writeFileSync(Buffer.from([...Buffer.from(`${folder}/`), byte]), String(byte))
    symlinkSync(Buffer.of(0xe4), join(folder, 'link'))

    await ok(folder, 'a:/odd')
    await ok('a:/odd', 'b:/across')
    await ok('b:/across', join(here, 'back'))

    expect(await sh('a', 'ls /odd | wc -l; cat /odd/link')).toBe('3\n228')
    expect(
      readdirSync(join(here, 'back'), { encoding: 'buffer' })
        .map((name) => name.toString('hex'))
        .sort(),
    ).toEqual(['6c696e6b', 'e4', 'f6'])
    expect(readFileSync(join(here, 'back/link'), 'utf8')).toBe('228')
    const client = await cli(daemon, ['image', 'import', 'odd', folder])
    expect(client).toMatchObject({ code: 0 })
  }, 240_000)

  test('holes stay holes, in, out, across and in tars of GNU tar', async () => {
    const sparse = write('sp', '')
    const file = openSync(sparse, 'w')
    writeSync(file, Buffer.from('middle'), 0, 6, 100 << 20)
    ftruncateSync(file, 256 << 20)
    closeSync(file)

    await ok(sparse, 'a:/root/sp')
    await ok('a:/root/sp', 'b:/root/sp')
    await ok('b:/root/sp', join(here, 'sp2'))
    for (const flags of [['--format=gnu'], ['--format=pax']]) {
      const tar = Bun.spawnSync(['tar', ...flags, '-S', '-C', here, '-cf', '-', 'sp']).stdout
      expect(await feed('b:/tmp', tar)).toMatchObject({ code: 0 })
      expect(
        await sh('b', 'dd if=/tmp/sp bs=1M skip=100 count=1 2>/dev/null | head -c 6; du -k /tmp/sp | cut -f 1'),
      ).toMatch(/^middle(4|8)$/)
    }

    for (const vm of ['a', 'b'])
      expect(await sh(vm, 'stat -c %s /root/sp; [ $(du -k /root/sp | cut -f 1) -lt 100 ] && echo small')).toBe(
        `${256 << 20}\nsmall`,
      )
    const back = statSync(join(here, 'sp2'))
    expect([back.size, back.blocks < 200]).toEqual([256 << 20, true])
    expect(readFileSync(join(here, 'sp2')).toString('latin1', 100 << 20, (100 << 20) + 6)).toBe('middle')
  }, 240_000)

  test('files of the kernel have what they say', async () => {
    await ok('a:/sys/class/net/lo/mtu', join(here, 'mtu'))
    await ok('a:/proc/version', 'b:/version')
    await ok('a:/sys/class/net/lo/', join(here, 'lo'))
    await ok('/proc/version', 'a:/v')

    expect(readFileSync(join(here, 'mtu'), 'utf8')).toBe('65536\n')
    expect(readFileSync(join(here, 'lo/mtu'), 'utf8')).toBe('65536\n')
    expect(await sh('b', 'cmp /version /proc/version && echo same')).toBe('same')
    expect(await sh('a', 'cat /v')).toBe(readFileSync('/proc/version', 'utf8').trim())
  }, 240_000)

  test('an error of the guest in the middle of a copy is told as itself', async () => {
    // What comes before the file that refuses is more than one frame.
    await sh('a', 'mkdir -p /mid; head -c 3000000 /dev/urandom >/mid/a; mkdir /mid/deep')
    const deep = 'p=/mid/deep; i=0; while [ $i -lt 300 ]; do mkdir $p/d; cd $p/d; p=.; i=$((i+1)); done; echo made'
    expect(await sh('a', deep)).toBe('made')
    const out = [cp('a:/mid', join(here, 'mid')), cp('a:/mid', '-'), cp('a:/mid', 'b:/mid'), cp('a:/proc/1/mem', here)]
    for (const one of await Promise.all(out)) {
      expect(one.code).toBe(5)
      expect(one.stderr).not.toContain('Lost the connection')
    }
    expect((await out[0])?.stderr).toContain('more than 256 folders')

    // A disk that fills up while the stream comes, and a stream that is refused long before its end.
    await sh('b', 'mkdir /full; mount -t tmpfs -o size=1m none /full; mkfifo /full/p')
    const big = write('big', Buffer.alloc(30_000_000, 1))
    const full = [await cp(big, 'b:/full'), await cp(big, 'b:/full/p'), await cp('a:/mid/a', 'b:/full/m')]
    for (const one of full) {
      expect(one.code).toBe(5)
      expect(one.stderr).not.toContain('Lost the connection')
    }
    expect(full[0]?.stderr).toContain('No space left')
    expect(full[1]?.stderr).toContain('a FIFO stands there')
  }, 240_000)

  test('another file system in a folder is left out with a word', async () => {
    const folder = join(here, 'tree')
    mkdirSync(join(folder, 'proc'), { recursive: true })
    writeFileSync(join(folder, 'f'), 'x')
    if (Bun.spawnSync(['mount', '-t', 'proc', 'proc', join(folder, 'proc')]).exitCode !== 0) return
    try {
      const said = [await cp(folder, 'a:/tree'), await cli(daemon, ['image', 'import', 'px', folder])]

      for (const one of said)
        expect(one).toMatchObject({ code: 0, stderr: expect.stringContaining('another file system') as string })
      expect(await sh('a', 'ls /tree; ls /tree/proc')).toBe('f\nproc')
    } finally {
      Bun.spawnSync(['umount', join(folder, 'proc')])
    }
  }, 240_000)
})
