import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import {
  chmodSync,
  closeSync,
  copyFileSync,
  existsSync,
  mkdtempSync,
  openSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import { converse } from '../../src/guest/conversation.ts'
import { decodeJson, FRAME } from '../../src/guest/frames.ts'
import { GuestSession } from '../../src/guest/session.ts'
import type { Machine, MachineSpec, Saved } from '../../src/hypervisor/driver.ts'
import { eject, readRegisters } from '../../src/hypervisor/drivers/qemu/vsock-device.ts'
import { Qtest } from '../../src/hypervisor/drivers/qemu/qtest.ts'
import type { Bed } from '../conformance/bed.ts'
import { marked, until } from '../conformance/bed.ts'
import { RemoteDaemon } from '../conformance/daemon.ts'
import { Owner, quiet } from '../guest/agent.ts'
import { kernelBed, kernelMissing } from './kernel-bed.ts'
import qemu from './qemu.driver.ts'

/*
 * What a guest itself sees of a save and a restore: its programs, its disks, its randomness. The image is `base`, with
 * a shell.
 */

const BASE = join(import.meta.dir, '../../dist/seed/base.erofs')
const missing =
  kernelMissing ??
  (Bun.which('qemu-system-x86_64') === null ? 'qemu-system-x86_64 is not installed' : undefined) ??
  (existsSync(BASE) ? undefined : 'this build has no image `base`')
const BOOT_MS = 60_000
const soon = () => AbortSignal.timeout(BOOT_MS)

/** What a command of the guest writes, as it comes. */
async function* said(machine: Machine, argv: readonly string[]): AsyncGenerator<Buffer, number> {
  const { conversation } = await converse(
    machine,
    'exec',
    { argv, env: { PATH: '/bin:/sbin:/usr/bin:/usr/sbin' } },
    soon(),
  )
  try {
    for await (const frame of conversation) {
      if (frame.type === FRAME.stdout) yield Buffer.from(frame.payload)
      else if (frame.type === FRAME.exit) return Number(decodeJson(frame)['code'])
    }
    throw new Error('the agent hung up')
  } finally {
    conversation.close()
  }
}

const shell = async (machine: Machine, script: string): Promise<string> => {
  const parts: Buffer[] = []
  const output = said(machine, ['sh', '-c', script])
  for (;;) {
    const { done, value } = await output.next()
    if (done === true) {
      expect({ script, code: value }).toEqual({ script, code: 0 })
      return Buffer.concat(parts).toString().trim()
    }
    parts.push(value)
  }
}

const introduce = async (machine: Machine, hostname: string, machineId: string): Promise<void> => {
  const { conversation } = await converse(
    machine,
    'identity',
    {
      hostname,
      machine_id: machineId,
      entropy: randomBytes(32).toString('hex'),
      time_ns: 2_000_000_000_000_000_000,
      network: { mode: 'user', mac: '02:ae:00:00:00:09' },
    },
    soon(),
  )
  conversation.close()
}

describe.skipIf(missing !== undefined)(
  `a guest of QEMU's that is saved${missing === undefined ? '' : ` (skipped: ${missing})`}`,
  () => {
    const it = (title: string, body: () => Promise<void>, ms = BOOT_MS) => {
      test(title, body, ms + 5000)
    }
    const owner = new Owner()
    const specs: MachineSpec[] = []
    const opened: Saved[] = []
    let bed: Bed
    let folder: string
    let spec: MachineSpec
    let mother: Machine
    let session: GuestSession
    let saves = 0

    /** A vm of the base image, by a user of its own where this is root. */
    const newSpec = async (overlay?: string): Promise<MachineSpec> => {
      const tiny = await bed.spec()
      const disks = tiny.disks.map((disk) => (disk.serial === 'root' ? { ...disk, path: BASE } : disk))
      const root = process.getuid?.() === 0
      const uid = 0x4165_4321
      for (const disk of disks) if (!disk.readOnly && overlay !== undefined) copyFileSync(overlay, disk.path)
      chmodSync(tiny.folder, 0o711)
      const spec: MachineSpec = {
        ...tiny,
        disks,
        nics: [{ kind: 'user', mac: '02:ae:00:00:00:01' }],
        jail: root ? { uid, gid: uid, groups: [] } : undefined,
      }
      specs.push(spec)
      return spec
    }
    const overlayOf = (spec: MachineSpec): string => spec.disks.find((disk) => !disk.readOnly)?.path ?? ''
    const lastSave = () => ({ state: join(folder, `${saves}.state`), memory: join(folder, `${saves}.memory`) })
    const save = async (machine: Machine): Promise<Saved> => {
      saves++
      const { state, memory } = lastSave()
      const saved = { state: openSync(state, 'wx+'), memory: openSync(memory, 'wx+') }
      opened.push(saved)
      await machine.snapshot?.(saved, soon())
      return saved
    }
    const child = async (saved: Saved): Promise<Machine> => {
      const spec = await newSpec(overlayOf(specs[0] ?? (await newSpec())))
      if (!qemu.restore) throw new Error('it has no restore')
      return await qemu.restore(spec, saved, soon())
    }

    beforeAll(async () => {
      folder = mkdtempSync('/tmp/aerie-s-')
      bed = await kernelBed(qemu, join(import.meta.dir, 'qemu.driver.ts'))
      spec = await newSpec()
      owner.configure = () => ({ ...Owner.prototype.configure.call(owner), network: { mode: 'user' } })
      session = await GuestSession.listen(join(spec.folder, 'vsock_1024'), spec.jail, owner, quiet)
      mother = await qemu.start(spec, soon())
      await until(
        () => owner.taken.length > 0,
        () => 'a word of the agent',
        BOOT_MS,
      )
    }, BOOT_MS * 2)
    afterAll(async () => {
      session.close()
      for (const { state, memory } of opened) {
        closeSync(state)
        closeSync(memory)
      }
      for (const one of specs) for (const pid of marked(one.mark)) process.kill(pid, 'SIGKILL')
      await mother.kill()
      await bed[Symbol.asyncDispose]()
      rmSync(folder, { recursive: true, force: true })
    })

    it(
      'a conversation of the mother goes on through a save, and loses nothing',
      async () => {
        const numbers = 40_000
        const output = said(mother, ['sh', '-c', `i=0; while [ $i -lt ${numbers} ]; do echo $i; i=$((i+1)); done`])
        let bytes = 0
        let sum = 0n
        let line = ''
        const read = async (stop: number): Promise<void> => {
          while (bytes < stop) {
            const { done, value } = await output.next()
            if (done === true) {
              expect(value).toBe(0)
              return
            }
            bytes += value.byteLength
            const lines = (line + value.toString()).split('\n')
            line = lines.pop() ?? ''
            for (const one of lines) sum += BigInt(one)
          }
        }
        await read(20_000)
        for (let times = 0; times < 3; times++) {
          await mother.pause(soon())
          await save(mother)
          await mother.resume(soon())
          await read(bytes + 40_000)
        }
        await read(Number.MAX_SAFE_INTEGER)

        expect(sum).toBe((BigInt(numbers) * BigInt(numbers - 1)) / 2n)
      },
      BOOT_MS * 2,
    )

    it(
      'two of one save have its memory, and names, clock, card and randomness of their own',
      async () => {
        await shell(
          mother,
          'echo remembered > /run/memory; echo kept > /root/disk; sync; sleep 3000 >/dev/null 2>&1 & echo $! > /run/pid',
        )
        await mother.pause(soon())
        const saved = await save(mother)
        const children = [await child(saved), await child(saved)]
        await mother.resume(soon())
        const before = Number(await shell(mother, 'cut -d. -f1 /proc/uptime'))

        for (const [index, machine] of children.entries()) {
          await machine.resume(soon())
          await introduce(machine, `child-${index}`, String(index).repeat(32))
          expect(
            await shell(
              machine,
              'cat /run/memory /root/disk; hostname; cat /etc/hostname /etc/machine-id; date -u +%Y; cat /sys/class/net/eth0/address; kill -0 $(cat /run/pid) && echo runs',
            ),
          ).toBe(
            `remembered\nkept\nchild-${index}\nchild-${index}\n${String(index).repeat(32)}\n2033\n02:ae:00:00:00:09\nruns`,
          )
          expect(Number(await shell(machine, 'cut -d. -f1 /proc/uptime'))).toBeLessThan(before + 120) // the monotonic clock does not jump with the other
          expect(await shell(machine, 'echo more > /root/more && sync && cat /root/more')).toBe('more')
        }
        const random = await Promise.all(
          children.map((machine) =>
            shell(machine, 'head -c 32 /dev/urandom | od -A n -t x1; cat /proc/sys/kernel/random/uuid'),
          ),
        )
        expect(new Set(random.join('\n').split('\n')).size).toBe(random.join('\n').split('\n').length)
        expect(await shell(mother, 'hostname; cat /run/memory; ls /root/more 2>/dev/null || echo none')).toBe(
          'h\nremembered\nnone',
        )
        await Promise.all(children.map((machine) => machine.kill()))
      },
      BOOT_MS * 2,
    )

    it('their randomness differs without a word of the host, where the kernel hears that it was restored', async () => {
      await mother.pause(soon())
      const saved = await save(mother)
      const children = [await child(saved), await child(saved)]
      await mother.resume(soon())
      for (const machine of children) await machine.resume(soon())

      const uuids = await Promise.all(children.map((machine) => shell(machine, 'cat /proc/sys/kernel/random/uuid')))

      expect(uuids[0]).not.toBe(uuids[1] ?? '')
      await Promise.all(children.map((machine) => machine.kill()))
    })

    it(
      'disks that were frozen go on when it is told who it is, and by themselves',
      async () => {
        await session.request('quiesce', {}, soon())
        await mother.pause(soon())
        const saved = await save(mother)
        const [told, alone] = [await child(saved), await child(saved)]
        await mother.resume(soon())
        await session.request('thaw', {}, soon())
        expect(await shell(mother, 'echo mother > /root/who && cat /root/who')).toBe('mother')

        await Promise.all([told, alone].map((machine) => machine.resume(soon())))
        await introduce(told, 'told', 'a'.repeat(32))
        expect(await shell(told, 'echo told > /root/who && cat /root/who')).toBe('told')
        expect(await shell(alone, 'echo alone > /root/who && cat /root/who')).toBe('alone') // after 30 s of its own time
        await Promise.all([told, alone].map((machine) => machine.kill()))
      },
      BOOT_MS * 2,
    )

    it('a save that its daemon did not live to finish is put right by the next one', async () => {
      await mother.pause(soon())
      await save(mother)
      await mother.resume(soon())
      const spec = await newSpec(overlayOf(specs[0] ?? (await newSpec())))
      const daemon = new RemoteDaemon(join(import.meta.dir, 'qemu.driver.ts'), BOOT_MS)
      const identity = await daemon.restore(spec, lastSave())
      await daemon.crash()
      const qtest = await Qtest.connect(join(spec.folder, 'qtest.sock'), soon())
      const registers = await readRegisters(qtest)
      writeFileSync(join(spec.folder, 'vsock.json'), JSON.stringify(registers), { mode: 0o600 })
      await eject(qtest)
      expect(await readRegisters(qtest)).toBeUndefined()
      qtest.close()

      const adopted = await qemu.adopt(identity, soon())

      if (!adopted) throw new Error('it is gone')
      expect(existsSync(join(spec.folder, 'vsock.json'))).toBe(false)
      await adopted.resume(soon())
      await introduce(adopted, 'adopted', 'a'.repeat(32))
      expect(await shell(adopted, 'cat /run/memory')).toBe('remembered')
      await adopted.kill()
    })

    it('disks in another order, of another size or with other rights are refused', async () => {
      await mother.pause(soon())
      const saved = await save(mother)
      const child = await newSpec(overlayOf(spec))
      const longer = `${overlayOf(child)}.longer`
      await mother.resume(soon())
      copyFileSync(overlayOf(child), longer)
      truncateSync(longer, Bun.file(longer).size + 512)

      for (const disks of [
        [...child.disks].reverse(),
        child.disks.map((disk) => (disk.readOnly ? disk : { ...disk, path: longer })),
        child.disks.map((disk) => ({ ...disk, readOnly: true })),
      ]) {
        await expect(Promise.resolve(qemu.restore?.({ ...child, disks }, saved, soon()))).rejects.toMatchObject({
          code: 'machine_failed',
          message: expect.stringContaining('disks') as unknown,
        })
        expect(marked(child.mark)).toEqual([])
      }
    })

    it('a save that cannot reach into the machine changes nothing', async () => {
      await mother.pause(soon())
      rmSync(join(spec.folder, 'qtest.sock'))

      await expect(save(mother)).rejects.toThrow('ENOENT')

      await mother.resume(soon())
      expect(await shell(mother, 'echo here')).toBe('here')
    })
  },
)
