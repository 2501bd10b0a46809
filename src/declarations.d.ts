/** Files that the bundler embeds. */
declare module '*.sql' { const text: string; export default text }
