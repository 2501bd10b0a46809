//! Any bytes, split at any place, through the decoder and the typed readers.
#![no_main]

use aerie_protocol::message::{Configuration, Event, Exec, Request, SessionAnswer};
use aerie_protocol::{Decoder, Frame, parse_json};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, &[u8])| {
    let (split, bytes) = input;
    let (first, second) = bytes.split_at(usize::from(split).min(bytes.len()));
    let mut decoder = Decoder::new();
    let mut received = 0;
    for part in [first, second] {
        decoder.push(part);
        received += part.len();
        while let Ok(Some(frame)) = decoder.next_frame() {
            if let Frame::Open { body, .. } | Frame::Ok(body) | Frame::Event(body) | Frame::Request(body) = frame {
                let _ = SessionAnswer::parse(body);
                let _ = parse_json::<Configuration>(body);
                let _ = parse_json::<Event>(body);
                let _ = parse_json::<Exec>(body);
                let _ = parse_json::<Request>(body).map(|request| request.op());
            }
        }
        assert!(decoder.held_bytes() <= received.max(8));
    }
});
