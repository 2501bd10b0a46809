import { join } from 'node:path'

const MAIN = join(import.meta.dir, '../../src/main.ts')
/** The program under test: the sources, or a built file where AERIE_BIN names one. */
export const PROGRAM: readonly string[] = process.env['AERIE_BIN']
  ? [process.env['AERIE_BIN']]
  : [process.execPath, MAIN]

export interface Said {
  readonly code: number
  readonly out: string
  readonly err: string
  readonly bytes: Buffer
}
export interface How {
  readonly socket?: string
  readonly env?: Readonly<Record<string, string>>
  readonly stdin?: Uint8Array | string
  readonly cwd?: string
}

/** A home that neither is there nor can be made: Bun keeps a folder of its own in one that it can make. */
export const NO_HOME = '/dev/null/home'

/** Only what a test says is in the environment: a developer's own settings must not decide a test. */
export const envOf = (how: How): Record<string, string> => ({
  PATH: process.env['PATH'] ?? '',
  HOME: NO_HOME,
  ...(how.socket !== undefined && { AERIE_HOST: `unix://${how.socket}` }),
  ...how.env,
})

/** Runs the program and collects what it says. */
export const aerie = async (argv: readonly string[], how: How = {}): Promise<Said> => {
  const child = Bun.spawn([...PROGRAM, ...argv], {
    stdin: how.stdin === undefined ? 'ignore' : Buffer.from(how.stdin),
    stdout: 'pipe',
    stderr: 'pipe',
    env: envOf(how),
    cwd: how.cwd ?? '/',
  })
  const [bytes, err] = await Promise.all([new Response(child.stdout).arrayBuffer(), new Response(child.stderr).text()])
  return { code: await child.exited, out: Buffer.from(bytes).toString(), err, bytes: Buffer.from(bytes) }
}

/** The program on a terminal of its own, as a person has it. */
export class Typist implements Disposable {
  seen = ''
  readonly #child: Bun.Subprocess
  #more = Promise.withResolvers<void>()

  constructor(argv: readonly string[], how: How & { readonly cols?: number; readonly rows?: number } = {}) {
    const decoder = new TextDecoder()
    this.#child = Bun.spawn([...PROGRAM, ...argv], {
      env: { TERM: 'xterm', ...envOf(how) },
      cwd: '/',
      terminal: {
        cols: how.cols ?? 80,
        rows: how.rows ?? 24,
        data: (_, bytes) => {
          this.seen += decoder.decode(bytes, { stream: true }) // a character may come in two pieces
          this.#more.resolve()
          this.#more = Promise.withResolvers()
        },
      },
    })
  }

  /** Resolves when the screen has shown this. */
  async sees(what: string | RegExp): Promise<void> {
    const there = () => (typeof what === 'string' ? this.seen.includes(what) : what.test(this.seen))
    while (!there()) {
      const ended = await Promise.race([this.#more.promise.then(() => false), this.#child.exited.then(() => true)])
      if (ended && !there()) throw new Error(`it ended and never said ${String(what)}: ${this.seen}`)
    }
  }
  type(keys: string): void {
    this.#child.terminal?.write(keys)
  }
  resize(cols: number, rows: number): void {
    this.#child.terminal?.resize(cols, rows)
  }
  get exited(): Promise<number> {
    return this.#child.exited
  }
  [Symbol.dispose](): void {
    this.#child.kill('SIGKILL')
  }
}
