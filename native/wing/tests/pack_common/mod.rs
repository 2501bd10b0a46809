//! What the tests of `wing pack` share: running it with open files, archives that no honest tool writes, and looking
//! at trees.
#![allow(
    dead_code,
    reason = "each test program takes what it needs of this module"
)]

pub mod tar;
pub mod tree;

use std::{
    ffi::OsString,
    fs::File,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

/// How a run of `wing pack` ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Ended {
    /// What it told; fails the test if it did not succeed.
    #[track_caller]
    pub fn told(&self) -> Value {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        assert_eq!(self.stderr, "");
        serde_json::from_slice(&self.stdout).unwrap()
    }

    /// The code of its failure; fails the test if its last word is not one JSON line.
    #[track_caller]
    pub fn fault(&self) -> String {
        assert!(matches!(self.code, Some(1 | 2)), "{self:?}");
        assert_eq!(self.stderr.trim_end().lines().count(), 1, "{}", self.stderr);
        let line: Value = serde_json::from_str(&self.stderr).unwrap();
        assert!(
            line["message"]
                .as_str()
                .is_some_and(|text| !text.is_empty())
        );
        assert!(line["chain"].is_array());
        line["code"].as_str().unwrap().to_owned()
    }
}

/// Runs `wing pack` with `input` on a pipe as its standard input and each path open for reading and writing.
pub fn pack(args: &[&str], input: &[u8], files: &[(i32, &Path)]) -> Ended {
    run(args, Stdio::piped(), input, files)
}

/// As [`pack`], its standard input a file.
pub fn pack_file(args: &[&str], input: &Path, files: &[(i32, &Path)]) -> Ended {
    run(args, Stdio::from(File::open(input).unwrap()), b"", files)
}

/// The program that is tested: cargo's, or the one that is shipped.
fn wing() -> OsString {
    std::env::var_os("AERIE_TEST_WING").unwrap_or_else(|| env!("CARGO_BIN_EXE_wing").into())
}

fn run(args: &[&str], stdin: Stdio, input: &[u8], files: &[(i32, &Path)]) -> Ended {
    let redirections: String = files
        .iter()
        .map(|(fd, _)| format!(" {fd}<>\"$FILE{fd}\""))
        .collect();
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("exec \"$0\" pack \"$@\"{redirections}")])
        .arg(wing())
        .args(args)
        .envs(files.iter().map(|(fd, path)| (format!("FILE{fd}"), *path)))
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let output = std::thread::scope(|scope| {
        if let Some(mut pipe) = child.stdin.take() {
            // It may end before it has read all, which breaks the pipe.
            scope.spawn(move || drop(pipe.write_all(input)));
        }
        child.wait_with_output().unwrap()
    });
    Ended {
        code: output.status.code(),
        stdout: output.stdout,
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Makes an image of an archive; gives its path inside `folder` and what was told.
#[track_caller]
pub fn image(folder: &Path, archive: &[u8]) -> (std::path::PathBuf, Value) {
    let out = folder.join("image.erofs");
    let told = run_image(folder, &out, archive).told();
    (out, told)
}

/// Runs `wing pack image` with a scratch file.
pub fn run_image(folder: &Path, out: &Path, archive: &[u8]) -> Ended {
    let scratch = folder.join("scratch");
    pack(
        &["image", "--out-fd", "4", "--scratch-fd", "5"],
        archive,
        &[(4, out), (5, &scratch)],
    )
}

/// The code with which an archive is refused.
#[track_caller]
pub fn image_fault(archive: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    run_image(folder.path(), &folder.path().join("out"), archive).fault()
}

pub fn is_root() -> bool {
    // SAFETY: takes and changes nothing.
    unsafe { libc::geteuid() == 0 }
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

pub fn xz(data: &[u8]) -> Vec<u8> {
    let options = lzma_rust2::XzOptions::with_preset(1);
    let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(data: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest)
}

/// As the kernel's build packs: a legacy frame.
pub fn lz4(data: &[u8]) -> Vec<u8> {
    let mut packed = vec![0x02, 0x21, 0x4c, 0x18];
    for block in data.chunks(8 << 20) {
        let block = lz4_flex::block::compress(block);
        packed.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
        packed.extend(block);
    }
    packed
}

pub fn sha256(data: &[u8]) -> String {
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(data);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
