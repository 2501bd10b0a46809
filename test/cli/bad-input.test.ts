import { afterAll, expect, test } from 'bun:test'
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { FakeDaemon } from '../client/daemon.ts'
import { aerie, envOf, PROGRAM } from './aerie.ts'

const daemon = new FakeDaemon((request) =>
  new URL(request.url).pathname.endsWith('/import')
    ? Response.json(
        { title: 'Cannot read the archive: it is cut short', code: 'archive_invalid', hint: 'Make it again' },
        { status: 400 },
      )
    : undefined,
)
daemon.add({ name: 'web' })
const here = mkdtempSync(join(tmpdir(), 'aerie-bad-'))
writeFileSync(join(here, 'empty'), '')
writeFileSync(join(here, 'file'), 'x')
writeFileSync(join(here, 'blank-token'), '\n')
afterAll(async () => {
  await daemon[Symbol.asyncDispose]()
  rmSync(here, { recursive: true, force: true })
})

/** What is typed, the exit code, a part of the sentence, a part of the hint. */
const TABLE: readonly (readonly [string, number, string, string])[] = [
  ['rnu base', 2, 'Cannot do "rnu": there is no such command', 'Did you mean "run"?'],
  ['zzzzz', 2, 'Cannot do "zzzzz": there is no such command', 'See "aerie help"'],
  ['vm', 2, 'Cannot do "vm": a verb is missing', 'Verbs of vm: '],
  ['vm lsit', 2, 'Cannot do "vm lsit": there is no such command', 'Did you mean "vm list"?'],
  ['image pull x', 2, 'Cannot do "image pull": there is no such command', 'Verbs of image: import, ls, inspect, rm'],
  ['ps --al', 2, 'Cannot use flag "--al" of ps: there is no such flag', 'Did you mean "--all"?'],
  ['ps extra', 2, '"extra" is one argument too many', 'aerie ps'],
  ['stop', 2, 'an argument is missing', 'aerie stop [FLAGS] NAME…'],
  ['ps -o xml', 2, 'Cannot use -o "xml": expected table, json, yaml, name', ''],
  ['ls --status runing', 2, 'Cannot use --status "runing"', 'Did you mean "running"?'],
  ['ls --limit 0', 2, 'Cannot use --limit "0": expected a whole number from 1 to 1000', ''],
  ['run', 125, 'an argument is missing', 'IMAGE'],
  ['run --memory huge base', 125, 'Cannot use --memory "huge": expected a size', ''],
  ['run --memory 1 base', 125, 'Cannot use --memory "1": expected 64m', ''],
  ['run --cpus 65 base', 125, 'Cannot use --cpus "65": expected a whole number from 1 to 64', ''],
  ['run --disk 99999g base', 125, 'Cannot use --disk "99999g"', ''],
  ['run --name Bad_Name base', 125, 'Cannot use --name "Bad_Name"', ''],
  ['run --port 70000 base', 125, 'Cannot use --port "70000": expected a whole number from 1 to 65535', ''],
  ['run -w relative base', 125, 'Cannot use -w "relative": expected an absolute path', ''],
  ['run --label nope base', 125, 'Cannot use --metadata "nope": expected KEY=VALUE', ''],
  ['run --env-file missing base', 125, 'Cannot read the environment file "missing"', ''],
  [
    'run --network web,ip base',
    125,
    'Cannot use --network "web,ip": "ip" is none of ip=ADDRESS, mac=ADDRESS, dhcp',
    '',
  ],
  ['run --network web --network user base', 125, 'Cannot use --network user beside another network', ''],
  ['run --hypervisor qeum base', 125, 'Cannot use --hypervisor "qeum"', ''],
  ['run -d --timeout 5 base', 125, 'Cannot use --timeout with --detach', ''],
  ['exec web', 125, 'Cannot run nothing: there is no command', 'aerie exec NAME -- COMMAND…'],
  ['exec gone true', 125, 'Cannot find vm "gone"', 'aerie ls'],
  ['create', 2, 'Cannot create a vm: the image is missing', 'aerie create IMAGE [NAME]'],
  ['create base one --name two', 2, 'it is named "one" and "two"', ''],
  ['start a b -- x', 2, 'Cannot start several vms with one command', ''],
  ['rm web', 5, 'Cannot delete vm "web": it is running', 'use --force'],
  ['inspect gone', 4, 'Cannot find vm "gone"', 'aerie ls'],
  ['logs --tail x web', 2, 'Cannot use --tail "x": expected a whole number', ''],
  ['logs --source nowhere web', 2, 'Cannot use --source "nowhere": expected app, console, vmm, agent, all', ''],
  ['wait --for never web', 2, 'Cannot use --for "never": expected ready, stopped, exit, deleted', ''],
  ['wait --timeout 2d web', 2, 'Cannot use --timeout "2d": expected at most 86400s', ''],
  [
    'forward web 99999',
    2,
    'Cannot forward "99999": the guest\'s port is no number from 1 to 65535',
    '[[ADDRESS:]PORT:]PORT',
  ],
  ['forward web nonsense', 2, 'Cannot forward "nonsense"', '[[ADDRESS:]PORT:]PORT'],
  ['cp a b', 2, 'Cannot copy: neither side is in a vm', 'aerie cp FILE VM:/PATH'],
  ['cp missing web:/', 4, 'Cannot find "missing" on this host', ''],
  ['image import', 2, 'an argument is missing', 'aerie image import [FLAGS] NAME FILE|DIR|-'],
  ['image import Name! file', 2, 'Cannot name an image "Name!"', ''],
  ['image import x missing', 4, 'Cannot find "missing" on this host', ''],
  ['image import x empty', 2, 'Cannot use "empty": it is empty', ''],
  ['image import x /dev/null', 2, 'it is neither a file nor a folder', ''],
  ['image import x file', 2, 'Cannot read the archive: it is cut short', 'Make it again'],
  ['image import -e NOVALUE x file', 2, 'Cannot use --env "NOVALUE": expected NAME=VALUE', ''],
  ['image import --entrypoint [1] x file', 2, 'a JSON array of strings', ''],
  ['image import -w relative x file', 2, 'Cannot use -w "relative"', ''],
  ['kernel import missing', 4, 'Cannot find "missing" on this host', ''],
  ['kernel import file modules', 2, 'it is neither a vmlinuz nor a vmlinux', ''],
  ['token create --scope root x', 2, 'Cannot use --scope "root": expected read, exec, admin', ''],
  ['api FETCH /x', 2, 'Cannot use the method "FETCH"', 'aerie api GET'],
  ['api GET /api/v1/nowhere', 4, 'Cannot find GET /api/v1/nowhere', ''],
  ['api POST /x --data @missing', 2, 'Cannot read the body: "missing" is no file', ''],
  ['completion zsh', 2, 'only bash is known', 'aerie completion bash'],
  ['help nonsense', 2, 'Cannot help with "nonsense"', 'aerie help --all'],
  ['serve --no-such', 2, 'Cannot use flag "--no-such" of serve', ''],
  ['serve --log-level loud', 2, 'Cannot use --log-level "loud": expected trace', ''],
  [
    'ps --host nonsense',
    2,
    'Cannot use "nonsense" as the address of a daemon: it names no protocol',
    'unix:///run/aerie/aerie.sock',
  ],
  ['ps --host unix://relative', 2, 'its path is not absolute', ''],
  ['ps --host http://user:secret@host', 2, 'a secret does not belong into an address', ''],
  ['ps --host http://host/path', 2, 'it has more than a host and a port', ''],
  ['ps --host unix:///nowhere/a.sock', 7, 'its socket does not exist', 'aerie serve'],
  ['ps --host http://127.0.0.1:1', 7, 'nothing listens there', 'aerie serve'],
  ['ps --host http://127.0.0.1:1 --token-file missing', 2, 'Cannot read the token of "missing"', ''],
  ['ps --host http://127.0.0.1:1 --token-file blank-token', 2, 'it is empty', ''],
]

test.each(TABLE)('%s: %d, %s', async (line, code, sentence, hint) => {
  const said = await aerie(line.split(' '), { socket: daemon.socket, cwd: here })

  expect(said.err).toContain(sentence)
  expect(said.code).toBe(code)
  expect(said.err).toStartWith('aerie: Cannot ')
  if (hint !== '') expect(said.err).toMatch(/\n {2}hint: /)
  expect(said.err).toContain(hint)
  expect(said.out).toBe('')
  expect(said.err).not.toMatch(/\n\s+at |undefined|\[object/)
})

test.skipIf(process.getuid?.() !== 0)(
  'a folder that this user may not read is refused by name, and the daemon keeps nothing',
  async () => {
    const folder = join(here, 'shut')
    const inner = join(folder, 'inner')
    mkdirSync(inner, { recursive: true })
    for (const path of [here, folder]) chmodSync(path, 0o755)
    chmodSync(inner, 0o700)
    chmodSync(daemon.folder, 0o755)
    chmodSync(daemon.socket, 0o777)
    const script = `exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"`

    const child = Bun.spawn(['sh', '-c', script, 'sh', ...PROGRAM, 'cp', folder, 'web:/'], {
      env: envOf(daemon),
      stdout: 'pipe',
      stderr: 'pipe',
      cwd: '/',
    })
    const err = await new Response(child.stderr).text()

    expect(err).toContain(`Cannot read "${inner}": this user may not`)
    expect(await child.exited).toBe(3)
  },
)
