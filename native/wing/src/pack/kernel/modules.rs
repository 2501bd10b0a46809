//! Kernel modules: what each says of itself in `.modinfo`, and the order in which a guest loads what it needs.
//! Names are compared as the kernel does, with `-` and `_` being one.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::pack::error::{Error, Result};

/// What a guest may need, in the order of its boot: see `native/README.md`.
pub const WANTED: [&str; 20] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_mmio",
    "vmw_vsock_virtio_transport",
    "virtio_rng",
    "virtio_balloon",
    "virtio_console",
    "erofs",
    "ext4",
    "overlay",
    "button",
    "evdev",
    "vmgenid",
    "fuse",
    "virtiofs",
    "tcp_diag",
    "crc32c_intel",
    "libcrc32c",
    "lz4_decompress",
];
/// Modules without which no guest of ours comes up.
pub const REQUIRED: [&str; 5] = [
    "virtio_blk",
    "vmw_vsock_virtio_transport",
    "erofs",
    "ext4",
    "overlay",
];

/// What `.modinfo` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Info {
    pub depends: Vec<String>,
    /// Names or aliases to load before, where they exist.
    pub before: Vec<String>,
    pub aliases: Vec<String>,
}

/// A module that will be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    pub name: String,
    pub depends: Vec<String>,
}

/// What a kernel has.
pub trait Catalog {
    /// Whether there is a module of this name.
    fn has(&self, name: &str) -> bool;
    /// What a module says of itself.
    fn info(&mut self, name: &str) -> Result<Info>;
    /// Whether the kernel itself contains it; `None` if the kernel does not tell.
    fn builtin(&self, name: &str) -> Option<bool>;
    /// Modules that answer to an alias; empty if it is built in or unknown.
    fn by_alias(&mut self, alias: &str) -> Result<Vec<String>>;
}

/// The spelling of a name in the kernel.
pub fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// The modules to load, each after what it needs, and the wanted names that the kernel does not have.
///
/// # Errors
/// `module_cycle`, `module_malformed`.
pub fn closure(catalog: &mut impl Catalog, wanted: &[&str]) -> Result<(Vec<Loaded>, Vec<String>)> {
    let mut order = Order {
        catalog,
        state: HashMap::new(),
        loaded: Vec::new(),
        missing: BTreeSet::new(),
    };
    for name in wanted {
        order.visit(name)?;
    }
    Ok((order.loaded, order.missing.into_iter().collect()))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Ready,
    Absent,
}

struct Order<'a, C> {
    catalog: &'a mut C,
    state: HashMap<String, State>,
    loaded: Vec<Loaded>,
    missing: BTreeSet<String>,
}

impl<C: Catalog> Order<'_, C> {
    /// Puts a module behind all that it needs.
    fn visit(&mut self, name: &str) -> Result<State> {
        if let Some(&state) = self.state.get(name) {
            return Ok(state);
        }
        if !self.catalog.has(name) {
            let state = match self.catalog.builtin(name) {
                Some(true) => State::Ready,
                // A kernel that does not list what is built in may well contain it.
                None => {
                    self.missing.insert(name.into());
                    State::Ready
                }
                Some(false) => {
                    self.missing.insert(name.into());
                    State::Absent
                }
            };
            self.state.insert(name.into(), state);
            return Ok(state);
        }
        self.state.insert(name.into(), State::Open);
        let info = self.catalog.info(name)?;
        for before in &info.before {
            self.visit_before(before)?;
        }
        let mut state = State::Ready;
        for depend in &info.depends {
            match self.visit(depend)? {
                State::Open => {
                    return Err(Error::ModuleCycle {
                        name: depend.clone(),
                    });
                }
                State::Absent => state = State::Absent,
                State::Ready => {}
            }
        }
        if state == State::Ready {
            self.loaded.push(Loaded {
                name: name.into(),
                depends: info.depends,
            });
        } else {
            self.missing.insert(name.into());
        }
        self.state.insert(name.into(), state);
        Ok(state)
    }

    /// A soft dependency: a name or an alias, and no harm if there is none or if it goes in a circle.
    fn visit_before(&mut self, name: &str) -> Result<()> {
        let modules = if self.catalog.has(name) {
            vec![name.to_owned()]
        } else if self.catalog.builtin(name) == Some(true) {
            Vec::new()
        } else {
            self.catalog.by_alias(name)?
        };
        for module in modules {
            let before = (self.state.clone(), self.loaded.len(), self.missing.clone());
            match self.visit(&module) {
                Err(Error::ModuleCycle { .. }) => {
                    self.state = before.0;
                    self.loaded.truncate(before.1);
                    self.missing = before.2;
                }
                result => drop(result?),
            }
        }
        Ok(())
    }
}

/// Reads `.modinfo` of a module.
///
/// # Errors
/// `module_malformed` if this is no relocatable ELF file for x86-64, or has no such section.
pub fn info(name: &str, elf: &[u8]) -> Result<Info> {
    let bad = |reason: &str| Error::Module {
        name: name.into(),
        reason: reason.into(),
    };
    if !elf.starts_with(b"\x7fELF\x02\x01")
        || number(elf, 16, 2) != Some(1)
        || number(elf, 18, 2) != Some(62)
    {
        return Err(bad("it is no relocatable ELF file for x86-64"));
    }
    let section = section(elf, b".modinfo").ok_or_else(|| bad("it has no section \".modinfo\""))?;
    let mut info = Info::default();
    for line in section.split(|&byte| byte == 0) {
        let Ok(line) = std::str::from_utf8(line) else {
            continue;
        };
        match line.split_once('=') {
            Some(("depends", names)) => {
                info.depends = names
                    .split(',')
                    .filter(|name| !name.is_empty())
                    .map(canonical)
                    .collect();
            }
            Some(("softdep", text)) => info.before.extend(soft_before(text)),
            Some(("alias", alias)) => info.aliases.push(canonical(alias)),
            _ => {}
        }
    }
    Ok(info)
}

/// Names behind `pre:` in `pre: a b post: c`.
fn soft_before(text: &str) -> Vec<String> {
    let mut before = false;
    let mut names = Vec::new();
    for word in text.split_ascii_whitespace() {
        match word {
            "pre:" => before = true,
            "post:" | "platform:" => before = false,
            name if before => names.push(canonical(name)),
            _ => {}
        }
    }
    names
}

/// Names and aliases in `modules.builtin.modinfo`: NUL-ended `MODULE.KEY=VALUE`.
pub fn builtin_aliases(text: &[u8]) -> BTreeMap<String, String> {
    let lines = text
        .split(|&byte| byte == 0)
        .filter_map(|line| std::str::from_utf8(line).ok());
    lines
        .filter_map(|line| {
            let (key, alias) = line.split_once('=')?;
            Some((canonical(alias), canonical(key.strip_suffix(".alias")?)))
        })
        .collect()
}

/// Names in `modules.builtin`: lines `kernel/fs/ext4/ext4.ko`.
pub fn builtin_names(text: &[u8]) -> BTreeSet<String> {
    let lines = text
        .split(|&byte| byte == b'\n')
        .filter_map(|line| std::str::from_utf8(line).ok());
    lines
        .filter_map(|line| {
            Some(canonical(
                line.trim().rsplit('/').next()?.strip_suffix(".ko")?,
            ))
        })
        .collect()
}

/// The bytes of a section (ELF-64 object file format).
fn section<'a>(elf: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let table = usize::try_from(number(elf, 0x28, 8)?).ok()?;
    let entry_len = usize::try_from(number(elf, 0x3a, 2)?).ok()?;
    let count = usize::try_from(number(elf, 0x3c, 2)?).ok()?;
    let names_at = usize::try_from(number(elf, 0x3e, 2)?).ok()?;
    if entry_len < 64 {
        return None;
    }
    let header = |index: usize| {
        let start = table.checked_add(index.checked_mul(entry_len)?)?;
        elf.get(start..start.checked_add(64)?)
    };
    let contents = |header: &[u8]| {
        let start = usize::try_from(number(header, 24, 8)?).ok()?;
        elf.get(start..start.checked_add(usize::try_from(number(header, 32, 8)?).ok()?)?)
    };
    let names = contents(header(names_at)?)?;
    (0..count).find_map(|index| {
        let header = header(index)?;
        let own = names.get(usize::try_from(number(header, 0, 4)?).ok()?..)?;
        (own.starts_with(name) && own.get(name.len()) == Some(&0)).then(|| contents(header))?
    })
}

fn number(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(len)?)?;
    Some(
        field
            .iter()
            .rev()
            .fold(0, |value, &byte| value << 8 | u64::from(byte)),
    )
}

#[cfg(test)]
mod tests;
