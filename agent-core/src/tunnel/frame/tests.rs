#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;
use crate::address::{ClientAddr, EndpointAddr};
use crate::tunnel::{ConnectionId, Extension, Extensions};

#[test]
fn a_frame_is_laid_out_as_written_down() {
    check(Body::Opened, &[2, 0, 0, 0, 0, 0, 1, 2]);
    check(Body::Fin, &[5, 0, 0, 0, 0, 0, 1, 2]);
    check(Body::Done, &[6, 0, 0, 0, 0, 0, 1, 2]);
    check(Body::Retire, &[8, 0, 0, 0, 0, 0, 1, 2]);
    check(Body::Data(b"hi"), b"\x04\x00\x00\x02\x00\x00\x01\x02hi");
    check(Body::Refused(RefuseReason::Timeout), &[3, 0, 0, 2, 0, 0, 1, 2, 0, 8]);
    check(Body::Reset(ResetReason::Unknown(0x1234)), &[7, 0, 0, 2, 0, 0, 1, 2, 0x12, 0x34]);
}

#[test]
fn an_open_is_laid_out_as_written_down() {
    let mut extensions = Vec::new();
    let extension = Extension { kind: 9, critical: true, value: b"x" };
    assert!(extension.encode(&mut extensions));
    let open = Open {
        destination: EndpointAddr::new("10.0.0.2:80".parse().unwrap()),
        client: ClientAddr::new("[fd00::1]:40000".parse().unwrap()),
        id: ConnectionId([7; 16]),
        extensions: Extensions::parse(&extensions).unwrap(),
    };
    let mut bytes = vec![1, 0, 0, 57, 0, 0, 1, 2];
    bytes.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 2, 0, 80]);
    bytes.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0x9c, 0x40]);
    bytes.extend([7; 16]);
    bytes.extend([0x80, 9, 0, 1, b'x']);
    check(Body::Open(open), &bytes);
}

#[test]
fn every_reason_has_one_number() {
    for code in 0..=u16::MAX {
        assert_eq!(RefuseReason::from_code(code).code(), code);
        assert_eq!(ResetReason::from_code(code).code(), code);
    }
    assert_eq!(RefuseReason::from_code(13), RefuseReason::Unknown(13));
    assert_eq!(ResetReason::from_code(11), ResetReason::Unknown(11));
}

#[test]
fn a_record_of_bad_frames_is_malformed() {
    let open = |length: usize| {
        let mut record = vec![1, 0, 0, u8::try_from(length).unwrap(), 0, 0, 0, 1];
        record.resize(8 + length, 0);
        record
    };
    let cases: &[(&[u8], Malformed)] = &[
        (&[5], Malformed::Cut),
        (&[5, 0, 0, 0, 0, 0, 0], Malformed::Cut),
        (b"\x04\x00\x00\x02\x00\x00\x00\x01x", Malformed::Cut),
        (b"\x04\x00\xff\xff\x00\x00\x00\x01x", Malformed::Cut),
        (&[0, 0, 0, 0, 0, 0, 0, 1], Malformed::Type(0)),
        (&[9, 0, 0, 0, 0, 0, 0, 1], Malformed::Type(9)),
        (&[5, 1, 0, 0, 0, 0, 0, 1], Malformed::Flags(FrameType::Fin, 1)),
        (&[5, 0, 0, 1, 0, 0, 0, 1, 0], Malformed::Length(FrameType::Fin, 1)),
        (&[2, 0, 0, 1, 0, 0, 0, 1, 0], Malformed::Length(FrameType::Opened, 1)),
        (&[6, 0, 0, 1, 0, 0, 0, 1, 0], Malformed::Length(FrameType::Done, 1)),
        (&[8, 0, 0, 1, 0, 0, 0, 1, 0], Malformed::Length(FrameType::Retire, 1)),
        (&[4, 0, 0, 0, 0, 0, 0, 1], Malformed::Length(FrameType::Data, 0)),
        (&[3, 0, 0, 1, 0, 0, 0, 1, 0], Malformed::Length(FrameType::Refused, 1)),
        (&[7, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0], Malformed::Length(FrameType::Reset, 3)),
        (&open(0), Malformed::Open),
        (&open(17), Malformed::Open),
        (&open(35), Malformed::Open),
        (&open(51), Malformed::Open),
        (&open(53), Malformed::Extensions),
        (&[0; MAX_RECORD + 1], Malformed::RecordLength(16_385)),
    ];
    for (record, malformed) in cases {
        let mut frames = Frames::new(record);
        assert_eq!(frames.next(), Some(Err(*malformed)));
        assert_eq!(frames.next(), None, "{malformed}");
    }
    assert!(Frames::new(&open(52)).all(|frame| frame.is_ok()));
    assert_eq!(Frames::new(&[]).next(), None);
}

#[test]
fn extensions_ascend_and_fit() {
    let good: &[&[u8]] = &[&[], &[0, 0, 0, 0], &[0, 1, 0, 1, 9, 0x80, 2, 0, 0]];
    let bad: &[&[u8]] =
        &[&[0], &[0, 1, 0], &[0, 1, 0, 1], &[0, 2, 0, 0, 0, 1, 0, 0], &[0, 1, 0, 0, 0x80, 1, 0, 0], &[0; MAX_PAYLOAD]];
    for bytes in good {
        assert!(Extensions::parse(bytes).is_ok(), "{bytes:?}");
    }
    for bytes in bad {
        assert_eq!(Extensions::parse(bytes), Err(Malformed::Extensions));
    }
    let too_long = Extension { kind: 0, critical: false, value: &[0; 65_536] };
    let too_high = Extension { kind: 0x8000, critical: false, value: &[] };
    let mut out = Vec::new();
    assert!(!too_long.encode(&mut out) && !too_high.encode(&mut out) && out.is_empty());
}

#[test]
fn a_data_frame_carries_one_byte_to_a_record_full() {
    let mut out = Vec::new();
    for length in [0, MAX_PAYLOAD + 1, 70_000] {
        let body = Body::Data(&[0; 70_000][..length]);
        assert!(Frame { number: 1, body }.encode(&mut out).is_err());
    }
    assert!(out.is_empty());
    let body = Body::Data(&[1; MAX_PAYLOAD]);
    Frame { number: 1, body }.encode(&mut out).unwrap();
    assert_eq!(out.len(), MAX_RECORD);
    let frames: Vec<_> = Frames::new(&out).collect();
    assert_eq!(frames, [Ok(Frame { number: 1, body })]);
}

#[test]
fn reading_can_stop_and_resume_within_a_record() {
    let mut record = Vec::new();
    put(&mut record, 1, Body::Data(b"abc"));
    put(&mut record, 1, Body::Fin);
    let mut frames = Frames::new(&record);
    frames.next().unwrap().unwrap();
    let position = frames.position();
    assert_eq!(&record[position - 3..position], b"abc");
    let rest: Vec<_> = Frames::resume(&record, position).collect();
    let body = Body::Fin;
    assert_eq!(rest, [Ok(Frame { number: 1, body })]);
    assert_eq!(Frames::resume(&record, 1_000).next(), None);
}

proptest! {
    #[test]
    fn what_is_written_is_read(frames in prop::collection::vec(any_frame(), 0..20)) {
        let mut record = Vec::new();
        for frame in &frames {
            put(&mut record, frame.0, frame.1.body());
        }
        let read: Vec<_> = Frames::new(&record).map(Result::unwrap).collect();
        let written: Vec<_> = frames
            .iter()
            .map(|(number, body)| Frame { number: *number, body: body.body() })
            .collect();
        prop_assert_eq!(read, written);
    }

    #[test]
    fn there_is_one_way_to_write_what_is_read(record in likely_record()) {
        let mut again = Vec::new();
        let mut frames = Frames::new(&record);
        let mut read = 0;
        while let Some(Ok(frame)) = frames.next() {
            frame.encode(&mut again).unwrap();
            read = frames.position();
        }
        prop_assert_eq!(again, &record[..read]);
    }
}

/// A body that owns its bytes.
#[derive(Clone, Debug)]
enum Owned {
    Open(SocketAddr, SocketAddr, [u8; 16], Vec<u8>),
    Data(Vec<u8>),
    Plain(Body<'static>),
}

impl Owned {
    fn body(&self) -> Body<'_> {
        match self {
            Self::Open(destination, client, id, extensions) => Body::Open(Open {
                destination: EndpointAddr::new(*destination),
                client: ClientAddr::new(*client),
                id: ConnectionId(*id),
                extensions: Extensions::parse(extensions).unwrap(),
            }),
            Self::Data(bytes) => Body::Data(bytes),
            Self::Plain(body) => *body,
        }
    }
}

fn any_frame() -> impl Strategy<Value = (u32, Owned)> {
    let extensions =
        prop::collection::btree_map(0..0x8000_u16, (any::<bool>(), prop::collection::vec(any::<u8>(), 0..20)), 0..3);
    let open = (any::<SocketAddr>(), any::<SocketAddr>(), any::<[u8; 16]>(), extensions).prop_map(
        |(destination, client, id, extensions)| {
            let mut bytes = Vec::new();
            for (kind, (critical, value)) in &extensions {
                let (kind, critical) = (*kind, *critical);
                let extension = Extension { kind, critical, value };
                assert!(extension.encode(&mut bytes));
            }
            Owned::Open(without_scope(destination), without_scope(client), id, bytes)
        },
    );
    let plain = prop_oneof![
        Just(Body::Opened),
        Just(Body::Fin),
        Just(Body::Done),
        Just(Body::Retire),
        any::<u16>().prop_map(|code| Body::Refused(RefuseReason::from_code(code))),
        any::<u16>().prop_map(|code| Body::Reset(ResetReason::from_code(code))),
    ];
    let body = prop_oneof![
        open,
        prop::collection::vec(any::<u8>(), 1..300).prop_map(Owned::Data),
        plain.prop_map(Owned::Plain),
    ];
    (any::<u32>(), body)
}

/// Bytes that often begin like a frame.
fn likely_record() -> impl Strategy<Value = Vec<u8>> {
    let frame = (
        0..10_u8,
        prop::sample::select(&[0_u8, 0, 0, 0, 1][..]),
        prop::collection::vec(any::<u8>(), 0..80),
        any::<u32>(),
        prop::sample::select(&[0_usize, 0, 0, 1][..]),
    )
        .prop_map(|(kind, flags, payload, number, lie)| {
            let length = u16::try_from(payload.len() + lie).unwrap();
            let mut bytes = vec![kind, flags];
            bytes.extend(length.to_be_bytes());
            bytes.extend(number.to_be_bytes());
            bytes.extend(payload);
            bytes
        });
    prop::collection::vec(frame, 0..6).prop_map(|frames| frames.concat())
}

fn without_scope(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port())
}

fn check(body: Body<'_>, bytes: &[u8]) {
    let frame = Frame { number: 0x0102, body };
    let mut out = Vec::new();
    frame.encode(&mut out).unwrap();
    assert_eq!(out, bytes, "{body:?}");
    let read: Vec<_> = Frames::new(bytes).collect();
    assert_eq!(read, [Ok(frame)]);
}

fn put(out: &mut Vec<u8>, number: u32, body: Body<'_>) {
    Frame { number, body }.encode(out).unwrap();
}
