import { OptionalKind, type TSchema } from '@sinclair/typebox'
import type { Operation } from '../contract/operation.ts'
import { Problem } from '../contract/operation.ts'
import { COMMON_FAULTS, operations } from '../contract/operations.ts'

interface ObjectSchema { readonly properties?: Readonly<Record<string, TSchema>>; readonly required?: readonly string[] }

const parameters = (schema: TSchema | undefined, where: 'path' | 'query') => {
  const { properties = {}, required = [] } = (schema ?? {}) as ObjectSchema
  return Object.entries(properties).map(([name, property]) => ({
    name, in: where, required: where === 'path' || required.includes(name), schema: property,
    ...(property.description === undefined ? {} : { description: property.description }) }))
}

const REQUEST_BODY = { upload: 'application/x-tar' } as const
const describe = (operation: Operation): string => [operation.detail.description,
  operation.stream === 'websocket' ? 'A WebSocket: upgrade this request.' : operation.stream === 'sse' ? 'Server-sent events.' : undefined,
  `Scope: ${operation.scope}.`].filter((line) => line !== undefined).join('\n')

const operationObject = (id: string, operation: Operation) => {
  const success = Object.entries(operation.response)
  return {
    operationId: id, summary: operation.detail.summary, description: describe(operation), tags: operation.detail.tags,
    parameters: [...parameters(operation.params, 'path'), ...parameters(operation.query, 'query'),
      ...(id === 'vm.create' ? [{ name: 'Idempotency-Key', in: 'header', required: false, schema: { type: 'string', maxLength: 255 } }] : [])],
    ...(operation.stream === 'upload' ? { requestBody: { required: true, content: { [REQUEST_BODY.upload]: { schema: { type: 'string', format: 'binary' } } } } }
      : operation.body ? { requestBody: { required: !(OptionalKind in operation.body), content: { 'application/json': { schema: operation.body } } } } : {}),
    responses: {
      ...(success.length === 0
        ? { [operation.stream === 'websocket' ? '101' : '200']: { description: operation.stream ?? 'success' } }
        : Object.fromEntries(success.map(([status, schema]) => [status,
          status === '204' ? { description: 'done' } : { description: 'success', content: { 'application/json': { schema } } }]))),
      default: { description: `codes: ${[...operation.faults, ...COMMON_FAULTS].join(', ')}`,
        content: { 'application/problem+json': { schema: { $ref: '#/components/schemas/Problem' } } } },
    },
  }
}

/** OpenAPI 3.1 of the whole API, read off the table of operations. A golden file holds it, so a change of the API is a diff in review. */
export const openapi = (version: string) => {
  const paths: Record<string, Record<string, unknown>> = {}
  for (const [id, operation] of Object.entries(operations as Readonly<Record<string, Operation>>)) {
    const path = operation.path.replaceAll(/:(\w+)/g, '{$1}').replace('*', '{path}')
    const item = paths[path] ??= {}
    item[operation.method.toLowerCase()] = operationObject(id, operation)
  }
  return {
    openapi: '3.1.0',
    info: { title: 'aerie', version, summary: 'MicroVMs and functions on one host' },
    servers: [{ url: '/' }],
    security: [{ bearer: [] }, { volant: [] }],
    paths,
    components: {
      schemas: { Problem },
      securitySchemes: { bearer: { type: 'http', scheme: 'bearer' }, volant: { type: 'apiKey', in: 'header', name: 'X-Volant-API-Key' } },
    },
  }
}
