//! logs: what the ring holds from an offset on, and what comes, on a connection.

use std::io;
use std::sync::Arc;

use aerie_protocol::message::{Logs, LogsOk};
use aerie_protocol::{Frame, kind_byte};

use crate::observe::ring::Ring;
use crate::sys::{NO_FD, Wake, poll, poll_entry};
use crate::talk::conn::{Conn, ConnError, frame_name};

/// A follower's registration, gone when dropped.
struct Follower {
    ring: &'static Ring,
    wake: Arc<Wake>,
}

impl Follower {
    fn new(ring: &'static Ring, from: u64) -> io::Result<Self> {
        let wake = Arc::new(Wake::new()?);
        ring.follow(&wake, from);
        Ok(Self { ring, wake })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.ring.unfollow(&self.wake);
    }
}

/// Serves a logs conversation whose `open` had this body.
pub fn serve(ring: &'static Ring, mut conn: Conn, body: &Logs) {
    let done = carry(ring, &mut conn, body);
    conn.end(done);
}

fn carry(ring: &'static Ring, conn: &mut Conn, body: &Logs) -> Result<(), ConnError> {
    let follower = Follower::new(ring, body.from).map_err(ConnError::Io)?;
    let bounds = ring.bounds();
    let ok = LogsOk {
        oldest: bounds.oldest,
        next: bounds.next,
    };
    conn.output.queue_json(kind_byte::OK, &ok)?;
    let mut offset = body.from;
    loop {
        conn.flush_now()?;
        if conn.output.is_flushed() {
            follower.wake.clear();
            // Asked before reading: what was added before the end is then surely seen.
            let is_closed = ring.is_closed();
            match ring.read(offset) {
                // Without follow, what comes meanwhile is not part of the answer, or a chatty guest would never let go.
                Some(record) if body.follow || record.offset < bounds.next => {
                    offset = record.end();
                    ring.reached(&follower.wake, offset);
                    conn.output.queue(&Frame::Log {
                        stream: record.stream,
                        offset: record.offset,
                        time_ns: record.time_ns,
                        data: &record.data,
                    })?;
                    continue;
                }
                None if body.follow && !is_closed => {}
                _ => return conn.output.queue(&Frame::Eof),
            }
        }
        let news = match conn.output.is_flushed() {
            true => poll_entry(follower.wake.fd(), libc::POLLIN),
            false => poll_entry(NO_FD, 0),
        };
        let mut entries = [conn.interest(true), news];
        poll(&mut entries, None).map_err(ConnError::Io)?;
        let [host, _] = entries;
        if host.revents & !libc::POLLOUT != 0 {
            conn.fill()?;
            if let Some(frame) = conn.decoder.next_frame()? {
                return Err(ConnError::Unexpected(frame_name(&frame)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use aerie_protocol::LogStream;

    use super::*;

    fn start(ring: &'static Ring, from: u64, follow: bool) -> Conn {
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            let mut conn = Conn::new(ours.into()).unwrap();
            let done = carry(ring, &mut conn, &Logs { from, follow });
            conn.end(done);
        });
        Conn::new(theirs.into()).unwrap()
    }

    fn next(host: &mut Conn) -> String {
        host.receive(None, |frame| {
            Ok(match frame {
                Frame::Ok(body) => String::from_utf8(body.to_vec()).unwrap(),
                Frame::Log { offset, data, .. } => {
                    format!("{offset} {}", String::from_utf8(data.to_vec()).unwrap())
                }
                other => frame_name(&other).to_owned(),
            })
        })
        .unwrap()
    }

    fn ring() -> &'static Ring {
        let ring = Box::leak(Box::new(Ring::new(10_000)));
        ring.append(LogStream::Stdout, b"one");
        ring.append(LogStream::Stderr, b"two");
        ring
    }

    #[test]
    fn what_is_held_is_sent_and_then_the_end() {
        let mut host = start(ring(), 1, false);

        assert_eq!(next(&mut host), r#"{"oldest":0,"next":6}"#);
        assert_eq!(next(&mut host), "1 ne");
        assert_eq!(next(&mut host), "3 two");
        assert_eq!(next(&mut host), "eof");
    }

    #[test]
    fn a_follower_gets_what_comes_until_the_log_ends() {
        let ring = ring();
        let mut host = start(ring, 6, true);

        assert_eq!(next(&mut host), r#"{"oldest":0,"next":6}"#);
        ring.append(LogStream::Stdout, b"three");
        assert_eq!(next(&mut host), "6 three");
        ring.append(LogStream::Stdout, b"four");
        ring.close();
        assert_eq!(next(&mut host), "11 four");

        assert_eq!(next(&mut host), "eof");
    }
}
