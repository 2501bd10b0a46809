//! `talon run` is one machine, `talon check` tells what this host can do.
//!
//! The last word of a process that fails is one JSON line on stderr: `{"code", "message", "chain"}`.
#![cfg_attr(not(test), no_main)]

use std::fs::File;
use std::io::Read;
use std::os::fd::{FromRawFd, IntoRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use kvm_ioctls::Kvm;
use serde_json::{Value, json};
use talon::jail::{self, JailError, Plan, seccomp};
use talon::machine::Prepare;
use talon::resources::adopt;
use talon::vmm::{Fatal, Launch, VerbError, Vmm};

#[global_allocator]
static ARENA: talon::arena::Arena = talon::arena::Arena::new();

/// Bytes of a launch configuration.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
const CONFIG_BYTES_USUAL: usize = 16 << 10;

/// Exit codes beside 0: used wrongly, failed, the guest panicked.
const EXIT_USAGE: u8 = 2;
const EXIT_FAILED: u8 = 1;
const EXIT_PANICKED: u8 = 3;

const USAGE: &str = "usage: talon run [--config-fd N] [--api-fd N | --api-socket PATH] [--kvm-fd N]
                 [--jail on|off] [--vsock-folder PATH] [--landlock-abi-min N]
                 [--at-end leave|hold]
       talon check
       talon --version";

#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("{0}\n{USAGE}")]
    Usage(String),
    #[error("cannot use descriptor {fd}")]
    Descriptor {
        fd: RawFd,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot read the configuration")]
    Config(#[source] std::io::Error),
    #[error("cannot bind the API socket")]
    Socket(#[source] std::io::Error),
    #[error("/dev/kvm cannot be used")]
    Kvm(#[source] std::io::Error),
    #[error("the jail cannot be shut")]
    Jail(#[from] JailError),
    #[error(transparent)]
    Fatal(#[from] Fatal),
}

impl StartError {
    fn code(&self) -> &'static str {
        match self {
            Self::Usage(_) => "usage",
            Self::Descriptor { .. } => "descriptor_invalid",
            Self::Config(_) => "config_unreadable",
            Self::Socket(_) => "socket_failed",
            Self::Kvm(_) => "kvm_unusable",
            Self::Jail(_) => "jail_failed",
            Self::Fatal(fatal) => fatal.code(),
        }
    }

    fn exit(&self) -> u8 {
        match self {
            Self::Usage(_) => EXIT_USAGE,
            Self::Fatal(Fatal::GuestPanicked) => EXIT_PANICKED,
            _ => EXIT_FAILED,
        }
    }
}

#[derive(Debug, Default)]
struct Arguments {
    config: Option<RawFd>,
    api_fd: Option<RawFd>,
    api_socket: Option<String>,
    kvm: Option<RawFd>,
    unjailed: bool,
    hold: bool,
    vsock_folder: Option<PathBuf>,
    landlock_abi_min: u32,
}

fn parse(mut argv: impl Iterator<Item = String>) -> Result<Arguments, StartError> {
    let mut arguments = Arguments::default();
    while let Some(flag) = argv.next() {
        let value = argv
            .next()
            .ok_or_else(|| StartError::Usage(format!("{flag} needs a value")))?;
        let number = || {
            value
                .parse::<RawFd>()
                .ok()
                .filter(|fd| *fd >= 0)
                .ok_or_else(|| StartError::Usage(format!("{flag} takes a descriptor, not {value}")))
        };
        match flag.as_str() {
            "--config-fd" => arguments.config = Some(number()?),
            "--api-fd" => arguments.api_fd = Some(number()?),
            "--api-socket" => arguments.api_socket = Some(value),
            "--kvm-fd" => arguments.kvm = Some(number()?),
            "--vsock-folder" => arguments.vsock_folder = Some(value.into()),
            "--landlock-abi-min" => arguments.landlock_abi_min = number()?.unsigned_abs(),
            "--jail" => {
                arguments.unjailed = match value.as_str() {
                    "on" => false,
                    "off" => true,
                    _ => {
                        return Err(StartError::Usage(format!(
                            "--jail takes on or off, not {value}"
                        )));
                    }
                };
            }
            "--at-end" => {
                arguments.hold = match value.as_str() {
                    "leave" => false,
                    "hold" => true,
                    _ => {
                        return Err(StartError::Usage(format!(
                            "--at-end takes leave or hold, not {value}"
                        )));
                    }
                };
            }
            _ => return Err(StartError::Usage(format!("{flag} is unknown"))),
        }
    }
    if arguments.config.is_none() && arguments.api_fd.is_none() && arguments.api_socket.is_none() {
        return Err(StartError::Usage(
            "nothing to do: neither a configuration nor an API socket".to_owned(),
        ));
    }
    if arguments.hold && arguments.api_fd.is_none() && arguments.api_socket.is_none() {
        return Err(StartError::Usage(
            "--at-end hold without an API socket would never end".to_owned(),
        ));
    }
    Ok(arguments)
}

fn take(fd: RawFd) -> Result<std::os::fd::OwnedFd, StartError> {
    adopt(fd).map_err(|source| StartError::Descriptor { fd, source })
}

fn read_config(fd: RawFd) -> Result<Value, StartError> {
    // Room for a real one, so that it takes one read and not one for each doubling.
    let mut bytes = Vec::with_capacity(CONFIG_BYTES_USUAL);
    // It is closed before anything else could take it for its own, so it needs no mark as ours.
    // SAFETY: the launcher passed this descriptor for us alone; a number that is none fails at the read.
    unsafe { File::from_raw_fd(fd) }
        .take(CONFIG_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(StartError::Config)?;
    if bytes.len() as u64 > CONFIG_BYTES_MAX {
        return Err(StartError::Config(std::io::ErrorKind::FileTooLarge.into()));
    }
    serde_json::from_slice(&bytes)
        .map_err(|error| StartError::Fatal(Fatal::Start(VerbError::Json(error))))
}

fn open_kvm(fd: Option<RawFd>) -> Result<Kvm, StartError> {
    match fd {
        None => {
            // By number: musl marks the descriptor once more.
            // SAFETY: a valid path; the result is checked, and a fresh descriptor is nobody's yet.
            let fd = unsafe {
                let flags = libc::O_RDWR | libc::O_CLOEXEC;
                libc::syscall(
                    libc::SYS_openat,
                    libc::AT_FDCWD,
                    c"/dev/kvm".as_ptr(),
                    flags,
                )
            };
            let fd = RawFd::try_from(fd)
                .ok()
                .filter(|fd| *fd >= 0)
                .ok_or_else(|| StartError::Kvm(std::io::Error::last_os_error()))?;
            // SAFETY: as above; `Kvm` closes it.
            Ok(unsafe { Kvm::from_raw_fd(fd) })
        }
        Some(fd) => {
            let owned = take(fd)?;
            // SAFETY: the descriptor is ours and given away here; `Kvm` closes it.
            Ok(unsafe { Kvm::from_raw_fd(owned.into_raw_fd()) })
        }
    }
}

fn run(argv: impl Iterator<Item = String>) -> Result<(), StartError> {
    let arguments = parse(argv)?;
    let listener = match (arguments.api_fd, &arguments.api_socket) {
        (Some(fd), _) => Some(UnixListener::from(take(fd)?)),
        (None, Some(path)) => Some(UnixListener::bind(path).map_err(StartError::Socket)?),
        (None, None) => None,
    };
    let config = arguments.config.map(read_config).transpose()?;
    let kvm = open_kvm(arguments.kvm)?;
    let jailed = !arguments.unjailed;
    let prepare = if jailed {
        Prepare {
            vcpu: || seccomp::install(seccomp::Role::Vcpu),
            worker: || seccomp::install(seccomp::Role::Worker),
        }
    } else {
        Prepare {
            vcpu: || Ok(()),
            worker: || Ok(()),
        }
    };
    let launch = Launch {
        jailed,
        prepare,
        hold: arguments.hold,
    };
    let mut vmm = Vmm::new(kvm, listener, launch)?;
    if jailed {
        let from_config = config.as_ref().and_then(|config| {
            let machine = config.get("restore").map_or(config, |it| &it["config"]);
            Path::new(machine["vsock"]["socket"].as_str()?).parent()
        });
        let landlock = jail::enter(&Plan {
            vsock_folder: arguments.vsock_folder.as_deref().or(from_config),
            landlock_abi_min: arguments.landlock_abi_min,
        })?;
        if landlock == 0 {
            eprintln!(
                "talon: warning: this kernel has no Landlock: the jail stands without that wall"
            );
        }
        vmm.note_jail(landlock);
    }
    if let Some(config) = config {
        vmm.launch(config).map_err(Fatal::Start)?;
    }
    vmm.run()?;
    Ok(())
}

/// The entry, called by the C library. std's own would take a signal stack and handlers for this and every later thread,
/// for messages that nobody in the jail could use.
#[cfg_attr(not(test), unsafe(no_mangle))]
extern "C" fn main(argc: i32, argv: *const *const libc::c_char) -> i32 {
    // A write to a socket or pipe whose reader is gone is an error to handle and no reason to die.
    // SAFETY: ignoring a signal installs no code.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let count = usize::try_from(argc).unwrap_or(0);
    let arguments = (1..count).map(|index| {
        // SAFETY: the C library passes `argc` valid strings, which live as long as the process.
        let text = unsafe { std::ffi::CStr::from_ptr(*argv.add(index)) };
        text.to_string_lossy().into_owned()
    });
    i32::from(start(arguments))
}

fn start(mut argv: impl Iterator<Item = String>) -> u8 {
    let outcome = match argv.next().as_deref() {
        Some("run") => run(argv),
        Some("check") => {
            println!("{}", jail::check::report());
            Ok(())
        }
        Some("--version") => {
            println!("talon {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        _ => Err(StartError::Usage("a command is missing".to_owned())),
    };
    match outcome {
        Ok(()) => 0,
        Err(error) => {
            let chain = talon::chain_of(&error);
            eprintln!(
                "{}",
                json!({ "code": error.code(), "message": chain[0], "chain": &chain[1..] })
            );
            error.exit()
        }
    }
}
