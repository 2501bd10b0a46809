import pino from 'pino'

export type Log = pino.Logger

/**
 * The daemon's log: one JSON object a line on stderr, written before the call returns (an asynchronous destination
 * loses its lines when the process ends). Secrets have no field names here: values are logged by id only.
 */
export const newLog = (level: string): Log =>
  pino({ level, base: null, timestamp: pino.stdTimeFunctions.isoTime }, pino.destination({ dest: 2, sync: true }))
