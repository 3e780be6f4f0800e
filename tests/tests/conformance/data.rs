//! Ways to send and receive.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use agent_tests::traffic::Pattern;
use agent_tests::{Notes, Pair, compare, errno, patterns, wait};
use nix::fcntl::{SpliceFFlags, splice};
use nix::libc;
use nix::poll::PollFlags;
use nix::sys::socket::MsgFlags;
use socket2::Socket;

use crate::deviations::DEVIATIONS;
use crate::raw;
use crate::sockets::{Ends, RDHUP, drain, exchange, meet, poll_for, read, recv_flags, send, undisturbed};

#[test]
fn every_way_to_send_and_receive() {
    compare(
        patterns![
            the_server_speaks_first,
            the_client_speaks_first,
            large_transfers_both_ways_at_once,
            a_reader_that_does_not_read,
            single_bytes,
            nothing_at_all,
            from_and_to_many_buffers,
            corked,
            peeking,
            waiting_for_all,
            throwing_away,
            not_waiting,
            waiting_for_a_time,
            a_low_water_mark,
            sendfile,
            splicing,
            zero_copy,
            queue_lengths,
        ],
        &[],
        DEVIATIONS,
    );
}

#[test]
fn urgent_data_stays_in_the_stream() {
    compare(patterns![urgent_in_line, urgent_out_of_line,], &[], DEVIATIONS);
}

fn the_server_speaks_first(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    notes.told("greets", send(&server, b"220 ready\r\n"));
    notes.told("greeted", read(&client, 11));
    exchange(notes, &client, &server);
}

fn the_client_speaks_first(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    for _ in 0..100 {
        exchange(notes, &client, &server);
    }
}

fn large_transfers_both_ways_at_once(pair: &Pair, notes: &mut Notes) {
    const LENGTH: usize = 8 << 20;
    let Ends { client, server, .. } = meet(pair);
    let ends = [(&client, [1, 2]), (&server, [2, 1])];
    let received: Vec<io::Result<usize>> = thread::scope(|scope| {
        let receivers = ends.map(|(socket, [out, back])| {
            let mut sending = socket;
            scope.spawn(move || {
                Pattern::new(out).send(&mut sending, LENGTH).unwrap();
                sending.shutdown(Shutdown::Write).unwrap();
            });
            let mut receiving = socket;
            scope.spawn(move || {
                Pattern::new(back).expect(&mut receiving, LENGTH)?;
                receiving.read(&mut [0])
            })
        });
        receivers.into_iter().map(|receiver| receiver.join().unwrap()).collect()
    });
    for end in received {
        notes.told("all, then the end", end);
    }
}

/// The sender is held up, and goes on when the receiver does.
fn a_reader_that_does_not_read(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    client.set_nonblocking(true).unwrap();
    let (block, mut sent) = (vec![7; 64 << 10], 0);
    // What the buffers between hold may grow for a while; nothing is read, so it has an end.
    let held_up = loop {
        match (&client).write(&block) {
            Ok(taken) => sent += taken,
            Err(error) if !poll_writable_soon(&client) => break errno(&error),
            Err(_) => {}
        }
    };
    notes.note("held up", held_up);
    client.shutdown(Shutdown::Write).unwrap();
    notes.told("all is there", drain(&server).map(|bytes| bytes.len() == sent));
}

/// Whether it takes more within a second.
fn poll_writable_soon(socket: &Socket) -> bool {
    use std::os::fd::AsFd as _;
    let mut polled = [nix::poll::PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    undisturbed(|| Ok(nix::poll::poll(&mut polled, 1000_u16)?)).unwrap() > 0
}

fn single_bytes(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    client.set_tcp_nodelay(true).unwrap();
    for byte in 0..1000_u32 {
        send(&client, &[b'a' + u8::try_from(byte % 26).unwrap()]).unwrap();
    }
    client.shutdown(Shutdown::Write).unwrap();
    notes.told("heard", read(&server, 1001));
}

fn nothing_at_all(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    notes.told("writes nothing", send(&client, b""));
    notes.told("and something", send(&client, b"x"));
    notes.told("reads nothing", recv_flags(&server, 0, MsgFlags::empty()));
    notes.told("reads", read(&server, 1));
    notes.told("nothing more", recv_flags(&server, 1, MsgFlags::MSG_DONTWAIT));
}

fn from_and_to_many_buffers(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    notes.told("writev", client.send_vectored(&[IoSlice::new(b"one "), IoSlice::new(b""), IoSlice::new(b"two")]));
    notes.note("has come", poll_for(&server, PollFlags::POLLIN));
    let (mut first, mut second) = ([0; 3], [0; 9]);
    notes.told("peeked", recv_flags(&server, 7, MsgFlags::MSG_PEEK | MsgFlags::MSG_WAITALL));
    let got = (&server).read_vectored(&mut [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second)]);
    notes.told("readv", got);
    notes.note("parts", (first, second));
}

fn corked(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    client.set_tcp_cork(true).unwrap();
    notes.told("first", send(&client, b"head "));
    notes.told("second", client.send_with_flags(b"more ", libc::MSG_MORE));
    client.set_tcp_cork(false).unwrap();
    notes.told("third", send(&client, b"end"));
    notes.told("heard", read(&server, 13));
}

fn peeking(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    send(&client, b"seen").unwrap();
    for _ in 0..2 {
        notes.told("peek", recv_flags(&server, 4, MsgFlags::MSG_PEEK | MsgFlags::MSG_WAITALL));
    }
    notes.told("read", read(&server, 4));
    client.shutdown(Shutdown::Write).unwrap();
    notes.told("peek at the end", recv_flags(&server, 4, MsgFlags::MSG_PEEK));
}

fn waiting_for_all(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    thread::scope(|scope| {
        let reader = scope.spawn(|| recv_flags(&server, 12, MsgFlags::MSG_WAITALL));
        for part in [b"one.", b"two.", b"end."] {
            send(&client, part).unwrap();
        }
        notes.told("all", reader.join().unwrap());
    });
    send(&client, b"less").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    notes.told("less at the end", recv_flags(&server, 12, MsgFlags::MSG_WAITALL));
}

fn throwing_away(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    send(&client, b"unwantedwanted").unwrap();
    let flags = MsgFlags::MSG_TRUNC | MsgFlags::MSG_WAITALL;
    notes.told("thrown away", recv_flags(&server, 8, flags).map(|text| text.len()));
    notes.told("kept", read(&server, 6));
}

fn not_waiting(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    notes.told("nothing yet", recv_flags(&client, 1, MsgFlags::MSG_DONTWAIT));
    send(&server, b"x").unwrap();
    notes.note("has come", poll_for(&client, PollFlags::POLLIN));
    notes.told("something", recv_flags(&client, 1, MsgFlags::MSG_DONTWAIT));
}

fn waiting_for_a_time(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    client.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    notes.told("nothing came", read(&client, 1));
    exchange_after_that(notes, &client, &server);
}

fn exchange_after_that(notes: &mut Notes, client: &Socket, server: &Socket) {
    client.set_read_timeout(Some(crate::sockets::PATIENCE)).unwrap();
    exchange(notes, client, server);
}

fn a_low_water_mark(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    raw::set_option(&server, libc::SOL_SOCKET, libc::SO_RCVLOWAT, 6).unwrap();
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            poll_for(&server, PollFlags::POLLIN);
            recv_flags(&server, 6, MsgFlags::MSG_DONTWAIT)
        });
        send(&client, b"one").unwrap();
        send(&client, b"two").unwrap();
        notes.told("both at once", reader.join().unwrap());
    });
}

fn sendfile(pair: &Pair, notes: &mut Notes) {
    const LENGTH: usize = 1 << 20;
    let Ends { client, mut server, .. } = meet(pair);
    let path = pair.folder.join("sendfile");
    Pattern::new(5).send(&mut fs::File::create(&path).unwrap(), LENGTH).unwrap();
    let received = thread::scope(|scope| {
        let reader = scope.spawn(|| Pattern::new(5).expect(&mut server, LENGTH));
        let (file, mut sent) = (fs::File::open(&path).unwrap(), 0);
        while sent < LENGTH {
            sent += client.sendfile(&file, sent, std::num::NonZeroUsize::new(LENGTH - sent)).unwrap();
        }
        reader.join().unwrap()
    });
    notes.told("received", received);
}

fn splicing(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    let (from, mut into) = io::pipe().unwrap();
    into.write_all(b"through two pipes").unwrap();
    let flags = SpliceFFlags::empty();
    notes.told("out", splice(&from, None, &client, None, 100, flags).map_err(io::Error::from));
    let (mut from, into) = io::pipe().unwrap();
    notes.told("in", splice(&server, None, &into, None, 100, flags).map_err(io::Error::from));
    drop(into);
    let mut text = String::new();
    from.read_to_string(&mut text).unwrap();
    notes.note("text", text);
}

fn zero_copy(pair: &Pair, notes: &mut Notes) {
    const LENGTH: usize = 100_000;
    let Ends { client, server, .. } = meet(pair);
    notes.told("option", raw::set_option(&client, libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1));
    let block = vec![7; LENGTH];
    let mut sent = 0;
    thread::scope(|scope| {
        let reader = scope.spawn(|| read(&server, LENGTH));
        while sent < LENGTH {
            sent += client.send_with_flags(&block[sent..], libc::MSG_ZEROCOPY).unwrap();
        }
        notes.told("received", reader.join().unwrap().map(|text| text.len()));
    });
    // The kernel tells on the error queue when the buffer may be used again.
    notes.note("completed", poll_for(&client, PollFlags::POLLERR));
}

fn queue_lengths(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    send(&client, b"seven b").unwrap();
    notes.note("has come", poll_for(&server, PollFlags::POLLIN));
    notes.told("unread", raw::told_by_ioctl(&server, libc::FIONREAD));
    read(&server, 3).unwrap();
    notes.told("unread", raw::told_by_ioctl(&server, libc::FIONREAD));
    let unsent = wait::until("all is acknowledged", || {
        Some(raw::told_by_ioctl(&client, libc::TIOCOUTQ)).filter(|left| left.as_ref().is_ok_and(|left| *left == 0))
    });
    notes.told("unsent", unsent);
}

fn urgent_in_line(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    server.set_out_of_band_inline(true).unwrap();
    urgent(notes, &client, &server);
}

fn urgent_out_of_line(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    urgent(notes, &client, &server);
}

fn urgent(notes: &mut Notes, client: &Socket, server: &Socket) {
    send(client, b"before").unwrap();
    notes.told("urgent", client.send_out_of_band(b"!"));
    send(client, b"after").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    // Everything has come, the end as well.
    notes.note("end", poll_for(server, RDHUP));
    let mut byte = [std::mem::MaybeUninit::uninit()];
    notes.told("out of line", server.recv_with_flags(&mut byte, libc::MSG_OOB | libc::MSG_PEEK));
    notes.told("in line", drain(server).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()));
}
