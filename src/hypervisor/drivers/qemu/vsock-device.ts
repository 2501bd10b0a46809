import { Type, type Static } from '@sinclair/typebox'
import { sleep } from '../../../lib/promise.ts'
import type { Qtest } from './qtest.ts'

/*
 * The vsock device across a save
 *
 * QEMU cannot write the state of its vhost-user-vsock device: it refuses to migrate with one, and ends with SIGSEGV
 * where it is made to write it. So the device stands in a slot where it can be plugged, and while the guest stands
 * still it is taken out before a save and put back after it (or into the machine that was restored), with the registers
 * that the guest's driver had written:
 *
 *   read registers → eject → QEMU saves all the others → plug → write registers
 *
 * The guest sees none of it. Where its rings stand is known to the backend, or to the used ring in the guest's memory.
 * In a restored machine the host's side is another one: the guest is told by the event that the specification has for
 * this (virtio 1.2, section 5.10.6.5).
 */

const U8 = Type.Integer({ minimum: 0, maximum: 0xff })
const U16 = Type.Integer({ minimum: 0, maximum: 0xffff })
const U32 = Type.Integer({ minimum: 0, maximum: 0xffff_ffff })
/** Guest-physical: below 2^52, so a number holds it. */
const Address = Type.Integer({ minimum: 0, maximum: 2 ** 52 - 1 })
const shape = { additionalProperties: false }

/** What a driver has written into a virtio device over PCI (virtio 1.2, section 4.1.4). */
export const VirtioRegisters = Type.Object(
  {
    /** The number of the bus behind its port, on which it stands. */
    bus: U8,
    /** Configuration space, `[offset, bytes, value]` in the order to be written. */
    config: Type.Array(Type.Tuple([U16, Type.Union([Type.Literal(1), Type.Literal(2), Type.Literal(4)]), U32]), {
      maxItems: 32,
    }),
    /** Message-signalled interrupts: the control word of the capability, and the table. */
    msixControl: U16,
    msix: Type.Array(U32, { maxItems: 64 }),
    common: Type.Union([
      Type.Null(),
      Type.Object(
        {
          featureSelect: U32,
          driverFeatureSelect: U32,
          features: Type.Tuple([U32, U32]),
          configVector: U16,
          status: U8,
          queueSelect: U16,
          queues: Type.Array(
            Type.Object(
              { size: U16, vector: U16, enabled: U16, descriptors: Address, driver: Address, device: Address },
              shape,
            ),
            { maxItems: 8 },
          ),
        },
        shape,
      ),
    ]),
  },
  shape,
)
export type VirtioRegisters = Static<typeof VirtioRegisters>

/** Plugged in, the same in every machine. */
export const VSOCK_PLUG = { driver: 'vhost-user-vsock-pci', chardev: 'vs', id: 'vsock', bus: 'vsockport' } as const
/** Slot of the port on the root bus: fixed, so that it is found. */
export const PORT_SLOT = 0x1e
export const VSOCK_PORT = `pcie-root-port,id=${VSOCK_PLUG.bus},chassis=1,slot=1,addr=0x${PORT_SLOT.toString(16)}`

/** The address at which SeaBIOS puts the configuration spaces of a q35 (Q35_HOST_BRIDGE_PCIEXBAR_ADDR). */
const ECAM = 0xb000_0000
const ROOT_PORT = 0x000c_1b36
const VSOCK = 0x1053_1af4
const NOTHING = 0xffff_ffff
const slotOf = (bus: number, slot = 0): number => ECAM + bus * 2 ** 20 + slot * 2 ** 15

/** PCI 3.0, chapter 6. */
const CONFIG = {
  command: 0x04,
  cacheLine: 0x0c,
  bars: 0x10,
  secondaryBus: 0x19,
  capabilities: 0x34,
  interruptLine: 0x3c,
} as const
const MEMORY_ON = 2
const CAP = { vendor: 0x09, express: 0x10, msix: 0x11 } as const
const CAPS_MAX = 48
const COMMON = {
  featureSelect: 0,
  driverFeatureSelect: 8,
  driverFeature: 12,
  configVector: 16,
  queueCount: 18,
  status: 20,
  queueSelect: 22,
  queueSize: 24,
  queueVector: 26,
  queueEnable: 28,
  descriptors: 32,
  driver: 40,
  device: 48,
} as const
const STATUS = { acknowledge: 1, driver: 2, driverOk: 4, featuresOk: 8 } as const
const MSIX_ON = 0x8000
const VECTORS_MAX = 16

/**
 * The ports of docs/specs/acpi_pci_hotplug.txt in QEMU's sources, at ACPI_PCIHP_ADDR_ICH9; the general events at
 * ICH9_PMIO_GPE0_STS of QEMU's PM base.
 */
const HOTPLUG = { up: 0xcc0, eject: 0xcc8, bus: 0xcd0 } as const
const GPE_STATUS = 0x620
const GPE_HOTPLUG = 2
/** Buses in which QEMU allows to plug; ours has one. */
const BUSES_MAX = 4

interface Found {
  readonly config: number
  readonly bars: readonly number[]
  readonly caps: readonly { readonly id: number; readonly at: number }[]
}

/** Finds the device behind its port; undefined where there is none. */
const find = async (q: Qtest): Promise<{ readonly bus: number; readonly found: Found | undefined }> => {
  const port = slotOf(0, PORT_SLOT)
  if ((await q.read(4, port)) !== ROOT_PORT) throw new Error('its vsock device stands in no slot of its own')
  const bus = await q.read(1, port + CONFIG.secondaryBus)
  const config = slotOf(bus)
  const id = bus === 0 ? NOTHING : await q.read(4, config)
  if (id === NOTHING) return { bus, found: undefined }
  if (id !== VSOCK) throw new Error('another device stands in the slot of its vsock device')
  const bars: number[] = []
  for (let index = 0; index < 6; index++) bars.push(await q.read(4, config + CONFIG.bars + index * 4))
  const caps: { id: number; at: number }[] = []
  for (
    let at = await q.read(1, config + CONFIG.capabilities);
    at >= 0x40 && caps.length < CAPS_MAX;
    at = await q.read(1, config + at + 1)
  ) {
    caps.push({ id: await q.read(1, config + at), at })
  }
  return { bus, found: { config, bars, caps } }
}

const barAt = (bars: readonly number[], index: number): number => {
  const low = bars[index] ?? 0
  const wide = (low & 6) === 4
  return low - (low % 16) + (wide ? (bars[index + 1] ?? 0) * 2 ** 32 : 0)
}

interface RegisterAddresses {
  readonly common: number
  readonly table: number
  readonly vectors: number
  readonly msix: number
  readonly express: number | undefined
}

const registerAddresses = async (q: Qtest, { config, bars, caps }: Found): Promise<RegisterAddresses> => {
  let common: number | undefined
  let table: number | undefined
  let vectors = 0
  let msix = 0
  let express: number | undefined
  for (const { id, at } of caps) {
    if (id === CAP.vendor && (await q.read(1, config + at + 3)) === 1)
      common = barAt(bars, await q.read(1, config + at + 4)) + (await q.read(4, config + at + 8))
    else if (id === CAP.express) express = at
    else if (id === CAP.msix) {
      const where = await q.read(4, config + at + 4)
      msix = at
      vectors = ((await q.read(2, config + at + 2)) & 0x7ff) + 1
      table = barAt(bars, where % 8) + (where - (where % 8))
    }
  }
  if (common === undefined || table === undefined || vectors > VECTORS_MAX)
    throw new Error('its vsock device has another build')
  return { common, table, vectors, msix, express }
}

const read64 = async (q: Qtest, at: number): Promise<number> =>
  (await q.read(4, at)) + (await q.read(4, at + 4)) * 2 ** 32
const write64 = async (q: Qtest, at: number, value: number): Promise<void> => {
  await q.write(4, at, value % 2 ** 32)
  await q.write(4, at + 4, Math.floor(value / 2 ** 32))
}

/**
 * Reads all that the driver has written; the selectors are as before afterwards. Undefined where the device is not
 * there.
 */
export const readRegisters = async (q: Qtest): Promise<VirtioRegisters | undefined> => {
  const { bus, found } = await find(q)
  if (!found) return undefined
  const at = await registerAddresses(q, found)
  const { config } = found
  const written: [number, 1 | 2 | 4, number][] = found.bars.map((value, index) => [CONFIG.bars + index * 4, 4, value])
  const keep = async (width: 1 | 2 | 4, offset: number) => {
    written.push([offset, width, await q.read(width, config + offset)])
  }
  await keep(1, CONFIG.cacheLine)
  await keep(1, CONFIG.interruptLine)
  if (at.express !== undefined) {
    await keep(2, at.express + 0x08) // device control
    await keep(2, at.express + 0x10) // link control
  }
  await keep(2, CONFIG.command)
  const msixControl = await q.read(2, config + at.msix + 2)
  if (((await q.read(2, config + CONFIG.command)) & MEMORY_ON) === 0)
    return { bus, config: written, msixControl, msix: [], common: null }

  const msix: number[] = []
  for (let word = 0; word < at.vectors * 4; word++) msix.push(await q.read(4, at.table + word * 4))
  const get = (width: 1 | 2 | 4, offset: number) => q.read(width, at.common + offset)
  const set = (width: 1 | 2 | 4, offset: number, value: number) => q.write(width, at.common + offset, value)
  const [featureSelect, driverFeatureSelect, queueSelect] = [
    await get(4, COMMON.featureSelect),
    await get(4, COMMON.driverFeatureSelect),
    await get(2, COMMON.queueSelect),
  ]
  const feature = async (half: 0 | 1) => {
    await set(4, COMMON.driverFeatureSelect, half)
    return await get(4, COMMON.driverFeature)
  }
  const features: [number, number] = [await feature(0), await feature(1)]
  await set(4, COMMON.driverFeatureSelect, driverFeatureSelect)
  const queues = []
  for (let index = 0; index < Math.min(await get(2, COMMON.queueCount), 8); index++) {
    await set(2, COMMON.queueSelect, index)
    queues.push({
      size: await get(2, COMMON.queueSize),
      vector: await get(2, COMMON.queueVector),
      enabled: await get(2, COMMON.queueEnable),
      descriptors: await read64(q, at.common + COMMON.descriptors),
      driver: await read64(q, at.common + COMMON.driver),
      device: await read64(q, at.common + COMMON.device),
    })
  }
  await set(2, COMMON.queueSelect, queueSelect)
  return {
    bus,
    config: written,
    msixControl,
    msix,
    common: {
      featureSelect,
      driverFeatureSelect,
      features,
      configVector: await get(2, COMMON.configVector),
      status: await get(1, COMMON.status),
      queueSelect,
      queues,
    },
  }
}

/**
 * Takes the device out, as the guest's own write to the eject register does: no word of it to the guest, which stands
 * still.
 */
export const eject = async (q: Qtest): Promise<void> => {
  const selected = await q.readPort(4, HOTPLUG.bus)
  for (let bus = 0; bus < BUSES_MAX && (await find(q)).found; bus++) {
    await q.writePort(4, HOTPLUG.bus, bus)
    await q.writePort(4, HOTPLUG.eject, 1)
  }
  await q.writePort(4, HOTPLUG.bus, selected)
  if ((await find(q)).found) throw new Error('its vsock device cannot be taken out')
}

/**
 * Plugs the device in with nothing said to the guest: it would look at its slots, find what it has there, and scan it
 * anew.
 */
export const plugQuietly = async (q: Qtest, plug: () => Promise<void>): Promise<void> => {
  const before = (await q.readPort(1, GPE_STATUS)) & GPE_HOTPLUG
  await plug()
  const selected = await q.readPort(4, HOTPLUG.bus)
  for (let bus = 0; bus < BUSES_MAX; bus++) {
    await q.writePort(4, HOTPLUG.bus, bus)
    await q.readPort(4, HOTPLUG.up) // reading it clears it
  }
  await q.writePort(4, HOTPLUG.bus, selected)
  if (before === 0) await q.writePort(1, GPE_STATUS, GPE_HOTPLUG)
}

/** Writes what was read into a device that is new. A device that has some of it already takes all of it once more. */
export const writeRegisters = async (
  q: Qtest,
  { bus, config, msixControl, msix, common }: VirtioRegisters,
): Promise<void> => {
  const now = await find(q)
  if (!now.found || now.bus !== bus) throw new Error('its vsock device is not where it was')
  for (const [offset, width, value] of config) await q.write(width, now.found.config + offset, value)
  if (!common) return
  const placed = await find(q)
  const at = placed.found && (await registerAddresses(q, placed.found))
  if (!at || at.vectors * 4 !== msix.length) throw new Error('its vsock device has another build')
  for (const [index, word] of msix.entries()) await q.write(4, at.table + index * 4, word)
  await q.write(2, now.found.config + at.msix + 2, msixControl)

  const set = (width: 1 | 2 | 4, offset: number, value: number) => q.write(width, at.common + offset, value)
  await set(1, COMMON.status, 0)
  await set(1, COMMON.status, common.status & (STATUS.acknowledge | STATUS.driver))
  for (const half of [0, 1] as const) {
    await set(4, COMMON.driverFeatureSelect, half)
    await set(4, COMMON.driverFeature, common.features[half])
  }
  const ready = common.status & (STATUS.acknowledge | STATUS.driver | STATUS.featuresOk)
  await set(1, COMMON.status, ready)
  if ((await q.read(1, at.common + COMMON.status)) !== ready)
    throw new Error('its vsock device refuses the features it had')
  await set(2, COMMON.configVector, common.configVector)
  for (const [index, queue] of common.queues.entries()) {
    await set(2, COMMON.queueSelect, index)
    await set(2, COMMON.queueSize, queue.size)
    await set(2, COMMON.queueVector, queue.vector)
    await write64(q, at.common + COMMON.descriptors, queue.descriptors)
    await write64(q, at.common + COMMON.driver, queue.driver)
    await write64(q, at.common + COMMON.device, queue.device)
    if (queue.enabled === 1) await set(2, COMMON.queueEnable, 1)
  }
  await set(2, COMMON.queueSelect, common.queueSelect)
  await set(4, COMMON.featureSelect, common.featureSelect)
  await set(4, COMMON.driverFeatureSelect, common.driverFeatureSelect)
  await set(1, COMMON.status, common.status)
}

/** The id VIRTIO_VSOCK_EVENT_TRANSPORT_RESET of a `struct virtio_vsock_event`. */
const TRANSPORT_RESET = 0
const EVENT_QUEUE = 2
const DESCRIPTOR_WRITE = 2

/**
 * A reset that lies in the guest's queue: the place of the driver's position in guest memory, and where it stood then.
 */
export const PendingReset = Type.Object({ at: Address, avail: U16 }, shape)
export type PendingReset = Static<typeof PendingReset>

/** The time between two looks, ms: the guest gives the buffer back within a few of its own milliseconds. */
const TAKEN_MS = 5

/**
 * Waits until the guest has taken a reset. Linux gives the buffer back after it has read its CID and ended its
 * connections, and that is the only sign there is; a connection that is made before is ended with those of before, or
 * answered in another guest's name.
 *
 * @throws Error: QEMU hung up; the signal's reason
 */
export const resetTaken = async (q: Qtest, { at, avail }: PendingReset, signal: AbortSignal): Promise<void> => {
  while ((await q.read(2, at)) === avail) {
    await sleep(TAKEN_MS, signal)
    signal.throwIfAborted()
  }
}

/**
 * Tells the guest that its connections are gone and that its CID may be another: what a device does on its event queue,
 * which QEMU keeps to itself and never uses. Gives back what `resetTaken` waits for when the guest runs; a guest whose
 * driver does not run yet will ask for its CID when it does.
 */
export const tellReset = async (
  q: Qtest,
  { msixControl, msix, common }: VirtioRegisters,
): Promise<PendingReset | undefined> => {
  const queue = common?.queues[EVENT_QUEUE]
  if (!common || (common.status & STATUS.driverOk) === 0 || queue?.enabled !== 1) return undefined
  if ((msixControl & MSIX_ON) === 0 || queue.vector * 4 >= msix.length || queue.size === 0) {
    throw new Error('its vsock driver takes no message-signalled interrupts')
  }
  const used = await q.read(2, queue.device + 2)
  const avail = await q.read(2, queue.driver + 2)
  if (avail === used) throw new Error('its vsock driver was just starting')
  const head = await q.read(2, queue.driver + 4 + (used % queue.size) * 2)
  const descriptor = queue.descriptors + (head % queue.size) * 16
  if ((await q.read(4, descriptor + 8)) < 4 || ((await q.read(2, descriptor + 12)) & DESCRIPTOR_WRITE) === 0)
    throw new Error('its vsock driver gives no room for an event')
  await q.write(4, await read64(q, descriptor), TRANSPORT_RESET)
  await q.write(4, queue.device + 4 + (used % queue.size) * 8, head)
  await q.write(4, queue.device + 4 + (used % queue.size) * 8 + 4, 4)
  await q.write(2, queue.device + 2, (used + 1) % 65_536)
  const [low = 0, high = 0, data = 0] = msix.slice(queue.vector * 4, queue.vector * 4 + 3)
  await q.write(4, low + high * 2 ** 32, data)
  return { at: queue.driver + 2, avail }
}
