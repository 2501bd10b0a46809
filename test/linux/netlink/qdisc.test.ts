import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { linkByName, newVeth, openLinks } from '../../../src/linux/netlink/links.ts'
import type { Netlink } from '../../../src/linux/netlink/netlink.ts'
import { deleteTokenBucket, newTokenBucket } from '../../../src/linux/netlink/qdisc.ts'
import { Netns } from '../netns.ts'
import { isRoot } from '../support.ts'

describe.skipIf(!isRoot)('how fast a link sends', () => {
  let netns: Netns
  let netlink: Netlink
  const index = (): number => linkByName(netlink, 'one')?.index ?? 0
  const said = () => (JSON.parse(netns.run('tc', '-j', '-s', 'qdisc', 'show', 'dev', 'one')) as object[])[0]

  beforeAll(() => {
    netns = new Netns()
    netlink = openLinks(netns.fd)
    netlink.apply('make a pair', [newVeth({ name: 'one' }, { name: 'two' })])
  })
  afterAll(() => {
    netlink[Symbol.dispose]()
    netns[Symbol.dispose]()
  })

  test.each([
    [8192, 66_000],
    [12_500_000, 200_000],
    [4_294_967_295, 68_719_477],
    [5_000_000_000, 80_000_000], // more than 32 bits
  ])('%p bytes a second are what tc reads, one after the other', (rate, burst) => {
    netlink.apply('limit', [newTokenBucket(index(), rate, burst)])

    expect(said()).toMatchObject({ kind: 'tbf', root: true, options: { rate } })
    const { options } = said() as { options: { burst: number; lat: number } }
    expect(Math.abs(options.burst / burst - 1)).toBeLessThan(0.01)
    expect(Math.abs(options.lat / 50_000 - 1)).toBeLessThan(0.05)
  })

  test('a limit that is taken away is gone', () => {
    netlink.apply('limit', [newTokenBucket(index(), 1_000_000, 66_000), deleteTokenBucket(index())])
    expect(netns.run('tc', 'qdisc', 'show', 'dev', 'one')).not.toContain('tbf')
  })
})
