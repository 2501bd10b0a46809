//! Root trees through `wing pack image`: what the kernel and erofs-utils see in the image is what went in.
#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

mod pack_common;

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::Command,
    time::{Duration, Instant, UNIX_EPOCH},
};

use pack_common::{
    gzip, image, is_root, pack_file, sha256,
    tar::{Header, Tar},
    tree::{Mounted, assert_same, contents, extract, fsck, look, set_xattr},
    xz, zstd,
};

/// A tree with one of everything that this user may make.
fn sample(root: &Path) {
    fs::create_dir_all(root.join("a/b/c")).unwrap();
    for size in [
        0, 1, 4031, 4032, 4033, 4095, 4096, 4097, 8191, 8192, 300_000,
    ] {
        let data: Vec<u8> = (0..size)
            .map(|at: u32| at.to_le_bytes()[at as usize % 3])
            .collect();
        fs::write(root.join(format!("a/{size}")), data).unwrap();
    }
    fs::hard_link(root.join("a/4097"), root.join("a/b/twin")).unwrap();
    symlink("../a/b", root.join("a/link")).unwrap();
    symlink("x".repeat(4000), root.join("a/long-link")).unwrap();
    symlink("y".repeat(4095), root.join("a/longest-link")).unwrap();
    fs::write(root.join("n".repeat(255)), b"long name").unwrap();
    fs::write(root.join("ünïcode \u{1f980}"), b"crab").unwrap();
    fs::write(root.join("-first"), b"before the dots").unwrap();
    fs::write(root.join("suid"), b"s").unwrap();
    fs::set_permissions(root.join("suid"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(root.join("a/b"), fs::Permissions::from_mode(0o1777)).unwrap();
    let early = fs::File::create(root.join("early")).unwrap();
    early
        .set_modified(UNIX_EPOCH - Duration::new(86_400, 5))
        .unwrap();
    let late = fs::File::create(root.join("late")).unwrap();
    late.set_modified(UNIX_EPOCH + Duration::new(5_000_000_000, 999_999_999))
        .unwrap();
    set_xattr(&root.join("early"), "user.note", b"one\0two");
    set_xattr(&root.join("a/b"), "user.empty", b"");
    assert!(
        Command::new("mkfifo")
            .arg(root.join("fifo"))
            .status()
            .unwrap()
            .success()
    );
    if is_root() {
        for (name, number) in [("null", ["c", "1", "3"]), ("disk", ["b", "259", "70000"])] {
            let status = Command::new("mknod")
                .arg(root.join(name))
                .args(number)
                .status();
            assert!(status.unwrap().success());
        }
        set_xattr(
            &root.join("suid"),
            "security.capability",
            b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        );
        set_xattr(&root.join("a"), "trusted.overlay.opaque", b"y");
        set_xattr(&root.join("a/link"), "trusted.of-a-link", &[7; 300]);
        set_xattr(&root.join("a/8192"), "trusted.big", &[8; 3800]);
        std::os::unix::fs::lchown(root.join("a/link"), Some(70_000), Some(4_000_000_000)).unwrap();
        std::os::unix::fs::chown(root.join("a/1"), Some(65_535), Some(65_536)).unwrap();
    }
}

fn tar(root: &Path, flags: &[&str]) -> Vec<u8> {
    let output = Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "--sort=name"])
        .args(flags)
        .arg("-C")
        .arg(root)
        .args(["-cf", "-", "."])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// Fails the test unless the image holds what `root` holds, as far as this user can see.
#[track_caller]
fn assert_holds(image: &Path, root: &Path) {
    fsck(image);
    if let Some(mounted) = Mounted::new(image) {
        assert_same(&look(root), &look(mounted.path()));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    if extract(image, &out).is_some() {
        let plain = |root: &Path| {
            let seen = look(root).into_iter();
            seen.map(|(path, seen)| (path, seen.contents))
                .collect::<Vec<_>>()
        };
        assert_eq!(plain(root), plain(&out));
    }
}

#[test]
fn an_image_holds_what_the_archive_held() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    fs::create_dir(&root).unwrap();
    sample(&root);

    let (path, told) = image(folder.path(), &tar(&root, &["--format=pax"]));

    assert_eq!(told["format"], "rootfs");
    assert_eq!(told["bytes"], fs::metadata(&path).unwrap().len());
    assert_eq!(told["erofs_sha256"], sha256(&fs::read(&path).unwrap()));
    assert_eq!(told["skipped_count"], 0);
    assert_holds(&path, &root);
    let inodes: std::collections::BTreeSet<_> =
        look(&root).into_values().map(|seen| seen.twin).collect();
    match Command::new("dump.erofs").arg("-s").arg(&path).output() {
        Ok(output) => {
            let text = String::from_utf8(output.stdout).unwrap();
            let field = |name: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(name));
                line.map(|rest| rest.trim_start_matches(':').trim().to_owned())
            };
            assert_eq!(
                field("Filesystem inode count"),
                Some(inodes.len().to_string())
            );
            assert_eq!(
                field("Filesystem features").as_deref(),
                Some("sb_csum mtime")
            );
        }
        Err(error) => eprintln!("skipped: dump.erofs: {error}"),
    }
}

#[test]
fn compression_and_dialect_do_not_change_the_image() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("a"), vec![7; 100_000]).unwrap();
    fs::create_dir(root.join("d")).unwrap();
    symlink("a", root.join("d/l")).unwrap();
    let flags = [
        "--mtime=@1000000000",
        "--owner=0",
        "--group=0",
        "--mode=u=rwX,go=rX",
    ];
    let digest = |archive: &[u8]| image(folder.path(), archive).1["erofs_sha256"].clone();
    let gnu = tar(
        &root,
        &[&flags[..], &["--format=gnu", "--no-xattrs"]].concat(),
    );
    let pax = tar(&root, &[&flags[..], &["--format=pax"]].concat());

    let digests = [&gnu, &pax, &gzip(&gnu), &xz(&gnu), &zstd(&gnu)].map(|archive| digest(archive));

    assert!(digests.iter().all(|it| *it == digests[0]), "{digests:?}");
    assert_holds(
        &folder.path().join("image.erofs"),
        &extracted(&folder.path().join("x"), &gnu),
    );
}

fn extracted(folder: &Path, archive: &[u8]) -> std::path::PathBuf {
    fs::create_dir(folder).unwrap();
    fs::write(folder.join("a.tar"), archive).unwrap();
    let root = folder.join("root");
    fs::create_dir(&root).unwrap();
    let status = Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "-xpf"])
        .arg(folder.join("a.tar"))
        .arg("-C")
        .arg(&root)
        .status();
    assert!(status.unwrap().success());
    root
}

#[test]
fn one_file_changed_is_another_identifier() {
    let folder = tempfile::tempdir().unwrap();
    let uuid = |contents: &[u8]| {
        let (path, _) = image(folder.path(), &Tar::new().file("a", contents).end());
        fs::read(path).unwrap()[1024 + 48..][..16].to_vec()
    };

    let [one, again, other] = [&[1; 9000][..], &[1; 9000], &[2; 9000]].map(uuid);

    assert_eq!(one, again);
    assert_ne!(one, other);
}

#[test]
fn random_trees_come_through() {
    for seed in 1..=12 {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        fs::create_dir(&root).unwrap();
        random_tree(&root, seed);

        let (path, _) = image(folder.path(), &tar(&root, &["--format=pax"]));

        assert_holds(&path, &root);
    }
}

/// Numbers that look random and are the same each time (PCG).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound
    }
}

fn random_tree(root: &Path, seed: u64) {
    let mut random = Random(seed);
    let mut folders = vec![root.to_owned()];
    let mut files = Vec::new();
    for number in 0..250 {
        let folder = folders[random.below(folders.len())].clone();
        let len = [1, 8, 30, 200][random.below(4)];
        let name = format!("{number}{}", "abcdefgh".repeat(25).split_at(len).0);
        let path = folder.join(name);
        match random.below(10) {
            0..=1 => {
                fs::create_dir(&path).unwrap();
                folders.push(path.clone());
            }
            2 => symlink("t".repeat(1 + random.below(4094)), &path).unwrap(),
            3 if !files.is_empty() => {
                let of: &std::path::PathBuf = &files[random.below(files.len())];
                fs::hard_link(of, &path).unwrap();
            }
            _ => {
                let base = [0, 4096, 8192, 65_536][random.below(4)];
                let size = base + random.below(4097);
                let byte = u8::try_from(random.below(256)).unwrap();
                fs::write(&path, vec![byte; size]).unwrap();
                files.push(path.clone());
            }
        }
        if random.below(4) == 0 && !path.is_symlink() {
            let len = [3, 100, 1000][random.below(3)];
            set_xattr(&path, "user.random", &vec![1; len]);
        }
        if random.below(3) == 0 && path.is_file() {
            let seconds = u64::try_from(random.below(2_000_000_000)).unwrap();
            let time = UNIX_EPOCH + Duration::new(seconds, 123);
            fs::File::open(&path).unwrap().set_modified(time).unwrap();
        }
    }
}

#[test]
fn large_attributes_reach_across_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let value = [5; 60_000];
    let archive = Tar::new()
        .pax(&[
            ("SCHILY.xattr.trusted.huge", &value),
            ("SCHILY.xattr.user.small", b"s"),
        ])
        .file("f", [1; 5000])
        .file("g", [2; 100])
        .end();

    let (path, _) = image(folder.path(), &archive);

    fsck(&path);
    if let Some(mounted) = Mounted::new(&path) {
        let seen = look(mounted.path());
        let file = &seen[Path::new("f")];
        assert_eq!(file.xattrs[&b"trusted.huge"[..]], value);
        assert_eq!(file.contents, [1; 5000]);
        assert_eq!(seen[Path::new("g")].contents, [2; 100]);
    }
}

#[test]
fn a_hundred_thousand_entries_in_one_folder_are_no_hardship() {
    let folder = tempfile::tempdir().unwrap();
    let mut archive = Tar::new();
    for number in 0..100_000u32 {
        archive = archive.file(&format!("d/{}", number.wrapping_mul(2_654_435_761)), b"x");
    }
    let archive = archive.end();
    let input = folder.path().join("input");
    fs::write(&input, &archive).unwrap();
    let out = folder.path().join("out");
    let begin = Instant::now();

    let told = pack_file(&["image", "--out-fd", "4"], &input, &[(4, &out)]).told();

    let seconds = begin.elapsed().as_secs();
    assert!(seconds < 60, "{seconds} s: something is quadratic");
    assert_eq!(told["entries"], 100_000);
    fsck(&out);
    if let Some(mounted) = Mounted::new(&out) {
        assert_eq!(
            fs::read_dir(mounted.path().join("d")).unwrap().count(),
            100_000
        );
        assert_eq!(fs::read(mounted.path().join("d/2654435761")).unwrap(), b"x");
    }
}

#[test]
fn entries_below_symlinks_and_without_folders_find_their_place() {
    let folder = tempfile::tempdir().unwrap();
    let archive = Tar::new()
        .symlink("lib", "usr/lib")
        .file("lib/one", "1")
        .symlink("abs", "/usr/lib/")
        .file("abs/two", "2")
        .symlink("escape", "../../..")
        .file("escape/three", "3")
        .file("./deep/er/four", "4")
        .hard_link("five", "lib/one")
        .end();

    let (path, _) = image(folder.path(), &archive);

    fsck(&path);
    if let Some(tree) = contents(&path) {
        assert_eq!(tree["usr/lib/one"], b"1");
        assert_eq!(tree["usr/lib/two"], b"2");
        assert_eq!(tree["three"], b"3");
        assert_eq!(tree["deep/er/four"], b"4");
        assert_eq!(tree["five"], b"1");
        assert_eq!(tree["lib"], b"usr/lib");
    }
}

#[test]
fn later_entries_replace_earlier_ones() {
    let folder = tempfile::tempdir().unwrap();
    let archive = Tar::new()
        .file("a", [1; 9000])
        .file("b/c", "folder first")
        .file("d", "file first")
        .file("a", [2; 5000])
        .file("b", "now a file")
        .folder("d")
        .file("d/e", "now a folder")
        .end();

    let (path, told) = image(folder.path(), &archive);

    fsck(&path);
    if let Some(tree) = contents(&path) {
        let names: Vec<&str> = tree.keys().map(String::as_str).collect();
        assert_eq!(names, ["a", "b", "d", "d/e"]);
        assert_eq!(tree["a"], [2; 5000]);
        assert_eq!(tree["b"], b"now a file");
    }
    assert_eq!(told["entries"], 7);
}

#[test]
fn what_an_image_cannot_hold_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let archive = Tar::new()
        .pax(&[("SCHILY.xattr.com.apple.quarantine", b"q")])
        .file("a", "")
        .pax(&[("SCHILY.acl.access", b"user::rw-")])
        .file("b", "")
        .end();

    let (_, told) = image(folder.path(), &archive);

    assert_eq!(told["skipped_count"], 2);
    assert_eq!(told["skipped"][0]["path"], "a");
    assert_eq!(told["skipped"][1]["path"], "b");
}

#[test]
fn an_empty_archive_is_an_empty_root() {
    let folder = tempfile::tempdir().unwrap();

    let (path, told) = image(folder.path(), &Tar::new().end());

    assert_eq!(told["entries"], 0);
    fsck(&path);
    if let Some(mounted) = Mounted::new(&path) {
        assert_eq!(fs::read_dir(mounted.path()).unwrap().count(), 0);
    }
}

#[test]
fn the_old_contents_of_the_output_do_not_shine_through() {
    let folder = tempfile::tempdir().unwrap();
    let archive = Tar::new()
        .header(&Header {
            path: "f",
            kind: b'6',
            ..Header::default()
        })
        .file("a", "data")
        .end();
    let (path, told) = image(folder.path(), &archive);
    let clean = told["erofs_sha256"].clone();
    fs::write(&path, vec![0xff; 1 << 20]).unwrap();

    let (_, told) = image(folder.path(), &archive);

    assert_eq!(told["erofs_sha256"], clean);
}

/// Files with holes of every sort, none of them so large that it cannot be compared.
fn holes(root: &Path) {
    use std::os::unix::fs::FileExt as _;
    let mib = 1 << 20;
    for (name, size, pieces) in [
        ("empty", 8 * mib, &[][..]),
        ("head", 8 * mib, &[(0, 5000)]),
        ("end", 8 * mib + 77, &[(8 * mib, 77)]),
        (
            "between",
            5 * mib,
            &[(0, 4096), (2 * mib + 1, 1), (4 * mib, mib)],
        ),
        ("small", 50_000, &[(4096, 10), (40_000, 10_000)]),
        ("half", 2 * mib, &[(0, mib)]),
    ] {
        let file = fs::File::create(root.join(name)).unwrap();
        file.set_len(size).unwrap();
        for (number, &(at, len)) in pieces.iter().enumerate() {
            let byte = u8::try_from(number + 1).unwrap();
            let bytes = vec![byte; usize::try_from(len).unwrap()];
            file.write_all_at(&bytes, at).unwrap();
        }
    }
    let scattered = fs::File::create(root.join("scattered")).unwrap();
    for number in 0..50u64 {
        scattered.write_all_at(&[7; 100], number * 123_457).unwrap();
    }
    set_xattr(&root.join("scattered"), "user.note", &[5; 700]);
    fs::hard_link(root.join("head"), root.join("twin")).unwrap();
}

#[test]
fn holes_of_every_dialect_stay_holes() {
    use std::os::unix::fs::MetadataExt as _;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    fs::create_dir(&root).unwrap();
    holes(&root);
    let sizes: u64 = look(&root)
        .into_values()
        .map(|it| it.contents.len() as u64)
        .sum();
    assert!(sizes > 40 << 20);

    // Where tar does not tell of holes, only whole MiB of zeros are seen.
    for (flags, mib) in [
        (&["--format=gnu", "--no-xattrs", "-S"][..], 5),
        (&["--format=pax", "-S", "--sparse-version=0.0"], 5),
        (&["--format=pax", "-S", "--sparse-version=0.1"], 5),
        (&["--format=pax", "-S", "--sparse-version=1.0"], 5),
        (&["--format=pax"], 14),
    ] {
        let archive = tar(&root, flags);
        let (path, _) = image(folder.path(), &archive);

        fsck(&path);
        let room = path.metadata().unwrap().blocks() * 512;
        assert!(room < mib << 20, "{flags:?}: {room} bytes");
        // `fsck.erofs --extract` before 1.6 leaves holes out of a file, so the kernel is asked.
        if let Some(mounted) = Mounted::new(&path).filter(|_| flags[0] == "--format=pax") {
            assert_same(&look(&root), &look(mounted.path()));
        }
    }
}

#[test]
fn a_huge_sparse_file_takes_seconds_and_kilobytes() {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    fs::create_dir_all(root.join("var/log")).unwrap();
    let log = fs::File::create(root.join("var/log/lastlog")).unwrap();
    log.set_len(100 << 30).unwrap();
    log.write_all_at(&[1; 292], 65_534 * 292).unwrap();
    let begin = Instant::now();

    let (path, told) = image(folder.path(), &tar(&root, &["-S"]));

    assert!(
        begin.elapsed() < Duration::from_secs(20),
        "{:?}",
        begin.elapsed()
    );
    let meta = path.metadata().unwrap();
    assert!(
        meta.blocks() * 512 < 256 << 10,
        "{} bytes",
        meta.blocks() * 512
    );
    assert!(meta.len() < 32 << 20, "{} bytes to read", meta.len());
    assert_eq!(told["bytes"], meta.len());
    if let Some(mounted) = Mounted::new(&path) {
        let file = fs::File::open(mounted.path().join("var/log/lastlog")).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 100 << 30);
        let mut bytes = [9; 294];
        file.read_exact_at(&mut bytes, 65_534 * 292 - 1).unwrap();
        assert_eq!(bytes, [&[0][..], &[1; 292], &[0]].concat()[..]);
    }
}

#[test]
fn names_are_bytes() {
    use std::os::unix::ffi::OsStrExt as _;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    let name = |bytes: &'static [u8]| Path::new(std::ffi::OsStr::from_bytes(bytes));
    fs::create_dir_all(root.join(name(b"\xff\xfe"))).unwrap();
    for odd in [
        &b"a\xe4"[..],
        b"a\xf6",
        b"a\x80b",
        b"\xff\xfe/\xc3",
        b"new\nline",
    ] {
        fs::write(root.join(name(odd)), odd).unwrap();
    }
    symlink(name(b"\xff\xfe/\xc3"), root.join(name(b"l\xc3"))).unwrap();

    for flags in [&["--format=gnu", "--no-xattrs"][..], &["--format=pax"]] {
        let (path, _) = image(folder.path(), &tar(&root, flags));

        fsck(&path);
        if let Some(mounted) = Mounted::new(&path) {
            let names = |root: &Path| look(root).into_keys().collect::<Vec<_>>();
            assert_eq!(names(&root), names(mounted.path()));
            let read = fs::read(mounted.path().join(name(b"l\xc3"))).unwrap();
            assert_eq!(read, b"\xff\xfe/\xc3");
        }
    }
}

#[test]
fn an_archive_without_its_end_mark_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let whole = Tar::new().file("a", "1").folder("d").file("d/b", [2; 600]);
    let bare = whole.clone().unended();
    let digest = image(folder.path(), &whole.end()).1["erofs_sha256"].clone();
    let two = [
        Tar::new().file("a", "1").unended(),
        Tar::new().folder("d").file("d/b", [2; 600]).end(),
    ];

    for archive in [
        bare.clone(),
        [&bare[..], &[0; 512]].concat(),
        [&bare[..], &[0; 100]].concat(),
        [&bare[..], &[0; 10_240]].concat(),
        [&bare[..], &[0; 1024], &[0; 333]].concat(),
        two.concat(),
        gzip(&bare),
        [gzip(&two[0]), gzip(&two[1])].concat(),
        xz(&bare),
        zstd(&bare),
    ] {
        let (_, told) = image(folder.path(), &archive);

        assert_eq!(told["erofs_sha256"], digest);
        assert_eq!(told["entries"], 3);
    }
}

#[test]
fn a_limit_names_the_file_and_its_flag() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let sparse = |size: &str, map: &str, data: &[u8]| {
        let records = [
            ("GNU.sparse.name", &b"var/lib/huge"[..]),
            ("GNU.sparse.size", size.as_bytes()),
            ("GNU.sparse.map", map.as_bytes()),
        ];
        Tar::new().file("a", "").pax(&records).file("x", data).end()
    };
    let pieces: Vec<String> = (0..70_000).map(|at| format!("{},1", at * 2)).collect();
    let pieces = sparse("999999", &pieces.join(","), &[1; 70_000]);
    let huge = sparse("99999999999999999", "0,2", b"xy");
    let file = Tar::new()
        .file("a", "")
        .file("var/lib/huge", vec![1; 2 << 20]);
    let file = file.end();
    let bytes = &["--max-bytes", "1048576"][..];
    let cases = [
        (bytes, file.clone(), "1 MiB of contents", Some("max-bytes")),
        (bytes, gzip(&file), "1 MiB of contents", Some("max-bytes")),
        (
            &["--max-entries", "1"],
            file,
            "1 entry",
            Some("max-entries"),
        ),
        (&[], huge, "17592186044416 bytes in a file", None),
        (&[], pieces, "65536 pieces in a sparse file", None),
    ];
    for (flags, archive, limit, flag) in cases {
        let args = [&["image", "--out-fd", "4"], flags].concat();
        let ended = pack_common::pack(&args, &archive, &[(4, &out)]);

        assert_eq!(ended.fault(), "archive_too_large");
        let line: serde_json::Value = serde_json::from_str(&ended.stderr).unwrap();
        let message = line["message"].as_str().unwrap();
        assert!(
            message.starts_with("Cannot unpack \"var/lib/huge\": "),
            "{message}"
        );
        assert!(message.contains(limit), "{message}");
        assert_eq!(line["flag"].as_str(), flag);
    }
}

#[test]
fn a_wrong_extended_header_names_its_file() {
    let big = [1; 70_000];
    let half = [1; 65_000];
    let long = "n/".repeat(60);
    let header = |path: &'static str, size| Header {
        path,
        kind: b'x',
        size,
        ..Header::default()
    };
    let of_gnu = Tar::new()
        .file("a", "")
        .header(&header("var/PaxHeaders/odd", 3))
        .data(b"odd");
    let huge = Tar::new().header(&header("var/PaxHeaders.7/odd", 2 << 20));
    let attributes = Tar::new().pax(&[
        ("path", format!("{long}odd").as_bytes()),
        ("SCHILY.xattr.user.a", &half),
        ("SCHILY.xattr.user.b", &half),
        ("SCHILY.xattr.user.c", &half),
    ]);
    let attribute = Tar::new().pax(&[("path", b"var/odd"), ("SCHILY.xattr.user.a", &big)]);
    for (archive, code, words) in [
        (of_gnu, "archive_malformed", "\"var/odd\""),
        (huge, "archive_too_large", "Cannot unpack \"var/odd\""),
        (
            attributes,
            "archive_malformed",
            "n/odd\", a PAX header: its extended attributes",
        ),
        (
            attribute,
            "archive_malformed",
            "\"var/odd\", a PAX header: an extended attribute",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let ended = pack_common::run_image(folder.path(), &out, &archive.file("x", "").end());

        assert_eq!(ended.fault(), code);
        let line: serde_json::Value = serde_json::from_str(&ended.stderr).unwrap();
        let message = line["message"].as_str().unwrap();
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn an_image_may_end_with_a_bare_inode() {
    let folder = tempfile::tempdir().unwrap();
    let mut lengths = std::collections::BTreeSet::new();
    // Inodes of 32 bytes fill one block after the other; one of these counts ends at the end of a block.
    for count in 160..190 {
        let archive = (0..count).fold(Tar::new(), |tar, at| tar.file(&format!("{at}"), ""));
        let (path, told) = image(folder.path(), &archive.end());

        fsck(&path);
        lengths.insert(told["bytes"].as_u64().unwrap());
    }
    assert!(lengths.len() > 1, "{lengths:?}");
}
