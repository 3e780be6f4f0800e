#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;

const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 77, 1, 10), 40_000);
const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 77, 2, 10), 80);

/// A capture of these segments: sequence number, whether it is a SYN, payload.
fn capture(segments: &[(u32, bool, &[u8])]) -> Vec<u8> {
    let mut file = vec![0xd4, 0xc3, 0xb2, 0xa1];
    file.resize(24, 0);
    for (second, (sequence, syn, payload)) in (1_u32..).zip(segments) {
        let frame = frame(*sequence, *syn, payload);
        for word in [second, 5, u32::try_from(frame.len()).unwrap(), u32::try_from(frame.len()).unwrap()] {
            file.extend(word.to_le_bytes());
        }
        file.extend(frame);
    }
    file
}

fn frame(sequence: u32, syn: bool, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend([0x08, 0x00]);
    let total = u16::try_from(40 + payload.len()).unwrap();
    frame.extend([0x45, 0]);
    frame.extend(total.to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 6, 0, 0]);
    frame.extend(CLIENT.ip().octets());
    frame.extend(SERVER.ip().octets());
    frame.extend(CLIENT.port().to_be_bytes());
    frame.extend(SERVER.port().to_be_bytes());
    frame.extend(sequence.to_be_bytes());
    frame.extend([0, 0, 0, 0, 0x50, if syn { 2 } else { 0x10 }, 0, 0, 0, 0, 0, 0]);
    frame.extend(payload);
    frame.extend([0; 6]); // Ethernet's padding is no payload
    frame
}

#[test]
fn a_stream_is_put_together_and_what_was_sent_again_counts_once() {
    let file = capture(&[(99, true, b""), (100, false, b"se"), (100, false, b"secr"), (104, false, b"et")]);
    let wire = Wire::parse(&file).unwrap();
    assert_eq!(wire.streams.len(), 1);
    let stream = &wire.streams[0];
    assert_eq!((stream.bytes.as_slice(), stream.whole), (b"secret".as_slice(), true));
    assert!(stream.holds("secret") && !stream.holds("secrets"));
    assert_eq!(stream.began, Duration::new(1, 5000));
    assert_eq!(wire.between(*SERVER.ip(), *CLIENT.ip()).count(), 1);
}

#[test]
fn the_same_ports_with_a_new_syn_are_a_new_stream() {
    let wire =
        Wire::parse(&capture(&[(9, true, b""), (10, false, b"a"), (500, true, b""), (501, false, b"b")])).unwrap();
    assert_eq!(wire.streams.iter().map(|stream| stream.bytes.as_slice()).collect::<Vec<_>>(), [b"a", b"b"]);
}

#[test]
fn a_stream_that_began_earlier_is_known_to_be_cut() {
    let wire = Wire::parse(&capture(&[(700, false, b"middle")])).unwrap();
    assert!(!wire.streams[0].whole);
    assert_eq!(wire.streams[0].bytes, b"middle");
}

#[test]
fn tls_is_records_to_the_end() {
    let tls = |bytes: &[u8]| {
        let wire = Wire::parse(&capture(&[(0, true, b""), (1, false, bytes)])).unwrap();
        wire.streams[0].is_tls()
    };
    assert!(tls(&[22, 3, 1, 0, 2, 9, 9, 23, 3, 3, 0, 1, 7]));
    assert!(tls(&[22, 3, 1, 0, 200, 9]), "a record of which the rest was not captured");
    assert!(!tls(&[22, 3, 1, 0, 1, 9, b'G', b'E', b'T', b' ', b'/']));
    assert!(!tls(b"GET / HTTP/1.1"));
}

#[test]
fn what_is_no_capture_is_none() {
    assert!(Wire::parse(b"").is_none());
    assert!(Wire::parse(b"GET / HTTP/1.1\r\nHost: somewhere\r\n").is_none());
}
