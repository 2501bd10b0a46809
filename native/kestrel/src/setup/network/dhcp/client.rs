//! The client: a thread for each card, from the first question to the end of the guest or of what the card is.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::observe::console::say;
use crate::setup::network::dhcp::message::{
    Answer, Asker, Lease, MESSAGE_BYTES_MAX, Question, Times,
};
use crate::setup::network::link::{self, Link};
use crate::setup::network::socket;
use crate::sys::{Wake, is_ready, lock, poll, poll_entry, spawn_thread};

const CLIENT_PORT: u16 = 68;
const SERVER_PORT: u16 = 67;

/// Half seconds until a question is repeated, doubled each time to the second number. Servers of the same host answer in
/// milliseconds, and the first question may come before the other end listens.
const PATIENCE_MIN: u32 = 1;
const PATIENCE_MAX: u32 = 128;
/// The same for an offer that is taken, and an address of before; how often each is said.
const ANSWER: u32 = 4;
const TRIES: u32 = 3;
/// After a refusal.
const REST: u32 = 2;
/// Between two questions for more time, at least.
const RENEWAL_MIN: u32 = 60;
const CARRIER_MAX: u32 = 60;

/// What a client is to do.
#[derive(Clone, Debug)]
pub struct Plan {
    pub link: Link,
    pub hostname: String,
    /// What the card has of before, which may hold still.
    pub known: Option<Lease>,
    /// A second; tests have shorter ones.
    pub second: Duration,
}

/// A client that runs until it is dropped.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Ends every wait of the thread's, for good.
    wake: Wake,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    stopped: bool,
    lease: Option<Lease>,
}

/// The client was stopped.
struct Stopped;

impl Client {
    /// Starts a client. `apply` makes the card what a lease says, or takes the address away: it gets the lease of before and
    /// the new one. `told` follows, and may ask for the lease.
    ///
    /// # Errors
    /// No descriptor or no thread to be had.
    pub fn start(
        plan: Plan,
        apply: impl FnMut(Option<&Lease>, Option<&Lease>) + Send + 'static,
        told: impl Fn() + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            wake: Wake::new()?,
            state: Mutex::new(State {
                stopped: false,
                lease: plan.known.clone(),
            }),
            changed: Condvar::new(),
        });
        let thread = Thread {
            plan,
            shared: Arc::clone(&shared),
            apply,
            told,
        };
        spawn_thread("dhcp", move || {
            let Stopped = thread.run();
        })?;
        Ok(Self { shared })
    }

    /// What the card has now by DHCP.
    pub fn lease(&self) -> Option<Lease> {
        lock(&self.shared.state).lease.clone()
    }

    /// What tells when there is a lease, without the client.
    pub fn waiter(&self) -> Waiter {
        Waiter(Arc::clone(&self.shared))
    }
}

impl Drop for Client {
    /// Stops the client: nothing is applied any more when this returns.
    fn drop(&mut self) {
        lock(&self.shared.state).stopped = true;
        self.shared.wake.set();
        self.shared.changed.notify_all();
    }
}

/// Waits for a lease.
#[derive(Debug)]
pub struct Waiter(Arc<Shared>);

impl Waiter {
    /// Waits until there is one; `false` when there was none in time.
    pub fn wait(&self, deadline: Instant) -> bool {
        let mut state = lock(&self.0.state);
        while state.lease.is_none() && !state.stopped {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.0.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

struct Thread<A, T> {
    plan: Plan,
    shared: Arc<Shared>,
    apply: A,
    told: T,
}

impl<A: FnMut(Option<&Lease>, Option<&Lease>), T: Fn()> Thread<A, T> {
    fn run(mut self) -> Stopped {
        let mut known = self.plan.known.take();
        loop {
            let next = match self.obtain(known.take()) {
                Ok(lease) => self.keep(lease),
                Err(stopped) => Err(stopped),
            };
            if let Err(stopped) = next {
                return stopped;
            }
        }
    }

    /// So many half seconds.
    fn halves(&self, count: u32) -> Duration {
        self.plan.second.saturating_mul(count) / 2
    }

    /// A time of a lease.
    fn scaled(&self, time: Duration) -> Duration {
        let halves = u32::try_from(time.as_millis() / 500);
        self.halves(halves.unwrap_or(u32::MAX))
    }

    /// Asks until somebody gives an address.
    fn obtain(&mut self, known: Option<Lease>) -> Result<Lease, Stopped> {
        let (begin, mut said) = (Instant::now(), false);
        let deadline = begin + self.halves(CARRIER_MAX);
        let wake = self.shared.wake.fd();
        // Without a carrier, or without an answer to that question, it is asked all the same.
        let _ = link::carrier(self.plan.link.index, deadline, Some(wake));
        if let Some(IpAddr::V4(ip)) = known.map(|lease| lease.address.ip) {
            match self.exchange(Question::Confirm { ip }, None, begin)? {
                Some(Answer::Lease(lease)) => return Ok(lease),
                Some(Answer::Refused) => self.install(None)?,
                // Nobody knows it; it stays until somebody gives another one.
                _ => {}
            }
        }
        let mut patience = PATIENCE_MIN;
        loop {
            match self.offer(patience, begin) {
                Ok(Some((ip, server))) => {
                    match self.exchange(Question::Take { ip, server }, None, begin)? {
                        Some(Answer::Lease(lease)) => return Ok(lease),
                        _ => self.sleep(self.halves(REST))?,
                    }
                }
                Ok(None) => {}
                Err(Failed::Stopped) => return Err(Stopped),
                Err(Failed::Io(error)) => {
                    if !std::mem::replace(&mut said, true) {
                        say(&format!(
                            "{}: cannot ask by DHCP: {error}",
                            self.plan.link.name
                        ));
                    }
                    self.sleep(self.halves(patience))?;
                }
            }
            patience = (patience * 2).min(PATIENCE_MAX);
        }
    }

    fn offer(&self, patience: u32, begin: Instant) -> Result<Option<(Ipv4Addr, Ipv4Addr)>, Failed> {
        let (socket, asker) = self.open()?;
        let question = asker.say(Question::Discover, since(begin));
        let until = Instant::now() + self.halves(patience);
        self.ask(
            &socket,
            &asker,
            &question,
            None,
            until,
            |answer| match answer {
                Answer::Offer { ip, server } => Some((ip, server)),
                _ => None,
            },
        )
    }

    /// Asks a few times for something that is answered by a lease or a refusal.
    fn exchange(
        &self,
        question: Question,
        server: Option<Ipv4Addr>,
        begin: Instant,
    ) -> Result<Option<Answer>, Stopped> {
        let once = || {
            let (socket, asker) = self.open()?;
            for _ in 0..TRIES {
                let question = asker.say(question, since(begin));
                let until = Instant::now() + self.halves(ANSWER);
                let pick = |answer| (!matches!(answer, Answer::Offer { .. })).then_some(answer);
                let found = self.ask(&socket, &asker, &question, server, until, pick)?;
                if found.is_some() {
                    return Ok(found);
                }
            }
            Ok(None)
        };
        match once() {
            Ok(answer) => Ok(answer),
            Err(Failed::Stopped) => Err(Stopped),
            // As no answer: it is asked again later, and says so there.
            Err(Failed::Io(_)) => Ok(None),
        }
    }

    /// Keeps a lease for as long as it can be had.
    fn keep(&mut self, mut lease: Lease) -> Result<(), Stopped> {
        loop {
            let begin = Instant::now();
            let Times { renew, rebind, end } = lease.times;
            let IpAddr::V4(ip) = lease.address.ip else {
                return Ok(());
            };
            let server = lease.server;
            self.install(Some(lease))?;
            let (Some(renew), Some(rebind), Some(end)) = (renew, rebind, end) else {
                return Err(self.stop());
            };
            let at = |time| begin + self.scaled(time);
            let (rebind, end) = (at(rebind), at(end));
            let mut next = at(renew);
            let answer = loop {
                self.sleep(next.saturating_duration_since(Instant::now()))?;
                let now = Instant::now();
                if now >= end {
                    break None;
                }
                let asked = if now < rebind { server } else { None };
                let answer = self.exchange(Question::Renew { ip }, asked, now)?;
                if answer.is_some() {
                    break answer;
                }
                // RFC 2131 §4.4.5: half of what is left, of the time for this server and then of all.
                let limit = if now < rebind { rebind } else { end };
                let half = limit.saturating_duration_since(Instant::now()) / 2;
                next = (Instant::now() + half.max(self.halves(RENEWAL_MIN))).min(end);
            };
            match answer {
                Some(Answer::Lease(new)) => lease = new,
                _ => return self.install(None),
            }
        }
    }

    /// Waits for the stop.
    fn stop(&self) -> Stopped {
        let entry = poll_entry(self.shared.wake.fd(), libc::POLLIN);
        let _ = poll(&mut [entry], None);
        Stopped
    }

    fn sleep(&self, time: Duration) -> Result<(), Stopped> {
        let entry = poll_entry(self.shared.wake.fd(), libc::POLLIN);
        match poll(&mut [entry], Some(Instant::now() + time)) {
            Ok(false) => Ok(()),
            _ => Err(Stopped),
        }
    }

    /// Makes the card what the lease says, where that is something else than before.
    fn install(&mut self, lease: Option<Lease>) -> Result<(), Stopped> {
        let plan = |lease: &Option<Lease>| {
            let lease = lease.clone()?;
            let times = Times {
                renew: None,
                rebind: None,
                end: None,
            };
            Some(Lease { times, ..lease })
        };
        let mut state = lock(&self.shared.state);
        if state.stopped {
            return Err(Stopped);
        }
        let is_new = plan(&state.lease) != plan(&lease) || lease.is_none();
        if is_new {
            (self.apply)(state.lease.as_ref(), lease.as_ref());
        }
        state.lease = lease;
        drop(state);
        if is_new {
            (self.told)();
        }
        self.shared.changed.notify_all();
        Ok(())
    }

    /// A socket of the card's and a new exchange.
    fn open(&self) -> Result<(OwnedFd, Asker), Failed> {
        let index = self.plan.link.index;
        let state = link::state(&mut link::open()?, index)?;
        let socket = socket::open(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
        let on: libc::c_int = 1;
        for option in [libc::SO_REUSEADDR, libc::SO_BROADCAST] {
            socket::set(&socket, libc::SOL_SOCKET, option, &on)?;
        }
        socket::set(
            &socket,
            libc::SOL_SOCKET,
            libc::SO_BINDTOIFINDEX,
            &index.cast_signed(),
        )?;
        socket::bind(&socket, &inet(Ipv4Addr::UNSPECIFIED, CLIENT_PORT))?;
        let asker = Asker {
            mac: state.mac,
            exchange: random()?,
            hostname: self.plan.hostname.clone(),
        };
        Ok((socket, asker))
    }

    /// Sends a question, to everybody where no server is given, and hears answers until one is picked.
    fn ask<R>(
        &self,
        socket: &OwnedFd,
        asker: &Asker,
        question: &[u8],
        server: Option<Ipv4Addr>,
        until: Instant,
        pick: impl Fn(Answer) -> Option<R>,
    ) -> Result<Option<R>, Failed> {
        let to = inet(server.unwrap_or(Ipv4Addr::BROADCAST), SERVER_PORT);
        // What cannot be sent is as good as lost.
        let _ = socket::send_to(socket, question, &to);
        let mut buffer = vec![0; MESSAGE_BYTES_MAX];
        while Instant::now() < until {
            let mut entries = [
                poll_entry(socket.as_raw_fd(), libc::POLLIN),
                poll_entry(self.shared.wake.fd(), libc::POLLIN),
            ];
            if !poll(&mut entries, Some(until))? {
                break;
            }
            let [_, wake] = &entries;
            if is_ready(wake) {
                return Err(Failed::Stopped);
            }
            // An error is of the sending before, or of the link.
            let Ok(count) = socket::receive(socket, &mut buffer, libc::MSG_DONTWAIT) else {
                continue;
            };
            let bytes = buffer.get(..count).unwrap_or_default();
            if let Some(picked) = asker.hear(bytes).and_then(&pick) {
                return Ok(Some(picked));
            }
        }
        Ok(None)
    }
}

enum Failed {
    Stopped,
    Io(io::Error),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn since(begin: Instant) -> u16 {
    u16::try_from(begin.elapsed().as_secs()).unwrap_or(u16::MAX)
}

fn random() -> io::Result<u32> {
    let mut bytes = [0; 4];
    let (start, length) = (bytes.as_mut_ptr().cast(), bytes.len());
    // SAFETY: `bytes` is valid for writes of its length.
    crate::sys::check(unsafe { libc::getrandom(start, length, libc::GRND_NONBLOCK) })?;
    Ok(u32::from_ne_bytes(bytes))
}

fn inet(ip: Ipv4Addr, port: u16) -> libc::sockaddr_in {
    // SAFETY: sockaddr_in is plain data; zero is a value of it.
    let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    address.sin_family = socket::family(libc::AF_INET);
    address.sin_port = port.to_be();
    address.sin_addr.s_addr = ip.to_bits().to_be();
    address
}
