import { customType } from 'drizzle-orm/sqlite-core'

/** A TEXT column of JSON. Only this daemon writes it, from values that its schemas have let through. */
export const json = <T>(name: string) =>
  customType<{ data: T; driverData: string }>({
    dataType: () => 'text',
    toDriver: (value) => JSON.stringify(value),
    fromDriver: (text) => JSON.parse(text) as T,
  })(name)
