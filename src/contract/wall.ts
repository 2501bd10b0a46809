/** What stands between a guest that broke out of its VMM and the host. */
export const WALLS = ['own-user', 'cgroup', 'namespaces', 'empty-root', 'seccomp', 'landlock'] as const
export type Wall = (typeof WALLS)[number]
