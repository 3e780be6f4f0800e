//! Both ends against each other, over simulated transports, in random order.
//!
//! A [`Story`] is one application connection as the two applications know it, on whatever tunnels it is tried. Every byte
//! tells which story, direction and offset it belongs to, so that a stray one is seen where it arrives.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::address::{ClientAddr, EndpointAddr};

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn any_interleaving_keeps_the_promises(steps in steps(any_action())) {
        let mut world = World::default();
        world.run(&steps);
        world.settle();
        world.assert_at_rest();
    }

    #[test]
    fn without_an_abort_every_connection_finishes_or_is_refused(steps in steps(orderly())) {
        let mut world = World::default();
        world.run(&steps);
        world.settle();
        world.assert_at_rest();
        for story in &world.stories {
            prop_assert!(matches!(story.fate, Fate::Finished | Fate::Refused), "{story:?}");
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Action {
    /// On this tunnel if it is idle, else on a fresh one.
    Connect {
        max_uses: u32,
    },
    ClientWrite(usize),
    ClientFinish,
    ClientDelivered,
    ClientAbort,
    DiallerRetires,
    DiallerFlushes,
    DiallerReceives,
    Serve,
    Refuse,
    ServerWrite(usize),
    ServerFinish,
    ServerDelivered,
    ServerAbort,
    AcceptorRetires,
    AcceptorFlushes,
    AcceptorReceives,
    /// All but so many of the records on their way are lost.
    TransportDies {
        arrive: usize,
    },
}

/// What moves everything towards its end.
const SETTLING: &[Action] = &[
    Action::DiallerFlushes,
    Action::AcceptorReceives,
    Action::Serve,
    Action::ServerFinish,
    Action::ServerDelivered,
    Action::AcceptorFlushes,
    Action::DiallerReceives,
    Action::ClientFinish,
    Action::ClientDelivered,
];

fn orderly() -> impl Strategy<Value = Action> + Clone {
    let size = prop_oneof![4 => 1..50_usize, 1 => Just(MAX_PAYLOAD), 1 => Just(9_000)];
    prop_oneof![
        12 => (0..4_u32).prop_map(|max_uses| Action::Connect { max_uses }),
        10 => size.clone().prop_map(Action::ClientWrite),
        6 => Just(Action::ClientFinish),
        8 => Just(Action::ClientDelivered),
        1 => Just(Action::DiallerRetires),
        20 => Just(Action::DiallerFlushes),
        20 => Just(Action::DiallerReceives),
        8 => Just(Action::Serve),
        3 => Just(Action::Refuse),
        10 => size.prop_map(Action::ServerWrite),
        6 => Just(Action::ServerFinish),
        8 => Just(Action::ServerDelivered),
        2 => Just(Action::AcceptorRetires),
        20 => Just(Action::AcceptorFlushes),
        20 => Just(Action::AcceptorReceives),
    ]
}

fn any_action() -> impl Strategy<Value = Action> + Clone {
    prop_oneof![
        50 => orderly(),
        1 => Just(Action::ClientAbort),
        1 => Just(Action::ServerAbort),
        1 => (0..4_usize).prop_map(|arrive| Action::TransportDies { arrive }),
    ]
}

/// Each with its tunnel, counted from the newest.
fn steps(action: impl Strategy<Value = Action>) -> impl Strategy<Value = Vec<(usize, Action)>> {
    prop::collection::vec((0..3_usize, action), 0..150)
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Fate {
    #[default]
    Current,
    Finished,
    Refused,
    Reset,
}

#[derive(Debug, Default)]
struct Story {
    /// What the client wrote, and what the server has read of it.
    request: Stream,
    response: Stream,
    served: bool,
    /// As the client sees it.
    fate: Fate,
}

#[derive(Debug, Default)]
struct Stream {
    sent: usize,
    finished: bool,
    got: usize,
    end_seen: bool,
    /// The reading application has the last byte.
    delivered: bool,
}

#[derive(Default)]
struct World {
    links: Vec<Link>,
    stories: Vec<Story>,
    /// Connections to be opened again, with what was kept of them.
    repeats: Vec<(usize, Kept)>,
}

/// One tunnel.
struct Link {
    client: Client,
    server: Server,
    to_server: Pipe,
    to_client: Pipe,
}

struct Client {
    dialler: Dialler,
    max_uses: u32,
    out: Vec<u8>,
    story: Option<usize>,
    kept: Kept,
}

struct Server {
    acceptor: Acceptor,
    out: Vec<u8>,
    story: Option<usize>,
    held: Kept,
}

#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    finished: bool,
}

#[derive(Default)]
struct Pipe {
    records: VecDeque<Vec<u8>>,
    closed: bool,
}

impl World {
    fn run(&mut self, steps: &[(usize, Action)]) {
        for (link, action) in steps {
            let link = self.links.len().saturating_sub(1 + link);
            self.act(link, *action);
        }
    }

    /// Lets both ends do all that an orderly end takes, and nothing else.
    fn settle(&mut self) {
        for _ in 0..1_000 {
            let mut progress = false;
            for link in 0..self.links.len() {
                for action in SETTLING {
                    progress |= self.act(link, *action);
                }
            }
            for (story, kept) in std::mem::take(&mut self.repeats) {
                self.connect_afresh(0, story, &kept);
                progress = true;
            }
            if !progress {
                return;
            }
        }
        panic!("no end in sight");
    }

    fn assert_at_rest(&self) {
        for link in &self.links {
            let (dialler, acceptor) = (&link.client.dialler, &link.server.acceptor);
            assert!(dialler.is_idle() || dialler.is_closed(), "{dialler:?}");
            assert!(acceptor.is_idle() || acceptor.is_closed(), "{acceptor:?}");
            assert_eq!(dialler.is_closed(), acceptor.is_closed());
            assert!(link.client.story.is_none() && link.server.story.is_none());
        }
        for story in &self.stories {
            assert_ne!(story.fate, Fate::Current);
        }
    }

    /// False if the action is not possible now.
    fn act(&mut self, link: usize, action: Action) -> bool {
        if let Action::Connect { max_uses } = action {
            return self.connect(link, max_uses);
        }
        let Some(link) = self.links.get_mut(link) else {
            return false;
        };
        let stories = &mut self.stories;
        match action {
            Action::Connect { .. } => false,
            Action::ClientWrite(length) => link.client_write(stories, length),
            Action::ClientFinish => link.client_finish(stories),
            Action::ClientDelivered => link.client_delivered(stories),
            Action::ClientAbort => link.client_abort(stories),
            Action::DiallerRetires => link.dialler_retires(),
            Action::DiallerFlushes => link.to_server.take(&mut link.client.out),
            Action::DiallerReceives => link.dialler_receives(stories, &mut self.repeats),
            Action::Serve => link.serve(stories),
            Action::Refuse => link.refuse(),
            Action::ServerWrite(length) => link.server_write(stories, length),
            Action::ServerFinish => link.server_finish(stories),
            Action::ServerDelivered => link.server_delivered(stories),
            Action::ServerAbort => link.server_abort(),
            Action::AcceptorRetires => link.acceptor_retires(),
            Action::AcceptorFlushes => link.to_client.take(&mut link.server.out),
            Action::AcceptorReceives => link.acceptor_receives(stories),
            Action::TransportDies { arrive } => link.die(arrive),
        }
    }

    fn connect(&mut self, link: usize, max_uses: u32) -> bool {
        if let Some((story, kept)) = self.repeats.pop() {
            return self.connect_afresh(max_uses, story, &kept);
        }
        let story = self.stories.len();
        self.stories.push(Story::default());
        match self.links.get_mut(link) {
            Some(link) if link.client.dialler.is_idle() => link.open(story, &Kept::default()),
            _ => self.connect_afresh(max_uses, story, &Kept::default()),
        }
    }

    fn connect_afresh(&mut self, max_uses: u32, story: usize, kept: &Kept) -> bool {
        let mut link = Link::new(max_uses);
        link.open(story, kept);
        self.links.push(link);
        true
    }
}

/// The client's end.
impl Link {
    fn open(&mut self, story: usize, kept: &Kept) -> bool {
        let client = &mut self.client;
        assert_eq!(client.story, None);
        let mut frames = Vec::new();
        let number = client.dialler.open(&open(story), &mut frames).unwrap();
        assert!(client.max_uses == 0 || number <= client.max_uses);
        client.story = Some(story);
        if !kept.bytes.is_empty() {
            frames.extend(client.dialler.data_header(kept.bytes.len()).unwrap());
            frames.extend(&kept.bytes);
        }
        if kept.finished {
            client.dialler.finish(&mut frames).unwrap();
        }
        client.kept.bytes.clone_from(&kept.bytes);
        client.kept.finished = kept.finished;
        self.to_server.write(&mut self.client.out, &frames);
        true
    }

    fn client_write(&mut self, stories: &mut [Story], length: usize) -> bool {
        let client = &mut self.client;
        let may_send = client.dialler.may_send();
        let header = client.dialler.data_header(length);
        assert_eq!(header.is_ok(), may_send);
        let (Ok(header), Some(story)) = (header, client.story) else {
            return false;
        };
        let payload = stories[story].request.write(story, true, length);
        if client.dialler.keeps_early() {
            client.kept.bytes.clone_from(&payload);
        }
        let frame = [&header[..], &payload].concat();
        self.to_server.write(&mut self.client.out, &frame);
        true
    }

    fn client_finish(&mut self, stories: &mut [Story]) -> bool {
        let client = &mut self.client;
        let mut frames = Vec::new();
        if client.dialler.finish(&mut frames).is_err() {
            return false;
        }
        client.kept.finished = true;
        stories[client.story.unwrap()].request.finished = true;
        self.to_server.write(&mut self.client.out, &frames);
        true
    }

    fn client_delivered(&mut self, stories: &mut [Story]) -> bool {
        let Some(story) = self.client.story else {
            return false;
        };
        if self.client.dialler.delivered().is_err() {
            return false;
        }
        stories[story].response.delivered = true;
        self.client_over(stories);
        true
    }

    fn client_abort(&mut self, stories: &mut [Story]) -> bool {
        if self.client.dialler.is_closed() {
            return false;
        }
        let mut frames = Vec::new();
        self.client.dialler.abort(ResetReason::Application, &mut frames);
        if let Some(story) = self.client.story.take() {
            stories[story].fate = Fate::Reset;
        }
        self.to_server.write(&mut self.client.out, &frames);
        self.client_closes();
        true
    }

    fn dialler_retires(&mut self) -> bool {
        self.client.dialler.retire();
        self.client_closes();
        true
    }

    fn dialler_receives(&mut self, stories: &mut [Story], repeats: &mut Vec<(usize, Kept)>) -> bool {
        if self.client.dialler.is_closed() {
            return false;
        }
        let Some(record) = self.to_client.records.pop_front() else {
            return self.to_client.closed && self.client_transport_ends(stories);
        };
        let mut frames = Frames::new(&record);
        let mut out = Vec::new();
        while let Some(event) = self.client.dialler.receive(&mut frames, &mut out).unwrap() {
            self.client_event(event, stories, repeats);
        }
        assert!(out.is_empty());
        self.client_closes();
        true
    }

    fn client_event(&mut self, event: DiallerEvent<'_>, stories: &mut [Story], repeats: &mut Vec<(usize, Kept)>) {
        if event == DiallerEvent::Retired {
            return;
        }
        let at = self.client.story.unwrap();
        let story = &mut stories[at];
        match event {
            DiallerEvent::Opened => self.client.kept = Kept::default(),
            DiallerEvent::Data(bytes) => story.response.read(at, false, bytes),
            DiallerEvent::Fin => story.response.see_end(),
            DiallerEvent::Done => {
                assert!(story.request.delivered && story.response.is_complete());
                self.client_over(stories);
            }
            DiallerEvent::Refused(reason) => {
                assert_eq!(reason, RefuseReason::Denied);
                assert!(!story.served && story.request.got == 0);
                story.fate = Fate::Refused;
                self.client.story = None;
            }
            DiallerEvent::Reset(_) => {
                story.fate = Fate::Reset;
                self.client.story = None;
            }
            DiallerEvent::Repeat => {
                assert!(!story.served && self.client.dialler.keeps_early());
                repeats.push((at, std::mem::take(&mut self.client.kept)));
                self.client.story = None;
            }
            DiallerEvent::Retired => {}
        }
    }

    fn client_transport_ends(&mut self, stories: &mut [Story]) -> bool {
        let end = self.client.dialler.transport_ended();
        let story = self.client.story.take().map(|at| &mut stories[at]);
        match (end, story) {
            (End::Clean, None) => {}
            // The last bytes, all here, are still on their way to the application.
            (End::Clean, Some(story)) => {
                story.response.delivered = true;
                story.finish();
            }
            (End::Reset, Some(story)) => story.fate = Fate::Reset,
            (end, story) => panic!("{end:?} of {story:?}"),
        }
        self.client_closes();
        true
    }

    /// Takes note if the client's connection is over in order.
    fn client_over(&mut self, stories: &mut [Story]) {
        let dialler = &self.client.dialler;
        if dialler.is_idle() || dialler.is_closed() {
            stories[self.client.story.take().unwrap()].finish();
        }
        self.client_closes();
    }

    fn client_closes(&mut self) {
        if self.client.dialler.is_closed() {
            self.to_server.take(&mut self.client.out);
            self.to_server.closed = true;
        }
    }
}

/// The server's end.
impl Link {
    fn serve(&mut self, stories: &mut [Story]) -> bool {
        let mut frames = Vec::new();
        if self.server.acceptor.opened(&mut frames).is_err() {
            return false;
        }
        let at = self.server.story.unwrap();
        let story = &mut stories[at];
        assert!(!story.served, "one connection is served twice");
        story.served = true;
        let held = std::mem::take(&mut self.server.held);
        story.request.read(at, true, &held.bytes);
        if held.finished {
            story.request.see_end();
        }
        self.to_client.write(&mut self.server.out, &frames);
        true
    }

    fn refuse(&mut self) -> bool {
        let mut frames = Vec::new();
        let refused = self.server.acceptor.refuse(RefuseReason::Denied, &mut frames);
        if refused.is_err() {
            return false;
        }
        self.server.held = Kept::default();
        self.server.story = None;
        self.to_client.write(&mut self.server.out, &frames);
        true
    }

    fn server_write(&mut self, stories: &mut [Story], length: usize) -> bool {
        let may_send = self.server.acceptor.may_send();
        let header = self.server.acceptor.data_header(length);
        assert_eq!(header.is_ok(), may_send);
        let (Ok(header), Some(at)) = (header, self.server.story) else {
            return false;
        };
        let payload = stories[at].response.write(at, false, length);
        let frame = [&header[..], &payload].concat();
        self.to_client.write(&mut self.server.out, &frame);
        true
    }

    fn server_finish(&mut self, stories: &mut [Story]) -> bool {
        let mut frames = Vec::new();
        if self.server.acceptor.finish(&mut frames).is_err() {
            return false;
        }
        stories[self.server.story.unwrap()].response.finished = true;
        self.server_over(stories);
        self.to_client.write(&mut self.server.out, &frames);
        true
    }

    fn server_delivered(&mut self, stories: &mut [Story]) -> bool {
        let mut frames = Vec::new();
        if self.server.acceptor.delivered(&mut frames).is_err() {
            return false;
        }
        stories[self.server.story.unwrap()].request.delivered = true;
        self.server_over(stories);
        self.to_client.write(&mut self.server.out, &frames);
        true
    }

    fn server_abort(&mut self) -> bool {
        if self.server.acceptor.is_closed() {
            return false;
        }
        let mut frames = Vec::new();
        self.server.acceptor.abort(ResetReason::Application, &mut frames);
        self.server.story = None;
        self.to_client.write(&mut self.server.out, &frames);
        self.server_closes();
        true
    }

    fn acceptor_retires(&mut self) -> bool {
        let mut frames = Vec::new();
        self.server.acceptor.retire(&mut frames);
        self.to_client.write(&mut self.server.out, &frames);
        !frames.is_empty()
    }

    fn acceptor_receives(&mut self, stories: &mut [Story]) -> bool {
        if self.server.acceptor.is_closed() {
            return false;
        }
        let Some(record) = self.to_server.records.pop_front() else {
            return self.to_server.closed && self.server_transport_ends();
        };
        let mut frames = Frames::new(&record);
        let mut out = Vec::new();
        while let Some(event) = self.server.acceptor.receive(&mut frames, &mut out).unwrap() {
            self.server_event(event, stories);
        }
        assert!(out.is_empty());
        self.server_closes();
        true
    }

    fn server_event(&mut self, event: AcceptorEvent<'_>, stories: &mut [Story]) {
        if let AcceptorEvent::Open(opened) = event {
            let at = usize::from(opened.id.0[0]) | usize::from(opened.id.0[1]) << 8;
            assert_eq!(opened, open(at));
            assert_eq!(self.server.story.replace(at), None);
            assert!(self.server.held.bytes.is_empty() && !self.server.held.finished);
            return;
        }
        let at = self.server.story.unwrap();
        let opening = self.server.acceptor.is_opening();
        let held = &mut self.server.held;
        match event {
            AcceptorEvent::Data(bytes) if opening => {
                held.bytes.extend(bytes);
                assert!(held.bytes.len() <= MAX_PAYLOAD);
            }
            AcceptorEvent::Data(bytes) => stories[at].request.read(at, true, bytes),
            AcceptorEvent::Fin if opening => held.finished = true,
            AcceptorEvent::Fin => stories[at].request.see_end(),
            AcceptorEvent::Reset(_) => self.server.story = None,
            AcceptorEvent::Open(_) => {}
        }
    }

    fn server_transport_ends(&mut self) -> bool {
        let end = self.server.acceptor.transport_ended();
        let story = self.server.story.take();
        assert_eq!(end == End::Reset, story.is_some());
        self.server_closes();
        true
    }

    fn server_over(&mut self, stories: &[Story]) {
        if self.server.acceptor.is_idle() {
            let story = &stories[self.server.story.take().unwrap()];
            assert!(story.request.delivered && story.response.finished);
        }
    }

    fn server_closes(&mut self) {
        if self.server.acceptor.is_closed() {
            self.to_client.take(&mut self.server.out);
            self.to_client.closed = true;
        }
    }
}

impl Link {
    fn new(max_uses: u32) -> Self {
        Self {
            client: Client {
                dialler: Dialler::new(max_uses),
                max_uses,
                out: Vec::new(),
                story: None,
                kept: Kept::default(),
            },
            server: Server { acceptor: Acceptor::new(), out: Vec::new(), story: None, held: Kept::default() },
            to_server: Pipe::default(),
            to_client: Pipe::default(),
        }
    }

    fn die(&mut self, arrive: usize) -> bool {
        for pipe in [&mut self.to_server, &mut self.to_client] {
            pipe.records.truncate(arrive);
            pipe.closed = true;
        }
        true
    }
}

impl Pipe {
    /// Appends whole frames to what waits to be sent, as a record if they do not fit behind it.
    fn write(&mut self, out: &mut Vec<u8>, frames: &[u8]) {
        if out.len() + frames.len() > MAX_RECORD {
            self.take(out);
        }
        // OPEN with a full DATA behind it takes two records.
        if frames.len() > MAX_RECORD {
            let mut split = Frames::new(&frames[..MAX_RECORD]);
            split.next().unwrap().unwrap();
            let (first, rest) = frames.split_at(split.position());
            self.take(&mut first.to_vec());
            return self.write(out, rest);
        }
        out.extend(frames);
    }

    /// What waits becomes a record on its way.
    fn take(&mut self, out: &mut Vec<u8>) -> bool {
        let record = std::mem::take(out);
        if record.is_empty() {
            return false;
        }
        assert!(record.len() <= MAX_RECORD);
        if !self.closed {
            self.records.push_back(record);
        }
        true
    }
}

impl Story {
    fn finish(&mut self) {
        assert!(self.request.is_complete() && self.response.is_complete());
        assert!(self.request.delivered && self.response.delivered);
        self.fate = Fate::Finished;
    }
}

impl Stream {
    fn write(&mut self, story: usize, request: bool, length: usize) -> Vec<u8> {
        let at = self.sent;
        self.sent += length;
        (at..self.sent).map(|i| byte(story, request, i)).collect()
    }

    fn read(&mut self, story: usize, request: bool, bytes: &[u8]) {
        assert!(!self.end_seen);
        for got in bytes {
            assert_eq!(*got, byte(story, request, self.got));
            self.got += 1;
        }
        assert!(self.got <= self.sent);
    }

    fn see_end(&mut self) {
        assert!(self.finished && self.got == self.sent && !self.end_seen);
        self.end_seen = true;
    }

    fn is_complete(&self) -> bool {
        self.end_seen && self.got == self.sent
    }
}

fn byte(story: usize, request: bool, offset: usize) -> u8 {
    (story * 37 + usize::from(request) * 101 + offset * 7).to_le_bytes()[0]
}

fn open(story: usize) -> Open<'static> {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&story.to_le_bytes());
    Open {
        destination: EndpointAddr::new(([10, 0, 0, 2], 80).into()),
        client: ClientAddr::new(([10, 0, 0, 1], 40_000).into()),
        id: ConnectionId(id),
        extensions: Extensions::NONE,
    }
}
