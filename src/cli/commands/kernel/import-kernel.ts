import { basename } from 'node:path'
import { statSync } from 'node:fs'
import { packAll, realLocal } from '../../../client/tar.ts'
import { command } from '../../command.ts'
import { mebibytes, text, usageInvalid, yes } from '../../flags.ts'
import { defined } from '../../schema-flags.ts'
import { Progress } from '../../progress.ts'
import { bodyOf, headOf, notAFile } from '../../upload.ts'

/** Tells what a file is by its first bytes: an ELF, a bzImage (boot protocol: "HdrS" at 0x202), or something packed. */
const kernelName = (path: string): 'vmlinux' | 'vmlinuz' | undefined => {
  const head = headOf(path, 0x206)
  if (head.subarray(0, 4).equals(Buffer.from('\x7fELF', 'latin1'))) return 'vmlinux'
  return head.subarray(0x202, 0x206).toString('latin1') === 'HdrS' ? 'vmlinuz' : undefined
}

/** Finds the place of a modules folder in the archive: its name is the version, as in /lib/modules/6.1.0-44. */
const modulesPath = (folder: string): string => {
  const name = basename(folder)
  if (!/^\d+\.\d+/.test(name))
    throw notAFile({ path: folder, reason: 'it is not named after a kernel version, as lib/modules/VERSION is' })
  return `lib/modules/${name}`
}

export const importKernel = command({
  usage: '[FLAGS] FILE|DIR|- [MODULES]',
  detail: `FILE is a Debian linux-image .deb, a vmlinuz or vmlinux, or a tar of one with lib/modules; DIR a folder with vmlinuz and lib/modules.
MODULES is the folder lib/modules/VERSION of a vmlinuz or vmlinux.`,
  flags: {
    name: text('What it is called (its version)', 'NAME'),
    default: yes('New vms use it'),
    'max-size': mebibytes('Most that FILE may unpack to (4g)', 1, 16_777_216),
  },
  args: { min: 1, max: 2, nouns: ['file', 'file'] },
  async run(context, { flags, args }) {
    const [path = '', modules] = args
    const label = path === '-' ? 'kernel' : `kernel ${basename(path)}`
    const real = path === '-' ? '-' : realLocal(path)
    const kind = real !== '-' && statSync(real).isFile() ? kernelName(real) : undefined
    if (modules !== undefined && kind === undefined)
      throw usageInvalid({ reason: `Cannot take modules for "${path}": it is neither a vmlinuz nor a vmlinux` })
    let failure: unknown
    const failed = (error: unknown) => {
      failure = error
    }
    using progress = new Progress(label, context.out.quiet)
    const body =
      kind === undefined
        ? bodyOf(context, real, progress, failed)
        : packAll(
            [
              { path: real, as: kind },
              ...(modules === undefined ? [] : [{ path: realLocal(modules), as: modulesPath(realLocal(modules)) }]),
            ],
            { progress: progress.at, failed },
          )
    const client = await context.client('start')
    try {
      const query = defined({ name: flags.name, default: flags.default, max_size_mb: flags['max-size'] })
      const kernel = await client.upload('kernel.import', { query }, body)
      progress.done()
      await context.out.show(kernel, { table: () => `${kernel.name}\n`, name: () => [kernel.name] })
      return 0
    } catch (error) {
      throw failure ?? error
    }
  },
})
