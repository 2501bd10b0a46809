import { sayBytes } from '../../../lib/bytes.ts'
import { Fault, fault } from '../../../lib/fault.ts'
import { command } from '../../command.ts'
import { yes } from '../../flags.ts'
import { renderFields } from '../../table.ts'

const noKernelInside = fault(
  'kernel_config_missing',
  'not_found',
  {},
  () => 'Cannot show the configuration of a kernel: this file brings none',
)

export const version = command({
  usage: '[FLAGS]',
  flags: {
    short: yes('The version of this program only'),
    contents: yes('The guest kernel and the image in this file, and where the source of the kernel is'),
    kernelConfig: yes('The configuration that the guest kernel in this file was built with'),
    licenses: yes('The licences of this program and of everything in its file'),
  },
  args: { min: 0, max: 0 },
  async run(context, { flags }) {
    const { version } = context.programs
    if (flags.short) {
      await context.out.line(version)
      return 0
    }
    if (flags.licenses) {
      await context.out.text(await context.programs.licenses())
      return 0
    }
    if (flags.contents || flags.kernelConfig) {
      const { kernel, kernelConfig, base } = await context.programs.contents()
      if (flags.kernelConfig) {
        if (kernelConfig === '') throw noKernelInside({})
        await context.out.text(kernelConfig)
        return 0
      }
      await context.out.show(
        { version, kernel, base },
        {
          table: () =>
            renderFields(
              [
                ['Program', version],
                [
                  'Kernel',
                  kernel === null
                    ? 'none'
                    : `${kernel.version}, ${sayBytes(kernel.size_bytes)}, ${kernel.modules === 0 ? 'without modules' : `${kernel.modules} modules`}`,
                ],
                ...(kernel === null ? [] : [['Source', kernel.source.replaceAll('\n', '; ')] as const]),
                ['Image', base === null ? 'none' : `${base.name}, ${sayBytes(base.size_bytes)}`],
              ],
              context.out.look,
            ),
          name: () => [version],
        },
      )
      return 0
    }
    let daemon: { readonly version: string; readonly api: string; readonly generation: number } | null = null
    try {
      const info = await (await context.client()).call('system.info', {}, { signal: AbortSignal.timeout(3000) })
      daemon = { version: info.version, api: info.api, generation: info.generation }
    } catch (error) {
      // A version of our own is an answer also where no daemon is; an address that was asked for and is wrong is not.
      if (context.globals.host !== undefined || (error instanceof Fault && error.kind !== 'unavailable')) throw error
    }
    await context.out.show(
      { client: { version }, daemon },
      {
        table: () =>
          renderFields(
            [
              ['Program', version],
              ['Daemon', daemon === null ? 'none answers' : daemon.version],
              ...(daemon === null
                ? []
                : ([
                    ['API', daemon.api],
                    ['Guest protocol', String(daemon.generation)],
                  ] as const)),
            ],
            context.out.look,
          ),
        name: () => [version],
      },
    )
    return 0
  },
})
