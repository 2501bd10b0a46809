//! Mounts: the kernel's file systems, the root out of base and overlay, volumes, and their undoing before power-off.
//!
//! ```text
//! initramfs /            kestrel's own: /init, /modules
//!   /k/base              disk "root", EROFS (or ext4), read-only
//!   /k/top               disk "overlay", ext4, grown; or a tmpfs
//!   /k/new               overlayfs of both  ──moved──▶  /   (the initramfs' files are deleted, their memory is free)
//! ```
//!
//! After the move a path cannot reach base, top or the initramfs any more; kestrel keeps a descriptor of `/k/top`, through
//! which it freezes the file system for a snapshot and remounts it read-only before power-off.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aerie_protocol::message::{Root, RootMode, Volume, VolumeFs};

use crate::setup::disks::{self, Disk};
use crate::sys::{c_path, check};

/// Why the guest has no root or not all of its volumes.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("there is no disk with the serial \"{0}\"")]
    DiskMissing(String),
    #[error("disk \"{serial}\" holds no file system that can be a root")]
    NotARoot { serial: String },
    #[error("cannot mount {what} at {}", .at.display())]
    Mount {
        what: String,
        at: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot make {}", .path.display())]
    Make {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot grow the overlay to {bytes} bytes")]
    Grow {
        bytes: u64,
        #[source]
        source: io::Error,
    },
    #[error("cannot make the new root the root")]
    Switch(#[source] io::Error),
    #[error("volume path \"{0}\" is not absolute")]
    VolumePath(String),
}

const BASE: &str = "/k/base";
const TOP: &str = "/k/top";
const NEW: &str = "/k/new";

/// A writable file system on a disk, held open for freezing and for the end.
#[derive(Debug)]
pub struct WritableMount {
    pub folder: File,
    /// The folder that it is mounted at in the guest; `None` for the overlay's own, which no path reaches.
    pub path: Option<PathBuf>,
}

/// Mounts that [`root`] and [`volumes`] leave to be undone.
#[derive(Debug, Default)]
pub struct Mounted {
    pub writable: Vec<WritableMount>,
}

/// mount(2).
pub fn mount(
    source: &str,
    at: &Path,
    kind: &str,
    flags: libc::c_ulong,
    data: &str,
) -> Result<(), MountError> {
    let failed = |error: io::Error| MountError::Mount {
        what: format!("{kind} {source}"),
        at: at.to_owned(),
        source: error,
    };
    let text = |text: &str| CString::new(text).map_err(|error| failed(error.into()));
    let (source, kind, data) = (text(source)?, text(kind)?, text(data)?);
    let target = c_path(at).map_err(failed)?;
    // SAFETY: four valid C strings.
    check(unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            data.as_ptr().cast(),
        )
    })
    .map_err(failed)?;
    Ok(())
}

/// Makes a folder and those above it.
fn make(path: &Path) -> Result<(), MountError> {
    fs::create_dir_all(path).map_err(|source| MountError::Make {
        path: path.to_owned(),
        source,
    })
}

/// Bytes of `/dev/shm` where the host does not say, as container engines have it by default.
const SHM_BYTES: u64 = 64 * 1024 * 1024;

const QUIET: libc::c_ulong = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;

/// Mounts what kestrel itself needs before anything else: proc, sys, dev.
///
/// # Errors
/// The first that cannot be mounted.
pub fn early() -> Result<(), MountError> {
    for (kind, at, flags, data) in [
        ("proc", "/proc", QUIET, ""),
        ("sysfs", "/sys", QUIET, ""),
        ("devtmpfs", "/dev", libc::MS_NOSUID, "mode=0755"),
    ] {
        let at = Path::new(at);
        make(at)?;
        mount(kind, at, kind, flags, data)?;
    }
    Ok(())
}

/// Assembles `/` as `root` says and moves into it. `/proc`, `/sys` and `/dev` move along.
///
/// # Errors
/// A disk that is missing, broken, or cannot grow.
pub fn root(root: &Root) -> Result<Mounted, MountError> {
    let mut mounted = Mounted::default();
    match root.mode {
        RootMode::Initramfs => {
            // The payload is the initramfs itself; only what is kestrel's goes away.
            for own in ["/init", "/modules"] {
                delete(Path::new(own), None);
            }
        }
        RootMode::Overlay => {
            base()?;
            if let Some(held) = top(root.overlay_size_bytes)? {
                mounted.writable.push(held);
            }
            overlay()?;
            switch()?;
        }
    }
    Ok(mounted)
}

fn base() -> Result<(), MountError> {
    let disk = disks::find("root").ok_or_else(|| MountError::DiskMissing("root".to_owned()))?;
    let kind = file_system(&disk.device).ok_or_else(|| MountError::NotARoot {
        serial: "root".to_owned(),
    })?;
    make(Path::new(BASE))?;
    mount(
        &disk.device.to_string_lossy(),
        Path::new(BASE),
        kind,
        libc::MS_RDONLY,
        "",
    )
}

/// Tells EROFS from ext4 by their magic numbers (fs/erofs/erofs_fs.h, fs/ext4/ext4.h).
fn file_system(device: &Path) -> Option<&'static str> {
    let mut head = [0_u8; 2048];
    io::Read::read_exact(&mut File::open(device).ok()?, &mut head).ok()?;
    if head.get(1024..1028)? == 0xE0F5_E1E2_u32.to_le_bytes() {
        Some("erofs")
    } else if head.get(1024 + 0x38..1024 + 0x3a)? == 0xEF53_u16.to_le_bytes() {
        Some("ext4")
    } else {
        None
    }
}

fn top(size: Option<u64>) -> Result<Option<WritableMount>, MountError> {
    let at = Path::new(TOP);
    make(at)?;
    let disk = match size {
        // A size was promised, so changes are meant to be kept: RAM in place of a missing disk would lose them.
        Some(_) => Some(
            disks::find("overlay").ok_or_else(|| MountError::DiskMissing("overlay".to_owned()))?,
        ),
        None => disks::find_now("overlay"),
    };
    let held = match disk {
        None => {
            mount("overlay", at, "tmpfs", 0, "mode=0755")?;
            None
        }
        Some(disk) => {
            mount_ext4(&disk, at)?;
            let bytes = size.map_or(disk.bytes, |size| size.min(disk.bytes));
            disks::grow_ext4(&disk.device, at, bytes)
                .map_err(|source| MountError::Grow { bytes, source })?;
            let folder = File::open(at).map_err(|source| MountError::Make {
                path: at.to_owned(),
                source,
            })?;
            Some(WritableMount { folder, path: None })
        }
    };
    for folder in ["upper", "work"] {
        make(&at.join(folder))?;
    }
    // The root's own mode and owner are those of the upper folder: they must be the image's.
    let failed = |source| MountError::Make {
        path: at.join("upper"),
        source,
    };
    let base = fs::metadata(BASE).map_err(failed)?;
    fs::set_permissions(
        at.join("upper"),
        fs::Permissions::from_mode(base.mode() & 0o7777),
    )
    .map_err(failed)?;
    std::os::unix::fs::chown(at.join("upper"), Some(base.uid()), Some(base.gid()))
        .map_err(failed)?;
    Ok(held)
}

fn mount_ext4(disk: &Disk, at: &Path) -> Result<(), MountError> {
    // noinit_itable: zeroing inode tables in the background would fill the host's sparse file.
    let data = if disk.can_discard {
        "noinit_itable,discard"
    } else {
        "noinit_itable"
    };
    mount(
        &disk.device.to_string_lossy(),
        at,
        "ext4",
        libc::MS_NOATIME,
        data,
    )
}

fn overlay() -> Result<(), MountError> {
    let new = Path::new(NEW);
    make(new)?;
    let layers = format!("lowerdir={BASE},upperdir={TOP}/upper,workdir={TOP}/work");
    // redirect_dir: a folder of the image can be renamed as on any other file system; without it rename(2) gives EXDEV.
    // Nobody but kestrel mounts these layers, so nobody can be led astray by them.
    let redirecting = format!("{layers},redirect_dir=on");
    mount("overlay", new, "overlay", 0, &redirecting)
        .or_else(|_| mount("overlay", new, "overlay", 0, &layers))
}

fn switch() -> Result<(), MountError> {
    let new = Path::new(NEW);
    for kernel in ["proc", "sys", "dev"] {
        let to = new.join(kernel);
        make(&to)?;
        mount(&format!("/{kernel}"), &to, "none", libc::MS_MOVE, "")?;
    }
    let device = fs::metadata("/").map_err(MountError::Switch)?.dev();
    delete(Path::new("/"), Some(device));
    std::env::set_current_dir(new).map_err(MountError::Switch)?;
    mount(".", Path::new("/"), "none", libc::MS_MOVE, "")?;
    std::os::unix::fs::chroot(".").map_err(MountError::Switch)?;
    std::env::set_current_dir("/").map_err(MountError::Switch)
}

/// Deletes a tree without crossing into another file system. What cannot be deleted stays: it is only memory.
fn delete(path: &Path, device: Option<u64>) {
    let Ok(found) = fs::symlink_metadata(path) else {
        return;
    };
    if device.is_some_and(|device| device != found.dev()) {
        return;
    }
    if found.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            delete(&entry.path(), Some(found.dev()));
        }
        let _ = fs::remove_dir(path);
    } else {
        let _ = fs::remove_file(path);
    }
}

/// The file systems that every Linux program expects, in the new root. One that the kernel lacks is passed over, but for
/// `/dev/pts`. `/run` and `/tmp` are the root's own, with what the image holds there and on its disk; `/dev/shm` has `shm_bytes`.
///
/// # Errors
/// No `/dev/pts`.
pub fn late(shm_bytes: Option<u64>) -> Result<(), MountError> {
    let shm = format!("mode=1777,size={}", shm_bytes.unwrap_or(SHM_BYTES));
    for (at, bits) in [("/run", 0o755), ("/tmp", 0o1777)] {
        // Only where the image has none. A link to nowhere in its place is the image's affair.
        if fs::create_dir(at).is_ok() {
            let _ = fs::set_permissions(at, fs::Permissions::from_mode(bits));
        }
    }
    for (kind, at, flags, data, needed) in [
        (
            "devpts",
            "/dev/pts",
            libc::MS_NOSUID | libc::MS_NOEXEC,
            "mode=0620,gid=5,ptmxmode=0666",
            true,
        ),
        (
            "tmpfs",
            "/dev/shm",
            libc::MS_NOSUID | libc::MS_NODEV,
            &shm,
            false,
        ),
        ("mqueue", "/dev/mqueue", QUIET, "", false),
        ("cgroup2", "/sys/fs/cgroup", QUIET, "", false),
    ] {
        let at = Path::new(at);
        let done = make(at).and_then(|()| mount(kind, at, kind, flags, data));
        if needed {
            done?;
        }
    }
    for (target, link) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ] {
        // devtmpfs does not make them; there already is as good.
        let _ = std::os::unix::fs::symlink(target, link);
    }
    Ok(())
}

/// Mounts the further disks, outer paths before inner ones.
///
/// # Errors
/// The first that is missing or cannot be mounted.
pub fn volumes(volumes: &[Volume], mounted: &mut Mounted) -> Result<(), MountError> {
    let mut sorted: Vec<&Volume> = volumes.iter().collect();
    sorted.sort_by_key(|volume| Path::new(&volume.path).components().count());
    for volume in sorted {
        let at = Path::new(&volume.path);
        if !at.is_absolute() {
            return Err(MountError::VolumePath(volume.path.clone()));
        }
        let disk = disks::find(&volume.serial)
            .ok_or_else(|| MountError::DiskMissing(volume.serial.clone()))?;
        make(at)?;
        let device = disk.device.to_string_lossy();
        match (volume.fs, volume.read_only) {
            (VolumeFs::Erofs, _) => mount(&device, at, "erofs", libc::MS_RDONLY, "")?,
            (VolumeFs::Ext4, true) => mount(&device, at, "ext4", libc::MS_RDONLY, "")?,
            (VolumeFs::Ext4, false) => {
                mount_ext4(&disk, at)?;
                disks::grow_ext4(&disk.device, at, disk.bytes).map_err(|source| {
                    MountError::Grow {
                        bytes: disk.bytes,
                        source,
                    }
                })?;
                let folder = File::open(at).map_err(|source| MountError::Make {
                    path: at.to_owned(),
                    source,
                })?;
                mounted.writable.push(WritableMount {
                    folder,
                    path: Some(at.to_owned()),
                });
            }
        }
    }
    Ok(())
}

/// Leaves every disk clean: volumes are unmounted, the root and its overlay become read-only. Nobody writes any more when
/// this is called; what still refuses is synced and frozen, which leaves an ext4 as clean as an unmount.
pub fn undo(mounted: Mounted) {
    // SAFETY: sync touches no memory.
    unsafe { libc::sync() };
    // Overlayfs first: it writes into the overlay's disk.
    let _ = mount(
        "none",
        Path::new("/"),
        "none",
        libc::MS_REMOUNT | libc::MS_RDONLY,
        "",
    );
    for WritableMount { folder, path } in mounted.writable.into_iter().rev() {
        let here = match path {
            Some(path) => {
                // An open folder would keep the mount busy.
                drop(folder);
                if unmount(&path).is_ok() {
                    continue;
                }
                path
            }
            None => {
                let here = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
                // It must stay open: it is the only way there.
                std::mem::forget(folder);
                here
            }
        };
        let flags = libc::MS_REMOUNT | libc::MS_RDONLY;
        if mount("none", &here, "none", flags, "").is_err()
            && let Ok(folder) = File::open(&here)
        {
            let _ = crate::end::freeze::freeze(&folder);
        }
    }
    // SAFETY: as above.
    unsafe { libc::sync() };
}

fn unmount(path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: a valid C string.
    check(unsafe { libc::umount2(path.as_ptr(), libc::UMOUNT_NOFOLLOW) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_folder::TestFolder;

    #[test]
    fn a_root_file_system_is_told_by_its_magic() {
        let folder = TestFolder::new();
        let disk = folder.path().join("disk");
        let with = |at: usize, magic: &[u8]| {
            let mut image = vec![0_u8; 4096];
            image[at..at + magic.len()].copy_from_slice(magic);
            std::fs::write(&disk, image).unwrap();
            file_system(&disk)
        };

        assert_eq!(with(1024, &[0xe2, 0xe1, 0xf5, 0xe0]), Some("erofs"));
        assert_eq!(with(1024 + 56, &[0x53, 0xef]), Some("ext4"));
        assert_eq!(with(0, b"hsqs"), None);
        std::fs::write(&disk, "short").unwrap();
        assert_eq!(file_system(&disk), None);
    }

    #[test]
    fn deleting_a_tree_takes_links_and_leaves_their_targets() {
        let folder = TestFolder::new();
        let tree = folder.path().join("tree");
        let kept = folder.path().join("kept");
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        std::fs::write(tree.join("a/b/file"), "x").unwrap();
        std::fs::write(&kept, "x").unwrap();
        std::os::unix::fs::symlink(&kept, tree.join("link")).unwrap();

        delete(&tree, None);

        assert!(!tree.exists());
        assert!(kept.exists());
    }
}
