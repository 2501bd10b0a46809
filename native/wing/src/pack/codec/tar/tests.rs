use std::{io::Read as _, path::Path, process::Command};

use super::*;

fn list(archive: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>> {
    let mut archive = Archive::new(archive);
    let mut entries = Vec::new();
    while let Some(entry) = archive.next_entry()? {
        let mut data = Vec::new();
        archive
            .read_to_end(&mut data)
            .map_err(|error| Error::from_read("test", error))?;
        assert_eq!(data.len() as u64, entry.size);
        entries.push((entry, data));
    }
    Ok(entries)
}

fn tar(folder: &Path, flags: &[&str]) -> Vec<u8> {
    let output = Command::new("tar")
        .arg("-C")
        .arg(folder)
        .args(flags)
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

#[test]
fn every_dialect_of_gnu_tar_reads_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let long = "long/".repeat(40) + &"n".repeat(120);
    std::fs::create_dir_all(folder.path().join(&long).parent().unwrap()).unwrap();
    std::fs::write(folder.path().join(&long), b"deep").unwrap();
    std::os::unix::fs::symlink(&long, folder.path().join("link")).unwrap();
    std::fs::hard_link(folder.path().join(&long), folder.path().join("twin")).unwrap();

    for format in ["gnu", "pax", "oldgnu"] {
        let flags = [
            &format!("--format={format}"),
            "--sort=name",
            "--owner=:3000000",
            "--group=:12",
        ];
        let entries = list(&tar(folder.path(), &flags)).unwrap();

        let deep = entries
            .iter()
            .find(|(entry, _)| entry.path.ends_with(b"nnn"))
            .unwrap();
        assert_eq!(deep.0.path, format!("./{long}").as_bytes(), "{format}");
        assert_eq!(
            (deep.0.uid, deep.0.gid, &deep.1[..]),
            (3_000_000, 12, &b"deep"[..])
        );
        let link = entries
            .iter()
            .find(|(entry, _)| entry.kind == Kind::Symlink)
            .unwrap();
        assert_eq!(link.0.link, long.as_bytes());
        let twin = entries
            .iter()
            .find(|(entry, _)| entry.kind == Kind::HardLink)
            .unwrap();
        assert_eq!(twin.0.link, deep.0.path);
    }
}

#[test]
fn sparse_files_of_every_dialect_are_expanded() {
    use std::os::unix::fs::FileExt as _;
    let folder = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(folder.path().join("holes")).unwrap();
    for piece in 0..40u64 {
        file.write_all_at(&[b'x'; 5000], piece * 100_000 + 4096)
            .unwrap();
    }
    file.set_len(5_000_000).unwrap();
    let expected = std::fs::read(folder.path().join("holes")).unwrap();

    for flags in [
        &["--format=gnu", "-S"][..],
        &["--format=pax", "-S", "--sparse-version=0.0"],
        &["--format=pax", "-S", "--sparse-version=0.1"],
        &["--format=pax", "-S", "--sparse-version=1.0"],
    ] {
        let archive = tar(folder.path(), flags);
        assert!(archive.len() < 1_000_000, "the file system keeps holes");

        let entries = list(&archive).unwrap();

        let (entry, data) = entries
            .iter()
            .find(|(entry, _)| entry.kind == Kind::File)
            .unwrap();
        assert_eq!(entry.path, b"./holes", "{flags:?}");
        assert!(*data == expected, "{flags:?}");
    }
}

#[test]
fn a_tar_cut_within_an_entry_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a"), vec![1; 3000]).unwrap();
    std::fs::write(folder.path().join("b"), b"").unwrap();
    let archive = tar(folder.path(), &["--format=pax", "-b1"]);

    let end = archive.len() - 1024;
    // Where an entry with its extension header, data and padding ends.
    let borders = whole_entries(&archive[..end]);

    for keep in 0..end {
        assert_eq!(
            list(&archive[..keep]).is_ok(),
            borders.contains(&keep),
            "{keep} of {}",
            archive.len()
        );
    }
    assert_eq!(borders.len(), 3, "two files in a folder");
    for keep in end..=archive.len() {
        assert_eq!(list(&archive[..keep]).unwrap().len(), 3, "{keep}");
    }
}

/// Where entries end, by their headers.
fn whole_entries(archive: &[u8]) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut at = 0;
    while at < archive.len() {
        let header = &archive[at..at + BLOCK];
        let size = usize::try_from(header::parse_number(&header[124..136]).unwrap()).unwrap();
        at += BLOCK + size.next_multiple_of(BLOCK);
        if header[156] != b'x' {
            ends.push(at);
        }
    }
    ends
}

#[test]
fn random_damage_is_never_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a"), vec![1; 3000]).unwrap();
    std::os::unix::fs::symlink("a", folder.path().join("b")).unwrap();
    let archives = [
        tar(folder.path(), &["--format=pax"]),
        tar(folder.path(), &["--format=gnu"]),
    ];
    let mut seed = 1u64;

    for round in 0..4_000 {
        let mut archive = archives[round % 2].clone();
        for _ in 0..=round % 5 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = usize::try_from(seed >> 33).unwrap() % archive.len();
            archive[at] = archive[at].wrapping_add(u8::try_from(seed & 0xff).unwrap());
        }
        let _ = list(&archive);
    }
}

#[test]
fn what_is_no_tar_is_told_apart_from_a_broken_one() {
    assert_eq!(
        list(&[b'x'; 2048]).unwrap_err().code().as_str(),
        "archive_unrecognized"
    );
    assert_eq!(
        list(b"short").unwrap_err().code().as_str(),
        "archive_unrecognized"
    );
    assert_eq!(list(b"").unwrap_err().code().as_str(), "archive_truncated");
}

#[test]
fn our_own_tar_is_a_tar() {
    let mut archive = Vec::new();
    write::append(&mut archive, "one.ko", &[7; 700]).unwrap();
    write::append(&mut archive, "two.ko", b"").unwrap();
    write::finish(&mut archive).unwrap();

    let entries = list(&archive).unwrap();

    assert_eq!(entries.len(), 2);
    assert_eq!(
        (&entries[0].0.path[..], &entries[0].1[..]),
        (&b"one.ko"[..], &[7; 700][..])
    );
}
