import { sayBytes } from '../lib/bytes.ts'
import { beforeMessages, complain } from './out.ts'
import { isTerminal } from './stdio.ts'
import { plain } from '../lib/plain.ts'
import { writeSync } from 'node:fs'

/** The time between two updates of the display, ms. */
const EVERY_MS = 100

/** How far a transfer is, on stderr: a line that renews itself on a terminal, nothing but the last word elsewhere. */
export class Progress implements Disposable {
  readonly #label: string
  readonly #live: boolean
  readonly #quiet: boolean
  readonly #startedAt = Date.now()
  #bytes = 0
  #shownAt = 0

  constructor(label: string, quiet: boolean) {
    this.#label = plain(label)
    this.#quiet = quiet
    this.#live = !quiet && isTerminal(2)
  }

  readonly at = (bytes: number): void => {
    this.#bytes = bytes
    if (!this.#live || Date.now() - this.#shownAt < EVERY_MS) return
    this.#shownAt = Date.now()
    writeSync(2, `\r\x1b[K${this.#label}: ${this.#said()}`)
  }

  /** Counts what passes through. */
  count(stream: ReadableStream<Uint8Array>): ReadableStream<Uint8Array> {
    let bytes = 0
    return stream.pipeThrough(
      new TransformStream<Uint8Array, Uint8Array>({
        transform: (chunk, out) => {
          bytes += chunk.length
          this.at(bytes)
          out.enqueue(chunk)
        },
      }),
    )
  }

  #said(): string {
    const seconds = (Date.now() - this.#startedAt) / 1000
    return `${sayBytes(this.#bytes)}${seconds > 0.5 ? `, ${sayBytes(this.#bytes / seconds)}/s` : ''}`
  }

  done(): void {
    this.#clear()
    if (!this.#quiet) complain(`${this.#label}: ${this.#said()}`)
  }

  #clear(): void {
    if (this.#live && this.#shownAt > 0) writeSync(2, '\r\x1b[K')
    this.#shownAt = 0
  }

  [Symbol.dispose](): void {
    this.#clear()
  }
}

/** How long something may take before a person is told what it is, ms. */
const SLOW_MS = 1000

/**
 * What a command is doing, on stderr where that is a terminal and it takes longer than a second. The line goes when it
 * is done.
 */
export class Doing implements Disposable {
  readonly #live: boolean
  readonly #startedAt = Date.now()
  #what = ''
  #timer: Timer | undefined
  #shown = false

  constructor(quiet: boolean) {
    this.#live = !quiet && isTerminal(2)
  }

  say(what: string): void {
    this.#what = what
    if (!this.#live) return
    if (this.#shown) this.#show()
    this.#timer ??= setInterval(() => {
      this.#show()
    }, SLOW_MS)
  }

  #show(): void {
    this.#shown = true
    beforeMessages(() => {
      this.#clear()
    })
    const seconds = Math.floor((Date.now() - this.#startedAt) / 1000)
    writeSync(2, `\r\x1b[Kaerie: ${plain(this.#what)} … ${seconds} s`)
  }

  #clear(): void {
    if (this.#shown) writeSync(2, '\r\x1b[K')
    this.#shown = false
    beforeMessages(undefined)
  }

  done(): void {
    clearInterval(this.#timer)
    this.#timer = undefined
    this.#clear()
  }

  [Symbol.dispose](): void {
    this.done()
  }
}
