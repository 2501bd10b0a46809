//! copy-in: a tar stream of the host becomes files of the guest.
//!
//! `path` is the folder that the entries' names are relative to; it is made where it is missing. Names must be relative and
//! without `..`. Symlinks that were in the guest before are followed as the guest itself would (its `/lib` may be one), within
//! its own root: kestrel lives in it. Those that the stream makes are not, whatever it calls them: a stream may come out of
//! another guest. A file that stands there gets other content, and keeps its owner, its mode and its other names unless the
//! copy is an archive's; a folder that stands there keeps its own. Nothing replaces a folder, and nothing writes to a FIFO, a
//! socket or a device or replaces one. What was written before an error stays.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use aerie_protocol::message::{CopyIn, CopyInDone, ErrorBody, Owner, code};
use aerie_protocol::{Frame, kind_byte};

use crate::files::at::{self, Status};
use crate::files::stat::{absolute, error_code};
use crate::files::tar::{Entry, EntryKind, Reader, TarError};
use crate::files::walk::{Walk, WalkError};
use crate::observe::console::chain;
use crate::talk::conn::{Conn, ConnError, frame_name};

const DEPTH_MAX: usize = 256;
/// All but set-id and sticky.
const PLAIN_MODE: u32 = 0o777;
const SET_ID: u32 = 0o6000;

/// Why a copy stopped.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error(transparent)]
    Tar(#[from] TarError),
    #[error("entry \"{0}\" leaves the folder that it is copied to")]
    Escapes(String),
    #[error("entry \"{0}\" leads over a symbolic link of the stream")]
    OverLink(String),
    #[error("entry \"{0}\" is in more than 256 folders")]
    TooDeep(String),
    #[error("cannot write {}: {what} stands there", .path.display())]
    Special { path: PathBuf, what: &'static str },
    #[error("cannot write {}", .path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl CopyError {
    fn body(&self) -> ErrorBody {
        let code = match self {
            Self::Tar(_) | Self::Escapes(_) | Self::OverLink(_) | Self::TooDeep(_) => {
                code::TAR_INVALID
            }
            Self::Special { .. } => code::NOT_A_FILE,
            Self::Write { source, .. } => error_code(source),
        };
        ErrorBody::new(code, chain(self))
    }
}

/// Serves a copy-in conversation whose `open` had this body.
pub fn serve(mut conn: Conn, body: &CopyIn) {
    let path = match absolute(&body.path) {
        Ok(path) => path,
        Err(body) => return conn.fail(&body),
    };
    let mut data = Data {
        conn: &mut conn,
        frame: Vec::new(),
        taken: 0,
        ended: false,
        broken: None,
    };
    let how = How {
        owner: body.owner,
        is_archive: body.archive,
        folder_mode: body.mode.unwrap_or(0o755),
    };
    let copied = copy(&mut data, path, how);
    match (data.broken.take(), copied) {
        (Some(error), _) => conn.end(Err(error)),
        (None, Ok(done)) => {
            let queued = conn.output.queue_json(kind_byte::OK, &done);
            conn.end(queued);
        }
        (None, Err(error)) => conn.fail(&error.body()),
    }
}

/// The data frames of a conversation as one stream of bytes.
struct Data<'a> {
    conn: &'a mut Conn,
    /// What is left of the last frame, in memory that all of them use: fresh memory costs a page fault for every 4 KiB.
    frame: Vec<u8>,
    taken: usize,
    ended: bool,
    /// Why the conversation cannot go on, which is no fault of the stream.
    broken: Option<ConnError>,
}

impl Read for Data<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let rest = self.frame.get(self.taken..).unwrap_or_default();
            if !rest.is_empty() {
                let mut rest = rest;
                let count = rest.read(buffer)?;
                self.taken += count;
                return Ok(count);
            }
            if self.ended {
                return Ok(0);
            }
            let Self { conn, frame, .. } = self;
            frame.clear();
            self.taken = 0;
            let received = conn.receive(None, |received| match received {
                Frame::Stdin(bytes) => {
                    frame.extend_from_slice(bytes);
                    Ok(true)
                }
                Frame::Eof => Ok(false),
                other => Err(ConnError::Unexpected(frame_name(&other))),
            });
            match received {
                Ok(more) => self.ended = !more,
                Err(error) => {
                    self.broken = Some(error);
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
            }
        }
    }
}

/// What a copy takes along.
#[derive(Clone, Copy, Debug)]
pub struct How {
    pub owner: Owner,
    /// Also set-id bits, capabilities and devices; what exists takes on the owner and mode of the entry.
    pub is_archive: bool,
    /// The mode of folders that have to be made for the root.
    pub folder_mode: u32,
}

/// Unpacks `source` below `root`.
///
/// # Errors
/// The first entry that cannot be written, or a stream that cannot be read.
pub fn copy(source: impl Read, root: &Path, how: How) -> Result<CopyInDone, CopyError> {
    let made_root = fs::metadata(root).is_err();
    let opened = fs::DirBuilder::new()
        .recursive(true)
        .mode(how.folder_mode & 0o7777)
        .create(root)
        .and_then(|()| {
            fs::OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
                .open(root)
        })
        .map_err(|source| CopyError::Write {
            path: root.to_owned(),
            source,
        })?;
    let mut copy = Copy {
        reader: Reader::new(source),
        root,
        walk: Walk::new(opened.into()),
        how,
        made_root,
        done: CopyInDone::default(),
        open_folders: Vec::new(),
        buffer: vec![0; 64 * 1024],
    };
    while let Some(entry) = copy.reader.next_entry()? {
        copy.entry(&entry)?;
    }
    copy.close_folders(None);
    copy.reader.drain()?;
    Ok(copy.done)
}

/// A name of the stream, part by part below the root.
type Parts = Vec<Vec<u8>>;

struct Copy<'a, R> {
    reader: Reader<R>,
    root: &'a Path,
    walk: Walk,
    how: How,
    made_root: bool,
    done: CopyInDone,
    /// Folders whose time is set when the stream leaves them: writing into them changes it.
    open_folders: Vec<(Parts, (i64, u32))>,
    buffer: Vec<u8>,
}

impl<R: Read> Copy<'_, R> {
    fn entry(&mut self, entry: &Entry) -> Result<(), CopyError> {
        let is_device = matches!(entry.kind, EntryKind::Char | EntryKind::Block);
        if entry.kind == EntryKind::Other || (is_device && !self.how.is_archive) {
            self.done.skipped += 1;
            return Ok(());
        }
        let parts = parts_of(&entry.path)?;
        self.close_folders(Some(&parts));
        let link = match entry.kind {
            EntryKind::HardLink => parts_of(&entry.link)?,
            _ => Parts::new(),
        };
        let written = match (entry.kind, parts.split_last()) {
            (EntryKind::Dir, None) => self.root_folder(entry),
            (EntryKind::Dir, Some((name, above))) => self.folder(entry, &parts, name, above),
            (EntryKind::HardLink, Some((name, above))) => self.hard_link(&link, name, above),
            (EntryKind::File, Some((name, above))) => self.file(entry, name, above),
            (_, Some((name, above))) => self.other(entry, name, above),
            (_, None) => Err(Step::Write(io::ErrorKind::IsADirectory.into())),
        };
        match written {
            Ok(()) => {
                self.done.entries += 1;
                Ok(())
            }
            Err(Step::Skip) => {
                self.done.skipped += 1;
                Ok(())
            }
            Err(step) => Err(self.error(step, &entry.path, &parts)),
        }
    }

    fn error(&self, step: Step, name: &[u8], parts: &Parts) -> CopyError {
        let path = || {
            let mut path = self.root.to_owned();
            path.extend(parts.iter().map(|part| OsStr::from_bytes(part)));
            path
        };
        match step {
            Step::Stream(error) => error.into(),
            Step::OverLink => CopyError::OverLink(String::from_utf8_lossy(name).into_owned()),
            Step::Special(what) => CopyError::Special { path: path(), what },
            Step::Write(source) => CopyError::Write {
                path: path(),
                source,
            },
            Step::Skip => CopyError::Write {
                path: path(),
                source: io::ErrorKind::PermissionDenied.into(),
            },
        }
    }

    /// `tar c .` begins with a "./" that is about the sender's folder: /tmp must stay what it is.
    fn root_folder(&mut self, entry: &Entry) -> Result<(), Step> {
        if !self.made_root {
            return Ok(());
        }
        let root = self.walk.folder(&[], false)?;
        let root = at::open_folder_to_read(root, b".")?;
        attributes(&mut self.done, self.how, entry, root.as_fd())?;
        self.open_folders.push((Parts::new(), entry.mtime));
        Ok(())
    }

    fn folder(
        &mut self,
        entry: &Entry,
        parts: &Parts,
        name: &[u8],
        above: &[Vec<u8>],
    ) -> Result<(), Step> {
        let here = self.walk.folder(above, true)?.try_clone_to_owned()?;
        let stands = match at::look(here.as_fd(), name)? {
            None => {
                at::make_folder(here.as_fd(), name, 0o700)?;
                false
            }
            Some(found) if found.kind() == libc::S_IFDIR => true,
            // /lib → /usr/lib: the folder that the link means is the one that is meant.
            Some(found) if found.kind() == libc::S_IFLNK => {
                let (target, name) = self.walk.resolve(here.as_fd(), name)?;
                return match at::open_folder(target.as_fd(), &name) {
                    Ok(_) => Ok(()),
                    Err(_) => Err(Step::Write(io::ErrorKind::NotADirectory.into())),
                };
            }
            Some(_) => return Err(Step::Write(io::ErrorKind::NotADirectory.into())),
        };
        if stands && !self.how.is_archive {
            return Ok(());
        }
        let folder = at::open_folder_to_read(here.as_fd(), name)?;
        attributes(&mut self.done, self.how, entry, folder.as_fd())?;
        self.open_folders.push((parts.clone(), entry.mtime));
        Ok(())
    }

    fn file(&mut self, entry: &Entry, name: &[u8], above: &[Vec<u8>]) -> Result<(), Step> {
        let mut here = self.walk.folder(above, true)?.try_clone_to_owned()?;
        let mut name = name.to_vec();
        let mut found = at::look(here.as_fd(), &name)?;
        if let Some(link) = found.filter(|found| found.kind() == libc::S_IFLNK)
            && !self.walk.is_made(link.id())
        {
            (here, name) = self.walk.resolve(here.as_fd(), &name)?;
            found = at::look(here.as_fd(), &name)?;
        }
        let (mut file, stood) = match found {
            None => (at::create(here.as_fd(), &name)?, None),
            Some(found) => self.rewrite(here.as_fd(), &name, &found)?,
        };
        self.write(entry, &mut file)?;
        match stood {
            Some(stood) if !self.how.is_archive => {
                at::set_owner(file.as_fd(), stood.owner())?;
                at::set_mode(file.as_fd(), stood.mode() & !SET_ID)?;
            }
            _ => attributes(&mut self.done, self.how, entry, file.as_fd())?,
        }
        drop(file);
        at::set_time(here.as_fd(), &name, entry.mtime)?;
        Ok(())
    }

    /// A file in the place of what is there, empty; and what was there, where it is to stay as it was.
    fn rewrite(
        &self,
        here: BorrowedFd<'_>,
        name: &[u8],
        found: &Status,
    ) -> Result<(File, Option<Status>), Step> {
        let kind = found.kind();
        if kind == libc::S_IFDIR {
            return Err(Step::Write(io::ErrorKind::IsADirectory.into()));
        }
        if let Some(what) = special(kind) {
            return Err(Step::Special(what));
        }
        // A name that the stream gave by a link is not written through: the other one is another entry's.
        if kind == libc::S_IFLNK || self.walk.is_made(found.id()) {
            at::remove(here, name)?;
            return Ok((at::create(here, name)?, None));
        }
        match at::open_to_write(here, name) {
            Ok(file) => {
                if at::status_of(file.as_fd())?.kind() != libc::S_IFREG {
                    return Err(Step::Special("something else"));
                }
                file.set_len(0)?;
                Ok((file, Some(*found)))
            }
            // A program that runs cannot be written to, but its name can be another's.
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                at::remove(here, name)?;
                Ok((at::create(here, name)?, Some(*found)))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn write(&mut self, entry: &Entry, file: &mut File) -> Result<(), Step> {
        let Some(sparse) = &entry.sparse else {
            return self.write_piece(file, entry.size);
        };
        for &(offset, length) in &sparse.pieces {
            file.seek(SeekFrom::Start(offset))?;
            self.write_piece(file, length)?;
        }
        file.set_len(sparse.size)?;
        Ok(())
    }

    fn write_piece(&mut self, file: &mut File, mut left: u64) -> Result<(), Step> {
        while left > 0 {
            let room =
                usize::try_from(left).map_or(self.buffer.len(), |left| left.min(self.buffer.len()));
            let buffer = self.buffer.get_mut(..room).unwrap_or_default();
            let count = self.reader.read_data(buffer)?;
            file.write_all(buffer.get(..count).unwrap_or_default())?;
            left = left.saturating_sub(count as u64);
            self.done.bytes += count as u64;
        }
        Ok(())
    }

    fn hard_link(
        &mut self,
        target: &[Vec<u8>],
        name: &[u8],
        above: &[Vec<u8>],
    ) -> Result<(), Step> {
        let Some((old, old_above)) = target.split_last() else {
            return Err(Step::Write(io::ErrorKind::IsADirectory.into()));
        };
        let from = self.walk.folder(old_above, false)?.try_clone_to_owned()?;
        let source = at::status(from.as_fd(), old)?;
        let here = self.walk.folder(above, true)?;
        if let Some(found) = at::look(here, name)? {
            // A link to itself must not begin by deleting itself.
            if found.id() == source.id() {
                return Ok(());
            }
            make_room(here, name, &found)?;
        }
        at::make_link((from.as_fd(), old), (here, name))?;
        // An overlay may give what comes out of its lower layer another inode now.
        let made = at::status(here, name)?;
        self.walk.made_link(source.id());
        self.walk.made_link(made.id());
        Ok(())
    }

    /// Symlinks, FIFOs and devices.
    fn other(&mut self, entry: &Entry, name: &[u8], above: &[Vec<u8>]) -> Result<(), Step> {
        let here = self.walk.folder(above, true)?.try_clone_to_owned()?;
        let here = here.as_fd();
        let (kind, device) = match entry.kind {
            EntryKind::Char => (libc::S_IFCHR, entry.device),
            EntryKind::Block => (libc::S_IFBLK, entry.device),
            EntryKind::Fifo => (libc::S_IFIFO, (0, 0)),
            _ => (libc::S_IFLNK, (0, 0)),
        };
        if let Some(found) = at::look(here, name)? {
            let same = kind != libc::S_IFLNK
                && found.kind() == kind
                && (kind == libc::S_IFIFO || found.node() == device);
            if same && !self.how.is_archive {
                return Ok(());
            }
            if same {
                at::remove(here, name)?;
            } else {
                make_room(here, name, &found)?;
            }
        }
        match entry.kind {
            EntryKind::Symlink => at::make_symlink(here, name, &entry.link)?,
            _ => match at::make_node(here, name, kind, device) {
                // A guest without the right to make devices does without them.
                Err(error)
                    if error.kind() == io::ErrorKind::PermissionDenied && kind != libc::S_IFIFO =>
                {
                    return Err(Step::Skip);
                }
                made => made?,
            },
        }
        let made = at::open_itself(here, name)?;
        if entry.kind == EntryKind::Symlink {
            self.walk.made_link(at::status_of(made.as_fd())?.id());
        }
        attributes(&mut self.done, self.how, entry, made.as_fd())?;
        at::set_time(here, name, entry.mtime)?;
        Ok(())
    }

    /// Sets the times of the folders that `next` is not below.
    fn close_folders(&mut self, next: Option<&Parts>) {
        while let Some((parts, time)) = self
            .open_folders
            .pop_if(|(parts, _)| !next.is_some_and(|next| next.starts_with(parts)))
        {
            let (name, above) = match parts.split_last() {
                Some((name, above)) => (name.as_slice(), above),
                None => (&b"."[..], &[][..]),
            };
            // A folder that was taken away meanwhile needs no time.
            if let Ok(here) = self.walk.folder(above, false) {
                let _ = at::set_time(here, name, time);
            }
        }
    }
}

/// Owner, mode, xattrs, in the order in which none undoes another: chown takes away setuid and capabilities.
fn attributes(
    done: &mut CopyInDone,
    how: How,
    entry: &Entry,
    made: BorrowedFd<'_>,
) -> Result<(), Step> {
    let owner = match how.owner {
        Owner::Keep => (entry.uid, entry.gid),
        Owner::Root => (0, 0),
    };
    at::set_owner(made, owner)?;
    if entry.kind != EntryKind::Symlink {
        let bits = if how.is_archive { 0o7777 } else { PLAIN_MODE };
        at::set_mode(made, entry.mode & bits)?;
    }
    for (name, value) in &entry.xattrs {
        // Capabilities are set-id by another name, and what only root may set is root's to ask for.
        let is_plain = name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_");
        if !how.is_archive && !is_plain {
            done.skipped += 1;
            continue;
        }
        match at::set_xattr(made, name, value) {
            // The file system has no such attributes, or this one is the kernel's own.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENOTSUP | libc::EPERM | libc::EACCES)
                ) =>
            {
                done.skipped += 1;
            }
            other => other?,
        }
    }
    Ok(())
}

/// Takes away what is in the way of a new name: a file's or a link's, nothing else's.
fn make_room(here: BorrowedFd<'_>, name: &[u8], found: &Status) -> Result<(), Step> {
    if found.kind() == libc::S_IFDIR {
        return Err(Step::Write(io::ErrorKind::IsADirectory.into()));
    }
    if let Some(what) = special(found.kind()) {
        return Err(Step::Special(what));
    }
    Ok(at::remove(here, name)?)
}

/// What is neither written to nor replaced: its other end is a program or a device.
fn special(kind: libc::mode_t) -> Option<&'static str> {
    match kind {
        libc::S_IFIFO => Some("a FIFO"),
        libc::S_IFSOCK => Some("a socket"),
        libc::S_IFCHR | libc::S_IFBLK => Some("a device"),
        _ => None,
    }
}

/// A name of the stream as parts below the root.
fn parts_of(name: &[u8]) -> Result<Parts, CopyError> {
    let shown = || String::from_utf8_lossy(name).into_owned();
    let mut parts = Parts::new();
    for component in Path::new(OsStr::from_bytes(name)).components() {
        match component {
            Component::Normal(name) => parts.push(name.as_bytes().to_vec()),
            // As tar itself does: an absolute name is taken as a relative one.
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(CopyError::Escapes(shown()));
            }
        }
    }
    match parts.len() <= DEPTH_MAX {
        true => Ok(parts),
        false => Err(CopyError::TooDeep(shown())),
    }
}

/// Where an entry failed.
enum Step {
    Stream(TarError),
    Write(io::Error),
    OverLink,
    Special(&'static str),
    /// Not this guest's to hold.
    Skip,
}

impl From<TarError> for Step {
    fn from(error: TarError) -> Self {
        Self::Stream(error)
    }
}

impl From<io::Error> for Step {
    fn from(error: io::Error) -> Self {
        Self::Write(error)
    }
}

impl From<WalkError> for Step {
    fn from(error: WalkError) -> Self {
        match error {
            WalkError::Escapes => Self::OverLink,
            WalkError::Io(error) => Self::Write(error),
        }
    }
}

#[cfg(test)]
mod tests;
