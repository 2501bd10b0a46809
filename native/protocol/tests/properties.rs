//! Properties of the codec: what is encoded comes back whatever the portions, and no input makes the decoder panic or keep
//! more than it was given.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot read its vectors has failed"
)]

use aerie_protocol::{Decoder, Frame, LogStream, encode};
use proptest::collection::vec;
use proptest::prelude::*;

/// A frame that owns its bytes.
#[derive(Clone, Debug)]
enum Owned {
    Open(u8, Vec<u8>),
    Json(u8, Vec<u8>),
    Bytes(u8, Vec<u8>),
    Eof,
    Resize(u16, u16),
    Signal(u8),
    Ack(u64),
    Window(u32),
    Log(u8, u64, u64, Vec<u8>),
}

impl Owned {
    fn frame(&self) -> Frame<'_> {
        match self {
            Self::Open(kind, body) => Frame::Open {
                generation: 1,
                kind: *kind,
                body,
            },
            Self::Json(which, body) => match which % 6 {
                0 => Frame::Ok(body),
                1 => Frame::Error(body),
                2 => Frame::Exit(body),
                3 => Frame::Event(body),
                4 => Frame::Request(body),
                _ => Frame::Reply(body),
            },
            Self::Bytes(which, data) => match which % 3 {
                0 => Frame::Stdin(data),
                1 => Frame::Stdout(data),
                _ => Frame::Stderr(data),
            },
            Self::Eof => Frame::Eof,
            Self::Resize(columns, rows) => Frame::Resize {
                columns: *columns,
                rows: *rows,
            },
            Self::Signal(number) => Frame::Signal(*number),
            Self::Ack(seq) => Frame::Ack(*seq),
            Self::Window(bytes) => Frame::Window(*bytes),
            Self::Log(stream, offset, time_ns, data) => Frame::Log {
                stream: [LogStream::Stdout, LogStream::Stderr, LogStream::Kestrel]
                    [usize::from(stream % 3)],
                offset: *offset,
                time_ns: *time_ns,
                data,
            },
        }
    }
}

fn json() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<String>().prop_map(Into::into),
    ];
    leaf.prop_recursive(5, 32, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Into::into),
            vec((any::<String>(), inner), 0..4)
                .prop_map(|pairs| serde_json::Value::Object(pairs.into_iter().collect())),
        ]
    })
    .prop_map(|value| serde_json::to_vec(&value).unwrap())
}

fn frame() -> impl Strategy<Value = Owned> {
    prop_oneof![
        (any::<u8>(), json()).prop_map(|(kind, body)| Owned::Open(kind, body)),
        (any::<u8>(), json()).prop_map(|(which, body)| Owned::Json(which, body)),
        (any::<u8>(), vec(any::<u8>(), 0..5000))
            .prop_map(|(which, data)| Owned::Bytes(which, data)),
        Just(Owned::Eof),
        any::<(u16, u16)>().prop_map(|(columns, rows)| Owned::Resize(columns, rows)),
        (1..=64_u8).prop_map(Owned::Signal),
        any::<u64>().prop_map(Owned::Ack),
        any::<u32>().prop_map(Owned::Window),
        (
            any::<u8>(),
            any::<u64>(),
            any::<u64>(),
            vec(any::<u8>(), 0..500)
        )
            .prop_map(|(stream, offset, time, data)| Owned::Log(stream, offset, time, data)),
    ]
}

proptest! {
    #[test]
    fn frames_come_back_in_order_whatever_the_portions(
        frames in vec(frame(), 0..8),
        portions in vec(1..3000_usize, 1..20),
    ) {
        let mut wire = Vec::new();
        for frame in &frames {
            encode(&frame.frame(), &mut wire).unwrap();
        }

        let mut decoder = Decoder::new();
        let mut expected = frames.iter();
        let (mut rest, mut sizes) = (wire.as_slice(), portions.iter().cycle());
        while !rest.is_empty() {
            let (part, after) = rest.split_at((*sizes.next().unwrap()).min(rest.len()));
            rest = after;
            decoder.push(part);
            while let Some(frame) = decoder.next_frame().unwrap() {
                prop_assert_eq!(frame, expected.next().unwrap().frame());
            }
        }
        prop_assert!(expected.next().is_none());
        prop_assert!(!decoder.is_mid_frame());
    }

    #[test]
    fn no_bytes_make_it_panic_or_keep_more_than_they_are(
        parts in vec(vec(any::<u8>(), 0..300), 0..10),
    ) {
        let mut decoder = Decoder::new();
        let mut received = 0;
        for part in &parts {
            decoder.push(part);
            received += part.len();
            while let Ok(Some(_)) = decoder.next_frame() {}
            // The allocator may round a small buffer up.
            prop_assert!(decoder.held_bytes() <= received.max(8));
        }
    }
}
