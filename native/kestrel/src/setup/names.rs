//! Who this guest is, in its files: `/etc/hostname`, `/etc/hosts`, `/etc/resolv.conf`, `/etc/machine-id`.
//!
//! A guest whose files cannot be written (a full or read-only root, a FIFO in their place) lives all the same: what could not
//! be done is a warning. The lines that an image or its root brought stay.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Mutex;

use crate::setup::guest_file::{self, Mode};
use crate::setup::network::Cards;
use crate::setup::settings::SettingError;
use crate::sys::lock;
use crate::talk::encoding::hex;

/// A file larger than this is no list of names.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// The guest's own name resolves to this, as Debian has it: 127.0.0.1 stays `localhost` backwards.
const OWN_ADDRESS: &str = "127.0.1.1";

/// The names that the files shall say.
#[derive(Clone, Debug, Default)]
pub struct Names {
    hostname: String,
    machine_id: String,
    /// Addresses of the network that the guest's own name stands for; none where there is no network.
    addresses: Vec<IpAddr>,
    resolvers: Resolvers,
}

/// What kestrel has written of them last.
#[derive(Debug, Default)]
pub struct Written(Mutex<Option<Names>>);

/// What a network says to `/etc/resolv.conf`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Resolvers {
    dns: Vec<IpAddr>,
    search: Vec<String>,
}

impl Names {
    /// # Errors
    /// A machine-id that is not 32 hex digits.
    pub fn new(hostname: &str, machine_id: &str) -> Result<Self, SettingError> {
        if hex::<16>(machine_id).is_none() {
            return Err(SettingError::Field {
                field: "machine_id",
                expected: "32 hex digits",
            });
        }
        Ok(Self {
            hostname: hostname.to_owned(),
            machine_id: machine_id.to_ascii_lowercase(),
            ..Self::default()
        })
    }

    /// The same in this network.
    #[must_use]
    pub fn with_network(self, cards: &Cards) -> Self {
        Self {
            addresses: cards.own_addresses(),
            resolvers: Resolvers::of(cards),
            ..self
        }
    }
}

impl Resolvers {
    fn of(cards: &Cards) -> Self {
        Self {
            dns: cards.dns.clone(),
            search: cards.search.clone(),
        }
    }
}

impl Written {
    /// Writes all of them and gives what could not be written.
    pub fn apply(&self, names: Names) -> Vec<SettingError> {
        let mut last = lock(&self.0);
        let failed = write(Path::new("/etc"), &names, last.as_ref(), true);
        *last = Some(names);
        failed
    }

    /// Writes what a network says that has become another since, and gives what could not be written.
    pub fn apply_network(&self, cards: &Cards) -> Vec<SettingError> {
        let mut last = lock(&self.0);
        let Some(names) = last.clone() else {
            return vec![];
        };
        let names = names.with_network(cards);
        let failed = write(Path::new("/etc"), &names, last.as_ref(), false);
        *last = Some(names);
        failed
    }
}

/// Writes the files; `old` is what was written before. The names of the guest itself are not written without `own`.
fn write(etc: &Path, names: &Names, old: Option<&Names>, own: bool) -> Vec<SettingError> {
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
    if own {
        put("hostname", 0o644, &|_| {
            format!("{}\n", names.hostname).into_bytes()
        });
    }
    let old_name = old.map(|old| old.hostname.as_str());
    put("hosts", 0o644, &|text| {
        hosts(text, old_name, &names.hostname, &names.addresses)
    });
    // In a guest that wakes, what is there by now can be its own: only what kestrel wrote gives way, and only to something else.
    let old = old
        .map(|old| &old.resolvers)
        .filter(|old| !old.dns.is_empty());
    if !names.resolvers.dns.is_empty() && old != Some(&names.resolvers) {
        put("resolv.conf", 0o644, &|text| {
            resolvers(text, &names.resolvers, old)
        });
    }
    if own {
        put("machine-id", 0o444, &|_| {
            format!("{}\n", names.machine_id).into_bytes()
        });
    }
    failed
}

/// `/etc/hosts` in which the guest finds itself, and `localhost`: lines that are missing are added, only kestrel's own of
/// another name or address go.
fn hosts(text: &[u8], old: Option<&str>, name: &str, addresses: &[IpAddr]) -> Vec<u8> {
    let own: Vec<String> = match addresses {
        [] => vec![format!("{OWN_ADDRESS}\t{name}\n")],
        _ => addresses
            .iter()
            .map(|ip| format!("{ip}\t{name}\n"))
            .collect(),
    };
    if text.iter().all(u8::is_ascii_whitespace) {
        let own = own.concat();
        return format!("127.0.0.1\tlocalhost\n{own}::1\tlocalhost ip6-localhost ip6-loopback\n")
            .into_bytes();
    }
    let stands = |line: &[u8]| own.iter().any(|own| own.trim_end().as_bytes() == line);
    let is_ours = |line: &[u8]| {
        let line = line.trim_ascii_end();
        let is_old = old.is_some_and(|old| old != name && is_own_line(line, old));
        is_old || (is_own_line(line, name) && !stands(line))
    };
    let mut kept: Vec<&[u8]> = text
        .split_inclusive(|&byte| byte == b'\n')
        .filter(|line| !is_ours(line))
        .collect();
    // The first line with a name is the one that counts, so an address of the network comes before what the image says.
    let mut first = kept.iter().position(|line| lists(line, name));
    for line in &own {
        if kept
            .iter()
            .any(|kept| kept.trim_ascii_end() == line.trim_end().as_bytes())
        {
            continue;
        }
        match first {
            Some(_) if addresses.is_empty() => {}
            Some(at) => {
                kept.insert(at, line.as_bytes());
                first = Some(at + 1);
            }
            None => kept.push(line.as_bytes()),
        }
    }
    let mut whole = Vec::new();
    if !kept.iter().any(|line| lists(line, "localhost")) {
        // Before the guest's own, as every list has it.
        let at = kept
            .iter()
            .position(|line| own.iter().any(|own| own.as_bytes() == *line));
        kept.insert(at.unwrap_or(kept.len()), b"127.0.0.1\tlocalhost\n");
    }
    for line in kept {
        end_line(&mut whole);
        whole.extend_from_slice(line);
    }
    whole
}

/// Tells whether a line is one as kestrel writes it for a guest's own name: an address, a tab, the name.
fn is_own_line(line: &[u8], name: &str) -> bool {
    let text = str::from_utf8(line).ok();
    text.and_then(|text| text.split_once('\t'))
        .is_some_and(|(ip, of)| {
            of == name && !name.eq_ignore_ascii_case("localhost") && ip.parse::<IpAddr>().is_ok()
        })
}

/// Tells whether a line gives a name an IPv4 address; one of IPv6 alone would not do for a guest without IPv6.
fn lists(line: &[u8], name: &str) -> bool {
    let line = line.split(|&byte| byte == b'#').next().unwrap_or_default();
    let mut words = line
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    let address = words.next().and_then(|word| str::from_utf8(word).ok());
    address.is_some_and(|address| address.parse::<Ipv4Addr>().is_ok())
        && words.any(|word| word.eq_ignore_ascii_case(name.as_bytes()))
}

/// `/etc/resolv.conf` with the network's resolvers and domains. In a new guest no others are left, since they are those of
/// the machine that built the image; in one that wakes only those of the network that it was in before go.
fn resolvers(text: &[u8], new: &Resolvers, old: Option<&Resolvers>) -> Vec<u8> {
    let goes = |line: &[u8]| {
        let text = str::from_utf8(line).unwrap_or_default();
        let mut words = text.split_ascii_whitespace();
        match (words.next(), old) {
            (Some("nameserver"), None) => true,
            (Some("nameserver"), Some(old)) => {
                let address = words.next().and_then(|word| word.parse().ok());
                address.is_some_and(|address| old.dns.contains(&address))
            }
            (Some("search" | "domain"), None) => true,
            (Some("search"), Some(old)) => words.eq(old.search.iter().map(String::as_str)),
            _ => false,
        }
    };
    let mut kept: Vec<u8> = text
        .split_inclusive(|&byte| byte == b'\n')
        .filter(|line| !goes(line))
        .flatten()
        .copied()
        .collect();
    end_line(&mut kept);
    if !new.search.is_empty() {
        kept.extend_from_slice(format!("search {}\n", new.search.join(" ")).as_bytes());
    }
    for address in &new.dns {
        kept.extend_from_slice(format!("nameserver {address}\n").as_bytes());
    }
    kept
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

    use aerie_protocol::message::Nic;

    use super::*;
    use crate::test_folder::TestFolder;

    const ID: &str = "0123456789ABCDEF0123456789abcdef";

    fn names(hostname: &str) -> Names {
        Names::new(hostname, ID).unwrap()
    }

    fn network(address: &str, dns: &[&str], search: &[&str]) -> Cards {
        let text = |text: &&str| (*text).to_owned();
        let nic = Nic {
            address: (!address.is_empty()).then(|| address.to_owned()),
            dns: dns.iter().map(text).collect(),
            search: search.iter().map(text).collect(),
            ..Nic::default()
        };
        Cards::of(&[nic]).unwrap()
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
            let got = hosts(before.as_bytes(), Some("old"), "web", &[]);

            assert_eq!(String::from_utf8(got.clone()).unwrap(), after, "{before:?}");
            assert_eq!(
                hosts(&got, Some("web"), "web", &[]),
                got,
                "{before:?} twice"
            );
        }
        for empty in ["", "\n", " \n\n"] {
            let got = hosts(empty.as_bytes(), None, "web", &[]);
            let has = |name| {
                got.split(|&byte| byte == b'\n')
                    .any(|line| lists(line, name))
            };
            assert!(has("web") && has("localhost"), "{empty:?}");
        }
        assert!(hosts(b"\xff\xfe bytes\n", None, "web", &[]).starts_with(b"\xff\xfe bytes\n"));
    }

    #[test]
    fn the_own_name_stands_for_the_networks_addresses() {
        const LOCAL: &str = "127.0.0.1\tlocalhost\n";
        const V4: &str = "10.42.0.5\tweb\n";
        const V6: &str = "fd00::5\tweb\n";
        for (before, after) in [
            // What an image or its build host left.
            ("10.0.0.1 kept\n", format!("10.0.0.1 kept\n{LOCAL}{V4}{V6}")),
            (
                "127.0.0.1 localhost web\n::1 localhost\n",
                format!("{V4}{V6}127.0.0.1 localhost web\n::1 localhost\n"),
            ),
            (
                "127.0.0.1 localhost\n127.0.1.1 build.example build",
                format!("127.0.0.1 localhost\n127.0.1.1 build.example build\n{V4}{V6}"),
            ),
            // What kestrel wrote before: without a network, in another one, under another name.
            (
                "127.0.0.1 localhost\n127.0.1.1\tweb\n",
                format!("127.0.0.1 localhost\n{V4}{V6}"),
            ),
            (
                "127.0.0.1 localhost\n10.42.0.9\tweb\nfd00::9\tweb\n",
                format!("127.0.0.1 localhost\n{V4}{V6}"),
            ),
            (
                "127.0.0.1 localhost\n10.42.0.9\told\nfd00::9\told\n# end\n",
                format!("127.0.0.1 localhost\n# end\n{V4}{V6}"),
            ),
            // The same already, one of both, and lines of others.
            (
                "127.0.0.1 localhost\n10.42.0.5\tweb\nfd00::5\tweb\n# end\n",
                format!("127.0.0.1 localhost\n{V4}{V6}# end\n"),
            ),
            (
                "127.0.0.1 localhost\n10.42.0.5\tother\n10.42.0.6\tweb other\n",
                format!("127.0.0.1 localhost\n10.42.0.5\tother\n{V4}{V6}10.42.0.6\tweb other\n"),
            ),
            (
                "",
                format!("{LOCAL}{V4}{V6}::1\tlocalhost ip6-localhost ip6-loopback\n"),
            ),
        ] {
            let addresses = ["10.42.0.5", "fd00::5"].map(|ip| ip.parse().unwrap());

            let got = hosts(before.as_bytes(), Some("old"), "web", &addresses);

            assert_eq!(String::from_utf8(got.clone()).unwrap(), after, "{before:?}");
            assert_eq!(
                hosts(&got, Some("web"), "web", &addresses),
                got,
                "{before:?} twice"
            );
            let away = String::from_utf8(hosts(&got, None, "web", &[])).unwrap();
            assert!(
                !away.contains(V4) && !away.contains(V6),
                "{before:?}: {away}"
            );
        }
    }

    #[test]
    fn resolvers_of_the_build_host_give_way_to_the_networks() {
        for (before, after) in [
            ("", ""),
            ("nameserver 127.0.0.53\n", ""),
            (
                "nameserver 127.0.0.53\noptions edns0\nsearch .",
                "options edns0\n",
            ),
            ("nameserver ::1\nnameserver 127.1.2.3", ""),
            ("nameserver 0.0.0.0\n", ""),
            (
                "# nothing\nsearch corp.example\ndomain corp.example\n",
                "# nothing\n",
            ),
            ("nameserver 9.9.9.9\n", ""),
            (
                "  nameserver\t192.168.1.1 \nnameserver fe80::1%eth0\n# kept",
                "# kept\n",
            ),
        ] {
            for (search, line) in [
                (vec![], ""),
                (vec!["one", "two.aerie"], "search one two.aerie\n"),
            ] {
                let new = Resolvers::of(&network("", &["10.0.2.3", "fd00::3"], &search));

                let got = resolvers(before.as_bytes(), &new, None);

                let after = format!("{after}{line}nameserver 10.0.2.3\nnameserver fd00::3\n");
                assert_eq!(String::from_utf8_lossy(&got), after, "{before:?}");
                assert_eq!(resolvers(&got, &new, None), got, "{before:?} twice");
            }
        }
    }

    #[test]
    fn a_guest_that_wakes_in_another_network_keeps_the_resolvers_that_are_its_own() {
        let mother = Resolvers::of(&network("", &["10.0.2.3"], &["one"]));
        let child = Resolvers::of(&network("", &["10.7.0.1"], &["two"]));
        for (before, after) in [
            (
                "search one\nnameserver 10.0.2.3\n",
                "search two\nnameserver 10.7.0.1\n",
            ),
            (
                "search mine\nnameserver 127.0.0.53\nnameserver 10.0.2.3\n",
                "search mine\nnameserver 127.0.0.53\nsearch two\nnameserver 10.7.0.1\n",
            ),
        ] {
            let got = resolvers(before.as_bytes(), &child, Some(&mother));

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

        let with_dns = names("web").with_network(&network("", &["10.0.2.3"], &[]));
        assert!(write(etc.path(), &with_dns, None, true).is_empty());

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

        assert!(write(etc.path(), &names("web"), None, true).is_empty());

        let kept = fs::read_to_string(etc.path().join("resolv.conf")).unwrap();
        assert_eq!(kept, "nameserver 127.0.0.53\n");
    }

    #[test]
    fn a_fork_gets_its_own_name_and_foreign_lines_stay() {
        let etc = TestFolder::new();
        let read = |name: &str| fs::read_to_string(etc.path().join(name)).unwrap();
        let before = network("10.42.0.5/24", &["10.42.0.1"], &[]);
        let mother = names("mother").with_network(&before);
        write(etc.path(), &mother, None, true);
        fs::write(etc.path().join("resolv.conf"), "nameserver 127.0.0.53\n").unwrap();
        let child = names("child").with_network(&network("10.42.0.6/24", &["10.42.0.1"], &[]));

        assert!(write(etc.path(), &child, Some(&mother), true).is_empty());

        assert_eq!(read("hostname"), "child\n");
        assert!(read("hosts").contains("10.42.0.6\tchild\n"));
        assert!(!read("hosts").contains("mother"));
        assert_eq!(read("resolv.conf"), "nameserver 127.0.0.53\n");
        assert!(read("hosts").contains("127.0.0.1\tlocalhost\n"));
    }

    #[test]
    fn each_file_that_cannot_be_written_is_one_warning_and_the_others_are_written() {
        let etc = TestFolder::new();
        let at = |name: &str| etc.path().join(name);
        fs::create_dir(at("hostname")).unwrap();
        symlink("/dev/full", at("hosts")).unwrap();
        symlink("resolv.conf", at("resolv.conf")).unwrap();
        let with_dns = names("web").with_network(&network("", &["10.0.2.3"], &[]));

        let failed = write(etc.path(), &with_dns, None, true);

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
            assert!(Names::new("web", odd).is_err(), "{odd}");
        }
    }
}
