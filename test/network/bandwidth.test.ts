import { expect, test } from 'bun:test'
import { parseBandwidth } from '../../src/lib/bytes.ts'
import { bandwidthOf, burstOf } from '../../src/network/bandwidth.ts'

test.each([
  ['100Mbps', 12_500_000],
  ['100 Mbit/s', 12_500_000],
  ['1.5gbps', 187_500_000],
  ['8bps', 1],
  ['12MB/s', 12 * 2 ** 20],
  ['12M', 12 * 2 ** 20],
  ['4096', 4096],
  ['12B/s', 12],
  ['12b', 12],
  ['100MBps', undefined],
  ['100Mb', undefined], // bits to some, bytes to others
  ['100Mib/s', undefined],
  ['fast', undefined],
  ['-1Mbps', undefined],
] as const)('%p is %p bytes a second', (said, bytes) => {
  expect(parseBandwidth(said)).toBe(bytes as number)
})

const SHARE = { vcpus: 2, cpus: 16, oversubscription: 2, capacity: 1_250_000_000 }
test.each([
  [0, SHARE, 312_500_000],
  ['0', SHARE, 312_500_000],
  [0, { ...SHARE, vcpus: 8 }, undefined], // as much as there is
  [0, { ...SHARE, vcpus: 1, cpus: 64, oversubscription: 0.1, capacity: 1_250_000 }, 8192],
  ['100Mbps', SHARE, 12_500_000],
  [1, SHARE, 8192],
  ['100Gbps', SHARE, undefined],
] as const)('a vm that says %p of %p has %p', (said, share, bytes) => {
  expect(bandwidthOf(said, share)).toBe(bytes)
})

test('what goes at once is four ticks, and the largest packet at least', () => {
  expect(burstOf(125_000_000)).toBe(2_000_000)
  expect(burstOf(8192)).toBe(66_000)
})
