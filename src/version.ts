import { version } from '../package.json' with { type: 'json' }

/** The version of this program, as its package.json says; the rest of that file is left out of the bundle. */
export const VERSION: string = version
