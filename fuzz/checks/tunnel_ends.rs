//! What must hold of two honest ends of tunnels, over transports that are simulated, whatever happens in whatever order:
//! connections, aborts, retirement, the end of either certificate, the death of a transport. Run by libFuzzer here and, with
//! steps that proptest draws, by agent-core's tests.
//!
//! A [`Story`] is one application connection as the two applications know it, on whatever tunnels it is tried. Every byte
//! tells which story, direction and offset it belongs to, so that a stray one is seen where it arrives.

use std::collections::VecDeque;

use agent_core::address::{ClientAddr, EndpointAddr};
use agent_core::tunnel::{
    Acceptor, AcceptorEvent, ConnectionId, Dialler, DiallerEvent, End, Extensions, Frames, MAX_PAYLOAD, MAX_RECORD,
    Open, RefuseReason, ResetReason,
};

#[path = "tunnel_ends/client.rs"]
mod client;
#[path = "tunnel_ends/server.rs"]
mod server;

/// The input is a script: each step is four bytes, of which the first says which tunnel, counted from the newest, the second
/// what happens, and the others how much of it.
pub(crate) fn check(bytes: &[u8]) {
    let steps: Vec<_> = bytes.as_chunks::<4>().0.iter().map(|step| read(*step)).collect();
    check_steps(&steps);
}

/// Every connection ends, and as it may. Returns how.
pub(crate) fn check_steps(steps: &[(usize, Action)]) -> Vec<Fate> {
    let mut world = World::default();
    world.run(steps);
    world.settle();
    world.assert_at_rest();
    world.stories.iter().map(|story| story.fate).collect()
}

fn read([tunnel, kind, high, low]: [u8; 4]) -> (usize, Action) {
    let amount = usize::from(u16::from_be_bytes([high, low]));
    let length = amount % MAX_PAYLOAD + 1;
    let action = match kind % 22 {
        0 => Action::Connect { max_uses: u32::from(low % 4) },
        1 => Action::ClientWrite(length),
        2 => Action::ClientFinish,
        3 => Action::ClientDelivered,
        4 => Action::ClientAbort,
        5 => Action::ClientCertificateEnds,
        6 => Action::DiallerRetires,
        7 | 8 => Action::DiallerFlushes,
        9 | 10 => Action::DiallerReceives,
        11 => Action::Serve,
        12 => Action::Refuse,
        13 => Action::ServerWrite(length),
        14 => Action::ServerFinish,
        15 => Action::ServerDelivered,
        16 => Action::ServerAbort,
        17 => Action::ServerCertificateEnds,
        18 => Action::AcceptorRetires,
        19 => Action::AcceptorFlushes,
        20 => Action::AcceptorReceives,
        _ if low < 128 => Action::Expires,
        _ => Action::TransportDies { arrive: usize::from(low % 4) },
    };
    (usize::from(tunnel % 3), action)
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Action {
    /// On this tunnel if it is idle, else on a fresh one.
    Connect {
        max_uses: u32,
    },
    ClientWrite(usize),
    ClientFinish,
    ClientDelivered,
    ClientAbort,
    /// The dialler's agent has no valid certificate for its pod any more.
    ClientCertificateEnds,
    DiallerRetires,
    DiallerFlushes,
    DiallerReceives,
    Serve,
    Refuse,
    ServerWrite(usize),
    ServerFinish,
    ServerDelivered,
    ServerAbort,
    /// Likewise the acceptor's.
    ServerCertificateEnds,
    /// The earlier of the two certificates that the tunnel was made with has ended, by the acceptor's clock; the dialler's may
    /// be behind.
    Expires,
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

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fate {
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
    /// No connection may begin any more.
    expired: bool,
    /// Why the client's end, or the server's, gave its connection up.
    aborted: [Option<ResetReason>; 2],
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
            Action::ClientAbort => link.client_abort(stories, ResetReason::Application),
            Action::ClientCertificateEnds => link.client_abort(stories, ResetReason::Expired),
            Action::DiallerRetires => link.dialler_retires(),
            Action::DiallerFlushes => link.to_server.take(&mut link.client.out),
            Action::DiallerReceives => link.dialler_receives(stories, &mut self.repeats),
            Action::Serve => link.serve(stories),
            Action::Refuse => link.refuse(),
            Action::ServerWrite(length) => link.server_write(stories, length),
            Action::ServerFinish => link.server_finish(stories),
            Action::ServerDelivered => link.server_delivered(stories),
            Action::ServerAbort => link.server_abort(ResetReason::Application),
            Action::ServerCertificateEnds => link.server_abort(ResetReason::Expired),
            Action::Expires => link.expires(),
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
            expired: false,
            aborted: [None; 2],
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
