/** Files that the bundler embeds. */
declare module '*.sql' {
  const text: string
  export default text
}
declare module '*.blocks' {
  const path: string
  export default path
}
declare module '*.erofs' {
  const path: string
  export default path
}
declare module '*.tar' {
  const path: string
  export default path
}
declare module '*.config' {
  const path: string
  export default path
}
declare module '*.seed' {
  const path: string
  export default path
}
declare module '*/dist/seed/kernel' {
  const path: string
  export default path
}
