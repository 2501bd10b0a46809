import { expect, test } from 'bun:test'
import { join } from 'node:path'

const SOURCE = join(import.meta.dir, '../../src/cli/stdio.ts')
const asks = (input: 'null' | 'zero' | 'file'): string => {
  const file = input === 'file' ? import.meta.path : `/dev/${input}`
  const program = `import { isTerminal } from '${SOURCE}'
    console.log(isTerminal(0))`
  return Bun.spawnSync([process.execPath, '-e', program], { stdin: Bun.file(file) })
    .stdout.toString()
    .trim()
}

test.each(['null', 'zero', 'file'] as const)('%s is no terminal', (input) => {
  expect(asks(input)).toBe('false')
})

test('a terminal is one', async () => {
  const program = `import { isTerminal } from '${SOURCE}'
    console.log(isTerminal(0), isTerminal(1))`
  let said = ''
  await using terminal = new Bun.Terminal({
    cols: 80,
    rows: 24,
    data: (_, bytes) => {
      said += new TextDecoder().decode(bytes)
    },
  })
  await Bun.spawn([process.execPath, '-e', program], { terminal }).exited
  while (!said.includes('\n')) await new Promise((resolve) => setImmediate(resolve))

  expect(said.replaceAll(/\x1b\[\d*m/g, '').trim()).toBe('true true')
})
