import { expect, test } from 'bun:test'
import { readPublished, sayPublished } from '../../src/network/ports.ts'

const one = (text: string) => readPublished([text])

test('what is published is read as Docker reads it', () => {
  const both = ['127.0.0.1', '::1']
  for (const [text, expected] of [
    ['8080:80', [{ protocol: 'tcp', addresses: both, port: 8080, guestPort: 80 }]],
    ['53:53/udp', [{ protocol: 'udp', addresses: both, port: 53, guestPort: 53 }]],
    ['80', [{ protocol: 'tcp', addresses: both, port: 0, guestPort: 80 }]],
    ['0:80', [{ protocol: 'tcp', addresses: both, port: 0, guestPort: 80 }]],
    ['0.0.0.0:8080:80', [{ protocol: 'tcp', addresses: ['0.0.0.0'], port: 8080, guestPort: 80 }]],
    ['[::]:8080:80', [{ protocol: 'tcp', addresses: ['::'], port: 8080, guestPort: 80 }]],
    ['[2001:DB8::0:1]:8080:80', [{ protocol: 'tcp', addresses: ['2001:db8::1'], port: 8080, guestPort: 80 }]],
    [
      '8000-8001:90-91',
      [
        { protocol: 'tcp', addresses: both, port: 8000, guestPort: 90 },
        { protocol: 'tcp', addresses: both, port: 8001, guestPort: 91 },
      ],
    ],
  ] as const)
    expect([text, one(text)]).toEqual([text, expected as never])
})

test('what cannot be published is refused in words', () => {
  for (const [texts, words] of [
    [['8080:0'], 'a port is 1 to 65535'],
    [['8080:65536'], 'a port is 1 to 65535'],
    [['65536:80'], 'a port is 1 to 65535'],
    [['8000-8002:80-81'], 'its two ranges differ in length'],
    [['8002-8000:80-78'], 'a range ends where it begins, or behind'],
    [['999.1.1.1:80:80'], 'its address is none'],
    [['web:80'], 'expected [ADDRESS:]HOST:GUEST[/tcp|udp]'],
    [['80:80/sctp'], 'expected [ADDRESS:]HOST:GUEST[/tcp|udp]'],
    [['8080:80', '8080:81'], 'port 8080/tcp of 127.0.0.1 is there twice'],
    [['1-300:1-300'], '256 are the most'],
  ] as const)
    expect(() => readPublished(texts)).toThrow(words)
})

test('what is held is said as it can be asked for', () => {
  const held = (address: string, port: number, guestPort: number, protocol: 'tcp' | 'udp' = 'tcp') => ({
    address,
    port,
    guestPort,
    protocol,
  })
  expect(
    sayPublished([
      held('127.0.0.1', 8080, 80),
      held('::1', 8080, 80),
      held('0.0.0.0', 53, 53, 'udp'),
      held('::', 90, 90),
      held('::1', 91, 91),
    ]),
  ).toEqual(['8080:80/tcp', '0.0.0.0:53:53/udp', '[::]:90:90/tcp', '[::1]:91:91/tcp'])
})
