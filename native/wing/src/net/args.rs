//! The command line: `--control-fd N [--dhcp-fd N] [--dns-udp-fd N]… [--dns-tcp-fd N]… [--ra-fd N]`.

use std::{
    ffi::{OsStr, OsString},
    os::fd::RawFd,
};

use super::error::NetError;

/// One for IPv4 and one for IPv6.
const FAMILIES: usize = 2;

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Args {
    pub control: RawFd,
    pub dhcp: Option<RawFd>,
    pub dns_udp: Vec<RawFd>,
    pub dns_tcp: Vec<RawFd>,
    pub ra: Option<RawFd>,
}

pub fn parse(mut argv: impl Iterator<Item = OsString>) -> Result<Args, NetError> {
    let mut args = Args::default();
    let mut control = None;
    let mut seen = Vec::new();
    while let Some(name) = argv.next() {
        let usage = || NetError::Usage(name.clone());
        let value = argv.next().ok_or_else(usage)?;
        let fd = descriptor(&value)?;
        if seen.contains(&fd) {
            return Err(usage());
        }
        seen.push(fd);
        let is_free = match name.to_str() {
            Some("--control-fd") => control.replace(fd).is_none(),
            Some("--dhcp-fd") => args.dhcp.replace(fd).is_none(),
            Some("--ra-fd") => args.ra.replace(fd).is_none(),
            Some("--dns-udp-fd") => pushed(&mut args.dns_udp, fd),
            Some("--dns-tcp-fd") => pushed(&mut args.dns_tcp, fd),
            _ => false,
        };
        if !is_free {
            return Err(usage());
        }
    }
    args.control = control.ok_or(NetError::Missing("--control-fd"))?;
    Ok(args)
}

fn pushed(list: &mut Vec<RawFd>, fd: RawFd) -> bool {
    list.push(fd);
    list.len() <= FAMILIES
}

/// A descriptor beyond the three that every program has.
fn descriptor(value: &OsStr) -> Result<RawFd, NetError> {
    value
        .to_str()
        .and_then(|text| text.parse().ok())
        .filter(|fd| *fd > 2)
        .ok_or_else(|| NetError::Usage(value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Args, NetError> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn each_socket_has_its_place() {
        let line = "--control-fd 3 --dhcp-fd 4 --dns-udp-fd 5 --dns-udp-fd 6 --dns-tcp-fd 7 --dns-tcp-fd 8 --ra-fd 9";

        assert_eq!(
            parsed(line).unwrap(),
            Args {
                control: 3,
                dhcp: Some(4),
                dns_udp: vec![5, 6],
                dns_tcp: vec![7, 8],
                ra: Some(9),
            }
        );
    }

    #[test]
    fn what_is_missing_or_unknown_is_said() {
        assert!(matches!(
            parsed("--dhcp-fd 4"),
            Err(NetError::Missing("--control-fd"))
        ));
        for line in [
            "--control-fd",
            "--control-fd x",
            "--control-fd 2",
            "--what 3",
            "--control-fd 3 --control-fd 4",
            "--control-fd 3 --dhcp-fd 3",
            "--control-fd 3 --dhcp-fd 4 --dhcp-fd 5",
            "--control-fd 3 --dns-udp-fd 4 --dns-udp-fd 5 --dns-udp-fd 6",
        ] {
            assert!(matches!(parsed(line), Err(NetError::Usage(_))), "{line}");
        }
    }
}
