//! Archives that lie, end too early, or want the disk: each is refused by its code, and soon.
#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

mod pack_common;

use std::{fs, path::Path, process::Command, time::Instant};

use pack_common::{
    gzip, image_fault, is_root, pack, pack_file, run_image,
    tar::{Header, Tar},
    xz, zstd,
};

#[test]
fn each_kind_of_bad_archive_has_its_code() {
    let long = "a/".repeat(130);
    let deep = Tar::new().pax(&[("path", "d/".repeat(300).as_bytes())]);
    let pax_path = |path: &str| {
        Tar::new()
            .pax(&[("path", path.as_bytes())])
            .file("x", "")
            .end()
    };
    let device = |major| {
        Tar::new()
            .header(&Header {
                path: "dev",
                kind: b'3',
                device: (major, 0),
                ..Header::default()
            })
            .end()
    };
    let cases: Vec<(&str, &str, Vec<u8>)> = vec![
        ("archive_truncated", "nothing at all", Vec::new()),
        (
            "archive_unrecognized",
            "text",
            b"hello, this is no archive".repeat(100),
        ),
        (
            "archive_unrecognized",
            "zip",
            [b"PK\x03\x04", &[7; 2000][..]].concat(),
        ),
        (
            "archive_unrecognized",
            "bzip2",
            [b"BZh91AY&SY", &[7; 2000][..]].concat(),
        ),
        (
            "archive_unrecognized",
            "text in gzip",
            gzip(&b"no archive ".repeat(100)),
        ),
        (
            "archive_truncated",
            "end behind a PAX header",
            Tar::new().file("a", "b").pax(&[("path", b"b")]).unended(),
        ),
        (
            "archive_truncated",
            "end in a header",
            Tar::new().file("a", "b").file("b", "").unended()[..1300].to_vec(),
        ),
        (
            "archive_truncated",
            "end in a file",
            Tar::new().file("a", [1; 9000]).unended()[..4000].to_vec(),
        ),
        (
            "archive_malformed",
            "garbage behind an entry",
            [Tar::new().file("a", "").unended(), vec![9; 4096]].concat(),
        ),
        (
            "entry_escapes",
            "a name with ..",
            Tar::new().file("../../etc/passwd", "x").end(),
        ),
        (
            "entry_escapes",
            "a name that ends in ..",
            Tar::new().folder("a/..").end(),
        ),
        (
            "entry_escapes",
            "a hard link with ..",
            Tar::new().hard_link("a", "../b").end(),
        ),
        ("entry_path_invalid", "NUL in a name", pax_path("a\0b")),
        (
            "entry_path_invalid",
            "a long name",
            pax_path(&"n".repeat(256)),
        ),
        (
            "entry_path_invalid",
            "a long path",
            pax_path(&"name/".repeat(900)),
        ),
        (
            "entry_path_invalid",
            "a deep path",
            deep.file("x", "").end(),
        ),
        ("entry_path_invalid", "a deep path by symlinks", {
            Tar::new()
                .folder(&long)
                .symlink("s", &long[..98])
                .file(&format!("{long}s/x"), "")
                .file(&format!("s/{}x", &long[..96]), "")
                .pax(&[("path", format!("s/{long}s/{long}x").as_bytes())])
                .file("x", "")
                .end()
        }),
        (
            "entry_path_invalid",
            "a loop of symlinks",
            Tar::new()
                .symlink("a", "b")
                .symlink("b", "a")
                .file("a/x", "")
                .end(),
        ),
        (
            "entry_path_invalid",
            "an empty symlink",
            Tar::new().symlink("a", "").end(),
        ),
        (
            "entry_path_invalid",
            "a root that is a file",
            Tar::new().file("./", "x").end(),
        ),
        ("entry_path_invalid", "a device out of range", device(4096)),
        (
            "entry_conflict",
            "a file as a folder",
            Tar::new().file("a", "").file("a/b", "").end(),
        ),
        (
            "link_target_missing",
            "a hard link to nothing",
            Tar::new().hard_link("a", "b").end(),
        ),
        (
            "link_target_missing",
            "a hard link to a folder",
            Tar::new().folder("b").hard_link("a", "b").end(),
        ),
        (
            "archive_unsupported",
            "a part of a volume",
            Tar::new()
                .header(&Header {
                    path: "a",
                    kind: b'M',
                    ..Header::default()
                })
                .end(),
        ),
        (
            "archive_unsupported",
            "an unknown type",
            Tar::new()
                .header(&Header {
                    path: "a",
                    kind: b'?',
                    ..Header::default()
                })
                .end(),
        ),
        (
            "archive_malformed",
            "PAX that is none",
            Tar::new()
                .header(&Header {
                    path: "p",
                    kind: b'x',
                    size: 10,
                    ..Header::default()
                })
                .data(b"0123456789")
                .file("a", "")
                .end(),
        ),
        (
            "archive_too_large",
            "a PAX header of 100 MiB",
            Tar::new()
                .header(&Header {
                    path: "p",
                    kind: b'x',
                    size: 100 << 20,
                    ..Header::default()
                })
                .end(),
        ),
        (
            "archive_too_large",
            "a file of a terabyte",
            Tar::new()
                .pax(&[("size", b"1099511627776")])
                .header(&Header {
                    path: "a",
                    ..Header::default()
                })
                .end(),
        ),
        (
            "archive_malformed",
            "a size beyond all",
            Tar::new()
                .pax(&[("size", b"9223372036854775807")])
                .file("a", "")
                .end(),
        ),
        (
            "archive_malformed",
            "a sparse map out of order",
            Tar::new()
                .pax(&[("GNU.sparse.size", b"99"), ("GNU.sparse.map", b"50,1,10,1")])
                .file("a", "xy")
                .end(),
        ),
        (
            "archive_too_large",
            "a sparse file of an exabyte",
            Tar::new()
                .pax(&[
                    ("GNU.sparse.size", b"1152921504606846976"),
                    ("GNU.sparse.map", b"0,2"),
                ])
                .file("a", "xy")
                .end(),
        ),
    ];
    for (code, what, archive) in cases {
        assert_eq!(image_fault(&archive), code, "{what}");
    }
}

#[test]
fn compressed_archives_cut_or_damaged_are_refused() {
    let data: Vec<u8> = (0..200_000u32)
        .flat_map(|at| (at / 5).to_le_bytes())
        .collect();
    let archive = Tar::new().file("a", &data).end();
    for packed in [gzip(&archive), xz(&archive), zstd(&archive)] {
        for keep in [20, packed.len() / 2, packed.len() - 1] {
            assert_eq!(
                image_fault(&packed[..keep]),
                "archive_truncated",
                "{keep} of {}",
                packed.len()
            );
        }
        let mut damaged = packed.clone();
        let middle = damaged.len() / 2;
        damaged[middle..middle + 16].fill(0xa5);
        let code = image_fault(&damaged);
        assert!(
            matches!(&*code, "compression_corrupt" | "archive_truncated"),
            "{code}"
        );
    }
}

#[test]
fn a_small_archive_that_unpacks_to_much_is_stopped_at_its_limit() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let zeros = vec![0; 16 << 20];
    let header = Header {
        path: "zeros",
        size: 16 << 20,
        ..Header::default()
    };
    let honest = Tar::new().header(&header).data(&zeros).end();
    // A header that says nothing of what follows behind the end.
    let hidden = [Tar::new().file("a", "").end(), zeros].concat();
    let begin = Instant::now();

    for archive in [gzip(&honest), xz(&honest), zstd(&honest), gzip(&hidden)] {
        assert!(archive.len() < 1 << 20);
        let ended = pack(
            &["image", "--out-fd", "4", "--max-bytes", "2000000"],
            &archive,
            &[(4, &out)],
        );
        assert_eq!(ended.fault(), "archive_too_large");
        assert!(fs::metadata(&out).unwrap().len() <= 2_000_000);
    }
    assert!(begin.elapsed().as_secs() < 60);
}

#[test]
fn small_files_and_shared_attributes_count_as_what_they_take() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut tiny = Tar::new();
    let value = [1; 60_000];
    let record = [&b"60029 SCHILY.xattr.user.big="[..], &value, b"\n"].concat();
    let header = Header {
        path: "g",
        kind: b'g',
        size: record.len() as u64,
        ..Header::default()
    };
    let mut shared = Tar::new().header(&header).data(&record);
    for number in 0..3000 {
        tiny = tiny.file(&format!("{number}"), "x");
        shared = shared.file(&format!("{number}"), "");
    }

    for archive in [tiny.end(), shared.end()] {
        let ended = pack(
            &["image", "--out-fd", "4", "--max-bytes", "8000000"],
            &archive,
            &[(4, &out)],
        );
        assert_eq!(ended.fault(), "archive_too_large");
    }
}

#[test]
fn too_many_entries_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let archive = (0..11)
        .fold(Tar::new(), |tar, number| tar.file(&format!("{number}"), ""))
        .end();
    let run = |limit| {
        pack(
            &["image", "--out-fd", "4", "--max-entries", limit],
            &archive,
            &[(4, &out)],
        )
    };

    assert_eq!(run("10").fault(), "archive_too_large");
    run("11").told();
}

#[test]
fn symlinks_cannot_make_lookups_take_forever() {
    // Each entry goes through 39 symlinks of 2000 names.
    let mut archive = Tar::new().folder("a");
    let maze = "a/../".repeat(800);
    for number in 0..39 {
        let next = if number == 38 {
            "a".into()
        } else {
            format!("s{}", number + 1)
        };
        archive = archive
            .pax(&[("linkpath", format!("{maze}{next}").as_bytes())])
            .symlink(&format!("s{number}"), "x");
    }
    for number in 0..20_000 {
        archive = archive.file(&format!("s0/{number}"), "");
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let args = ["image", "--out-fd", "4", "--max-entries", "50000"];
    let begin = Instant::now();

    let ended = pack(&args, &archive.end(), &[(4, &out)]);

    assert_eq!(ended.fault(), "archive_too_large");
    assert!(begin.elapsed().as_secs() < 30, "{:?}", begin.elapsed());
}

#[test]
fn random_damage_ends_in_an_image_or_a_fault() {
    let archive = Tar::new()
        .folder("d")
        .file("d/a", [1; 5000])
        .pax(&[("SCHILY.xattr.user.x", b"y"), ("mtime", b"1.5")])
        .symlink("d/l", "a")
        .hard_link("d/h", "d/a")
        .end();
    let archives = [
        archive.clone(),
        gzip(&archive),
        xz(&archive),
        zstd(&archive),
    ];
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut seed = 7u64;
    for round in 0..200 {
        let mut damaged = archives[round % archives.len()].clone();
        for _ in 0..=round % 4 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = usize::try_from(seed >> 33).unwrap() % damaged.len();
            damaged[at] ^= 1 << (seed % 8);
        }
        let ended = run_image(folder.path(), &out, &damaged);
        match ended.code {
            Some(0) => drop(ended.told()),
            _ => assert_ne!(ended.fault(), "internal"),
        }
    }
}

#[test]
fn a_wrong_command_line_is_a_usage_error() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let read_only = folder.path().join("folder");
    fs::create_dir(&read_only).unwrap();
    let files: &[(i32, &Path)] = &[(4, &out)];
    for args in [
        &[][..],
        &["bake"],
        &["image"],
        &["image", "--out-fd", "9"],
        &["image", "--out-fd", "four"],
        &["image", "--out-fd", "4", "--scratch-fd", "4"],
        &["image", "--out-fd", "4", "--max-bytes", "-1"],
        &["image", "--out-fd", "4", "--colour", "red"],
        &["kernel", "--out-fd", "4"],
        &["initramfs", "--out-fd", "4"],
        &["probe", "--deep", "1"],
    ] {
        let ended = pack(args, b"", files);
        assert_eq!(
            (ended.fault().as_str(), ended.code),
            ("usage", Some(2)),
            "{args:?}"
        );
    }
}

#[test]
fn files_must_be_open_for_what_is_done_with_them() {
    let folder = tempfile::tempdir().unwrap();
    let run = |redirection: &str| {
        let script = format!("exec \"$0\" pack image --out-fd 4 4{redirection}\"$1\" </dev/null");
        let output = Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_wing")])
            .arg(folder.path().join("out"))
            .output()
            .unwrap();
        String::from_utf8(output.stderr).unwrap()
    };

    assert!(run(">").contains("is not open for reading and writing"));
    assert!(run("<").contains("is not open for reading and writing"));
    assert!(run("<>").contains("archive_truncated"));
}

#[test]
fn an_output_that_takes_nothing_is_told() {
    let archive = Tar::new().file("a", [1; 100_000]).end();

    let ended = pack(
        &["image", "--out-fd", "4"],
        &archive,
        &[(4, Path::new("/dev/null"))],
    );

    assert_eq!(ended.fault(), "write_failed");
}

#[test]
fn an_input_that_cannot_be_read_is_told_with_its_cause() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");

    let ended = pack_file(&["image", "--out-fd", "4"], folder.path(), &[(4, &out)]);

    assert_eq!(ended.fault(), "read_failed");
    let line: serde_json::Value = serde_json::from_str(&ended.stderr).unwrap();
    assert_eq!(line["message"], "Cannot read standard input");
    assert!(line["chain"][0].as_str().unwrap().contains("directory"));
}

#[test]
fn a_full_disk_is_told() {
    if !is_root() {
        eprintln!("skipped: mounting a small file system needs root");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"])
        .arg(folder.path())
        .status();
    assert!(mounted.unwrap().success());
    let archive = Tar::new().file("a", vec![1; 4 << 20]).end();

    let ended = pack(
        &["image", "--out-fd", "4"],
        &archive,
        &[(4, &folder.path().join("out"))],
    );

    let status = Command::new("umount").arg(folder.path()).status();
    assert!(status.unwrap().success());
    assert_eq!(ended.fault(), "disk_full");
}

#[test]
fn the_kernel_is_asked_what_it_offers() {
    let told = pack(&["probe"], b"", &[]).told();

    assert!(told["landlock_abi"].is_u64());
    assert_eq!(told["seccomp"], true);
}
