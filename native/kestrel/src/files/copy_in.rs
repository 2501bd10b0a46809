//! copy-in: a tar stream of the host becomes files of the guest.
//!
//! `path` is the folder that the entries' names are relative to; it is made where it is missing. Names must be relative and
//! without `..`. Symlinks that are in the guest already are followed as the guest itself would (its `/lib` may be one), within
//! its own root: kestrel lives in it. Files replace files; a folder meets a folder and takes on its mode; nothing replaces a
//! folder. What was written before an error stays.

use std::ffi::{CString, OsStr};
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use aerie_protocol::message::{CopyIn, CopyInDone, ErrorBody, Owner, code};
use aerie_protocol::{Frame, kind_byte};

use crate::files::stat::{absolute, error_code};
use crate::files::tar::{Entry, EntryKind, Reader, TarError};
use crate::observe::console::chain;
use crate::sys::{c_path, check};
use crate::talk::conn::{Conn, ConnError, frame_name};

const DEPTH_MAX: usize = 256;

/// Why a copy stopped.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error(transparent)]
    Tar(#[from] TarError),
    #[error("entry \"{0}\" leaves the folder that it is copied to")]
    Escapes(String),
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
            Self::Tar(_) | Self::Escapes(_) => code::TAR_INVALID,
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
    let copied = copy(&mut data, path, body.owner, body.mode.unwrap_or(0o755));
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

/// Unpacks `source` below `root`.
///
/// # Errors
/// The first entry that cannot be written, or a stream that cannot be read.
pub fn copy(
    source: impl Read,
    root: &Path,
    owner: Owner,
    folder_mode: u32,
) -> Result<CopyInDone, CopyError> {
    let mut copy = Copy {
        reader: Reader::new(source),
        root,
        owner,
        made_root: fs::metadata(root).is_err(),
        done: CopyInDone::default(),
        open_folders: Vec::new(),
        buffer: vec![0; 64 * 1024],
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(folder_mode & 0o7777)
        .create(root)
        .and_then(|()| fs::metadata(root))
        .and_then(|found| match found.is_dir() {
            true => Ok(()),
            false => Err(io::ErrorKind::NotADirectory.into()),
        })
        .map_err(|source| CopyError::Write {
            path: root.to_owned(),
            source,
        })?;
    while let Some(entry) = copy.reader.next_entry()? {
        copy.entry(&entry)?;
    }
    copy.close_folders(None);
    copy.reader.drain()?;
    Ok(copy.done)
}

struct Copy<'a, R> {
    reader: Reader<R>,
    root: &'a Path,
    owner: Owner,
    made_root: bool,
    done: CopyInDone,
    /// Folders whose time is set when the stream leaves them: writing into them changes it.
    open_folders: Vec<(PathBuf, (i64, u32))>,
    buffer: Vec<u8>,
}

impl<R: Read> Copy<'_, R> {
    fn entry(&mut self, entry: &Entry) -> Result<(), CopyError> {
        if entry.kind == EntryKind::Other {
            self.done.skipped += 1;
            return Ok(());
        }
        let path = self.place(&entry.path)?;
        self.close_folders(Some(&path));
        let link = match entry.kind {
            EntryKind::HardLink => self.place(&entry.link)?,
            _ => PathBuf::from(OsStr::from_bytes(&entry.link)),
        };
        let written = match entry.kind {
            EntryKind::Dir => self.folder(entry, &path),
            _ => self.not_a_folder(entry, &path, &link),
        };
        match written {
            Ok(()) => Ok(()),
            Err(Step::Stream(error)) => Err(error.into()),
            Err(Step::Write(source)) => Err(CopyError::Write { path, source }),
        }
    }

    /// Where a name of the stream is in the guest.
    fn place(&self, name: &[u8]) -> Result<PathBuf, CopyError> {
        let escapes = || CopyError::Escapes(String::from_utf8_lossy(name).into_owned());
        let mut path = self.root.to_owned();
        let mut depth = 0;
        for component in Path::new(OsStr::from_bytes(name)).components() {
            match component {
                Component::Normal(name) => {
                    depth += 1;
                    path.push(name);
                }
                // As tar itself does: an absolute name is taken as a relative one.
                Component::RootDir | Component::CurDir => {}
                Component::ParentDir | Component::Prefix(_) => return Err(escapes()),
            }
        }
        match depth <= DEPTH_MAX {
            true => Ok(path),
            false => Err(escapes()),
        }
    }

    fn folder(&mut self, entry: &Entry, path: &Path) -> Result<(), Step> {
        let is_root = path == self.root;
        match fs::symlink_metadata(path) {
            // `tar c .` begins with a "./" that is about the sender's folder: /tmp must stay what it is.
            Ok(_) if is_root && !self.made_root => {
                self.done.entries += 1;
                return Ok(());
            }
            Ok(found) if found.is_dir() => {}
            // /lib → /usr/lib: the folder that the link means is the one that is meant.
            Ok(found) if found.is_symlink() && fs::metadata(path).is_ok_and(|at| at.is_dir()) => {
                self.done.entries += 1;
                return Ok(());
            }
            Ok(_) => return Err(Step::Write(io::ErrorKind::NotADirectory.into())),
            Err(_) => {
                make_parents(path)?;
                fs::create_dir(path)?;
            }
        }
        self.attributes(entry, path)?;
        self.open_folders.push((path.to_owned(), entry.mtime));
        self.done.entries += 1;
        Ok(())
    }

    fn not_a_folder(&mut self, entry: &Entry, path: &Path, link: &Path) -> Result<(), Step> {
        match fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() => {
                return Err(Step::Write(io::ErrorKind::IsADirectory.into()));
            }
            // A link to itself must not begin by deleting itself.
            Ok(_) if entry.kind == EntryKind::HardLink && path == link => {
                self.done.entries += 1;
                return Ok(());
            }
            Ok(_) => fs::remove_file(path)?,
            Err(_) => make_parents(path)?,
        }
        match entry.kind {
            EntryKind::File => self.file(entry, path)?,
            EntryKind::HardLink => {
                fs::hard_link(link, path)?;
                self.done.entries += 1;
                return Ok(());
            }
            EntryKind::Symlink => std::os::unix::fs::symlink(link, path)?,
            EntryKind::Fifo => make_node(path, libc::S_IFIFO, (0, 0))?,
            EntryKind::Char | EntryKind::Block => {
                let kind = match entry.kind {
                    EntryKind::Char => libc::S_IFCHR,
                    _ => libc::S_IFBLK,
                };
                match make_node(path, kind, entry.device) {
                    // A guest without the right to make devices does without them.
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                        self.done.skipped += 1;
                        return Ok(());
                    }
                    other => other?,
                }
            }
            EntryKind::Dir | EntryKind::Other => {}
        }
        self.attributes(entry, path)?;
        set_time(path, entry.mtime)?;
        self.done.entries += 1;
        Ok(())
    }

    fn file(&mut self, entry: &Entry, path: &Path) -> Result<(), Step> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            // Its own mode comes with its owner, when it is whole.
            .mode(0o600)
            .open(path)?;
        let mut left = entry.size;
        while left > 0 {
            let count = self.reader.read_data(&mut self.buffer)?;
            file.write_all(self.buffer.get(..count).unwrap_or_default())?;
            left = left.saturating_sub(count as u64);
            self.done.bytes += count as u64;
        }
        Ok(())
    }

    /// Owner, mode, xattrs, in the order in which none undoes another: chown takes away setuid and capabilities.
    fn attributes(&mut self, entry: &Entry, path: &Path) -> Result<(), Step> {
        let (uid, gid) = match self.owner {
            Owner::Keep => (entry.uid, entry.gid),
            Owner::Root => (0, 0),
        };
        std::os::unix::fs::lchown(path, Some(uid), Some(gid))?;
        if entry.kind != EntryKind::Symlink {
            fs::set_permissions(path, fs::Permissions::from_mode(entry.mode & 0o7777))?;
        }
        for (name, value) in &entry.xattrs {
            match set_xattr(path, name, value) {
                // The file system has no such attributes, or this one is the kernel's own.
                Err(error)
                    if matches!(
                        error.raw_os_error(),
                        Some(libc::ENOTSUP | libc::EPERM | libc::EACCES)
                    ) =>
                {
                    self.done.skipped += 1;
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// Sets the times of the folders that `next` is not below.
    fn close_folders(&mut self, next: Option<&Path>) {
        while let Some((path, time)) = self
            .open_folders
            .pop_if(|(path, _)| !next.is_some_and(|next| next.starts_with(path)))
        {
            // A folder that was taken away meanwhile needs no time.
            let _ = set_time(&path, time);
        }
    }
}

/// Where an entry failed.
enum Step {
    Stream(TarError),
    Write(io::Error),
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

fn make_parents(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent),
        None => Ok(()),
    }
}

fn make_node(path: &Path, kind: libc::mode_t, (major, minor): (u32, u32)) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: a valid C string.
    check(unsafe { libc::mknod(path.as_ptr(), kind | 0o600, libc::makedev(major, minor)) })?;
    Ok(())
}

fn set_xattr(path: &Path, name: &[u8], value: &[u8]) -> io::Result<()> {
    let (path, name) = (c_path(path)?, CString::new(name)?);
    // SAFETY: two valid C strings, and a value valid for its length.
    check(unsafe {
        libc::lsetxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    })?;
    Ok(())
}

fn set_time(path: &Path, (seconds, nanos): (i64, u32)) -> io::Result<()> {
    const HERE: RawFd = libc::AT_FDCWD;
    // SAFETY: timespec is plain integers; zero is a value of it.
    let mut times: [libc::timespec; 2] = unsafe { std::mem::zeroed() };
    times[0].tv_nsec = libc::UTIME_OMIT;
    times[1].tv_sec = seconds;
    times[1].tv_nsec = libc::c_long::from(nanos);
    let path = c_path(path)?;
    // SAFETY: a valid C string and two timespecs.
    check(unsafe {
        libc::utimensat(
            HERE,
            path.as_ptr(),
            times.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
        )
    })?;
    Ok(())
}

#[cfg(test)]
mod tests;
