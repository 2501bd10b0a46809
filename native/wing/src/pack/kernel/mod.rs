//! `wing pack kernel`: a kernel and the modules that a guest may need, out of a Debian package or a tar.

mod banner;
mod builtin;
pub mod bzimage;
mod deb;
pub mod initramfs;
mod modules;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, BufReader, Cursor, Read},
};

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::{
    args::Limits,
    codec::{
        decompress::{self, Format, decoder},
        tar::{self, Archive, Entry, Kind},
    },
    error::{Bound, Error, Result, show},
    hex::hex,
    input::{Limited, read_all, stdin},
    output::FileWriter,
    path::{normalize, split},
};
use banner::Banner;
use builtin::Names;
use bzimage::{HEAD_LEN, Head, Shape, each_part, is_version};
use modules::{Catalog, Info, REQUIRED, WANTED, canonical};

/// The largest module of a distribution (amdgpu) has 20 MiB, with debug data ten times that.
const MODULE_MAX: u64 = 256 << 20;
/// `modules.builtin` and its like are a few hundred KiB.
const LIST_MAX: u64 = 16 << 20;

/// What is told on standard output.
#[derive(Debug, Serialize)]
pub struct Report {
    version: String,
    format: Shape,
    sha256: String,
    bytes: u64,
    modules: Vec<ReportedModule>,
    /// Names that a guest may need and this kernel does not have, or does not tell of.
    missing: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ReportedModule {
    name: String,
    path: String,
    depends: Vec<String>,
}

/// Reads the package or tar on standard input: the kernel goes to `out` as it is, the modules to `modules`, which
/// also holds all modules for a while and must be open for reading too.
pub fn run(out: File, modules: File, limits: Limits) -> Result<Report> {
    let unreadable = |error: io::Error| Error::from_read("standard input", error);
    let mut input = stdin();
    let mut magic = Vec::with_capacity(deb::MAGIC.len());
    input
        .by_ref()
        .take(deb::MAGIC.len() as u64)
        .read_to_end(&mut magic)
        .map_err(unreadable)?;
    let (source, plain) = if magic == deb::MAGIC {
        let data = deb::data_member(input)?;
        ("the package", decompress::open(data).map_err(unreadable)?.1)
    } else {
        (
            "the archive",
            decompress::open(Cursor::new(magic).chain(input))
                .map_err(unreadable)?
                .1,
        )
    };
    let mut archive = Archive::new(Limited::new(plain, limits.bytes_max));
    let mut found = Found::new(out, modules)?;
    let mut entries = 0;
    while let Some(entry) = archive.next_entry()? {
        entries += 1;
        if entries > limits.entries_max {
            return Err(Error::limit(Bound::Entries, limits.entries_max).of_path(&entry.path));
        }
        if entry.size > limits.bytes_max {
            return Err(Error::limit(Bound::Bytes, limits.bytes_max).of_path(&entry.path));
        }
        found.take(&entry, &mut archive)?;
    }
    found.report(source)
}

/// A module as the archive holds it.
#[derive(Debug)]
struct Stored {
    path: String,
    offset: u64,
    len: usize,
}

#[derive(Debug)]
struct Kernel {
    head: Head,
    name: String,
    sha256: [u8; 32],
    bytes: u64,
}

struct Found {
    out: FileWriter,
    pool: FileWriter,
    kernel: Option<Kernel>,
    version: Option<String>,
    stored: BTreeMap<String, Stored>,
    builtin: Option<BTreeSet<String>>,
    builtin_aliases: BTreeMap<String, String>,
    /// Modules by alias, of those that carry algorithms; made when first asked for.
    aliases: Option<BTreeMap<String, Vec<String>>>,
}

impl Found {
    fn new(out: File, modules: File) -> Result<Self> {
        Ok(Self {
            out: FileWriter::new(out, "the kernel")?,
            pool: FileWriter::new(modules, "the modules")?,
            kernel: None,
            version: None,
            stored: BTreeMap::new(),
            builtin: None,
            builtin_aliases: BTreeMap::new(),
            aliases: None,
        })
    }

    /// Looks at one entry and keeps what matters.
    fn take(&mut self, entry: &Entry, contents: &mut impl Read) -> Result<()> {
        let path = normalize(&entry.path)?;
        if entry.kind != Kind::File {
            return Ok(());
        }
        let Some((folder, name)) = split(&path) else {
            return Ok(());
        };
        let below_usr = path.strip_prefix(b"usr/").unwrap_or(&path);
        let modules = below_usr.strip_prefix(b"lib/modules/").and_then(|rest| {
            let slash = rest.iter().position(|&byte| byte == b'/')?;
            Some((&rest[..slash], &rest[slash + 1..]))
        });
        if let Some((version, inside)) = modules {
            self.take_version(version)?;
            match inside {
                b"modules.builtin" => {
                    self.builtin = Some(modules::builtin_names(&read_all(
                        contents,
                        LIST_MAX,
                        "modules.builtin",
                    )?));
                }
                b"modules.builtin.modinfo" => {
                    let text = read_all(contents, LIST_MAX, "modules.builtin.modinfo")?;
                    self.builtin_aliases = modules::builtin_aliases(&text);
                }
                _ if is_kernel_name(inside) => self.take_kernel(entry, inside, contents)?,
                _ => self.take_module(entry, inside, contents)?,
            }
        } else if matches!(folder, b"" | b"boot") && is_kernel_name(name) {
            self.take_kernel(entry, name, contents)?;
        }
        Ok(())
    }

    fn take_version(&mut self, version: &[u8]) -> Result<()> {
        if !is_version(version) {
            return Err(Error::Kernel {
                reason: format!("\"{}\" is no version", show(version)),
            });
        }
        let version = String::from_utf8_lossy(version);
        match &self.version {
            None => self.version = Some(version.into_owned()),
            Some(known) if *known == version => {}
            Some(known) => {
                return Err(Error::KernelAmbiguous {
                    reason: format!("there are modules of {known} and of {version}"),
                });
            }
        }
        Ok(())
    }

    fn take_kernel(&mut self, entry: &Entry, name: &[u8], contents: &mut impl Read) -> Result<()> {
        let name = show(name);
        let packed = |name: &str| !name.starts_with("vmlinux");
        if let Some(known) = &self.kernel {
            // Beside a boot image, a vmlinux is there for debuggers.
            match (packed(&known.name), packed(&name)) {
                (true, false) => return Ok(()),
                (false, true) => self.out.restart()?,
                _ => {
                    return Err(Error::KernelAmbiguous {
                        reason: format!("there are \"{}\" and \"{name}\"", known.name),
                    });
                }
            }
        }
        let mut head = Vec::new();
        contents
            .by_ref()
            .take(HEAD_LEN as u64)
            .read_to_end(&mut head)
            .map_err(|error| Error::from_read("the archive", error))?;
        let mut parsed = Head::parse(&head)?;
        let mut banner = Banner::default();
        let mut hash = Sha256::new();
        let mut whole = Cursor::new(head).chain(contents);
        let mut buffer = vec![0; 256 << 10];
        loop {
            match whole
                .read(&mut buffer)
                .map_err(|error| Error::from_read("the archive", error))?
            {
                0 => break,
                count => {
                    hash.update(&buffer[..count]);
                    if parsed.version.is_none() {
                        banner.see(&buffer[..count]);
                    }
                    self.out.put(&buffer[..count])?;
                }
            }
        }
        parsed.version = parsed.version.or(banner.version());
        self.kernel = Some(Kernel {
            head: parsed,
            name,
            sha256: hash.finalize().into(),
            bytes: entry.size,
        });
        Ok(())
    }

    /// Puts a module aside as it is; most will not be needed, so none is unpacked yet.
    fn take_module(
        &mut self,
        entry: &Entry,
        inside: &[u8],
        contents: &mut impl Read,
    ) -> Result<()> {
        let Ok(path) = std::str::from_utf8(inside) else {
            return Ok(());
        };
        let file = path.rsplit('/').next().unwrap_or(path);
        let Some((stem, "" | ".gz" | ".xz" | ".zst")) = file.split_once(".ko") else {
            return Ok(());
        };
        let name = canonical(stem);
        // As depmod: what was put below "updates" goes before the kernel's own.
        let rank = |path: &str| !path.starts_with("updates/");
        if self
            .stored
            .get(&name)
            .is_some_and(|known| (rank(&known.path), &*known.path) < (rank(path), path))
        {
            return Ok(());
        }
        let too_large = Error::too_large("bytes in a module", MODULE_MAX).of_path(&entry.path);
        let len = usize::try_from(entry.size)
            .ok()
            .filter(|&len| len as u64 <= MODULE_MAX)
            .ok_or(too_large)?;
        let offset = self.pool.position();
        io::copy(contents, &mut self.pool)
            .map_err(|error| Error::from_read("the archive", error))?;
        self.stored.insert(
            name,
            Stored {
                path: path.into(),
                offset,
                len,
            },
        );
        Ok(())
    }

    fn report(mut self, source: &'static str) -> Result<Report> {
        let kernel = self
            .kernel
            .take()
            .ok_or(Error::KernelMissing { where_: source })?;
        self.out.finish()?;
        let version = self.own_version(&kernel)?;
        let (loaded, missing) = modules::closure(&mut self, &WANTED)?;
        let lacking: Vec<String> = REQUIRED
            .iter()
            .filter(|name| missing.iter().any(|it| it == *name))
            .map(|&name| name.into())
            .collect();
        let lacking = match self.builtin {
            Some(_) => lacking,
            None => self.absent(&kernel.head, lacking)?,
        };
        if !lacking.is_empty() {
            return Err(Error::ModuleMissing {
                version,
                names: lacking,
            });
        }
        let mut files = Vec::new();
        let mut modules = Vec::new();
        for module in loaded {
            let elf = self.elf(&module.name)?;
            let path = self
                .stored
                .get(&module.name)
                .map(|stored| stored.path.clone())
                .unwrap_or_default();
            files.push((format!("{}.ko", module.name), elf));
            modules.push(ReportedModule {
                name: module.name,
                path,
                depends: module.depends,
            });
        }
        self.pool.restart()?;
        for (name, elf) in &files {
            tar::write::append(&mut self.pool, name, elf)?;
        }
        tar::write::finish(&mut self.pool)?;
        self.pool.finish()?;
        Ok(Report {
            version,
            format: kernel.head.shape,
            sha256: hex(&kernel.sha256),
            bytes: kernel.bytes,
            modules,
            missing,
        })
    }

    /// Finds which of `names` the image itself surely has not, where nothing lists what is built in. A kernel that only
    /// itself can unpack does not tell.
    fn absent(&mut self, head: &Head, names: Vec<String>) -> Result<Vec<String>> {
        if names.is_empty() {
            return Ok(names);
        }
        let mut seen = Names::new(&names);
        let mut image = BufReader::with_capacity(256 << 10, self.out.contents()?);
        match each_part(&mut image, head, &mut |part| {
            seen.see(part);
            Ok(())
        }) {
            Ok(_) => Ok(seen.absent()),
            Err(Error::Compression { .. }) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// The version by the modules' folder, else by the kernel, else by its name.
    fn own_version(&self, kernel: &Kernel) -> Result<String> {
        let of_name = kernel
            .name
            .split_once('-')
            .map(|(_, version)| version.to_owned());
        let of_kernel = kernel.head.version.clone().or(of_name);
        match (&self.version, of_kernel) {
            (Some(modules), Some(kernel)) if *modules != kernel => Err(Error::KernelAmbiguous {
                reason: format!("the kernel is {kernel}, its modules are of {modules}"),
            }),
            (Some(version), _) => Ok(version.clone()),
            (None, Some(version)) if is_version(version.as_bytes()) => Ok(version),
            _ => Err(Error::Kernel {
                reason: "neither it nor a folder of modules tells its version".into(),
            }),
        }
    }

    /// A module, unpacked.
    fn elf(&mut self, name: &str) -> Result<Vec<u8>> {
        let bad = |reason: &str| Error::Module {
            name: name.into(),
            reason: reason.into(),
        };
        let stored = self
            .stored
            .get(name)
            .ok_or_else(|| bad("it is not there"))?;
        let bytes = self.pool.read_back(stored.offset, stored.len)?;
        match Format::detect(&bytes) {
            Format::Plain => Ok(bytes),
            format => read_all(decoder(format, &bytes[..]), MODULE_MAX, "a module"),
        }
    }
}

impl Catalog for Found {
    fn has(&self, name: &str) -> bool {
        self.stored.contains_key(name)
    }

    fn info(&mut self, name: &str) -> Result<Info> {
        modules::info(name, &self.elf(name)?)
    }

    fn builtin(&self, name: &str) -> Option<bool> {
        self.builtin.as_ref().map(|builtin| builtin.contains(name))
    }

    /// Looks into modules in a folder "crypto" only: nothing but algorithms is asked for by alias.
    fn by_alias(&mut self, alias: &str) -> Result<Vec<String>> {
        if self.builtin_aliases.contains_key(alias) {
            return Ok(Vec::new());
        }
        if self.aliases.is_none() {
            let names: Vec<String> = self
                .stored
                .iter()
                .filter(|(_, it)| it.path.contains("crypto/"))
                .map(|(name, _)| name.clone())
                .collect();
            let mut aliases: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for name in names {
                for alias in self.info(&name)?.aliases {
                    aliases.entry(alias).or_default().push(name.clone());
                }
            }
            self.aliases = Some(aliases);
        }
        Ok(self
            .aliases
            .as_ref()
            .and_then(|aliases| aliases.get(alias))
            .cloned()
            .unwrap_or_default())
    }
}

/// `vmlinuz`, `vmlinux` or `bzImage`, with or without `-VERSION`.
fn is_kernel_name(name: &[u8]) -> bool {
    [&b"vmlinuz"[..], b"vmlinux", b"bzImage"]
        .iter()
        .any(|stem| {
            name.strip_prefix(*stem)
                .is_some_and(|rest| rest.is_empty() || (rest[0] == b'-' && is_version(&rest[1..])))
        })
}
