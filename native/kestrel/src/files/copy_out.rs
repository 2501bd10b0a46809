//! copy-out: files of the guest become a tar stream.
//!
//! The first entry is the path's last component, all others are below it. Hard links within the tree stay links, sockets are
//! left out, and so are the kernel's own file systems unless the path itself is in one. Every folder is held open while what
//! is in it is read: a process of the guest that swaps one for a link meanwhile leads nowhere.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aerie_protocol::message::{CopyOut, CopyOutOk};
use aerie_protocol::{Frame, kind_byte};

use crate::files::at::{self, Status};
use crate::files::stat::{absolute, error_body};
use crate::files::tar::{Entry, EntryKind, Sparse, end, header, padding};
use crate::talk::conn::{Conn, ConnError};

const DEPTH_MAX: usize = 256;
/// Files with several names that are remembered; later ones are archived anew.
const LINKS_MAX: usize = 50_000;
/// A file that does not say its size is held whole, to know it before its header is written.
const UNSIZED_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Pieces of a sparse file that are told apart; what is behind the last counts as data.
const PIECES_MAX: usize = 65_536;
/// Looks at a name that is replaced between two of them.
const TRIES_MAX: usize = 10;
const XATTR_BYTES_MAX: usize = 64 * 1024;
/// Data goes out in frames of about this size.
const FRAME_BYTES: usize = 64 * 1024;

/// Serves a copy-out conversation whose `open` had this body.
pub fn serve(mut conn: Conn, body: &CopyOut) {
    let path = match absolute(&body.path) {
        Ok(path) => path,
        Err(body) => return conn.fail(&body),
    };
    // A name that ends with a slash is that of what it points to, as everywhere.
    let follow = body.follow || body.path.ends_with('/');
    let found = match follow {
        true => fs::metadata(path),
        false => fs::symlink_metadata(path),
    };
    let found = match found {
        Ok(found) => found,
        Err(error) => return conn.fail(&error_body(&body.path, &error)),
    };
    let name = path
        .file_name()
        .map_or_else(|| OsString::from("."), OsString::from);
    let ok = CopyOutOk {
        name: name.to_string_lossy().into_owned(),
        is_dir: found.is_dir(),
    };
    if let Err(error) = conn.output.queue_json(kind_byte::OK, &ok) {
        return conn.end(Err(error));
    }
    let mut sink = Frames {
        conn: &mut conn,
        waiting: Vec::new(),
    };
    let how = How {
        follow,
        sparse: body.sparse,
    };
    let done = archive(&mut sink, path, name.into_vec(), how)
        .and_then(|()| sink.send())
        .and_then(|()| conn.output.queue(&Frame::Eof).map_err(CopyError::Conn));
    match done {
        Ok(()) => conn.finish(),
        Err(CopyError::Conn(error)) => conn.end(Err(error)),
        Err(CopyError::Read { path, source }) => {
            conn.fail(&error_body(&path.to_string_lossy(), &source));
        }
    }
}

/// Where the stream goes.
trait Sink {
    fn write(&mut self, bytes: &[u8]) -> Result<(), CopyError>;
}

struct Frames<'a> {
    conn: &'a mut Conn,
    waiting: Vec<u8>,
}

impl Frames<'_> {
    fn send(&mut self) -> Result<(), CopyError> {
        if !self.waiting.is_empty() {
            self.conn
                .output
                .queue(&Frame::Stdout(&self.waiting))
                .map_err(CopyError::Conn)?;
            self.waiting.clear();
            self.conn.flush(None).map_err(CopyError::Conn)?;
        }
        Ok(())
    }
}

impl Sink for Frames<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), CopyError> {
        self.waiting.extend_from_slice(bytes);
        match self.waiting.len() >= FRAME_BYTES {
            true => self.send(),
            false => Ok(()),
        }
    }
}

#[derive(Debug)]
enum CopyError {
    Conn(ConnError),
    Read { path: PathBuf, source: io::Error },
}

#[derive(Clone, Copy, Debug, Default)]
struct How {
    /// Whether a symlink that was named is what it leads to.
    follow: bool,
    /// Whether holes are left out.
    sparse: bool,
}

/// A folder whose entries are still to be archived.
struct Level {
    folder: at::Folder,
    /// In the archive.
    name: Vec<u8>,
    /// In sentences.
    path: PathBuf,
    device: u64,
}

/// What is to be archived: a name in an open folder, what it is called in the archive, and in sentences.
struct Item<'a> {
    here: BorrowedFd<'a>,
    base: &'a [u8],
    name: Vec<u8>,
    path: &'a Path,
    /// The device of the folder that it is in; `None` for what was named itself.
    device: Option<u64>,
}

impl Item<'_> {
    fn failed(&self, source: io::Error) -> CopyError {
        CopyError::Read {
            path: self.path.to_owned(),
            source,
        }
    }
}

/// What came of one look at a name.
enum Tried {
    /// It is archived, or is nothing for an archive; a folder's entries are still to come.
    Done(Option<Level>),
    Replaced,
}

/// What came of a file.
enum Filed {
    Done,
    /// The kernel refuses it.
    LeftOut,
    Replaced,
}

/// Whether an error says that a name is not any more what it was at the first look.
fn is_replaced(error: &io::Error) -> bool {
    let gone = [
        libc::ENOENT,
        libc::ENOTDIR,
        libc::ELOOP,
        libc::EINVAL,
        libc::ENXIO,
    ];
    error
        .raw_os_error()
        .is_some_and(|code| gone.contains(&code))
}

struct Walk<'a, S> {
    sink: &'a mut S,
    how: How,
    /// First names of files that have several, by device and inode.
    links: BTreeMap<(u64, u64), Vec<u8>>,
    levels: Vec<Level>,
    buffer: Vec<u8>,
}

fn archive<S: Sink>(sink: &mut S, path: &Path, name: Vec<u8>, how: How) -> Result<(), CopyError> {
    let mut walk = Walk {
        sink,
        how,
        links: BTreeMap::new(),
        levels: Vec::new(),
        buffer: vec![0; FRAME_BYTES],
    };
    let real = match how.follow {
        true => fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()),
        false => path.to_owned(),
    };
    let (above, base) = match (real.parent(), real.file_name()) {
        (Some(above), Some(base)) => (above, base),
        _ => (real.as_path(), OsStr::new(".")),
    };
    let here = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(above)
        .map_err(|source| CopyError::Read {
            path: above.to_owned(),
            source,
        })?;
    walk.entry(&Item {
        here: here.as_fd(),
        base: base.as_bytes(),
        name,
        path: &real,
        device: None,
    })?;
    while let Some(mut level) = walk.levels.pop() {
        match level.folder.next_name() {
            Ok(None) => {}
            Err(source) => {
                let path = level.path;
                return Err(CopyError::Read { path, source });
            }
            Ok(Some(base)) => {
                // Folders that the entry opens go behind this one, which is put back first.
                let at = walk.levels.len();
                let opened = walk.below(&level, &base)?;
                walk.levels.insert(at, level);
                walk.levels.extend(opened);
            }
        }
    }
    walk.sink.write(&end())
}

impl<S: Sink> Walk<'_, S> {
    fn below(&mut self, level: &Level, base: &[u8]) -> Result<Option<Level>, CopyError> {
        let path = level.path.join(OsStr::from_bytes(base));
        let depth = self.levels.len() + 1;
        let item = Item {
            here: level.folder.as_fd(),
            base,
            name: [&level.name[..], b"/", base].concat(),
            path: &path,
            device: Some(level.device),
        };
        let opened = self.item(&item)?;
        if opened.is_some() && depth >= DEPTH_MAX {
            let reason = "it is in more than 256 folders";
            return Err(item.failed(io::Error::new(io::ErrorKind::InvalidFilename, reason)));
        }
        Ok(opened)
    }

    fn entry(&mut self, item: &Item<'_>) -> Result<(), CopyError> {
        let opened = self.item(item)?;
        self.levels.extend(opened);
        Ok(())
    }

    /// Archives one thing; a folder is returned, for what is in it. What is replaced between two looks is looked at again.
    fn item(&mut self, item: &Item<'_>) -> Result<Option<Level>, CopyError> {
        for _ in 0..TRIES_MAX {
            match self.once(item)? {
                Tried::Done(opened) => return Ok(opened),
                Tried::Replaced => {}
            }
        }
        let reason = "it is replaced again and again";
        Err(item.failed(io::Error::other(reason)))
    }

    fn once(&mut self, item: &Item<'_>) -> Result<Tried, CopyError> {
        const GONE: Result<Tried, CopyError> = Ok(Tried::Done(None));
        let found = match at::status(item.here, item.base) {
            Ok(found) => found,
            // Deleted since: it is not there.
            Err(error) if error.kind() == io::ErrorKind::NotFound && item.device.is_some() => {
                return GONE;
            }
            Err(error) => return Err(item.failed(error)),
        };
        let Some(kind) = kind_of(&found) else {
            return match item.device {
                Some(_) => GONE,
                None => Err(item.failed(io::Error::other("it is a socket"))),
            };
        };
        let mut entry = Entry {
            kind,
            path: item.name.clone(),
            link: Vec::new(),
            mode: found.mode(),
            uid: found.owner().0,
            gid: found.owner().1,
            mtime: found.time(),
            size: 0,
            sparse: None,
            device: match kind {
                EntryKind::Char | EntryKind::Block => found.node(),
                _ => (0, 0),
            },
            xattrs: Vec::new(),
        };
        if kind != EntryKind::Dir
            && found.links() > 1
            && let Some(first) = self.links.get(&found.id())
        {
            entry.kind = EntryKind::HardLink;
            entry.link.clone_from(first);
            self.sink.write(&header(&entry))?;
            return GONE;
        }
        entry.xattrs = xattrs(item.here, item.base);
        match kind {
            EntryKind::File => match self.file(item, &found, entry)? {
                Filed::Done => {}
                Filed::LeftOut => return GONE,
                Filed::Replaced => return Ok(Tried::Replaced),
            },
            EntryKind::Symlink => {
                match at::read_link(item.here, item.base) {
                    Ok(target) => entry.link = target,
                    Err(error) if is_replaced(&error) => return Ok(Tried::Replaced),
                    Err(error) => return Err(item.failed(error)),
                }
                self.sink.write(&header(&entry))?;
            }
            EntryKind::Dir => return self.folder(item, entry),
            _ => self.sink.write(&header(&entry))?,
        }
        if found.links() > 1 && self.links.len() < LINKS_MAX {
            self.links.insert(found.id(), item.name.clone());
        }
        GONE
    }

    fn folder(&mut self, item: &Item<'_>, mut entry: Entry) -> Result<Tried, CopyError> {
        entry.path.push(b'/');
        let opened = at::open_folder_to_read(item.here, item.base);
        let fd = match opened {
            Ok(fd) => fd,
            Err(_) if self.may_refuse(item) => return Ok(Tried::Done(None)),
            Err(error) if is_replaced(&error) => return Ok(Tried::Replaced),
            Err(error) => return Err(item.failed(error)),
        };
        let device = at::status_of(fd.as_fd())
            .map_err(|error| item.failed(error))?
            .device();
        self.sink.write(&header(&entry))?;
        // The kernel's views are no files; asked for by a path of their own they are.
        let is_mounted = item.device.is_some_and(|above| above != device);
        if is_mounted && at::is_kernel_view(fd.as_fd()) {
            return Ok(Tried::Done(None));
        }
        Ok(Tried::Done(Some(Level {
            folder: at::Folder::new(fd).map_err(|error| item.failed(error))?,
            name: item.name.clone(),
            path: item.path.to_owned(),
            device,
        })))
    }

    /// The kernel's views have files that refuse to be read, whatever their mode says. One that was named says so; one of many
    /// is left out.
    fn may_refuse(&self, item: &Item<'_>) -> bool {
        item.device.is_some() && at::is_kernel_view(item.here)
    }

    fn file(&mut self, item: &Item<'_>, seen: &Status, entry: Entry) -> Result<Filed, CopyError> {
        let failed = |source| item.failed(source);
        let file = match at::open_to_read(item.here, item.base) {
            Ok(file) => file,
            Err(_) if self.may_refuse(item) => return Ok(Filed::LeftOut),
            Err(error) if is_replaced(&error) => return Ok(Filed::Replaced),
            Err(error) => return Err(failed(error)),
        };
        let found = at::status_of(file.as_fd()).map_err(failed)?;
        if found.id() != seen.id() {
            return Ok(Filed::Replaced);
        }
        let size = found.size();
        if self.how.sparse
            && size > 512
            && found.allocated() + 512 <= size
            && let Some(sparse) = pieces_of(&file, size)
        {
            return self.sparse_file(item, &file, entry, sparse);
        }
        if size > FRAME_BYTES as u64 {
            let entry = Entry { size, ..entry };
            self.sink.write(&header(&entry))?;
            self.piece(item, &file, 0, size)?;
            self.sink.write(&padding(size))?;
            return Ok(Filed::Done);
        }
        // Files of /proc state no size, and those of /sys one that they do not have: what can be read at once is, and counts.
        let mut content = std::mem::take(&mut self.buffer);
        let read = read_whole(&file, size, &mut content);
        let done = match read {
            Ok(count) => {
                let entry = Entry {
                    size: count as u64,
                    ..entry
                };
                self.sink
                    .write(&header(&entry))
                    .and_then(|()| self.sink.write(content.get(..count).unwrap_or_default()))
                    .and_then(|()| self.sink.write(&padding(entry.size)))
                    .map(|()| Filed::Done)
            }
            Err(_) if self.may_refuse(item) => Ok(Filed::LeftOut),
            Err(error) => Err(failed(error)),
        };
        content.resize(FRAME_BYTES, 0);
        content.shrink_to(FRAME_BYTES);
        self.buffer = content;
        done
    }

    fn sparse_file(
        &mut self,
        item: &Item<'_>,
        file: &File,
        entry: Entry,
        sparse: Sparse,
    ) -> Result<Filed, CopyError> {
        let size = sparse.pieces.iter().map(|(_, length)| length).sum();
        let pieces = sparse.pieces.clone();
        let entry = Entry {
            size,
            sparse: Some(sparse),
            ..entry
        };
        self.sink.write(&header(&entry))?;
        for (offset, length) in pieces {
            self.piece(item, file, offset, length)?;
        }
        self.sink.write(&padding(size))?;
        Ok(Filed::Done)
    }

    /// Bytes of a file that its header has promised. What it grew by meanwhile is left out.
    fn piece(
        &mut self,
        item: &Item<'_>,
        file: &File,
        mut from: u64,
        length: u64,
    ) -> Result<(), CopyError> {
        let end = from.saturating_add(length);
        while from < end {
            let room =
                usize::try_from(end - from).map_or(FRAME_BYTES, |left| left.min(FRAME_BYTES));
            let part = self.buffer.get_mut(..room).unwrap_or_default();
            let count = match file.read_at(part, from) {
                Ok(0) => {
                    let reason = "it became shorter while it was copied";
                    return Err(item.failed(io::Error::other(reason)));
                }
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(item.failed(error)),
            };
            self.sink.write(part.get(..count).unwrap_or_default())?;
            from += count as u64;
        }
        Ok(())
    }
}

/// Reads a file to its end, at most what it states: it may grow meanwhile. One that states nothing is read as long as it says
/// something.
fn read_whole(file: &File, stated: u64, content: &mut Vec<u8>) -> io::Result<usize> {
    let most = match usize::try_from(stated) {
        Ok(stated @ 1..) => stated,
        _ => UNSIZED_BYTES_MAX,
    };
    let mut filled = 0;
    while filled < most {
        if content.len() == filled {
            content.resize(most.min(filled * 2), 0);
        }
        let room = content.len().min(most);
        match file.read_at(
            content.get_mut(filled..room).unwrap_or_default(),
            filled as u64,
        ) {
            Ok(0) => return Ok(filled),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    match stated {
        0 => Err(io::Error::other(
            "it does not say its size, and is longer than 16 MiB",
        )),
        _ => Ok(filled),
    }
}

/// Where a file holds data; `None` where it has no holes, or its file system does not say.
fn pieces_of(file: &File, size: u64) -> Option<Sparse> {
    let mut pieces = Vec::new();
    let mut from = 0;
    while let Some(start) = at::next_data(file, from).ok()? {
        if start >= size {
            break;
        }
        let end = match pieces.len() < PIECES_MAX - 1 {
            true => at::next_hole(file, start).ok()?.min(size),
            false => size,
        };
        pieces.push((start, end - start));
        from = end;
        if end == size {
            break;
        }
    }
    (pieces != [(0, size)]).then_some(Sparse { size, pieces })
}

/// `None` for a socket, which means nothing without its process.
fn kind_of(found: &Status) -> Option<EntryKind> {
    match found.kind() {
        libc::S_IFREG => Some(EntryKind::File),
        libc::S_IFDIR => Some(EntryKind::Dir),
        libc::S_IFLNK => Some(EntryKind::Symlink),
        libc::S_IFIFO => Some(EntryKind::Fifo),
        libc::S_IFCHR => Some(EntryKind::Char),
        libc::S_IFBLK => Some(EntryKind::Block),
        _ => None,
    }
}

/// What a file carries beside its contents. A file system without such attributes has none; those of overlayfs are not the
/// file's own.
fn xattrs(here: BorrowedFd<'_>, base: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0_u8; XATTR_BYTES_MAX];
    let size = at::xattr_names(here, base, &mut names);
    if size == 0 {
        return Vec::new();
    }
    let mut value = vec![0_u8; XATTR_BYTES_MAX];
    let mut total = 0;
    names
        .get(..size)
        .unwrap_or_default()
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty() && !name.starts_with(b"trusted.overlay."))
        .filter_map(|name| {
            let size = at::xattr(here, base, name, &mut value).ok()?;
            let found = value.get(..size)?;
            total += name.len() + found.len();
            // Our own reader's limit for a header, with room for names.
            (total < 512 * 1024).then(|| (name.to_vec(), found.to_vec()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use aerie_protocol::message::Owner;

    use super::*;
    use crate::files::copy_in;
    use crate::test_folder::TestFolder;
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    const KEEP: copy_in::How = copy_in::How {
        owner: Owner::Keep,
        is_archive: true,
        folder_mode: 0o755,
    };

    impl Sink for Vec<u8> {
        fn write(&mut self, bytes: &[u8]) -> Result<(), CopyError> {
            self.extend_from_slice(bytes);
            Ok(())
        }
    }

    fn pack(path: &Path, name: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        archive(&mut bytes, path, name.into(), How::default()).unwrap();
        bytes
    }

    #[test]
    fn a_tree_goes_out_and_comes_in_the_same() {
        let folder = TestFolder::new();
        let from = folder.path().join("from");
        let long = "x".repeat(200);
        fs::create_dir_all(from.join("d").join(&long)).unwrap();
        fs::write(from.join("d/f"), vec![1; 70_000]).unwrap();
        fs::hard_link(from.join("d/f"), from.join("d/g")).unwrap();
        std::os::unix::fs::symlink(&long, from.join("l")).unwrap();
        let ran = crate::test_reaper::run(&["mkfifo", &from.join("p").to_string_lossy()]);
        assert_eq!(ran, 0);
        let _socket = std::os::unix::net::UnixListener::bind(from.join("s")).unwrap();

        let packed = pack(&from, "to");
        copy_in::copy(&packed[..], folder.path(), KEEP).unwrap();

        let to = folder.path().join("to");
        assert_eq!(fs::read(to.join("d/f")).unwrap(), vec![1; 70_000]);
        assert_eq!(
            fs::metadata(to.join("d/f")).unwrap().ino(),
            fs::metadata(to.join("d/g")).unwrap().ino()
        );
        assert_eq!(fs::read_link(to.join("l")).unwrap(), Path::new(&long));
        assert!(to.join("d").join(&long).is_dir());
        assert!(fs::metadata(to.join("p")).unwrap().file_type().is_fifo());
        assert!(!to.join("s").exists());
        for name in ["d", "d/f", "l"] {
            let time = |root: &Path| {
                let found = fs::symlink_metadata(root.join(name)).unwrap();
                (found.mtime(), found.mtime_nsec(), found.mode())
            };
            assert_eq!(time(&from), time(&to), "{name}");
        }
    }

    #[test]
    fn gnu_tar_reads_it() {
        let folder = TestFolder::new();
        let from = folder.path().join("from");
        fs::create_dir(&from).unwrap();
        fs::write(from.join("y".repeat(180)), "z").unwrap();
        fs::write(folder.path().join("a.tar"), pack(&from, "there")).unwrap();

        let script = format!("tar -C {} -xf {0}/a.tar", folder.path().display());
        let ran = crate::test_reaper::run(&["sh", "-c", &script]);

        assert_eq!(ran, 0);
        let read = fs::read_to_string(folder.path().join("there").join("y".repeat(180)));
        assert_eq!(read.unwrap(), "z");
    }

    #[test]
    fn a_file_has_what_it_says_whatever_it_states() {
        let folder = TestFolder::new();
        // Of /proc no size is stated, of /sys a page.
        for path in [
            "/proc/version",
            "/sys/kernel/uevent_seqnum",
            "/proc/self/limits",
        ] {
            let path = Path::new(path);
            let Ok(content) = fs::read(path) else {
                continue;
            };
            let packed = pack(path, "it");

            copy_in::copy(&packed[..], folder.path(), KEEP).unwrap();

            assert_eq!(
                fs::read(folder.path().join("it")).unwrap(),
                content,
                "{path:?}"
            );
        }
    }

    #[test]
    fn a_tree_of_the_kernel_leaves_out_what_refuses() {
        let folder = TestFolder::new();

        let packed = pack(Path::new("/proc/self/net"), "net");
        let unread = archive(
            &mut Vec::new(),
            Path::new("/proc/self/mem"),
            b"mem".into(),
            How::default(),
        );

        copy_in::copy(&packed[..], folder.path(), KEEP).unwrap();
        assert!(folder.path().join("net/dev").exists() || folder.path().join("net").is_symlink());
        assert!(matches!(unread, Err(CopyError::Read { .. })));
    }

    #[test]
    fn holes_stay_holes_where_they_are_asked_for() {
        use std::io::{Seek, SeekFrom, Write};

        let folder = TestFolder::new();
        let from = folder.path().join("from");
        let mut file = File::create(&from).unwrap();
        for offset in [0, 1 << 20, 5 << 20] {
            file.seek(SeekFrom::Start(offset)).unwrap();
            file.write_all(&[7; 5000]).unwrap();
        }
        file.set_len(64 << 20).unwrap();
        let none = folder.path().join("none");
        File::create(&none).unwrap().set_len(16 << 20).unwrap();
        let content = fs::read(&from).unwrap();

        for (path, sparse, most) in [
            (&from, true, 200_000),
            (&none, true, 10_000),
            (&from, false, usize::MAX),
        ] {
            let mut packed = Vec::new();
            let how = How {
                follow: false,
                sparse,
            };
            archive(&mut packed, path, b"to".into(), how).unwrap();
            copy_in::copy(&packed[..], folder.path(), KEEP).unwrap();

            let to = folder.path().join("to");
            assert!(packed.len() < most, "{}", packed.len());
            assert_eq!(
                fs::metadata(&to).unwrap().len(),
                fs::metadata(path).unwrap().len()
            );
            if sparse {
                assert!(fs::metadata(&to).unwrap().blocks() * 512 <= 64 * 1024);
            }
        }
        assert!(fs::read(folder.path().join("to")).unwrap() == content);
    }

    #[test]
    fn names_are_bytes() {
        let folder = TestFolder::new();
        let from = folder.path().join("from");
        fs::create_dir(&from).unwrap();
        let names: Vec<Vec<u8>> = vec![
            vec![0xe4],
            vec![0xf6],
            b"a\nb".to_vec(),
            vec![0xff; 255],
            [&b"x"[..], &[0x80; 180]].concat(),
        ];
        for name in &names {
            fs::write(from.join(OsStr::from_bytes(name)), name).unwrap();
        }
        std::os::unix::fs::symlink(OsStr::from_bytes(&[0xe5, b'/', 0xe4]), from.join("link"))
            .unwrap();

        copy_in::copy(&pack(&from, "to")[..], folder.path(), KEEP).unwrap();

        let to = folder.path().join("to");
        for name in &names {
            assert_eq!(&fs::read(to.join(OsStr::from_bytes(name))).unwrap(), name);
        }
        assert_eq!(fs::read_dir(&to).unwrap().count(), names.len() + 1);
        let target = fs::read_link(to.join("link")).unwrap();
        assert_eq!(target.as_os_str().as_bytes(), [0xe5, b'/', 0xe4]);
    }

    /// Does something to the files when the first bytes of the archive are there.
    struct Meddler<F> {
        bytes: Vec<u8>,
        act: Option<F>,
    }

    impl<F: FnOnce()> Sink for Meddler<F> {
        fn write(&mut self, bytes: &[u8]) -> Result<(), CopyError> {
            self.bytes.extend_from_slice(bytes);
            if let Some(act) = self.act.take() {
                act();
            }
            Ok(())
        }
    }

    fn meddle(path: &Path, act: impl FnOnce()) -> Result<Vec<u8>, CopyError> {
        let mut sink = Meddler {
            bytes: Vec::new(),
            act: Some(act),
        };
        archive(&mut sink, path, b"it".into(), How::default())?;
        Ok(sink.bytes)
    }

    #[test]
    fn a_file_that_shrinks_is_an_error_and_one_that_grows_is_cut() {
        let folder = TestFolder::new();
        let path = folder.path().join("log");
        fs::write(&path, vec![1; 300_000]).unwrap();
        let set = |size| {
            let path = path.clone();
            move || {
                fs::OpenOptions::new()
                    .write(true)
                    .open(path)
                    .unwrap()
                    .set_len(size)
                    .unwrap()
            }
        };

        let grown = meddle(&path, set(500_000)).unwrap();
        copy_in::copy(&grown[..], folder.path(), KEEP).unwrap();
        let shrunk = meddle(&path, set(100));

        assert_eq!(
            fs::read(folder.path().join("it")).unwrap(),
            vec![1; 300_000]
        );
        assert!(
            matches!(shrunk, Err(CopyError::Read { source, .. }) if source.to_string().contains("shorter"))
        );
    }

    #[test]
    fn a_folder_that_becomes_a_link_meanwhile_leads_nowhere() {
        let folder = TestFolder::new();
        let top = folder.path().join("top");
        let secret = folder.path().join("secret");
        for path in [&top, &secret, &top.join("d")] {
            fs::create_dir(path).unwrap();
        }
        fs::write(secret.join("key"), "secret").unwrap();

        let packed = meddle(&top, || {
            fs::remove_dir(top.join("d")).unwrap();
            std::os::unix::fs::symlink(&secret, top.join("d")).unwrap();
        })
        .unwrap();

        assert!(!String::from_utf8_lossy(&packed).contains("key"));
    }

    #[test]
    fn a_name_that_is_another_file_at_each_look_does_not_stop_a_tree() {
        let folder = TestFolder::new();
        let top = folder.path().join("top");
        fs::create_dir(&top).unwrap();
        fs::write(top.join("f"), "content").unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);

        let content = std::thread::scope(|scope| {
            // As an editor saves: a new file under the old name.
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    fs::write(folder.path().join("new"), "content").unwrap();
                    fs::rename(folder.path().join("new"), top.join("f")).unwrap();
                }
            });
            let content: Vec<_> = (0..200)
                .map(|_| String::from_utf8_lossy(&pack(&top, "top")).contains("content"))
                .collect();
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            content
        });

        assert!(content.iter().all(|&whole| whole));
    }

    #[test]
    fn a_socket_that_is_named_is_an_error() {
        let folder = TestFolder::new();
        let path = folder.path().join("socket");
        let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();

        let named = archive(&mut Vec::new(), &path, b"it".into(), How::default());

        assert!(matches!(named, Err(CopyError::Read { .. })));
    }

    #[test]
    fn a_tree_too_deep_for_an_archive_is_an_error() {
        let folder = TestFolder::new();
        let mut path = folder.path().join("top");
        path.extend(std::iter::repeat_n("d", 300));
        fs::create_dir_all(&path).unwrap();

        let deep = archive(
            &mut Vec::new(),
            &folder.path().join("top"),
            b"top".into(),
            How::default(),
        );

        assert!(matches!(deep, Err(CopyError::Read { .. })));
    }
}
