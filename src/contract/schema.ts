import { Type, type Static, type TObject, type TOptional, type TProperties, type TSchema } from '@sinclair/typebox'

declare const DEFAULTED: unique symbol
/** A field that a caller may leave out, and that is then its default: known to the types as `Filled` reads it. */
export type Defaulted<S extends TSchema> = TOptional<S> & { readonly [DEFAULTED]: true }

/** Makes a field optional, and says what it is where it is left out. */
export const defaulted = <S extends TSchema>(schema: S, value: Static<S>): Defaulted<S> =>
  Type.Optional({ ...schema, default: value }) as unknown as Defaulted<S>

/** Gives a schema the name that other descriptions refer to it by. */
export const named = <S extends TSchema>(name: string, schema: S): S => ({ ...schema, $id: name })

type DefaultedKeys<P extends TProperties> = {
  [K in keyof P]: P[K] extends { readonly [DEFAULTED]: true } ? K : never
}[keyof P]

/** What a schema describes once its defaults are filled in: every field that has one is there. */
export type Filled<S extends TSchema> =
  S extends TObject<infer P extends TProperties>
    ? Static<S> & { readonly [K in DefaultedKeys<P>]: Static<P[K]> }
    : Static<S>

/**
 * Fills the defaults of an object's schema into a value that was checked or is about to be. A field that is there stays
 * as it is, own `__proto__` and all: a guest's variable may have that name.
 */
export const fill = <S extends TSchema>(schema: S, value: unknown): Filled<S> => {
  const properties = (schema as { properties?: Readonly<Record<string, TSchema>> }).properties
  if (properties === undefined || typeof value !== 'object' || value === null || Array.isArray(value))
    return value as Filled<S>
  const filled: Record<string, unknown> = { ...value }
  for (const [name, field] of Object.entries(properties))
    if (filled[name] !== undefined) filled[name] = fill(field, filled[name])
    else if ('default' in field) filled[name] = structuredClone(field['default'])
  return filled as Filled<S>
}
