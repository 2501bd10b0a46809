import { command } from '../../command.ts'
import { usageInvalid } from '../../flags.ts'

/**
 * Asks this program itself what may follow. The words stand in the command's own order up to the cursor; `compopt`
 * keeps bash from putting a space after a flag that wants its value, and files are bash's own business.
 */
const BASH = `_aerie() {
  COMPREPLY=()
  local line
  while IFS= read -r line; do
    case "$line" in
      :file) compopt -o default 2>/dev/null; COMPREPLY=() ; return ;;
      *) COMPREPLY+=("$line") ;;
    esac
  done < <("\${COMP_WORDS[0]}" __complete -- "\${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}
complete -o nosort -F _aerie aerie 2>/dev/null || complete -F _aerie aerie
`

export const completion = command({
  usage: 'bash',
  detail: 'eval "$(aerie completion bash)" in ~/.bashrc, or into /etc/bash_completion.d/aerie.',
  flags: {},
  args: { min: 1, max: 1 },
  async run(context, { args }) {
    if (args[0] !== 'bash')
      throw usageInvalid({
        reason: `Cannot complete in "${args[0]}": only bash is known`,
        hint: 'aerie completion bash',
      })
    await context.out.text(BASH)
    return 0
  },
})
