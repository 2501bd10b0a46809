import { inspecting } from '../../shapes.ts'

export const inspect = inspecting('vm', {
  detail:
    'Prints JSON (one object, or a list where several are named), unless --output says otherwise. Values of the environment are not shown.',
  get: (client, name) => client.call('vm.get', { params: { name } }),
  nameOf: (vm) => vm.name,
})
