import { describe, expect, test } from 'bun:test'
import { Undo, undoing } from '../../src/lib/undo.ts'

test('takes back what was done, newest first, one after the other', async () => {
  const order: string[] = []
  {
    await using undo = new Undo(() => {
      order.push('failed')
    })
    undo.push('first', () => {
      order.push('first')
    })
    undo.push('second', async () => {
      await Bun.sleep(5)
      order.push('second')
    })
    undo.push('third', () => {
      order.push('third')
    })
  }

  expect(order).toEqual(['third', 'second', 'first'])
})

test('takes nothing back once it is kept', async () => {
  const order: string[] = []
  {
    await using undo = new Undo(() => undefined)
    undo.push('first', () => {
      order.push('first')
    })
    undo.keep()
    undo.push('after', () => {
      order.push('after')
    })
  }

  expect(order).toEqual(['after'])
})

test('runs when the sequence throws, and lets the reason through', async () => {
  const order: string[] = []
  const sequence = async () => {
    await using undo = new Undo(() => undefined)
    undo.push('first', () => {
      order.push('first')
    })
    throw new Error('no disk')
  }

  await expect(sequence()).rejects.toThrow('no disk')
  expect(order).toEqual(['first'])
})

test('a step that fails is reported and does not stop the others', async () => {
  const order: string[] = []
  const failed: [string, string][] = []
  {
    await using undo = new Undo((step, error) => {
      failed.push([step, (error as Error).message])
    })
    undo.push('first', () => {
      order.push('first')
    })
    undo.push('thrown', () => {
      throw new Error('busy')
    })
    undo.push('rejected', () => Promise.reject(new Error('gone')))
  }

  expect(order).toEqual(['first'])
  expect(failed).toEqual([
    ['rejected', 'gone'],
    ['thrown', 'busy'],
  ])
})

test('takes back once, however often it is disposed of', async () => {
  let times = 0
  const undo = new Undo(() => undefined)
  undo.push('once', () => {
    times++
  })

  await undo[Symbol.asyncDispose]()
  await undo[Symbol.asyncDispose]()

  expect(times).toBe(1)
})

describe('a sequence that undoes itself', () => {
  const failed = () => undefined

  test('that succeeds takes nothing back, and answers', async () => {
    let times = 0

    const answer = await undoing({ failed }, (undo) => {
      undo.push('once', () => times++)
      return Promise.resolve('done')
    })

    expect([answer, times]).toEqual(['done', 0])
  })

  test('that throws tells every step why, newest first, and throws the same', async () => {
    const told: string[] = []
    const work = undoing(
      { failed, reasonOf: (error) => new Error(`cannot: ${(error as Error).message}`) },
      async (undo) => {
        for (const name of ['first', 'second']) {
          undo.push(name, (reason) => told.push(`${name} ${(reason as Error).message}`))
        }
        await Bun.sleep(1)
        throw new Error('no disk')
      },
    )

    await expect(work).rejects.toThrow('cannot: no disk')
    expect(told).toEqual(['second cannot: no disk', 'first cannot: no disk'])
  })

  test('whose undo fails throws its own reason all the same', async () => {
    const said: string[] = []
    const work = undoing({ failed: (step) => said.push(step) }, (undo) => {
      undo.push('stuck', () => {
        throw new Error('busy')
      })
      return Promise.reject(new Error('no disk'))
    })

    await expect(work).rejects.toThrow('no disk')
    expect(said).toEqual(['stuck'])
  })
})
