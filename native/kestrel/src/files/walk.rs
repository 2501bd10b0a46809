//! The folders that a stream writes into, below the one that was named.
//!
//! Symlinks that were in the guest before lead on, as they do for everybody else in it. Those that the stream made itself lead
//! nowhere: else a stream could say `x → /etc` and then `x/passwd`. They are told by device and inode, so that no other name
//! for one hides it.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::at;

/// As many links in a row are followed as Linux does at most (path_resolution(7)).
const HOPS_MAX: u32 = 40;
/// Open folders that are kept from one entry to the next.
const KEPT_MAX: usize = 32;
/// Links that are remembered; a stream that makes more has no link followed from then on.
const LINKS_MAX: usize = 200_000;

/// Why a name cannot be reached.
#[derive(Debug)]
pub enum WalkError {
    /// Over a link that the stream made.
    Escapes,
    Io(io::Error),
}

impl From<io::Error> for WalkError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Where a name is: the folder, and the name in it.
pub type Place = (OwnedFd, Vec<u8>);

#[derive(Debug)]
pub struct Walk {
    root: OwnedFd,
    /// The folders on the way to the last one that was asked for.
    kept: Vec<(Vec<u8>, OwnedFd)>,
    links: HashSet<(u64, u64)>,
    is_full: bool,
}

impl Walk {
    /// `root` is a descriptor of the folder that was named.
    pub fn new(root: OwnedFd) -> Self {
        Self {
            root,
            kept: Vec::new(),
            links: HashSet::new(),
            is_full: false,
        }
    }

    /// Notes that the stream gave this file a name by a link.
    pub fn made_link(&mut self, id: (u64, u64)) {
        match self.links.len() < LINKS_MAX {
            true => drop(self.links.insert(id)),
            false => self.is_full = true,
        }
    }

    /// Whether the stream gave this file a name by a link.
    pub fn is_made(&self, id: (u64, u64)) -> bool {
        self.is_full || self.links.contains(&id)
    }

    /// The folder at these parts below the root. What is missing is made where `make` says so.
    pub fn folder(&mut self, parts: &[Vec<u8>], make: bool) -> Result<BorrowedFd<'_>, WalkError> {
        let same = self
            .kept
            .iter()
            .zip(parts)
            .take_while(|((name, _), part)| name == *part)
            .count();
        self.kept.truncate(same);
        let mut deeper: Option<OwnedFd> = None;
        for part in parts.get(same..).unwrap_or_default() {
            let here = match (&deeper, self.kept.last()) {
                (Some(fd), _) | (None, Some((_, fd))) => fd.as_fd(),
                (None, None) => self.root.as_fd(),
            };
            let next = self.enter(here, part, make)?;
            if self.kept.len() < KEPT_MAX && deeper.is_none() {
                self.kept.push((part.clone(), next));
            } else {
                deeper = Some(next);
            }
        }
        if let Some(fd) = deeper {
            // One more than is kept, until the next is asked for: no part is called so.
            self.kept.push((Vec::new(), fd));
        }
        Ok(match self.kept.last() {
            Some((_, fd)) => fd.as_fd(),
            None => self.root.as_fd(),
        })
    }

    fn enter(&self, here: BorrowedFd<'_>, name: &[u8], make: bool) -> Result<OwnedFd, WalkError> {
        let error = match at::open_folder(here, name) {
            Ok(fd) => return Ok(fd),
            Err(error) => error,
        };
        match at::look(here, name)? {
            Some(found) if found.kind() == libc::S_IFLNK => {
                let (parent, name) = self.resolve(here, name)?;
                Ok(at::open_folder(parent.as_fd(), &name)?)
            }
            None if make => {
                at::make_folder(here, name, 0o755)?;
                Ok(at::open_folder(here, name)?)
            }
            _ => Err(error.into()),
        }
    }

    /// Where a name leads when the links that were there before are followed. What it leads to is no link, and may not exist;
    /// the folder that it is in does.
    pub fn resolve(&self, here: BorrowedFd<'_>, name: &[u8]) -> Result<Place, WalkError> {
        let mut at = here.try_clone_to_owned()?;
        // The next part last.
        let mut parts = vec![name.to_vec()];
        let mut hops = 0;
        loop {
            let Some(part) = parts.pop() else {
                return Ok((at, b".".to_vec()));
            };
            if part == b".." {
                at = at::open_folder(at.as_fd(), b"..")?;
                continue;
            }
            let found = match at::look(at.as_fd(), &part)? {
                Some(found) => found,
                None if parts.is_empty() => return Ok((at, part)),
                None => return Err(io::Error::from(io::ErrorKind::NotFound).into()),
            };
            if found.kind() != libc::S_IFLNK {
                if parts.is_empty() {
                    return Ok((at, part));
                }
                at = at::open_folder(at.as_fd(), &part)?;
                continue;
            }
            if self.is_made(found.id()) {
                return Err(WalkError::Escapes);
            }
            hops += 1;
            if hops > HOPS_MAX {
                return Err(io::Error::from_raw_os_error(libc::ELOOP).into());
            }
            let target = at::read_link(at.as_fd(), &part)?;
            if target.starts_with(b"/") {
                at = at::root()?;
            }
            parts.extend(
                target
                    .split(|&byte| byte == b'/')
                    .rev()
                    .filter(|part| !part.is_empty() && *part != b".")
                    .map(<[u8]>::to_vec),
            );
        }
    }
}
