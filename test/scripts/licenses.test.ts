import { expect, test } from 'bun:test'
import { join } from 'node:path'
import about from '../../package.json'

const ROOT = join(import.meta.dir, '../..')

test('the licences of everything in the file are told, and none binds the file as a whole', () => {
  const ran = Bun.spawnSync(['bun', 'scripts/licenses'], { cwd: ROOT, stderr: 'pipe' })
  const text = ran.stdout.toString()

  expect(ran.stderr.toString()).toBe('')
  for (const name of Object.keys(about.dependencies)) expect(text).toContain(`${name} (npm) `)
  for (const name of ['libc', 'kvm-ioctls', 'serde_json', 'sha2']) expect(text).toContain(`${name} (crate) `)
  expect(text).not.toContain('biome')
  expect(text).toContain('TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION')
  expect(text).not.toContain('GNU AFFERO')
  expect(text).not.toContain('GNU GENERAL PUBLIC LICENSE')
})
