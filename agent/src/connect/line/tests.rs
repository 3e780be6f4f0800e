#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use agent_core::tunnel::{Acceptor, AcceptorEvent};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::super::local::Local as _;
use super::*;
use crate::secure::tests::{pair, sockets};

/// The pod's agent's end.
struct Far {
    channel: Channel,
    machine: Acceptor,
    out: Vec<u8>,
    said: Vec<u8>,
    events: Vec<String>,
}

impl Far {
    fn new(channel: Channel) -> Self {
        Self { channel, machine: Acceptor::new(), out: Vec::new(), said: Vec::new(), events: Vec::new() }
    }

    /// Takes one record. What is said is kept beside the other events.
    async fn step(&mut self) {
        let record = loop {
            if let Received::Record(record) = self.channel.receive().unwrap() {
                break record.to_vec();
            }
            self.channel.ready(Interest::READABLE).await.unwrap();
        };
        let mut frames = Frames::new(&record);
        while let Some(event) = self.machine.receive(&mut frames, &mut self.out).unwrap() {
            match event {
                AcceptorEvent::Open(_) => self.events.push("Open".into()),
                AcceptorEvent::Data(bytes) => self.said.extend_from_slice(bytes),
                AcceptorEvent::Fin => self.events.push("Fin".into()),
                AcceptorEvent::Reset(reason) => self.events.push(format!("Reset({reason:?})")),
            }
        }
    }

    /// Takes records until this has come; fails when nothing comes any more.
    async fn until(&mut self, event: &str) {
        while !self.events.iter().any(|seen| seen == event) {
            timeout(ANSWER, self.step()).await.unwrap();
        }
    }

    fn send(&mut self) {
        self.channel.seal(&[&self.out]).unwrap();
        self.out.clear();
        assert!(self.channel.flush().unwrap());
    }

    async fn accept(&mut self) {
        self.until("Open").await;
        self.machine.opened(&mut self.out).unwrap();
        self.send();
    }
}

async fn carried(line: Line<ReadHalf<'_>, WriteHalf<'_>>) -> Result<(), ConnectError> {
    let address = "10.0.0.2:80".parse().unwrap();
    line.carry(Opened { destination: address, client: address }).await.map(drop)
}

fn reset(socket: TcpStream) {
    super::super::local::linger(&socket).unwrap();
}

#[tokio::test]
async fn what_came_with_a_reset_in_one_record_is_delivered() {
    let (near, far) = pair().await;
    let (mut application, mut ours) = sockets().await;
    let mut far = Far::new(far);
    let peer = async {
        far.until("Open").await;
        far.machine.opened(&mut far.out).unwrap();
        let header = far.machine.data_header(14).unwrap();
        far.out.extend(header);
        far.out.extend(b"the last words");
        far.machine.abort(ResetReason::Application, &mut far.out);
        far.send();
        far
    };
    let (ended, _far) = tokio::join!(carried(Line::new(near, ours.halves(), Kept::default())), peer);
    assert!(matches!(ended, Err(ConnectError::Reset(ResetReason::Application))), "{ended:?}");
    let mut heard = [0; 14];
    timeout(ANSWER, application.read_exact(&mut heard)).await.unwrap().unwrap();
    assert_eq!(&heard, b"the last words");
}

#[tokio::test]
async fn a_reset_is_passed_on_also_by_who_has_said_everything() {
    let (near, far) = pair().await;
    let (mut application, mut ours) = sockets().await;
    let mut far = Far::new(far);
    let peer = async {
        application.write_all(b"question").await.unwrap();
        application.shutdown().await.unwrap();
        far.accept().await;
        far.until("Fin").await;
        reset(application);
        far.until("Reset(Application)").await;
        drop(far.channel);
        far.said
    };
    let (ended, said) = tokio::join!(carried(Line::new(near, ours.halves(), Kept::default())), peer);
    assert!(matches!(ended, Err(ConnectError::Local(_))), "{ended:?}");
    assert_eq!(said, b"question");
}

#[tokio::test]
async fn what_was_said_before_a_reset_is_said_and_no_end_of_stream() {
    let (near, far) = pair().await;
    let (mut application, mut ours) = sockets().await;
    near.shrink_send_buffer();
    let (mut far, mut line) = (Far::new(far), Line::new(near, ours.halves(), Kept::default()));
    let address = "10.0.0.2:80".parse().unwrap();
    line.begin(&Opened { destination: address, client: address }).unwrap();
    far.accept().await;
    while !line.opened {
        line.channel.ready(Interest::READABLE).await.unwrap();
        line.receive().unwrap();
    }
    // The far end reads nothing, so nothing more is read here.
    let mut before = 0;
    while line.channel.backlog() < BACKLOG {
        line.seal_data(&[7; 8192]).unwrap();
        line.send().unwrap();
        before += 8192;
    }
    application.write_all(b"the last words").await.unwrap();
    reset(application);
    let ended = timeout(ANSWER, line.drive()).await.unwrap();
    assert!(matches!(ended, Err(ConnectError::Local(_))), "{ended:?}");
    let hears = async {
        far.until("Reset(Application)").await;
        drop(far.channel);
        (far.events, far.said)
    };
    let ((), (events, said)) = tokio::join!(line.abort(ResetReason::Application), hears);
    assert_eq!(events, ["Open", "Reset(Application)"]);
    assert_eq!(&said[before..], b"the last words");
}
