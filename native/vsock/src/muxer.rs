//! All connections of one guest.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use vm_memory::GuestMemory;

use crate::{
    buffers::Buffers,
    connection::{Connection, Key, Phase, Side, Verdict},
    credit::Credit,
    handshake::Progress,
    header::{HEADER_BYTES, HOST_CID, Header, Op, TYPE_STREAM},
    limits::Limits,
    poll::{Event, Poll},
    socket,
    table::Table,
    timers::Timers,
};

/// Tokens of what is no connection; those of connections are below.
const LISTENER: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;

/// Events and new streams that one call takes, so that a busy host cannot keep the caller.
const EVENTS: usize = 64;

/// How long to leave the listener alone when the process is out of descriptors.
const LISTENER_PAUSE: Duration = Duration::from_millis(100);
/// First pause before a full backlog is tried again; it doubles up to the second.
const DIAL_PAUSE_MIN: Duration = Duration::from_millis(2);
const DIAL_PAUSE_MAX: Duration = Duration::from_millis(100);

/// Ports that are given to connections of the host: high, so that they never look like a service.
const HOST_PORTS: std::ops::Range<u32> = 1 << 30..1 << 31;

#[derive(Debug, thiserror::Error)]
pub enum MuxerError {
    #[error("{0} is not a guest cid: expected 3 to 4294967294")]
    Cid(u64),
    #[error("the connect prefix {} is too long for a Unix socket with a port behind it", .0.display())]
    Prefix(PathBuf),
    #[error("cannot {what}")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> MuxerError {
    move |source| MuxerError::Io { what, source }
}

/// Which guest, and where its host connections go.
#[derive(Clone, Debug)]
pub struct Config {
    /// 3 to 4294967294 (virtio 1.2, section 5.10.4).
    pub cid: u64,
    /// A guest's connection to host port `p` goes to the Unix socket of this path with `_p` behind it.
    pub connect_prefix: PathBuf,
    pub limits: Limits,
}

/// The host's end of every vsock connection of one guest. See the crate's first page for its place.
///
/// The caller waits until [`Self::poll_fd`] is readable and calls [`Self::on_event`]; moves packets by [`crate::serve`]
/// after that and after every kick; and calls [`Self::reset`] when the guest's driver is gone.
#[derive(Debug)]
pub struct Muxer {
    config: Config,
    listener: UnixListener,
    poll: Poll,
    timers: Timers,
    table: Table,
    keys: BTreeMap<Key, u64>,
    /// Connections that have something for the guest, in turn.
    ready: VecDeque<u64>,
    resets: VecDeque<Header>,
    next_port: u32,
    /// What is left of [`Limits::windows_bytes`].
    windows_left: u32,
}

impl Muxer {
    /// Makes the device side of the guest `config.cid`. `listener` is where the host's programs connect.
    pub fn new(config: Config, listener: UnixListener) -> Result<Self, MuxerError> {
        if !(3..u64::from(u32::MAX)).contains(&config.cid) {
            return Err(MuxerError::Cid(config.cid));
        }
        if path_of(&config.connect_prefix, u32::MAX).as_os_str().len() > socket::PATH_BYTES_MAX {
            return Err(MuxerError::Prefix(config.connect_prefix));
        }
        listener
            .set_nonblocking(true)
            .map_err(failed("make the listener non-blocking"))?;
        let poll = Poll::new().map_err(failed("make an epoll"))?;
        let timers = Timers::new().map_err(failed("make a timer"))?;
        poll.add_level(listener.as_raw_fd(), LISTENER)
            .map_err(failed("watch the listener"))?;
        poll.add_level(timers.fd(), TIMER)
            .map_err(failed("watch the timer"))?;
        let windows_left = config.limits.windows_bytes;
        // A guest that lives on while its device is made anew (a restore) may still hold connections to the old ports. The
        // clock is elsewhere by then, and asking it costs no system call.
        let clock = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .subsec_nanos();
        let next_port = HOST_PORTS.start + clock % (HOST_PORTS.end - HOST_PORTS.start);
        Ok(Self {
            config,
            listener,
            poll,
            timers,
            table: Table::default(),
            keys: BTreeMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            next_port,
            windows_left,
        })
    }

    /// The guest's cid, for the configuration space.
    pub fn cid(&self) -> u64 {
        self.config.cid
    }

    /// Readable when [`Self::on_event`] has something to do; level-triggered, to be watched for input.
    pub fn poll_fd(&self) -> RawFd {
        self.poll.fd()
    }

    /// Streams that are held for the host, whatever their state.
    pub fn connections(&self) -> usize {
        self.table.len(Side::Host) + self.table.len(Side::Guest)
    }

    /// Whether a receive buffer of the guest would be filled.
    pub fn has_rx(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// Whether the guest's packets have to wait until it has taken some of ours (virtio 1.2, section 5.10.6.1).
    pub fn tx_blocked(&self) -> bool {
        self.resets.len() >= self.config.limits.resets
    }

    /// Serves streams, new streams and deadlines. Never waits.
    pub fn on_event(&mut self) -> Result<(), MuxerError> {
        for event in self
            .poll
            .take::<EVENTS>()
            .map_err(failed("read the epoll"))?
        {
            match event.token {
                LISTENER => self.accept(),
                TIMER => self.on_timer(),
                _ => self.on_stream(event),
            }
        }
        Ok(())
    }

    /// Writes the next packet for the guest into `buffers`; gives back its bytes, or `None` where there is none.
    pub fn rx<'m, M: GuestMemory>(&mut self, buffers: &mut Buffers<'m, M>) -> Option<u32> {
        if let Some(reset) = self.resets.pop_front() {
            return Some(write(buffers, &reset));
        }
        while let Some(token) = self.ready.pop_front() {
            let Some(connection) = self.table.get(token) else {
                continue;
            };
            connection.queued = false;
            let packet = connection.next_packet(buffers);
            if connection.awaits_reset() {
                connection.close();
                let at = Instant::now() + self.config.limits.close;
                self.set_deadline(token, Some(at));
            }
            let Some(header) = packet else {
                // Nothing came of it: its next event or the guest's next packet brings it back.
                continue;
            };
            self.queue(token);
            let cids = Header {
                src_cid: HOST_CID,
                dst_cid: self.config.cid,
                ..header
            };
            return Some(write(buffers, &cids));
        }
        None
    }

    /// Takes a packet of the guest. Whatever it says, it costs its sender and nobody else.
    pub fn tx<'m, M: GuestMemory>(&mut self, buffers: &mut Buffers<'m, M>) {
        let mut raw = [0; HEADER_BYTES];
        if buffers.copy_out(0, &mut raw) < HEADER_BYTES {
            return;
        }
        let header = Header::decode(&raw);
        // A packet in another's name: an answer would go to that other, who is not behind this queue.
        if header.src_cid != self.config.cid {
            return;
        }
        let op = Op::from_raw(header.op);
        if header.dst_cid != HOST_CID || header.kind != TYPE_STREAM {
            return self.refuse(&header);
        }
        let key = Key {
            host: header.dst_port,
            guest: header.src_port,
        };
        let token = self.keys.get(&key).copied();
        let whole = buffers.len() - HEADER_BYTES >= header.len as usize;
        match (token, op) {
            (Some(token), Some(op)) if whole => {
                let Some(connection) = self.table.get(token) else {
                    return;
                };
                let verdict = connection.packet(op, &header, buffers, &self.poll);
                self.conclude(token, verdict);
            }
            (Some(token), _) => self.conclude(token, Verdict::Reset),
            (None, Some(Op::Request)) if whole => self.dial(key, &header),
            (None, _) => self.refuse(&header),
        }
    }

    /// The guest's driver is gone, and every connection with it. What it sent before is still delivered; a host's
    /// request that it has not heard of waits for the next driver.
    pub fn reset(&mut self) {
        self.resets.clear();
        for token in self.table.tokens() {
            let verdict = match self.table.get(token).map(|connection| &connection.phase) {
                Some(Phase::Established) => Verdict::Drain,
                Some(Phase::Requested { heard: true } | Phase::Dialing { .. } | Phase::Closing) => {
                    Verdict::Drop
                }
                _ => Verdict::Keep,
            };
            self.conclude(token, verdict);
        }
    }

    fn refuse(&mut self, header: &Header) {
        if header.op != Op::Reset as u16 {
            self.resets.push_back(header.reset());
        }
    }

    fn accept(&mut self) {
        for _ in 0..EVENTS {
            match self.listener.accept() {
                Ok((stream, _)) => self.accepted(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                    ) => {}
                Err(_) => {
                    // Out of descriptors or memory: the listener stays readable, so it is left alone for a while.
                    if self.poll.remove(self.listener.as_raw_fd()).is_ok() {
                        self.timers
                            .insert(Instant::now() + LISTENER_PAUSE, LISTENER);
                    }
                    return;
                }
            }
        }
    }

    fn accepted(&mut self, stream: UnixStream) {
        // Beyond the limit the host sees its stream end without an OK.
        if self.table.len(Side::Host) >= self.config.limits.host_connections {
            return;
        }
        let fd = stream.as_raw_fd();
        let token = self
            .table
            .insert(|token| Connection::accepted(token, stream));
        if self.poll.add_stream(fd, token).is_err() {
            return self.conclude(token, Verdict::Drop);
        }
        self.set_deadline(token, Some(Instant::now() + self.config.limits.handshake));
        self.handshake(token);
    }

    fn handshake(&mut self, token: u64) {
        match self.table.get(token).and_then(Connection::handshake) {
            None | Some(Progress::Wait) => {}
            Some(Progress::Refused) => self.conclude(token, Verdict::Drop),
            Some(Progress::Port(port)) => {
                let key = self.free_key(port);
                let (credit, granted) = self.grant();
                let Some(connection) = self.table.get(token) else {
                    return;
                };
                connection.request(key, credit);
                connection.granted = granted;
                self.keys.insert(key, token);
                self.set_deadline(token, Some(Instant::now() + self.config.limits.connect));
                self.queue(token);
            }
        }
    }

    /// A host port that no connection to this guest port has. There are 2^30 of them and far fewer connections.
    fn free_key(&mut self, guest: u32) -> Key {
        loop {
            let host = self.next_port;
            self.next_port = if host + 1 == HOST_PORTS.end {
                HOST_PORTS.start
            } else {
                host + 1
            };
            let key = Key { host, guest };
            if !self.keys.contains_key(&key) {
                return key;
            }
        }
    }

    /// A window for a new connection: a quarter of what is left, so that the first ones cannot take everything.
    fn grant(&mut self) -> (Credit, u32) {
        let limits = &self.config.limits;
        let above = limits
            .window_max_bytes
            .saturating_sub(limits.window_min_bytes)
            .min(self.windows_left / 4);
        self.windows_left -= above;
        (Credit::new(limits.window_min_bytes + above), above)
    }

    fn dial(&mut self, key: Key, header: &Header) {
        if self.table.len(Side::Guest) >= self.config.limits.guest_connections {
            return self.refuse(header);
        }
        let (mut credit, granted) = self.grant();
        credit.learn(header.buf_alloc, header.fwd_cnt);
        let until = Instant::now() + self.config.limits.connect;
        let token = self
            .table
            .insert(|token| Connection::dialing(token, key, credit, until, DIAL_PAUSE_MIN));
        self.keys.insert(key, token);
        if let Some(connection) = self.table.get(token) {
            connection.granted = granted;
        }
        self.redial(token);
    }

    /// Tries to reach the host's listener; a full one is tried again, as nothing tells when it has room.
    fn redial(&mut self, token: u64) {
        let Some(connection) = self.table.get(token) else {
            return;
        };
        let Phase::Dialing { until, pause } = connection.phase else {
            return;
        };
        let now = Instant::now();
        match socket::connect(&path_of(&self.config.connect_prefix, connection.key.host)) {
            Ok(stream) => {
                let verdict = if connection.dialed(stream, &self.poll).is_ok() {
                    Verdict::Keep
                } else {
                    Verdict::Reset
                };
                self.set_deadline(token, None);
                self.conclude(token, verdict);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && now < until => {
                connection.phase = Phase::Dialing {
                    until,
                    pause: (pause * 2).min(DIAL_PAUSE_MAX),
                };
                self.set_deadline(token, Some(now + pause));
            }
            Err(_) => self.conclude(token, Verdict::Reset),
        }
    }

    fn on_stream(&mut self, event: Event) {
        let Some(connection) = self.table.get(event.token) else {
            return;
        };
        if matches!(connection.phase, Phase::Handshake(_)) {
            if event.hangup {
                return self.conclude(event.token, Verdict::Drop);
            }
            return self.handshake(event.token);
        }
        let verdict = connection.event(event, &self.poll);
        self.conclude(event.token, verdict);
    }

    fn on_timer(&mut self) {
        let now = Instant::now();
        while let Some(token) = self.timers.pop(now) {
            if token == LISTENER {
                // Fails only where the process is out of memory: then the host's backlog fills, and nothing spins.
                let _ = self.poll.add_level(self.listener.as_raw_fd(), LISTENER);
                continue;
            }
            let Some(connection) = self.table.get(token) else {
                continue;
            };
            connection.deadline = None;
            match connection.phase {
                Phase::Dialing { .. } => self.redial(token),
                Phase::Handshake(_) | Phase::Requested { heard: false } => {
                    self.conclude(token, Verdict::Drop)
                }
                Phase::Requested { heard: true } | Phase::Closing => {
                    self.conclude(token, Verdict::Reset)
                }
                Phase::Established | Phase::Draining => {}
            }
        }
        self.timers.rearm();
    }

    fn set_deadline(&mut self, token: u64, at: Option<Instant>) {
        let Some(connection) = self.table.get(token) else {
            return;
        };
        if let Some(old) = std::mem::replace(&mut connection.deadline, at) {
            self.timers.remove(old, token);
        }
        if let Some(at) = at {
            self.timers.insert(at, token);
        }
    }

    /// Does to a connection what its last step asked for.
    fn conclude(&mut self, token: u64, verdict: Verdict) {
        let Some(connection) = self.table.get(token) else {
            return;
        };
        if matches!(verdict, Verdict::Reset | Verdict::ResetAndDrain) {
            let Key { host, guest } = connection.key;
            self.resets.push_back(Header {
                src_cid: HOST_CID,
                dst_cid: self.config.cid,
                src_port: host,
                dst_port: guest,
                kind: TYPE_STREAM,
                op: Op::Reset as u16,
                ..Header::default()
            });
        }
        match verdict {
            Verdict::Keep => {
                if matches!(connection.phase, Phase::Established) && connection.deadline.is_some() {
                    self.set_deadline(token, None);
                }
                self.queue(token);
            }
            Verdict::Drop | Verdict::Reset => self.remove(token),
            Verdict::Drain | Verdict::ResetAndDrain => {
                if connection.drain() {
                    self.forget(token);
                } else {
                    self.remove(token);
                }
            }
        }
    }

    /// Puts a connection in line, once.
    fn queue(&mut self, token: u64) {
        if let Some(connection) = self.table.get(token)
            && !connection.queued
            && !matches!(connection.phase, Phase::Draining)
            && connection.has_packet()
        {
            connection.queued = true;
            self.ready.push_back(token);
        }
    }

    /// The guest's part of a connection is over: its ports are free and it has no say and no deadline.
    fn forget(&mut self, token: u64) {
        self.set_deadline(token, None);
        let Some(connection) = self.table.get(token) else {
            return;
        };
        let key = connection.key;
        // Left in line, tokens of the dead could pile up for as long as the guest takes no packets.
        if std::mem::take(&mut connection.queued) {
            self.ready.retain(|queued| *queued != token);
        }
        if self.keys.get(&key) == Some(&token) {
            self.keys.remove(&key);
        }
    }

    fn remove(&mut self, token: u64) {
        self.forget(token);
        if let Some(connection) = self.table.remove(token) {
            self.windows_left += connection.granted;
        }
    }
}

fn write<'m, M: GuestMemory>(buffers: &Buffers<'m, M>, header: &Header) -> u32 {
    buffers.copy_in(0, &header.encode());
    header.len.saturating_add(44)
}

fn path_of(prefix: &std::path::Path, port: u32) -> PathBuf {
    let mut path = prefix.as_os_str().to_owned();
    path.push(format!("_{port}"));
    path.into()
}
