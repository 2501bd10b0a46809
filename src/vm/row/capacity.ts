import { inArray, sql } from 'drizzle-orm'
import type { Static } from '@sinclair/typebox'
import { HOLDS_MACHINE } from '../../contract/vm-state.ts'
import type { Config } from '../../config.ts'
import type { Capacity } from '../../contract/system.ts'
import { vms } from '../../store/schema.ts'
import { type Store, prepared } from '../../store/store.ts'
import { capacityExhausted } from './errors.ts'

/** Counts the memory that the host keeps for itself: an eighth, between 256 MiB and 2 GiB. */
const reserveMb = (totalMb: number): number => Math.min(2048, Math.max(256, Math.floor(totalMb / 8)))

const selectTaken = prepared((store) =>
  store
    .select({ cpu: sql<number | null>`sum(${vms.cpuCores})`, memory: sql<number | null>`sum(${vms.memoryMb})` })
    .from(vms)
    .where(inArray(vms.state, [...HOLDS_MACHINE]))
    .prepare(),
)

/** Tells what this host has, may give, and has given; call it inside the caller's transaction. */
export const capacity = (tx: Store, config: Config): Static<typeof Capacity> => {
  const taken = selectTaken(tx).get()
  return {
    cpu: {
      physical: config.cpus,
      oversubscription: config.cpu_oversubscription,
      limit: Math.max(1, Math.floor(config.cpus * config.cpu_oversubscription)),
      allocated: taken?.cpu ?? 0,
    },
    memory_mb: {
      physical: config.memoryMb,
      limit: config.memory_limit_mb || config.memoryMb - reserveMb(config.memoryMb),
      allocated: taken?.memory ?? 0,
    },
  }
}

/**
 * Admits a vm or says which resource is short. Call it in the transaction that inserts or starts the vm: two requests
 * at once cannot both take the last of it.
 *
 * @throws `capacity_exhausted`
 */
export const admit = (
  tx: Store,
  config: Config,
  asked: { readonly cpuCores: number; readonly memoryMb: number },
): void => {
  const { cpu, memory_mb: memory } = capacity(tx, config)
  if (cpu.allocated + asked.cpuCores > cpu.limit) {
    throw capacityExhausted({
      resource: 'cpu',
      unit: 'vCPU',
      asked: asked.cpuCores,
      limit: cpu.limit,
      allocated: cpu.allocated,
    })
  }
  if (memory.allocated + asked.memoryMb > memory.limit) {
    throw capacityExhausted({
      resource: 'memory',
      unit: 'MiB',
      asked: asked.memoryMb,
      limit: memory.limit,
      allocated: memory.allocated,
    })
  }
}
