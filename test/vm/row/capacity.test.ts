import { describe, expect, test } from 'bun:test'
import { VmState, type VmState as State } from '../../../src/contract/vm-state.ts'
import { immediate } from '../../../src/store/store.ts'
import { admit, capacity } from '../../../src/vm/row/capacity.ts'
import { testHost, type TestHost } from '../host.ts'

const GIB = 1024
/** A host of 2 CPUs, each given out four times, and 16 GiB of which 8 are for vms. */
const host = (flags: object = {}) => {
  const bed = testHost({ cpu_oversubscription: 4, memory_limit_mb: 8 * GIB, ...flags })
  return Object.assign(bed, { config: { ...bed.host.config, cpus: 2, memoryMb: 16 * GIB } })
}
const ask = (bed: TestHost & { config: TestHost['host']['config'] }, cpuCores: number, memoryMb: number) => {
  immediate(bed.host.store, (tx) => {
    admit(tx, bed.config, { cpuCores, memoryMb })
  })
}

describe('capacity', () => {
  test('of an empty host is its limits', async () => {
    await using bed = host()

    expect(capacity(bed.host.store, bed.config)).toEqual({
      cpu: { physical: 2, oversubscription: 4, limit: 8, allocated: 0 },
      memory_mb: { physical: 16 * GIB, limit: 8 * GIB, allocated: 0 },
    })
  })

  test('without a limit leaves the host an eighth, between 256 MiB and 2 GiB', async () => {
    await using bed = host({ memory_limit_mb: 0 })
    const limit = (memoryMb: number) => capacity(bed.host.store, { ...bed.config, memoryMb }).memory_mb.limit

    expect([1024, 8 * GIB, 64 * GIB].map(limit)).toEqual([1024 - 256, 7 * GIB, 62 * GIB])
  })

  test('of the smallest host is one vCPU', async () => {
    await using bed = host({ cpu_oversubscription: 0.1 })

    expect(capacity(bed.host.store, bed.config).cpu.limit).toBe(1)
  })

  test('counts a vm in every state that may have a machine, and in no other', async () => {
    await using bed = host()
    const states = VmState.anyOf.map((one) => one.const) as State[]

    const counted = states.filter((state, index) => {
      const before = capacity(bed.host.store, bed.config).cpu.allocated
      bed.vm(`vm-${index}`, { state })
      return capacity(bed.host.store, bed.config).cpu.allocated > before
    })

    expect(counted.sort()).toEqual(['paused', 'pending', 'running', 'starting', 'stopping', 'unknown'])
  })
})

describe('a vm', () => {
  test('that takes the last of it is admitted', async () => {
    await using bed = host()
    bed.vm('one', {}, { cpu_cores: 5, memory_mb: 5 * GIB })

    ask(bed, 3, 3 * GIB)
  })

  test('that asks for more is told what is short, and by how much', async () => {
    await using bed = host()
    bed.vm('one', {}, { cpu_cores: 5, memory_mb: 5 * GIB })

    expect(() => {
      ask(bed, 4, 1)
    }).toThrow(
      expect.objectContaining({
        code: 'capacity_exhausted',
        kind: 'exhausted',
        data: { resource: 'cpu', unit: 'vCPU', asked: 4, limit: 8, allocated: 5 },
      }) as Error,
    )
    expect(() => {
      ask(bed, 1, 4 * GIB)
    }).toThrow('Cannot place this vm: it asks for 4096 MiB of memory, and 5120 of 8192 are taken')
  })

  test('that has stopped gives its place to another', async () => {
    await using bed = host()
    bed.vm('one', { state: 'stopped' }, { cpu_cores: 8, memory_mb: 8 * GIB })

    ask(bed, 8, 8 * GIB)
  })
})
