import { expect, test } from 'bun:test'
import { diskRateOf } from '../../../src/vm/machine/assemble.ts'

const DAEMON = { disk_io_bps: 256 * 2 ** 20, disk_flushes_per_s: 500 }
const CASES: readonly (readonly [number | string, number])[] = [
  [0, DAEMON.disk_io_bps],
  ['0', DAEMON.disk_io_bps],
  ['0MB/s', DAEMON.disk_io_bps],
  [1_000_000, 1_000_000],
  ['1000000', 1_000_000],
  ['100MB/s', 100 * 2 ** 20],
  ['100 MiB/s', 100 * 2 ** 20],
  ['1.5g', 1.5 * 2 ** 30],
  ['512KB/s', 512 * 2 ** 10],
  [1, 65_536],
  ['1B/s', 65_536],
]

test.each(CASES)("a vm's disks that shall have %p a second have %p bytes", (said, bytesPerS) => {
  expect(diskRateOf(DAEMON, { disk_io_bps: said })).toEqual({ bytesPerS, flushesPerS: 500 })
})

test('a vm may be limited where the daemon limits nothing, and is not where neither does', () => {
  const free = { disk_io_bps: 0, disk_flushes_per_s: 0 }

  expect(diskRateOf(free, { disk_io_bps: '1MB/s' })).toEqual({ bytesPerS: 2 ** 20, flushesPerS: 0 })
  expect(diskRateOf(free, { disk_io_bps: 0 })).toEqual({ bytesPerS: 0, flushesPerS: 0 })
})
