//! What a hostile peer sends, through the decoder and every typed reader: for the fuzzer and the test of mutations.

use crate::message::{Configuration, Event, Exec, ListOk, Proxy, Request, SessionAnswer};
use crate::{Decoder, Frame, encode, parse_json};

/// What came out of the bytes of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Frames that were read.
    pub frames: u32,
    /// Parts in which the decoder found an error.
    pub errors: u32,
}

/// Decodes bytes that arrive in `parts`, and shows the body of each frame to every typed reader.
///
/// # Panics
/// If a frame that was read cannot be written again, or the decoder keeps more than it received: both are bugs.
pub fn decode(parts: [&[u8]; 2]) -> Outcome {
    let mut outcome = Outcome {
        frames: 0,
        errors: 0,
    };
    let mut decoder = Decoder::new();
    let mut received = 0;
    for part in parts {
        decoder.push(part);
        received += part.len();
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => {
                    outcome.frames += 1;
                    read(&frame);
                }
                Ok(None) => break,
                Err(_) => {
                    outcome.errors += 1;
                    break;
                }
            }
        }
        assert!(decoder.held_bytes() <= received.max(8));
    }
    outcome
}

fn read(frame: &Frame<'_>) {
    let mut again = Vec::new();
    assert!(
        encode(frame, &mut again).is_ok(),
        "what was read can be written"
    );
    if let Frame::Open { body, .. } | Frame::Ok(body) | Frame::Event(body) | Frame::Request(body) =
        *frame
    {
        read_body(body);
    }
}

/// Every typed reader sees every body, whatever frame it came in.
fn read_body(body: &[u8]) {
    let _ = SessionAnswer::parse(body);
    let _ = parse_json::<Configuration>(body);
    let _ = parse_json::<Event>(body);
    let _ = parse_json::<Exec>(body);
    let _ = parse_json::<ListOk>(body);
    let _ = parse_json::<Proxy>(body);
    let _ = parse_json::<Request>(body).map(|request| request.op().to_owned());
}
