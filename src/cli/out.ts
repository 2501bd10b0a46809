import { writeSync } from 'node:fs'
import { isTerminal, terminalSize, writeAll, writeNow } from './stdio.ts'
import { plain, plainJson } from '../lib/plain.ts'
import { wrap } from './wrap.ts'
import { renderTable, wantsColour, type Look, type Table } from './table.ts'

export const FORMATS = ['table', 'json', 'yaml', 'name'] as const
export type Format = (typeof FORMATS)[number]

let clearStatus: (() => void) | undefined
/** Sets what takes the line of a status away, before a message comes there; undefined where no such line is shown. */
export const beforeMessages = (clear: (() => void) | undefined): void => {
  clearStatus = clear
}

/** Writes to stderr at once and in order: a message must not overtake the exit. */
export const complain = (text: string): void => {
  clearStatus?.()
  const bytes = Buffer.from(`${text}\n`)
  for (let at = 0, tries = 0; at < bytes.length && tries < 1000; tries++) {
    try {
      at += writeSync(2, bytes, at)
    } catch (error) {
      if ((error as { code?: unknown }).code !== 'EAGAIN') return // nobody hears it
      Bun.sleepSync(1)
    }
  }
}

/** How one value looks in each format. JSON and YAML are the value itself, whole. */
export interface Views {
  readonly table: () => Table | string
  readonly name: () => readonly string[]
}

/**
 * Writes YAML; a value with control characters as JSON, which is YAML too: Bun's writer leaves some of them as they
 * are.
 */
const yaml = (value: unknown): string => {
  const text = Bun.YAML.stringify(value, null, 2)
  return `${/[\u007f-\u009f]/.test(text) ? plainJson(value, 2) : text}\n`
}

/** The one layer between a command and stdout: results only; messages and progress go to stderr. */
export class Out {
  readonly format: Format
  readonly quiet: boolean
  readonly #env: Readonly<Record<string, string | undefined>>

  constructor(format: Format, quiet: boolean, env: Readonly<Record<string, string | undefined>>) {
    this.format = format
    this.quiet = quiet
    this.#env = env
  }

  get look(): Look {
    const terminal = isTerminal(1)
    return { width: terminal ? terminalSize()?.cols : undefined, colour: wantsColour(this.#env, terminal) }
  }

  /** Writes a line for people and pipes, as it is. */
  async line(text: string): Promise<void> {
    await writeAll(1, Buffer.from(`${text}\n`))
  }

  async text(text: string): Promise<void> {
    await writeAll(1, Buffer.from(text))
  }

  /** Writes text for people, as wide as their terminal. */
  async help(text: string): Promise<void> {
    await this.text(wrap(text, this.look.width))
  }

  async show(value: unknown, views: Views): Promise<void> {
    const names = () =>
      views
        .name()
        .map((name) => `${plain(name)}\n`)
        .join('')
    const text = (): string => {
      if (this.format === 'json') return `${plainJson(value, 2)}\n`
      if (this.format === 'yaml') return yaml(value)
      if (this.format === 'name' || this.quiet) return names()
      const view = views.table()
      return typeof view === 'string' ? view : renderTable(view, this.look)
    }
    await writeNow(1, Buffer.from(text()))
  }

  /** Writes one value of a stream: a line of JSON, a document of YAML, or what people read. */
  async item(value: unknown, people: () => string): Promise<void> {
    if (this.format === 'json') await this.line(plainJson(value))
    else if (this.format === 'yaml') await this.text(`---\n${yaml(value)}`)
    else await this.line(people())
  }

  /** Writes the name of what a verb was done to, as Docker's verbs do. */
  async done(value: { readonly name: string }): Promise<void> {
    await this.show(value, { table: () => `${plain(value.name)}\n`, name: () => [value.name] })
  }

  /** Writes what a person has to know even where progress is not wanted. */
  warn(text: string): void {
    complain(`aerie: ${plain(text)}`)
  }

  /** Writes progress, which --quiet leaves out. */
  note(text: string): void {
    if (!this.quiet) complain(`aerie: ${plain(text)}`)
  }
}
