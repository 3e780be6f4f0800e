#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;
use crate::address::{ClientAddr, EndpointAddr};
use crate::tunnel::{ConnectionId, Extensions, MAX_PAYLOAD, Malformed};

/// Every state that an acceptor can be in (after its third OPEN), and what each frame with the current number makes of it.
/// `!` is a violation of the state, `n` one of the number.
#[rustfmt::skip]
const TABLE: &[(&str, [&str; 8])] = &[
    //                     OPEN OPENED REFUSED DATA                 FIN                 DONE  RESET    RETIRE
    ("idle",               ["n", "!",   "!",   "!",                 "!",                "!",  "clean", "!"]),
    ("idle R",             ["n", "!",   "!",   "!",                 "!",                "!",  "clean", "!"]),
    ("refused",            ["n", "!",   "!",   "refused data",      "refused fin",      "!",  "clean", "!"]),
    ("refused data",       ["n", "!",   "!",   "!",                 "refused data fin", "!",  "clean", "!"]),
    ("refused fin",        ["n", "!",   "!",   "!",                 "!",                "!",  "clean", "!"]),
    ("refused data fin",   ["n", "!",   "!",   "!",                 "!",                "!",  "clean", "!"]),
    ("opening",            ["!", "!",   "!",   "opening data",      "opening fin",      "!",  "reset", "!"]),
    ("opening data",       ["!", "!",   "!",   "!",                 "opening data fin", "!",  "reset", "!"]),
    ("opening fin",        ["!", "!",   "!",   "!",                 "!",                "!",  "reset", "!"]),
    ("opening data fin",   ["!", "!",   "!",   "!",                 "!",                "!",  "reset", "!"]),
    ("open",               ["!", "!",   "!",   "open",              "open <",           "!",  "reset", "!"]),
    ("open >",             ["!", "!",   "!",   "open >",            "open > <",         "!",  "reset", "!"]),
    ("open <",             ["!", "!",   "!",   "!",                 "!",                "!",  "reset", "!"]),
    ("open <<",            ["!", "!",   "!",   "!",                 "!",                "!",  "reset", "!"]),
    ("open > <",           ["!", "!",   "!",   "!",                 "!",                "!",  "reset", "!"]),
    ("open > < R",         ["!", "!",   "!",   "!",                 "!",                "!",  "reset", "!"]),
];

#[test]
fn each_frame_in_each_state() {
    for (state, expect) in TABLE {
        for (body, expect) in bodies().into_iter().zip(expect) {
            let mut acceptor = in_state(state);
            let current = is_current(&acceptor);
            let mut out = Vec::new();
            let result = feed(&mut acceptor, &[(3, body)], &mut out);
            match (*expect, result) {
                ("!", Err(Violation::Unexpected { frame, .. })) | ("n", Err(Violation::Number { frame, .. })) => {
                    assert_eq!(frame, body.frame_type());
                    assert_closed_by_violation(&acceptor, current, &out);
                }
                (expect, Ok(_)) => {
                    assert_eq!(label(&acceptor), expect, "{body:?} while {state}");
                    assert!(out.is_empty());
                }
                (_, result) => panic!("{body:?} while {state}: {result:?}"),
            }
        }
    }
}

#[test]
fn a_wrong_number_closes_in_each_state() {
    for (state, _) in TABLE {
        for body in bodies() {
            for number in [0, 1, 2, 4, 5, u32::MAX] {
                let next = number == 4 && body.frame_type() == FrameType::Open;
                let mut acceptor = in_state(state);
                let current = is_current(&acceptor);
                if next && !current {
                    continue;
                }
                let mut out = Vec::new();
                let violation = Violation::Number { frame: body.frame_type(), number, current: 3 };
                let result = feed(&mut acceptor, &[(number, body)], &mut out);
                assert_eq!(result, Err(violation), "{body:?} while {state}");
                assert_closed_by_violation(&acceptor, current, &out);
            }
        }
    }
}

#[test]
fn nothing_precedes_the_first_open() {
    for body in bodies() {
        for number in [0, 1, 2] {
            let mut acceptor = Acceptor::new();
            let result = feed(&mut acceptor, &[(number, body)], &mut Vec::new());
            let first = number == 1 && body.frame_type() == FrameType::Open;
            assert_eq!(result.is_ok(), first, "{body:?} of {number}");
        }
    }
}

#[test]
fn the_end_of_the_transport_and_an_abort_in_each_state() {
    for (state, _) in TABLE {
        let mut acceptor = in_state(state);
        let current = is_current(&acceptor);
        let end = if current { End::Reset } else { End::Clean };
        assert_eq!(acceptor.transport_ended(), end, "{state}");
        assert_eq!(acceptor.transport_ended(), end, "asked again");

        let mut acceptor = in_state(state);
        let mut out = Vec::new();
        acceptor.abort(ResetReason::Drained, &mut out);
        acceptor.abort(ResetReason::Timeout, &mut out);
        let reset = bytes(3, Body::Reset(ResetReason::Drained));
        assert_eq!(out, if current { reset } else { Vec::new() });
        assert!(acceptor.is_closed());
        assert_eq!(acceptor.transport_ended(), end);
        let late = feed(&mut acceptor, &[(3, Body::Fin), (9, Body::Done)], &mut out);
        assert_eq!(late, Ok(0), "a closed tunnel reads nothing");
    }
}

#[test]
fn what_the_application_may_do_in_each_state() {
    for (state, _) in TABLE {
        let may_send = ["open", "open <", "open <<"].contains(state);
        let may_deliver = ["open <", "open > <", "open > < R"].contains(state);
        let opening = state.starts_with("opening");
        assert_eq!(in_state(state).may_send(), may_send, "{state}");
        assert_eq!(in_state(state).data_header(1).is_ok(), may_send, "{state}");
        assert!(in_state(state).data_header(0).is_err());
        assert!(in_state(state).data_header(MAX_PAYLOAD + 1).is_err());
        let mut out = Vec::new();
        assert_eq!(in_state(state).finish(&mut out).is_ok(), may_send, "{state}");
        assert_eq!(out.is_empty(), !may_send);
        out.clear();
        let delivered = in_state(state).delivered(&mut out);
        assert_eq!(delivered.is_ok(), may_deliver, "{state}");
        assert_eq!(out == bytes(3, Body::Done), state.starts_with("open > <"));
        out.clear();
        assert_eq!(in_state(state).opened(&mut out).is_ok(), opening, "{state}");
        assert_eq!(out == bytes(3, Body::Opened), opening);
        out.clear();
        let refused = in_state(state).refuse(RefuseReason::Denied, &mut out);
        assert_eq!(refused.is_ok(), opening, "{state}");
        assert_eq!(out == bytes(3, Body::Refused(RefuseReason::Denied)), opening);
        assert_eq!(in_state(state).is_opening(), opening);
        assert_eq!(in_state(state).is_idle(), !is_current(&in_state(state)));
    }
}

#[test]
fn done_follows_whatever_comes_last() {
    let mut by_delivery = in_state("open > <");
    let mut out = Vec::new();
    by_delivery.delivered(&mut out).unwrap();
    assert_eq!(out, bytes(3, Body::Done));
    assert_eq!(label(&by_delivery), "idle");

    let mut undelivered = in_state("open <");
    out.clear();
    undelivered.finish(&mut out).unwrap();
    assert_eq!(out, bytes(3, Body::Fin));
    assert_eq!(label(&undelivered), "open > <");

    let mut by_fin = in_state("open <<");
    out.clear();
    by_fin.finish(&mut out).unwrap();
    assert_eq!(out, [bytes(3, Body::Fin), bytes(3, Body::Done)].concat());
    assert_eq!(label(&by_fin), "idle");
}

#[test]
fn what_came_before_the_answer_counts_after_it() {
    let mut acceptor = in_state("opening data fin");
    acceptor.opened(&mut Vec::new()).unwrap();
    assert_eq!(label(&acceptor), "open <");
    let mut acceptor = in_state("opening data");
    acceptor.opened(&mut Vec::new()).unwrap();
    assert_eq!(label(&acceptor), "open");
}

#[test]
fn a_refused_connection_is_followed_by_the_next() {
    let mut acceptor = in_state("refused data fin");
    let frames = [(4, Body::Open(open())), (4, Body::Data(b"new"))];
    let events = feed(&mut acceptor, &frames, &mut Vec::new());
    assert_eq!((events, acceptor.number()), (Ok(2), 4));
    assert_eq!(label(&acceptor), "opening data");
}

#[test]
fn late_frames_give_no_event() {
    let mut acceptor = in_state("refused");
    let frames = [(3, Body::Data(b"late")), (3, Body::Fin)];
    assert_eq!(feed(&mut acceptor, &frames, &mut Vec::new()), Ok(0));
}

#[test]
fn an_open_above_last_is_discarded() {
    for state in ["idle", "refused", "refused data"] {
        let mut acceptor = in_state(state);
        let mut out = Vec::new();
        acceptor.retire(&mut out);
        acceptor.retire(&mut out);
        assert_eq!(out, bytes(3, Body::Retire));
        let late = [(4, Body::Open(open())), (4, Body::Data(b"not served")), (4, Body::Fin)];
        assert_eq!(feed(&mut acceptor, &late, &mut Vec::new()), Ok(0));
        assert_eq!((acceptor.number(), acceptor.is_idle()), (3, true));
        assert!(acceptor.is_retired());
        assert_eq!(acceptor.transport_ended(), End::Clean);
    }
}

#[test]
fn after_a_discarded_open_only_its_early_frames_may_come() {
    let bad = [
        (4, Body::Open(open())),
        (5, Body::Open(open())),
        (3, Body::Data(b"of the one before")),
        (4, Body::Opened),
        (5, Body::Data(b"of the one after")),
    ];
    for frame in bad {
        let mut acceptor = in_state("idle R");
        let frames = [(4, Body::Open(open())), frame];
        feed(&mut acceptor, &frames, &mut Vec::new()).unwrap_err();
        assert!(acceptor.is_closed());
    }
    let mut acceptor = in_state("idle R");
    let reset = (4, Body::Reset(ResetReason::Application));
    let frames = [(4, Body::Open(open())), reset];
    assert_eq!(feed(&mut acceptor, &frames, &mut Vec::new()), Ok(0));
    assert_eq!(label(&acceptor), "clean");
}

#[test]
fn a_retiring_acceptor_serves_the_current_connection_to_its_end() {
    let mut acceptor = in_state("opening");
    let mut out = Vec::new();
    acceptor.retire(&mut out);
    acceptor.opened(&mut out).unwrap();
    acceptor.finish(&mut out).unwrap();
    feed(&mut acceptor, &[(3, Body::Fin)], &mut out).unwrap();
    acceptor.delivered(&mut out).unwrap();
    assert_eq!(label(&acceptor), "idle R");
    let frames: Vec<_> = Frames::new(&out).map(|f| f.unwrap().body).collect();
    assert_eq!(frames, [Body::Retire, Body::Opened, Body::Fin, Body::Done]);
}

#[test]
fn numbers_end() {
    let mut acceptor = in_state("idle");
    acceptor.number = u32::MAX;
    for number in [0, 1, u32::MAX] {
        feed(&mut acceptor, &[(number, Body::Open(open()))], &mut Vec::new()).unwrap_err();
        acceptor.state = State::Idle { late: None };
    }
}

#[test]
fn malformed_bytes_close() {
    let mut acceptor = in_state("open");
    let mut out = Vec::new();
    let result = acceptor.receive(&mut Frames::new(&[0xff; 40]), &mut out);
    assert_eq!(result, Err(Violation::Malformed(Malformed::Type(0xff))));
    assert_closed_by_violation(&acceptor, true, &out);
}

fn in_state(state: &str) -> Acceptor {
    let mut acceptor = Acceptor::new();
    let mut out = Vec::new();
    for number in 1..=2 {
        feed(&mut acceptor, &[(number, Body::Open(open()))], &mut out).unwrap();
        acceptor.refuse(RefuseReason::Denied, &mut out).unwrap();
    }
    feed(&mut acceptor, &[(3, Body::Open(open()))], &mut out).unwrap();
    let words: Vec<&str> = state.split(' ').collect();
    let has = |word| words.contains(&word);
    if has("R") {
        acceptor.retire(&mut out);
    }
    if has("data") {
        feed(&mut acceptor, &[(3, Body::Data(b"early"))], &mut out).unwrap();
    }
    if has("fin") {
        feed(&mut acceptor, &[(3, Body::Fin)], &mut out).unwrap();
    }
    if has("refused") {
        acceptor.refuse(RefuseReason::Denied, &mut out).unwrap();
    }
    if has("open") || has("idle") {
        acceptor.opened(&mut out).unwrap();
    }
    if has(">") || has("idle") {
        acceptor.finish(&mut out).unwrap();
    }
    if has("<") || has("<<") || has("idle") {
        feed(&mut acceptor, &[(3, Body::Fin)], &mut out).unwrap();
    }
    if has("<<") || has("idle") {
        acceptor.delivered(&mut out).unwrap();
    }
    assert_eq!(label(&acceptor), state);
    acceptor
}

/// `>`: our FIN is sent; `<`: the peer's has arrived; `<<`: and all is delivered; `R`: retired.
fn label(acceptor: &Acceptor) -> String {
    let early = |name: &str, early: Early| {
        let data = if early.data { " data" } else { "" };
        format!("{name}{data}{}", if early.fin { " fin" } else { "" })
    };
    let mut label = match acceptor.state {
        State::Idle { late: None } => "idle".to_owned(),
        State::Idle { late: Some(late) } => early("refused", late.early),
        State::Opening(sent) => early("opening", sent),
        State::Open { outgoing, incoming } => {
            let out = match outgoing {
                Outgoing::Flowing => "",
                Outgoing::Finished => " >",
            };
            let incoming = match incoming {
                Incoming::Flowing => "",
                Incoming::Finished => " <",
                Incoming::Delivered => " <<",
            };
            format!("open{out}{incoming}")
        }
        State::Closed(End::Clean) => return "clean".to_owned(),
        State::Closed(End::Reset) => return "reset".to_owned(),
        State::Closed(End::Repeat) => return "repeat".to_owned(),
    };
    if acceptor.retired {
        label += " R";
    }
    label
}

fn is_current(acceptor: &Acceptor) -> bool {
    matches!(acceptor.state, State::Opening(_) | State::Open { .. })
}

fn assert_closed_by_violation(acceptor: &Acceptor, current: bool, out: &[u8]) {
    let (end, reset) =
        if current { ("reset", bytes(3, Body::Reset(ResetReason::Protocol))) } else { ("clean", Vec::new()) };
    assert_eq!(label(acceptor), end);
    assert_eq!(out, reset);
}

fn bodies() -> [Body<'static>; 8] {
    [
        Body::Open(open()),
        Body::Opened,
        Body::Refused(RefuseReason::Denied),
        Body::Data(b"data"),
        Body::Fin,
        Body::Done,
        Body::Reset(ResetReason::Application),
        Body::Retire,
    ]
}

fn open() -> Open<'static> {
    Open {
        destination: EndpointAddr::new(([10, 0, 0, 2], 80).into()),
        client: ClientAddr::new(([10, 0, 0, 1], 40_000).into()),
        id: ConnectionId([1; 16]),
        extensions: Extensions::NONE,
    }
}

fn bytes(number: u32, body: Body<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    Frame { number, body }.encode(&mut out).unwrap();
    out
}

/// Receives the frames as one record. Returns how many events they gave.
fn feed(acceptor: &mut Acceptor, frames: &[(u32, Body<'_>)], out: &mut Vec<u8>) -> Result<usize, Violation> {
    let record: Vec<u8> = frames.iter().flat_map(|(n, body)| bytes(*n, *body)).collect();
    let mut frames = Frames::new(&record);
    let mut events = 0;
    while acceptor.receive(&mut frames, out)?.is_some() {
        events += 1;
    }
    Ok(events)
}
