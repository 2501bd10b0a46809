import { expect, test } from 'bun:test'
import { Undo } from '../../src/lib/undo.ts'

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
