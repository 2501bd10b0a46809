import { OptionalKind, Type, type TSchema } from '@sinclair/typebox'
import type { Operation } from '../contract/operation.ts'
import { Problem } from '../contract/operation.ts'
import { COMMON_FAULTS, operations } from '../contract/operations.ts'

interface ObjectSchema {
  readonly properties?: Readonly<Record<string, TSchema>>
  readonly required?: readonly string[]
}

const parameter = (name: string, where: 'path' | 'query', required: boolean, schema: TSchema) => ({
  name,
  in: where,
  required,
  schema,
  ...(schema.description === undefined ? {} : { description: schema.description }),
})

/** As OpenAPI writes a path; what `*` stands for may hold slashes. */
const templateOf = (path: string): string => path.replaceAll(/:(\w+)/g, '{$1}').replace('*', '{path}')

/** Every part of a path that is no constant, whether the operation checks it or hands it on. */
const pathParameters = ({ path, params }: Operation) =>
  [...templateOf(path).matchAll(/\{(\w+)\}/g)].map(([, name = '']) =>
    parameter(name, 'path', true, ((params ?? {}) as ObjectSchema).properties?.[name] ?? Type.String()),
  )

const queryParameters = (schema: TSchema | undefined) => {
  const { properties = {}, required = [] } = (schema ?? {}) as ObjectSchema
  return Object.entries(properties).map(([name, property]) =>
    parameter(name, 'query', required.includes(name), property),
  )
}

const REQUEST_BODY = { upload: 'application/x-tar' } as const
const describe = (operation: Operation): string =>
  [
    operation.detail.description,
    operation.stream === 'websocket'
      ? 'A WebSocket: upgrade this request.'
      : operation.stream === 'sse'
        ? 'Server-sent events.'
        : undefined,
    `Scope: ${operation.scope}.`,
  ]
    .filter((line) => line !== undefined)
    .join('\n')

const operationObject = (id: string, operation: Operation) => {
  const success = Object.entries(operation.response)
  return {
    operationId: id,
    summary: operation.detail.summary,
    description: describe(operation),
    tags: operation.detail.tags,
    parameters: [
      ...pathParameters(operation),
      ...queryParameters(operation.query),
      ...(id === 'vm.create'
        ? [{ name: 'Idempotency-Key', in: 'header', required: false, schema: { type: 'string', maxLength: 255 } }]
        : []),
    ],
    ...(operation.stream === 'upload'
      ? {
          requestBody: {
            required: true,
            content: { [REQUEST_BODY.upload]: { schema: { type: 'string', format: 'binary' } } },
          },
        }
      : operation.body
        ? {
            requestBody: {
              required: !(OptionalKind in operation.body),
              content: { 'application/json': { schema: operation.body } },
            },
          }
        : {}),
    responses: {
      ...(success.length === 0
        ? { [operation.stream === 'websocket' ? '101' : '200']: { description: operation.stream ?? 'success' } }
        : Object.fromEntries(
            success.map(([status, schema]) => [
              status,
              status === '204'
                ? { description: 'done' }
                : { description: 'success', content: { 'application/json': { schema } } },
            ]),
          )),
      default: {
        description: `codes: ${[...operation.faults, ...COMMON_FAULTS].join(', ')}`,
        content: { 'application/problem+json': { schema: { $ref: '#/components/schemas/Problem' } } },
      },
    },
  }
}

/** OpenAPI 3.1 of the whole API, read off the table of operations. A golden file holds it, so a change of the API is a diff in review. */
export const openapi = (version: string) => {
  const paths: Record<string, Record<string, unknown>> = {}
  for (const [id, operation] of Object.entries(operations as Readonly<Record<string, Operation>>)) {
    const path = templateOf(operation.path)
    const item = (paths[path] ??= {})
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
      securitySchemes: {
        bearer: { type: 'http', scheme: 'bearer' },
        volant: { type: 'apiKey', in: 'header', name: 'X-Volant-API-Key' },
      },
    },
  }
}
