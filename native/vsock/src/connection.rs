//! One stream between a guest's socket and a Unix socket of the host.
//!
//! ```text
//!  host opens:   Handshake ──CONNECT──▶ Requested ──RESPONSE──▶ Established
//!  guest opens:  Dialing (only while the host's backlog is full) ──────▶ Established
//!
//!  Established ── both our halves are shut, the guest was told ──▶ Closing ── RST, or its time is over ──▶ gone
//!  Established ── the guest shut both halves, or sent RST ───────▶ Draining ── the last byte is out ─────▶ gone
//! ```
//!
//! Draining is over for the guest: its port is free again, while what it sent before is still on its way to a host
//! that reads slowly. A half-close of either side is passed on as a half-close and nothing else.

use std::{
    io,
    net::Shutdown,
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use vm_memory::GuestMemory;

use crate::{
    buffers::Buffers,
    credit::Credit,
    handshake::Handshake,
    header::{HEADER_BYTES, Header, Op, TYPE_STREAM, shutdown},
    outgoing::Outgoing,
    poll::{Event, Poll},
    socket,
};

/// Most payload of one packet (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE` of linux/virtio_vsock.h).
pub(crate) const PAYLOAD_BYTES_MAX: usize = 64 * 1024;

/// Who opened a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Host,
    Guest,
}

/// The ports of a connection. The cids are always those of the host and of the one guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub host: u32,
    pub guest: u32,
}

#[derive(Debug)]
pub(crate) enum Phase {
    Handshake(Handshake),
    /// `heard` is whether the REQUEST has reached the guest's queue.
    Requested {
        heard: bool,
    },
    Dialing {
        until: Instant,
        pause: Duration,
    },
    Established,
    Closing,
    Draining,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Keep,
    /// Gone on both sides, and the guest knows or never knew.
    Drop,
    /// Gone on both sides; the guest hears RST.
    Reset,
    /// Gone for the guest, which knows; the host still gets what was sent.
    Drain,
    /// The same, and the guest hears RST.
    ResetAndDrain,
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub key: Key,
    pub side: Side,
    pub phase: Phase,
    pub credit: Credit,
    /// What the common store gave to the window above the minimum, bytes.
    pub granted: u32,
    /// Whether it is in the muxer's queue of connections with something to say.
    pub queued: bool,
    pub deadline: Option<Instant>,
    token: u64,
    stream: Option<UnixStream>,
    outgoing: Outgoing,
    /// The stream may have something to read.
    readable: bool,
    /// The stream was full and is watched for room.
    blocked: bool,
    /// The host has closed its end for both directions.
    host_gone: bool,
    /// REQUEST or RESPONSE, which come before anything else.
    greeting: Option<Op>,
    /// The guest wants to know its credit.
    update: bool,
    /// The guest was asked for credit and has not given any since.
    asked: bool,
    /// Our half-closes, and those of them that the guest has heard of.
    shut: u32,
    told: u32,
    peer_shut: u32,
}

impl Connection {
    fn new(side: Side, token: u64, phase: Phase, stream: Option<UnixStream>) -> Self {
        Self {
            key: Key { host: 0, guest: 0 },
            side,
            phase,
            credit: Credit::new(0),
            granted: 0,
            queued: false,
            deadline: None,
            token,
            stream,
            outgoing: Outgoing::default(),
            readable: false,
            blocked: false,
            host_gone: false,
            greeting: None,
            update: false,
            asked: false,
            shut: 0,
            told: 0,
            peer_shut: 0,
        }
    }

    /// A stream of the host of which no line was read yet.
    pub fn accepted(token: u64, stream: UnixStream) -> Self {
        Self::new(
            Side::Host,
            token,
            Phase::Handshake(Handshake::default()),
            Some(stream),
        )
    }

    /// A guest that asked for a host port; its socket comes by [`Self::dialed`].
    pub fn dialing(token: u64, key: Key, credit: Credit, until: Instant, pause: Duration) -> Self {
        Self {
            key,
            credit,
            ..Self::new(Side::Guest, token, Phase::Dialing { until, pause }, None)
        }
    }

    pub fn token(&self) -> u64 {
        self.token
    }

    fn fd(&self) -> Option<RawFd> {
        self.stream.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// The host has said which port it wants.
    pub fn request(&mut self, key: Key, credit: Credit) {
        self.key = key;
        self.credit = credit;
        self.phase = Phase::Requested { heard: false };
        self.greeting = Some(Op::Request);
    }

    /// The host took the guest's connection.
    pub fn dialed(&mut self, stream: UnixStream, poll: &Poll) -> io::Result<()> {
        poll.add_stream(stream.as_raw_fd(), self.token)?;
        self.stream = Some(stream);
        self.phase = Phase::Established;
        self.greeting = Some(Op::Response);
        self.readable = true;
        Ok(())
    }

    /// Whether the host's bytes are still of interest.
    fn reads(&self) -> bool {
        matches!(self.phase, Phase::Established)
            && self.shut & shutdown::SEND == 0
            && self.peer_shut & shutdown::RECEIVE == 0
    }

    /// Whether there is a packet to be sent to the guest. A connection without credit asks for it once, then waits.
    pub fn has_packet(&self) -> bool {
        let data = self.readable && self.reads() && (self.credit.available() > 0 || !self.asked);
        self.greeting.is_some() || self.shut != self.told || self.update || data
    }

    /// Makes the next packet; its payload is in `buffers` behind the place of the header.
    pub fn next_packet<'m, M: GuestMemory>(
        &mut self,
        buffers: &mut Buffers<'m, M>,
    ) -> Option<Header> {
        if let Some(op) = self.greeting.take() {
            if let Phase::Requested { heard } = &mut self.phase {
                *heard = true;
            }
            return Some(self.header(op, 0, 0));
        }
        if self.readable && self.reads() {
            if self.credit.available() == 0 {
                if !self.asked {
                    self.asked = true;
                    return Some(self.header(Op::CreditRequest, 0, 0));
                }
            } else if let Some(len) = self.read_stream(buffers) {
                self.credit.send(len);
                return Some(self.header(Op::ReadWrite, len, 0));
            }
        }
        if self.shut != self.told {
            self.told = self.shut;
            return Some(self.header(Op::Shutdown, 0, self.shut));
        }
        self.update.then(|| self.header(Op::CreditUpdate, 0, 0))
    }

    /// Reads what credit and buffers allow; `None` where nothing came, which may have been the end.
    fn read_stream<'m, M: GuestMemory>(&mut self, buffers: &mut Buffers<'m, M>) -> Option<u32> {
        let fd = self.fd()?;
        let credit = usize::try_from(self.credit.available()).unwrap_or(usize::MAX);
        let room = buffers
            .len()
            .saturating_sub(HEADER_BYTES)
            .min(credit)
            .min(PAYLOAD_BYTES_MAX);
        if room == 0 {
            return None;
        }
        match buffers.receive(fd, HEADER_BYTES, room) {
            Ok(0) => {
                self.readable = false;
                self.shut |= if self.host_gone {
                    shutdown::BOTH
                } else {
                    shutdown::SEND
                };
                None
            }
            Ok(bytes) => u32::try_from(bytes).ok(),
            Err(error) => {
                self.readable = false;
                // ECONNRESET: the host closed with our bytes unread. Its own were read before that is told.
                if error.kind() != io::ErrorKind::WouldBlock {
                    self.shut = shutdown::BOTH;
                }
                None
            }
        }
    }

    /// Whether both our halves are shut and the guest was told: it has to answer with RST.
    pub fn awaits_reset(&self) -> bool {
        matches!(self.phase, Phase::Established) && self.told == shutdown::BOTH
    }

    pub fn close(&mut self) {
        self.phase = Phase::Closing;
        self.stream = None;
        self.outgoing.clear();
    }

    fn header(&mut self, op: Op, len: u32, flags: u32) -> Header {
        self.update = false;
        let (buf_alloc, fwd_cnt) = self.credit.announce();
        Header {
            src_port: self.key.host,
            dst_port: self.key.guest,
            len,
            kind: TYPE_STREAM,
            op: op as u16,
            flags,
            buf_alloc,
            fwd_cnt,
            ..Header::default()
        }
    }

    /// Takes a packet of the guest for this connection; its payload lies at `HEADER_BYTES` and is all there.
    pub fn packet<'m, M: GuestMemory>(
        &mut self,
        op: Op,
        header: &Header,
        buffers: &mut Buffers<'m, M>,
        poll: &Poll,
    ) -> Verdict {
        self.credit.learn(header.buf_alloc, header.fwd_cnt);
        // An answer of "nothing" stands until the guest has more: it says so by itself when it has read.
        self.asked &= self.credit.available() == 0;
        match (&self.phase, op) {
            (Phase::Handshake(_) | Phase::Draining, _) => Verdict::Keep,
            (Phase::Established, Op::Reset) => Verdict::Drain,
            (_, Op::Reset) => Verdict::Drop,
            (Phase::Requested { heard: true }, Op::Response) => self.answered(poll),
            (Phase::Established | Phase::Closing, Op::CreditRequest) => {
                self.update = true;
                Verdict::Keep
            }
            (Phase::Established | Phase::Closing, Op::CreditUpdate) => Verdict::Keep,
            (Phase::Established, Op::ReadWrite) => self.write(header.len, buffers, poll),
            // The guest had not heard of the end yet when it sent these.
            (Phase::Closing, Op::ReadWrite) => Verdict::Keep,
            (Phase::Established, Op::Shutdown) => self.peer_shutdown(header.flags),
            (Phase::Closing, Op::Shutdown) if header.flags & shutdown::BOTH == shutdown::BOTH => {
                Verdict::Reset
            }
            (Phase::Closing, Op::Shutdown) => Verdict::Keep,
            _ => Verdict::Reset,
        }
    }

    /// The guest took the host's connection.
    fn answered(&mut self, poll: &Poll) -> Verdict {
        self.phase = Phase::Established;
        self.readable = true;
        self.outgoing
            .push(format!("OK {}\n", self.key.host).as_bytes());
        self.flush(poll)
    }

    fn write<'m, M: GuestMemory>(
        &mut self,
        len: u32,
        buffers: &mut Buffers<'m, M>,
        poll: &Poll,
    ) -> Verdict {
        if self.peer_shut & shutdown::SEND != 0 || self.credit.receive(len).is_err() {
            return Verdict::ResetAndDrain;
        }
        let bytes = len as usize;
        let mut done = 0;
        if let (Some(fd), true) = (
            self.fd(),
            self.outgoing.is_empty() && self.shut & shutdown::RECEIVE == 0,
        ) {
            while done < bytes {
                match buffers.send(fd, HEADER_BYTES + done, bytes - done) {
                    Ok(sent) if sent > 0 => done += sent,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Ok(_) | Err(_) => {
                        self.shut |= shutdown::RECEIVE;
                        break;
                    }
                }
            }
        }
        if self.shut & shutdown::RECEIVE != 0 {
            done = bytes; // Nobody will ever read it; the guest hears so in SHUTDOWN.
        } else if done < bytes {
            self.outgoing
                .push_from(buffers, HEADER_BYTES + done, bytes - done);
            self.watch_room(poll);
        }
        self.credit.forward(u32::try_from(done).unwrap_or(len));
        self.update |= self.credit.update_due();
        Verdict::Keep
    }

    fn peer_shutdown(&mut self, flags: u32) -> Verdict {
        self.peer_shut |= flags & shutdown::BOTH;
        if self.peer_shut == shutdown::BOTH {
            return Verdict::ResetAndDrain;
        }
        if let Some(stream) = &self.stream
            && self.peer_shut & shutdown::RECEIVE != 0
        {
            // The host's writes fail from now on. An error here means that the host is gone, which epoll tells.
            let _ = stream.shutdown(Shutdown::Read);
        }
        self.finish_writing();
        if self.host_gone && !self.reads() {
            self.shut = shutdown::BOTH;
        }
        Verdict::Keep
    }

    /// Passes the guest's half-close on, once everything before it is out.
    fn finish_writing(&mut self) {
        if let Some(stream) = &self.stream
            && self.peer_shut & shutdown::SEND != 0
            && self.outgoing.is_empty()
        {
            // An error means that the host is gone, which epoll tells.
            let _ = stream.shutdown(Shutdown::Write);
        }
    }

    /// Ends the guest's part; false where nothing is left to do for the host either.
    pub fn drain(&mut self) -> bool {
        self.phase = Phase::Draining;
        if let Some(stream) = &self.stream {
            // From here on the host's writes fail; so what is discarded below is finite.
            let _ = stream.shutdown(Shutdown::Read);
            // A socket that is closed with bytes unread shows its peer ECONNRESET where the end belongs.
            let mut unread = [0; 4096];
            while matches!(
                socket::receive_bytes(stream.as_raw_fd(), &mut unread, 0),
                Ok(1..)
            ) {}
        }
        !self.outgoing.is_empty() && !self.host_gone
    }

    /// Something happened to the stream of an established or later connection.
    pub fn event(&mut self, event: Event, poll: &Poll) -> Verdict {
        self.readable |= event.readable;
        self.host_gone |= event.hangup;
        if self.host_gone {
            match self.phase {
                // A host that closed before it heard OK does not want the connection any more.
                Phase::Requested { heard: true } => return Verdict::Reset,
                Phase::Requested { heard: false } | Phase::Draining => return Verdict::Drop,
                Phase::Established if !self.reads() => self.shut = shutdown::BOTH,
                _ => {}
            }
        }
        if event.writable && matches!(self.phase, Phase::Established | Phase::Draining) {
            return self.flush(poll);
        }
        Verdict::Keep
    }

    /// Sends what was kept back.
    fn flush(&mut self, poll: &Poll) -> Verdict {
        let Some(fd) = self.fd() else {
            return Verdict::Keep;
        };
        match self.outgoing.flush(fd) {
            // The OK line is not the guest's and has no credit.
            Ok(done) => self.credit.forward(
                u32::try_from(done)
                    .unwrap_or(u32::MAX)
                    .min(self.credit.held()),
            ),
            Err(_) => {
                self.outgoing.clear();
                self.shut |= shutdown::RECEIVE;
                self.credit.forward(self.credit.held());
            }
        }
        self.update |= self.credit.update_due();
        self.watch_room(poll);
        if self.outgoing.is_empty() {
            if matches!(self.phase, Phase::Draining) {
                return Verdict::Drop;
            }
            self.finish_writing();
        }
        Verdict::Keep
    }

    /// Asks epoll for room exactly while something waits for it.
    fn watch_room(&mut self, poll: &Poll) {
        let blocked = !self.outgoing.is_empty();
        if let Some(fd) = self.fd()
            && blocked != self.blocked
        {
            self.blocked = blocked;
            // Fails only for a descriptor that was never added, and every stream is.
            let _ = poll.want_room(fd, self.token, blocked);
        }
    }

    /// Reads the line of a host; only in [`Phase::Handshake`].
    pub fn handshake(&mut self) -> Option<crate::handshake::Progress> {
        let fd = self.fd()?;
        match &mut self.phase {
            Phase::Handshake(handshake) => Some(handshake.read(fd)),
            _ => None,
        }
    }
}
