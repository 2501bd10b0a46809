//! The golden vectors, which the TypeScript codec reads as well: what both sides agree on, byte for byte.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot read its vectors has failed"
)]

use std::collections::BTreeSet;

use aerie_protocol::message as m;
use aerie_protocol::{Decoder, Frame, Kind, encode, parse_json};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

#[derive(Deserialize)]
struct FrameVector {
    name: String,
    hex: String,
    frame: Value,
}

#[derive(Deserialize)]
struct MalformedVector {
    name: String,
    hex: String,
    error: String,
}

#[derive(Deserialize)]
struct MessageVector {
    name: String,
    message: String,
    body: Value,
    /// The body with every default filled in; absent where that is the body itself.
    full: Option<Value>,
    #[serde(default)]
    invalid: bool,
}

fn read<T: DeserializeOwned>(file: &str) -> T {
    let path = format!("{}/golden/{file}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn describe(frame: &Frame<'_>) -> Value {
    let body = |kind: &str, body: &[u8]| json!({ "type": kind, "body": serde_json::from_slice::<Value>(body).unwrap() });
    let data = |kind: &str, data: &[u8]| json!({ "type": kind, "data_hex": hex(data) });
    match frame {
        Frame::Open {
            generation: 1,
            kind,
            body,
        } => {
            let body: Value = serde_json::from_slice(body).unwrap();
            json!({ "type": "open", "generation": 1, "kind": kind, "body": body })
        }
        Frame::Open {
            generation,
            kind,
            body,
        } => {
            json!({ "type": "open", "generation": generation, "kind": kind, "body_hex": hex(body) })
        }
        Frame::Ok(json) => body("ok", json),
        Frame::Error(json) => body("error", json),
        Frame::Stdin(bytes) => data("stdin", bytes),
        Frame::Stdout(bytes) => data("stdout", bytes),
        Frame::Stderr(bytes) => data("stderr", bytes),
        Frame::Eof => json!({ "type": "eof" }),
        Frame::Resize { columns, rows } => {
            json!({ "type": "resize", "columns": columns, "rows": rows })
        }
        Frame::Signal(number) => json!({ "type": "signal", "number": number }),
        Frame::Exit(json) => body("exit", json),
        Frame::Event(json) => body("event", json),
        Frame::Ack(seq) => json!({ "type": "ack", "seq": seq.to_string() }),
        Frame::Request(json) => body("request", json),
        Frame::Reply(json) => body("reply", json),
        Frame::Window(bytes) => json!({ "type": "window", "bytes": bytes }),
        Frame::Log {
            stream,
            offset,
            time_ns,
            data,
        } => json!({
            "type": "log", "stream": stream.byte(), "offset": offset.to_string(),
            "time_ns": time_ns.to_string(), "data_hex": hex(data),
        }),
    }
}

#[test]
fn every_frame_decodes_to_its_description_and_encodes_to_its_bytes() {
    let vectors: Vec<FrameVector> = read("frames.json");
    for vector in &vectors {
        let name = &vector.name;
        let mut decoder = Decoder::new();
        decoder.push(&bytes(&vector.hex));

        let frame = decoder.next_frame().unwrap().unwrap();

        let expected = &vector.frame;
        assert_eq!(&describe(&frame), expected, "{name}");
        // Only the reserved byte of another generation is not kept: nothing of ours is ever sent so.
        if expected.get("body_hex").is_none() {
            let mut encoded = Vec::new();
            encode(&frame, &mut encoded).unwrap();
            assert_eq!(hex(&encoded), vector.hex, "{name}");
        }
        assert_eq!(decoder.next_frame(), Ok(None), "{name}");
        assert!(!decoder.is_mid_frame(), "{name}");
    }
}

#[test]
fn the_vectors_cover_every_type_and_every_kind() {
    let vectors: Vec<FrameVector> = read("frames.json");
    let types: BTreeSet<&str> = vectors
        .iter()
        .map(|vector| vector.frame["type"].as_str().unwrap())
        .collect();
    let kinds: BTreeSet<u64> = vectors
        .iter()
        .filter_map(|vector| vector.frame["kind"].as_u64())
        .collect();

    assert_eq!(types.len(), 16, "{types:?}");
    for kind in Kind::ALL {
        assert!(kinds.contains(&u64::from(kind.byte())), "{}", kind.name());
    }
}

#[test]
fn every_malformed_stream_has_its_code_in_whatever_portions_it_comes() {
    let vectors: Vec<MalformedVector> = read("malformed.json");
    for vector in &vectors {
        let input = bytes(&vector.hex);
        for portion in [1, 2, 3, 5, 7, input.len()] {
            let mut decoder = Decoder::new();
            let mut code = None;
            for part in input.chunks(portion) {
                decoder.push(part);
                loop {
                    match decoder.next_frame() {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(error) => {
                            code = Some(error.code());
                            break;
                        }
                    }
                }
            }
            assert_eq!(code, Some(vector.error.as_str()), "{}", vector.name);
        }
    }
}

fn full<T: DeserializeOwned + Serialize>(body: &[u8]) -> Option<Value> {
    let message: T = parse_json(body).ok()?;
    Some(serde_json::to_value(message).unwrap())
}

fn session_answer(body: &[u8]) -> Option<Value> {
    match m::SessionAnswer::parse(body).ok()? {
        m::SessionAnswer::Configuration(configuration) => {
            Some(serde_json::to_value(configuration).unwrap())
        }
        m::SessionAnswer::Resumed(resumed) => Some(serde_json::to_value(resumed).unwrap()),
    }
}

fn reader(message: &str) -> fn(&[u8]) -> Option<Value> {
    match message {
        "configuration" | "resumed" => session_answer,
        "session" => full::<m::SessionOpen>,
        "exec" => full::<m::Exec>,
        "exec_ok" => full::<m::ExecOk>,
        "attach" => full::<m::Attach>,
        "attach_ok" => full::<m::AttachOk>,
        "exit" => full::<m::Exit>,
        "copy_in" => full::<m::CopyIn>,
        "copy_in_done" => full::<m::CopyInDone>,
        "copy_out" => full::<m::CopyOut>,
        "copy_out_ok" => full::<m::CopyOutOk>,
        "stat" => full::<m::Stat>,
        "stat_ok" => full::<m::FileStat>,
        "list" => full::<m::List>,
        "list_ok" => full::<m::ListOk>,
        "logs" => full::<m::Logs>,
        "logs_ok" => full::<m::LogsOk>,
        "proxy" => full::<m::Proxy>,
        "metrics" => full::<m::Metrics>,
        "identity" => full::<m::Identity>,
        "identity_ok" => full::<m::IdentityOk>,
        "event" => full::<m::Event>,
        "request" => full::<m::Request>,
        "reply" => full::<m::Reply>,
        "error" => full::<m::ErrorBody>,
        other => panic!("no message is called {other}"),
    }
}

#[test]
fn every_message_is_read_with_its_defaults_or_refused() {
    let vectors: Vec<MessageVector> = read("messages.json");
    for vector in vectors {
        let body = serde_json::to_vec(&vector.body).unwrap();

        let read = reader(&vector.message)(&body);

        let expected = (!vector.invalid).then(|| vector.full.unwrap_or(vector.body));
        assert_eq!(read, expected, "{}", vector.name);
    }
}
