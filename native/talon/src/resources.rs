//! The descriptors that a machine stands on. They are opened once, before anything is built, and kept: a reboot needs
//! kernel and initramfs again, and in the jail nothing can be opened twice.

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use crate::config::{ConfigError, ConsoleConfig, ConsoleMode, Source, VmConfig};
use crate::console::Outlet;
use crate::console::log::Log;
use crate::console::terminal::Terminal;

/// How a path is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Read,
    ReadWrite,
    Log,
}

/// Everything that a configuration names, open.
#[derive(Debug)]
pub struct Resources {
    /// vmlinux.
    pub kernel: Descriptor,
    /// Initial RAM file system.
    pub initramfs: Option<Descriptor>,
    /// The launcher's memfd.
    pub ram: Option<Descriptor>,
    /// Images, in the configuration's order.
    pub disks: Vec<Descriptor>,
    /// Taps, in the configuration's order.
    pub taps: Vec<Descriptor>,
    /// The host's side of the serial port.
    pub serial: Outlet,
    /// The host's side of the virtio console.
    pub console: Outlet,
    /// Where host-initiated vsock connections arrive.
    pub vsock: Option<Descriptor>,
}

/// A descriptor that a configuration names: opened by us, or the launcher's, which stays open for the next machine of this
/// process whatever becomes of this one.
#[derive(Debug)]
pub struct Descriptor {
    file: ManuallyDrop<File>,
    own: bool,
}

impl Descriptor {
    /// The launcher's descriptor `fd`; talon's own (which are all close-on-exec) are not to be had.
    fn inherited(fd: RawFd) -> io::Result<Self> {
        // SAFETY: fcntl with integers; a number that is no descriptor is refused.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        if flags < 0 || flags & libc::FD_CLOEXEC != 0 {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        // SAFETY: the descriptor is open, nobody here closes it, and neither does the drop of this.
        let file = ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
        Ok(Self { file, own: false })
    }

    /// A descriptor of its own for the same file.
    ///
    /// # Errors
    /// When the host has none left.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        // By number: musl sets the flag once more.
        // SAFETY: fcntl with integers on an open descriptor.
        let copy = unsafe {
            libc::syscall(
                libc::SYS_fcntl,
                self.file.as_raw_fd(),
                libc::F_DUPFD_CLOEXEC,
                3,
            )
        };
        match RawFd::try_from(copy) {
            // SAFETY: `copy` is a fresh descriptor that nobody else owns.
            Ok(copy) if copy >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(copy) }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// A descriptor that is ours alone, for `field`.
    fn own(&self, field: &str) -> Result<OwnedFd, ConfigError> {
        self.duplicate()
            .map_err(|error| ConfigError::new(field, format!("cannot be used: {error}")))
    }
}

impl From<OwnedFd> for Descriptor {
    fn from(fd: OwnedFd) -> Self {
        Self {
            file: ManuallyDrop::new(fd.into()),
            own: true,
        }
    }
}

impl Deref for Descriptor {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        if self.own {
            // SAFETY: dropped here and nowhere else; `self` is not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.file) };
        }
    }
}

/// Whether a socket listens: one that does not would be readable for ever and never give a connection.
fn listening(socket: &File) -> io::Result<()> {
    let (mut is, mut bytes) = (0i32, 4u32);
    // SAFETY: writes one integer, whose size is told.
    let told = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ACCEPTCONN,
            (&raw mut is).cast(),
            &raw mut bytes,
        )
    };
    match (told, is) {
        (0, 0) => Err(io::Error::other("it is no listening socket")),
        (0, _) => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Opens what configurations name.
#[derive(Debug, Clone, Copy)]
pub struct Opener {
    /// In the jail a path is refused, not tried.
    pub jailed: bool,
}

impl Opener {
    fn open(self, field: &str, source: &Source, mode: Mode) -> Result<Descriptor, ConfigError> {
        let opened = match source {
            Source::Fd(fd) => Descriptor::inherited(*fd),
            Source::Path(_) if self.jailed => {
                return Err(ConfigError::new(
                    field,
                    "must be an inherited descriptor (/dev/fd/N): paths end at the jail",
                ));
            }
            Source::Path(path) => {
                let mut options = OpenOptions::new();
                match mode {
                    Mode::Read => options.read(true),
                    Mode::ReadWrite => options.read(true).write(true),
                    Mode::Log => options.write(true).create(true).truncate(true).mode(0o600),
                };
                options.open(path).map(|file| OwnedFd::from(file).into())
            }
        };
        opened.map_err(|error| ConfigError::new(field, format!("cannot be opened: {error}")))
    }

    /// A listening socket: inherited, or bound at a path.
    fn listener(self, field: &str, source: &Source) -> Result<Descriptor, ConfigError> {
        let listener = match source {
            Source::Fd(fd) => {
                Descriptor::inherited(*fd).and_then(|socket| listening(&socket).map(|()| socket))
            }
            Source::Path(_) if self.jailed => {
                return Err(ConfigError::new(
                    field,
                    "must be an inherited descriptor (/dev/fd/N): nothing is bound inside the jail",
                ));
            }
            Source::Path(path) => {
                UnixListener::bind(path).map(|socket| OwnedFd::from(socket).into())
            }
        };
        listener.map_err(|error| ConfigError::new(field, format!("cannot be used: {error}")))
    }

    fn vsock(self, config: &VmConfig) -> Result<Option<Descriptor>, ConfigError> {
        let Some(vsock) = &config.vsock else {
            return Ok(None);
        };
        match vsock.listen_fd {
            Some(fd) => self.listener("vsock.fd", &Source::Fd(fd)),
            None if self.jailed => Err(ConfigError::new(
                "vsock.fd",
                "must be given: nothing is bound inside the jail",
            )),
            None => self.listener("vsock.socket", &Source::Path(vsock.socket.clone())),
        }
        .map(Some)
    }

    fn outlet(self, field: &str, config: &ConsoleConfig) -> Result<Outlet, ConfigError> {
        let log = match (&config.mode, &config.file) {
            (ConsoleMode::Tty, _) => Some((field.to_owned(), &Source::Fd(1))),
            (_, Some(file)) => Some((format!("{field}.file"), file)),
            (_, None) => None,
        };
        let log = log
            .map(|(path, source)| self.open(&path, source, Mode::Log)?.own(&path))
            .transpose()?;
        let terminal =
            match &config.mode {
                ConsoleMode::Socket(socket) => {
                    let path = format!("{field}.socket");
                    let listener = self.listener(&path, socket)?.own(&path)?;
                    let terminal = Terminal::new(listener.into());
                    Some(terminal.map_err(|error| {
                        ConfigError::new(path, format!("cannot be used: {error}"))
                    })?)
                }
                _ => None,
            };
        Ok(Outlet::new(
            log.map(|file| Log::new(file.into(), config.file_bytes)),
            terminal.map(Arc::new),
        ))
    }

    /// Opens everything, or nothing.
    ///
    /// # Errors
    /// With the path of the field that could not be opened.
    pub fn all(self, config: &VmConfig) -> Result<Resources, ConfigError> {
        let mut disks = Vec::new();
        for (index, disk) in config.disks.iter().enumerate() {
            let mode = if disk.readonly {
                Mode::Read
            } else {
                Mode::ReadWrite
            };
            disks.push(self.open(&format!("disks[{index}].path"), &disk.path, mode)?);
        }
        let mut taps = Vec::new();
        for (index, net) in config.nets.iter().enumerate() {
            taps.push(self.open(
                &format!("net[{index}].fds[0]"),
                &Source::Fd(net.fd),
                Mode::ReadWrite,
            )?);
        }
        Ok(Resources {
            kernel: self.open("payload.kernel", &config.kernel, Mode::Read)?,
            initramfs: config
                .initramfs
                .as_ref()
                .map(|source| self.open("payload.initramfs", source, Mode::Read))
                .transpose()?,
            ram: config
                .ram_file
                .as_ref()
                .map(|source| self.open("memory.zones[0].file", source, Mode::ReadWrite))
                .transpose()?,
            disks,
            taps,
            serial: self.outlet("serial", &config.serial)?,
            console: self.outlet("console", &config.console)?,
            vsock: self.vsock(config)?,
        })
    }
}

/// Takes an inherited descriptor for good: it is talon's own from now on.
///
/// # Errors
/// When the number is no descriptor.
pub fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl with integers; a number that is no descriptor is refused.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the launcher passed this descriptor for us alone, and each number is taken once, at start.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Bytes of an image: a file's length or a block device's size.
///
/// # Errors
/// When it cannot be asked.
pub fn image_bytes(image: &File) -> io::Result<u64> {
    // SAFETY: lseek with integers on a descriptor that is open; nobody uses the image's file position.
    let end = unsafe { libc::lseek(image.as_raw_fd(), 0, libc::SEEK_END) };
    u64::try_from(end).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_in_the_jail_is_refused_with_its_field() {
        let error = Opener { jailed: true }
            .open(
                "disks[0].path",
                &Source::Path("/etc/passwd".to_owned()),
                Mode::Read,
            )
            .unwrap_err();

        assert_eq!(error.path, "disks[0].path");
    }

    #[test]
    fn a_socket_that_does_not_listen_is_refused_with_its_field() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        // SAFETY: fcntl with integers; the copy is inheritable, as a launcher's are.
        let given = unsafe { libc::fcntl(one.as_raw_fd(), libc::F_DUPFD, 3) };

        let error = Opener { jailed: true }
            .listener("serial.socket", &Source::Fd(given))
            .unwrap_err();

        assert_eq!(error.path, "serial.socket");
        assert!(error.problem.contains("listening"), "{}", error.problem);
    }

    #[test]
    fn our_own_descriptors_are_not_resources() {
        let own = File::open("/dev/null").unwrap();

        assert!(
            Opener { jailed: false }
                .open("x", &Source::Fd(own.as_raw_fd()), Mode::Read)
                .is_err()
        );
    }
}
