import { randomBytes } from 'node:crypto'

const ALPHABET = '0123456789abcdefghijklmnopqrstuvwxyz'

/** Makes a sortable id: 9 characters of time (ms, base 36, good until the year 5188) and 11 of randomness (56 bits). */
export const newId = (prefix: string, nowMs = Date.now()): string => {
  const time = nowMs.toString(36).padStart(9, '0')
  const noise = Array.from(randomBytes(11), (byte) => ALPHABET[byte % 36]).join('')
  return `${prefix}_${time}${noise}`
}

const FIRST = [
  'calm',
  'bold',
  'keen',
  'swift',
  'quiet',
  'bright',
  'amber',
  'misty',
  'lofty',
  'brave',
  'clear',
  'rapid',
  'sunny',
  'mellow',
  'noble',
  'gentle',
]
const SECOND = [
  'kite',
  'heron',
  'falcon',
  'swift',
  'osprey',
  'raven',
  'wren',
  'eagle',
  'crane',
  'lark',
  'merlin',
  'hobby',
  'harrier',
  'martin',
  'petrel',
  'egret',
]

/** Makes a name that a person can say: `keen-heron-4k2`. Uniqueness is the database's business. */
export const newName = (): string => {
  const [a = 0, b = 0, c = 0, d = 0, e = 0] = randomBytes(5)
  return `${FIRST[a % 16]}-${SECOND[b % 16]}-${ALPHABET[c % 36]}${ALPHABET[d % 36]}${ALPHABET[e % 36]}`
}
