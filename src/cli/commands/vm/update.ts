import { command } from '../../command.ts'
import { bandwidth, usageInvalid, yes } from '../../flags.ts'
import { EGRESS } from '../../egress-flag.ts'
import { defined } from '../../schema-flags.ts'
import { PUBLISH } from '../../vm-flags.ts'

export const update = command({
  usage: '[FLAGS] VM',
  detail: 'Changes a vm, also while it runs. Ports that are said replace all that there were.',
  flags: {
    publish: PUBLISH,
    noPublish: yes('Publish no port any more'),
    egress: EGRESS,
    networkBandwidthDownload: bandwidth('What each card receives a second, as 100Mbps; 0: by its share of the CPUs'),
    networkBandwidthUpload: bandwidth('What each card sends a second, as 100Mbps; 0: by its share of the CPUs'),
  },
  args: { min: 1, max: 1, nouns: ['vm'] },
  async run(context, { flags, args: [name = ''] }) {
    const body = defined({
      publish: flags.noPublish === true ? [] : flags.publish && [...flags.publish],
      egress: flags.egress,
      network_bandwidth_download: flags.networkBandwidthDownload,
      network_bandwidth_upload: flags.networkBandwidthUpload,
    })
    if (Object.keys(body).length === 0)
      throw usageInvalid({
        reason: 'Cannot change a vm: nothing is said',
        hint: '--publish, --egress, --network-bandwidth-download …',
      })
    const client = await context.client()
    await context.out.done(await client.call('vm.update', { params: { name }, body }))
    return 0
  },
})
