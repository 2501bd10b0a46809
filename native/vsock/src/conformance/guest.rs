//! A guest: a driver, and as much of a socket layer as the cases need.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{
    host::{Host, PATIENCE},
    rig::{QUEUE_SIZE, QueuePlace, Rig, Setup},
    ring::{Part, Ring},
};
use crate::header::{HEADER_BYTES, HOST_CID, Header, Op, TYPE_STREAM, shutdown};

const RX: usize = 0;
const TX: usize = 1;

/// Guest memory: rings, tables of indirect descriptors, receive buffers, packets to be sent.
const RINGS: u64 = 0x1_0000;
const TABLES: u64 = 0x10_0000;
const RX_BUFFERS: u64 = 0x20_0000;
const TX_BUFFERS: u64 = 0x40_0000;
/// Linux posts pages.
const RX_BYTES: u32 = 4096;
const TX_BYTES: u64 = 0x1_2000;
const PAYLOAD_MAX: usize = 64 * 1024;

/// How packets are cut into descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of each descriptor of a sent packet; the last one is shorter.
    pub tx: u32,
    /// The same for receive buffers.
    pub rx: u32,
    pub indirect: bool,
}

impl Layout {
    /// One descriptor a packet.
    pub const WHOLE: Self = Self {
        tx: u32::MAX,
        rx: u32::MAX,
        indirect: false,
    };
}

/// A packet of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub header: Header,
    pub payload: Vec<u8>,
}

impl Packet {
    pub fn op(&self) -> Op {
        Op::from_raw(self.header.op).expect("the device sends known operations")
    }
}

/// A connected socket of the guest.
#[derive(Default)]
pub struct Sock {
    /// What came and was not read yet.
    pub inbox: Vec<u8>,
    /// What is to be sent when there is credit.
    pub outbox: VecDeque<u8>,
    /// Send SHUTDOWN with these flags once the outbox is empty.
    pub closing: u32,
    told: u32,
    /// The device's SHUTDOWN flags.
    pub peer_shut: u32,
    pub reset: bool,
    /// Whether what comes is read (its credit given back) at once.
    pub reads: bool,
    window: u32,
    received: u32,
    forwarded: u32,
    announced: u32,
    sent: u32,
    peer_window: u32,
    peer_forwarded: u32,
    /// CREDIT_REQUEST packets that came.
    pub asked: u32,
    /// Bytes of the device that were read in all.
    pub total_in: u64,
    established: bool,
}

impl fmt::Debug for Sock {
    /// What a failed case wants to see: numbers, not mebibytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sock")
            .field("inbox", &self.inbox.len())
            .field("outbox", &self.outbox.len())
            .field("credit", &self.credit())
            .field("sent", &self.sent)
            .field("in_flight", &self.in_flight())
            .field("received", &self.received)
            .field("unannounced", &self.received.wrapping_sub(self.announced))
            .field("shut", &(self.told, self.peer_shut, self.reset))
            .finish_non_exhaustive()
    }
}

impl Sock {
    /// None where more was sent than allowed, which hostile cases do.
    fn credit(&self) -> u32 {
        self.peer_window.saturating_sub(self.in_flight())
    }

    /// Bytes sent that the device has not forwarded, as far as it said.
    pub fn in_flight(&self) -> u32 {
        self.sent.wrapping_sub(self.peer_forwarded)
    }

    pub fn established(&self) -> bool {
        self.established
    }
}

/// `(guest port, host port)`
pub type Name = (u32, u32);

#[derive(Debug)]
pub struct Guest<R: Rig> {
    pub rig: R,
    mem: GuestMemoryMmap,
    rx: Ring,
    tx: Ring,
    /// The address of each receive buffer, by head.
    rx_at: BTreeMap<u16, (u64, u32)>,
    tx_at: BTreeMap<u16, u64>,
    tx_free: Vec<u64>,
    rx_free: Vec<(u64, u32)>,
    pub layout: Layout,
    pub event_idx: bool,
    /// Receive buffers are given back to the device.
    pub refills: bool,
    pub sockets: BTreeMap<Name, Sock>,
    /// Guest ports whose requests are taken, with the window that is offered.
    pub listening: BTreeMap<u32, u32>,
    /// New sockets read at once.
    pub reads: bool,
    /// Requests and resets that are for no socket.
    pub stray: VecDeque<Packet>,
    next_port: u32,
}

impl<R: Rig> Guest<R> {
    /// Brings the device up with everything as Linux does it.
    pub fn boot(rig: R) -> Self {
        Self::boot_with(rig, Layout::WHOLE, true)
    }

    pub fn boot_with(rig: R, layout: Layout, event_idx: bool) -> Self {
        let mem = rig.memory().clone();
        let setup = setup(event_idx);
        let mut guest = Self {
            rx: Ring::new(&mem, setup.queues[0], event_idx, true),
            tx: Ring::new(&mem, setup.queues[1], event_idx, false),
            rig,
            mem,
            rx_at: BTreeMap::new(),
            tx_at: BTreeMap::new(),
            tx_free: Vec::new(),
            rx_free: Vec::new(),
            layout,
            event_idx,
            refills: true,
            sockets: BTreeMap::new(),
            listening: BTreeMap::new(),
            reads: true,
            stray: VecDeque::new(),
            next_port: 1000,
        };
        guest.start();
        guest
    }

    /// A reset and a new driver, as after a reboot: nothing is remembered.
    pub fn reboot(&mut self) {
        self.rig.reset();
        self.start();
    }

    fn start(&mut self) {
        let setup = setup(self.event_idx);
        self.rx = Ring::new(&self.mem, setup.queues[0], self.event_idx, true);
        self.tx = Ring::new(&self.mem, setup.queues[1], self.event_idx, false);
        self.rx_at.clear();
        self.tx_at.clear();
        self.tx_free = (0..u64::from(QUEUE_SIZE))
            .map(|slot| TX_BUFFERS + slot * TX_BYTES)
            .collect();
        self.rx_free = (0..u64::from(QUEUE_SIZE))
            .map(|slot| (RX_BUFFERS + slot * u64::from(RX_BYTES), RX_BYTES))
            .collect();
        self.sockets.clear();
        self.stray.clear();
        self.rig.start(&setup);
        self.refill();
    }

    pub fn host(&self) -> Host {
        Host {
            socket: self.rig.socket().to_owned(),
            prefix: self.rig.prefix().to_owned(),
        }
    }

    /// Receive buffers of `bytes` from now on, in place of those that come back.
    pub fn resize_rx(&mut self, bytes: u32) {
        for (_, len) in &mut self.rx_free {
            *len = bytes;
        }
    }

    /// Gives every free receive buffer to the device.
    pub fn refill(&mut self) {
        while let Some(&(at, len)) = self.rx_free.last() {
            let parts = cut(at, len, self.layout.rx);
            let table = self
                .layout
                .indirect
                .then(|| TABLES + (at - RX_BUFFERS) / u64::from(RX_BYTES) * 0x1000);
            let Some(head) = self.rx.offer(&self.mem, &parts, table) else {
                break;
            };
            self.rx_free.pop();
            self.rx_at.insert(head, (at, len));
        }
        if self.rx.needs_kick(&self.mem) {
            self.rig.kick(RX);
        }
    }

    /// Puts one packet in the tx queue as it is; false where the queue is full.
    pub fn push(&mut self, header: &Header, payload: &[u8]) -> bool {
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(payload);
        self.push_raw(&bytes)
    }

    /// Puts any bytes in the tx queue.
    pub fn push_raw(&mut self, bytes: &[u8]) -> bool {
        self.collect_tx();
        let Some(at) = self.tx_free.pop() else {
            return false;
        };
        self.mem
            .write_slice(bytes, GuestAddress(at))
            .expect("a packet lies in memory");
        let parts = cut(
            at,
            u32::try_from(bytes.len()).expect("a packet is short"),
            self.layout.tx,
        );
        let table = self
            .layout
            .indirect
            .then(|| TABLES + 0x8_0000 + (at - TX_BUFFERS) / TX_BYTES * 0x1000);
        self.push_parts(&parts, table, at)
    }

    /// Puts any chain in the tx queue, `parts` pointing wherever they want.
    pub fn push_chain(&mut self, parts: &[Part]) -> bool {
        self.collect_tx();
        let Some(at) = self.tx_free.pop() else {
            return false;
        };
        self.push_parts(parts, None, at)
    }

    fn push_parts(&mut self, parts: &[Part], table: Option<u64>, at: u64) -> bool {
        let Some(head) = self.tx.offer(&self.mem, parts, table) else {
            self.tx_free.push(at);
            return false;
        };
        self.tx_at.insert(head, at);
        if self.tx.needs_kick(&self.mem) {
            self.rig.kick(TX);
        }
        true
    }

    fn collect_tx(&mut self) {
        while let Some((head, _)) = self.tx.used(&self.mem) {
            self.tx_free.extend(self.tx_at.remove(&head));
        }
    }

    /// Chains that the device has not given back.
    pub fn tx_pending(&mut self) -> usize {
        self.collect_tx();
        self.tx_at.len()
    }

    /// Sends a packet of a socket layer, waiting for a place in the queue.
    pub fn send(&mut self, name: Name, op: Op, flags: u32, payload: &[u8]) {
        let header = self.header(name, op, flags, payload.len());
        let until = Instant::now() + PATIENCE;
        while !self.push(&header, payload) {
            assert!(Instant::now() < until, "the device does not take packets");
            self.turn(Duration::from_millis(5));
        }
    }

    /// A header of this guest for a connection, with its credit.
    pub fn header(&mut self, (guest, host): Name, op: Op, flags: u32, len: usize) -> Header {
        let (buf_alloc, fwd_cnt) = self.sockets.get_mut(&(guest, host)).map_or((0, 0), |sock| {
            sock.announced = sock.forwarded;
            (sock.window, sock.forwarded)
        });
        Header {
            src_cid: self.rig.cid(),
            dst_cid: HOST_CID,
            src_port: guest,
            dst_port: host,
            len: u32::try_from(len).expect("a packet is short"),
            kind: TYPE_STREAM,
            op: op as u16,
            flags,
            buf_alloc,
            fwd_cnt,
        }
    }

    /// Sends data without a look at the credit; false where the queue is full.
    pub fn overrun(&mut self, name: Name, payload: &[u8]) -> bool {
        let header = self.header(name, Op::ReadWrite, 0, payload.len());
        let pushed = self.push(&header, payload);
        if let Some(sock) = self.sockets.get_mut(&name).filter(|_| pushed) {
            sock.sent = sock.sent.wrapping_add(header.len);
        }
        pushed
    }

    /// Starts a connection to a port of the host.
    pub fn dial(&mut self, port: u32, window: u32) -> Name {
        let name = (self.next_port, port);
        self.next_port += 1;
        self.dial_as(name, window);
        name
    }

    pub fn dial_as(&mut self, name: Name, window: u32) {
        self.sockets.insert(
            name,
            Sock {
                window,
                reads: self.reads,
                ..Sock::default()
            },
        );
        self.send(name, Op::Request, 0, &[]);
    }

    /// Gives all that was read by nobody back as credit.
    pub fn read(&mut self, name: Name, bytes: usize) -> Vec<u8> {
        let sock = self.sockets.get_mut(&name).expect("a socket");
        let take = bytes.min(sock.inbox.len());
        let read: Vec<u8> = sock.inbox.drain(..take).collect();
        sock.forwarded = sock
            .forwarded
            .wrapping_add(u32::try_from(take).expect("a window"));
        self.send(name, Op::CreditUpdate, 0, &[]);
        read
    }

    /// One turn of everything; whether anything moved.
    pub fn turn(&mut self, timeout: Duration) {
        let [rx, tx] = self.rig.wait(timeout);
        if rx {
            while let Some((head, len)) = self.rx.used(&self.mem) {
                let (at, room) = self.rx_at.remove(&head).expect("a receive buffer");
                assert!(len <= room, "the device wrote {len} bytes in {room}");
                self.rx_free.push((at, room));
                let mut bytes = vec![0; len as usize];
                self.mem
                    .read_slice(&mut bytes, GuestAddress(at))
                    .expect("a packet");
                if len > 0 {
                    self.take(&bytes);
                }
            }
        }
        if tx {
            self.collect_tx();
        }
        if self.refills {
            self.refill();
        }
        self.write();
    }

    /// Lets the device work and takes its packets, without waiting.
    pub fn rig_turn(&mut self) {
        self.turn(Duration::ZERO);
    }

    /// Turns until `done`, or the case fails.
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(
                Instant::now() < until,
                "never happened: {what}; {} chains pending, {:?}, stray {:?}",
                self.tx_at.len(),
                self.sockets,
                self.stray
            );
            self.turn(Duration::from_millis(2));
        }
    }

    /// Turns until a thread of the host is done.
    pub fn join<T>(&mut self, thread: JoinHandle<T>) -> T {
        self.until("the host's program ends", |_| thread.is_finished());
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Turns for a while: what should not happen gets its chance.
    pub fn idle(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.turn(Duration::from_millis(5));
        }
    }

    /// The next packet that is for no socket.
    pub fn stray(&mut self) -> Packet {
        self.until("a packet comes", |guest| !guest.stray.is_empty());
        self.stray.pop_front().expect("just seen")
    }

    /// Waits until a socket is connected or refused; whether it is connected.
    pub fn connected(&mut self, name: Name) -> bool {
        self.until("an answer to a request", |guest| {
            guest
                .sockets
                .get(&name)
                .is_some_and(|sock| sock.established || sock.reset)
        });
        !self.sockets[&name].reset
    }

    /// The one socket of a guest port that the host connected to.
    pub fn accepted(&mut self, port: u32) -> Name {
        let mut found = None;
        self.until("the host connects", |guest| {
            found = guest
                .sockets
                .keys()
                .copied()
                .find(|(guest, _)| *guest == port);
            found.is_some()
        });
        found.expect("just seen")
    }

    fn take(&mut self, bytes: &[u8]) {
        let raw = bytes
            .first_chunk::<HEADER_BYTES>()
            .expect("a packet has a header");
        let packet = Packet {
            header: Header::decode(raw),
            payload: bytes[HEADER_BYTES..].to_vec(),
        };
        let header = packet.header;
        assert_eq!(
            packet.payload.len(),
            header.len as usize,
            "length of {header:?}"
        );
        let name = (header.dst_port, header.src_port);
        let op = packet.op();
        if op != Op::Reset {
            assert_eq!(
                (header.src_cid, header.dst_cid),
                (HOST_CID, self.rig.cid()),
                "addresses of {header:?}"
            );
            assert_eq!(header.kind, TYPE_STREAM);
        }
        if op == Op::Request
            && let Some(window) = self.listening.get(&name.0).copied()
        {
            assert!(
                self.sockets.get(&name).is_none_or(|sock| sock.reset),
                "ports are given once"
            );
            let sock = Sock {
                window,
                reads: self.reads,
                established: true,
                ..Sock::default()
            };
            self.sockets.insert(name, sock);
            self.credit(name, &header);
            self.send(name, Op::Response, 0, &[]);
            return;
        }
        if self.sockets.get(&name).is_none_or(|sock| sock.reset) {
            self.stray.push_back(packet);
            return;
        }
        if op != Op::Reset {
            self.credit(name, &header);
        }
        let Some(sock) = self.sockets.get_mut(&name) else {
            return;
        };
        match op {
            Op::Response => {
                assert!(!sock.established, "one RESPONSE");
                sock.established = true;
            }
            Op::ReadWrite => {
                assert!(sock.established, "data comes after the connection");
                assert_eq!(
                    sock.peer_shut & shutdown::SEND,
                    0,
                    "data comes before the end"
                );
                sock.received = sock.received.wrapping_add(header.len);
                assert!(
                    sock.received.wrapping_sub(sock.forwarded) <= sock.window,
                    "the device keeps to the credit: {sock:?}"
                );
                sock.total_in += u64::from(header.len);
                sock.inbox.extend_from_slice(&packet.payload);
                if sock.reads {
                    sock.forwarded = sock.received;
                    let used = sock.received.wrapping_sub(sock.announced);
                    if used > sock.window / 2 {
                        self.send(name, Op::CreditUpdate, 0, &[]);
                    }
                }
            }
            Op::Shutdown => {
                assert_eq!(
                    sock.peer_shut & header.flags,
                    sock.peer_shut,
                    "a shutdown is not taken back"
                );
                sock.peer_shut = header.flags;
                if sock.peer_shut == shutdown::BOTH && sock.reads {
                    sock.reset = true;
                    self.send(name, Op::Reset, 0, &[]);
                }
            }
            Op::CreditRequest => {
                sock.asked += 1;
                self.send(name, Op::CreditUpdate, 0, &[]);
            }
            Op::Reset => sock.reset = true,
            Op::CreditUpdate => {}
            Op::Request => panic!("the device asked again for {name:?}"),
        }
    }

    /// Learns from a header, and checks the device's counters.
    fn credit(&mut self, name: Name, header: &Header) {
        let Some(sock) = self.sockets.get_mut(&name) else {
            return;
        };
        let step = header.fwd_cnt.wrapping_sub(sock.peer_forwarded);
        assert!(
            step <= sock.in_flight(),
            "the device forwarded what was not sent: {header:?} {sock:?}"
        );
        assert!(
            sock.peer_window == 0 || header.buf_alloc >= sock.peer_window,
            "credit is not taken back"
        );
        sock.peer_forwarded = header.fwd_cnt;
        sock.peer_window = header.buf_alloc;
    }

    /// Sends what the credit of each socket allows.
    fn write(&mut self) {
        let names: Vec<Name> = self
            .sockets
            .iter()
            .filter(|(_, sock)| sock.established && !sock.reset)
            .map(|(name, _)| *name)
            .collect();
        for name in names {
            while let Some(sock) = self.sockets.get_mut(&name) {
                let len = (sock.credit() as usize)
                    .min(sock.outbox.len())
                    .min(PAYLOAD_MAX);
                if len == 0 || sock.peer_shut & shutdown::RECEIVE != 0 || self.tx_free.is_empty() {
                    break;
                }
                let payload: Vec<u8> = sock.outbox.drain(..len).collect();
                sock.sent = sock
                    .sent
                    .wrapping_add(u32::try_from(len).expect("a window"));
                let header = self.header(name, Op::ReadWrite, 0, len);
                if !self.push(&header, &payload) {
                    let Some(sock) = self.sockets.get_mut(&name) else {
                        break;
                    };
                    sock.sent = sock.sent.wrapping_sub(header.len);
                    for byte in payload.into_iter().rev() {
                        sock.outbox.push_front(byte);
                    }
                    break;
                }
            }
            let Some(sock) = self.sockets.get_mut(&name) else {
                continue;
            };
            if sock.outbox.is_empty() && sock.closing != sock.told {
                sock.told = sock.closing;
                let flags = sock.closing;
                self.send(name, Op::Shutdown, flags, &[]);
            }
        }
    }
}

fn setup(event_idx: bool) -> Setup {
    let place = |index: u64| QueuePlace {
        descriptors: RINGS + index * 0x4000,
        avail: RINGS + index * 0x4000 + 0x1000,
        used: RINGS + index * 0x4000 + 0x2000,
    };
    Setup {
        queues: [place(0), place(1), place(2)],
        event_idx,
    }
}

/// Cuts a run into descriptors of `size`.
fn cut(at: u64, len: u32, size: u32) -> Vec<Part> {
    (0..len)
        .step_by(size as usize)
        .map(|from| Part {
            at: at + u64::from(from),
            len: size.min(len - from),
        })
        .collect()
}
