import type { Client } from '../../../client/client.ts'
import type { VmStats } from '../../../contract/stats.ts'
import { Fault } from '../../../lib/fault.ts'
import { sayBytes } from '../../../lib/bytes.ts'
import { sleep } from '../../../lib/promise.ts'
import { command } from '../../command.ts'
import { each } from '../../shapes.ts'
import { duration, yes } from '../../flags.ts'
import { renderTable, type Table } from '../../table.ts'
import { isTerminal } from '../../stdio.ts'

/** Counts the CPUs in use between two looks, or since the boot where there is one look only. */
const cpuPercent = (now: VmStats, before: VmStats | undefined): number => {
  const busy = now.cpu.user_ms + now.cpu.system_ms - (before ? before.cpu.user_ms + before.cpu.system_ms : 0)
  const passed = now.uptime_ms - (before?.uptime_ms ?? 0)
  return passed <= 0 ? 0 : Math.max(0, (100 * busy) / passed)
}

/** Says what a vm received and sent, all its cards together. */
const netIo = ({ network }: VmStats): string => {
  if (network.length === 0) return '-'
  const sum = (way: 'rx_bytes' | 'tx_bytes'): string => sayBytes(network.reduce((all, card) => all + card[way], 0))
  return `${sum('rx_bytes')} / ${sum('tx_bytes')}`
}

const statsTable = (all: readonly VmStats[], before: ReadonlyMap<string, VmStats>): Table => ({
  columns: [
    { title: 'NAME' },
    { title: 'CPU', right: true },
    { title: 'MEMORY', right: true },
    { title: 'LIMIT', right: true },
    { title: 'DISK', right: true },
    { title: 'NET I/O', right: true },
    { title: 'LOAD', right: true },
    { title: 'PROCESSES', right: true },
    { title: 'HOST MEMORY', right: true },
    { title: 'HOST DISK', right: true },
  ],
  rows: all.map((one) => [
    one.name,
    `${cpuPercent(one, before.get(one.name)).toFixed(1)} %`,
    sayBytes(one.memory.used),
    sayBytes(one.memory.total),
    one.disks[0] ? sayBytes(one.disks[0].used) : '-',
    netIo(one),
    one.load[0]?.toFixed(2) ?? '-',
    String(one.processes),
    one.host.memory_bytes === null ? '-' : sayBytes(one.host.memory_bytes),
    sayBytes(one.host.disk_bytes),
  ]),
})

/** Collects the figures of the named vms, or of all that run; one that ends meanwhile is left out. */
const collect = async (client: Client, names: readonly string[]): Promise<VmStats[]> => {
  const wanted =
    names.length > 0 ? names : (await client.call('vm.list', { query: { status: 'running' } })).map((vm) => vm.uid)
  const found = await Promise.all(
    wanted.map(async (name) => {
      try {
        return await client.call('vm.stats', { params: { name } })
      } catch (error) {
        if (names.length === 0 && error instanceof Fault && error.kind !== 'unauthorized' && error.kind !== 'forbidden')
          return undefined
        throw error
      }
    }),
  )
  return found.filter((one) => one !== undefined)
}

export const stats = command({
  usage: '[FLAGS] [NAME…]',
  detail: 'A live table on a terminal, one table elsewhere.',
  flags: {
    stream: yes('Look again and again; --no-stream looks once'),
    interval: duration('Between two looks (2s)', 3600_000),
  },
  args: { min: 0, max: 256, nouns: ['vm'] },
  async run(context, { flags, args }) {
    const client = await context.client()
    const { out } = context
    const live = flags.stream ?? (isTerminal(1) && out.format === 'table')
    if (!live) {
      if (args.length === 0) {
        const all = await collect(client, [])
        await out.show(all, { table: () => statsTable(all, new Map()), name: () => all.map((one) => one.name) })
        return 0
      }
      const all: VmStats[] = []
      const code = await each(context, args, async (name) => {
        all.push(await client.call('vm.stats', { params: { name } }))
      })
      if (all.length > 0)
        await out.show(all, { table: () => statsTable(all, new Map()), name: () => all.map((one) => one.name) })
      return code
    }
    let before = new Map<string, VmStats>()
    for (;;) {
      const all = await collect(client, args)
      if (out.format === 'table') {
        await out.text(`${isTerminal(1) ? '\x1b[H\x1b[2J' : ''}${renderTable(statsTable(all, before), out.look)}`)
      } else for (const one of all) await out.item(one, () => one.name)
      before = new Map(all.map((one) => [one.name, one]))
      await sleep(flags.interval ?? 2000)
    }
  },
})
