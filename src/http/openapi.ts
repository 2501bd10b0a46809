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

/** Writes a path as OpenAPI does; what `*` stands for may hold slashes. */
const templateOf = (path: string): string => path.replaceAll(/:(\w+)/g, '{$1}').replace('*', '{path}')

/** Lists every part of a path that is no constant, whether the operation checks it or hands it on. */
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
      ...(operation.idempotent === true
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
        content: { 'application/problem+json': { schema: Problem } },
      },
    },
  }
}

/**
 * Takes every named schema out of a document and puts a reference in its place; what a place says beside the name (a
 * default) stays there. The named schemas themselves are collected in `components`.
 */
const referring = (value: unknown, components: Record<string, unknown>): unknown => {
  if (Array.isArray(value)) return value.map((one) => referring(one, components))
  if (typeof value !== 'object' || value === null) return value
  const { $id: name, default: fallback, ...schema } = value as Readonly<Record<string, unknown>>
  const inner = (from: object) =>
    Object.fromEntries(Object.entries(from).map(([key, one]) => [key, referring(one, components)]))
  if (typeof name !== 'string') return inner(value)
  if (!(name in components)) {
    components[name] = undefined // its place, in the order of first use
    components[name] = inner(schema)
  }
  return { $ref: `#/components/schemas/${name}`, ...(fallback === undefined ? {} : { default: fallback }) }
}

/**
 * Writes the OpenAPI 3.1 document of the whole API, read off the table of operations. A golden file holds it, so a
 * change of the API is a diff in review.
 */
export const openapi = (version: string, table: Readonly<Record<string, Operation>> = operations) => {
  const paths: Record<string, Record<string, unknown>> = {}
  for (const [id, operation] of Object.entries(table)) {
    const path = templateOf(operation.path)
    const item = (paths[path] ??= {})
    item[operation.method.toLowerCase()] = operationObject(id, operation)
  }
  const schemas: Record<string, unknown> = {}
  const described = referring(paths, schemas)
  return {
    openapi: '3.1.0',
    info: { title: 'aerie', version, summary: 'MicroVMs and functions on one host' },
    servers: [{ url: '/' }],
    security: [{ bearer: [] }, { volant: [] }],
    paths: described,
    components: {
      schemas,
      securitySchemes: {
        bearer: { type: 'http', scheme: 'bearer' },
        volant: { type: 'apiKey', in: 'header', name: 'X-Volant-API-Key' },
      },
    },
  }
}
