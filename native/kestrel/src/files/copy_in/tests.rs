use std::fs::File;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;
use crate::files::tar::{end, header, padding};
use crate::sys::c_path;
use crate::test_folder::TestFolder;

const KEEP: How = How {
    owner: Owner::Keep,
    is_archive: true,
    folder_mode: 0o755,
};

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
    copy(&archive(entries)[..], root, KEEP)
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
fn files_go_where_links_lead_and_never_replace_folders() {
    let folder = TestFolder::new();
    let root = folder.path();
    fs::create_dir(root.join("d")).unwrap();
    fs::write(root.join("target"), "old").unwrap();
    std::os::unix::fs::symlink("target", root.join("l")).unwrap();
    std::os::unix::fs::symlink("d/../l", root.join("chain")).unwrap();
    std::os::unix::fs::symlink("d/new", root.join("dangling")).unwrap();
    std::os::unix::fs::symlink("circle", root.join("circle")).unwrap();

    for (name, target) in [("l", "target"), ("chain", "target"), ("dangling", "d/new")] {
        unpack(root, &[(file(name), name)]).unwrap();

        assert_eq!(fs::read_to_string(root.join(target)).unwrap(), name);
        assert!(fs::symlink_metadata(root.join(name)).unwrap().is_symlink());
    }
    assert!(unpack(root, &[(file("circle"), "x")]).is_err());
    let refused = unpack(root, &[(file("d"), "x")]).unwrap_err();
    assert_eq!(refused.body().code, code::IS_A_DIRECTORY);
    let refused = unpack(root, &[(entry(EntryKind::Dir, "l/"), "")]).unwrap_err();
    assert_eq!(refused.body().code, code::NOT_A_DIRECTORY);
    let refused = unpack(&root.join("l"), &[]).unwrap_err();
    assert_eq!(refused.body().code, code::NOT_A_DIRECTORY);
}

#[test]
fn links_that_the_stream_made_lead_nowhere() {
    let folder = TestFolder::new();
    let outside = folder.path().join("outside");
    let away = outside.to_string_lossy().into_owned();
    let below = |name: &str| (file(name), "evil");
    let symlink = |name: &str, to: &str| (link(EntryKind::Symlink, name, to), "");
    let cases = [
        vec![symlink("l", &away), below("l/secret")],
        vec![symlink("l", &away), below("l/new/deep")],
        vec![
            symlink("l", &away),
            (entry(EntryKind::Dir, "l/"), ""),
            below("l/x"),
        ],
        vec![symlink("l", &away), (entry(EntryKind::Dir, "l/sub/"), "")],
        vec![symlink("l", &away), symlink("l/x", "/")],
        vec![symlink("l", &away), (entry(EntryKind::Fifo, "l/x"), "")],
        vec![
            symlink("a", ".."),
            symlink("b", "a/outside"),
            below("b/secret"),
        ],
        vec![
            symlink("l", &away),
            (link(EntryKind::HardLink, "h", "l"), ""),
            below("h/x"),
        ],
        vec![
            symlink("l", &away),
            (link(EntryKind::HardLink, "h", "l/secret"), ""),
            below("h"),
        ],
        // By links that were there, which lead over one of the stream's: `was` is "made/x", `deep` is "made".
        vec![symlink("made", &away), below("was")],
        vec![symlink("made", &away), below("deep/x")],
        // Another name of a link that was there is at another place, and so leads elsewhere.
        vec![
            (link(EntryKind::HardLink, "up", "sub/was"), ""),
            below("up"),
        ],
    ];
    for (at, entries) in cases.iter().enumerate() {
        let _ = fs::remove_dir_all(&outside);
        let root = folder.path().join(format!("root{at}"));
        fs::create_dir_all(root.join("sub/sub")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), "kept").unwrap();
        for (target, name) in [
            ("made/x", "was"),
            ("made", "deep"),
            ("../../outside/x", "sub/sub/was"),
        ] {
            std::os::unix::fs::symlink(target, root.join(name)).unwrap();
        }
        std::os::unix::fs::symlink("../outside/x", root.join("sub/was")).unwrap();

        let refused = unpack(&root, entries);

        if at < 11 {
            assert!(
                matches!(refused, Err(CopyError::OverLink(_))),
                "{at}: {refused:?}"
            );
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{at}");
        assert_eq!(
            fs::read_to_string(outside.join("secret")).unwrap(),
            "kept",
            "{at}"
        );
    }
}

#[test]
fn a_name_that_the_stream_gave_by_a_link_is_replaced_and_not_written_through() {
    let folder = TestFolder::new();
    let root = folder.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(folder.path().join("outside"), "kept").unwrap();

    unpack(
        &root,
        &[
            (link(EntryKind::Symlink, "s", "../outside"), ""),
            (file("s"), "new"),
            (file("a"), "first"),
            (link(EntryKind::HardLink, "b", "a"), ""),
            (file("b"), "second"),
        ],
    )
    .unwrap();

    assert_eq!(
        fs::read_to_string(folder.path().join("outside")).unwrap(),
        "kept"
    );
    assert_eq!(fs::read_to_string(root.join("s")).unwrap(), "new");
    assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "first");
    assert_eq!(fs::read_to_string(root.join("b")).unwrap(), "second");
}

#[test]
fn what_stands_there_keeps_its_mode_and_its_names_unless_it_is_an_archive() {
    let folder = TestFolder::new();
    let root = folder.path();
    fs::write(root.join("f"), "old, and longer").unwrap();
    fs::set_permissions(root.join("f"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::hard_link(root.join("f"), root.join("other")).unwrap();
    fs::create_dir(root.join("d")).unwrap();
    fs::set_permissions(root.join("d"), fs::Permissions::from_mode(0o711)).unwrap();
    let entries = [
        (
            Entry {
                mode: 0o4755,
                ..file("f")
            },
            "new",
        ),
        (
            Entry {
                mode: 0o777,
                ..entry(EntryKind::Dir, "d/")
            },
            "",
        ),
        (
            Entry {
                mode: 0o6751,
                ..file("fresh")
            },
            "x",
        ),
        (
            Entry {
                mode: 0o1777,
                ..entry(EntryKind::Dir, "tmp/")
            },
            "",
        ),
    ];
    let mode = |name: &str| fs::metadata(root.join(name)).unwrap().mode() & 0o7777;
    let plain = How {
        is_archive: false,
        ..KEEP
    };

    copy(&archive(&entries)[..], root, plain).unwrap();

    assert_eq!(
        ["f", "d", "fresh", "tmp"].map(mode),
        [0o600, 0o711, 0o751, 0o777]
    );
    assert_eq!(fs::read_to_string(root.join("other")).unwrap(), "new");

    unpack(root, &entries).unwrap();

    assert_eq!(
        ["f", "d", "fresh", "tmp"].map(mode),
        [0o4755, 0o777, 0o6751, 0o1777]
    );
}

#[test]
fn devices_come_with_archives_only() {
    let folder = TestFolder::new();
    let node = Entry {
        device: (1, 3),
        ..entry(EntryKind::Char, "null")
    };

    let plain = How {
        is_archive: false,
        ..KEEP
    };
    let done = copy(&archive(&[(node, "")])[..], folder.path(), plain).unwrap();

    assert_eq!((done.entries, done.skipped), (0, 1));
    assert!(!folder.path().join("null").exists());
}

#[test]
fn a_fifo_or_a_socket_is_neither_written_nor_replaced() {
    let folder = TestFolder::new();
    let root = folder.path();
    at::make_node(
        fs::File::open(root).unwrap().as_fd(),
        b"fifo",
        libc::S_IFIFO,
        (0, 0),
    )
    .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    std::os::unix::fs::symlink("fifo", root.join("link")).unwrap();
    let kind = |name: &str| fs::symlink_metadata(root.join(name)).unwrap().mode() & libc::S_IFMT;

    for name in ["fifo", "socket", "link"] {
        let mut entries = vec![(file(name), "x")];
        if name != "link" {
            entries.push((link(EntryKind::Symlink, name, "x"), ""));
            entries.push((link(EntryKind::HardLink, name, "link"), ""));
        }
        for one in entries {
            let refused = unpack(root, &[one]).unwrap_err();
            assert_eq!(refused.body().code, code::NOT_A_FILE, "{name}: {refused:?}");
        }
    }
    unpack(root, &[(entry(EntryKind::Fifo, "fifo"), "")]).unwrap();

    assert_eq!(
        ["fifo", "socket", "link"].map(kind),
        [libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFLNK]
    );
}

#[test]
fn sparse_files_of_every_dialect_arrive_with_their_holes() {
    let folder = TestFolder::new();
    let from = folder.path().join("from");
    fs::create_dir(&from).unwrap();
    // Many pieces: the old format puts four into the header and the rest behind it.
    for (name, pieces) in [("few", 2_u64), ("many", 60)] {
        let mut file = File::create(from.join(name)).unwrap();
        for piece in 0..pieces {
            file.seek(SeekFrom::Start(piece * 65_536)).unwrap();
            file.write_all(&[u8::try_from(piece + 1).unwrap(); 100])
                .unwrap();
        }
        file.set_len(pieces * 65_536 + 12_345).unwrap();
    }
    for format in [
        "--format=gnu",
        "--format=pax --sparse-version=0.0",
        "--format=pax --sparse-version=0.1",
        "--format=pax --sparse-version=1.0",
    ] {
        let to = folder.path().join("to");
        let script = format!(
            "tar {format} -S -C {} -cf {}.tar .",
            from.display(),
            to.display()
        );
        assert_eq!(crate::test_reaper::run(&["sh", "-c", &script]), 0);

        copy(File::open(to.with_extension("tar")).unwrap(), &to, KEEP).unwrap();

        for name in ["few", "many"] {
            let found = fs::metadata(to.join(name)).unwrap();
            assert!(
                fs::read(to.join(name)).unwrap() == fs::read(from.join(name)).unwrap(),
                "{format}"
            );
            assert!(found.blocks() * 512 < found.len(), "{format}");
        }
        fs::remove_dir_all(&to).unwrap();
    }
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
    let cut = copy(&bytes[..514], folder.path(), KEEP).unwrap_err();
    assert_eq!(cut.body().code, code::TAR_INVALID);
    bytes.extend([0; 20 * 512]);

    assert_eq!(copy(&bytes[..], folder.path(), KEEP).unwrap().entries, 1);
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

        copy(archive, &to, KEEP).unwrap();

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
