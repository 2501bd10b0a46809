//! Kernels through `wing pack kernel`, `vmlinux` and `initramfs`: made-up ones everywhere, Debian's where
//! `AERIE_TEST_KERNEL_DEB` names a package.
#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

mod pack_common;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use pack_common::{Ended, gzip, lz4, pack, pack_file, sha256, tar::Tar, xz, zstd};
use serde_json::{Value, json};

const VERSION: &str = "6.12.1-test";

/// An ELF file with `.modinfo` and nothing else.
fn module(lines: &[&str]) -> Vec<u8> {
    let modinfo: Vec<u8> = lines
        .iter()
        .flat_map(|line| [line.as_bytes(), b"\0"].concat())
        .collect();
    let names = b"\0.modinfo\0.shstrtab\0";
    let table = 64 + modinfo.len() + names.len();
    let mut elf = vec![0; 64];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[16] = 1;
    elf[18] = 62;
    elf[0x28..0x30].copy_from_slice(&(table as u64).to_le_bytes());
    elf[0x3a] = 64;
    elf[0x3c] = 3;
    elf[0x3e] = 2;
    elf.extend(&modinfo);
    elf.extend(names);
    for (name, start, len) in [
        (0u32, 0, 0),
        (1, 64, modinfo.len()),
        (10, 64 + modinfo.len(), names.len()),
    ] {
        let mut header = [0; 64];
        header[..4].copy_from_slice(&name.to_le_bytes());
        header[24..32].copy_from_slice(&(start as u64).to_le_bytes());
        header[32..40].copy_from_slice(&(len as u64).to_le_bytes());
        elf.extend(header);
    }
    elf
}

/// An ELF executable of `len` bytes.
fn vmlinux(len: usize) -> Vec<u8> {
    let mut elf: Vec<u8> = (0..len).map(|at| (at / 64).to_le_bytes()[0]).collect();
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[16..20].copy_from_slice(&[2, 0, 62, 0]);
    elf
}

/// An ELF executable with all that a guest needs built in, as far as names go.
fn complete() -> Vec<u8> {
    let names = b"virtio_blk\0vmw_vsock_virtio_transport\0erofs\0ext4\0overlay\0";
    [&vmlinux(5000)[..], names, &[7; 5000]].concat()
}

/// A boot image around a packed kernel.
fn bzimage(payload: &[u8], version: &str) -> Vec<u8> {
    let setup_sectors = 8u8;
    let offset = 100u32;
    let mut image = vec![0; (usize::from(setup_sectors) + 1) * 512 + offset as usize];
    image[0x1f1] = setup_sectors;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    image[0x20e..0x210].copy_from_slice(&0x800u16.to_le_bytes());
    let text = format!("{version} (someone@somewhere) #1 SMP\0");
    image[0xa00..0xa00 + text.len()].copy_from_slice(text.as_bytes());
    image[0x248..0x24c].copy_from_slice(&offset.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    image.extend(payload);
    image.extend([0; 700]);
    image
}

/// As the kernel's build: the size behind what is packed.
fn sized(packed: Vec<u8>, plain: &[u8]) -> Vec<u8> {
    [
        packed,
        u32::try_from(plain.len()).unwrap().to_le_bytes().to_vec(),
    ]
    .concat()
}

/// A kernel with the modules that a guest needs, one of them packed in each way.
fn kernel_tree(tar: Tar) -> Tar {
    let base = format!("lib/modules/{VERSION}");
    let erofs = module(&["depends=libcrc32c", "name=erofs"]);
    let entries: [(&str, Vec<u8>); 8] = [
        (
            "kernel/drivers/block/virtio_blk.ko",
            module(&["depends=virtio-ring"]),
        ),
        (
            "kernel/drivers/virtio/virtio_ring.ko.zst",
            zstd(&module(&["depends="])),
        ),
        (
            "kernel/net/vsock/vmw_vsock_virtio_transport.ko.gz",
            gzip(&module(&["depends="])),
        ),
        ("kernel/fs/erofs/erofs.ko.xz", xz(&erofs)),
        (
            "kernel/lib/libcrc32c.ko",
            module(&["depends=", "softdep=pre: crypto-crc32c"]),
        ),
        (
            "kernel/arch/x86/crypto/crc32c-fast.ko",
            module(&["alias=crypto-crc32c", "depends="]),
        ),
        (
            "kernel/drivers/char/hw_random/virtio-rng.ko",
            module(&["depends="]),
        ),
        ("kernel/unneeded.ko", b"not even an ELF file".to_vec()),
    ];
    let tar = entries.iter().fold(tar, |tar, (path, data)| {
        tar.file(&format!("{base}/{path}"), data)
    });
    tar.file(
        &format!("{base}/modules.builtin"),
        "kernel/fs/ext4/ext4.ko\nkernel/fs/overlayfs/overlay.ko\n",
    )
    .symlink(&format!("{base}/build"), "/usr/src/linux")
}

fn deb(data: &[u8]) -> Vec<u8> {
    let mut package = b"!<arch>\n".to_vec();
    for (name, data) in [
        ("debian-binary", &b"2.0\n"[..]),
        ("control.tar.xz", b"odd"),
        ("data.tar.xz", data),
    ] {
        package.extend(
            format!(
                "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n",
                0,
                0,
                0,
                100_644,
                data.len()
            )
            .into_bytes(),
        );
        package.extend(data);
        package.resize(package.len().next_multiple_of(2), b'\n');
    }
    package
}

/// Where the outputs of a run lie.
struct Outputs {
    folder: tempfile::TempDir,
}

impl Outputs {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn kernel(&self, input: &[u8]) -> Ended {
        let (kernel, modules) = (self.path("kernel"), self.path("modules"));
        pack(
            &["kernel", "--out-fd", "4", "--modules-fd", "5"],
            input,
            &[(4, &kernel), (5, &modules)],
        )
    }

    fn vmlinux(&self, input: &[u8]) -> Ended {
        pack(
            &["vmlinux", "--out-fd", "4"],
            input,
            &[(4, &self.path("vmlinux"))],
        )
    }

    fn initramfs(&self, init: &Path) -> Ended {
        let (out, modules) = (self.path("initramfs"), self.path("modules"));
        let args = [
            "initramfs",
            "--kestrel-fd",
            "5",
            "--modules-fd",
            "6",
            "--out-fd",
            "4",
        ];
        pack(&args, b"", &[(4, &out), (5, init), (6, &modules)])
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }
}

/// Name, mode, device and contents of one entry.
type Cpio = (String, u32, (u32, u32), Vec<u8>);

/// The entries of a cpio archive.
fn cpio(mut bytes: &[u8]) -> Vec<Cpio> {
    let mut entries = Vec::new();
    loop {
        assert_eq!(&bytes[..6], b"070701");
        let field = |at: usize| {
            let text = std::str::from_utf8(&bytes[6 + at * 8..14 + at * 8]).unwrap();
            u32::from_str_radix(text, 16).unwrap()
        };
        let (mode, size, device, name_len) = (
            field(1),
            field(6) as usize,
            (field(9), field(10)),
            field(11) as usize,
        );
        let name = String::from_utf8(bytes[110..110 + name_len - 1].to_vec()).unwrap();
        let start = (110 + name_len).next_multiple_of(4);
        if name == "TRAILER!!!" {
            return entries;
        }
        entries.push((name, mode, device, bytes[start..start + size].to_vec()));
        bytes = &bytes[(start + size).next_multiple_of(4)..];
    }
}

#[test]
fn a_kernel_comes_out_of_a_tar_and_of_a_package_alike() {
    let image = bzimage(&sized(lz4(&vmlinux(10_000)), &vmlinux(10_000)), VERSION);
    let tree = kernel_tree(Tar::new().file(&format!("./boot/vmlinuz-{VERSION}"), &image)).end();
    let mut told = Vec::new();
    for input in [
        tree.clone(),
        gzip(&tree),
        deb(&xz(&tree)),
        deb(&zstd(&tree)),
        deb(&tree),
    ] {
        let outputs = Outputs::new();

        told.push(outputs.kernel(&input).told());

        assert!(outputs.read("kernel") == image);
    }
    assert!(told.iter().all(|it| *it == told[0]));
    let told = &told[0];
    assert_eq!(told["version"], VERSION);
    assert_eq!(told["format"], "bzimage");
    assert_eq!(told["sha256"], sha256(&image));
    let names: Vec<&str> = told["modules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "virtio_ring",
            "virtio_blk",
            "vmw_vsock_virtio_transport",
            "virtio_rng",
            "crc32c_fast",
            "libcrc32c",
            "erofs"
        ]
    );
    assert_eq!(
        told["modules"][1],
        json!({
            "name": "virtio_blk", "path": "kernel/drivers/block/virtio_blk.ko", "depends": ["virtio_ring"]
        })
    );
    let missing: Vec<&str> = told["missing"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it.as_str().unwrap())
        .collect();
    assert!(
        missing.contains(&"virtio_net") && !missing.contains(&"ext4"),
        "{missing:?}"
    );
}

#[test]
fn an_initramfs_holds_the_agent_and_the_modules_in_their_order() {
    let outputs = Outputs::new();
    outputs
        .kernel(&kernel_tree(Tar::new().file("vmlinux", vmlinux(5000))).end())
        .told();
    let agent = outputs.path("agent");
    fs::write(&agent, vmlinux(3001)).unwrap();

    let told = outputs.initramfs(&agent).told();

    let bytes = outputs.read("initramfs");
    assert_eq!(told, json!({ "bytes": bytes.len(), "modules": 7 }));
    let entries = cpio(&bytes);
    let names: Vec<&str> = entries.iter().map(|entry| entry.0.as_str()).collect();
    assert_eq!(
        names,
        [
            "dev",
            "modules",
            "proc",
            "run",
            "sys",
            "tmp",
            "dev/console",
            "dev/null",
            "init",
            "modules/00-virtio_ring.ko",
            "modules/01-virtio_blk.ko",
            "modules/02-vmw_vsock_virtio_transport.ko",
            "modules/03-virtio_rng.ko",
            "modules/04-crc32c_fast.ko",
            "modules/05-libcrc32c.ko",
            "modules/06-erofs.ko",
        ]
    );
    assert_eq!((entries[6].1, entries[6].2), (0o020_600, (5, 1)));
    assert_eq!((entries[8].1, &entries[8].3), (0o100_755, &vmlinux(3001)));
    assert_eq!(
        entries[15].3,
        module(&["depends=libcrc32c", "name=erofs"]),
        "unpacked"
    );
    outputs.initramfs(&agent).told();
    assert!(
        outputs.read("initramfs") == bytes,
        "the same bytes each time"
    );
}

#[test]
fn an_initramfs_is_a_cpio_to_others_too() {
    let outputs = Outputs::new();
    fs::write(outputs.path("agent"), vmlinux(3001)).unwrap();
    let out = outputs.path("initramfs");
    let args = ["initramfs", "--kestrel-fd", "5", "--out-fd", "4"];
    pack(&args, b"", &[(4, &out), (5, &outputs.path("agent"))]).told();

    match Command::new("cpio")
        .args(["-it", "--quiet"])
        .stdin(fs::File::open(&out).unwrap())
        .output()
    {
        Ok(output) => {
            assert!(output.status.success());
            assert!(
                String::from_utf8_lossy(&output.stdout)
                    .lines()
                    .any(|line| line == "init")
            );
        }
        Err(error) => eprintln!("skipped: cpio: {error}"),
    }
}

#[test]
fn every_packing_of_a_boot_image_is_undone() {
    let outputs = Outputs::new();
    let elf = vmlinux(3_000_000);
    let packed = [
        gzip(&elf),
        sized(xz(&elf), &elf),
        sized(zstd(&elf), &elf),
        sized(lz4(&elf), &elf),
    ];
    for payload in packed {
        let told = outputs.vmlinux(&bzimage(&payload, VERSION)).told();

        assert!(outputs.read("vmlinux") == elf);
        assert_eq!(told, json!({ "sha256": sha256(&elf), "bytes": elf.len() }));
    }
    outputs.vmlinux(&elf).told();
    assert!(outputs.read("vmlinux") == elf);
}

#[test]
fn what_the_tools_of_the_kernels_build_pack_is_undone() {
    let outputs = Outputs::new();
    let elf = vmlinux(3_000_000);
    fs::write(outputs.path("elf"), &elf).unwrap();
    // scripts/xz_wrap.sh, cmd_lz4, cmd_zstd22 and cmd_gzip of scripts/Makefile.lib
    for command in [
        "xz --check=crc32 --x86 --lzma2=,dict=32MiB -c",
        "lz4 -l -9 -c",
        "zstd -22 --ultra -qc",
        "gzip -n -9 -c",
    ] {
        let (tool, flags) = command.split_once(' ').unwrap();
        let input = fs::File::open(outputs.path("elf")).unwrap();
        let packed = match Command::new(tool)
            .args(flags.split(' '))
            .stdin(input)
            .output()
        {
            Ok(output) => output.stdout,
            Err(error) => {
                eprintln!("skipped: {tool}: {error}");
                continue;
            }
        };
        let payload = if tool == "gzip" {
            packed
        } else {
            sized(packed, &elf)
        };

        outputs.vmlinux(&bzimage(&payload, VERSION)).told();

        assert!(outputs.read("vmlinux") == elf, "{command}");
    }
}

#[test]
fn what_is_no_kernel_is_refused() {
    let elf = vmlinux(100_000);
    let good = bzimage(&sized(zstd(&elf), &elf), VERSION);
    let mut old = good.clone();
    old[0x206] = 3;
    old[0x207] = 2;
    old[0x206..0x208].copy_from_slice(&0x203u16.to_le_bytes());
    let mut arm = elf.clone();
    arm[18] = 183;
    let cases: Vec<(&str, &str, Vec<u8>)> = vec![
        ("kernel_malformed", "nothing", Vec::new()),
        ("kernel_malformed", "text", vec![b'x'; 100_000]),
        ("kernel_malformed", "an ELF file for ARM", arm),
        ("kernel_malformed", "a module", module(&[])),
        ("kernel_malformed", "an old boot protocol", old),
        (
            "kernel_malformed",
            "a wrong size",
            bzimage(&sized(zstd(&elf), &elf[..99]), VERSION),
        ),
        (
            "kernel_malformed",
            "something else packed",
            bzimage(&sized(zstd(b"text"), b"text"), VERSION),
        ),
        (
            "compression_unsupported",
            "bzip2",
            bzimage(b"BZh91AY&SYxxxxxxxx", VERSION),
        ),
        (
            "archive_truncated",
            "cut in the payload",
            good[..good.len() - 1000].to_vec(),
        ),
        (
            "archive_truncated",
            "cut before the payload",
            good[..4700].to_vec(),
        ),
    ];
    for (code, what, input) in cases {
        assert_eq!(Outputs::new().vmlinux(&input).fault(), code, "{what}");
    }
}

#[test]
fn each_broken_kernel_package_has_its_code() {
    let image = bzimage(&gzip(&vmlinux(100)), VERSION);
    let other = bzimage(&gzip(&vmlinux(100)), "5.4.0");
    let with = |image: &[u8]| kernel_tree(Tar::new().file("boot/vmlinuz", image));
    let replaced = |path: &str, data: &[u8]| {
        with(&image)
            .file(&format!("lib/modules/{VERSION}/{path}"), data)
            .end()
    };
    let cases: Vec<(&str, &str, Vec<u8>)> = vec![
        ("kernel_missing", "no kernel", kernel_tree(Tar::new()).end()),
        (
            "kernel_missing",
            "no kernel in a package",
            deb(&Tar::new().end()),
        ),
        (
            "kernel_malformed",
            "a kernel that is none",
            with(b"text").end(),
        ),
        (
            "kernel_malformed",
            "a strange version",
            Tar::new().file("lib/modules/$(reboot)/a.ko", "").end(),
        ),
        (
            "kernel_ambiguous",
            "two kernels",
            with(&image).file("boot/vmlinuz-2", &image).end(),
        ),
        (
            "kernel_ambiguous",
            "modules of two kernels",
            with(&image).file("lib/modules/7.0/a.ko", "").end(),
        ),
        (
            "kernel_ambiguous",
            "modules of another kernel",
            with(&other).end(),
        ),
        (
            "kernel_module_missing",
            "a kernel that has less",
            replaced("modules.builtin", b"kernel/fs/ext4/ext4.ko\n"),
        ),
        (
            "kernel_module_missing",
            "a module that lacks another",
            replaced("kernel/fs/erofs/erofs.ko", &module(&["depends=absent"])),
        ),
        (
            "module_malformed",
            "a module that is none",
            replaced("kernel/drivers/block/virtio_blk.ko", b"text"),
        ),
        (
            "module_cycle",
            "a circle",
            replaced(
                "kernel/drivers/block/virtio_blk.ko",
                &module(&["depends=virtio_blk"]),
            ),
        ),
        (
            "archive_truncated",
            "a module that is cut",
            replaced("kernel/fs/erofs/erofs.ko", &xz(&module(&[]))[..40]),
        ),
        (
            "package_malformed",
            "an archive that is no package",
            b"!<arch>\nlibc.o/         0           0     0     100644  4         `\nabcd".to_vec(),
        ),
        (
            "archive_truncated",
            "a package that is cut",
            deb(&xz(&with(&image).end()))[..1000].to_vec(),
        ),
        (
            "entry_escapes",
            "a name that leads out",
            Tar::new().file("../x", "").end(),
        ),
        ("archive_unrecognized", "text", vec![b'x'; 2000]),
    ];
    for (code, what, input) in cases {
        let ended = Outputs::new().kernel(&input);

        assert_eq!(ended.fault(), code, "{what}: {}", ended.stderr);
    }
}

#[test]
fn a_refused_kernel_names_what_it_lacks() {
    let tree = kernel_tree(Tar::new().file("vmlinux", vmlinux(100)))
        .file(&format!("lib/modules/{VERSION}/modules.builtin"), "")
        .end();

    let ended = Outputs::new().kernel(&tree);

    assert_eq!(ended.fault(), "kernel_module_missing");
    assert!(ended.stderr.contains("ext4, overlay"), "{}", ended.stderr);
}

#[test]
fn a_kernel_that_does_not_list_what_is_built_in_is_taken_where_its_image_may_hold_it() {
    let image = bzimage(&gzip(&complete()), VERSION);
    let outputs = Outputs::new();

    let told = outputs
        .kernel(
            &Tar::new()
                .file("vmlinux", vmlinux(999))
                .file("vmlinuz", &image)
                .end(),
        )
        .told();

    assert_eq!(told["version"], VERSION);
    assert_eq!(told["format"], "bzimage");
    assert_eq!(told["modules"], json!([]));
    assert!(
        told["missing"]
            .as_array()
            .unwrap()
            .iter()
            .any(|name| name == "erofs")
    );
    assert!(
        outputs.read("kernel") == image,
        "the vmlinux is for debuggers"
    );
}

#[test]
fn a_kernel_without_its_modules_is_refused_by_what_its_image_surely_lacks() {
    let lacks = |name: &str| {
        let whole = complete();
        let at = (0..whole.len())
            .find(|&at| whole[at..].starts_with(name.as_bytes()))
            .unwrap();
        [&whole[..at], b"?", &whole[at + 1..]].concat()
    };
    for name in [
        "virtio_blk",
        "vmw_vsock_virtio_transport",
        "erofs",
        "ext4",
        "overlay",
    ] {
        let plain = lacks(name);
        for (file, image) in [
            ("vmlinux-6.12.1-test", plain.clone()),
            ("vmlinuz", bzimage(&gzip(&plain), VERSION)),
            ("bzImage", bzimage(&sized(zstd(&plain), &plain), VERSION)),
        ] {
            let ended = Outputs::new().kernel(&Tar::new().file(file, &image).end());

            assert_eq!(ended.fault(), "kernel_module_missing", "{file}");
            assert!(
                ended.stderr.contains(&format!("lacks {name}\"")),
                "{}",
                ended.stderr
            );
        }
    }
}

#[test]
fn a_kernel_that_only_itself_can_unpack_is_taken_at_its_word() {
    let image = bzimage(b"BZh9 and what else bzip2 writes", VERSION);

    let told = Outputs::new()
        .kernel(&Tar::new().file("vmlinuz", &image).end())
        .told();

    assert_eq!(told["modules"], json!([]));
}

#[test]
fn an_initramfs_takes_nothing_but_an_agent_and_modules() {
    let outputs = Outputs::new();
    let agent = outputs.path("agent");
    let modules = outputs.path("modules");
    fs::write(&agent, vmlinux(3001)).unwrap();
    for (tar, code) in [
        (Tar::new().file("a.ko", "").end(), None),
        (
            Tar::new().file("a b.ko", "").end(),
            Some("module_malformed"),
        ),
        (Tar::new().file("a", "").end(), Some("module_malformed")),
        (
            Tar::new().symlink("a.ko", "b").end(),
            Some("module_malformed"),
        ),
        (
            Tar::new().file("a.ko", "").unended(),
            Some("archive_truncated"),
        ),
    ] {
        fs::write(&modules, tar).unwrap();
        let ended = outputs.initramfs(&agent);
        assert_eq!(
            (ended.code != Some(0)).then(|| ended.fault()).as_deref(),
            code
        );
    }
    fs::write(&agent, "#!/bin/sh\n").unwrap();
    fs::write(&modules, Tar::new().end()).unwrap();
    assert_eq!(outputs.initramfs(&agent).fault(), "module_malformed");
}

#[test]
fn debians_kernel_gives_a_guest_all_it_needs() {
    let Some(package) = std::env::var_os("AERIE_TEST_KERNEL_DEB").map(PathBuf::from) else {
        eprintln!("skipped: AERIE_TEST_KERNEL_DEB names no kernel package");
        return;
    };
    let outputs = Outputs::new();
    let (kernel, modules) = (outputs.path("kernel"), outputs.path("modules"));

    let told = pack_file(
        &["kernel", "--out-fd", "4", "--modules-fd", "5"],
        &package,
        &[(4, &kernel), (5, &modules)],
    )
    .told();

    let unpacked = outputs.path("unpacked");
    let status = Command::new("dpkg-deb")
        .arg("-x")
        .arg(&package)
        .arg(&unpacked)
        .status();
    assert!(status.unwrap().success());
    let version = told["version"].as_str().unwrap();
    let image = fs::read(unpacked.join(format!("boot/vmlinuz-{version}"))).unwrap();
    assert_eq!(told["sha256"], sha256(&image));
    assert!(outputs.read("kernel") == image);
    let mut loaded = BTreeSet::new();
    for module in told["modules"].as_array().unwrap() {
        for depend in module["depends"].as_array().unwrap() {
            let name = depend.as_str().unwrap();
            assert!(
                loaded.contains(name) || is_builtin(&unpacked, version, name),
                "{name} comes later or never"
            );
        }
        loaded.insert(module["name"].as_str().unwrap().to_owned());
        same_module(&unpacked, version, module, &modules);
    }
    for needed in [
        "virtio_blk",
        "vmw_vsock_virtio_transport",
        "erofs",
        "overlay",
        "ext4",
    ] {
        assert!(
            loaded.contains(needed) || is_builtin(&unpacked, version, needed),
            "{needed}"
        );
    }
    let told = pack_file(
        &["vmlinux", "--out-fd", "4"],
        &kernel,
        &[(4, &outputs.path("vmlinux"))],
    )
    .told();
    assert_eq!(told["sha256"], sha256(&outputs.read("vmlinux")));
    assert!(outputs.read("vmlinux").starts_with(b"\x7fELF"));
}

fn is_builtin(unpacked: &Path, version: &str, name: &str) -> bool {
    let list = fs::read_to_string(unpacked.join(format!("lib/modules/{version}/modules.builtin")))
        .unwrap();
    list.replace('-', "_")
        .lines()
        .any(|line| line.ends_with(&format!("/{name}.ko")))
}

/// Compares a module of the tar with what xz(1) makes of the package's.
fn same_module(unpacked: &Path, version: &str, module: &Value, tar: &Path) {
    let path = unpacked
        .join(format!("lib/modules/{version}"))
        .join(module["path"].as_str().unwrap());
    let packed = fs::read(&path).unwrap();
    let plain = if path.extension().is_some_and(|it| it == "xz") {
        Command::new("xz")
            .arg("-dc")
            .arg(&path)
            .output()
            .unwrap()
            .stdout
    } else {
        packed
    };
    let name = format!("{}.ko", module["name"].as_str().unwrap());
    let ours = Command::new("tar")
        .arg("-xOf")
        .arg(tar)
        .arg(&name)
        .output()
        .unwrap()
        .stdout;
    assert!(!ours.is_empty() && ours == plain, "{name}");
}
