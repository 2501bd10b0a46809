//! Who this guest is, in its files: `/etc/hostname`, `/etc/hosts`, `/etc/resolv.conf`, `/etc/machine-id`.
//!
//! A guest whose files cannot be written (a full or read-only root, a FIFO in their place) lives all the same: what could not
//! be done is a warning. The lines that an image or its root brought stay.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use crate::setup::guest_file::{self, Mode};
use crate::setup::settings::SettingError;
use crate::talk::encoding::hex;

/// A file larger than this is no list of names.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// The guest's own name resolves to this, as Debian has it: 127.0.0.1 stays `localhost` backwards.
const OWN_ADDRESS: &str = "127.0.1.1";

/// The names that the files shall say.
#[derive(Clone, Debug)]
pub struct Names {
    /// The name that kestrel wrote before, if it did.
    old: Option<String>,
    hostname: String,
    machine_id: String,
    /// Resolvers of the network; none where there is no network.
    dns: Vec<IpAddr>,
}

impl Names {
    /// # Errors
    /// A machine-id that is not 32 hex digits.
    pub fn new(
        old: Option<String>,
        hostname: &str,
        machine_id: &str,
        dns: Vec<IpAddr>,
    ) -> Result<Self, SettingError> {
        if hex::<16>(machine_id).is_none() {
            return Err(SettingError::Field {
                field: "machine_id",
                expected: "32 hex digits",
            });
        }
        Ok(Self {
            old,
            hostname: hostname.to_owned(),
            machine_id: machine_id.to_ascii_lowercase(),
            dns,
        })
    }
}

/// Writes them and gives what could not be written.
pub fn apply(names: &Names) -> Vec<SettingError> {
    apply_in(Path::new("/etc"), names)
}

fn apply_in(etc: &Path, names: &Names) -> Vec<SettingError> {
    let mut failed = Vec::new();
    let mut put = |name: &str, mode: u32, content: &dyn Fn(&[u8]) -> Vec<u8>| {
        let path = etc.join(name);
        let written = match guest_file::read(&path, FILE_BYTES_MAX + 1) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(old) if old.len() as u64 > FILE_BYTES_MAX => {
                Err(io::Error::from_raw_os_error(libc::EFBIG))
            }
            old => {
                let content = content(&old.unwrap_or_default());
                guest_file::put(&path, Mode::IfNew(mode), &content)
            }
        };
        if let Err(source) = written {
            failed.push(SettingError::File { path, source });
        }
    };
    put("hostname", 0o644, &|_| {
        format!("{}\n", names.hostname).into_bytes()
    });
    put("hosts", 0o644, &|old| {
        hosts(old, names.old.as_deref(), &names.hostname)
    });
    if !names.dns.is_empty() {
        put("resolv.conf", 0o644, &|old| resolvers(old, &names.dns));
    }
    put("machine-id", 0o444, &|_| {
        format!("{}\n", names.machine_id).into_bytes()
    });
    failed
}

/// `/etc/hosts` in which the guest finds itself, and `localhost`: lines that are missing are added, only kestrel's own of
/// another name goes.
fn hosts(text: &[u8], old: Option<&str>, name: &str) -> Vec<u8> {
    if text.iter().all(u8::is_ascii_whitespace) {
        return format!(
            "127.0.0.1\tlocalhost\n{OWN_ADDRESS}\t{name}\n::1\tlocalhost ip6-localhost ip6-loopback\n"
        )
        .into_bytes();
    }
    let ours = old
        .filter(|old| *old != name)
        .map(|old| format!("{OWN_ADDRESS}\t{old}").into_bytes());
    let mut kept: Vec<u8> = text
        .split_inclusive(|&byte| byte == b'\n')
        .filter(|line| ours.as_deref() != Some(line.trim_ascii_end()))
        .flatten()
        .copied()
        .collect();
    for (wanted, address) in [("localhost", "127.0.0.1"), (name, OWN_ADDRESS)] {
        if !lists(&kept, wanted) {
            end_line(&mut kept);
            kept.extend_from_slice(format!("{address}\t{wanted}\n").as_bytes());
        }
    }
    kept
}

/// Tells whether a name has an IPv4 address in this list; one of IPv6 alone would not do for a guest without IPv6.
fn lists(hosts: &[u8], name: &str) -> bool {
    hosts.split(|&byte| byte == b'\n').any(|line| {
        let line = line.split(|&byte| byte == b'#').next().unwrap_or_default();
        let mut words = line
            .split(u8::is_ascii_whitespace)
            .filter(|word| !word.is_empty());
        let address = words.next().and_then(|word| str::from_utf8(word).ok());
        address.is_some_and(|address| address.parse::<Ipv4Addr>().is_ok())
            && words.any(|word| word.eq_ignore_ascii_case(name.as_bytes()))
    })
}

/// `/etc/resolv.conf` without resolvers on a loopback, which were the build host's; with the network's where none is left.
fn resolvers(text: &[u8], dns: &[IpAddr]) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut has_any = false;
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        match resolver(line) {
            Some(address) if address.is_loopback() || address.is_unspecified() => continue,
            Some(_) => has_any = true,
            None => {}
        }
        kept.extend_from_slice(line);
    }
    if !has_any {
        end_line(&mut kept);
        for address in dns {
            kept.extend_from_slice(format!("nameserver {address}\n").as_bytes());
        }
    }
    kept
}

/// The address of a `nameserver` line (resolv.conf(5)).
fn resolver(line: &[u8]) -> Option<IpAddr> {
    let mut words = str::from_utf8(line).ok()?.split_ascii_whitespace();
    if words.next()? != "nameserver" {
        return None;
    }
    words.next()?.split('%').next()?.parse().ok()
}

fn end_line(text: &mut Vec<u8>) {
    if text.last().is_some_and(|&byte| byte != b'\n') {
        text.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::test_folder::TestFolder;

    fn names(old: Option<&str>, hostname: &str) -> Names {
        let id = "0123456789ABCDEF0123456789abcdef";
        Names::new(old.map(str::to_owned), hostname, id, vec![]).unwrap()
    }

    #[test]
    fn the_own_name_is_added_to_whatever_hosts_holds() {
        const BOTH: &str = "127.0.0.1\tlocalhost\n127.0.1.1\tweb\n";
        for (before, after) in [
            ("10.0.0.1 kept\n", format!("10.0.0.1 kept\n{BOTH}")),
            (
                "127.0.0.1 localhost",
                "127.0.0.1 localhost\n127.0.1.1\tweb\n".to_owned(),
            ),
            (
                "127.0.0.1 localhost WEB\n",
                "127.0.0.1 localhost WEB\n".to_owned(),
            ),
            (
                "127.0.0.1\tlocalhost x web # y\n",
                "127.0.0.1\tlocalhost x web # y\n".to_owned(),
            ),
            ("# 10.1.1.1 web\n", format!("# 10.1.1.1 web\n{BOTH}")),
            ("::1 localhost web\n", format!("::1 localhost web\n{BOTH}")),
            ("web web\r\n", format!("web web\r\n{BOTH}")),
            ("10.0.0.9 webby\n", format!("10.0.0.9 webby\n{BOTH}")),
            (
                "127.0.1.1\told\n127.0.0.1 localhost\n",
                "127.0.0.1 localhost\n127.0.1.1\tweb\n".to_owned(),
            ),
            (
                "127.0.0.1 localhost old\n",
                "127.0.0.1 localhost old\n127.0.1.1\tweb\n".to_owned(),
            ),
        ] {
            let got = hosts(before.as_bytes(), Some("old"), "web");

            assert_eq!(String::from_utf8(got.clone()).unwrap(), after, "{before:?}");
            assert_eq!(hosts(&got, Some("web"), "web"), got, "{before:?} twice");
        }
        for empty in ["", "\n", " \n\n"] {
            let got = hosts(empty.as_bytes(), None, "web");
            assert!(lists(&got, "web") && lists(&got, "localhost"), "{empty:?}");
        }
        assert!(hosts(b"\xff\xfe bytes\n", None, "web").starts_with(b"\xff\xfe bytes\n"));
    }

    #[test]
    fn a_resolver_on_a_loopback_gives_way_to_the_networks() {
        for (before, after) in [
            ("", "nameserver 10.0.2.3\n"),
            ("nameserver 127.0.0.53\n", "nameserver 10.0.2.3\n"),
            (
                "nameserver 127.0.0.53\noptions edns0\nsearch .",
                "options edns0\nsearch .\nnameserver 10.0.2.3\n",
            ),
            (
                "nameserver ::1\nnameserver 127.1.2.3",
                "nameserver 10.0.2.3\n",
            ),
            ("nameserver 0.0.0.0\n", "nameserver 10.0.2.3\n"),
            (
                "# nothing\nsearch example.org\n",
                "# nothing\nsearch example.org\nnameserver 10.0.2.3\n",
            ),
            ("nameserver 9.9.9.9\n", "nameserver 9.9.9.9\n"),
            (
                "nameserver 127.0.0.1\nnameserver 9.9.9.9\n",
                "nameserver 9.9.9.9\n",
            ),
            ("nameserver fe80::1%eth0\n", "nameserver fe80::1%eth0\n"),
        ] {
            let got = resolvers(before.as_bytes(), &[IpAddr::from([10, 0, 2, 3])]);

            assert_eq!(String::from_utf8(got).unwrap(), after, "{before:?}");
        }
    }

    #[test]
    fn names_are_written_into_what_the_image_has() {
        let etc = TestFolder::new();
        let read = |name: &str| fs::read_to_string(etc.path().join(name)).unwrap();
        fs::write(etc.path().join("hostname"), "build-host\n").unwrap();
        fs::write(etc.path().join("hosts"), "10.0.0.1 kept\n").unwrap();
        symlink("/no-such-place/stub", etc.path().join("resolv.conf")).unwrap();

        let with_dns = Names {
            dns: vec![IpAddr::from([10, 0, 2, 3])],
            ..names(None, "web")
        };
        assert!(apply_in(etc.path(), &with_dns).is_empty());

        assert_eq!(read("hostname"), "web\n");
        assert!(read("hosts").starts_with("10.0.0.1 kept\n"));
        assert!(read("hosts").contains("127.0.1.1\tweb\n"));
        assert_eq!(read("resolv.conf"), "nameserver 10.0.2.3\n");
        assert_eq!(read("machine-id"), "0123456789abcdef0123456789abcdef\n");
        let mode = fs::metadata(etc.path().join("machine-id"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o444);
    }

    #[test]
    fn without_a_network_the_resolvers_stay() {
        let etc = TestFolder::new();
        fs::write(etc.path().join("resolv.conf"), "nameserver 127.0.0.53\n").unwrap();

        assert!(apply_in(etc.path(), &names(None, "web")).is_empty());

        let kept = fs::read_to_string(etc.path().join("resolv.conf")).unwrap();
        assert_eq!(kept, "nameserver 127.0.0.53\n");
    }

    #[test]
    fn a_fork_gets_its_own_name_and_foreign_lines_stay() {
        let etc = TestFolder::new();
        let read = |name: &str| fs::read_to_string(etc.path().join(name)).unwrap();
        apply_in(etc.path(), &names(None, "mother"));

        assert!(apply_in(etc.path(), &names(Some("mother"), "child")).is_empty());

        assert_eq!(read("hostname"), "child\n");
        assert!(read("hosts").contains("127.0.1.1\tchild\n"));
        assert!(!read("hosts").contains("mother"));
        assert!(read("hosts").contains("127.0.0.1\tlocalhost\n"));
    }

    #[test]
    fn each_file_that_cannot_be_written_is_one_warning_and_the_others_are_written() {
        let etc = TestFolder::new();
        let at = |name: &str| etc.path().join(name);
        fs::create_dir(at("hostname")).unwrap();
        symlink("/dev/full", at("hosts")).unwrap();
        symlink("resolv.conf", at("resolv.conf")).unwrap();
        let with_dns = Names {
            dns: vec![IpAddr::from([10, 0, 2, 3])],
            ..names(None, "web")
        };

        let failed = apply_in(etc.path(), &with_dns);

        let paths: Vec<_> = failed
            .iter()
            .filter_map(|error| match error {
                SettingError::File { path, .. } => Some(path.clone()),
                _ => None,
            })
            .collect();
        assert_eq!(paths, [at("hostname"), at("hosts"), at("resolv.conf")]);
        assert!(at("machine-id").exists());
        for odd in ["", "xyz", &"0".repeat(31), &"g".repeat(32)] {
            assert!(Names::new(None, "web", odd, vec![]).is_err(), "{odd}");
        }
    }
}
