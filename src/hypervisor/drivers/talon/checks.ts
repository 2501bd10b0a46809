import { readFileSync } from 'node:fs'
import type { Check } from '../../../contract/system.ts'
import type { Ground } from '../../driver.ts'
import { report, sayLandlock } from './report.ts'

const check = (name: string, status: Check['status'], message: string, hint: string | null = null): Check => ({
  name,
  status,
  message,
  hint,
})

/** Tells what talon's jail can enforce here, by its own word. */
const jail = async ({ kvm, config }: Ground, another: boolean): Promise<Check> => {
  const said = await report()
  if (!said)
    return check(
      'talon',
      'fail',
      'the embedded talon does not run',
      'Look whether the host forbids executable memory files: `sysctl vm.memfd_noexec`',
    )
  const { landlock_abi: abi, seccomp_kill_process: seccomp, user_namespaces: namespaces } = said.jail
  if (abi < config.landlock_abi_min) {
    return check(
      'talon',
      another ? 'warn' : 'fail',
      `talon runs nothing: ${sayLandlock(abi, config.landlock_abi_min)}`,
      'Run a newer kernel, or lower landlock_abi_min',
    )
  }
  const missing = [
    ...(namespaces ? [] : ['user namespaces']),
    ...(seccomp ? [] : ['seccomp']),
    ...(abi > 0 ? [] : ['Landlock']),
  ]
  const huge = `huge pages: ${said.memory.transparent_hugepages ?? 'none'}`
  if (missing.length === 0) return check('talon', 'ok', `its jail has namespaces, seccomp and Landlock ${abi}; ${huge}`)
  return check(
    'talon',
    (namespaces && seccomp) || !kvm.usable || another ? 'warn' : 'fail',
    `its jail lacks ${missing.join(', ')}; ${huge}`,
    namespaces
      ? 'Run a kernel with Landlock, 5.13 or newer'
      : 'QEMU runs guests meanwhile; `sysctl user.max_user_namespaces` must not be 0',
  )
}

const SHMEM = '/sys/kernel/mm/transparent_hugepage/shmem_enabled'

/**
 * Tells whether memory that forks share comes in large pages: in small ones a guest of 128 MiB faults 8,000 times as it
 * boots, not 550.
 */
const sharedMemory = (): Check => {
  let said: string
  try {
    said = readFileSync(SHMEM, 'utf8')
  } catch {
    return check(
      'shared-memory',
      'warn',
      'this kernel has no large pages for shared memory: vms created with --forkable boot slower',
    )
  }
  const mode = /\[(\w+)\]/.exec(said)?.[1] ?? said.trim()
  return mode === 'never' || mode === 'deny'
    ? check(
        'shared-memory',
        'warn',
        `shared memory comes in small pages (${mode}): vms created with --forkable boot slower`,
        `echo advise > ${SHMEM}`,
      )
    : check('shared-memory', 'ok', `shared memory may come in large pages (${mode})`)
}

/** What `aerie doctor` says of talon. `another`: some other driver can run guests where talon cannot. */
export const checks = async (ground: Ground, another: boolean): Promise<readonly Check[]> => [
  await jail(ground, another),
  sharedMemory(),
]
