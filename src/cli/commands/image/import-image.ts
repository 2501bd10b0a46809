import { ImageImportQuery } from '../../../contract/image.ts'
import { command } from '../../command.ts'
import { bySchema, list, mebibytes, usageInvalid } from '../../flags.ts'
import { Progress } from '../../progress.ts'
import { bodyOf } from '../../upload.ts'
import { argv, defined } from '../../schema-flags.ts'

const of = ImageImportQuery.properties
const json = (words: readonly string[]): string => JSON.stringify(words)

export const importImage = command({
  usage: '[FLAGS] NAME FILE|DIR|-',
  detail: `FILE is what "docker export", "docker save" or tar writes (gzip, xz and zstd are seen through); DIR a root file system, e.g. of debootstrap.
What the flags do not say comes from the archive.`,
  flags: {
    entrypoint: argv('Program that an instance runs; a JSON array gives it arguments', { placeholder: 'PROGRAM' }),
    cmd: argv('Default command; a JSON array gives several words', { placeholder: 'COMMAND' }),
    env: list('Variable of the environment', 'NAME=VALUE', { short: 'e' }),
    user: bySchema(of.user, { short: 'u', placeholder: 'USER', help: 'user[:group] that an instance runs as' }),
    workdir: bySchema(of.workdir, { short: 'w', placeholder: 'DIR', help: 'Folder that an instance starts in' }),
    'max-size': mebibytes('Most that the image may hold, without the holes of sparse files (16g)', 1, 16_777_216),
    'max-entries': bySchema(of.max_entries, {
      placeholder: 'COUNT',
      help: 'Most files and folders of the archive (2000000)',
    }),
  },
  args: { min: 2, max: 2, nouns: ['none', 'file'] },
  async run(context, { flags, args }) {
    const [name = '', path = ''] = args
    for (const one of flags.env ?? [])
      if (one.indexOf('=') <= 0) throw usageInvalid({ reason: `Cannot use --env "${one}": expected NAME=VALUE` })
    const query: ImageImportQuery = {
      name,
      ...defined({
        entrypoint: flags.entrypoint && json(flags.entrypoint),
        cmd: flags.cmd && json(flags.cmd),
        env: flags.env && json(flags.env),
        user: flags.user,
        workdir: flags.workdir,
        max_size_mb: flags['max-size'],
        max_entries: flags['max-entries'],
      }),
    }
    if (!new RegExp(of.name.pattern ?? '').test(name)) {
      throw usageInvalid({
        reason: `Cannot name an image "${name}": expected a-z, 0-9 and inner . _ / : -`,
        hint: 'aerie image import NAME FILE|DIR|-',
      })
    }
    let failure: unknown
    using progress = new Progress(`image ${name}`, context.out.quiet)
    const body = bodyOf(context, path, progress, (error) => {
      failure = error
    })
    const client = await context.client('start')
    try {
      const image = await client.upload('image.import', { query }, body)
      progress.done()
      await context.out.show(image, {
        table: () => `${image.name ?? image.digest}\n`,
        name: () => [image.name ?? image.digest],
      })
      return 0
    } catch (error) {
      throw failure ?? error
    }
  },
})
