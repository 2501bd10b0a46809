//! The guest of the bed's tests: PID 1 of an initramfs, static, that does over vsock what a test asks.
//!
//! A test connects to port 52 and writes one line: `sh COMMAND` (answers with the command's output and a last line
//! `exit N`), `echo` (every byte back until the end of input), `uuid` (16 bytes of the kernel's generator as hex, without
//! starting a program), `zero DEVICE` (its first MiB), `clock` (monotonic nanoseconds), `panic`.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

const PORT: u32 = 52;
/// What [`mark`] says when init begins; afterwards it tells how many virtio devices there are.
const MARK_INIT: u8 = 0x41;
/// Bytes of a command.
const LINE_BYTES_MAX: usize = 64 << 10;
/// `AF_VSOCK` and the bytes of a `sockaddr_vm`, in the widths that the calls take.
const FAMILY: libc::sa_family_t = 40;
const ADDRESS_BYTES: libc::socklen_t = 16;

fn say(text: &str) {
    if let Ok(mut log) = fs::OpenOptions::new().write(true).open("/dev/kmsg") {
        let _ = writeln!(log, "<1>{text}");
    }
}

fn mount(kind: &std::ffi::CStr, at: &std::ffi::CStr) {
    // SAFETY: all strings are valid C strings; the data pointer may be null.
    unsafe {
        libc::mount(
            kind.as_ptr(),
            at.as_ptr(),
            kind.as_ptr(),
            0,
            std::ptr::null(),
        )
    };
}

fn load_modules() {
    let Ok(folder) = fs::read_dir("/modules") else {
        return;
    };
    let mut paths: Vec<_> = folder.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let Ok(file) = fs::File::open(&path) else {
            continue;
        };
        // SAFETY: a descriptor, an empty string of parameters, no flags.
        let done =
            unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
        if done < 0 {
            say(&format!(
                "module {}: {}",
                path.display(),
                std::io::Error::last_os_error()
            ));
        }
    }
}

fn shell(command: &str, out: &mut UnixStream) {
    let child = Command::new("/bin/busybox")
        .args(["sh", "-c", command])
        .env("PATH", "/bin")
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output();
    let _ = match child {
        Ok(done) => out
            .write_all(&done.stdout)
            .and_then(|()| out.write_all(&done.stderr))
            .and_then(|()| writeln!(out, "exit {}", done.status.code().unwrap_or(255))),
        Err(error) => writeln!(out, "{error}\nexit 254"),
    };
}

fn uuid() -> String {
    let mut bytes = [0u8; 16];
    // SAFETY: the buffer holds as many bytes as are asked for.
    unsafe { libc::syscall(libc::SYS_getrandom, bytes.as_mut_ptr(), bytes.len(), 0) };
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Has the first MiB of a block device written as zeroes, by the request that says so.
fn zero(device: &str) -> std::io::Result<()> {
    const BLKZEROOUT: u32 = 0x127f;
    let file = fs::OpenOptions::new().write(true).open(device)?;
    let range = [0u64, 1 << 20];
    // SAFETY: the call reads two numbers.
    if unsafe { libc::ioctl(file.as_raw_fd(), BLKZEROOUT as _, range.as_ptr()) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

fn clock() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// A connection whose line is not whole yet.
struct Caller {
    stream: UnixStream,
    line: Vec<u8>,
}

enum Said {
    Nothing,
    Line(String),
    Gone,
}

impl Caller {
    /// Takes what is there of the line, and no byte behind it.
    fn listen(&mut self) -> Said {
        let mut byte = [0u8];
        loop {
            // SAFETY: the buffer holds as many bytes as are asked for.
            let read = unsafe {
                let fd = self.stream.as_raw_fd();
                libc::recv(fd, byte.as_mut_ptr().cast(), 1, libc::MSG_DONTWAIT)
            };
            match (read, byte) {
                (1, [b'\n']) => {
                    let line = String::from_utf8(std::mem::take(&mut self.line));
                    return line.map_or(Said::Gone, Said::Line);
                }
                (1, [byte]) if self.line.len() < LINE_BYTES_MAX => self.line.push(byte),
                (-1, _) if std::io::Error::last_os_error().kind() == ErrorKind::WouldBlock => {
                    return Said::Nothing;
                }
                _ => return Said::Gone,
            }
        }
    }
}

fn echo(stream: &mut UnixStream) {
    let mut part = [0; 16 << 10];
    while let Ok(count) = stream.read(&mut part) {
        if count == 0 || stream.write_all(&part[..count]).is_err() {
            break;
        }
    }
}

/// What takes a moment is answered on the spot, so that a thread is no part of what a restored guest is measured by.
fn serve(mut stream: UnixStream, line: String) {
    let answer = match line.split_once(' ').unwrap_or((&line, "")) {
        ("uuid", _) => uuid(),
        ("clock", _) => clock().to_string(),
        ("panic", _) => {
            let _ = fs::write("/proc/sysrq-trigger", "c");
            return;
        }
        _ => {
            std::thread::spawn(move || {
                match line.split_once(' ').unwrap_or((&line, "")) {
                    ("sh", command) => shell(command, &mut stream),
                    ("echo", _) => echo(&mut stream),
                    ("zero", device) => {
                        let outcome = zero(device);
                        let error = outcome.as_ref().err().map(ToString::to_string);
                        let code = i32::from(outcome.is_err());
                        drop(writeln!(
                            stream,
                            "{}\nexit {code}",
                            error.unwrap_or_default()
                        ));
                    }
                    (other, _) => drop(writeln!(stream, "unknown command {other}")),
                }
                let _ = stream.shutdown(Shutdown::Write);
            });
            return;
        }
    };
    let _ = stream.write_all(format!("{answer}\n").as_bytes());
    let _ = stream.shutdown(Shutdown::Write);
}

fn listen() -> Option<OwnedFd> {
    // SAFETY: socket, bind and listen with a whole sockaddr_vm; results are checked.
    unsafe {
        let fd = libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return None;
        }
        let socket = OwnedFd::from_raw_fd(fd);
        let mut address: libc::sockaddr_vm = std::mem::zeroed();
        address.svm_family = FAMILY;
        address.svm_cid = libc::VMADDR_CID_ANY;
        address.svm_port = PORT;
        if libc::bind(fd, (&raw const address).cast(), ADDRESS_BYTES) < 0
            || libc::listen(fd, 64) < 0
        {
            return None;
        }
        Some(socket)
    }
}

/// Takes calls and hears them out, for ever; one that says nothing keeps nobody.
fn attend(socket: &OwnedFd) -> ! {
    let mut callers: Vec<Caller> = Vec::new();
    loop {
        let mut ready: Vec<libc::pollfd> = callers
            .iter()
            .map(|caller| caller.stream.as_raw_fd())
            .chain([socket.as_raw_fd()])
            .map(|fd| libc::pollfd {
                fd,
                events: libc::POLLIN,
                revents: 0,
            })
            .collect();
        // SAFETY: as many descriptors as the vector holds.
        unsafe { libc::poll(ready.as_mut_ptr(), ready.len() as libc::nfds_t, -1) };
        let new = ready.pop().is_some_and(|socket| socket.revents != 0);
        for (index, caller) in ready.iter().enumerate().rev() {
            if caller.revents != 0 {
                match callers[index].listen() {
                    Said::Nothing => {}
                    Said::Line(line) => serve(callers.swap_remove(index).stream, line),
                    Said::Gone => drop(callers.swap_remove(index)),
                }
            }
        }
        if new {
            // SAFETY: accept with no address; the descriptor is checked.
            let fd = unsafe {
                libc::accept4(
                    socket.as_raw_fd(),
                    std::ptr::null_mut(),
                    std::ptr::null_mut(),
                    libc::SOCK_CLOEXEC,
                )
            };
            if fd < 0 {
                say(&format!("accept: {}", std::io::Error::last_os_error()));
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
            // SAFETY: a fresh descriptor that nobody else owns. It is no Unix socket, but of it only read, write and
            // shutdown are used, which every stream socket has.
            let stream = UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
            callers.push(Caller {
                stream,
                line: Vec::with_capacity(128),
            });
        }
    }
}

/// Tells the host that the guest is up: connects out to port 53.
fn announce() {
    // SAFETY: as in `listen`.
    unsafe {
        let fd = libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return;
        }
        let socket = OwnedFd::from_raw_fd(fd);
        let mut address: libc::sockaddr_vm = std::mem::zeroed();
        address.svm_family = FAMILY;
        address.svm_cid = libc::VMADDR_CID_HOST;
        address.svm_port = 53;
        if libc::connect(fd, (&raw const address).cast(), ADDRESS_BYTES) == 0 {
            let mut stream = UnixStream::from(socket);
            let _ = stream.write_all(b"up\n");
        }
    }
}

/// The mark that boot counters look for: a write to the diagnostic port, which nothing listens on. One exit, whatever the
/// console is. A kernel without `ioperm` has `/dev/port`, which the initramfs carries.
fn mark(value: u8) {
    // SAFETY: the port is the diagnostic one; the kernel refuses it to whoever may not.
    unsafe {
        if libc::ioperm(0x80, 1, 1) == 0 {
            std::arch::asm!("out 0x80, al", in("al") value, options(nomem, nostack));
            return;
        }
    }
    if let Ok(port) = fs::OpenOptions::new().write(true).open("/dev/port") {
        let _ = port.write_at(&[value], 0x80);
    }
}

fn main() {
    mark(MARK_INIT);
    for folder in ["/proc", "/sys", "/dev"] {
        let _ = fs::create_dir_all(folder);
    }
    mount(c"proc", c"/proc");
    mount(c"sysfs", c"/sys");
    mount(c"devtmpfs", c"/dev");
    load_modules();
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    say(&format!("GUEST UP {}", uptime.trim()));
    if line.contains("guest.off") {
        let devices = fs::read_dir("/sys/bus/virtio/devices").map_or(0, Iterator::count);
        mark(u8::try_from(devices).unwrap_or(u8::MAX));
        // SAFETY: the kernel ends here.
        unsafe {
            libc::sync();
            libc::reboot(libc::LINUX_REBOOT_CMD_POWER_OFF);
        }
    }
    if let Some(socket) = listen() {
        announce();
        attend(&socket);
    }
    say("no vsock here; waiting for ever");
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}
