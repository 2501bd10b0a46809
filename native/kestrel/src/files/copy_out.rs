//! copy-out: files of the guest become a tar stream.
//!
//! The first entry is the path's last component, all others are below it. Hard links within the tree stay links, sockets are
//! left out, and so are the kernel's own file systems unless the path itself is in one.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aerie_protocol::message::{CopyOut, CopyOutOk};
use aerie_protocol::{Frame, kind_byte};

use crate::files::stat::{absolute, error_body};
use crate::files::tar::{Entry, EntryKind, end, header, padding};
use crate::sys::{c_path, check};
use crate::talk::conn::{Conn, ConnError};

const DEPTH_MAX: usize = 256;
/// Files with several names that are remembered; later ones are archived anew.
const LINKS_MAX: usize = 50_000;
/// A file of /proc states no size: so much of it is read to know it.
const UNSIZED_BYTES_MAX: u64 = 1024 * 1024;
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
    let done = archive(&mut sink, path, name.into_vec(), &found, follow)
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

/// A folder whose entries are still to be archived.
struct Level {
    path: PathBuf,
    name: Vec<u8>,
    entries: fs::ReadDir,
}

struct Walk<'a, S> {
    sink: &'a mut S,
    /// First names of files that have several, by device and inode.
    links: BTreeMap<(u64, u64), Vec<u8>>,
    levels: Vec<Level>,
}

fn archive<S: Sink>(
    sink: &mut S,
    path: &Path,
    name: Vec<u8>,
    found: &Metadata,
    follow: bool,
) -> Result<(), CopyError> {
    let mut walk = Walk {
        sink,
        links: BTreeMap::new(),
        levels: Vec::new(),
    };
    let real = match follow {
        true => fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()),
        false => path.to_owned(),
    };
    walk.entry(&real, name, found)?;
    while let Some(level) = walk.levels.last_mut() {
        let next = level.entries.next();
        match next {
            None => drop(walk.levels.pop()),
            Some(Err(source)) => {
                let path = level.path.clone();
                return Err(CopyError::Read { path, source });
            }
            Some(Ok(entry)) => {
                let name = [&level.name[..], b"/", entry.file_name().as_bytes()].concat();
                // Deleted since: it is not there.
                if let Ok(found) = entry.metadata() {
                    walk.entry(&entry.path(), name, &found)?;
                }
            }
        }
    }
    walk.sink.write(&end())
}

impl<S: Sink> Walk<'_, S> {
    fn entry(&mut self, path: &Path, name: Vec<u8>, found: &Metadata) -> Result<(), CopyError> {
        let Some(kind) = kind_of(found) else {
            return Ok(());
        };
        let mut entry = Entry {
            kind,
            path: name,
            link: Vec::new(),
            mode: found.mode() & 0o7777,
            uid: found.uid(),
            gid: found.gid(),
            mtime: (
                found.mtime(),
                u32::try_from(found.mtime_nsec()).unwrap_or(0),
            ),
            size: 0,
            device: match kind {
                EntryKind::Char | EntryKind::Block => {
                    (libc::major(found.rdev()), libc::minor(found.rdev()))
                }
                _ => (0, 0),
            },
            xattrs: Vec::new(),
        };
        let failed = |source| CopyError::Read {
            path: path.to_owned(),
            source,
        };
        if !found.is_dir() && found.nlink() > 1 {
            let key = (found.dev(), found.ino());
            if let Some(first) = self.links.get(&key) {
                entry.kind = EntryKind::HardLink;
                entry.link.clone_from(first);
                return self.sink.write(&header(&entry));
            }
            if self.links.len() < LINKS_MAX {
                self.links.insert(key, entry.path.clone());
            }
        }
        entry.xattrs = xattrs(path);
        match kind {
            EntryKind::File => return self.file(path, entry),
            EntryKind::Symlink => match fs::read_link(path) {
                Ok(target) => entry.link = target.into_os_string().into_vec(),
                Err(_) => return Ok(()),
            },
            EntryKind::Dir => {
                let below = entry.path.clone();
                entry.path.push(b'/');
                // The kernel's views are no files; asked for by their own path they are.
                let is_view = !self.levels.is_empty() && is_kernel_view(path);
                if !is_view && self.levels.len() < DEPTH_MAX {
                    match fs::read_dir(path) {
                        Ok(entries) => self.levels.push(Level {
                            path: path.to_owned(),
                            name: below,
                            entries,
                        }),
                        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                        Err(error) => return Err(failed(error)),
                    }
                }
            }
            _ => {}
        }
        self.sink.write(&header(&entry))
    }

    fn file(&mut self, path: &Path, mut entry: Entry) -> Result<(), CopyError> {
        let failed = |source| CopyError::Read {
            path: path.to_owned(),
            source,
        };
        let opened = OpenOptions::new()
            .read(true)
            // A file that has become a pipe meanwhile must not hold us up.
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path);
        let mut file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        let found = file.metadata().map_err(failed)?;
        if !found.is_file() {
            return Ok(());
        }
        entry.size = found.len();
        if entry.size == 0 && is_kernel_view(path) {
            return self.unsized_file(file, entry);
        }
        let size = entry.size;
        self.sink.write(&header(&entry))?;
        let mut left = size;
        let mut buffer = vec![0; FRAME_BYTES];
        while left > 0 {
            let room = usize::try_from(left).map_or(FRAME_BYTES, |left| left.min(FRAME_BYTES));
            let part = buffer.get_mut(..room).unwrap_or_default();
            // It may shrink while it is read; the size is promised, so zeros take the place. Growth is left out.
            let count = match file.read(part) {
                Ok(0) => {
                    part.fill(0);
                    room
                }
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed(error)),
            };
            self.sink.write(part.get(..count).unwrap_or_default())?;
            left -= count as u64;
        }
        self.sink.write(&padding(size))
    }

    fn unsized_file(&mut self, file: File, mut entry: Entry) -> Result<(), CopyError> {
        let mut content = Vec::new();
        // Some views refuse to be read: then they are empty.
        let _ = file.take(UNSIZED_BYTES_MAX).read_to_end(&mut content);
        entry.size = content.len() as u64;
        self.sink.write(&header(&entry))?;
        self.sink.write(&content)?;
        self.sink.write(&padding(entry.size))
    }
}

/// `None` for a socket, which means nothing without its process.
fn kind_of(found: &Metadata) -> Option<EntryKind> {
    let kind = found.file_type();
    Some(if kind.is_file() {
        EntryKind::File
    } else if kind.is_dir() {
        EntryKind::Dir
    } else if kind.is_symlink() {
        EntryKind::Symlink
    } else if kind.is_fifo() {
        EntryKind::Fifo
    } else if kind.is_char_device() {
        EntryKind::Char
    } else if kind.is_block_device() {
        EntryKind::Block
    } else {
        return None;
    })
}

/// Whether a path is in a file system that the kernel makes up (magic numbers of linux/magic.h).
fn is_kernel_view(path: &Path) -> bool {
    const VIEWS: [i64; 11] = [
        0x9fa0,      // proc
        0x6265_6572, // sysfs
        0x6367_7270, // cgroup2
        0x27_e0eb,   // cgroup
        0x1cd1,      // devpts
        0x7472_6163, // tracefs
        0x6462_6720, // debugfs
        0x7363_6673, // securityfs
        0xcafe_4a11, // bpf
        0x1980_0202, // mqueue
        0x6165_676c, // pstore
    ];
    let Ok(path) = c_path(path) else { return false };
    // SAFETY: statfs is plain integers; zero is a value of it.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a valid C string and room for a statfs.
    let known = check(unsafe { libc::statfs(path.as_ptr(), &raw mut stat) });
    // The type's width differs between the C libraries; the numbers are 32 bits.
    #[allow(
        clippy::unnecessary_cast,
        clippy::cast_possible_wrap,
        reason = "f_type is signed in one C library and unsigned in the other"
    )]
    let kind = stat.f_type as i64 & 0xffff_ffff;
    known.is_ok() && VIEWS.contains(&kind)
}

/// What a file carries beside its contents. A file system without such attributes has none; those of overlayfs are not the
/// file's own.
fn xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let Ok(path) = c_path(path) else {
        return Vec::new();
    };
    let mut names = vec![0_u8; XATTR_BYTES_MAX];
    // SAFETY: a valid C string, and room for the length given.
    let size = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    let Ok(size @ 1..) = usize::try_from(size) else {
        return Vec::new();
    };
    let mut value = vec![0_u8; XATTR_BYTES_MAX];
    let mut total = 0;
    names
        .get(..size)
        .unwrap_or_default()
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty() && !name.starts_with(b"trusted.overlay."))
        .filter_map(|name| {
            let c_name = CString::new(name).ok()?;
            // SAFETY: two valid C strings, and room for the length given.
            let size = unsafe {
                libc::lgetxattr(
                    path.as_ptr(),
                    c_name.as_ptr(),
                    value.as_mut_ptr().cast(),
                    value.len(),
                )
            };
            let found = value.get(..usize::try_from(size).ok()?)?;
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

    impl Sink for Vec<u8> {
        fn write(&mut self, bytes: &[u8]) -> Result<(), CopyError> {
            self.extend_from_slice(bytes);
            Ok(())
        }
    }

    fn pack(path: &Path, name: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        let found = fs::symlink_metadata(path).unwrap();
        archive(&mut bytes, path, name.into(), &found, false).unwrap();
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
        copy_in::copy(&packed[..], folder.path(), Owner::Keep, 0o755).unwrap();

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
    fn a_file_without_a_stated_size_has_its_contents() {
        let packed = pack(Path::new("/proc/version"), "version");

        let folder = TestFolder::new();
        copy_in::copy(&packed[..], folder.path(), Owner::Keep, 0o755).unwrap();

        assert_eq!(
            fs::read_to_string(folder.path().join("version")).unwrap(),
            fs::read_to_string("/proc/version").unwrap()
        );
    }
}
