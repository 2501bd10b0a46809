import { onEach } from '../../shapes.ts'
import { STOP_FLAGS, stopBody } from './stop-flags.ts'

export const pause = onEach('vm', { act: (client, name) => client.call('vm.pause', { params: { name } }) })

export const resume = onEach('vm', { act: (client, name) => client.call('vm.resume', { params: { name } }) })

export const standby = onEach('vm', {
  detail: 'Moves the memory to disk and ends the machine; `aerie restore` runs it on from where it stood.',
  act: (client, name) => client.call('vm.standby', { params: { name } }),
})

export const restore = onEach('vm', { act: (client, name) => client.call('vm.restore', { params: { name } }) })

export const stop = onEach('vm', {
  flags: STOP_FLAGS,
  detail: 'Asks the guest, then presses its power button, then ends the machine.',
  act: (client, name, flags) => client.call('vm.stop', { params: { name }, body: stopBody(flags) }),
})

export const restart = onEach('vm', {
  flags: STOP_FLAGS,
  act: (client, name, flags) => client.call('vm.restart', { params: { name }, body: stopBody(flags) }),
})
