import type { TSchema } from '@sinclair/typebox'
import { TypeCompiler, type TypeCheck } from '@sinclair/typebox/compiler'
import { customType } from 'drizzle-orm/sqlite-core'
import { fill, type Filled } from '../contract/schema.ts'

/** How a column's value stands between the row and its readers. */
interface Shape<Kept, T> {
  readonly read: (kept: Kept) => T
  readonly write: (value: T) => Kept
}

/** Says where a value does not fit, never what it is: rows hold secrets. */
const unfit = (column: string, check: TypeCheck<TSchema>, value: unknown): Error => {
  const wrong = check.Errors(value).First()
  return new Error(`column ${column} does not fit its schema at ${wrong?.path ?? '/'}: ${wrong?.message ?? ''}`)
}

/**
 * Declares a TEXT column of JSON that satisfies a schema: checked when it is written, and filled and checked when it is read. This is
 * the one place where a row of an older release gets the defaults of fields that came later, so such a field must have one.
 */
export const json = <S extends TSchema>(name: string, schema: S) =>
  shaped<S, Filled<S>>(name, schema, { read: (kept) => kept, write: (value) => value })

/** Declares a column of JSON whose readers see another shape than the one that is kept. */
export const shaped = <S extends TSchema, T>(name: string, schema: S, { read, write }: Shape<Filled<S>, T>) => {
  let compiled: TypeCheck<S> | undefined
  const checked = (value: unknown): Filled<S> => {
    compiled ??= TypeCompiler.Compile(schema)
    if (!compiled.Check(value)) throw unfit(name, compiled, value)
    return value as Filled<S>
  }
  return customType<{ data: T; driverData: string }>({
    dataType: () => 'text',
    toDriver: (value) => JSON.stringify(checked(write(value))),
    fromDriver: (text) => read(checked(fill(schema, JSON.parse(text)))),
  })(name)
}
