import { VmCreate } from '../contract/vm-spec.ts'
import { absolute, bandwidth, type Flag, list, rate, usageInvalid, type Values } from './flags.ts'
import { ENV_FLAGS, readEnv } from './guest-flags.ts'
import { defined, schemaFlags } from './schema-flags.ts'

type Card = NonNullable<VmCreate['nics']>[number] | NonNullable<VmCreate['network']>

/** Reads `NAME[,ip=ADDRESS][,mac=ADDRESS][,dhcp]`, or a way of being connected without a network. */
const readCard = (said: string): Card => {
  const [name = '', ...options] = said.split(',')
  if ((name === 'vsock' || name === 'none' || name === 'user') && options.length === 0)
    return { mode: name === 'user' ? 'user' : 'vsock' }
  const card: Record<string, string> = name === 'bridged' || name === 'dhcp' ? { mode: name } : { network: name }
  for (const option of options) {
    const [key = '', value] = option.split('=')
    if (key === 'ip' && value) card['ip_address'] = value
    else if (key === 'mac' && value) card['mac_address'] = value
    else if (key === 'dhcp' && value === undefined) card['mode'] = 'dhcp'
    else throw new RangeError(`"${option}" is none of ip=ADDRESS, mac=ADDRESS, dhcp`)
  }
  return card as Card
}

/** The cards of a vm, one a flag. */
const NETWORK: Flag<readonly Card[]> = {
  kind: 'many',
  placeholder: 'NETWORK[,ip=…]',
  aliases: ['net'],
  words: ['vsock', 'user'],
  noun: 'network',
  help: "A card in a network; vsock: no card; user: QEMU's own, which can reach this host's loopback (the daemon's default)",
  read: (said, before = []) => [...before, readCard(said)],
}

/** Ports of the host, one a flag. */
export const PUBLISH = list(
  'A port of the host that leads into it; 0 picks one; the loopback where no address is said',
  '[ADDR:]HOST:GUEST[/udp]',
  {
    short: 'p',
  },
)

/** What a new vm can be told, read off the contract; here stands only what a flag says otherwise than its field. */
const FIELDS = schemaFlags(VmCreate, {
  omit: ['image', 'cmd', 'env', 'tty', 'hold', 'auto_remove', 'plugin', 'runtime', 'network', 'nics', 'publish'],
  more: {
    name: { placeholder: 'NAME', help: 'Name of the vm: a-z, 0-9, inner dashes, at most 63, not digits alone' },
    cpu_cores: { aliases: ['cpus'] },
    memory_mb: { short: 'm' },
    workdir: { flag: absolute('Folder that the command starts in', 'DIR', { short: 'w', aliases: ['cwd'] }) },
    user: { short: 'u', placeholder: 'USER' },
    entrypoint: { help: 'Program instead of the image\'s; a JSON array gives it arguments, "" none' },
    port: { placeholder: 'PORT' },
    metadata: { help: 'A label', short: 'l', aliases: ['label'] },
    kernel: { placeholder: 'KERNEL' },
    hypervisor: { help: "Driver (the daemon's)" },
    network_bandwidth_download: {
      flag: bandwidth("What each card receives a second, as 100Mbps (by its share of the host's CPUs)"),
    },
    network_bandwidth_upload: {
      flag: bandwidth("What each card sends a second, as 100Mbps (by its share of the host's CPUs)"),
    },
    disk_io_bps: {
      flag: rate("What the vm's own disks may read and write a second, after a burst, as 100MB/s (the daemon's)"),
    },
  },
})
export const VM_FLAGS = { ...FIELDS.flags, ...ENV_FLAGS, network: NETWORK, publish: PUBLISH }

const cardsOf = (cards: readonly Card[] | undefined): Pick<VmCreate, 'network' | 'nics'> => {
  const [network, ...others] = cards ?? []
  const [odd] = others.filter(({ mode }) => mode === 'vsock' || mode === 'user')
  if (odd) throw usageInvalid({ reason: `Cannot use --network ${odd.mode} beside another network` })
  return {
    ...(network && { network }),
    ...(others.length > 0 && { nics: others as NonNullable<VmCreate['nics']> }),
  }
}

/** Flags → the body of `vm.create`. */
export const vmCreateOf = (
  image: string,
  flags: Values<typeof VM_FLAGS>,
  cmd: readonly string[] | undefined,
  own: Readonly<Record<string, string | undefined>>,
): VmCreate => ({
  image,
  ...FIELDS.said(flags),
  ...cardsOf(flags.network),
  ...(flags.publish && { publish: [...flags.publish] }),
  ...defined({ cmd: cmd?.length === 0 ? undefined : cmd && [...cmd], env: readEnv(flags, own) }),
})
