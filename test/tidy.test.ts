import { expect, test } from 'bun:test'
import { Glob } from 'bun'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { basename, dirname, join, normalize, relative } from 'node:path'
import { HypervisorName } from '../src/contract/hypervisor.ts'

/*
 * The rules of the tree (style.md, "The tree"; design.md, "Layout"), read off the sources. A rule that no program
 * checks is a wish.
 */

const SRC = join(import.meta.dir, '../src')

/** A folder imports its own row and the rows above it here. */
const ROWS: readonly (readonly string[])[] = [
  ['contract', 'lib'],
  ['linux', 'store', 'event'],
  ['job'],
  ['hypervisor', 'network', 'volume', 'image', 'kernel', 'device', 'guest', 'snapshot', 'cloudinit', 'client'],
  ['vm'],
  ['deployment', 'manifest', 'function', 'provision', 'system'],
  ['http', 'gateway', 'cli', 'web', 'mcp'],
]

/**
 * What stands in `src/` itself belongs to everybody or to nobody: `version.ts` imports nothing of ours, `config.ts` and
 * `host.ts` are what the verbs take, and the two roots put everything together and are imported by no one.
 */
const ROOT_ROWS: Readonly<Record<string, number>> = {
  'version.ts': 0,
  'declarations.d.ts': 0,
  'config.ts': 3,
  'host.ts': 4,
  'daemon.ts': 6,
  'main.ts': 7,
}
/** The edges that speak to a daemon and never are one. */
const THIN = ['cli', 'web']
const THIN_MAY = ['client', 'contract', 'lib']

interface Import {
  readonly file: string
  readonly line: number
  readonly target: string
  readonly typeOnly: boolean
  readonly lazy: boolean
}
interface Source {
  readonly file: string
  readonly text: string
  readonly imports: readonly Import[]
}

const statement = /(?<=^|\n)[ \t]*(?:import|export)\s+(type\s+)?([^'"`;]*?\s+from\s+)?'([^']+)'/g
const dynamic = /\bimport\(\s*'([^']+)'\s*\)/g

/** Comments out of the way, lines kept: what stands in one is no code. */
const withoutComments = (text: string): string =>
  text.replaceAll(/'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"|`(?:[^`\\]|\\.)*`|\/\*[\s\S]*?\*\/|\/\/[^\n]*/g, (found) =>
    found.startsWith('/') ? found.replaceAll(/[^\n]/g, ' ') : found,
  )

const isTypeOnly = (keyword: string | undefined, clause: string | undefined): boolean => {
  if (keyword !== undefined) return true
  const names = /^\{([\s\S]*)\}\s+from\s+$/.exec((clause ?? '').trimStart())?.[1]
  if (names === undefined) return false
  return names
    .split(',')
    .map((name) => name.trim())
    .filter((name) => name !== '')
    .every((name) => name.startsWith('type '))
}

const importsOf = (file: string, text: string): Import[] => {
  const code = withoutComments(text)
  const found: Import[] = []
  const add = (specifier: string, at: number, typeOnly: boolean, lazy: boolean) => {
    if (!specifier.startsWith('.')) return
    found.push({
      file,
      line: code.slice(0, at).split('\n').length,
      typeOnly,
      lazy,
      target: relative(SRC, normalize(join(SRC, dirname(file), specifier))),
    })
  }
  for (const match of code.matchAll(statement)) add(match[3] ?? '', match.index, isTypeOnly(match[1], match[2]), false)
  for (const match of code.matchAll(dynamic))
    add(match[1] ?? '', match.index, /:\s*$|typeof\s*$|\|\s*$/.test(code.slice(0, match.index)), true)
  return found
}

const sources: readonly Source[] = [...new Glob('**/*.ts').scanSync(SRC)].sort().map((file) => {
  const text = readFileSync(join(SRC, file), 'utf8')
  return { file, text, imports: importsOf(file, text) }
})
const ours = sources.flatMap((source) => source.imports).filter((one) => !one.target.startsWith('..'))
const folderOf = (file: string): string | undefined =>
  file.includes('/') ? file.slice(0, file.indexOf('/')) : undefined
const rowOf = (file: string): number | undefined => {
  const folder = folderOf(file)
  if (folder === undefined) return ROOT_ROWS[file]
  const row = ROWS.findIndex((folders) => folders.includes(folder))
  return row < 0 ? undefined : row
}
const say = (one: Import): string => `${one.file}:${one.line} imports ${one.target}`

test('the reader of imports sees every form there is', () => {
  const text = `import { a } from './a.ts'
import type { B } from './b.ts'
import c, {
  type C,
  d,
} from './c.ts'
import { type E, type F } from './e.ts'
export { g } from './g.ts'
export type { H } from './h.ts'
import './i.ts'
const j = await import('./j.ts')
const k: import('./k.ts').K = 1
import data from './l.json' with { type: 'json' }
// import { m } from './m.ts'
/* import { n } from './n.ts' */
const o = 'http://x' // import('./o.ts')
import { p } from 'drizzle-orm'`

  const seen = importsOf('vm/x.ts', text)
    .map((one) => [one.line, one.target, one.typeOnly] as const)
    .sort((a, b) => a[0] - b[0] || (a[1] < b[1] ? -1 : 1))

  expect(seen).toEqual([
    [1, 'vm/a.ts', false],
    [2, 'vm/b.ts', true],
    [3, 'vm/c.ts', false],
    [7, 'vm/e.ts', true],
    [8, 'vm/g.ts', false],
    [9, 'vm/h.ts', true],
    [10, 'vm/i.ts', false],
    [11, 'vm/j.ts', false],
    [12, 'vm/k.ts', true],
    [13, 'vm/l.json', false],
  ])
  expect(ours.length).toBeGreaterThan(200)
})

test('every file belongs to a row', () => {
  expect(sources.map((source) => source.file).filter((file) => rowOf(file) === undefined)).toEqual([])
})

test('every import names a file that is there, with its extension', () => {
  const wrong = ours.filter((one) => !existsSync(join(SRC, one.target)))

  expect(wrong.map(say)).toEqual([])
})

test('a folder imports its own row and the rows before it', () => {
  const wrong = ours.filter((one) => {
    const from = rowOf(one.file) ?? 0
    const to = rowOf(one.target) ?? Number.POSITIVE_INFINITY
    return to > from
  })

  expect(wrong.map(say)).toEqual([])
})

/** The rooms below the verbs of `vm`, the lowest first: each imports itself and those before it. */
const VM_ROOMS = ['vm/row', 'vm/log', 'vm/machine']

test('no verb of a vm imports a verb, and no room below them does', () => {
  const isVerb = (file: string) => dirname(file) === 'vm'
  const wrong = ours.filter((one) => one.file.startsWith('vm/') && isVerb(one.target))

  expect(sources.filter((source) => isVerb(source.file)).length).toBeGreaterThan(10)
  expect(wrong.map(say)).toEqual([])
})

test('a room of a vm imports itself and the rooms below it', () => {
  const wrong = ours.filter((one) => {
    const from = VM_ROOMS.indexOf(dirname(one.file))
    return from >= 0 && VM_ROOMS.indexOf(dirname(one.target)) > from
  })

  expect(
    sources.map((source) => dirname(source.file)).filter((room) => room.startsWith('vm/') && !VM_ROOMS.includes(room)),
  ).toEqual([])
  expect(wrong.map(say)).toEqual([])
})

/**
 * Layers that name their files after what they stand for: a noun (`vm.ts`) or a verb (`create.ts`) has its file in each
 * of them, as it has in the room that does it, and a driver the same parts as the next driver.
 */
const isNamesake = (file: string): boolean =>
  /^(contract|cli\/commands|hypervisor\/drivers)\//.test(file) || basename(file) === 'errors.ts'

test('no two files of different rooms have one base name', () => {
  const rooms = new Map<string, string[]>()
  for (const { file } of sources) {
    const name = basename(file)
    if (!isNamesake(file)) rooms.set(name, [...(rooms.get(name) ?? []), dirname(file)])
  }

  expect(rooms.size).toBeGreaterThan(120)
  expect([...rooms].filter(([, where]) => where.length > 1)).toEqual([])
})

test('nobody imports the two roots, but the one the other', () => {
  const wrong = ours.filter((one) => (one.target === 'main.ts' || one.target === 'daemon.ts') && one.file !== 'main.ts')

  expect(wrong.map(say)).toEqual([])
})

test('a concrete driver is named by the composition root alone', () => {
  const isDriver = (file: string) => /(^|\/)drivers\//.test(file)
  const wrong = ours.filter(
    (one) => isDriver(one.target) && !isDriver(one.file) && one.file !== 'daemon.ts' && one.file !== 'main.ts',
  )

  expect(ours.filter((one) => isDriver(one.target)).length).toBeGreaterThan(2)
  expect(wrong.map(say)).toEqual([])
})

test('a driver is a folder, known by name to the composition root and the one union of names alone', () => {
  const names = HypervisorName.anyOf.map((one) => one.const)
  const folders = readdirSync(join(SRC, 'hypervisor/drivers'), { withFileTypes: true }).filter((one) =>
    one.isDirectory(),
  )
  const quoted = new RegExp(`(['"\`])(${names.join('|')})\\1`, 'i')
  const mayName = (file: string) =>
    file === 'daemon.ts' || file === 'contract/hypervisor.ts' || file.startsWith('hypervisor/drivers/')
  const own = new RegExp(`^hypervisor/drivers/(${names.join('|')})/`)
  const nameOf = (file: string) => own.exec(file)?.[1]

  expect(folders.map((one) => one.name).sort()).toEqual([...names].sort())
  expect(places(quoted, (file) => mayName(file)).length).toBeGreaterThan(names.length)
  expect(places(quoted, (file) => !mayName(file))).toEqual([])
  expect(
    ours
      .filter((one) => {
        const to = nameOf(one.target)
        const isMain = one.target === `hypervisor/drivers/${to}/${to}.ts`
        return to !== undefined && to !== nameOf(one.file) && !isMain && one.file !== 'main.ts'
      })
      .map(say),
  ).toEqual([])
})

test('the command line and the dashboard know the contract and the client, and nothing of a daemon', () => {
  const wrong = ours.filter((one) => {
    const from = folderOf(one.file) ?? ''
    const to = folderOf(one.target)
    return (
      THIN.includes(from) && to !== from && (to === undefined ? one.target !== 'version.ts' : !THIN_MAY.includes(to))
    )
  })

  expect(wrong.map(say)).toEqual([])
})

test('the contract imports itself and TypeBox, and the library nothing of ours', () => {
  const packages = (folder: string) =>
    new Set(
      sources
        .filter((source) => folderOf(source.file) === folder)
        .flatMap((source) =>
          [...withoutComments(source.text).matchAll(/from\s+'([^'.][^']*)'/g)].map((match) => match[1]),
        ),
    )

  expect([...packages('contract')]).toEqual(['@sinclair/typebox'])
  expect(
    ours.filter((one) => folderOf(one.file) === 'contract' && folderOf(one.target) !== 'contract').map(say),
  ).toEqual([])
  expect(ours.filter((one) => folderOf(one.file) === 'lib' && folderOf(one.target) !== 'lib').map(say)).toEqual([])
})

test('no file needs itself in order to load', () => {
  const next = new Map<string, string[]>()
  for (const one of ours)
    if (!one.typeOnly && !one.lazy) next.set(one.file, [...(next.get(one.file) ?? []), one.target])
  const cycles: string[] = []
  const done = new Set<string>()
  const visit = (file: string, path: readonly string[]): void => {
    const at = path.indexOf(file)
    if (at >= 0) {
      cycles.push([...path.slice(at), file].join(' → '))
      return
    }
    if (done.has(file)) return
    for (const target of next.get(file) ?? []) visit(target, [...path, file])
    done.add(file)
  }
  for (const file of next.keys()) visit(file, [])

  expect(cycles).toEqual([])
})

/** Where a pattern stands in the code of a file, `file:line`. */
const places = (pattern: RegExp, within: (file: string) => boolean = () => true): string[] =>
  sources
    .filter((source) => within(source.file))
    .flatMap((source) => {
      const code = withoutComments(source.text)
      return [...code.matchAll(new RegExp(pattern, 'g'))].map(
        (match) => `${source.file}:${code.slice(0, match.index).split('\n').length}`,
      )
    })

test('a transaction is synchronous: bun:sqlite does not roll back one that is not', () => {
  expect(places(/transaction\(\s*async\b|immediate\([^,()]*,\s*async\b/)).toEqual([])
})

test('a fault is declared once, and never made by hand', () => {
  expect(places(/\bnew Fault\(/, (file) => !file.startsWith('lib/'))).toEqual([])

  /** The caller's side has declarations of its own: what it meets is no answer of a daemon. */
  const declared = new Map<string, string[]>()
  for (const { file, text } of sources)
    if (!['cli', 'client'].includes(folderOf(file) ?? ''))
      for (const [, code = ''] of withoutComments(text).matchAll(/\bfault\(\s*'([a-z_]+)'/g))
        declared.set(code, [...(declared.get(code) ?? []), file])
  expect(declared.size).toBeGreaterThan(50)
  expect([...declared].filter(([, files]) => files.length > 1)).toEqual([])
})

test('nothing is any', () => {
  expect(places(/[:<,|&(]\s*any\b(?!\()|\bas any\b|\bany\[\]/)).toEqual([])
  expect(
    sources.filter((source) => /@ts-(ignore|nocheck|expect-error)/.test(source.text)).map((source) => source.file),
  ).toEqual([])
})

test('nothing is left for later', () => {
  const word = new RegExp(
    `\\b(${['TO', 'FIX', 'X', 'HA'].map((start, index) => start + ['DO', 'ME', 'XX', 'CK'][index]).join('|')})\\b`,
  )
  const found = sources.flatMap((source) =>
    source.text.split('\n').flatMap((line, index) => (word.test(line) ? [`${source.file}:${index + 1}`] : [])),
  )

  expect(found).toEqual([])
})

test('a file is one noun or one verb: none has more than 600 lines', () => {
  expect(sources.filter((source) => source.text.split('\n').length > 600).map((source) => source.file)).toEqual([])
})

test('file names are in kebab-case', () => {
  expect(
    sources
      .map((source) => source.file)
      .filter((file) => !/^([a-z0-9]+(-[a-z0-9]+)*\/)*[a-z0-9]+(-[a-z0-9]+)*(\.d)?\.ts$/.test(file)),
  ).toEqual([])
})

/** The doc comments of a file, each with the line of its first word. */
const docComments = (text: string): { readonly line: number; readonly says: string }[] =>
  [...text.matchAll(/^[ \t]*\/\*\*\s*(?:\* )?([^\n]*)/gm)].map((match) => ({
    line: text.slice(0, match.index).split('\n').length,
    says: match[1] ?? '',
  }))

/** A comment that begins so has no subject: it is read only together with the name below it. */
const BARE_OPENING =
  /^(Of|In|On|At|By|With|Without|From|To|For|Before|After|Behind|Under|Over|Until|Between|Where|When|As|If|While|Per|Through|Into|Against|Beside|Below|Above|Within)\b/
/** A sentence begins with a capital; a name of the code may stand first as it is written. */
const LOWER_OPENING = /^[a-z](?!\w*[A-Z_(.\d])/

test('a doc comment names what it is about: none begins with a preposition or in lower case', () => {
  const wrong = sources.flatMap(({ file, text }) =>
    docComments(text)
      .filter(({ says }) => BARE_OPENING.test(says) || LOWER_OPENING.test(says))
      .map(({ line, says }) => `${file}:${line} ${says.slice(0, 60)}`),
  )

  expect(['Of one line', 'where it is'].filter((one) => BARE_OPENING.test(one) || LOWER_OPENING.test(one)).length).toBe(
    2,
  )
  expect(sources.flatMap(({ text }) => docComments(text)).length).toBeGreaterThan(1500)
  expect(wrong).toEqual([])
})

test('what is exported has a comment: of functions, classes and interfaces all but 8 in a hundred', () => {
  const exported = sources.flatMap(({ file, text }) => {
    const lines = text.split('\n')
    return lines.flatMap((line, index) =>
      /^export (?:(?:async |abstract )*(?:function|class|interface)\b|const \w+ = (?:async )?(?:[<(]|\w+ =>))/.test(
        line,
      )
        ? [{ at: `${file}:${index + 1}`, isSaid: (lines[index - 1] ?? '').trimEnd().endsWith('*/') }]
        : [],
    )
  })
  const silent = exported.filter((one) => !one.isSaid).map((one) => one.at)

  expect(exported.length).toBeGreaterThan(600)
  expect(silent.length / exported.length < 0.08 ? [] : silent).toEqual([])
})

test('a line has 120 columns: all but 5 in a thousand, which the formatter cannot break', () => {
  const lines = sources.flatMap(({ file, text }) =>
    text.split('\n').map((line, index) => ({ at: `${file}:${index + 1}`, length: line.length })),
  )
  const wide = lines.filter(({ length }) => length > 120).map(({ at }) => at)

  expect(wide.length / lines.length < 0.005 ? [] : wide).toEqual([])
})

test('a file that the documents name is there', () => {
  const root = join(SRC, '..')
  const folders = ['src', 'native', 'scripts', 'test', 'docs']
  const documents = [
    ...readdirSync(join(root, 'docs')).map((file) => `docs/${file}`),
    'README.md',
    'CONTRIBUTING.md',
    'SECURITY.md',
  ].filter((file) => file.endsWith('.md'))
  const named = documents.flatMap((file) =>
    [...readFileSync(join(root, file), 'utf8').matchAll(/`(?:\.\/)?([\w.-]+(?:\/[\w.-]+)+)\/?`/g)].flatMap(
      ([, path = '']) =>
        folders.includes(path.split('/')[0] ?? '') || /^[a-z][\w-]*\/.*\.(ts|rs|md|json)$/.test(path)
          ? [{ file, path }]
          : [],
    ),
  )

  expect(named.length).toBeGreaterThan(30)
  expect(named.filter(({ path }) => !existsSync(join(root, path))).map(({ file, path }) => `${file}: ${path}`)).toEqual(
    [],
  )
})
