import { isIPv6 } from 'node:net'
import { command } from '../../command.ts'

export const list = command({
  usage: '[VM]',
  detail: 'Ports of this host that lead into vms, all of them or those of one vm.',
  flags: {},
  args: { min: 0, max: 1, nouns: ['vm'] },
  async run(context, { args: [vm] }) {
    const client = await context.client()
    const ports = await client.call('port.list', { query: vm === undefined ? {} : { vm } })
    const say = (address: string, port: number): string => `${isIPv6(address) ? `[${address}]` : address}:${port}`
    await context.out.show(ports, {
      table: () => ({
        columns: [{ title: 'VM', cut: true }, { title: 'HOST' }, { title: 'GUEST' }, { title: 'PROTOCOL' }],
        rows: ports.map((one) => [
          one.vm,
          say(one.host_address, one.host_port),
          say(one.ip_address, one.guest_port),
          one.protocol,
        ]),
      }),
      name: () => ports.map((one) => say(one.host_address, one.host_port)),
    })
    return 0
  },
})
