import { command } from '../../command.ts'
import { text, usageInvalid, yes } from '../../flags.ts'
import { ttyChoice } from '../../guest-flags.ts'
import { sayPicked } from '../../made.ts'
import { VM_FLAGS, vmCreateOf } from '../../vm-flags.ts'

export const create = command({
  usage: '[FLAGS] IMAGE [NAME] [-- COMMAND…]',
  detail: 'Answers when the guest is ready, and prints the name of the vm.',
  flags: {
    ...VM_FLAGS,
    image: text('The image, where it is no argument', 'IMAGE'),
    tty: yes('Give the workload a terminal', { short: 't' }),
    rm: yes('Delete the vm when it has stopped'),
  },
  args: { min: 0, max: 2, nouns: ['image', 'none'] },
  command: true,
  async run(context, { flags, args, rest }) {
    // `create NAME --image IMAGE` as well as `create IMAGE NAME`.
    const [image, name] = flags.image === undefined ? args : [flags.image, args[0]]
    if (image === undefined)
      throw usageInvalid({
        reason: 'Cannot create a vm: the image is missing',
        hint: 'aerie create IMAGE [NAME]; "aerie image ls" lists images',
      })
    if (flags.image !== undefined && args.length > 1)
      throw usageInvalid({ reason: `Cannot create a vm: "${args[1]}" is one argument too many` })
    if (name !== undefined && flags.name !== undefined && name !== flags.name) {
      throw usageInvalid({ reason: `Cannot create a vm: it is named "${name}" and "${flags.name}"` })
    }
    const body = vmCreateOf(image, { ...flags, ...(name !== undefined && { name }) }, rest, context.env)
    const client = await context.client('start')
    const asked = { ...body, ...ttyChoice(flags), ...(flags.rm && { auto_remove: true }) }
    const vm = await client.call('vm.create', { body: asked })
    sayPicked(context.out, asked, vm)
    await context.out.done(vm)
    return 0
  },
})
