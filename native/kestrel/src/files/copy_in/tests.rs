use std::fs::File;
use std::os::unix::fs::MetadataExt;

use super::*;
use crate::files::tar::{end, header, padding};
use crate::test_folder::TestFolder;

/// The owner that a test without root can give.
fn me() -> (u32, u32) {
    // SAFETY: both touch no memory.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

fn entry(kind: EntryKind, path: &str) -> Entry {
    let (uid, gid) = me();
    Entry {
        kind,
        uid,
        gid,
        ..Entry::file(path, 0)
    }
}

fn archive(entries: &[(Entry, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (entry, data) in entries {
        let entry = Entry {
            size: data.len() as u64,
            ..entry.clone()
        };
        bytes.extend(header(&entry));
        bytes.extend_from_slice(data.as_bytes());
        bytes.extend(padding(entry.size));
    }
    bytes.extend(end());
    bytes
}

fn unpack(root: &Path, entries: &[(Entry, &str)]) -> Result<CopyInDone, CopyError> {
    copy(&archive(entries)[..], root, Owner::Keep, 0o755)
}

fn file(path: &str) -> Entry {
    entry(EntryKind::File, path)
}

fn link(kind: EntryKind, path: &str, target: &str) -> Entry {
    Entry {
        link: target.into(),
        ..entry(kind, path)
    }
}

#[test]
fn modes_times_links_and_folders_arrive() {
    let folder = TestFolder::new();
    let root = folder.path().join("made/on/the/way");
    let done = unpack(
        &root,
        &[
            (
                Entry {
                    mode: 0o750,
                    mtime: (1_000, 5),
                    ..entry(EntryKind::Dir, "d/")
                },
                "",
            ),
            (
                Entry {
                    mode: 0o4711,
                    mtime: (2_000, 0),
                    ..file("d/f")
                },
                "hello",
            ),
            (link(EntryKind::HardLink, "d/hard", "d/f"), ""),
            (link(EntryKind::Symlink, "soft", "/nowhere/../x"), ""),
            (entry(EntryKind::Fifo, "pipe"), ""),
            (file("deep/er/f"), ""),
        ],
    )
    .unwrap();

    assert_eq!((done.entries, done.bytes, done.skipped), (6, 5, 0));
    let stat = |path: &str| fs::symlink_metadata(root.join(path)).unwrap();
    assert_eq!(fs::read_to_string(root.join("d/f")).unwrap(), "hello");
    assert_eq!(
        (stat("d/f").mode() & 0o7777, stat("d/f").mtime()),
        (0o4711, 2_000)
    );
    assert_eq!(stat("d/f").ino(), stat("d/hard").ino());
    assert_eq!(
        (
            stat("d").mode() & 0o7777,
            stat("d").mtime(),
            stat("d").mtime_nsec()
        ),
        (0o750, 1_000, 5)
    );
    assert_eq!(
        fs::read_link(root.join("soft")).unwrap(),
        Path::new("/nowhere/../x")
    );
    assert_eq!(stat("pipe").mode() & libc::S_IFMT, libc::S_IFIFO);
    assert!(stat("deep/er/f").is_file());
}

#[test]
fn names_that_leave_the_folder_are_refused() {
    let folder = TestFolder::new();
    let root = folder.path().join("root");
    for bad in ["../x", "a/../../x", "..", "/../x"] {
        let refused = unpack(&root, &[(file(bad), "x")]);
        assert!(matches!(refused, Err(CopyError::Escapes(_))), "{bad}");
    }
    let refused = unpack(
        &root,
        &[(link(EntryKind::HardLink, "a", "../../etc/passwd"), "")],
    );
    assert!(matches!(refused, Err(CopyError::Escapes(_))));
    assert!(!folder.path().join("x").exists());

    unpack(&root, &[(file("/abs/./x"), "x")]).unwrap();
    assert!(root.join("abs/x").exists());
}

#[test]
fn files_replace_files_and_links_and_never_folders() {
    let folder = TestFolder::new();
    let root = folder.path();
    fs::create_dir(root.join("d")).unwrap();
    fs::write(root.join("target"), "kept").unwrap();
    std::os::unix::fs::symlink("target", root.join("l")).unwrap();

    unpack(root, &[(file("l"), "new")]).unwrap();

    assert_eq!(fs::read_to_string(root.join("target")).unwrap(), "kept");
    assert!(fs::symlink_metadata(root.join("l")).unwrap().is_file());
    let refused = unpack(root, &[(file("d"), "x")]).unwrap_err();
    assert_eq!(refused.body().code, code::IS_A_DIRECTORY);
    let refused = unpack(root, &[(entry(EntryKind::Dir, "l/"), "")]).unwrap_err();
    assert_eq!(refused.body().code, code::NOT_A_DIRECTORY);
    let refused = unpack(&root.join("l"), &[]).unwrap_err();
    assert_eq!(refused.body().code, code::NOT_A_DIRECTORY);
}

#[test]
fn a_folder_that_is_a_link_in_the_guest_is_filled_where_it_points() {
    let folder = TestFolder::new();
    let root = folder.path();
    fs::create_dir_all(root.join("usr/lib")).unwrap();
    std::os::unix::fs::symlink("usr/lib", root.join("lib")).unwrap();

    unpack(
        root,
        &[(entry(EntryKind::Dir, "lib/"), ""), (file("lib/x"), "x")],
    )
    .unwrap();

    assert!(root.join("usr/lib/x").exists());
    assert!(fs::symlink_metadata(root.join("lib")).unwrap().is_symlink());
}

#[test]
fn the_destination_itself_stays_as_it_is() {
    let folder = TestFolder::new();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).unwrap();

    unpack(
        folder.path(),
        &[(
            Entry {
                mode: 0o700,
                ..entry(EntryKind::Dir, "./")
            },
            "",
        )],
    )
    .unwrap();

    assert_eq!(fs::metadata(folder.path()).unwrap().mode() & 0o7777, 0o711);
}

#[test]
fn extended_attributes_are_set_or_counted() {
    let folder = TestFolder::new();
    let with = Entry {
        xattrs: vec![
            (b"user.note".to_vec(), b"a\0b".to_vec()),
            (b"nonsense".to_vec(), vec![]),
        ],
        ..file("f")
    };

    let done = unpack(folder.path(), &[(with, "")]).unwrap();

    let mut value = [0_u8; 8];
    let path = c_path(&folder.path().join("f")).unwrap();
    // SAFETY: two C strings, and room for eight bytes.
    let size = unsafe {
        libc::lgetxattr(
            path.as_ptr(),
            c"user.note".as_ptr(),
            value.as_mut_ptr().cast(),
            8,
        )
    };
    // A file system without them has both counted.
    assert!((size == 3 && &value[..3] == b"a\0b" && done.skipped == 1) || done.skipped == 2);
}

#[test]
fn a_truncated_stream_is_an_error_and_padding_after_the_end_is_none() {
    let folder = TestFolder::new();
    let mut bytes = archive(&[(file("f"), "hello")]);
    let cut = copy(&bytes[..514], folder.path(), Owner::Keep, 0o755).unwrap_err();
    assert_eq!(cut.body().code, code::TAR_INVALID);
    bytes.extend([0; 20 * 512]);

    assert_eq!(
        copy(&bytes[..], folder.path(), Owner::Keep, 0o755)
            .unwrap()
            .entries,
        1
    );
}

#[test]
fn what_gnu_tar_writes_is_read() {
    let folder = TestFolder::new();
    let from = folder.path().join("from");
    let long = "n".repeat(120);
    fs::create_dir_all(from.join("d")).unwrap();
    fs::write(from.join("d").join(&long), "long").unwrap();
    fs::write(from.join("a"), vec![7; 100_000]).unwrap();
    fs::hard_link(from.join("a"), from.join("b")).unwrap();
    std::os::unix::fs::symlink(&long, from.join("l")).unwrap();
    for format in ["gnu", "pax", "ustar"] {
        let to = folder.path().join(format);
        let script = format!(
            "tar --format={format} -C {} -cf {}.tar . 2>/dev/null",
            from.display(),
            to.display()
        );
        let ran = crate::test_reaper::run(&["sh", "-c", &script]);
        // The old format cannot hold the long link: GNU tar leaves it out and says so.
        assert!(ran == 0 || format == "ustar");
        let archive = File::open(to.with_extension("tar")).unwrap();

        copy(archive, &to, Owner::Keep, 0o755).unwrap();

        assert_eq!(fs::read(to.join("a")).unwrap(), vec![7; 100_000]);
        assert_eq!(fs::metadata(to.join("a")).unwrap().nlink(), 2);
        if format != "ustar" {
            assert_eq!(
                fs::read_to_string(to.join("d").join(&long)).unwrap(),
                "long"
            );
            assert_eq!(fs::read_link(to.join("l")).unwrap(), Path::new(&long));
        }
    }
}
