const UNITS: Readonly<Record<string, number>> = { '': 1, b: 1, k: 2 ** 10, m: 2 ** 20, g: 2 ** 30, t: 2 ** 40 }

/**
 * Reads a size, `512`, `64k`, `1.5GiB`, `10g`, in bytes (binary units, as Docker reads them); undefined where it is no
 * size.
 */
export const parseBytes = (text: string): number | undefined => {
  const match = /^(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?$/i.exec(text.trim())
  if (!match) return undefined
  const bytes = Number(match[1]) * (UNITS[(match[2] ?? '').toLowerCase()] ?? Number.NaN)
  return Number.isSafeInteger(Math.round(bytes)) ? Math.round(bytes) : undefined
}

/** Reads a rate, `100MB/s`, `512k`, `1048576`, in bytes a second, as sizes are read; undefined where it is no rate. */
export const parseRate = (text: string): number | undefined => parseBytes(text.trim().replace(/\/s$/i, ''))

/** Reads a rate of a network in bytes a second: `100Mbps` (bits, decimal units), or as `parseRate` does: `12MB/s`. */
export const parseBandwidth = (text: string): number | undefined => {
  const match = /^(\d+(?:\.\d+)?) ?([kKmMgG]?)b(?:ps|it\/s)$/.exec(text.trim())
  // "Mb" is bits to some and bytes to others.
  if (!match) return /[kmgi]b(\/s)?$/i.test(text) && !/B(\/s)?$/.test(text) ? undefined : parseRate(text)
  const unit = { '': 1, k: 1e3, m: 1e6, g: 1e9 }[(match[2] ?? '').toLowerCase()] ?? 1
  return Math.round((Number(match[1]) * unit) / 8)
}

/** Writes bytes for people: three digits and a binary unit. */
export const sayBytes = (bytes: number): string => {
  let at = 0
  let n = bytes
  while (n >= 1000 && at < 5) {
    n /= 1024
    at++
  }
  return `${at === 0 || n >= 100 ? Math.round(n) : n.toPrecision(3)} ${['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'][at]}`
}

/**
 * Reads a duration, `30`, `500ms`, `5m`, `1h30m`, in milliseconds; a bare number is seconds; undefined where it is no
 * duration.
 */
export const parseDuration = (text: string): number | undefined => {
  const ms = durationOf(text)
  return ms !== undefined && Number.isSafeInteger(ms) ? ms : undefined
}

const durationOf = (text: string): number | undefined => {
  if (/^\d+(\.\d+)?$/.test(text)) return Math.round(Number(text) * 1000)
  const unit: Readonly<Record<string, number>> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 }
  let ms = 0
  let rest = text
  while (rest !== '') {
    const match = /^(\d+(?:\.\d+)?)(ms|s|m|h|d)/.exec(rest)
    if (!match) return undefined
    ms += Number(match[1]) * (unit[match[2] ?? ''] ?? Number.NaN)
    rest = rest.slice(match[0].length)
  }
  return text === '' ? undefined : Math.round(ms)
}
