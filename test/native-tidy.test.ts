import { describe, expect, test } from 'bun:test'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'

/*
 * No two modules of a crate of `native/` need each other: a reader can begin at the leaves, and a module can be taken
 * out with what it uses. An arrow is a path that the code of one module writes and that ends in another; what a module
 * passes on by `pub use` counts as its origin's. Tests inside a module do not count, nor does the `mod` of a module
 * that holds others.
 */

const NATIVE = join(import.meta.dir, '../native')

interface Module {
  readonly path: string
  readonly file: string
  readonly code: string
  readonly parent: Module | undefined
  readonly children: Map<string, Module>
  /** Every `use`, its tree spread: the path and the name that it has here. */
  readonly uses: readonly Use[]
}

interface Use {
  readonly path: readonly string[]
  readonly name: string
  readonly isPublic: boolean
}

const spaces = (text: string): string => text.replaceAll(/[^\n]/g, ' ')

/** Blanks comments and the insides of strings. */
const codeOf = (text: string): string =>
  text.replaceAll(
    /\/\/[^\n]*|\/\*[\s\S]*?\*\/|\bb?r(#*)"[\s\S]*?"\1|b?"(?:[^"\\]|\\[\s\S])*"|b?'(?:[^'\\\n]|\\(?:[^u\n]|u\{[^}]*\}))'/g,
    spaces,
  )

/** The index behind the brace or semicolon that ends what begins at `from`. */
const endOf = (code: string, from: number): number => {
  let depth = 0
  for (let at = from; at < code.length; at++) {
    const character = code[at]
    if (character === '{') depth++
    if (character === '}') depth--
    if (depth === 0 && (character === '}' || character === ';')) return at + 1
  }
  return code.length
}

/** Blanks every item that is only there in tests. */
const withoutTests = (code: string): string => {
  let out = code
  for (;;) {
    const found = /#\[cfg\((?:test|all\(test[^\n]*)\)\]/.exec(out)
    if (found === null) return out
    const end = endOf(out, found.index + found[0].length)
    out = out.slice(0, found.index) + spaces(out.slice(found.index, end)) + out.slice(end)
  }
}

/** Spreads `a::{b, c::{self, d as e}}` into paths. */
const spread = (tree: string, prefix: readonly string[] = []): { path: string[]; name: string }[] => {
  const text = tree.trim()
  if (text === '') return []
  const brace = text.indexOf('{')
  const head = brace < 0 ? text : text.slice(0, brace)
  const [written = '', alias] = head.split(/\s+as\s+/)
  const segments = written
    .split('::')
    .map((segment) => segment.trim())
    .filter((segment) => segment !== '')
  if (brace < 0) {
    const path = [...prefix, ...segments]
    if (path.at(-1) === 'self') path.pop()
    return [{ path, name: alias?.trim() ?? path.at(-1) ?? '' }]
  }
  const inside = text.slice(brace + 1, text.lastIndexOf('}'))
  const parts: string[] = []
  let depth = 0
  let from = 0
  for (let at = 0; at <= inside.length; at++) {
    if (inside[at] === '{') depth++
    if (inside[at] === '}') depth--
    if (at === inside.length || (inside[at] === ',' && depth === 0)) {
      parts.push(inside.slice(from, at))
      from = at + 1
    }
  }
  return parts.flatMap((part) => spread(part, [...prefix, ...segments]))
}

const usesOf = (code: string): Use[] =>
  [...code.matchAll(/(?:^|[\n;{}])\s*(pub(?:\([^)]*\))?\s+)?use\s+([^;]+);/g)].flatMap((found) =>
    spread(found[2] ?? '').map((use) => ({ ...use, isPublic: found[1] !== undefined })),
  )

/** Reads a module and all that it declares. */
const read = (file: string, path: string, parent?: Module, isRoot = parent === undefined): Module => {
  const code = withoutTests(codeOf(readFileSync(file, 'utf8')))
  const module: Module = { path, file, code, parent, children: new Map(), uses: usesOf(code) }
  const isFolder = isRoot || file.endsWith('/mod.rs')
  const folder = isFolder ? dirname(file) : file.slice(0, -'.rs'.length)
  for (const [, name = ''] of code.matchAll(/(?:^|\n)\s*(?:pub(?:\([^)]*\))?\s+)?mod\s+(\w+)\s*;/g)) {
    const found = [join(folder, `${name}.rs`), join(folder, name, 'mod.rs')].find((candidate) => existsSync(candidate))
    if (found !== undefined) module.children.set(name, read(found, `${path}::${name}`, module))
  }
  return module
}

const declares = (module: Module, name: string): boolean =>
  new RegExp(`\\b(?:fn|struct|enum|union|trait|type|const|static|mod|macro_rules!)\\s+${name}\\b`).test(module.code)

/** The module in which a path ends; `undefined` for one of another crate. */
const resolve = (from: Module, path: readonly string[], depth = 0): Module | undefined => {
  if (depth > 8) return undefined
  let [first, ...rest] = path
  let here: Module | undefined = from
  if (first === 'crate') {
    while (here.parent !== undefined) here = here.parent
  } else if (first === 'self') {
    // It begins here.
  } else if (first === 'super') {
    here = from.parent
    while (rest[0] === 'super') {
      rest = rest.slice(1)
      here = here?.parent
    }
  } else {
    here = from.children.get(first ?? '')
  }
  for (const [at, segment] of rest.entries()) {
    if (here === undefined) return undefined
    const child = here.children.get(segment)
    if (child !== undefined) {
      here = child
      continue
    }
    const holder: Module = here
    const passedOn = holder.uses.find((use) => use.isPublic && use.name === segment)
    if (passedOn !== undefined) {
      return resolve(holder, [...passedOn.path, ...rest.slice(at + 1)], depth + 1) ?? holder
    }
    if (!declares(holder, segment)) {
      for (const use of holder.uses.filter(({ isPublic, name }) => isPublic && name === '*')) {
        const origin = resolve(holder, use.path.slice(0, -1), depth + 1)
        if (origin !== undefined && declares(origin, segment)) return origin
      }
    }
    return holder
  }
  return here
}

const everyOf = (module: Module): Module[] => [module, ...[...module.children.values()].flatMap(everyOf)]

/** The modules that one module's code names, itself not among them. */
const needs = (module: Module): Set<Module> => {
  const found = new Set<Module>()
  const add = (path: readonly string[]) => {
    const target = resolve(module, path)
    if (target !== undefined && target !== module) found.add(target)
  }
  for (const use of module.uses)
    if (!use.isPublic) add(use.path[use.path.length - 1] === '*' ? use.path.slice(0, -1) : use.path)
  const bare = module.code.replaceAll(/(?:^|[\n;{}])\s*(?:pub(?:\([^)]*\))?\s+)?use\s+[^;]+;/g, spaces)
  const starts = ['crate', 'super', 'self', ...module.children.keys()].join('|')
  for (const [path] of bare.matchAll(new RegExp(`(?<![\\w:.])(?:${starts})(?:::\\w+)+`, 'g'))) add(path.split('::'))
  return found
}

/** Groups of modules that need each other (Tarjan), each as sorted paths. */
const cyclesOf = (root: Module): string[][] => {
  const modules = everyOf(root)
  const arrows = new Map(modules.map((module) => [module, needs(module)]))
  const index = new Map<Module, number>()
  const low = new Map<Module, number>()
  const stack: Module[] = []
  const groups: string[][] = []
  const visit = (module: Module) => {
    index.set(module, index.size)
    low.set(module, index.get(module) ?? 0)
    stack.push(module)
    for (const next of arrows.get(module) ?? []) {
      if (!index.has(next)) visit(next)
      else if (!stack.includes(next)) continue
      low.set(module, Math.min(low.get(module) ?? 0, low.get(next) ?? 0))
    }
    if (low.get(module) !== index.get(module)) return
    const group = stack.splice(stack.indexOf(module))
    if (group.length > 1) groups.push(group.map(({ path }) => path).toSorted())
  }
  for (const module of modules) if (!index.has(module)) visit(module)
  return groups
}

const roots = [...new Bun.Glob('*/src/{main,lib}.rs').scanSync({ cwd: NATIVE })].toSorted()

describe('the modules of native/', () => {
  for (const root of roots) {
    const crate = root.split('/')[0] ?? ''
    test(`no two of ${root} need each other`, () => {
      const cycles = cyclesOf(read(join(NATIVE, root), crate)).map((group) => group.join(' '))

      expect(cycles).toEqual([])
    })
  }

  const crateOf = (files: Readonly<Record<string, string>>): string[][] => {
    const folder = mkdtempSync(join(tmpdir(), 'aerie-modules-'))
    try {
      for (const [name, text] of Object.entries(files)) {
        mkdirSync(dirname(join(folder, name)), { recursive: true })
        writeFileSync(join(folder, name), text)
      }
      return cyclesOf(read(join(folder, 'lib.rs'), 'it'))
    } finally {
      rmSync(folder, { recursive: true })
    }
  }

  test.each([
    ['by use', { 'a.rs': 'use crate::b::{self, B};', 'b.rs': 'use crate::a::A;' }],
    ['by a path in the code', { 'a.rs': 'fn a() { crate::b::b() }', 'b.rs': 'fn b() { super::a::a() }' }],
    [
      'through what another module passes on',
      {
        'lib.rs': 'mod a;\nmod b;\nmod c;',
        'a.rs': 'use crate::c::B;',
        'b.rs': 'use crate::a::A;',
        'c.rs': 'pub use crate::b::B;',
      },
    ],
  ])('a cycle is seen %s', (_, files) => {
    expect(crateOf({ 'lib.rs': 'mod a;\nmod b;', ...files })).toEqual([['it::a', 'it::b']])
  })

  test('tests, comments, strings and a folder that passes on its files are no cycle', () => {
    const files = {
      'lib.rs': 'mod a;\nmod b;\n',
      'a.rs': 'use crate::b::B;',
      'b/mod.rs': 'mod inner;\npub use inner::B;\npub use inner::*;',
      'b/inner.rs':
        '/// See [`crate::a`].\npub struct B;\nconst S: &str = "crate::a::A";\n#[cfg(test)]\nmod tests { use crate::a::A; fn t() {} }\n',
    }

    expect(crateOf(files)).toEqual([])
  })
})
