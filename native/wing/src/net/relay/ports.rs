//! All listeners of the network, their connections, and their clients by UDP.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use vmm_sys_util::epoll::EventSet;

use super::{
    listener::{CONNECTIONS_MAX, Listener},
    pair::{Pair, Side},
};
use crate::net::{
    context::Context,
    message::{Listen, ListenerStats, Proto, Refusal},
    poll::{Kind, Poll},
    sys::{self, Expected},
};

/// How long a target may take to answer.
const DIAL: Duration = Duration::from_secs(10);
/// How long a client by UDP is remembered without a datagram.
const QUIET: Duration = Duration::from_secs(60);
const LISTENERS_MAX: usize = 4096;
/// Descriptors of all connections and clients: 4,096 by TCP.
const DESCRIPTORS_MAX: usize = 8192;
/// Descriptors that are not for connections: listeners, questions on their way, guests that ask, and what a process has.
const DESCRIPTORS_KEPT: usize = 1536;
/// What is used all the same where the limit of open files is very low.
const DESCRIPTORS_MIN: usize = 128;
/// Connections or datagrams before others have their turn.
const TURN: usize = 64;

const TCP: Expected = Expected {
    words: "a listening TCP socket",
    domains: &[libc::AF_INET, libc::AF_INET6],
    kind: libc::SOCK_STREAM,
    listening: true,
};
const UDP: Expected = Expected {
    words: "a UDP socket",
    domains: &[libc::AF_INET, libc::AF_INET6],
    kind: libc::SOCK_DGRAM,
    listening: false,
};

/// One client by UDP: a socket of its own, so that the guest's answers find it.
#[derive(Debug)]
struct Flow {
    listener: u64,
    client: SocketAddr,
    fd: OwnedFd,
    last: Instant,
}

#[derive(Debug)]
pub struct Ports {
    listeners: HashMap<u64, Listener>,
    pairs: HashMap<u64, Pair>,
    flows: HashMap<u64, Flow>,
    flow_of: HashMap<(u64, SocketAddr), u64>,
    /// Pairs that have more to move without an event.
    ready: Vec<u64>,
    /// Pairs whose target has not answered yet.
    dialling: HashSet<u64>,
    next: u64,
    descriptors_max: usize,
}

impl Ports {
    /// `descriptors` is how many the process may have.
    pub fn new(descriptors: usize) -> Self {
        let left = descriptors.saturating_sub(DESCRIPTORS_KEPT);
        Self {
            listeners: HashMap::new(),
            pairs: HashMap::new(),
            flows: HashMap::new(),
            flow_of: HashMap::new(),
            ready: Vec::new(),
            dialling: HashSet::new(),
            next: 0,
            descriptors_max: left.clamp(DESCRIPTORS_MIN, DESCRIPTORS_MAX),
        }
    }

    /// # Errors
    /// `listener_exists`, `too_many`, `fd_missing`, `fd_invalid`; then the descriptor is closed.
    pub fn listen(
        &mut self,
        said: Listen,
        fd: Option<OwnedFd>,
        poll: &Poll,
    ) -> Result<(), Refusal> {
        let fd = fd.ok_or_else(|| Refusal::new("fd_missing", "no descriptor came with it"))?;
        if self.number_of(&said.id).is_some() {
            let message = format!("there is a listener {:?} already", said.id);
            return Err(Refusal::new("listener_exists", message));
        }
        if self.listeners.len() >= LISTENERS_MAX {
            let message = format!("there are {LISTENERS_MAX} listeners already");
            return Err(Refusal::new("too_many", message));
        }
        let (expected, kind) = match said.proto {
            Proto::Tcp => (TCP, Kind::TcpListener),
            Proto::Udp => (UDP, Kind::UdpListener),
        };
        self.next += 1;
        let number = self.next;
        sys::check(fd.as_raw_fd(), expected)
            .and_then(|()| sys::set_nonblocking(&fd))
            .and_then(|()| poll.add(fd.as_raw_fd(), kind, number, EventSet::IN))
            .map_err(|error| {
                let message = format!("the descriptor is not {}: {error}", expected.words);
                Refusal::new("fd_invalid", message)
            })?;
        let listener = Listener::new(said.id, said.proto, fd, said.target);
        self.listeners.insert(number, listener);
        Ok(())
    }

    /// # Errors
    /// `listener_unknown`.
    pub fn retarget(&mut self, id: &str, target: Option<SocketAddr>) -> Result<(), Refusal> {
        let number = self.known(id)?;
        if let Some(listener) = self.listeners.get_mut(&number) {
            listener.target = target;
        }
        self.drop_flows(number);
        Ok(())
    }

    /// # Errors
    /// `listener_unknown`.
    pub fn unlisten(&mut self, id: &str, poll: &Poll) -> Result<(), Refusal> {
        let number = self.known(id)?;
        let pairs: Vec<_> = self
            .pairs
            .iter()
            .filter(|(_, pair)| pair.listener == number)
            .map(|(pair, _)| *pair)
            .collect();
        for pair in pairs {
            self.end(pair, true);
        }
        self.drop_flows(number);
        if let Some(listener) = self.listeners.remove(&number) {
            // The daemon may hold the same socket: closing ours alone would leave it in the epoll.
            poll.remove(listener.fd.as_raw_fd());
        }
        Ok(())
    }

    pub fn stats(&self) -> Vec<ListenerStats<'_>> {
        let mut all: Vec<_> = self.listeners.values().map(Listener::stats).collect();
        all.sort_by(|a, b| a.id.cmp(b.id));
        all
    }

    fn descriptors(&self) -> usize {
        self.pairs.len() * 2 + self.flows.len()
    }

    fn number_of(&self, id: &str) -> Option<u64> {
        self.listeners
            .iter()
            .find(|(_, listener)| listener.id == id)
            .map(|(number, _)| *number)
    }

    fn known(&self, id: &str) -> Result<u64, Refusal> {
        self.number_of(id)
            .ok_or_else(|| Refusal::new("listener_unknown", format!("there is no listener {id:?}")))
    }

    pub fn on_tcp(&mut self, number: u64, ctx: &mut Context) {
        for _ in 0..TURN {
            let Some(listener) = self.listeners.get_mut(&number) else {
                return;
            };
            let client = match sys::accept(&listener.fd) {
                Ok((client, _)) => client,
                Err(error) if sys::is_exhausted(&error) => {
                    listener.note =
                        Some("it waits until other connections end: there are no descriptors left");
                    listener.is_paused = true;
                    let fd = listener.fd.as_raw_fd();
                    ctx.poll
                        .change(fd, Kind::TcpListener, number, EventSet::empty());
                    return;
                }
                Err(error) if sys::is_later(&error) => return,
                // The daemon shut the socket down; it would be found so for ever.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    listener.note = Some("the port's socket was shut down");
                    return ctx.poll.remove(listener.fd.as_raw_fd());
                }
                // One that was gone before it was taken.
                Err(_) => continue,
            };
            self.accepted(number, client, ctx);
        }
    }

    fn accepted(&mut self, number: u64, client: OwnedFd, ctx: &Context) {
        let is_full = self.descriptors() + 2 > self.descriptors_max;
        let Some(listener) = self.listeners.get_mut(&number) else {
            return;
        };
        listener.accepted += 1;
        let refusal = if is_full {
            Some("the network has as many connections as it may have")
        } else if listener.connections >= CONNECTIONS_MAX {
            Some("the port has as many connections as it may have")
        } else {
            None
        };
        if let Some(note) = refusal {
            listener.refuse(note);
            return sys::reset(client);
        }
        let Some(target) = listener.target else {
            listener.refuse("nobody is behind the port");
            return sys::reset(client);
        };
        let dialled = sys::socket(&target, libc::SOCK_STREAM)
            .and_then(|fd| sys::connect(&fd, &target).map(|()| fd));
        let Ok(dialled) = dialled else {
            listener.refuse("the guest cannot be reached");
            return sys::reset(client);
        };
        self.next += 1;
        let pair = self.next;
        let deadline = ctx.now + DIAL;
        match Pair::new(number, client, dialled, deadline, pair, ctx.poll) {
            Ok(one) => {
                listener.connections += 1;
                self.pairs.insert(pair, one);
                self.dialling.insert(pair);
            }
            Err(_) => listener.refuse("a socket could not be set up"),
        }
    }

    pub fn on_pair(&mut self, number: u64, side: Side, events: EventSet, ctx: &mut Context) {
        let Some(pair) = self.pairs.get_mut(&number) else {
            return;
        };
        match pair.on_event(side, events) {
            Ok(()) => {
                if pair.is_connected {
                    self.dialling.remove(&number);
                }
                self.pump(number, ctx);
            }
            Err(_) => {
                if !pair.is_connected && side == Side::Target {
                    let listener = pair.listener;
                    self.refuse(listener, "the guest refused the connection");
                }
                self.end(number, true);
            }
        }
    }

    /// Whether some pair has more to move without an event.
    pub fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    pub fn on_ready(&mut self, ctx: &mut Context) {
        for number in std::mem::take(&mut self.ready) {
            self.pump(number, ctx);
        }
    }

    fn pump(&mut self, number: u64, ctx: &mut Context) {
        let Some(pair) = self.pairs.get_mut(&number) else {
            return;
        };
        let Ok(moved) = pair.pump(ctx.scratch) else {
            return self.end(number, true);
        };
        if let Some(listener) = self.listeners.get_mut(&pair.listener) {
            listener.rx_bytes += moved.to_target;
            listener.tx_bytes += moved.to_client;
        }
        if moved.is_done {
            self.end(number, false);
        } else if moved.has_more && !self.ready.contains(&number) {
            self.ready.push(number);
        }
    }

    fn refuse(&mut self, listener: u64, note: &'static str) {
        if let Some(listener) = self.listeners.get_mut(&listener) {
            listener.refuse(note);
        }
    }

    /// Ends a connection: by RST, or as one that has said all.
    fn end(&mut self, number: u64, by_reset: bool) {
        let Some(pair) = self.pairs.remove(&number) else {
            return;
        };
        self.dialling.remove(&number);
        if let Some(listener) = self.listeners.get_mut(&pair.listener) {
            listener.connections = listener.connections.saturating_sub(1);
        }
        if by_reset {
            pair.reset();
        }
    }

    pub fn on_udp(&mut self, number: u64, ctx: &mut Context) {
        for _ in 0..TURN {
            let Some(listener) = self.listeners.get_mut(&number) else {
                return;
            };
            let (len, client) = match sys::recv_from(&listener.fd, ctx.scratch) {
                Ok((len, Some(client))) => (len, client),
                Ok(_) => continue,
                Err(error) if sys::is_later(&error) => return,
                // The error of an answer to a client that has gone.
                Err(_) => continue,
            };
            let Some(target) = listener.target else {
                listener.refuse("nobody is behind the port");
                continue;
            };
            let Some(flow) = self.flow(number, client, &target, ctx) else {
                self.refuse(number, "the guest cannot be reached");
                continue;
            };
            match self
                .flows
                .get(&flow)
                .map(|one| sys::send(&one.fd, &ctx.scratch[..len]))
            {
                Some(Ok(sent)) => self.count(number, sent as u64, 0),
                // A full buffer drops datagrams, as any network does.
                Some(Err(error)) if sys::is_later(&error) => {}
                _ => {
                    self.refuse(number, "the guest refused the datagram");
                    self.drop_flow(flow);
                }
            }
        }
    }

    pub fn on_flow(&mut self, number: u64, ctx: &mut Context) {
        for _ in 0..TURN {
            let Some(flow) = self.flows.get_mut(&number) else {
                return;
            };
            let owner = flow.listener;
            match sys::recv(&flow.fd, ctx.scratch) {
                Ok(len) => {
                    flow.last = ctx.now;
                    let client = flow.client;
                    let Some(listener) = self.listeners.get(&owner) else {
                        return;
                    };
                    if sys::send_to(&listener.fd, &ctx.scratch[..len], &client).is_ok() {
                        self.count(owner, 0, len as u64);
                    }
                }
                Err(error) if sys::is_later(&error) => return,
                Err(_) => {
                    self.refuse(owner, "the guest refused the datagram");
                    return self.drop_flow(number);
                }
            }
        }
    }

    fn count(&mut self, listener: u64, rx: u64, tx: u64) {
        if let Some(listener) = self.listeners.get_mut(&listener) {
            listener.rx_bytes += rx;
            listener.tx_bytes += tx;
        }
    }

    /// The socket of a client, made where there is none; the quietest one makes room.
    fn flow(
        &mut self,
        listener: u64,
        client: SocketAddr,
        target: &SocketAddr,
        ctx: &Context,
    ) -> Option<u64> {
        if let Some(number) = self.flow_of.get(&(listener, client)) {
            self.flows.get_mut(number)?.last = ctx.now;
            return Some(*number);
        }
        let is_full = self.descriptors() + 1 > self.descriptors_max;
        if is_full || self.listeners.get(&listener)?.connections >= CONNECTIONS_MAX {
            let quietest = self
                .flows
                .iter()
                .filter(|(_, flow)| flow.listener == listener)
                .min_by_key(|(_, flow)| flow.last)
                .map(|(number, _)| *number)?;
            self.drop_flow(quietest);
        }
        let dialled = || -> io::Result<OwnedFd> {
            let fd = sys::socket(target, libc::SOCK_DGRAM)?;
            sys::connect(&fd, target)?;
            Ok(fd)
        };
        let fd = dialled().ok()?;
        self.next += 1;
        let number = self.next;
        ctx.poll
            .add(fd.as_raw_fd(), Kind::UdpFlow, number, EventSet::IN)
            .ok()?;
        let flow = Flow {
            listener,
            client,
            fd,
            last: ctx.now,
        };
        self.flows.insert(number, flow);
        self.flow_of.insert((listener, client), number);
        if let Some(listener) = self.listeners.get_mut(&listener) {
            listener.accepted += 1;
            listener.connections += 1;
        }
        Some(number)
    }

    fn drop_flow(&mut self, number: u64) {
        if let Some(flow) = self.flows.remove(&number) {
            self.flow_of.remove(&(flow.listener, flow.client));
            if let Some(listener) = self.listeners.get_mut(&flow.listener) {
                listener.connections = listener.connections.saturating_sub(1);
            }
        }
    }

    fn drop_flows(&mut self, listener: u64) {
        let flows: Vec<_> = self
            .flows
            .iter()
            .filter(|(_, flow)| flow.listener == listener)
            .map(|(number, _)| *number)
            .collect();
        for flow in flows {
            self.drop_flow(flow);
        }
    }

    pub fn needs_ticks(&self) -> bool {
        !self.flows.is_empty()
            || !self.dialling.is_empty()
            || self.listeners.values().any(|listener| listener.is_paused)
    }

    pub fn on_tick(&mut self, ctx: &mut Context) {
        let late: Vec<_> = self
            .dialling
            .iter()
            .filter_map(|number| Some((*number, self.pairs.get(number)?)))
            .filter(|(_, pair)| pair.deadline <= ctx.now)
            .map(|(number, pair)| (number, pair.listener))
            .collect();
        for (number, listener) in late {
            self.refuse(listener, "the guest did not answer in time");
            self.end(number, true);
        }
        let quiet: Vec<_> = self
            .flows
            .iter()
            .filter(|(_, flow)| ctx.now.saturating_duration_since(flow.last) > QUIET)
            .map(|(number, _)| *number)
            .collect();
        for number in quiet {
            self.drop_flow(number);
        }
        for (number, listener) in &mut self.listeners {
            if std::mem::take(&mut listener.is_paused) {
                let fd = listener.fd.as_raw_fd();
                ctx.poll
                    .change(fd, Kind::TcpListener, *number, EventSet::IN);
            }
        }
    }
}
