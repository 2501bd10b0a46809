//! What the host starts: accepts its connections, reads the `open`, and gives each a thread of its own.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use aerie_protocol::message::{Empty, ErrorBody, FEATURES, IdentityOk, code};
use aerie_protocol::{Frame, GENERATION, HOST_CID, Kind, kind_byte, parse_json};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::agent::Agent;
use crate::files::{copy_in, copy_out, stat};
use crate::observe::{logs, metrics};
use crate::process::{attach, exec};
use crate::setup::identity;
use crate::sys::spawn_thread;
use crate::talk::conn::{Conn, ConnError, frame_name};
use crate::talk::{proxy, vsock};

/// Time that a host may take to say what it wants.
const OPEN: Duration = Duration::from_secs(30);

/// Accepts for ever.
pub fn run(agent: &'static Agent, listener: &OwnedFd) -> ! {
    loop {
        match vsock::accept(listener.as_fd()) {
            Ok((socket, HOST_CID)) => greet(agent, socket),
            // A guest's own user, over vsock loopback: closed without a word.
            Ok(_) => {}
            // Out of descriptors or memory, or a peer that is gone already: others may do better a little later.
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn greet(agent: &'static Agent, socket: OwnedFd) {
    let Ok(conn) = Conn::new(socket) else { return };
    let Some(slot) = agent.slots.open() else {
        return refuse_now(conn, "more connections are open already than it can hold");
    };
    let body = move || {
        serve(agent, conn);
        drop(slot);
    };
    // Without a thread the connection is closed by dropping it.
    let _ = spawn_thread("talk", body);
}

/// Says why without waiting for anyone: this is the accepting thread.
fn refuse_now(mut conn: Conn, why: &str) {
    let body = ErrorBody::new(code::BUSY, why);
    if conn.output.queue_json(kind_byte::ERROR, &body).is_ok() {
        // A host that does not take a hundred bytes sees a closed connection.
        let _ = conn.flush_now();
    }
}

fn serve(agent: &'static Agent, mut conn: Conn) {
    let deadline = Some(Instant::now() + OPEN);
    let opened = conn.receive(deadline, |frame| match frame {
        Frame::Open {
            generation,
            kind,
            body,
        } => Ok((generation, kind, body.to_vec())),
        other => Err(ConnError::Unexpected(frame_name(&other))),
    });
    let (generation, kind, body) = match opened {
        Ok(opened) => opened,
        Err(error) => return conn.end(Err(error)),
    };
    if generation != GENERATION {
        let mut body = ErrorBody::new(
            code::GENERATION_UNKNOWN,
            format!("generation {generation} is not spoken here"),
        );
        body.supported = Some(vec![GENERATION]);
        return conn.fail(&body);
    }
    let Some(kind) = Kind::from_byte(kind) else {
        let message = format!("kind {kind} is not known here");
        return conn.fail(&ErrorBody::new(code::KIND_UNKNOWN, message));
    };
    if !agent.is_open.load(Ordering::Acquire) {
        let message = "the guest is not ready, or about to power off";
        return conn.fail(&ErrorBody::new(code::NOT_READY, message));
    }
    match agent.slots.of(kind) {
        Ok(slot) => {
            dispatch(agent, conn, kind, &body);
            drop(slot);
        }
        Err(why) => conn.fail(&ErrorBody::new(code::BUSY, why)),
    }
}

fn dispatch(agent: &'static Agent, conn: Conn, kind: Kind, body: &[u8]) {
    match kind {
        Kind::Exec => with(conn, body, |conn, body| {
            exec::serve(agent.reaper, conn, &body)
        }),
        Kind::Attach => with(conn, body, |conn, body| {
            attach::serve(agent.workload, conn, &body)
        }),
        Kind::CopyIn => with(conn, body, |conn, body| copy_in::serve(conn, &body)),
        Kind::CopyOut => with(conn, body, |conn, body| copy_out::serve(conn, &body)),
        Kind::Stat => with(conn, body, |conn, body| answer(conn, stat::stat(&body))),
        Kind::List => with(conn, body, |conn, body| answer(conn, stat::list(&body))),
        Kind::Logs => with(conn, body, |conn, body| {
            logs::serve(agent.ring, conn, &body)
        }),
        Kind::Proxy => with(conn, body, |conn, body| proxy::serve(conn, &body)),
        Kind::Metrics => with(conn, body, |conn, Empty {}| {
            answer(conn, Ok(metrics::read(agent.workload.state())));
        }),
        Kind::Identity => with(conn, body, |conn, body| {
            let applied = identity::apply(agent, &body).map_err(|failure| {
                let message = format!("{}: {}", failure.stage, failure.message);
                ErrorBody::new(code::INTERNAL, message)
            });
            let features = FEATURES.map(str::to_owned).to_vec();
            answer(conn, applied.map(|()| IdentityOk { features }));
        }),
        Kind::Session => conn.fail(&ErrorBody::new(
            code::KIND_UNKNOWN,
            "a session is opened by the guest",
        )),
    }
}

/// Types the body, or answers that it cannot be.
fn with<T: DeserializeOwned>(conn: Conn, body: &[u8], serve: impl FnOnce(Conn, T)) {
    match parse_json(body) {
        Ok(body) => serve(conn, body),
        Err(error) => conn.fail(&ErrorBody::new(code::BODY_INVALID, error.to_string())),
    }
}

/// Answers a conversation of one question.
fn answer<T: Serialize>(mut conn: Conn, answer: Result<T, ErrorBody>) {
    match answer {
        Ok(body) => {
            let queued = conn.output.queue_json(kind_byte::OK, &body);
            conn.end(queued);
        }
        Err(body) => conn.fail(&body),
    }
}
