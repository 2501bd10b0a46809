//! The guest's side of the vsock tests: `/init` of an initramfs, static, without any other program.
//!
//! It loads `/modules/*` in order of their names, then serves these vsock ports, each connection in a thread:
//!
//! | port | does |
//! |---|---|
//! | 1 | commands, one a line, one line of answer: see [`command`] |
//! | 7 | sends back what it gets, until the end, then ends |
//! | 9 | reads to the end, then says `<bytes> <fnv>` |
//! | 10 | the same, but reads 64 KiB every 20 ms |
//! | 19 | reads a line `<bytes>`, sends that many of the pattern, ends |
//! | 20 | says `bye`, shuts its sending half, reads to the end, then dials host port 20 and says `<bytes> <fnv>` |
//! | 21 | never reads, and closes after five seconds |

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpStream},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    path::PathBuf,
    thread,
    time::Duration,
};

const HOST: u32 = 2;
const TRANSPORT: &str = "vmw_vsock_virtio_transport";

type Service = fn(TcpStream) -> io::Result<()>;

fn main() {
    if std::process::id() != 1 {
        eprintln!("this is the init of a test guest");
        std::process::exit(2);
    }
    if let Err(error) = run() {
        eprintln!("guest: {error}");
    }
    // SAFETY: no pointers; as PID 1 it must not return.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
}

fn run() -> io::Result<()> {
    for module in modules()? {
        insert(&module)?;
    }
    let services: [(u32, Service); 7] = [
        (1, commands),
        (7, echo),
        (9, sink),
        (10, slow_sink),
        (19, source),
        (20, half),
        (21, deaf),
    ];
    let mut threads = Vec::new();
    for (port, serve) in services {
        let listener = listen(port)?;
        threads.push(spawn(move || accept(&listener, serve)));
    }
    eprintln!("guest: ready");
    ready();
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

fn modules() -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir("/modules")?.map(|entry| entry.map(|e| e.path()));
    let mut paths = entries.collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// The host learns that the guest is there from this connection; nobody has to poll. A host that does not want to know
/// does not listen.
fn ready() {
    let _ = dial(1024).and_then(|mut ready| ready.write_all(b"ready\n"));
}

fn spawn(body: impl FnOnce() + Send + 'static) -> thread::JoinHandle<()> {
    thread::Builder::new()
        .stack_size(128 * 1024)
        .spawn(body)
        .expect("a thread")
}

fn accept(listener: &OwnedFd, serve: Service) {
    loop {
        // SAFETY: no address is asked for.
        let fd = unsafe {
            libc::accept4(
                listener.as_raw_fd(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                libc::SOCK_CLOEXEC,
            )
        };
        if fd < 0 {
            eprintln!("guest: accept: {}", io::Error::last_os_error());
            thread::sleep(Duration::from_millis(10));
            continue;
        }
        // SAFETY: the descriptor is new and ours.
        let stream = unsafe { TcpStream::from_raw_fd(fd) };
        spawn(move || {
            // A peer that went away is a case of the tests, no failure of the guest.
            let _ = serve(stream);
        });
    }
}

/// Answers:
/// - `dial P N C`: connect to host port P, write N bytes of the pattern in writes of C, half-close, read to the end:
///   `ok <bytes> <fnv>` of what was read, or `err <errno>`
/// - `reload`: take the transport's driver out and in again, see [`reload`]
/// - `reboot`, `poweroff`: no answer
fn command(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let numbers: Vec<u64> = words
        .iter()
        .skip(1)
        .filter_map(|word| word.parse().ok())
        .collect();
    let result = match (words.first().copied(), numbers.as_slice()) {
        (Some("dial"), [port, bytes, chunk]) => dialogue(*port, *bytes, *chunk),
        (Some("reload"), []) => reload(),
        (Some("reboot"), []) => power(libc::RB_AUTOBOOT),
        (Some("poweroff"), []) => power(libc::RB_POWER_OFF),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    };
    match result {
        Ok(text) => format!("ok {text}\n"),
        Err(error) => format!("err {}\n", error.raw_os_error().unwrap_or(0)),
    }
}

fn commands(stream: TcpStream) -> io::Result<()> {
    let mut answers = stream.try_clone()?;
    for line in BufReader::new(stream).lines() {
        answers.write_all(command(&line?).as_bytes())?;
    }
    Ok(())
}

fn dialogue(port: u64, bytes: u64, chunk: u64) -> io::Result<String> {
    let mut stream = dial(u32::try_from(port).map_err(io::Error::other)?)?;
    let mut reader = stream.try_clone()?;
    let reading = thread::spawn(move || digest(&mut reader, 0));
    send_pattern(
        &mut stream,
        bytes,
        usize::try_from(chunk).map_err(io::Error::other)?,
    )?;
    stream.shutdown(Shutdown::Write)?;
    reading.join().map_err(|_| io::Error::other("reader"))?
}

/// Goes to work when nothing holds the driver any more, this command's own connection included, and says on host port
/// 1024 when the new one is there.
fn reload() -> io::Result<String> {
    let name = std::ffi::CString::new(TRANSPORT)?;
    spawn(move || {
        // SAFETY: the name is NUL-terminated.
        while unsafe { libc::syscall(libc::SYS_delete_module, name.as_ptr(), libc::O_NONBLOCK) }
            != 0
        {
            thread::sleep(Duration::from_millis(50));
        }
        let again = modules().map(|paths| {
            paths
                .into_iter()
                .filter(|path| path.to_string_lossy().contains(&format!("{TRANSPORT}.ko")))
        });
        let result = again.and_then(|mut paths| paths.try_for_each(|path| insert(&path)));
        eprintln!("guest: reloaded: {result:?}");
        ready();
    });
    Ok(String::new())
}

fn power(how: i32) -> io::Result<String> {
    // SAFETY: no pointers.
    unsafe { libc::reboot(how) };
    Err(io::Error::last_os_error())
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let bytes = stream.read(&mut buffer)?;
        if bytes == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..bytes])?;
    }
}

fn sink(mut stream: TcpStream) -> io::Result<()> {
    let answer = digest(&mut stream, 0)?;
    stream.write_all(answer.as_bytes())
}

fn slow_sink(mut stream: TcpStream) -> io::Result<()> {
    let answer = digest(&mut stream, 20)?;
    stream.write_all(answer.as_bytes())
}

fn source(stream: TcpStream) -> io::Result<()> {
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    let bytes = line.trim().parse().map_err(io::Error::other)?;
    send_pattern(&mut { stream }, bytes, 1024 * 1024)
}

fn half(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(b"bye\n")?;
    stream.shutdown(Shutdown::Write)?;
    let answer = digest(&mut stream, 0)?;
    dial(20)?.write_all(answer.as_bytes())
}

fn deaf(stream: TcpStream) -> io::Result<()> {
    thread::sleep(Duration::from_secs(5));
    drop(stream);
    Ok(())
}

/// Reads to the end; `<bytes> <fnv>`.
fn digest(from: &mut impl Read, pause_ms: u64) -> io::Result<String> {
    let mut buffer = vec![0; 64 * 1024];
    let (mut total, mut hash) = (0u64, FNV_START);
    loop {
        let bytes = from.read(&mut buffer)?;
        if bytes == 0 {
            return Ok(format!("{total} {hash:x}"));
        }
        total += bytes as u64;
        hash = fnv(hash, &buffer[..bytes]);
        thread::sleep(Duration::from_millis(pause_ms));
    }
}

fn send_pattern(to: &mut impl Write, bytes: u64, chunk: usize) -> io::Result<()> {
    let mut sent = 0;
    let mut buffer = vec![0; chunk];
    while sent < bytes {
        let len = usize::try_from(bytes - sent)
            .unwrap_or(usize::MAX)
            .min(chunk);
        for (at, byte) in (sent..).zip(&mut buffer[..len]) {
            *byte = pattern(at);
        }
        to.write_all(&buffer[..len])?;
        sent += len as u64;
    }
    Ok(())
}

/// The byte at a place: no two neighbours of 64 KiB are alike, so a lost or doubled packet shows.
fn pattern(at: u64) -> u8 {
    let [low, middle, high, ..] = at.to_le_bytes();
    low.wrapping_mul(31) ^ middle.wrapping_mul(7) ^ high
}

const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

fn insert(path: &std::path::Path) -> io::Result<()> {
    let compressed = path.extension().is_some_and(|end| end != "ko");
    let file = fs::File::open(path)?;
    // MODULE_INIT_COMPRESSED_FILE of linux/module.h: the kernel decompresses.
    let flags = if compressed { 4 } else { 0 };
    // SAFETY: the parameters are an empty C string.
    if unsafe {
        libc::syscall(
            libc::SYS_finit_module,
            file.as_raw_fd(),
            c"".as_ptr(),
            flags,
        )
    } != 0
    {
        let error = io::Error::last_os_error();
        return Err(io::Error::new(
            error.kind(),
            format!("{}: {error}", path.display()),
        ));
    }
    Ok(())
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked.
    let fd: RawFd =
        unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(cid: u32, port: u32) -> (libc::sockaddr_vm, libc::socklen_t) {
    // SAFETY: all-zero is a valid `sockaddr_vm`.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::sa_family_t::try_from(libc::AF_VSOCK).expect("40 fits");
    address.svm_cid = cid;
    address.svm_port = port;
    (
        address,
        libc::socklen_t::try_from(size_of::<libc::sockaddr_vm>()).expect("16 fits"),
    )
}

fn listen(port: u32) -> io::Result<OwnedFd> {
    let socket = socket()?;
    let (address, len) = address(libc::VMADDR_CID_ANY, port);
    // SAFETY: `address` lives through the call and is `len` bytes.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
    // SAFETY: no pointers.
    if bound != 0 || unsafe { libc::listen(socket.as_raw_fd(), 512) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

fn dial(port: u32) -> io::Result<TcpStream> {
    let socket = socket()?;
    let (address, len) = address(HOST, port);
    // SAFETY: `address` lives through the call and is `len` bytes.
    if unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket.into())
}
