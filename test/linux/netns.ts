import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { makeNetns, unmount } from '../../src/linux/netns.ts'

/** A network namespace with a name, for tests and their oracle. */
export class Netns implements Disposable {
  readonly #folder = mkdtempSync(join(tmpdir(), 'aerie-netns-'))
  readonly path = join(this.#folder, 'ns')
  readonly fd: number

  constructor() {
    writeFileSync(this.path, '')
    makeNetns(this.path)
    this.fd = openSync(this.path, 'r')
  }

  /** Runs a program in it and gives what that says. */
  run(...argv: string[]): string {
    const ran = Bun.spawnSync(['nsenter', `--net=${this.path}`, ...argv])
    if (ran.exitCode !== 0) throw new Error(`${argv.join(' ')}: ${ran.stderr.toString()}`)
    return ran.stdout.toString()
  }

  /** What `ip -j` says in it. */
  ip(...argv: string[]): Record<string, unknown>[] {
    const said = this.run('ip', '-d', '-j', ...argv)
    return said === '' ? [] : (JSON.parse(said) as Record<string, unknown>[])
  }

  [Symbol.dispose](): void {
    closeSync(this.fd)
    unmount(this.path)
    rmSync(this.#folder, { recursive: true })
  }
}
