//! The one loop.

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use super::{
    args::Args,
    confine::confine,
    control::Control,
    dhcp::Dhcp,
    dns::Dns,
    error::NetError,
    poll::Poll,
    ra::Ra,
    relay::Ports,
    serve::Helper,
    sys::{self, Expected},
};

/// How often time-outs are looked for while there may be some.
const TICK: Duration = Duration::from_millis(100);

const INET: &[i32] = &[libc::AF_INET, libc::AF_INET6];
const CONTROL: Expected = Expected {
    words: "a listening Unix stream socket",
    domains: &[libc::AF_UNIX],
    kind: libc::SOCK_STREAM,
    listening: true,
};
const DHCP: Expected = Expected {
    words: "a UDP socket of IPv4",
    domains: &[libc::AF_INET],
    kind: libc::SOCK_DGRAM,
    listening: false,
};
const DNS_UDP: Expected = Expected {
    words: "a UDP socket",
    domains: INET,
    kind: libc::SOCK_DGRAM,
    listening: false,
};
const DNS_TCP: Expected = Expected {
    words: "a listening TCP socket",
    domains: INET,
    kind: libc::SOCK_STREAM,
    listening: true,
};
const RA: Expected = Expected {
    words: "a raw socket of IPv6",
    domains: &[libc::AF_INET6],
    kind: libc::SOCK_RAW,
    listening: false,
};

/// Serves until the control socket is shut down.
pub fn run(args: &Args) -> Result<(), NetError> {
    let all = |fds: &[i32], expected: Expected| -> Result<Vec<OwnedFd>, NetError> {
        fds.iter().map(|fd| sys::inherit(*fd, expected)).collect()
    };
    let listener = sys::inherit(args.control, CONTROL)?;
    let dhcp = args.dhcp.map(|fd| sys::inherit(fd, DHCP)).transpose()?;
    let ra = args.ra.map(|fd| sys::inherit(fd, RA)).transpose()?;
    let (udp, tcp) = (all(&args.dns_udp, DNS_UDP)?, all(&args.dns_tcp, DNS_TCP)?);

    let descriptors = sys::raise_descriptors();
    let poll = Poll::new().map_err(NetError::io("make an epoll"))?;
    let control = Control::new(listener, &poll).map_err(NetError::io("wait for the daemon"))?;
    let mut helper = Helper {
        control,
        dhcp: dhcp.map(|fd| Dhcp::new(fd, &poll)).transpose()?,
        dns: Dns::new(udp, tcp, &poll)?,
        ra: ra.map(|fd| Ra::new(fd, &poll)).transpose()?,
        ports: Ports::new(descriptors),
        state: None,
        scratch: vec![0; sys::SCRATCH_BYTES],
        poll,
    };

    confine()?;
    let mut found = Vec::new();
    let mut ticked = Instant::now();
    loop {
        let timeout = timeout_of(&helper);
        helper
            .poll
            .wait(timeout, &mut found)
            .map_err(NetError::io("wait for events"))?;
        let now = Instant::now();
        for (token, events) in &found {
            if !helper.on_event(*token, *events, now) {
                return Ok(());
            }
        }
        if now.saturating_duration_since(ticked) >= TICK {
            ticked = now;
            helper.on_tick(now);
        }
        helper.on_ready(now);
    }
}

/// Milliseconds until something has to be looked at without an event; -1 for ever.
fn timeout_of(helper: &Helper) -> i32 {
    let now = Instant::now();
    if helper.ports.is_ready() {
        return 0;
    }
    let advertisement = helper
        .ra
        .as_ref()
        .and_then(|ra| ra.due(helper.state.as_ref(), now))
        .map(|due| due.saturating_duration_since(now).max(TICK));
    let waiting = (helper.dns.needs_ticks() || helper.ports.needs_ticks()).then_some(TICK);
    let first = advertisement.into_iter().chain(waiting).min();
    first.map_or(-1, |wait| {
        i32::try_from(wait.as_millis()).unwrap_or(i32::MAX)
    })
}
