/** Native programs that `scripts/build` puts into `dist/native` and the bundler embeds: their import is a path. */
declare module '*.so' {
  const path: string
  export default path
}
declare module '*/dist/native/wing' {
  const path: string
  export default path
}
declare module '*/dist/native/talon' {
  const path: string
  export default path
}
declare module '*/dist/native/kestrel' {
  const path: string
  export default path
}
