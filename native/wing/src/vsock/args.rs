//! The command line: `--cid N --vhost-fd N --listen-fd N --connect-prefix PATH [--connect-timeout-ms N] [--restored]`.

use std::{
    ffi::{OsStr, OsString},
    os::fd::RawFd,
    path::PathBuf,
    time::Duration,
};

use super::error::VsockError;

#[derive(Debug, PartialEq, Eq)]
pub struct Args {
    pub cid: u64,
    /// The connected vhost-user stream; its other end is QEMU's chardev.
    pub vhost_fd: RawFd,
    /// The listening Unix socket of the host's side.
    pub listen_fd: RawFd,
    pub connect_prefix: PathBuf,
    /// How long a connection may stay unanswered, on either side.
    pub connect_timeout: Option<Duration>,
    /// The guest was restored from what was saved: its rings go on where they were.
    pub restored: bool,
}

pub fn parse(mut argv: impl Iterator<Item = OsString>) -> Result<Args, VsockError> {
    let (mut cid, mut vhost_fd, mut listen_fd, mut connect_prefix, mut timeout_ms) =
        (None, None, None, None, None);
    let mut restored = false;
    while let Some(name) = argv.next() {
        if name == "--restored" {
            restored = true;
            continue;
        }
        let value = argv.next().ok_or_else(|| VsockError::Usage(name.clone()))?;
        match name.to_str() {
            Some("--cid") => cid = Some(number(&value)?),
            Some("--vhost-fd") => vhost_fd = Some(number(&value)?),
            Some("--listen-fd") => listen_fd = Some(number(&value)?),
            Some("--connect-prefix") => connect_prefix = Some(PathBuf::from(value)),
            Some("--connect-timeout-ms") => timeout_ms = Some(number::<u32>(&value)?),
            _ => return Err(VsockError::Usage(name)),
        }
    }
    if vhost_fd.is_some() && vhost_fd == listen_fd {
        return Err(VsockError::Usage("--listen-fd".into()));
    }
    Ok(Args {
        cid: cid.ok_or(VsockError::Missing("--cid"))?,
        vhost_fd: vhost_fd.ok_or(VsockError::Missing("--vhost-fd"))?,
        listen_fd: listen_fd.ok_or(VsockError::Missing("--listen-fd"))?,
        connect_prefix: connect_prefix.ok_or(VsockError::Missing("--connect-prefix"))?,
        connect_timeout: timeout_ms.map(|ms| Duration::from_millis(ms.into())),
        restored,
    })
}

fn number<N: std::str::FromStr>(value: &OsStr) -> Result<N, VsockError> {
    value
        .to_str()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| VsockError::Usage(value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Args, VsockError> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_four_arguments_make_a_device() {
        let args = parsed("--cid 42 --vhost-fd 3 --listen-fd 4 --connect-prefix /run/v").unwrap();

        assert_eq!(
            args,
            Args {
                cid: 42,
                vhost_fd: 3,
                listen_fd: 4,
                connect_prefix: "/run/v".into(),
                connect_timeout: None,
                restored: false,
            }
        );
    }

    #[test]
    fn a_restored_guest_is_said_by_a_word_alone() {
        let args = parsed("--restored --cid 42 --vhost-fd 3 --listen-fd 4 --connect-prefix /run/v");

        assert!(args.unwrap().restored);
    }

    #[test]
    fn what_is_missing_or_unknown_is_said() {
        assert!(matches!(
            parsed("--cid 42"),
            Err(VsockError::Missing("--vhost-fd"))
        ));
        for line in [
            "--cid",
            "--cid x",
            "--cid -1",
            "--what 3",
            "--vhost-fd 99999999999",
            "--vhost-fd 3 --listen-fd 3",
        ] {
            assert!(matches!(parsed(line), Err(VsockError::Usage(_))), "{line}");
        }
    }
}
