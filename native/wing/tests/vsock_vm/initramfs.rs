//! An initramfs (newc cpio; kernel: Documentation/driver-api/early-userspace/buffer-format.rst) with an `/init`,
//! `/dev/console` and the modules of the vsock device in load order.

use std::path::{Path, PathBuf};

const MODULES: [&str; 8] = [
    "virtio",
    "virtio_ring",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vmw_vsock_virtio_transport",
];

/// Puts the archive together; `modules` is a folder that has the modules somewhere below.
pub fn build(init: &Path, modules: &Path) -> Vec<u8> {
    let mut cpio = Cpio::default();
    cpio.entry("dev", 0o040_755, [0, 0], &[]);
    cpio.entry("dev/console", 0o020_600, [5, 1], &[]);
    cpio.entry("modules", 0o040_755, [0, 0], &[]);
    cpio.entry("init", 0o100_755, [0, 0], &std::fs::read(init).unwrap());
    for (index, name) in MODULES.into_iter().enumerate() {
        // A kernel that has one built in has no file of it.
        if let Some(file) = find(modules, name) {
            let end = file.file_name().unwrap().to_string_lossy().into_owned();
            cpio.entry(
                &format!("modules/{index:02}-{end}"),
                0o100_644,
                [0, 0],
                &std::fs::read(&file).unwrap(),
            );
        }
    }
    cpio.entry("TRAILER!!!", 0, [0, 0], &[]);
    cpio.0
}

fn find(folder: &Path, module: &str) -> Option<PathBuf> {
    for entry in std::fs::read_dir(folder).ok()?.flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() {
            if let Some(found) = find(&path, module) {
                return Some(found);
            }
        } else if name == format!("{module}.ko") || name.starts_with(&format!("{module}.ko.")) {
            return Some(path);
        }
    }
    None
}

#[derive(Default)]
struct Cpio(Vec<u8>);

impl Cpio {
    fn entry(&mut self, name: &str, mode: u32, [major, minor]: [u32; 2], content: &[u8]) {
        let inode = u32::try_from(self.0.len()).unwrap();
        let len = u32::try_from(content.len()).unwrap();
        let name_len = u32::try_from(name.len()).unwrap() + 1;
        self.0.extend(b"070701");
        for field in [
            inode, mode, 0, 0, 1, 0, len, 0, 0, major, minor, name_len, 0,
        ] {
            self.0.extend(format!("{field:08X}").bytes());
        }
        self.0.extend(name.bytes().chain([0]));
        self.pad();
        self.0.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}
