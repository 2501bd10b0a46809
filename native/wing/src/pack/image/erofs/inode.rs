//! One inode on disk (`struct erofs_inode_compact`, `struct erofs_inode_extended`).

use crate::pack::image::tree::{Body, Node};

use super::xattr;

/// Which of the two records an inode gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Form {
    /// 32 bytes: numbers of 16 bits, and the time of the whole image.
    Compact,
    /// 64 bytes.
    #[default]
    Extended,
}

impl Form {
    /// The smaller one if `node` fits it.
    pub fn smallest(node: &Node, size: u64, epoch: (i64, u32)) -> Self {
        let attributes = &node.attributes;
        let fits = u16::try_from(attributes.uid).is_ok()
            && u16::try_from(attributes.gid).is_ok()
            && u16::try_from(node.links).is_ok()
            && u32::try_from(size).is_ok()
            && (attributes.mtime, attributes.mtime_nsec) == epoch;
        if fits { Self::Compact } else { Self::Extended }
    }

    pub fn len(self) -> usize {
        match self {
            Self::Compact => 32,
            Self::Extended => 64,
        }
    }
}

/// Size and place of an inode and what lies behind it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shape {
    /// Address in units of 32 bytes from the first block of inodes.
    pub slot: u32,
    pub form: Form,
    pub xattr_len: usize,
    /// Bytes of the map of a file that is stored in chunks.
    pub map_len: usize,
    /// Bytes of data.
    pub size: u64,
    /// Blocks that we write for it: those of a directory or of a long symlink.
    pub blocks: u32,
    /// Bytes of data behind the inode.
    pub tail_len: usize,
    /// Whether the last of `blocks` is there because the tail does not fit behind the inode.
    pub apart: bool,
}

impl Shape {
    /// Bytes before the tail.
    pub fn head(&self) -> usize {
        self.form.len() + self.xattr_len + self.map_len
    }
}

/// Appends an inode; attributes, map and tail follow. `start` is where its data are: the first block, or the format of
/// its chunks. `number` is what programs without 64-bit inode numbers see.
pub fn encode(node: &Node, shape: &Shape, start: u32, number: u32, out: &mut Vec<u8>) {
    const FLAT_PLAIN: u16 = 0;
    const FLAT_INLINE: u16 = 2;
    const CHUNK_BASED: u16 = 4;
    let attributes = &node.attributes;
    let layout = match shape {
        Shape { map_len: 1.., .. } => CHUNK_BASED,
        Shape { tail_len: 1.., .. } => FLAT_INLINE,
        _ => FLAT_PLAIN,
    };
    let version = match shape.form {
        Form::Compact => 0,
        Form::Extended => 1,
    };
    let union = match &node.body {
        Body::CharDevice(major, minor) | Body::BlockDevice(major, minor) => device(*major, *minor),
        _ => start,
    };
    let mode = file_format(&node.body) | attributes.mode & 0o7777;
    out.extend((version | layout << 1).to_le_bytes());
    out.extend(xattr::count(shape.xattr_len).to_le_bytes());
    out.extend(mode.to_le_bytes());
    match shape.form {
        Form::Compact => {
            out.extend(u16::try_from(node.links).unwrap_or(u16::MAX).to_le_bytes());
            out.extend(u32::try_from(shape.size).unwrap_or(u32::MAX).to_le_bytes());
            out.extend([0; 4]);
            out.extend(union.to_le_bytes());
            out.extend(number.to_le_bytes());
            out.extend(
                u16::try_from(attributes.uid)
                    .unwrap_or(u16::MAX)
                    .to_le_bytes(),
            );
            out.extend(
                u16::try_from(attributes.gid)
                    .unwrap_or(u16::MAX)
                    .to_le_bytes(),
            );
            out.extend([0; 4]);
        }
        Form::Extended => {
            out.extend([0; 2]);
            out.extend(shape.size.to_le_bytes());
            out.extend(union.to_le_bytes());
            out.extend(number.to_le_bytes());
            out.extend(attributes.uid.to_le_bytes());
            out.extend(attributes.gid.to_le_bytes());
            out.extend(attributes.mtime.to_le_bytes());
            out.extend(attributes.mtime_nsec.to_le_bytes());
            out.extend(node.links.to_le_bytes());
            out.extend([0; 16]);
        }
    }
}

/// `S_IFMT` of inode(7).
fn file_format(body: &Body) -> u16 {
    match body {
        Body::Fifo => 0o010_000,
        Body::CharDevice(..) => 0o020_000,
        Body::Directory(_) => 0o040_000,
        Body::BlockDevice(..) => 0o060_000,
        Body::File(_) => 0o100_000,
        Body::Symlink(_) => 0o120_000,
    }
}

/// Largest major and minor number that a device can have on disk (`MAJOR` and `MINOR` of `kdev_t.h`).
pub const DEVICE_MAX: (u32, u32) = (0xfff, 0xf_ffff);

/// `new_encode_dev` of `include/linux/kdev_t.h`.
fn device(major: u32, minor: u32) -> u32 {
    minor & 0xff | (major & DEVICE_MAX.0) << 8 | (minor & DEVICE_MAX.1 & !0xff) << 12
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::image::tree::Attributes;

    fn node(uid: u32, mtime: i64) -> Node {
        Node {
            attributes: Attributes {
                uid,
                mtime,
                ..Attributes::default()
            },
            links: 1,
            body: Body::Fifo,
        }
    }

    #[test]
    fn an_inode_takes_as_many_bytes_as_its_form() {
        for (node, form) in [
            (node(0, 7), Form::Compact),
            (node(70_000, 7), Form::Extended),
            (node(0, 8), Form::Extended),
        ] {
            let shape = Shape {
                form: Form::smallest(&node, 0, (7, 0)),
                ..Shape::default()
            };
            let mut bytes = Vec::new();

            encode(&node, &shape, 0, 1, &mut bytes);

            assert_eq!(shape.form, form);
            assert_eq!(bytes.len(), form.len());
        }
    }

    #[test]
    fn device_numbers_are_split_as_the_kernel_does() {
        assert_eq!(device(5, 1), 0x0501);
        assert_eq!(device(259, 0x12345), 0x1231_0345);
    }
}
