use super::*;

/// A module as small as one can be: an ELF file with `.modinfo` and the table of section names.
pub fn module(lines: &[&str]) -> Vec<u8> {
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

#[derive(Default)]
struct Fake {
    modules: BTreeMap<String, Info>,
    builtin: Option<BTreeSet<String>>,
}

impl Fake {
    fn new(modules: &[(&str, &[&str])]) -> Self {
        let info = |lines: &[&str]| info("test", &module(lines)).unwrap();
        Self {
            modules: modules
                .iter()
                .map(|(name, lines)| ((*name).into(), info(lines)))
                .collect(),
            builtin: None,
        }
    }

    fn with_builtin(mut self, names: &[&str]) -> Self {
        self.builtin = Some(names.iter().map(|&name| name.into()).collect());
        self
    }

    fn order(mut self, wanted: &[&str]) -> Result<(Vec<String>, Vec<String>)> {
        let (loaded, missing) = closure(&mut self, wanted)?;
        Ok((
            loaded.into_iter().map(|module| module.name).collect(),
            missing,
        ))
    }
}

impl Catalog for Fake {
    fn has(&self, name: &str) -> bool {
        self.modules.contains_key(name)
    }
    fn info(&mut self, name: &str) -> Result<Info> {
        Ok(self.modules[name].clone())
    }
    fn builtin(&self, name: &str) -> Option<bool> {
        self.builtin.as_ref().map(|builtin| builtin.contains(name))
    }
    fn by_alias(&mut self, alias: &str) -> Result<Vec<String>> {
        let answers = |info: &&Info| info.aliases.iter().any(|it| it == alias);
        Ok(self
            .modules
            .iter()
            .filter(|(_, info)| answers(info))
            .map(|(name, _)| name.clone())
            .collect())
    }
}

#[test]
fn modinfo_is_read_from_the_elf_file() {
    let elf = module(&[
        "license=GPL",
        "depends=virtio-ring,virtio",
        "softdep=pre: a-b c post: d",
        "alias=crypto-x",
    ]);

    let info = info("test", &elf).unwrap();

    assert_eq!(info.depends, ["virtio_ring", "virtio"]);
    assert_eq!(info.before, ["a_b", "c"]);
    assert_eq!(info.aliases, ["crypto_x"]);
}

#[test]
fn damaged_elf_files_are_errors_and_never_a_panic() {
    let elf = module(&["depends=virtio"]);
    assert!(info("test", b"").is_err());
    for keep in 0..elf.len() {
        assert!(info("test", &elf[..keep]).is_err(), "{keep}");
    }
    for at in 0..elf.len() {
        for bits in [0x01, 0x80, 0xff] {
            let mut damaged = elf.clone();
            damaged[at] ^= bits;
            let _ = info("test", &damaged);
        }
    }
}

#[test]
fn modules_come_after_all_that_they_need() {
    let fake = Fake::new(&[
        ("blk", &["depends=ring,virtio"]),
        ("ring", &["depends="]),
        ("virtio", &["depends=ring"]),
        ("erofs", &["depends=lz4", "softdep=pre: crypto-crc32c none"]),
        ("lz4", &[]),
        ("crc", &["alias=crypto-crc32c"]),
        ("unneeded", &[]),
    ]);

    let (order, missing) = fake.with_builtin(&[]).order(&["blk", "erofs"]).unwrap();

    assert_eq!(order, ["ring", "virtio", "blk", "crc", "lz4", "erofs"]);
    assert!(
        missing.is_empty(),
        "a soft dependency that nothing answers to is no loss"
    );
}

#[test]
fn a_module_that_lacks_a_dependency_is_missing_too() {
    let modules: &[(&str, &[&str])] = &[("a", &["depends=b,c"]), ("b", &[])];

    let told = Fake::new(modules)
        .with_builtin(&["x"])
        .order(&["a", "x", "y"])
        .unwrap();
    let untold = Fake::new(modules).order(&["a"]).unwrap();

    assert_eq!(
        told,
        (vec!["b".into()], vec!["a".into(), "c".into(), "y".into()])
    );
    assert_eq!(
        untold,
        (vec!["b".into(), "a".into()], vec!["c".into()]),
        "c may be built in"
    );
}

#[test]
fn circles_are_errors_unless_they_are_soft() {
    let hard = Fake::new(&[("a", &["depends=b"]), ("b", &["depends=a"])]).order(&["a"]);
    let soft = Fake::new(&[("a", &["softdep=pre: b"]), ("b", &["depends=a"])]).order(&["a"]);

    assert_eq!(hard.unwrap_err().code().as_str(), "module_cycle");
    assert!(soft.is_ok());
}

#[test]
fn lists_of_built_in_modules_are_read() {
    let names = builtin_names(b"kernel/fs/ext4/ext4.ko\nkernel/crypto/crc32c-generic.ko\n\n");
    let aliases =
        builtin_aliases(b"crc32c_generic.alias=crypto-crc32c\0crc32c_generic.license=GPL\0");

    assert_eq!(
        names,
        BTreeSet::from(["ext4".into(), "crc32c_generic".into()])
    );
    assert_eq!(
        aliases.get("crypto_crc32c").map(String::as_str),
        Some("crc32c_generic")
    );
}
