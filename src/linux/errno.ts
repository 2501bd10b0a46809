/**
 * Names by number, asm-generic/errno-base.h and errno.h; x86 and arm64 share them. Two numbers have never been used.
 */
const NAMES = `
  EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT ENOTBLK EBUSY EEXIST EXDEV ENODEV ENOTDIR
  EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG ENOSPC ESPIPE EROFS EMLINK EPIPE EDOM ERANGE EDEADLK ENAMETOOLONG ENOLCK ENOSYS
  ENOTEMPTY ELOOP - ENOMSG EIDRM ECHRNG EL2NSYNC EL3HLT EL3RST ELNRNG EUNATCH ENOCSI EL2HLT EBADE EBADR EXFULL ENOANO EBADRQC EBADSLT -
  EBFONT ENOSTR ENODATA ETIME ENOSR ENONET ENOPKG EREMOTE ENOLINK EADV ESRMNT ECOMM EPROTO EMULTIHOP EDOTDOT EBADMSG EOVERFLOW ENOTUNIQ
  EBADFD EREMCHG ELIBACC ELIBBAD ELIBSCN ELIBMAX ELIBEXEC EILSEQ ERESTART ESTRPIPE EUSERS ENOTSOCK EDESTADDRREQ EMSGSIZE EPROTOTYPE
  ENOPROTOOPT EPROTONOSUPPORT ESOCKTNOSUPPORT EOPNOTSUPP EPFNOSUPPORT EAFNOSUPPORT EADDRINUSE EADDRNOTAVAIL ENETDOWN ENETUNREACH
  ENETRESET ECONNABORTED ECONNRESET ENOBUFS EISCONN ENOTCONN ESHUTDOWN ETOOMANYREFS ETIMEDOUT ECONNREFUSED EHOSTDOWN EHOSTUNREACH
  EALREADY EINPROGRESS ESTALE EUCLEAN ENOTNAM ENAVAIL EISNAM EREMOTEIO EDQUOT ENOMEDIUM EMEDIUMTYPE ECANCELED ENOKEY EKEYEXPIRED
  EKEYREVOKED EKEYREJECTED EOWNERDEAD ENOTRECOVERABLE ERFKILL EHWPOISON`
  .trim()
  .split(/\s+/)

/** Names an errno, `ENOENT` for 2. A number that this table does not have becomes `E` and the number. */
export const errnoName = (errno: number): string => {
  const name = NAMES[errno - 1]
  return name === undefined || name === '-' ? `E${errno}` : name
}

/** A system call that failed. `code` is what node's own errors carry, so that one test serves both. */
export class SyscallError extends Error {
  override name = 'SyscallError'
  /** A positive number: errno(3). */
  readonly errno: number
  readonly code: string
  readonly syscall: string
  readonly path: string | undefined

  constructor(errno: number, syscall: string, path?: string) {
    const code = errnoName(errno)
    super(path === undefined ? `${syscall}: ${code}` : `${syscall} "${path}": ${code}`)
    this.errno = errno
    this.code = code
    this.syscall = syscall
    this.path = path
  }
}

/** Tells whether an error, ours or node's, has one of these codes. */
export const hasCode = (error: unknown, ...codes: readonly string[]): boolean =>
  error instanceof Error && 'code' in error && typeof error.code === 'string' && codes.includes(error.code)

/** Checks the result of a call into the host library. @throws SyscallError for a negative one */
export const checked = (result: number | bigint, syscall: string, path?: string): number => {
  if (result < 0) throw new SyscallError(Number(-result), syscall, path)
  if (typeof result === 'bigint') throw new RangeError(`${syscall}: ${result} is beyond what a number holds`)
  return result
}
