import type { Host } from '../host.ts'
import type { VmRow } from '../store/schema.ts'

export const makeCgroups = (_host: Host, _row: VmRow): string[] => []
export const removeCgroups = async (_host: Host, _row: VmRow | undefined, _keep?: ReadonlySet<string>): Promise<void> => {}
