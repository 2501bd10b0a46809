import { describe, expect, test } from 'bun:test'
import { embedded } from '../../src/linux/embedded.ts'
import { wing, WingError, wingErrorOf } from '../../src/linux/wing.ts'
import { filled, openFds } from './support.ts'
import { closeFd } from '../../src/linux/fd.ts'

/** A specification that becomes a shell: `wing launch` is how these tests make wing do what a command could do. */
const script = (text: string, fds: readonly (readonly [number, number])[] = []) =>
  filled(JSON.stringify({ argv: ['sh', '-c', text], exe: '/bin/sh', env: { PATH: '/usr/bin:/bin' }, fds }))
const run = async (
  text: string,
  options: Parameters<typeof wing>[1] = {},
  fds: readonly (readonly [number, number])[] = [],
) => {
  const spec = script(text, fds)
  try {
    return await wing(['launch'], { ...options, fds: [...(options.fds ?? []), [spec, 3]] })
  } finally {
    closeFd(spec)
  }
}

describe('wing', () => {
  test('is opened once, sealed, and has the digest of its bytes', async () => {
    const program = embedded('wing')

    expect(embedded('wing')).toBe(program)
    expect(openFds().get(program.fd)).toBe('/memfd:wing (deleted)')
    expect(program.digest).toBe(
      new Bun.CryptoHasher('sha256').update(await Bun.file(`/proc/self/fd/${program.fd}`).bytes()).digest('hex'),
    )
  })

  test('answers with the JSON of its stdout, or with nothing', async () => {
    expect(await run('echo "{\\"a\\": [1, 2]}"')).toEqual({ a: [1, 2] })
    expect(await run('true')).toBeUndefined()
  })

  test('gets its stdin and its descriptors', async () => {
    const file = filled('"from a file"')
    expect(await run('cat <&5', { fds: [[file, 6]] }, [[6, 5]])).toBe('from a file')
    expect(await run('cat', { stdin: Buffer.from('"from memory"') })).toBe('from memory')
    expect(await run('wc -c', { stdin: new Blob([Buffer.alloc(5_000_000)]).stream() })).toBe(5_000_000)
    await expect(wing(['launch'], { fds: [[file, 2]] })).rejects.toThrow(RangeError)
    closeFd(file)
  })

  test('says what it said when it failed', async () => {
    const failing = wing(['launch'], { fds: [] })

    await expect(failing).rejects.toBeInstanceOf(WingError)
    await expect(failing).rejects.toMatchObject({ code: 'spec_missing', chain: ['Bad file descriptor (os error 9)'] })
    await expect(run('echo noise >&2; exit 3')).rejects.toMatchObject({ code: 'wing_died', chain: ['noise\n'] })
    await expect(run('kill -9 $$')).rejects.toMatchObject({
      code: 'wing_died',
      message: 'wing launch ended with SIGKILL',
    })
    await expect(run('echo "no JSON"')).rejects.toThrow()
  })

  test('may stop reading before the stream ends: its answer counts', async () => {
    let pulled = 0
    const endless = new ReadableStream<Uint8Array>({
      pull: (controller) => {
        pulled += 1
        controller.enqueue(new Uint8Array(65536))
      },
    })

    expect(await run('head -c 100000 >/dev/null; echo 1', { stdin: endless })).toBe(1)
    expect(pulled).toBeLessThan(200)
  })

  test('a reader that does not read holds the stream back', async () => {
    let pulled = 0
    const endless = new ReadableStream<Uint8Array>({
      pull: (controller) => {
        pulled += 1
        controller.enqueue(new Uint8Array(65536))
      },
    })
    await run('sleep 0.3; echo 1', { stdin: endless })

    expect(pulled).toBeLessThan(64) // 4 MiB: a pipe or socket's buffer and a chunk or two, not what fits into 0.3 s
  })

  test('a stream that breaks kills it: half an archive is not one', async () => {
    const broken = new ReadableStream<Uint8Array>({
      start: (controller) => {
        controller.enqueue(new Uint8Array(10))
        setTimeout(() => {
          controller.error(new Error('the caller went away'))
        }, 20)
      },
    })

    await expect(run('cat >/dev/null; echo 1', { stdin: broken })).rejects.toThrow('the caller went away')
  })

  test('a signal kills it and gives its reason', async () => {
    const reason = new Error('enough')
    const before = performance.now()
    const stop = new AbortController()
    const waiting = run('exec sleep 60', { signal: stop.signal, stdin: new ReadableStream() })
    setTimeout(() => {
      stop.abort(reason)
    }, 20)

    await expect(waiting).rejects.toBe(reason)
    await expect(run('true', { signal: AbortSignal.abort(reason) })).rejects.toBe(reason)
    expect(performance.now() - before).toBeLessThan(5000)
  })

  test('an answer without end is cut and its writer killed', async () => {
    await expect(run('cat /dev/zero')).rejects.toMatchObject({ code: 'wing_died' })
  })

  test('leaves no descriptor', async () => {
    await run('true')
    const before = openFds().size
    for (let n = 0; n < 20; n++) await run('cat', { stdin: Buffer.from('1') })
    Bun.gc(true)
    await Bun.sleep(20)

    expect(openFds().size).toBeLessThanOrEqual(before + 2)
  })

  test('only its JSON line is taken for its error', () => {
    expect(wingErrorOf('')).toBeUndefined()
    expect(wingErrorOf('{"code": 3}')).toBeUndefined()
    expect(wingErrorOf('null')).toBeUndefined()
    expect(wingErrorOf('warning\n{"code":"a_b","message":"m","chain":["c",1]}\n')).toMatchObject({
      code: 'a_b',
      message: 'm',
      chain: ['c'],
    })
    expect(wingErrorOf('{"code":"a_b"}')).toMatchObject({ code: 'a_b', message: 'a_b', chain: [] })
  })
})
