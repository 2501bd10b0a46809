//! What comes from a guest's agent, or goes to it: any bytes, cut anywhere, through the decoder and the typed readers.

use aerie_protocol::message::{Configuration, Event, Exec, ListOk, Proxy, Request, SessionAnswer};
use aerie_protocol::{Decoder, Frame, encode, parse_json};

/// The first two bytes say where the rest is cut.
pub(crate) fn read(input: &[u8]) {
    let (cut, bytes) = input.split_at(input.len().min(2));
    let cut = cut
        .iter()
        .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    let (first, second) = bytes.split_at(cut.min(bytes.len()));
    let mut decoder = Decoder::new();
    let mut received = 0;
    for part in [first, second] {
        decoder.push(part);
        received += part.len();
        while let Ok(Some(frame)) = decoder.next_frame() {
            let mut again = Vec::new();
            encode(&frame, &mut again).expect("what was read can be written");
            if let Frame::Open { body, .. }
            | Frame::Ok(body)
            | Frame::Event(body)
            | Frame::Request(body) = frame
            {
                typed(body);
            }
        }
        assert!(decoder.held_bytes() <= received.max(8));
    }
}

fn typed(body: &[u8]) {
    let _ = SessionAnswer::parse(body);
    let _ = parse_json::<Configuration>(body);
    let _ = parse_json::<Event>(body);
    let _ = parse_json::<Exec>(body);
    let _ = parse_json::<ListOk>(body);
    let _ = parse_json::<Proxy>(body);
    let _ = parse_json::<Request>(body).map(|request| request.op().to_owned());
}
