import { Type, type TObject } from '@sinclair/typebox'
import { Timestamp } from './operation.ts'

/** The events of one noun: what they are called, and what each says beside its name and a sentence. */
export interface NounEvents<T extends string = string, D extends TObject = TObject> {
  readonly noun: string
  readonly types: readonly T[]
  /** Fields of its own, which stand flat on the wire; all must have a default. */
  readonly data: D
}

/** Declares the events of a noun. */
export const nounEvents = <const T extends string, D extends TObject>(
  noun: string,
  types: readonly T[],
  data: D,
): NounEvents<T, D> => ({ noun, types, data })

/** What every event says, of whatever noun. */
export const EVENT_FIELDS = {
  seq: Type.Integer(),
  type: Type.String(),
  name: Type.String(),
  uid: Type.Union([Type.String(), Type.Null()]),
  message: Type.String(),
  timestamp: Timestamp,
}
