import pino from 'pino'
import { plainJsonText } from './plain.ts'

export type Log = pino.Logger

/**
 * Opens the daemon's log: one JSON object a line on stderr, written before the call returns (an asynchronous
 * destination loses its lines when the process ends). Secrets have no field names here: values are logged by id only.
 * What a guest has said is in some of the lines, and a terminal may show them.
 */
export const newLog = (level: string): Log => {
  const stderr = pino.destination({ dest: 2, sync: true })
  return pino(
    { level, base: null, timestamp: pino.stdTimeFunctions.isoTime },
    { write: (line: string) => stderr.write(plainJsonText(line)) },
  )
}
