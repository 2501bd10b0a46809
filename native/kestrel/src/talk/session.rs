//! The session: kestrel's own call to the daemon, there from before the workload until power-off.
//!
//! ```text
//! connect ─ open{secret: null} ─▶ configuration ─▶ serve ─┐ lost
//!    ▲                                                    ▼
//!    └── (100 ms doubling to 5 s) ◀── connect ─ open{secret} ─▶ resumed{acked} ─▶ replay, serve
//! ```

use std::fs;
use std::time::{Duration, Instant};

use aerie_protocol::message::{
    Configuration, ErrorBody, FEATURES, Op, Reply, Request, SessionAnswer, SessionOpen, code,
};
use aerie_protocol::{Frame, GENERATION, Kind, kind_byte, parse_json};

use crate::agent::Agent;
use crate::observe::console::{chain, say};
use crate::setup::settings;
use crate::sys::{is_ready, poll, poll_entry};
use crate::talk::conn::{Conn, ConnError, frame_name};
use crate::talk::vsock;

const BACK_OFF_MIN: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(5);
/// Time that the host may take to answer an open; a daemon that is starting is slow.
const ANSWER: Duration = Duration::from_secs(30);

/// Why a session was not begun.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("cannot reach the host")]
    Connect(#[source] std::io::Error),
    #[error("the conversation broke")]
    Conn(#[from] ConnError),
    #[error("the host refused: {code}: {message}")]
    Refused { code: String, message: String },
    #[error("the host's answer makes no sense")]
    Answer(#[source] serde_json::Error),
    #[error("the host answered as if this were {0} session")]
    WrongAnswer(&'static str),
}

/// Calls until the host has answered with the configuration.
pub fn begin(agent: &Agent) -> (Conn, Configuration) {
    let mut back_off = BACK_OFF_MIN;
    let mut said = false;
    loop {
        match open(agent, None) {
            Ok((conn, SessionAnswer::Configuration(configuration))) => {
                return (conn, *configuration);
            }
            Ok((_, SessionAnswer::Resumed(_))) => {
                say_once(&mut said, &SessionError::WrongAnswer("a later"));
            }
            Err(error) => {
                // A host that is still starting is nothing to talk about.
                if back_off == BACK_OFF_MAX {
                    say_once(&mut said, &error);
                }
            }
        }
        wait(&mut back_off);
    }
}

fn say_once(said: &mut bool, error: &SessionError) {
    if !std::mem::replace(said, true) {
        say(&format!("no session yet: {}", chain(error)));
    }
}

fn wait(back_off: &mut Duration) {
    std::thread::sleep(*back_off);
    *back_off = (*back_off * 2).min(BACK_OFF_MAX);
}

/// Serves the session and, when it is lost, opens it again, for ever.
pub fn run(agent: &'static Agent, conn: Conn) -> ! {
    let mut sent = 0;
    let mut current = Some(conn);
    let mut back_off = BACK_OFF_MIN;
    loop {
        if let Some(conn) = current.take() {
            let since = Instant::now();
            // However it ends, the answer is to call again; the host keeps the log of why.
            let _lost = serve(agent, conn, sent);
            if since.elapsed() > BACK_OFF_MAX {
                back_off = BACK_OFF_MIN;
            }
        }
        wait(&mut back_off);
        if let Ok((conn, SessionAnswer::Resumed(resumed))) =
            open(agent, agent.secret.get().cloned())
        {
            agent.events.ack(resumed.acked);
            agent.power.nudge();
            sent = resumed.acked;
            current = Some(conn);
        }
    }
}

fn open(agent: &Agent, secret: Option<String>) -> Result<(Conn, SessionAnswer), SessionError> {
    let socket = vsock::connect_host().map_err(SessionError::Connect)?;
    let mut conn = Conn::new(socket).map_err(SessionError::Connect)?;
    hello(&mut conn, secret, agent.events.last()).map(|answer| (conn, answer))
}

fn hello(
    conn: &mut Conn,
    secret: Option<String>,
    last_event: u64,
) -> Result<SessionAnswer, SessionError> {
    let line = |path: &str| {
        fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let body = serde_json::to_vec(&SessionOpen {
        boot_id: line("/proc/sys/kernel/random/boot_id"),
        agent: concat!("kestrel ", env!("CARGO_PKG_VERSION")).to_owned(),
        kernel: line("/proc/sys/kernel/osrelease"),
        secret,
        last_event,
        features: FEATURES.map(str::to_owned).to_vec(),
    })
    .map_err(ConnError::Json)?;
    conn.output.queue(&Frame::Open {
        generation: GENERATION,
        kind: Kind::Session.byte(),
        body: &body,
    })?;
    let deadline = Some(Instant::now() + ANSWER);
    let answer = conn.receive(deadline, |frame| match frame {
        Frame::Ok(body) => Ok(SessionAnswer::parse(body).map_err(SessionError::Answer)),
        Frame::Error(body) => Ok(Err(refused(body))),
        other => Err(ConnError::Unexpected(frame_name(&other))),
    })?;
    // A daemon may have written its first requests right behind; they stay in the decoder.
    answer
}

fn refused(body: &[u8]) -> SessionError {
    match parse_json::<ErrorBody>(body) {
        Ok(body) => SessionError::Refused {
            code: body.code,
            message: body.message,
        },
        Err(error) => SessionError::Answer(error),
    }
}

fn serve(agent: &'static Agent, mut conn: Conn, mut sent: u64) -> Result<(), ConnError> {
    loop {
        take_frames(agent, &mut conn)?;
        agent.events.clear_wake();
        while let Some((seq, body)) = agent.events.after(sent) {
            conn.output.queue(&Frame::Event(&body))?;
            sent = seq;
        }
        conn.flush_now()?;
        let mut entries = [
            conn.interest(true),
            poll_entry(agent.events.wake_fd(), libc::POLLIN),
        ];
        poll(&mut entries, None).map_err(ConnError::Io)?;
        let [host, _] = entries;
        if is_ready(&host) && host.revents & !libc::POLLOUT != 0 {
            conn.fill()?;
        }
    }
}

fn take_frames(agent: &'static Agent, conn: &mut Conn) -> Result<(), ConnError> {
    while let Some(frame) = conn.decoder.next_frame()? {
        match frame {
            Frame::Ack(seq) => {
                agent.events.ack(seq);
                agent.power.nudge();
            }
            Frame::Request(body) => {
                let reply = match parse_json::<Request>(body) {
                    Ok(request) => answer(agent, &request),
                    // Without an id there is no reply; the host is broken.
                    Err(_) => return Err(ConnError::Unexpected("request without its fields")),
                };
                conn.output.queue_json(kind_byte::REPLY, &reply)?;
            }
            other => return Err(ConnError::Unexpected(frame_name(&other))),
        }
    }
    conn.decoder.shrink();
    Ok(())
}

/// Carries out a request; none of them takes long.
fn answer(agent: &'static Agent, request: &Request) -> Reply {
    let id = request.id;
    let failed = |code: &str, message: String| Reply::error(id, code, message);
    match request.op() {
        Err(error) => failed(error.code(), error.to_string()),
        Ok(Op::Ping) => Reply::ok(id),
        Ok(Op::Stop { grace_ms }) => {
            agent.power.stop(grace_ms.map(Duration::from_millis));
            Reply::ok(id)
        }
        Ok(Op::Signal { signal }) => match agent.workload.signal(signal) {
            true => Reply::ok(id),
            false => failed(code::NOT_FOUND, "no workload runs".to_owned()),
        },
        Ok(Op::Quiesce) => match agent.power.quiesce(&agent.mounted) {
            Ok(()) => Reply::ok(id),
            Err(error) => failed(code::INTERNAL, error.to_string()),
        },
        Ok(Op::Thaw) => {
            agent.power.thaw(&agent.mounted);
            Reply::ok(id)
        }
        Ok(Op::Time { time_ns }) => match settings::clock(time_ns) {
            Ok(()) => Reply::ok(id),
            Err(error) => failed(code::INTERNAL, chain(&error)),
        },
    }
}
