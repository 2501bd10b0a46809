//! Who asked what, what became of it, and who is still waiting.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use hickory_proto::op::{Message, ResponseCode};
use vmm_sys_util::epoll::EventSet;

use super::{
    client::Client,
    flight::{Flight, Progress, code_of, for_client},
    learn::{Committed, GRACE, Lesson, read as lesson_of},
    question::{Asked, Question, read},
    zone::{Verdict, decide},
};
use crate::net::{
    context::Context,
    error::NetError,
    message::{DnsStats, Told},
    poll::{Kind, Poll},
    state::State,
    sys,
};

/// How long an upstream, and the daemon with a commit, have time.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a question is sent on before its client has certainly given up.
const ATTEMPTS_MAX: usize = 5;
/// Questions that wait at once, in all and of one client.
const WAITING_MAX: usize = 512;
const WAITING_PER_CLIENT_MAX: usize = 64;
/// Connections of guests, in all and of one client.
const CLIENTS_MAX: usize = 256;
const CLIENTS_PER_ADDRESS_MAX: usize = 16;
/// Datagrams that are answered before others have their turn.
const TURN: usize = 64;
/// Longest message by TCP.
const TCP_BYTES_MAX: usize = 65_535;

/// Where an answer goes.
#[derive(Clone, Copy, Debug)]
enum Origin {
    Udp { socket: usize, address: SocketAddr },
    Tcp { client: u64 },
}

#[derive(Debug)]
struct Waiting {
    origin: Origin,
    client: IpAddr,
    question: Question,
    learn: bool,
    stage: Stage,
    deadline: Instant,
}

#[derive(Debug)]
enum Stage {
    Flying {
        flight: Flight,
        upstream: SocketAddr,
        attempts: usize,
    },
    Committing {
        answer: Message,
        ttl: u32,
    },
}

#[derive(Debug)]
pub struct Dns {
    udp: Vec<OwnedFd>,
    tcp: Vec<OwnedFd>,
    clients: HashMap<u64, Client>,
    waiting: HashMap<u64, Waiting>,
    committed: Committed,
    /// The upstream that answered last: the next question begins there.
    preferred: Option<SocketAddr>,
    next: u64,
    turn: usize,
    /// Connections that were answered: they may have asked more already, which was not read until then.
    unserved: Vec<u64>,
    /// A listener waits until there are descriptors again.
    is_paused: bool,
    pub stats: DnsStats,
}

impl Dns {
    pub fn new(udp: Vec<OwnedFd>, tcp: Vec<OwnedFd>, poll: &Poll) -> Result<Self, NetError> {
        for (kind, sockets) in [(Kind::DnsUdp, &udp), (Kind::DnsTcp, &tcp)] {
            for (number, socket) in (0..).zip(sockets) {
                poll.add(socket.as_raw_fd(), kind, number, EventSet::IN)
                    .map_err(NetError::io("wait for DNS"))?;
            }
        }
        Ok(Self {
            udp,
            tcp,
            clients: HashMap::new(),
            waiting: HashMap::new(),
            committed: Committed::default(),
            preferred: None,
            next: 0,
            turn: 0,
            unserved: Vec::new(),
            is_paused: false,
            stats: DnsStats::default(),
        })
    }

    /// The addresses that guests reach it at.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.udp
            .iter()
            .filter_map(sys::local_address)
            .map(|address| address.ip())
    }

    pub fn on_udp(&mut self, socket: usize, ctx: &mut Context) {
        for _ in 0..TURN {
            let Some(fd) = self.udp.get(socket) else {
                return;
            };
            let (len, address) = match sys::recv_from(fd, ctx.scratch) {
                Ok((len, Some(address))) => (len, address),
                Ok(_) => continue,
                Err(_) => return,
            };
            let packet = ctx.scratch[..len].to_vec();
            let origin = Origin::Udp { socket, address };
            self.on_packet(origin, address.ip(), &packet, None, ctx);
        }
    }

    pub fn on_tcp(&mut self, socket: usize, ctx: &mut Context) {
        for _ in 0..TURN {
            let Some(fd) = self.tcp.get(socket) else {
                return;
            };
            let (fd, address) = match sys::accept(fd) {
                Ok((fd, Some(address))) => (fd, address),
                Ok(_) => continue,
                Err(error) if sys::is_later(&error) => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                // It would be found so again at once: it is left alone for a while.
                Err(_) => {
                    let fd = fd.as_raw_fd();
                    let number = socket as u64;
                    ctx.poll.change(fd, Kind::DnsTcp, number, EventSet::empty());
                    self.is_paused = true;
                    return;
                }
            };
            let of_address = self
                .clients
                .values()
                .filter(|client| client.address.ip() == address.ip())
                .count();
            let is_inside = ctx
                .state
                .is_some_and(|state| state.network.contains(address.ip()));
            if !is_inside
                || of_address >= CLIENTS_PER_ADDRESS_MAX
                || self.clients.len() >= CLIENTS_MAX
            {
                sys::reset(fd);
                continue;
            }
            self.next += 1;
            let number = self.next;
            if let Ok(client) = Client::new(fd, address, number, ctx.poll, ctx.now) {
                self.clients.insert(number, client);
            }
        }
    }

    pub fn on_client(&mut self, number: u64, events: EventSet, ctx: &mut Context) {
        let Some(client) = self.clients.get_mut(&number) else {
            return;
        };
        if client.on_event(events, ctx.scratch, ctx.now).is_err() {
            self.clients.remove(&number);
            return;
        }
        self.unserved.push(number);
        self.settle(ctx);
    }

    /// Serves connections until none of them has a question that may be answered now.
    fn settle(&mut self, ctx: &mut Context) {
        while let Some(number) = self.unserved.pop() {
            self.serve_client(number, ctx);
        }
    }

    /// Answers what a connection has asked, and waits for what it asks next.
    fn serve_client(&mut self, number: u64, ctx: &mut Context) {
        loop {
            let Some(client) = self.clients.get_mut(&number) else {
                return;
            };
            let address = client.address.ip();
            match client.next() {
                Ok(Some(packet)) => {
                    let origin = Origin::Tcp { client: number };
                    self.on_packet(origin, address, &packet, Some(TCP_BYTES_MAX), ctx);
                }
                Ok(None) if client.rearm(number, ctx.poll) => return,
                Ok(None) | Err(_) => {
                    self.clients.remove(&number);
                    return;
                }
            }
        }
    }

    fn on_packet(
        &mut self,
        origin: Origin,
        client: IpAddr,
        packet: &[u8],
        limit: Option<usize>,
        ctx: &mut Context,
    ) {
        let inside = ctx.state.filter(|state| state.network.contains(client));
        let Some(state) = inside else {
            return self.send(origin, &[], ctx);
        };
        let question = match read(packet, limit) {
            Asked::Question(question) => *question,
            Asked::Wrong(bytes) => return self.answer(origin, &bytes, ctx),
            Asked::Nothing => return self.send(origin, &[], ctx),
        };
        self.turn = self.turn.wrapping_add(1);
        match decide(state, client, &question, self.turn) {
            Verdict::Answer(message) => self.answer(origin, &question.encode(&message), ctx),
            Verdict::Refuse(message) => {
                self.stats.refused += 1;
                self.answer(origin, &question.encode(&message), ctx);
            }
            Verdict::Forward { learn } if learn && !ctx.control.is_connected() => {
                match self.committed.get(client, &question, ctx.now) {
                    Some(message) => self.answer(origin, &question.encode(&message), ctx),
                    None => self.fail(origin, &question, ctx),
                }
            }
            Verdict::Forward { learn } => self.forward(origin, client, question, learn, state, ctx),
        }
    }

    fn forward(
        &mut self,
        origin: Origin,
        client: IpAddr,
        question: Question,
        learn: bool,
        state: &State,
        ctx: &mut Context,
    ) {
        let of_client = self
            .waiting
            .values()
            .filter(|waiting| waiting.client == client)
            .count();
        if self.waiting.len() >= WAITING_MAX || of_client >= WAITING_PER_CLIENT_MAX {
            return self.fail(origin, &question, ctx);
        }
        self.stats.forwarded += 1;
        self.next += 1;
        let number = self.next;
        let by_tcp = matches!(origin, Origin::Tcp { .. });
        match self.fly(state, &question, None, 0, by_tcp, number, ctx) {
            Some(stage) => {
                let waiting = Waiting {
                    origin,
                    client,
                    question,
                    learn,
                    stage,
                    deadline: ctx.now + PATIENCE,
                };
                self.waiting.insert(number, waiting);
            }
            None => self.fail(origin, &question, ctx),
        }
    }

    /// Sends a question to the upstream behind `last`, or to the first that takes it; `None` where all had their turn.
    #[allow(clippy::too_many_arguments)]
    fn fly(
        &self,
        state: &State,
        question: &Question,
        last: Option<SocketAddr>,
        attempts: usize,
        by_tcp: bool,
        number: u64,
        ctx: &Context,
    ) -> Option<Stage> {
        let upstreams = &state.upstreams;
        let place = |of: SocketAddr| upstreams.iter().position(|one| *one == of);
        let first = match last {
            Some(last) => place(last).map_or(0, |at| at + 1),
            None => self.preferred.and_then(place).unwrap_or(0),
        };
        let most = upstreams.len().min(ATTEMPTS_MAX);
        (attempts..most).find_map(|attempt| {
            let at = (first + attempt - attempts) % upstreams.len();
            let upstream = *upstreams.get(at)?;
            let flight = Flight::start(question, &upstream, by_tcp, number, ctx.poll).ok()?;
            Some(Stage::Flying {
                flight,
                upstream,
                attempts: attempt + 1,
            })
        })
    }

    pub fn on_upstream(&mut self, number: u64, ctx: &mut Context) {
        let Some(Waiting {
            stage: Stage::Flying {
                flight, upstream, ..
            },
            ..
        }) = self.waiting.get_mut(&number)
        else {
            return;
        };
        let upstream = *upstream;
        match flight.on_event(number, ctx.poll, ctx.scratch) {
            Progress::Waiting => {}
            Progress::Failed => self.try_next(number, ctx),
            Progress::ByTcp => self.again_by_tcp(number, upstream, ctx),
            Progress::Answer(bytes) => {
                // SERVFAIL and REFUSED are no answers while another can be asked.
                if matches!(code_of(&bytes), 2 | 5) && self.has_more(number, ctx) {
                    self.try_next(number, ctx);
                } else {
                    self.preferred = Some(upstream);
                    self.on_answer(number, bytes, ctx);
                }
            }
        }
        self.settle(ctx);
    }

    fn has_more(&self, number: u64, ctx: &Context) -> bool {
        let most = ctx
            .state
            .map_or(0, |state| state.upstreams.len().min(ATTEMPTS_MAX));
        match self.waiting.get(&number).map(|waiting| &waiting.stage) {
            Some(Stage::Flying { attempts, .. }) => *attempts < most,
            _ => false,
        }
    }

    fn again_by_tcp(&mut self, number: u64, to: SocketAddr, ctx: &mut Context) {
        let Some(waiting) = self.waiting.get_mut(&number) else {
            return;
        };
        let Stage::Flying { flight, .. } = &mut waiting.stage else {
            return;
        };
        match Flight::start(&waiting.question, &to, true, number, ctx.poll) {
            Ok(by_tcp) => {
                *flight = by_tcp;
                waiting.deadline = ctx.now + PATIENCE;
            }
            Err(_) => self.try_next(number, ctx),
        }
    }

    fn try_next(&mut self, number: u64, ctx: &mut Context) {
        let Some(mut waiting) = self.waiting.remove(&number) else {
            return;
        };
        let next = match (&waiting.stage, ctx.state) {
            (
                Stage::Flying {
                    upstream, attempts, ..
                },
                Some(state),
            ) => {
                let by_tcp = matches!(waiting.origin, Origin::Tcp { .. });
                let last = Some(*upstream);
                self.fly(
                    state,
                    &waiting.question,
                    last,
                    *attempts,
                    by_tcp,
                    number,
                    ctx,
                )
            }
            _ => None,
        };
        match next {
            Some(stage) => {
                waiting.stage = stage;
                waiting.deadline = ctx.now + PATIENCE;
                self.waiting.insert(number, waiting);
            }
            None => self.fail(waiting.origin, &waiting.question, ctx),
        }
    }

    fn on_answer(&mut self, number: u64, bytes: Vec<u8>, ctx: &mut Context) {
        let Some(mut waiting) = self.waiting.remove(&number) else {
            return;
        };
        let question = &waiting.question;
        if !waiting.learn {
            let bytes = for_client(question, bytes);
            return self.answer(waiting.origin, &bytes, ctx);
        }
        let Some(state) = ctx.state else {
            return;
        };
        match lesson_of(&state.network, question, &bytes) {
            Lesson::Pass(message) => self.answer(waiting.origin, &question.encode(&message), ctx),
            Lesson::Filter(message) => {
                self.stats.refused += 1;
                self.answer(waiting.origin, &question.encode(&message), ctx);
            }
            Lesson::Learn {
                answer,
                addresses,
                ttl,
            } => {
                let told = Told::Learned {
                    id: number,
                    client: waiting.client.to_canonical(),
                    name: &question.name,
                    addresses: &addresses,
                    ttl,
                    grace: GRACE,
                };
                ctx.control.send(&told, ctx.poll);
                if !ctx.control.is_connected() {
                    return self.fail(waiting.origin, question, ctx);
                }
                waiting.stage = Stage::Committing { answer, ttl };
                waiting.deadline = ctx.now + PATIENCE;
                self.waiting.insert(number, waiting);
            }
        }
    }

    /// The daemon's word on what was learned; one that comes too late finds nobody.
    pub fn on_commit(&mut self, number: u64, is_ok: bool, ctx: &mut Context) {
        let is_there = matches!(
            self.waiting.get(&number).map(|waiting| &waiting.stage),
            Some(Stage::Committing { .. })
        );
        let Some(waiting) = is_there.then(|| self.waiting.remove(&number)).flatten() else {
            return;
        };
        match &waiting.stage {
            Stage::Committing { answer, ttl } if is_ok => {
                let question = &waiting.question;
                self.committed
                    .put(waiting.client, question, answer, *ttl, ctx.now);
                self.answer(waiting.origin, &question.encode(answer), ctx);
            }
            _ => self.fail(waiting.origin, &waiting.question, ctx),
        }
        self.settle(ctx);
    }

    /// Nobody is there to commit any more.
    pub fn on_controller_gone(&mut self, ctx: &mut Context) {
        let committing: Vec<_> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| matches!(waiting.stage, Stage::Committing { .. }))
            .map(|(number, _)| *number)
            .collect();
        for number in committing {
            self.on_commit(number, false, ctx);
        }
    }

    pub fn on_state_changed(&mut self, before: Option<&State>, after: &State) {
        if let Some(before) = before {
            self.committed.forget_changed(before, after);
        }
    }

    /// Forgets what was committed for these addresses.
    pub fn forget(&mut self, clients: impl Iterator<Item = IpAddr>) {
        for client in clients {
            self.committed.forget(client);
        }
    }

    pub fn needs_ticks(&self) -> bool {
        self.is_paused || !(self.waiting.is_empty() && self.clients.is_empty())
    }

    pub fn on_tick(&mut self, ctx: &mut Context) {
        let late: Vec<_> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| waiting.deadline <= ctx.now)
            .map(|(number, waiting)| {
                let is_flying = matches!(waiting.stage, Stage::Flying { .. });
                (*number, is_flying)
            })
            .collect();
        for (number, is_flying) in late {
            if is_flying {
                self.try_next(number, ctx);
            } else {
                self.on_commit(number, false, ctx);
            }
        }
        self.clients.retain(|_, client| !client.is_idle(ctx.now));
        if std::mem::take(&mut self.is_paused) {
            for (number, socket) in (0..).zip(&self.tcp) {
                let fd = socket.as_raw_fd();
                ctx.poll.change(fd, Kind::DnsTcp, number, EventSet::IN);
            }
        }
        self.settle(ctx);
    }

    fn fail(&mut self, origin: Origin, question: &Question, ctx: &mut Context) {
        self.stats.servfail += 1;
        self.answer(origin, &question.plain(ResponseCode::ServFail), ctx);
    }

    fn answer(&mut self, origin: Origin, bytes: &[u8], ctx: &mut Context) {
        self.stats.answers += 1;
        self.send(origin, bytes, ctx);
    }

    /// Sends an answer; an empty one says that there is none.
    fn send(&mut self, origin: Origin, bytes: &[u8], ctx: &mut Context) {
        match origin {
            Origin::Udp { socket, address } => {
                if let Some(fd) = self.udp.get(socket).filter(|_| !bytes.is_empty()) {
                    // A guest that reads nothing asks again.
                    let _ = sys::send_to(fd, bytes, &address);
                }
            }
            Origin::Tcp { client: number } => {
                let Some(client) = self.clients.get_mut(&number) else {
                    return;
                };
                if client.answer(bytes, ctx.now).is_err() {
                    self.clients.remove(&number);
                } else {
                    self.unserved.push(number);
                }
            }
        }
    }
}
