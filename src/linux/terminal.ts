import { dlopen } from 'bun:ffi'

/**
 * Room for glibc's `struct termios`, which is 60 bytes on x86-64 and arm64 (bits/termios-struct.h); the rest is room.
 */
const TERMIOS_BYTES = 64
const TCSADRAIN = 1 // bits/termios-tcflow.h: what was written before goes out under the old mode
const SIGTTIN = 21
const SIGTTOU = 22
const SIG_IGN = 1

/** The terminal of this process, as a program of a job-control shell has to treat it. */
export interface Terminal {
  /**
   * Tells whether this process may read and change the terminal; one that a shell runs in the background would be
   * stopped for it.
   */
  foreground(): boolean
  /**
   * Hands every key to the reader and every byte to the screen as it is (cfmakeraw(3)), until the disposal or the end
   * of the process. Returns undefined in the background. After a stop, `renew` does it again.
   */
  raw(): RawMode | undefined
}

/** A terminal in raw mode; `renew` sets it again after a stop, disposing restores what was. */
export interface RawMode extends Disposable {
  renew(): void
}

/**
 * Opens the terminal of a descriptor; undefined where it is none.
 *
 * From then on this process is not stopped for a read or a change from the background: a read fails with EIO, and
 * changes are not made.
 *
 * Why not `setRawMode`: it leaves the terminal's output processing on, so that the line feed of a full-screen program
 * in the guest, which means "one line down", would also go to the first column; and it stops a job in the background.
 */
export const openTerminal = (fd: number): Terminal | undefined => {
  const { symbols: libc } = dlopen('libc.so.6', {
    tcgetattr: { args: ['i32', 'ptr'], returns: 'i32' },
    tcsetattr: { args: ['i32', 'i32', 'ptr'], returns: 'i32' },
    cfmakeraw: { args: ['ptr'], returns: 'void' },
    tcgetpgrp: { args: ['i32'], returns: 'i32' },
    getpgrp: { args: [], returns: 'i32' },
    signal: { args: ['i32', 'usize'], returns: 'usize' },
  })
  const before = new Uint8Array(TERMIOS_BYTES)
  if (libc.tcgetattr(fd, before) !== 0) return undefined
  libc.signal(SIGTTIN, SIG_IGN)
  libc.signal(SIGTTOU, SIG_IGN)

  // Of a terminal that is not the controlling one nobody is stopped: tcgetpgrp(3) fails with ENOTTY.
  const foreground = () => {
    const group = libc.tcgetpgrp(fd)
    return group < 0 || group === libc.getpgrp()
  }
  const set = (mode: Uint8Array): boolean => foreground() && libc.tcsetattr(fd, TCSADRAIN, mode) === 0
  return {
    foreground,
    raw() {
      const raw = before.slice()
      libc.cfmakeraw(raw)
      const restore = () => {
        set(before)
      }
      process.on('exit', restore) // also of an error that nobody caught
      if (!set(raw)) {
        process.off('exit', restore)
        return undefined
      }
      return {
        renew: () => {
          set(raw)
        },
        [Symbol.dispose]: () => {
          process.off('exit', restore)
          restore()
        },
      }
    },
  }
}
