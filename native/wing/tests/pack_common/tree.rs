//! Trees on disk: seen as data to be compared, and mounted or extracted from an image.

use std::{
    collections::BTreeMap,
    ffi::{CString, OsString},
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    process::Command,
};

/// All that a file system says of one path.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, i64),
    pub links: u64,
    pub device: u64,
    /// The first path of the same file.
    pub twin: PathBuf,
    pub contents: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Every path below `root`, the root as "".
pub fn look(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut twins = BTreeMap::new();
    let mut folders = vec![PathBuf::new()];
    let mut paths = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root.join(&folder)).unwrap() {
            let path = folder.join(entry.unwrap().file_name());
            if root.join(&path).symlink_metadata().unwrap().is_dir() {
                folders.push(path.clone());
            }
            paths.push(path);
        }
    }
    paths.sort();
    for path in paths {
        let full = root.join(&path);
        let meta = full.symlink_metadata().unwrap();
        let kind = meta.file_type();
        let contents = if kind.is_file() {
            std::fs::read(&full).unwrap()
        } else if kind.is_symlink() {
            std::fs::read_link(&full)
                .unwrap()
                .into_os_string()
                .into_vec()
        } else {
            Vec::new()
        };
        let is_device = kind.is_char_device() || kind.is_block_device();
        let view = Seen {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            links: meta.nlink(),
            device: if is_device { meta.rdev() } else { 0 },
            twin: twins.entry(meta.ino()).or_insert(path.clone()).clone(),
            contents,
            xattrs: xattrs(&full),
        };
        seen.insert(path, view);
    }
    seen
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let c_path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut names = vec![0u8; 64 << 10];
    // SAFETY: the path ends with NUL, and the buffer is as long as it says.
    let len = unsafe { libc::llistxattr(c_path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    let names = &names[..usize::try_from(len).unwrap_or(0)];
    let names = names
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty());
    names
        .map(|name| {
            let c_name = CString::new(name).unwrap();
            let mut value = vec![0u8; 64 << 10];
            // SAFETY: path and name end with NUL, and the buffer is as long as it says.
            let len = unsafe {
                libc::lgetxattr(
                    c_path.as_ptr(),
                    c_name.as_ptr(),
                    value.as_mut_ptr().cast(),
                    value.len(),
                )
            };
            value.truncate(usize::try_from(len).unwrap());
            (name.to_vec(), value)
        })
        .collect()
}

pub fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    let c_path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let c_name = CString::new(name).unwrap();
    // SAFETY: path and name end with NUL, and the value is as long as it says.
    let answer = unsafe {
        libc::lsetxattr(
            c_path.as_ptr(),
            c_name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
}

/// Fails the test with the first path in which two trees differ.
#[track_caller]
pub fn assert_same(left: &BTreeMap<PathBuf, Seen>, right: &BTreeMap<PathBuf, Seen>) {
    let names = |tree: &BTreeMap<PathBuf, Seen>| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(left), names(right));
    for (path, left) in left {
        let right = &right[path];
        if left != right {
            let brief = |seen: &Seen| {
                let contents = &seen.contents[..seen.contents.len().min(40)];
                let rest = (seen.mode, seen.owner, seen.mtime, seen.links, seen.device);
                format!(
                    "{rest:?} {:?} {} bytes {contents:x?} {:x?}",
                    seen.twin,
                    seen.contents.len(),
                    seen.xattrs
                )
            };
            panic!("{}:\n{}\n{}", path.display(), brief(left), brief(right));
        }
    }
}

/// What `fsck.erofs` thinks; says why if it cannot be asked.
#[track_caller]
pub fn fsck(image: &Path) {
    match Command::new("fsck.erofs").arg(image).output() {
        Ok(output) => {
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text);
            assert!(output.status.success(), "{text}");
            assert!(!text.contains("<E>"), "{text}");
        }
        Err(error) => eprintln!("skipped: fsck.erofs: {error}"),
    }
}

/// A mounted image.
#[derive(Debug)]
pub struct Mounted {
    folder: tempfile::TempDir,
}

impl Mounted {
    /// Mounts an image; says why if that cannot be done here.
    pub fn new(image: &Path) -> Option<Self> {
        if !super::is_root() {
            eprintln!("skipped: mounting needs root");
            return None;
        }
        let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        if !filesystems.contains("\terofs") || !Path::new("/dev/loop-control").exists() {
            eprintln!("skipped: this kernel has no EROFS or no loop devices");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let output = Command::new("mount")
            .args(["-t", "erofs", "-o", "loop,ro"])
            .arg(image)
            .arg(folder.path())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Some(Self { folder })
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.folder.path()).status();
    }
}

/// What `fsck.erofs` takes out of an image; says why if it cannot be asked.
pub fn extract(image: &Path, folder: &Path) -> Option<()> {
    let mut flag = OsString::from("--extract=");
    flag.push(folder);
    match Command::new("fsck.erofs").arg(flag).arg(image).output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{text}");
            Some(())
        }
        Err(error) => {
            eprintln!("skipped: fsck.erofs: {error}");
            None
        }
    }
}

/// The tree in an image: names and contents of files and symlinks; `None` if no tool can tell.
pub fn contents(image: &Path) -> Option<BTreeMap<String, Vec<u8>>> {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    extract(image, &out)?;
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    let tree = look(&out).into_iter();
    Some(
        tree.filter(|(path, _)| !path.as_os_str().is_empty())
            .map(|(path, seen)| (text(path), seen.contents))
            .collect(),
    )
}
