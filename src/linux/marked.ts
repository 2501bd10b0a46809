import { readdirSync } from 'node:fs'
import { constants } from 'node:os'
import { closeFd } from './fd.ts'
import { pidfdOpen, pidfdSignal, whenExited } from './pidfd.ts'
import { environmentOf, startTimeOf } from './proc.ts'

/** The variable that names the machine of every process that we start for one. */
export const MARK = 'AERIE_MACHINE'

/**
 * Kills the processes whose mark begins with `prefix`, but for those in `keep`, and waits until they have gone: what a
 * daemon that was killed had started and not yet written down. A process of another user has no mark that we can read,
 * and is not ours.
 */
export const endMarked = async (prefix: string, keep: ReadonlySet<string> = new Set()): Promise<number> => {
  const ending: Promise<unknown>[] = []
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue
    const pid = Number(name)
    const mark = markOf(pid)
    if (mark === undefined || !mark.startsWith(prefix) || keep.has(mark) || pid === process.pid) continue
    let pidfd: number
    const before = startTimeOf(pid)
    try {
      pidfd = pidfdOpen(pid)
    } catch {
      continue
    }
    if (before === undefined || startTimeOf(pid) !== before || markOf(pid) !== mark) {
      closeFd(pidfd)
      continue
    }
    pidfdSignal(pidfd, constants.signals.SIGKILL)
    ending.push(
      whenExited(pidfd).then(() => {
        closeFd(pidfd)
      }),
    )
  }
  await Promise.all(ending)
  return ending.length
}

const markOf = (pid: number): string | undefined => {
  try {
    return environmentOf(pid, MARK)
  } catch {
    return undefined
  }
}
