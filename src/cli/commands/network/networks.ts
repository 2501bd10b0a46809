import { readFileSync, writeFileSync } from 'node:fs'
import { Value } from '@sinclair/typebox/value'
import type { Client } from '../../../client/client.ts'
import { IpamFile, NetworkCreate, NetworkUpdate } from '../../../contract/network.ts'
import { plainJson } from '../../../lib/plain.ts'
import { command } from '../../command.ts'
import { EGRESS } from '../../egress-flag.ts'
import { text, usageInvalid } from '../../flags.ts'
import { pairs, schemaFlags } from '../../schema-flags.ts'
import { inspecting, listing, onEach } from '../../shapes.ts'

export const list = listing({
  list: (client) => client.call('network.list', {}),
  table: (networks) => ({
    columns: [
      { title: 'NAME', cut: true },
      { title: 'DEFAULT' },
      { title: 'TYPE' },
      { title: 'SUBNET' },
      { title: 'GATEWAY' },
      { title: 'LINK' },
      { title: 'PEERS' },
      { title: 'EGRESS' },
      { title: 'USED', right: true },
    ],
    rows: networks.map((one) => [
      one.name,
      one.default ? 'yes' : '',
      one.type,
      one.subnet ?? '',
      one.gateway ?? '',
      one.bridge ?? one.parent ?? '',
      one.peer,
      one.egress.policy,
      one.subnet === null ? String(one.addresses_used) : `${one.addresses_used}/${one.addresses_total}`,
    ]),
  }),
  nameOf: ({ name }) => name,
})

export const inspect = inspecting('network', {
  get: (client: Client, name) => client.call('network.get', { params: { name } }),
  nameOf: ({ name }) => name,
})

export const remove = onEach('network', {
  async act(client, name) {
    await client.call('network.delete', { params: { name } })
    return { name }
  },
})

/** Reads `NAME=ADDRESS`, any number of them. */
const RESERVATION = {
  reservations: {
    as: 'reserve',
    flag: pairs('reserve', 'Keeps an address for the vm or container of a name', { placeholder: 'NAME=ADDRESS' }),
  },
} as const

const EGRESS_FIELD = { egress: { flag: EGRESS } } as const

const CREATE = schemaFlags(NetworkCreate, {
  omit: ['name', 'pool'],
  more: {
    ...RESERVATION,
    ...EGRESS_FIELD,
    subnet: { placeholder: 'RANGE' },
    gateway: { placeholder: 'ADDRESS' },
    ipv6: { placeholder: 'auto|off|PREFIX' },
    mtu: { placeholder: 'BYTES' },
    parent: { placeholder: 'NIC' },
  },
})

/** Reads `FIRST-LAST`. */
const readPool = (said: string): { readonly start: string; readonly end: string } => {
  const [start, end, ...more] = said.split('-')
  if (start === undefined || end === undefined || more.length > 0)
    throw usageInvalid({ reason: `Cannot use --pool "${said}": expected FIRST-LAST` })
  return { start, end }
}

export const create = command({
  usage: '[FLAGS] NAME',
  detail: `  bridged     vms and containers share one link; out by NAT, in by published ports
  isolated    a namespace of its own without a way out; exec works all the same
  host-only   out by NAT, in by published ports
  macvtap     on a NIC of this host, given by --parent`,
  flags: { ...CREATE.flags, pool: text('What is given out', 'FIRST-LAST') },
  args: { min: 1, max: 1, nouns: ['none'] },
  async run(context, { flags, args: [name = ''] }) {
    const client = await context.client('start')
    const body = { name, ...CREATE.said(flags), ...(flags.pool !== undefined && { pool: readPool(flags.pool) }) }
    await context.out.done(await client.call('network.create', { body }))
    return 0
  },
})

const UPDATE = schemaFlags(NetworkUpdate, { more: { ...RESERVATION, ...EGRESS_FIELD } })

export const update = command({
  usage: '[FLAGS] NAME',
  detail:
    'Changes what a network allows, also of vms that run. Reservations that are said replace all that there were.',
  flags: UPDATE.flags,
  args: { min: 1, max: 1, nouns: ['network'] },
  async run(context, { flags, args: [name = ''] }) {
    const body = UPDATE.said(flags)
    if (Object.keys(body).length === 0)
      throw usageInvalid({
        reason: 'Cannot change a network: nothing is said',
        hint: '--peer, --egress, --reserve or --dhcp',
      })
    const client = await context.client()
    await context.out.done(await client.call('network.update', { params: { name }, body }))
    return 0
  },
})

export const importFile = command({
  usage: 'FILE',
  detail: 'Makes a network of a file with network, subnet, gateway, pool and reservations; - is stdin.',
  flags: {},
  args: { min: 1, max: 1, nouns: ['file'] },
  async run(context, { args: [path = ''] }) {
    let file: unknown
    try {
      file = JSON.parse(readFileSync(path === '-' ? 0 : path, 'utf8'))
    } catch (error) {
      throw usageInvalid({ reason: `Cannot read "${path}": ${error instanceof Error ? error.message : String(error)}` })
    }
    const wrong = Value.Errors(IpamFile, file).First()
    if (wrong)
      throw usageInvalid({
        reason: `Cannot use "${path}": ${wrong.path.slice(1).replaceAll('/', '.')}: ${wrong.message}`,
      })
    const client = await context.client('start')
    await context.out.done(await client.call('network.import', { body: file as IpamFile }))
    return 0
  },
})

export const exportFile = command({
  usage: '[FLAGS] NAME',
  detail: 'Writes the address management file of a network, as `network import` reads it.',
  flags: { output: text('File to write; stdout where absent', 'FILE', { short: 'f' }) },
  args: { min: 1, max: 1, nouns: ['network'] },
  async run(context, { flags, args: [name = ''] }) {
    const client = await context.client()
    const file = await client.call('network.export', { params: { name } })
    if (flags.output === undefined)
      await context.out.show(file, { table: () => `${plainJson(file, 2)}\n`, name: () => [name] })
    else writeFileSync(flags.output, `${JSON.stringify(file, null, 2)}\n`)
    return 0
  },
})

export const attach = command({
  usage: '[FLAGS] NETWORK',
  detail:
    'Gives a container a card: a pair of links, one end in the network, the other in the namespace of the container, with its addresses and routes.',
  flags: {
    container: text('Name of the container, by which the others find it', 'NAME'),
    netns: text('Its network namespace; the end stays on this host without it', 'PATH|PID'),
    ip: text('Its address (the next that is free)', 'ADDRESS'),
  },
  args: { min: 1, max: 1, nouns: ['network'] },
  async run(context, { flags, args: [name = ''] }) {
    if (flags.container === undefined)
      throw usageInvalid({ reason: 'Cannot attach a container: it has no name', hint: 'Name it with --container' })
    const client = await context.client()
    const body = {
      container: flags.container,
      ...(flags.netns !== undefined && { netns: flags.netns }),
      ...(flags.ip !== undefined && { ip_address: flags.ip }),
    }
    const lease = await client.call('network.attach', { params: { name }, body })
    await context.out.show(lease, { table: () => `${plainJson(lease, 2)}\n`, name: () => [lease.name] })
    return 0
  },
})

export const detach = command({
  usage: '[FLAGS] NETWORK',
  detail: 'Takes a container out of a network; its pair of links goes.',
  flags: { container: text('Name of the container', 'NAME') },
  args: { min: 1, max: 1, nouns: ['network'] },
  async run(context, { flags, args: [name = ''] }) {
    if (flags.container === undefined)
      throw usageInvalid({ reason: 'Cannot detach a container: it has no name', hint: 'Name it with --container' })
    const client = await context.client()
    await client.call('network.detach', { params: { name, container: flags.container } })
    await context.out.done({ name: flags.container })
    return 0
  },
})
