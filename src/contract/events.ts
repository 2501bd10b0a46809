import { Type, type Static } from '@sinclair/typebox'
import { EVENT_FIELDS, type NounEvents } from './event.ts'
import { imageEvents } from './image.ts'
import { kernelEvents } from './kernel.ts'
import { oneOf } from './operation.ts'
import { named } from './schema.ts'
import { vmEvents } from './vm.ts'

/** Every noun that has events: the log, the command line and OpenAPI read this table. */
export const EVENTS = [vmEvents, imageEvents, kernelEvents] as const
export type EventType = (typeof EVENTS)[number]['types'][number]
export const EVENT_TYPES: readonly EventType[] = EVENTS.flatMap((one: NounEvents<EventType>) => [...one.types])

/**
 * One event as it is read: the fields of a vm's event stand in every one, empty where its noun has none, as Volant
 * clients expect.
 */
export const Event = named(
  'Event',
  Type.Object({
    ...EVENT_FIELDS,
    type: oneOf(...EVENT_TYPES),
    ...vmEvents.data.properties,
    digest: imageEvents.data.properties.digest,
  }),
)
export type Event = Static<typeof Event>
