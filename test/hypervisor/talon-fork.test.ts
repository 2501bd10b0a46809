import { describe, expect, test } from 'bun:test'
import { closeSync, copyFileSync, mkdirSync, openSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { converse } from '../../src/guest/conversation.ts'
import { FRAME } from '../../src/guest/frames.ts'
import { GuestSession } from '../../src/guest/session.ts'
import type { Machine, MachineSpec, Saved } from '../../src/hypervisor/driver.ts'
import { kvmSupport } from '../../src/linux/kvm.ts'
import { marked } from '../conformance/hypervisor.ts'
import { Owner, quiet } from '../guest/agent.ts'
import { kernelBed, kernelMissing } from './kernel-bed.ts'
import talon from './talon.driver.ts'

const support = kvmSupport()
const missing = support.usable ? kernelMissing : support.reason
const CLONES = 10
const soon = () => AbortSignal.timeout(60_000)

/** A file of the guest, without any program in it. */
const read = async (machine: Machine, path: string): Promise<string> => {
  const { conversation } = await converse(machine, 'copyOut', { path, follow: true }, soon())
  const parts: Uint8Array[] = []
  for await (const frame of conversation) {
    if (frame.type === FRAME.stdout) parts.push(Uint8Array.from(frame.payload))
    else break
  }
  conversation.close()
  const [file] = [...(await new Bun.Archive(Buffer.concat(parts)).files()).values()]
  return ((await file?.text()) ?? '').trim()
}

const emptyFiles = (folder: string): Saved => {
  const open = (name: string): number => {
    const fd = openSync(join(folder, name), 'wx+', 0o600)
    rmSync(join(folder, name))
    return fd
  }
  return { state: open('state'), memory: open('memory') }
}

describe.skipIf(missing !== undefined)(
  `a fork by talon${missing === undefined ? '' : ` (skipped: ${missing})`}`,
  () => {
    test("ten clones share their mother's memory, and have random numbers of their own though nobody told them who they are", async () => {
      await using bed = await kernelBed(talon, join(import.meta.dir, 'talon.driver.ts'))
      const spec: MachineSpec = { ...(await bed.spec()), memoryMib: 128, forkable: true }
      const owner = new Owner()
      const machines: Machine[] = []
      const session = await GuestSession.listen(join(spec.folder, 'vsock_1024'), undefined, owner, quiet)
      const clone = async (from: Saved): Promise<Machine> => {
        const own = await bed.spec()
        const disks = spec.disks.map((disk, index) => (disk.readOnly ? disk : (own.disks[index] ?? disk)))
        for (const [index, disk] of disks.entries())
          if (!disk.readOnly) copyFileSync(spec.disks[index]?.path ?? '', disk.path)
        const machine = await talon.restore?.({ ...own, memoryMib: 128, disks }, from, soon())
        if (!machine) throw new Error('talon cannot restore')
        machines.push(machine)
        return machine
      }
      try {
        const mother = await talon.start(spec, soon())
        machines.push(mother)
        for (const end = Date.now() + 60_000; owner.taken.length === 0; await Bun.sleep(20))
          if (Date.now() > end) throw new Error('no word of the agent')
        await mother.pause(soon())
        const scratch = join(spec.folder, 'scratch')
        mkdirSync(scratch)
        const template = await mother.fork?.(emptyFiles(scratch), soon())
        if (!template) throw new Error('talon cannot fork')

        for (let index = 0; index < CLONES; index++) await clone(template)
        closeSync(template.state)
        closeSync(template.memory)
        expect(await Promise.all(machines.map((machine) => machine.state(soon())))).toEqual(
          Array.from({ length: CLONES + 1 }, () => 'paused'),
        )
        for (const machine of machines) await machine.resume(soon())

        const uuids = await Promise.all(machines.map((machine) => read(machine, '/proc/sys/kernel/random/uuid')))
        expect(uuids.every((uuid) => /^[0-9a-f-]{36}$/.test(uuid))).toBe(true)
        expect(new Set(uuids).size).toBe(CLONES + 1)
        for (const machine of machines)
          expect(readFileSync(`/proc/${machine.identity.process.pid}/maps`, 'utf8')).toContain('/memfd:aerie-ram')

        // A clone of a clone copies, and is one all the same.
        const child = machines[1]
        await child?.pause(soon())
        const second = await child?.fork?.(emptyFiles(scratch), soon())
        if (!second) throw new Error('no second template')
        const grandchild = await clone(second)
        closeSync(second.state)
        closeSync(second.memory)
        await grandchild.resume(soon())
        expect(await read(grandchild, '/proc/sys/kernel/random/uuid')).toMatch(/^[0-9a-f-]{36}$/)
      } finally {
        for (const machine of machines) await machine.kill()
        session.close()
      }
      expect(marked(spec.mark)).toEqual([])
    }, 180_000)
  },
)
