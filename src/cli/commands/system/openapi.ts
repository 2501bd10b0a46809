import { faultOfResponse } from '../../../client/errors.ts'
import { sayEndpoint } from '../../../client/endpoint.ts'
import { plainJson } from '../../../lib/plain.ts'
import { command } from '../../command.ts'

export const openapi = command({
  usage: '',
  flags: {},
  args: { min: 0, max: 0 },
  detail: 'OpenAPI 3.1, as the daemon serves it at /openapi.',
  async run(context) {
    const client = await context.client()
    const response = await client.request('GET', '/openapi', { headers: { accept: 'application/json' } })
    if (!response.ok) throw await faultOfResponse(response, sayEndpoint(client.endpoint))
    const description: unknown = await response.json()
    const json = `${plainJson(description, 2)}\n`
    await context.out.show(description, { table: () => json, name: () => [] })
    return 0
  },
})
