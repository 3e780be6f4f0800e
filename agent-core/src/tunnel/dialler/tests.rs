#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;
use crate::address::{ClientAddr, EndpointAddr};
use crate::tunnel::{ConnectionId, Extensions, MAX_PAYLOAD, Malformed};

/// Every state that a dialler can be in (after its third OPEN), and what each frame with the current number makes of it.
/// `!` is a violation.
#[rustfmt::skip]
const TABLE: &[(&str, [&str; 8])] = &[
    //                  OPEN OPENED     REFUSED   DATA        FIN         DONE        RESET     RETIRE
    ("idle",            ["!", "!",      "!",      "!",        "!",        "!",        "!",      "clean"]),
    ("opening",         ["!", "open",   "idle",   "!",        "!",        "!",        "reset",  "opening R"]),
    ("opening early",   ["!", "open",   "idle",   "!",        "!",        "!",        "reset",  "opening early R"]),
    ("opening fin",     ["!", "open >", "idle",   "!",        "!",        "!",        "reset",  "opening fin R"]),
    ("open",            ["!", "!",      "!",      "open",     "open <",   "!",        "reset",  "open R"]),
    ("open >",          ["!", "!",      "!",      "open >",   "open > <", "!",        "reset",  "open > R"]),
    ("open <",          ["!", "!",      "!",      "!",        "!",        "!",        "reset",  "open < R"]),
    ("open <<",         ["!", "!",      "!",      "!",        "!",        "!",        "reset",  "open << R"]),
    ("open > <",        ["!", "!",      "!",      "!",        "!",        "settling", "reset",  "open > < R"]),
    ("open > <<",       ["!", "!",      "!",      "!",        "!",        "idle",     "reset",  "open > << R"]),
    ("settling",        ["!", "!",      "!",      "!",        "!",        "!",        "!",      "settling R"]),
];

#[test]
fn each_frame_in_each_state() {
    for (state, expect) in TABLE {
        for (body, expect) in bodies().into_iter().zip(expect) {
            let mut dialler = in_state(state);
            let current = is_current(&dialler);
            let mut out = Vec::new();
            let result = feed(&mut dialler, &[(3, body)], &mut out);
            if *expect != "!" {
                result.unwrap();
                assert_eq!(label(&dialler), *expect, "{body:?} while {state}");
                assert!(out.is_empty());
                continue;
            }
            let Err(Violation::Unexpected { frame, .. }) = result else {
                panic!("{body:?} while {state}: {result:?}");
            };
            assert_eq!(frame, body.frame_type());
            assert_closed_by_violation(&dialler, current, &out);
        }
    }
}

#[test]
fn a_wrong_number_closes_in_each_state() {
    for (state, _) in TABLE {
        for body in bodies() {
            for number in [0, 1, 2, 4, u32::MAX] {
                let repeat = body == Body::Retire && number == 2 && state.starts_with("opening");
                if repeat {
                    continue;
                }
                let mut dialler = in_state(state);
                let current = is_current(&dialler);
                let mut out = Vec::new();
                let result = feed(&mut dialler, &[(number, body)], &mut out);
                let violation = Violation::Number { frame: body.frame_type(), number, current: 3 };
                assert_eq!(result, Err(violation), "{body:?} while {state}");
                assert_closed_by_violation(&dialler, current, &out);
            }
        }
    }
}

#[test]
fn the_end_of_the_transport_in_each_state() {
    for (state, _) in TABLE {
        let mut dialler = in_state(state);
        let expect = match *state {
            "idle" | "settling" => End::Clean,
            _ => End::Reset,
        };
        assert_eq!(dialler.transport_ended(), expect, "{state}");
        assert_eq!(dialler.transport_ended(), expect, "asked again");
        assert!(dialler.is_closed());
    }
}

#[test]
fn an_abort_in_each_state() {
    for (state, _) in TABLE {
        let mut dialler = in_state(state);
        let current = is_current(&dialler);
        let mut out = Vec::new();
        dialler.abort(ResetReason::Application, &mut out);
        dialler.abort(ResetReason::Timeout, &mut out);
        assert!(dialler.is_closed());
        if current {
            assert_eq!(out, bytes(3, Body::Reset(ResetReason::Application)));
            assert_eq!(dialler.transport_ended(), End::Reset);
        } else {
            assert!(out.is_empty());
            assert_eq!(dialler.transport_ended(), End::Clean);
        }
        let late = feed(&mut dialler, &[(3, Body::Fin), (9, Body::Opened)], &mut out);
        assert_eq!(late, Ok(0), "a closed tunnel reads nothing");
    }
}

#[test]
fn what_the_application_may_do_in_each_state() {
    for (state, _) in TABLE {
        let may_send = ["opening", "open", "open <", "open <<"].contains(state);
        let may_finish = may_send || *state == "opening early";
        let may_deliver = ["open <", "open > <", "settling"].contains(state);
        assert_eq!(in_state(state).may_send(), may_send, "{state}");
        assert_eq!(in_state(state).data_header(1).is_ok(), may_send, "{state}");
        let mut out = Vec::new();
        let finished = in_state(state).finish(&mut out);
        assert_eq!(finished.is_ok(), may_finish, "{state}");
        assert_eq!(out == bytes(3, Body::Fin), may_finish);
        assert_eq!(in_state(state).delivered().is_ok(), may_deliver, "{state}");
        out.clear();
        let opened = in_state(state).open(&open(), &mut out);
        assert_eq!(opened.ok(), (*state == "idle").then_some(4), "{state}");
        assert_eq!(out.is_empty(), *state != "idle");
        assert_eq!(in_state(state).is_idle(), *state == "idle");
        let keeps = state.starts_with("opening");
        assert_eq!(in_state(state).keeps_early(), keeps, "{state}");
    }
}

#[test]
fn misuse_changes_nothing() {
    for (state, _) in TABLE {
        let mut dialler = in_state(state);
        let may = dialler.may_send();
        assert!(dialler.data_header(0).is_err());
        assert!(dialler.data_header(MAX_PAYLOAD + 1).is_err());
        assert_eq!(dialler.may_send(), may);
        assert_eq!(label(&dialler), *state);
    }
    let misuse = Dialler::new(0).delivered().unwrap_err();
    assert_eq!(misuse.to_string(), "cannot say that all is delivered while idle");
}

#[test]
fn at_most_one_data_frame_precedes_opened() {
    let mut dialler = in_state("opening");
    assert_eq!(dialler.data_header(5).unwrap(), [4, 0, 0, 5, 0, 0, 0, 3]);
    assert!(!dialler.may_send());
    dialler.data_header(5).unwrap_err();
    feed(&mut dialler, &[(3, Body::Opened)], &mut Vec::new()).unwrap();
    assert!(dialler.may_send() && !dialler.keeps_early());
    dialler.data_header(MAX_PAYLOAD).unwrap();
    dialler.data_header(1).unwrap();
}

#[test]
fn data_is_given_in_place_and_may_share_openeds_record() {
    let mut dialler = in_state("opening");
    let record = [bytes(3, Body::Opened), bytes(3, Body::Data(b"hello"))].concat();
    let mut frames = Frames::new(&record);
    let mut out = Vec::new();
    let opened = dialler.receive(&mut frames, &mut out).unwrap();
    assert_eq!(opened, Some(DiallerEvent::Opened));
    let Some(DiallerEvent::Data(data)) = dialler.receive(&mut frames, &mut out).unwrap() else {
        panic!("no data");
    };
    assert!(std::ptr::eq(data, &raw const record[16..]));
    assert_eq!(dialler.receive(&mut frames, &mut out), Ok(None));
}

#[test]
fn an_open_above_last_is_repeated_elsewhere() {
    for state in ["opening", "opening early", "opening fin"] {
        let mut dialler = in_state(state);
        let record = bytes(2, Body::Retire);
        let event = dialler.receive(&mut Frames::new(&record), &mut Vec::new());
        assert_eq!(event, Ok(Some(DiallerEvent::Repeat)));
        assert!(dialler.is_closed() && dialler.keeps_early());
        assert_eq!(dialler.transport_ended(), End::Repeat);
    }
    let mut first = Dialler::new(0);
    first.open(&open(), &mut Vec::new()).unwrap();
    feed(&mut first, &[(0, Body::Retire)], &mut Vec::new()).unwrap();
    assert_eq!(first.transport_ended(), End::Repeat);
}

#[test]
fn a_retired_tunnel_closes_when_its_connection_is_over() {
    for (state, last) in [("open > <<", Body::Done), ("opening", Body::Refused(RefuseReason::Denied))] {
        for by_peer in [true, false] {
            let mut dialler = in_state(state);
            if by_peer {
                feed(&mut dialler, &[(3, Body::Retire)], &mut Vec::new()).unwrap();
            } else {
                dialler.retire();
            }
            feed(&mut dialler, &[(3, last)], &mut Vec::new()).unwrap();
            assert_eq!(label(&dialler), "clean");
        }
    }
    let mut settling = in_state("settling");
    settling.retire();
    settling.delivered().unwrap();
    assert_eq!(label(&settling), "clean");
    let mut idle = Dialler::new(0);
    idle.retire();
    assert!(idle.is_closed() && idle.open(&open(), &mut Vec::new()).is_err());
}

#[test]
fn a_tunnel_is_used_max_uses_times() {
    let mut out = Vec::new();
    let mut once = Dialler::new(1);
    once.open(&open(), &mut out).unwrap();
    feed(&mut once, &[(1, Body::Refused(RefuseReason::Denied))], &mut out).unwrap();
    assert_eq!(label(&once), "clean");
    let mut twice = Dialler::new(2);
    assert_eq!(carry(&mut twice), 1);
    assert!(twice.is_idle());
    assert_eq!(carry(&mut twice), 2);
    assert_eq!(label(&twice), "clean");
    let mut endless = Dialler::new(0);
    endless.number = u32::MAX - 1;
    assert_eq!(carry(&mut endless), u32::MAX);
    assert_eq!(label(&endless), "clean");
}

#[test]
fn malformed_bytes_close() {
    let mut dialler = in_state("open");
    let mut record = bytes(3, Body::Data(b"x"));
    record.push(0);
    let mut out = Vec::new();
    let mut frames = Frames::new(&record);
    let event = dialler.receive(&mut frames, &mut out);
    assert_eq!(event, Ok(Some(DiallerEvent::Data(b"x"))));
    let result = dialler.receive(&mut frames, &mut out);
    assert_eq!(result, Err(Violation::Malformed(Malformed::Cut)));
    assert_closed_by_violation(&dialler, true, &out);
}

#[test]
fn the_tunnel_may_end_before_the_application_has_its_last_byte() {
    let mut dialler = in_state("settling");
    assert_eq!(dialler.transport_ended(), End::Clean);
    dialler.delivered().unwrap();
    assert!(dialler.is_closed());
}

fn carry(dialler: &mut Dialler) -> u32 {
    let mut out = Vec::new();
    let number = dialler.open(&open(), &mut out).unwrap();
    dialler.finish(&mut out).unwrap();
    feed(dialler, &[(number, Body::Opened), (number, Body::Fin)], &mut out).unwrap();
    dialler.delivered().unwrap();
    feed(dialler, &[(number, Body::Done)], &mut out).unwrap();
    assert_eq!(dialler.number(), number);
    number
}

fn in_state(state: &str) -> Dialler {
    let mut dialler = Dialler::new(0);
    carry(&mut dialler);
    carry(&mut dialler);
    carry(&mut dialler);
    if state == "idle" {
        return dialler;
    }
    dialler.number = 2;
    let mut out = Vec::new();
    dialler.open(&open(), &mut out).unwrap();
    match state {
        "opening early" => drop(dialler.data_header(9).unwrap()),
        "opening fin" => dialler.finish(&mut out).unwrap(),
        _ => {}
    }
    if !state.starts_with("opening") {
        feed(&mut dialler, &[(3, Body::Opened)], &mut out).unwrap();
    }
    if state.contains('>') || state == "settling" {
        dialler.finish(&mut out).unwrap();
    }
    if state.contains('<') || state == "settling" {
        feed(&mut dialler, &[(3, Body::Fin)], &mut out).unwrap();
    }
    if state.contains("<<") {
        dialler.delivered().unwrap();
    }
    if state == "settling" {
        feed(&mut dialler, &[(3, Body::Done)], &mut out).unwrap();
    }
    assert_eq!(label(&dialler), state);
    dialler
}

/// `>`: our FIN is sent; `<`: the peer's has arrived; `<<`: and all is delivered; `R`: retired.
fn label(dialler: &Dialler) -> String {
    let mut label = match dialler.state {
        State::Idle => "idle".to_owned(),
        State::Opening { early, outgoing } => match (early, outgoing) {
            (_, Outgoing::Finished) => "opening fin".to_owned(),
            (true, Outgoing::Flowing) => "opening early".to_owned(),
            (false, Outgoing::Flowing) => "opening".to_owned(),
        },
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
        State::Settling => "settling".to_owned(),
        State::Closed(End::Clean) => return "clean".to_owned(),
        State::Closed(End::Reset) => return "reset".to_owned(),
        State::Closed(End::Repeat) => return "repeat".to_owned(),
    };
    if dialler.retired {
        label += " R";
    }
    label
}

fn is_current(dialler: &Dialler) -> bool {
    matches!(dialler.state, State::Opening { .. } | State::Open { .. })
}

fn assert_closed_by_violation(dialler: &Dialler, current: bool, out: &[u8]) {
    let (end, reset) =
        if current { ("reset", bytes(3, Body::Reset(ResetReason::Protocol))) } else { ("clean", Vec::new()) };
    assert_eq!(label(dialler), end);
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
fn feed(dialler: &mut Dialler, frames: &[(u32, Body<'_>)], out: &mut Vec<u8>) -> Result<usize, Violation> {
    let record: Vec<u8> = frames.iter().flat_map(|(n, body)| bytes(*n, *body)).collect();
    let mut frames = Frames::new(&record);
    let mut events = 0;
    while dialler.receive(&mut frames, out)?.is_some() {
        events += 1;
    }
    Ok(events)
}
