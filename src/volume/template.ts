import { closeSync, ftruncateSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs'
import template from '../../dist/native/ext4.blocks' with { type: 'file' }

const BLOCK = 4096
const RECORD = 4 + BLOCK
let blocks: Buffer | undefined

/**
 * Writes a new disk: an empty ext4 of 64 MiB that the agent grows online to the size of the disk (`mke2fs -E resize=`
 * left room for its group descriptors). The template is the blocks of that ext4 that hold something, each behind its
 * number (u32 LE): a disk costs a write of some 350 KiB and stays sparse. It is not synced: the guest's own flushes
 * reach it through the VMM.
 *
 * @param sizeMb  size of the disk, MiB, 64 or more
 * @throws the system's error, ENOSPC and EEXIST among them; nothing is left at `path` then
 */
export const writeTemplate = (path: string, sizeMb: number): void => {
  blocks ??= readFileSync(template)
  const fd = openSync(path, 'wx', 0o600)
  try {
    ftruncateSync(fd, sizeMb * 2 ** 20)
    let at = 0
    while (at < blocks.byteLength) {
      const first = blocks.readUInt32LE(at)
      writeSync(fd, blocks, at + 4, BLOCK, first * BLOCK)
      at += RECORD
    }
  } catch (error) {
    rmSync(path, { force: true })
    throw error
  } finally {
    closeSync(fd)
  }
}
