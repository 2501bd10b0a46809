import { readFileSync } from 'node:fs'
import { residentBytes } from './proc.ts'

/** Clock ticks a second of /proc/PID/stat: USER_HZ, 100 on every architecture that Linux runs on but alpha and ia64. */
const TICK_MS = 10

/** What a process takes of the host: resident memory in bytes, CPU time in milliseconds. */
export interface Usage {
  readonly residentBytes: number
  readonly cpuMs: number
}

/** Tells what a process takes of the host now; undefined where it is gone. */
export const processUsage = (pid: number): Usage | undefined => {
  const resident = residentBytes(pid)
  if (resident === undefined) return undefined
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8')
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' ')
    return { residentBytes: resident, cpuMs: (Number(fields[11]) + Number(fields[12])) * TICK_MS } // utime, stime: fields 14 and 15
  } catch {
    return undefined
  }
}
