//! Sockets that more than one thread, descriptor, process or moment has.

use std::io::IoSlice;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::thread;

use agent_tests::{Cgroup, Mesh, Mode, Notes, Pair, Side, compare, patterns};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::dup;
use socket2::{Domain, Protocol, Socket};

use crate::deviations::DEVIATIONS;
use crate::sockets::{Ends, accept, any6, connect, exchange, listen, mapped, meet, open, own, peer, read, send, tcp};

#[test]
fn every_way_to_share_a_socket() {
    compare(
        patterns![
            two_descriptors,
            a_thread_for_each_direction,
            handed_to_another_process,
            inherited_by_a_child,
            a_listener_inherited_by_a_child,
            opened_in_another_control_group,
            of_a_process_that_is_killed,
        ],
        &[],
        DEVIATIONS,
    );
}

fn two_descriptors(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    let second: Socket = dup(&client).unwrap().into();
    drop(client);
    exchange(notes, &second, &server);
    let third = second.try_clone().unwrap();
    third.shutdown(Shutdown::Write).unwrap();
    notes.told("server reads", read(&server, 1));
    notes.told("sends", second.send_with_flags(b"x", nix::libc::MSG_NOSIGNAL));
    drop(third);
    send(&server, b"still").unwrap();
    notes.told("reads", read(&second, 5));
}

fn a_thread_for_each_direction(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    thread::scope(|scope| {
        for socket in [&client, &server] {
            scope.spawn(move || {
                for _ in 0..500 {
                    send(socket, b"one line of many").unwrap();
                }
                socket.shutdown(Shutdown::Write).unwrap();
            });
        }
        for end in [&client, &server].map(|socket| scope.spawn(move || read(socket, 9000))) {
            notes.told("heard", end.join().unwrap().map(|text| (text.len(), text.replace("one line of many", ""))));
        }
    });
}

/// By SCM_RIGHTS, to a process that knows nothing of the pod.
fn handed_to_another_process(pair: &Pair, notes: &mut Notes) {
    const SCRIPT: &str = "import socket, sys
channel = socket.socket(fileno=0)
_, fds, _, _ = socket.recv_fds(channel, 1, 1)
connection = socket.socket(fileno=fds[0])
print(connection.getpeername()[0], connection.getsockname()[0], connection.recv(8))
connection.sendall(b'an answer')";
    let Ends { client, server, .. } = meet(pair);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut python = Command::new("python3");
    python.args(["-c", SCRIPT]).stdin(OwnedFd::from(theirs)).stdout(Stdio::piped());
    let child = python.spawn().unwrap();
    let rights = [client.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&rights)];
    sendmsg::<()>(ours.as_raw_fd(), &[IoSlice::new(b"!")], &message, MsgFlags::empty(), None).unwrap();
    drop(client);
    notes.told("sends", send(&server, b"question"));
    notes.told("reads", read(&server, 9));
    notes.told("reads the end", read(&server, 1));
    notes.note("it says", said(child.wait_with_output().unwrap().stdout));
}

fn inherited_by_a_child(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    let back = client.try_clone().unwrap();
    let mut cat = Command::new("cat").stdin(OwnedFd::from(client)).stdout(OwnedFd::from(back)).spawn().unwrap();
    notes.told("sends", send(&server, b"question"));
    notes.told("reads", read(&server, 8));
    server.shutdown(Shutdown::Write).unwrap();
    notes.told("reads the end", read(&server, 1));
    notes.note("it ends well", cat.wait().unwrap().success());
}

/// As inetd and systemd start a service with its listener.
fn a_listener_inherited_by_a_child(pair: &Pair, notes: &mut Notes) {
    const SCRIPT: &str = "import socket
connection, peer = socket.socket(fileno=0).accept()
print(peer[0] == connection.getpeername()[0], peer[0], connection.getsockname()[0])
connection.sendall(connection.recv(8))";
    let listener = listen(&pair.web, pair.any(pair.port()));
    let to = pair.at(&pair.web, own(&listener).port());
    listener.set_read_timeout(None).unwrap();
    let mut python = Command::new("python3");
    python.args(["-c", SCRIPT]).stdin(OwnedFd::from(listener)).stdout(Stdio::piped());
    let child = python.spawn().unwrap();
    let client = tcp(pair, &pair.client);
    notes.told("connect", connect(&client, to));
    notes.told("sends", send(&client, b"question"));
    notes.told("reads", read(&client, 9));
    notes.note("it says", said(child.wait_with_output().unwrap().stdout));
}

fn said(stdout: Vec<u8>) -> String {
    String::from_utf8(stdout).unwrap().trim().to_owned()
}

/// As another container of the pod, or an exec into it, does.
fn opened_in_another_control_group(pair: &Pair, notes: &mut Notes) {
    const SCRIPT: &str = "import socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)
print(connection.getpeername()[0], connection.getsockname()[0])
connection.sendall(b'question')
print(connection.recv(100))";
    let group = Cgroup::make(&format!("{}-group", pair.web.namespace.name()));
    let to = pair.at(&pair.web, pair.port());
    let listener = listen(&pair.web, pair.any(to.port()));
    let mut python = group.command(&pair.client.namespace, "python3");
    python.args(["-c", SCRIPT, &to.ip().to_string(), &to.port().to_string()]).stdout(Stdio::piped());
    let child = python.spawn().unwrap();
    let (server, accepted) = accept(&listener).unwrap();
    notes.note("accept", pair.who(accepted));
    notes.told("reads", read(&server, 8));
    notes.told("sends", send(&server, b"an answer"));
    notes.told("reads the end", read(&server, 1));
    notes.note("it says", said(child.wait_with_output().unwrap().stdout));
    group.remove();
}

/// Its kernel ends the connection in order, whatever the process wanted.
fn of_a_process_that_is_killed(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    let mut sleeper = Command::new("sleep").arg("1000").stdin(OwnedFd::from(client)).spawn().unwrap();
    notes.told("sends", send(&server, b""));
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    notes.told("reads", read(&server, 1));
}

/// What was opened before enrolment and connects after it is captured; what was connected before stays as it is.
#[test]
fn a_socket_is_captured_when_it_connects_not_when_it_is_opened() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.world.pod("client", Side::A), mesh.world.pod("web", Side::B));
    let listener = listen(&web, any6(80));
    let places = [web.at(80), web.at6(80), mapped(web.at(80))];
    let opened = places.map(|to| [(); 3].map(|()| open(&client, Domain::for_address(to), Protocol::TCP)));
    let mut old = Vec::new();
    for (port, ([before, _, bound], to)) in (5555..).zip(opened.iter().zip(places)) {
        connect(before, to).unwrap();
        old.push(accept(&listener).unwrap().0);
        let own = if to.ip().to_canonical().is_ipv4() { client.at(port) } else { client.at6(port) };
        bound.bind(&if to.is_ipv6() { mapped(own) } else { own }.into()).unwrap();
    }
    mesh.enrol(&[&client, &web]);
    mesh.dual_stack(&[&client, &web]);
    for ([_, fresh, bound], to) in opened.iter().zip(places) {
        for socket in [fresh, bound] {
            connect(socket, to).unwrap();
            until_its_end(&mesh, socket, &listener);
        }
    }
    // Strict is about new connections.
    mesh.change(|directory| directory.entry(&web).mode = Mode::Strict);
    for ([before, ..], server) in opened.iter().zip(&old) {
        send(before, b"question").unwrap();
        assert_eq!(read(server, 8).unwrap(), "question");
    }
    assert_eq!(mesh.agents[0].records.all().len(), 2 * places.len());
}

/// Uses a connection that is captured, up to its record.
#[track_caller]
fn until_its_end(mesh: &Mesh, socket: &Socket, listener: &Socket) {
    let (server, accepted) = accept(listener).unwrap();
    let own = canonical(own(socket));
    assert_eq!((canonical(accepted), canonical(peer(&server).unwrap())), (own, own));
    send(socket, b"question").unwrap();
    assert_eq!(read(&server, 8).unwrap(), "question");
    drop(server);
    assert_eq!(read(socket, 1).unwrap(), "");
    socket.shutdown(Shutdown::Both).unwrap();
    mesh.agents[0].records.of_client(own);
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
