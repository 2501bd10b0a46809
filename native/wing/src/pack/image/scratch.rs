//! Files of an image archive put aside: manifests name them in an order that the archive does not have.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt as _,
};

use crate::pack::{
    codec::tar::{Entry, Kind},
    error::{Error, Result, show},
    input::read_all,
    path::{components, split},
};

/// Symlinks from one file of an archive to another.
const HOPS_MAX: u32 = 8;
/// Manifests and configurations; registries refuse them above 4 MiB.
const DOCUMENT_MAX: u64 = 4 << 20;

/// One member of the archive.
#[derive(Debug)]
struct Member {
    entry: Entry,
    path: Vec<u8>,
    offset: u64,
}

/// Members in the order of the archive, their contents in a file.
#[derive(Debug)]
pub struct Scratch {
    file: File,
    bytes_max: u64,
    end: u64,
    members: Vec<Member>,
    index: BTreeMap<Vec<u8>, usize>,
}

impl Scratch {
    /// Begins in `file`, whose old contents go away.
    pub fn new(file: File, bytes_max: u64) -> Result<Self> {
        file.set_len(0).map_err(failed)?;
        Ok(Self {
            file,
            bytes_max,
            end: 0,
            members: Vec::new(),
            index: BTreeMap::new(),
        })
    }

    /// Puts `entry` with the contents in `input` aside as `path` (clean).
    pub fn store(&mut self, entry: Entry, path: Vec<u8>, input: &mut impl Read) -> Result<()> {
        let offset = self.end;
        if entry.size > self.bytes_max.saturating_sub(offset) {
            return Err(Error::TooLarge {
                what: "bytes",
                limit: self.bytes_max,
            });
        }
        if entry.size > 0 {
            let mut buffer = vec![0; 1 << 20];
            loop {
                match input.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(count) => {
                        self.file
                            .write_all_at(&buffer[..count], self.end)
                            .map_err(failed)?;
                        self.end += count as u64;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(Error::from_read("the archive", error)),
                }
            }
        }
        self.index.insert(path.clone(), self.members.len());
        self.members.push(Member {
            entry,
            path,
            offset,
        });
        Ok(())
    }

    /// Everything that was put aside, in its order.
    pub fn members(&self) -> impl Iterator<Item = (&Entry, &[u8], Slice<'_>)> {
        self.members
            .iter()
            .map(|member| (&member.entry, &member.path[..], self.slice(member)))
    }

    /// Whether there is a member of this name.
    pub fn has(&self, path: &str) -> bool {
        self.index.contains_key(path.as_bytes())
    }

    /// The contents of a file, through links to other members.
    ///
    /// # Errors
    /// `image_layer_missing` if there is no such file.
    pub fn open(&self, path: &str) -> Result<Slice<'_>> {
        let missing = || Error::LayerMissing {
            file: show(path.as_bytes()),
        };
        let mut here = join(b"", path.as_bytes()).ok_or_else(missing)?;
        for _ in 0..HOPS_MAX {
            let member = self
                .index
                .get(&here)
                .map(|&at| &self.members[at])
                .ok_or_else(missing)?;
            here = match member.entry.kind {
                Kind::File => return Ok(self.slice(member)),
                Kind::Symlink => join(
                    split(&here).map_or(b"", |(folder, _)| folder),
                    &member.entry.link,
                ),
                Kind::HardLink => join(b"", &member.entry.link),
                _ => None,
            }
            .ok_or_else(missing)?;
        }
        Err(missing())
    }

    /// A short file as a whole.
    pub fn document(&self, path: &str) -> Result<Vec<u8>> {
        let slice = self.open(path)?;
        if slice.end - slice.position > DOCUMENT_MAX {
            return Err(Error::Manifest {
                file: path.into(),
                reason: "it is longer than 4 MiB".into(),
            });
        }
        read_all(slice, DOCUMENT_MAX, "the scratch file")
    }

    fn slice(&self, member: &Member) -> Slice<'_> {
        Slice {
            file: &self.file,
            position: member.offset,
            end: member.offset + member.entry.size,
        }
    }
}

fn failed(source: io::Error) -> Error {
    Error::Write {
        what: "the scratch file",
        source,
    }
}

/// `target` as seen from `folder`; `None` when it leads out of the archive.
fn join(folder: &[u8], target: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = if target.first() == Some(&b'/') {
        Vec::new()
    } else {
        components(folder).collect()
    };
    for component in components(target) {
        if component == b".." {
            parts.pop()?;
        } else {
            parts.push(component);
        }
    }
    Some(parts.join(&b'/'))
}

/// Part of the scratch file.
#[derive(Debug)]
pub struct Slice<'a> {
    file: &'a File,
    position: u64,
    end: u64,
}

impl Read for Slice<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.end - self.position)
            .unwrap_or(usize::MAX)
            .min(buf.len());
        let count = self.file.read_at(&mut buf[..want], self.position)?;
        if count == 0 && want > 0 {
            return Err(Error::Truncated {
                what: "the scratch file",
                offset: self.position,
            }
            .into());
        }
        self.position += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_between_members_stay_inside() {
        assert_eq!(join(b"a", b"../b/layer.tar"), Some(b"b/layer.tar".to_vec()));
        assert_eq!(join(b"a", b"/c"), Some(b"c".to_vec()));
        assert_eq!(join(b"a", b"../../b"), None);
    }
}
