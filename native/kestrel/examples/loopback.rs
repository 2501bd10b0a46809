//! A guest's own user who calls kestrel over vsock loopback, for `tests/guest.rs`: prints what comes back, which must be
//! nothing.

use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;

use aerie_protocol::{Frame, GENERATION, Kind, PORT, encode};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cid: u32 = std::env::args().nth(1).ok_or("which cid?")?.parse()?;
    // SAFETY: sockaddr_vm is plain integers; socket and connect get a valid one and its size.
    let (fd, connected) = unsafe {
        let mut address: libc::sockaddr_vm = std::mem::zeroed();
        address.svm_family = libc::sa_family_t::try_from(libc::AF_VSOCK)?;
        address.svm_cid = cid;
        address.svm_port = PORT;
        let size = libc::socklen_t::try_from(size_of::<libc::sockaddr_vm>())?;
        let fd = libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0);
        (fd, libc::connect(fd, (&raw const address).cast(), size))
    };
    if connected != 0 {
        println!("no connection: {}", std::io::Error::last_os_error());
        return Ok(());
    }
    // SAFETY: ours alone; read and write are all that is asked of it.
    let mut stream = unsafe { UnixStream::from_raw_fd(fd) };
    let mut open = Vec::new();
    let frame = Frame::Open {
        generation: GENERATION,
        kind: Kind::Exec.byte(),
        body: br#"{"argv":["id"]}"#,
    };
    encode(&frame, &mut open)?;
    // A connection that was closed at once may refuse the bytes.
    let _ = stream.write_all(&open);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    println!("connected, {} bytes of answer", answer.len());
    Ok(())
}
