//! The end of an image: directories, inodes, superblock, digest.

use std::{io, os::unix::fs::FileExt as _};

use sha2::{Digest as _, Sha256};

use crate::pack::{
    error::{Error, Result},
    image::tree::{Body, Contents, NodeId, Place, ROOT, Tree},
};

use super::{
    BLOCK, DataArea, SLOT,
    dirent::Listing,
    inode::{self, Shape},
    layout::Layout,
    xattr,
};

/// `EROFS_SUPER_MAGIC_V1`.
const MAGIC: u32 = 0xe0f5_e1e2;
/// The byte of block 0 at which the superblock begins.
const SUPER_OFFSET: usize = 1024;
/// `EROFS_FEATURE_COMPAT_SB_CHKSUM | EROFS_FEATURE_COMPAT_MTIME`.
const FEATURE_COMPAT: u32 = 1 | 2;
/// `EROFS_FEATURE_INCOMPAT_CHUNKED_FILE`, where there is such a file.
const CHUNKED_FILE: u32 = 4;

/// A finished image.
#[derive(Debug)]
pub struct Summary {
    pub bytes: u64,
    pub sha256: [u8; 32],
}

/// Writes the metadata of `tree` behind the contents in `data`, and ends the image.
///
/// # Errors
/// `write_failed`, `disk_full`, `archive_too_large`.
pub fn finish(tree: &Tree, data: &mut DataArea) -> Result<Summary> {
    let layout = Layout::new(tree, data)?;
    let mut seal = Sha256::new();
    let starts = write_blocks(tree, &layout, data, &mut seal)?;
    let meta_block = data.end();
    write_inodes(tree, &layout, &starts, data, &mut seal)?;
    seal.update(data.checksum()?.to_le_bytes());
    let uuid = uuid(&seal.finalize());
    data.write_at(&superblock(&layout, data.end(), meta_block, uuid), 0)?;
    let bytes = u64::from(data.end()) * BLOCK as u64;
    let sha256 = digest(data.finish()?, bytes)?;
    Ok(Summary { bytes, sha256 })
}

/// The blocks of directories and long symlinks; gives the first of each, in the order of `Layout::with_blocks`.
fn write_blocks(
    tree: &Tree,
    layout: &Layout,
    data: &mut DataArea,
    seal: &mut Sha256,
) -> Result<Starts> {
    let mut starts = Starts::default();
    for (id, shape) in layout.with_blocks() {
        let mut left = shape.blocks;
        let mut first = None;
        let mut failure = None;
        let mut write = |bytes: &[u8]| {
            if left == 0 || failure.is_some() {
                return;
            }
            left -= 1;
            let mut block = [0; BLOCK];
            block[..bytes.len()].copy_from_slice(bytes);
            seal.update(block);
            match data.append(&block) {
                Ok(at) => first = first.or(Some(at)),
                Err(error) => failure = Some(error),
            }
        };
        match &tree.node(id).body {
            Body::Symlink(target) => write(target),
            _ => Listing::new(tree, id).encode(tree, |id| layout.nid(id), &mut write),
        }
        match failure {
            Some(error) => return Err(error),
            None => starts.0.push((id, first.unwrap_or(0))),
        }
    }
    starts.0.sort_unstable();
    Ok(starts)
}

/// First blocks, by node.
#[derive(Debug, Default)]
struct Starts(Vec<(NodeId, u32)>);

impl Starts {
    fn get(&self, id: NodeId) -> u32 {
        self.0
            .binary_search_by_key(&id, |start| start.0)
            .map_or(0, |at| self.0[at].1)
    }
}

fn write_inodes(
    tree: &Tree,
    layout: &Layout,
    starts: &Starts,
    data: &mut DataArea,
    seal: &mut Sha256,
) -> Result<()> {
    let mut bytes: Vec<u8> = Vec::with_capacity(64 * BLOCK);
    let mut written = 0;
    let mut number = 0;
    for (id, shape) in layout.by_address() {
        let at = shape.slot as usize * SLOT;
        // All before this inode is complete: what fills whole blocks can go.
        let whole = (at / BLOCK * BLOCK).saturating_sub(written);
        if whole >= 16 * BLOCK {
            bytes.resize(bytes.len().max(whole), 0);
            seal.update(&bytes[..whole]);
            data.append(&bytes[..whole])?;
            bytes.drain(..whole);
            written += whole;
        }
        number += 1;
        bytes.resize(at - written, 0);
        append_inode(
            tree,
            layout,
            (id, shape),
            starts.get(id),
            number,
            data,
            &mut bytes,
        );
    }
    bytes.resize(layout.blocks as usize * BLOCK - written, 0);
    seal.update(&bytes);
    for part in bytes.chunks(64 * BLOCK) {
        data.append(part)?;
    }
    Ok(())
}

fn append_inode(
    tree: &Tree,
    layout: &Layout,
    (id, shape): (NodeId, Shape),
    start: u32,
    number: u32,
    data: &DataArea,
    out: &mut Vec<u8>,
) {
    let node = tree.node(id);
    let map = match &node.body {
        Body::File(Contents {
            place: Place::Chunks(map),
            ..
        }) => Some(data.map(*map)),
        _ => None,
    };
    let start = match (&node.body, map) {
        (_, Some(map)) => map.format(),
        (
            Body::File(Contents {
                place: Place::Row { block, .. },
                ..
            }),
            None,
        ) => *block,
        _ => start,
    };
    inode::encode(node, &shape, start, number, out);
    xattr::encode(tree.xattrs(node.attributes.xattrs), out);
    if let Some(map) = map {
        map.encode(out);
    }
    if shape.tail_len == 0 {
        return;
    }
    match &node.body {
        Body::File(Contents {
            place: Place::Row { tail, .. },
            ..
        }) => out.extend(tail.map_or(&[][..], |tail| data.tail(tail))),
        Body::Symlink(target) => out.extend(&**target),
        _ => {
            let mut block = 0;
            Listing::new(tree, id).encode(
                tree,
                |id| layout.nid(id),
                |bytes| {
                    if block == shape.blocks {
                        out.extend(bytes);
                    }
                    block += 1;
                },
            );
        }
    }
}

/// An identifier made of the contents, in the form of RFC 9562 version 8.
fn uuid(digest: &[u8]) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&digest[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// Block 0.
fn superblock(layout: &Layout, blocks: u32, meta_block: u32, uuid: [u8; 16]) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put =
        |at: usize, bytes: &[u8]| block[SUPER_OFFSET + at..][..bytes.len()].copy_from_slice(bytes);
    put(0, &MAGIC.to_le_bytes());
    put(8, &FEATURE_COMPAT.to_le_bytes());
    put(12, &[12]);
    put(
        14,
        &u16::try_from(layout.nid(ROOT))
            .unwrap_or(u16::MAX)
            .to_le_bytes(),
    );
    put(16, &(layout.by_address().len() as u64).to_le_bytes());
    put(24, &layout.epoch.0.to_le_bytes());
    put(32, &layout.epoch.1.to_le_bytes());
    put(36, &blocks.to_le_bytes());
    put(40, &meta_block.to_le_bytes());
    put(48, &uuid);
    let incompat = if layout.has_chunks { CHUNKED_FILE } else { 0 };
    put(80, &incompat.to_le_bytes());
    // The kernel's crc32c leaves out the last inversion.
    let checksum = !crc32c::crc32c(&block[SUPER_OFFSET..]);
    block[SUPER_OFFSET + 4..][..4].copy_from_slice(&checksum.to_le_bytes());
    block
}

fn digest(image: &std::fs::File, bytes: u64) -> Result<[u8; 32]> {
    let failed = |source| Error::Read {
        what: "the image",
        source,
    };
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut offset = 0;
    while offset < bytes {
        let count = match image.read_at(&mut buffer, offset) {
            Ok(0) => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        hash.update(&buffer[..count]);
        offset += count as u64;
    }
    Ok(hash.finalize().into())
}
