//! Much of everything: large transfers both ways, and a thousand connections at once.

use std::net::Shutdown;
use std::thread;

use agent_tests::traffic::{self, Pattern, Server};
use agent_tests::{Mesh, Side};

const LARGE: usize = 32 << 20;

#[test]
fn large_transfers_arrive_whole_both_ways_at_once() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _server = Server::start(&web, "0.0.0.0:80".parse().unwrap(), |stream, _| {
        let mut back = stream.try_clone().unwrap();
        let sender = thread::spawn(move || {
            Pattern::new(2).send(&mut back, LARGE).unwrap();
            back.shutdown(Shutdown::Write).unwrap();
        });
        let mut stream = stream;
        Pattern::new(1).expect(&mut stream, LARGE).unwrap();
        assert_eq!(std::io::Read::read(&mut stream, &mut [0]).unwrap(), 0);
        sender.join().unwrap();
    });
    let stream = traffic::connect(&client, web.at(80)).unwrap();
    let own = stream.local_addr().unwrap();
    let mut out = stream.try_clone().unwrap();
    let sender = thread::spawn(move || {
        Pattern::new(1).send(&mut out, LARGE).unwrap();
        out.shutdown(Shutdown::Write).unwrap();
    });
    let mut stream = stream;
    Pattern::new(2).expect(&mut stream, LARGE).unwrap();
    assert_eq!(std::io::Read::read(&mut stream, &mut [0]).unwrap(), 0);
    sender.join().unwrap();
    drop(stream);
    for agent in &mesh.agents {
        let record = agent.records.of_client(own);
        let bytes = LARGE as u64;
        assert_eq!((record.number("/sent"), record.number("/received"), record.close()), (bytes, bytes, "finished"));
    }
}

#[test]
fn a_receiver_that_starts_late_loses_nothing_at_close() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let length = 4 << 20;
    // It has closed before the client reads at all; most of its bytes are still on their way.
    let (tell, told) = std::sync::mpsc::channel();
    let _server = Server::start(&web, "0.0.0.0:80".parse().unwrap(), move |mut stream, _| {
        tell.send(()).unwrap();
        Pattern::new(3).send(&mut stream, length).unwrap();
    });
    for _ in 0..5 {
        let mut stream = traffic::connect(&client, web.at(80)).unwrap();
        told.recv().unwrap();
        // It has what the buffers between hold, and waits; only now somebody reads.
        Pattern::new(3).expect(&mut stream, length).unwrap();
        assert_eq!(std::io::Read::read(&mut stream, &mut [0]).unwrap(), 0);
    }
}

#[test]
fn a_thousand_connections_at_once_keep_their_bytes_apart() {
    const COUNT: u64 = 1000;
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let mut streams: Vec<_> = (0..COUNT).map(|_| traffic::connect(&client, web.at(80)).unwrap()).collect();
    for (seed, stream) in (0..).zip(&mut streams) {
        Pattern::new(seed).send(stream, 4096).unwrap();
    }
    for (seed, stream) in (0..).zip(&mut streams) {
        Pattern::new(seed).expect(stream, 4096).unwrap();
    }
    drop(streams);
    for agent in &mesh.agents {
        let finished = agent.records.wait(COUNT as usize, |record| record.close() == "finished");
        assert_eq!(finished.len(), COUNT as usize);
        let mut ids: Vec<&str> = finished.iter().map(|record| record.id()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), COUNT as usize);
    }
}
