/** Gives the message of whatever was thrown, without its causes: an error's own, or the value as text. */
export const messageOf = (thrown: unknown): string => (thrown instanceof Error ? thrown.message : String(thrown))
