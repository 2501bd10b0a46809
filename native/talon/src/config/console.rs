//! Consoles: what they are connected to, and where their output is kept.

use super::source::{Source, source};
use super::{ConfigError, Fields};

/// Bytes that a log keeps at least, where nobody says otherwise.
pub const KEPT_BYTES: u64 = 64 << 20;
/// The least that can be asked for.
pub const KEPT_BYTES_MIN: u64 = 64 << 10;

/// What a console is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsoleMode {
    /// The device is not there.
    Off,
    /// The device is there, its output goes nowhere.
    Null,
    /// Standard output.
    Tty,
    /// A file.
    File,
    /// A Unix socket, for one client at a time.
    Socket(Source),
}

/// A console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleConfig {
    /// What it is connected to.
    pub mode: ConsoleMode,
    /// Takes its output: for mode `File`, and beside a socket.
    pub file: Option<Source>,
    /// Bytes of the file that are kept at least: the newest.
    pub file_bytes: u64,
}

impl ConsoleConfig {
    pub(super) const OFF: Self = Self {
        mode: ConsoleMode::Off,
        file: None,
        file_bytes: KEPT_BYTES,
    };
}

pub(super) fn parse_console(mut fields: Fields<'_>) -> Result<ConsoleConfig, ConfigError> {
    let file = source(&mut fields, "file")?;
    let socket = source(&mut fields, "socket")?;
    let file_bytes = fields
        .number("file_bytes", KEPT_BYTES_MIN, 1 << 50)?
        .unwrap_or(KEPT_BYTES);
    let mode = match fields.text("mode", 16)? {
        Some("Off") => ConsoleMode::Off,
        Some("Null") => ConsoleMode::Null,
        Some("Tty") => ConsoleMode::Tty,
        Some("File") if file.is_none() => {
            return Err(fields.problem("file", "is missing for mode File"));
        }
        Some("File") => ConsoleMode::File,
        Some("Socket") => ConsoleMode::Socket(
            socket
                .clone()
                .ok_or_else(|| fields.problem("socket", "is missing for mode Socket"))?,
        ),
        Some(_) => return Err(fields.problem("mode", "must be Off, Null, Tty, File or Socket")),
        None => return Err(fields.problem("mode", "is missing")),
    };
    if file.is_some() && !matches!(mode, ConsoleMode::File | ConsoleMode::Socket(_)) {
        return Err(fields.problem("file", "is of no use without mode File or Socket"));
    }
    if socket.is_some() && !matches!(mode, ConsoleMode::Socket(_)) {
        return Err(fields.problem("socket", "is of no use without mode Socket"));
    }
    fields.unsupported("iommu")?;
    fields.finish()?;
    Ok(ConsoleConfig {
        mode,
        file,
        file_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::VmConfig;
    use serde_json::{Value, json};

    #[test]
    fn a_console_has_what_its_mode_needs_and_nothing_else() {
        let console = |console: Value| {
            let mut config =
                json!({ "payload": { "kernel": "/dev/fd/5" }, "memory": { "size": 128 << 20 } });
            config["serial"] = console;
            VmConfig::parse(&config)
                .map(|config| config.serial)
                .map_err(|error| error.path)
        };

        let socket = json!({ "mode": "Socket", "socket": "/dev/fd/7", "file": "/dev/fd/8", "file_bytes": 1 << 20 });
        let expected = ConsoleConfig {
            mode: ConsoleMode::Socket(Source::Fd(7)),
            file: Some(Source::Fd(8)),
            file_bytes: 1 << 20,
        };
        assert_eq!(console(socket), Ok(expected));
        for (bad, path) in [
            (json!({ "mode": "Socket" }), "serial.socket"),
            (json!({ "mode": "File" }), "serial.file"),
            (json!({ "mode": "Pty" }), "serial.mode"),
            (json!({ "mode": "Null", "socket": "/s" }), "serial.socket"),
            (json!({ "mode": "Tty", "file": "/f" }), "serial.file"),
            (
                json!({ "mode": "File", "file": "/f", "file_bytes": 1 }),
                "serial.file_bytes",
            ),
        ] {
            assert_eq!(console(bad.clone()), Err(path.to_owned()), "{bad}");
        }
    }
}
