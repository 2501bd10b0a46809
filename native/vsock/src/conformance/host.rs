//! The host's programs: plain blocking clients and servers, each in a thread.

use std::{
    io::{ErrorKind, Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    time::Duration,
};

/// What a program of the host knows of a rig.
#[derive(Clone, Debug)]
pub struct Host {
    pub socket: PathBuf,
    pub prefix: PathBuf,
}

/// A case that waits longer has hung.
pub const PATIENCE: Duration = Duration::from_secs(30);

impl Host {
    /// Connects and says the line, no more.
    pub fn ask(&self, port: u32) -> UnixStream {
        let mut stream = UnixStream::connect(&self.socket).expect("the device listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        stream
            .write_all(format!("CONNECT {port}\n").as_bytes())
            .expect("a line");
        stream
    }

    /// Connects and waits for OK; the host port that was given.
    pub fn connect(&self, port: u32) -> (UnixStream, u32) {
        let mut stream = self.ask(port);
        let given = ok(&mut stream).expect("an OK");
        (stream, given)
    }

    /// Takes the guest's connections to a port.
    pub fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.path(port)).expect("a listener")
    }

    pub fn path(&self, port: u32) -> PathBuf {
        let mut path = self.prefix.clone().into_os_string();
        path.push(format!("_{port}"));
        path.into()
    }
}

/// Reads the `OK` line byte by byte; `None` where the stream ends without one.
pub fn ok(stream: &mut UnixStream) -> Option<u32> {
    let mut line = Vec::new();
    loop {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(0) => {
                assert!(line.is_empty(), "half a line: {line:?}");
                return None;
            }
            Ok(_) if byte[0] == b'\n' => break,
            Ok(_) => line.push(byte[0]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
            Err(error) => panic!("no answer to CONNECT: {error}"),
        }
    }
    let text = String::from_utf8(line).expect("text");
    Some(
        text.strip_prefix("OK ")
            .expect("OK")
            .parse()
            .expect("a port"),
    )
}

/// Reads to the end, which may be a reset.
pub fn read_all(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the stream did not end: {error}"),
    }
    bytes
}

/// Sends everything, then the end.
pub fn write_all(mut stream: &UnixStream, bytes: &[u8]) {
    stream.write_all(bytes).expect("the device takes it");
    stream.shutdown(Shutdown::Write).expect("a half-close");
}

/// Bytes of which no two neighbouring packets are alike.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|at| {
            let [low, middle, high, ..] = at.to_le_bytes();
            low.wrapping_mul(31) ^ middle.wrapping_mul(7) ^ high
        })
        .collect()
}
