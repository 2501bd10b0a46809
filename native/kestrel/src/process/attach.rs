//! attach: the workload's own streams on a connection.

use std::os::fd::AsFd;

use aerie_protocol::message::{Attach, AttachOk, ErrorBody, code};
use aerie_protocol::{Frame, LogStream, kind_byte};

use crate::process::pty::{self, Size};
use crate::process::stdin::Stdin;
use crate::process::workload::{AttachAs, AttachError, Attached, Taken, Workloads};
use crate::sys::{NO_FD, is_ready, poll, poll_entry};
use crate::talk::conn::{Conn, ConnError, frame_name};

/// Serves an attach conversation whose `open` had this body.
pub fn serve(workload: &'static Workloads, mut conn: Conn, body: &Attach) {
    let how = AttachAs {
        stdin: body.stdin,
        replay: body.replay,
        size: (body.cols.is_some() || body.rows.is_some())
            .then(|| Size::or_default(body.cols, body.rows)),
    };
    let mut attached = match workload.attach(how) {
        Ok(attached) => attached,
        Err(error) => {
            let code = match error {
                AttachError::Absent => code::NOT_FOUND,
                AttachError::Busy => code::BUSY,
                AttachError::Exhausted => code::INTERNAL,
            };
            return conn.fail(&ErrorBody::new(code, error.to_string()));
        }
    };
    let ok = AttachOk {
        tty: attached.tty,
        released: attached.released,
    };
    let done = conn
        .output
        .queue_json(kind_byte::OK, &ok)
        .and_then(|()| carry(workload, &mut conn, &mut attached));
    workload.detach(attached);
    conn.end(done);
}

fn carry(workload: &Workloads, conn: &mut Conn, attached: &mut Attached) -> Result<(), ConnError> {
    loop {
        conn.flush_now()?;
        let wants_output = conn.output.is_flushed();
        let mut entries = [
            conn.interest(true),
            match wants_output {
                true => poll_entry(attached.sink.wake.fd(), libc::POLLIN),
                false => poll_entry(NO_FD, 0),
            },
            attached
                .stdin
                .as_ref()
                .map_or(poll_entry(NO_FD, 0), Stdin::interest),
        ];
        poll(&mut entries, None).map_err(ConnError::Io)?;
        let [host, sink, input] = entries;
        if host.revents & !libc::POLLOUT != 0 {
            conn.fill()?;
            take_frames(conn, attached)?;
        }
        if let Some(stdin) = &mut attached.stdin {
            if is_ready(&input) && input.revents & libc::POLLOUT == 0 {
                stdin.abandon();
            }
            stdin.pump();
            stdin.give_credit(&mut conn.output)?;
        }
        if is_ready(&sink) {
            match workload.take(&attached.sink) {
                Taken::Chunk(LogStream::Stderr, data) => {
                    conn.output.queue(&Frame::Stderr(&data))?
                }
                Taken::Chunk(_, data) => conn.output.queue(&Frame::Stdout(&data))?,
                Taken::End(exit) => return conn.output.queue_json(kind_byte::EXIT, &exit),
                Taken::Nothing => {}
            }
        }
    }
}

fn take_frames(conn: &mut Conn, attached: &mut Attached) -> Result<(), ConnError> {
    while let Some(frame) = conn.decoder.next_frame()? {
        match (frame, &mut attached.stdin) {
            (Frame::Stdin(bytes), Some(stdin)) => stdin.push(bytes)?,
            (Frame::Eof, Some(stdin)) => stdin.end(),
            // The host may not know that it asked for none.
            (Frame::Eof, None) => {}
            (Frame::Resize { columns, rows }, _) => {
                if let Some(master) = &attached.master {
                    // A terminal whose process just ended needs no size.
                    let _ = pty::resize(master.as_fd(), Size { columns, rows });
                }
            }
            (Frame::Signal(signal), _) => {
                if let Some(child) = &attached.child {
                    child.signal_group(signal);
                }
            }
            (other, _) => return Err(ConnError::Unexpected(frame_name(&other))),
        }
    }
    conn.decoder.shrink();
    Ok(())
}
