/** Counts how many letters have to be typed otherwise (Damerau-Levenshtein, adjacent swaps count once). */
export const distance = (a: string, b: string): number => {
  const rows: number[][] = [Array.from({ length: b.length + 1 }, (_, at) => at)]
  for (let i = 1; i <= a.length; i++) {
    const row = [i]
    for (let j = 1; j <= b.length; j++) {
      const above = rows[i - 1] ?? []
      const same = a[i - 1] === b[j - 1]
      let best = Math.min((above[j] ?? 0) + 1, (row[j - 1] ?? 0) + 1, (above[j - 1] ?? 0) + (same ? 0 : 1))
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1])
        best = Math.min(best, (rows[i - 2]?.[j - 2] ?? 0) + 1)
      row.push(best)
    }
    rows.push(row)
  }
  return rows[a.length]?.[b.length] ?? 0
}

/** Finds the word that was probably meant: near enough, or the only one that begins so. */
export const suggest = (typed: string, words: readonly string[]): string | undefined => {
  const near = words.map((word) => ({ word, far: distance(typed, word) })).sort((a, b) => a.far - b.far)[0]
  if (near && near.far <= Math.max(1, Math.floor(typed.length / 3))) return near.word
  const begins = typed.length >= 2 ? words.filter((word) => word.startsWith(typed)) : []
  return begins.length === 1 ? begins[0] : undefined
}
