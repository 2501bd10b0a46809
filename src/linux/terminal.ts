import { dlopen } from 'bun:ffi'

/** glibc's `struct termios` is 60 bytes on x86-64 and arm64 (bits/termios-struct.h); the rest is room. */
const TERMIOS_BYTES = 64
const TCSADRAIN = 1 // bits/termios-tcflow.h: what was written before goes out under the old mode

/**
 * Hands every key to the reader and every byte to the screen as it is (cfmakeraw(3)), until the disposal or the end of the process.
 *
 * Why not `setRawMode`: it leaves the terminal's output processing on, so that the line feed of a full-screen program in the guest, which
 * means "one line down", would also go to the first column.
 *
 * @param fd  a terminal; undefined is returned where it is none
 */
export const makeRaw = (fd: number): Disposable | undefined => {
  const { symbols: libc } = dlopen('libc.so.6', {
    tcgetattr: { args: ['i32', 'ptr'], returns: 'i32' },
    tcsetattr: { args: ['i32', 'i32', 'ptr'], returns: 'i32' },
    cfmakeraw: { args: ['ptr'], returns: 'void' },
  })
  const before = new Uint8Array(TERMIOS_BYTES)
  if (libc.tcgetattr(fd, before) !== 0) return undefined
  const raw = before.slice()
  libc.cfmakeraw(raw)
  const restore = () => {
    libc.tcsetattr(fd, TCSADRAIN, before)
  }
  process.on('exit', restore) // also of an error that nobody caught
  if (libc.tcsetattr(fd, TCSADRAIN, raw) !== 0) {
    process.off('exit', restore)
    return undefined
  }
  return {
    [Symbol.dispose]: () => {
      process.off('exit', restore)
      restore()
    },
  }
}
