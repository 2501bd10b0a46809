import { faultOfResponse } from '../../../client/errors.ts'
import { sayEndpoint } from '../../../client/endpoint.ts'
import { plainJsonText } from '../../../lib/plain.ts'
import { command } from '../../command.ts'
import { list, text, usageInvalid } from '../../flags.ts'
import { isTerminal, writeAll } from '../../stdio.ts'
import { stdin } from '../../stdin.ts'

const METHODS = ['GET', 'POST', 'PUT', 'PATCH', 'DELETE', 'HEAD', 'OPTIONS']

export const api = command({
  usage: '[FLAGS] METHOD PATH',
  detail:
    'The answer goes to stdout as it is. PATH begins at the root (/api/v1/vms), or at /api/v1 without the slash (vms).',
  flags: {
    data: text('Body: JSON, @FILE, or - for stdin', 'DATA', { short: 'd' }),
    header: list('A header', 'NAME:VALUE'),
    idempotencyKey: text('Key by which a repeated POST finds the first one', 'KEY'),
  },
  args: { min: 2, max: 2 },
  async run(context, { flags, args }) {
    const method = (args[0] ?? '').toUpperCase()
    const path = args[1] ?? ''
    if (!METHODS.includes(method))
      throw usageInvalid({
        reason: `Cannot use the method "${args[0]}": expected ${METHODS.join(', ')}`,
        hint: 'aerie api GET /api/v1/vms',
      })
    const headers: Record<string, string> = {}
    for (const header of flags.header ?? []) {
      const colon = header.indexOf(':')
      if (colon <= 0) throw usageInvalid({ reason: `Cannot use --header "${header}": expected NAME:VALUE` })
      headers[header.slice(0, colon).trim()] = header.slice(colon + 1).trim()
    }
    if (flags.idempotencyKey !== undefined) headers['idempotency-key'] = flags.idempotencyKey
    let failure: unknown
    const body =
      flags.data === undefined
        ? undefined
        : flags.data === '-'
          ? stdin((error) => {
              failure = error
            })
          : flags.data.startsWith('@')
            ? await fileOf(flags.data.slice(1))
            : flags.data
    if (body !== undefined && !Object.keys(headers).some((name) => name.toLowerCase() === 'content-type'))
      headers['content-type'] = 'application/json'
    const client = await context.client()
    const response = await client
      .request(method, path.startsWith('/') ? path : `/api/v1/${path}`, {
        headers,
        ...(body !== undefined && { body }),
      })
      .catch((error: unknown) => {
        throw failure ?? error
      })
    if (!response.ok) throw await faultOfResponse(response, sayEndpoint(client.endpoint))
    const json = response.headers.get('content-type')?.includes('json') === true
    // What a guest said is in many answers, and a terminal would obey it.
    const decoder = isTerminal(1) ? new TextDecoder() : undefined
    let last = 10
    for await (const chunk of response.body ?? []) {
      const bytes = decoder ? Buffer.from(plainJsonText(decoder.decode(chunk, { stream: true }))) : chunk
      await writeAll(1, bytes)
      last = chunk.at(-1) ?? last
    }
    if (last !== 10 && json) await context.out.text('\n')
    return 0
  },
})

const fileOf = async (path: string): Promise<Blob> => {
  const file = Bun.file(path)
  if (!(await file.exists())) throw usageInvalid({ reason: `Cannot read the body: "${path}" is no file` })
  return file
}
