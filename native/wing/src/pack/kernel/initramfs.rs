//! The initramfs: the agent and the modules of one kernel, the same bytes for the same inputs.

use std::{
    fs::File,
    io::{Read, Seek as _},
};

use serde::Serialize;

use crate::pack::{
    codec::{
        cpio::Cpio,
        tar::{Archive, Kind},
    },
    error::{Error, Result, show},
    input::read_all,
    path::split,
};

/// Bounds of what goes into a guest's memory before anything runs there.
const INIT_MAX: u64 = 64 << 20;
const MODULE_MAX: u64 = 64 << 20;
const MODULES_MAX: usize = 1000;

/// What is told on standard output.
#[derive(Debug, Serialize)]
pub struct Report {
    bytes: u64,
    modules: usize,
}

/// `wing pack initramfs`: the agent as `/init`, the modules of a tar in its order as `/modules/NN-NAME.ko`.
pub fn run(mut kestrel: File, modules: Option<File>, out: File) -> Result<Report> {
    // Whoever wrote these files may have handed us the same position; a pipe has none.
    let _ = kestrel.rewind();
    let init = read_all(&mut kestrel, INIT_MAX, "the agent")?;
    if !init.starts_with(b"\x7fELF") {
        return Err(Error::Module {
            name: "init".into(),
            reason: "it is no ELF file".into(),
        });
    }
    let modules = modules.map(read_modules).transpose()?.unwrap_or_default();
    let mut cpio = Cpio::new(out, "the initramfs")?;
    for folder in ["dev", "modules", "proc", "run", "sys", "tmp"] {
        cpio.add(folder, 0o040_755, (0, 0), b"")?;
    }
    cpio.add("dev/console", 0o020_600, (5, 1), b"")?;
    cpio.add("dev/null", 0o020_666, (1, 3), b"")?;
    cpio.add("init", 0o100_755, (0, 0), &init)?;
    let digits = modules.len().saturating_sub(1).to_string().len().max(2);
    for (number, (name, module)) in modules.iter().enumerate() {
        cpio.add(
            &format!("modules/{number:0digits$}-{name}"),
            0o100_644,
            (0, 0),
            module,
        )?;
    }
    Ok(Report {
        bytes: cpio.finish()?,
        modules: modules.len(),
    })
}

/// Names and contents of the `.ko` files of a tar, in its order.
fn read_modules(mut file: File) -> Result<Vec<(String, Vec<u8>)>> {
    let _ = file.rewind();
    let mut archive = Archive::new(std::io::BufReader::new(file));
    let mut modules = Vec::new();
    while let Some(entry) = archive.next_entry()? {
        let shown = show(&entry.path);
        let bad = |reason: &str| Error::Module {
            name: shown.clone(),
            reason: reason.into(),
        };
        let (_, name) = split(&entry.path).ok_or_else(|| bad("it has no name"))?;
        let name = std::str::from_utf8(name)
            .ok()
            .filter(|name| is_module_name(name));
        let name = name
            .ok_or_else(|| bad("it is not named like a module"))?
            .to_owned();
        if entry.kind != Kind::File {
            return Err(bad("it is no regular file"));
        }
        if modules.len() == MODULES_MAX {
            return Err(Error::too_large("modules", MODULES_MAX as u64));
        }
        let module = read_all(archive.by_ref(), MODULE_MAX, "the modules")?;
        modules.push((name, module));
    }
    archive.expect_end_mark()?;
    Ok(modules)
}

/// `NAME.ko`, of the letters that the kernel's build allows.
fn is_module_name(name: &str) -> bool {
    name.strip_suffix(".ko").is_some_and(|stem| {
        !stem.is_empty()
            && stem.len() <= 64
            && stem
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_-.+".contains(&byte))
    })
}
