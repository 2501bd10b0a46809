import type { Config } from '../config.ts'
import type { HypervisorName } from '../contract/hypervisor.ts'
import type { Check } from '../contract/system.ts'
import { kvmSupport } from '../linux/kvm.ts'
import type { Accelerator, DriverOffer, Ground, HypervisorDriver, NicKind } from './driver.ts'
import { hypervisorUnavailable } from './errors.ts'

/** The hypervisor of a vm that names none. */
export interface DefaultHypervisor extends Accelerator {
  readonly name: HypervisorName
  /** The driver that would have been better here, where the configuration did not choose. */
  readonly insteadOf?: HypervisorName
}

/** Asks the drivers what `aerie doctor` shall say of them on a host with this configuration. */
export type DriverChecks = (config: Config) => Promise<readonly Check[]>

/** The drivers of this host, the best first, and which of them a vm gets that asks for none. */
export class Hypervisors {
  readonly default: DefaultHypervisor
  readonly checks: DriverChecks
  readonly #drivers = new Map<string, HypervisorDriver>()
  readonly #lacking: ReadonlyMap<string, string>

  constructor(
    drivers: readonly HypervisorDriver[],
    byDefault: DefaultHypervisor,
    lacking: ReadonlyMap<string, string> = new Map(),
    checks: DriverChecks = () => Promise.resolve([]),
  ) {
    for (const driver of drivers) this.#drivers.set(driver.name, driver)
    this.default = byDefault
    this.#lacking = lacking
    this.checks = checks
  }

  /** Finds a driver by its name; undefined where this host cannot run it. */
  get(name: string): HypervisorDriver | undefined {
    return this.#drivers.get(name)
  }

  /** Finds a driver by its name. @throws `hypervisor_unavailable` */
  need(name: string): HypervisorDriver {
    const driver = this.#drivers.get(name)
    if (driver) return driver
    throw hypervisorUnavailable({
      hypervisor: name,
      reason: this.#lacking.get(name) ?? 'this host has no such driver',
    })
  }

  /** Names the default, or the first other driver that has a network card of this kind where the default has none. */
  nameFor(nic: NicKind | undefined): HypervisorName {
    const can = (driver: HypervisorDriver | undefined) => nic === undefined || driver?.nics.includes(nic) === true
    const able = can(this.get(this.default.name)) ? undefined : [...this.#drivers.values()].find(can)
    return able?.name ?? this.default.name
  }
}

const groundOf = (config: Config): Ground => {
  const kvm = kvmSupport()
  return { config, kvm, accelerator: config.accelerator === 'auto' ? (kvm.usable ? 'kvm' : 'tcg') : config.accelerator }
}

/** What `aerie doctor` says of every driver, in the order of the offers. */
export const driverChecks =
  (offers: readonly DriverOffer[]): DriverChecks =>
  async (config) => {
    const ground = groundOf(config)
    const usable = offers.filter((one) => !one.onRequest && isFound(one, ground))
    const said = offers.map((one) =>
      one.check?.(
        ground,
        usable.some((other) => other !== one),
      ),
    )
    return (await Promise.all(said)).flatMap((checks) => checks ?? [])
  }

const isFound = (offer: DriverOffer, ground: Ground): boolean => {
  const found = offer.find(ground)
  return found !== undefined && 'driver' in found
}

/**
 * Asks the host which of the offered drivers it can run, and chooses the default: what the configuration names, else
 * the first that is there and fit, else the first that is there, else the last, which says what it lacks.
 */
export const findHypervisors = (offers: readonly DriverOffer[], config: Config): Hypervisors => {
  const ground = groundOf(config)
  const drivers: HypervisorDriver[] = []
  const lacking = new Map<string, string>()
  for (const offer of offers) {
    const found = offer.find(ground)
    if (found && 'driver' in found) drivers.push(found.driver)
    else if (found) lacking.set(offer.name, found.lacks)
  }
  const choice = choose(offers, config, drivers)
  const reason = config.accelerator === 'auto' ? ground.kvm.reason : `the configuration says ${ground.accelerator}`
  const lack = lacking.get(choice.name)
  const runsOn: Accelerator =
    lack === undefined
      ? (choice.accelerator ?? { accelerator: ground.accelerator, reason: reason + choice.why })
      : { accelerator: 'none', reason: lack }
  const better = choice.insteadOf === undefined ? {} : { insteadOf: choice.insteadOf }
  return new Hypervisors(drivers, { name: choice.name, ...runsOn, ...better }, lacking, driverChecks(offers))
}

interface Choice extends Pick<DefaultHypervisor, 'name' | 'insteadOf'> {
  readonly accelerator: Accelerator | undefined
  /** Goes behind the reason of the accelerator. */
  readonly why: string
}

const choose = (offers: readonly DriverOffer[], config: Config, drivers: readonly HypervisorDriver[]): Choice => {
  const asked = offers.find((one) => one.name === config.hypervisor)
  if (asked) return { name: asked.name, accelerator: asked.accelerator, why: '' }
  const wanted = offers.filter((one) => !one.onRequest)
  const there = wanted.filter((one) => drivers.some((driver) => driver.name === one.name))
  // One that cannot be jailed is no default, but its machines of before are adopted.
  const [best] = there
  const unfit = there.length > 1 ? best?.unfit?.() : undefined
  const chosen = (unfit === undefined ? best : there[1]) ?? wanted.at(-1)
  if (!chosen) throw new Error('no driver is offered as a default')
  const why = unfit === undefined || best === undefined ? '' : `; ${chosen.name} in place of ${best.name}: ${unfit}`
  const first = wanted[0]
  const insteadOf = first && first !== chosen ? { insteadOf: first.name } : {}
  return { name: chosen.name, accelerator: chosen.accelerator, why, ...insteadOf }
}
