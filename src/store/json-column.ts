import type { TSchema } from '@sinclair/typebox'
import { TypeCompiler, type TypeCheck } from '@sinclair/typebox/compiler'
import { customType } from 'drizzle-orm/sqlite-core'
import { messageOf } from '../lib/thrown.ts'
import { fill, type Filled } from '../contract/schema.ts'

/** How a column's value stands between the row and its readers. */
interface Shape<Kept, T extends object> {
  readonly read: (kept: Kept) => T
  readonly write: (value: T) => Kept
  /**
   * Makes what stands in the place of a value that cannot be read, so that the other rows of a query can. Without it
   * the query fails.
   */
  readonly standIn?: () => T
}

const reasons = new WeakMap<object, string>()

/** Tells why a value of a column with a stand-in could not be read; undefined where it could. */
export const whyUnreadable = (value: object | null): string | undefined =>
  value === null ? undefined : reasons.get(value)

/** Parses, and says nothing of what stands there: rows hold secrets. */
const parsed = (column: string, text: string): unknown => {
  try {
    return JSON.parse(text)
  } catch {
    throw new Error(`column ${column} is no JSON`)
  }
}

/** Says where a value does not fit, never what it is: rows hold secrets. */
const unfit = (column: string, check: TypeCheck<TSchema>, value: unknown): Error => {
  const wrong = check.Errors(value).First()
  return new Error(`column ${column} does not fit its schema at ${wrong?.path ?? '/'}: ${wrong?.message ?? ''}`)
}

/**
 * Declares a TEXT column of JSON that satisfies a schema: checked when it is written, and filled and checked when it is
 * read. This is the one place where a row of an older release gets the defaults of fields that came later, so such a
 * field must have one.
 */
export const json = <S extends TSchema>(name: string, schema: S, standIn?: () => Filled<S> & object) =>
  shaped<S, Filled<S> & object>(name, schema, {
    read: (kept) => kept as Filled<S> & object,
    write: (value) => value,
    ...(standIn && { standIn }),
  })

/** Declares a column of JSON whose readers see another shape than the one that is kept. */
export const shaped = <S extends TSchema, T extends object>(
  name: string,
  schema: S,
  { read, write, standIn }: Shape<Filled<S>, T>,
) => {
  let compiled: TypeCheck<S> | undefined
  const checked = (value: unknown): Filled<S> => {
    compiled ??= TypeCompiler.Compile(schema)
    if (!compiled.Check(value)) throw unfit(name, compiled, value)
    return value as Filled<S>
  }
  return customType<{ data: T; driverData: string }>({
    dataType: () => 'text',
    toDriver: (value) => JSON.stringify(checked(write(value))),
    fromDriver: (text) => {
      try {
        return read(checked(fill(schema, parsed(name, text))))
      } catch (error) {
        if (!standIn) throw error
        const instead = standIn()
        reasons.set(instead, messageOf(error))
        return instead
      }
    },
  })(name)
}
