//! The helper, its controller, and the few DNS words that the tests speak.

use std::{
    io::{self, IoSlice, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::{
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    process::{Child, Command, Stdio},
    time::Duration,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RecordType},
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Longer than anything that must happen takes on a busy machine.
pub const SOON: Duration = Duration::from_secs(20);

pub const WEB: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 5);
pub const STRANGE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);

pub fn state(upstreams: &[SocketAddr]) -> Value {
    json!({
        "type": "state", "generation": 7,
        "network": {
            "name": "default", "domain": "default.aerie", "subnet": "127.0.0.0/24", "gateway": "127.0.0.1",
            "subnet6": null, "gateway6": null, "mtu": 1500, "dhcp": true, "lease_s": 3600, "search": ["default.aerie"],
        },
        "leases": [
            {"mac": "02:00:00:00:00:05", "address": WEB, "hostname": "web", "running": true, "egress": null},
            {"mac": "02:00:00:00:00:06", "address": STRANGE, "hostname": "strange", "running": true,
             "egress": {"names": ["example.com", "*.example.com"]}},
        ],
        "names": [{"name": "web", "addresses": [WEB]}],
        "upstreams": upstreams,
    })
}

#[derive(Debug)]
pub struct Helper {
    pub child: Child,
    pub folder: TempDir,
    listener: UnixListener,
    pub dns: SocketAddr,
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts `wing net` with these sockets, each behind its argument.
pub fn spawn(sockets: &[(&str, BorrowedFd)]) -> Child {
    let fds: Vec<RawFd> = sockets.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
    // The static program where there is one: musl makes other system calls than glibc, and each must be on the list.
    let wing = std::env::var_os("AERIE_TEST_WING");
    let mut command = Command::new(wing.unwrap_or_else(|| env!("CARGO_BIN_EXE_wing").into()));
    command.arg("net");
    for (name, fd) in sockets {
        command.arg(name).arg(fd.as_raw_fd().to_string());
    }
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    // SAFETY: the closure makes system calls only, between fork and exec.
    unsafe {
        command.pre_exec(move || {
            for fd in &fds {
                if libc::fcntl(*fd, libc::F_SETFD, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    command.spawn().unwrap()
}

impl Helper {
    pub fn new() -> Self {
        use std::os::fd::AsFd;
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("control")).unwrap();
        let (udp, tcp) = pair_of_sockets();
        let dns = udp.local_addr().unwrap();
        let child = spawn(&[
            ("--control-fd", listener.as_fd()),
            ("--dns-udp-fd", udp.as_fd()),
            ("--dns-tcp-fd", tcp.as_fd()),
        ]);
        Self {
            child,
            folder,
            listener,
            dns,
        }
    }

    /// A helper that has been told of upstreams, and its controller.
    pub fn told(upstreams: &[SocketAddr]) -> (Self, Controller) {
        let helper = Self::new();
        let mut controller = helper.connect();
        controller.say(&state(upstreams));
        assert_eq!(
            controller.hear(),
            json!({"type": "applied", "generation": 7})
        );
        (helper, controller)
    }

    pub fn connect(&self) -> Controller {
        Controller::connect(&self.folder)
    }

    /// Shuts the control socket down and gives how the helper ended.
    pub fn shut_down(mut self) -> Option<i32> {
        // SAFETY: takes numbers only.
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
        self.child.wait().unwrap().code()
    }

    /// A guest's socket for questions.
    pub fn guest(&self, address: Ipv4Addr) -> UdpSocket {
        let socket = UdpSocket::bind((address, 0)).unwrap();
        socket.connect(self.dns).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket
    }

    /// Asks as a guest and gives the answer.
    pub fn ask(&self, address: Ipv4Addr, name: &str) -> Answer {
        let guest = self.guest(address);
        guest.send(&question(1, name, None)).unwrap();
        answer(&guest)
    }
}

/// Sockets of both kinds at the same port.
pub fn pair_of_sockets() -> (UdpSocket, TcpListener) {
    loop {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()) {
            return (udp, tcp);
        }
    }
}

#[derive(Debug)]
pub struct Controller(UnixStream);

impl Controller {
    pub fn connect(folder: &TempDir) -> Self {
        let stream = UnixStream::connect(folder.path().join("control")).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        Self(stream)
    }

    pub fn say(&mut self, message: &Value) {
        self.say_bytes(&frame(message));
    }

    pub fn say_bytes(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// Sends a descriptor with the first byte of the frame.
    pub fn say_with(&mut self, message: &Value, fd: impl Into<OwnedFd>) {
        let fd = fd.into();
        let bytes = frame(message);
        let parts = [IoSlice::new(&bytes)];
        let mut ancillary = [0u64; 4];
        // SAFETY: all that the header points to lives through the call, and the control message is written where the macros
        // say, in room that is aligned and larger than it.
        unsafe {
            let mut header: libc::msghdr = std::mem::zeroed();
            header.msg_iov = parts.as_ptr().cast_mut().cast();
            header.msg_iovlen = 1;
            header.msg_control = ancillary.as_mut_ptr().cast();
            header.msg_controllen = libc::CMSG_SPACE(4) as _;
            let message = libc::CMSG_FIRSTHDR(&raw const header);
            (*message).cmsg_level = libc::SOL_SOCKET;
            (*message).cmsg_type = libc::SCM_RIGHTS;
            (*message).cmsg_len = libc::CMSG_LEN(4) as _;
            libc::CMSG_DATA(message)
                .cast::<RawFd>()
                .write(fd.as_raw_fd());
            let sent = libc::sendmsg(self.0.as_raw_fd(), &raw const header, 0);
            assert_eq!(usize::try_from(sent).unwrap(), bytes.len());
        }
    }

    pub fn hear(&mut self) -> Value {
        let mut head = [0; 4];
        self.0.read_exact(&mut head).unwrap();
        let mut json = vec![0; usize::try_from(u32::from_be_bytes(head)).unwrap()];
        self.0.read_exact(&mut json).unwrap();
        serde_json::from_slice(&json).unwrap()
    }

    /// Says something and hears what is answered.
    pub fn call(&mut self, message: &Value) -> Value {
        self.say(message);
        self.hear()
    }

    pub fn listen(
        &mut self,
        id: &str,
        proto: &str,
        target: Option<SocketAddr>,
        fd: impl Into<OwnedFd>,
    ) {
        let message = json!({"type": "listen", "id": id, "proto": proto, "target": target});
        self.say_with(&message, fd);
        assert_eq!(self.hear(), json!({"type": "listening", "id": id}));
    }

    pub fn stats(&mut self) -> Value {
        let stats = self.call(&json!({"type": "stats", "seq": 1}));
        assert_eq!(
            (&stats["type"], &stats["seq"]),
            (&json!("stats"), &json!(1))
        );
        stats
    }

    /// Reads until the other side has closed.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

pub fn frame(message: &Value) -> Vec<u8> {
    let json = message.to_string();
    let mut bytes = u32::try_from(json.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes
}

pub fn question(id: u16, name: &str, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message
        .queries
        .push(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    if let Some(size) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        message.edns = Some(edns);
    }
    message.to_vec().unwrap()
}

#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub id: u16,
    pub code: ResponseCode,
    pub is_truncated: bool,
    pub addresses: Vec<IpAddr>,
}

impl Answer {
    pub fn of(bytes: &[u8]) -> Self {
        let message = Message::from_vec(bytes).unwrap();
        Self {
            id: message.metadata.id,
            code: message.metadata.response_code,
            is_truncated: message.metadata.truncation,
            addresses: message
                .answers
                .iter()
                .filter_map(|record| record.data.ip_addr())
                .collect(),
        }
    }

    pub fn with(addresses: &[&str]) -> Self {
        Self {
            id: 1,
            code: ResponseCode::NoError,
            is_truncated: false,
            addresses: addresses.iter().map(|one| one.parse().unwrap()).collect(),
        }
    }

    pub fn without(code: ResponseCode) -> Self {
        Self {
            code,
            ..Self::with(&[])
        }
    }
}

pub fn answer(guest: &UdpSocket) -> Answer {
    let mut bytes = [0; 4096];
    let len = guest.recv(&mut bytes).unwrap();
    Answer::of(&bytes[..len])
}

/// Whether nothing has come for a guest.
pub fn has_nothing(guest: &UdpSocket) -> bool {
    guest.set_nonblocking(true).unwrap();
    let got = guest.recv(&mut [0; 4096]);
    guest.set_nonblocking(false).unwrap();
    got.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

pub fn ask_by_tcp(stream: &mut TcpStream, bytes: &[u8]) {
    let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length, bytes].concat()).unwrap();
}

pub fn answer_by_tcp(stream: &mut TcpStream) -> Vec<u8> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}
