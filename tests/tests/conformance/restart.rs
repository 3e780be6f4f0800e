//! An application that starts again on its port, with many connections around.

use std::env;
use std::time::Duration;

use agent_tests::{Notes, Pair, compare, errno, patterns, wait};
use socket2::Socket;

use crate::deviations::DEVIATIONS;
use crate::sockets::{accept, connect, own, read, reset, tcp, welcome};

/// How many; `MANTLE_TEST_CONNECTIONS` for more by hand.
fn count() -> usize {
    env::var("MANTLE_TEST_CONNECTIONS").ok().and_then(|count| count.parse().ok()).unwrap_or(1000)
}

#[test]
fn an_application_restarts_on_its_port_while_its_connections_live_on() {
    compare(&[], patterns![while_its_connections_live_on], DEVIATIONS);
}

#[test]
fn an_application_restarts_on_its_port_when_its_connections_have_ended() {
    compare(
        &[],
        patterns![after_it_has_closed_them, after_the_clients_have_closed_them, after_it_has_reset_them],
        DEVIATIONS,
    );
}

/// A listener without SO_REUSEADDR or with it; its connections have it too.
fn start(pair: &Pair, port: u16, reuse: bool) -> std::io::Result<Socket> {
    let listener = tcp(pair, &pair.web);
    listener.set_reuse_address(reuse)?;
    listener.bind(&pair.any(port).into())?;
    listener.listen(4096)?;
    Ok(listener)
}

/// With many connections, the listener gone, what `then` does with both ends, and a new start, both without SO_REUSEADDR
/// and with it. The port may be `free` a little later: the last acknowledgements are on their way.
fn restart(pair: &Pair, notes: &mut Notes, free: bool, then: impl Fn(&mut Vec<(Option<Socket>, Option<Socket>)>)) {
    for reuse in [false, true] {
        let port = pair.port();
        let listener = start(pair, port, reuse).unwrap();
        let mut ends: Vec<_> = (0..count())
            .map(|_| {
                let client = tcp(pair, &pair.client);
                connect(&client, pair.at(&pair.web, port)).unwrap();
                let (server, accepted) = accept(&listener).unwrap();
                assert_eq!(accepted, own(&client));
                (Some(client), Some(server))
            })
            .collect();
        drop(listener);
        then(&mut ends);
        let again = || start(pair, port, reuse);
        let listener =
            if free { wait::within(Duration::from_secs(5), || again().ok()).ok_or_else(taken) } else { again() };
        notes.note(format!("reuse {reuse}"), listener.as_ref().map(drop).map_err(errno));
        if let Ok(listener) = listener {
            let client = tcp(pair, &pair.client);
            notes.told("connect", connect(&client, pair.at(&pair.web, port)));
            welcome(pair, notes, &client, &listener);
        }
        // None leaves its TIME_WAIT to what comes after.
        ends.into_iter().flat_map(|(client, server)| [client, server]).flatten().for_each(reset);
    }
}

fn taken() -> std::io::Error {
    std::io::Error::from_raw_os_error(nix::libc::EADDRINUSE)
}

fn while_its_connections_live_on(pair: &Pair, notes: &mut Notes) {
    restart(pair, notes, false, |_| {});
}

fn after_it_has_closed_them(pair: &Pair, notes: &mut Notes) {
    restart(pair, notes, false, |ends| {
        for (client, server) in ends {
            drop(server.take());
            assert_eq!(read(client.as_ref().unwrap(), 1).unwrap(), "");
        }
    });
}

fn after_the_clients_have_closed_them(pair: &Pair, notes: &mut Notes) {
    restart(pair, notes, true, |ends| {
        for (client, server) in ends {
            drop(client.take());
            assert_eq!(read(server.as_ref().unwrap(), 1).unwrap(), "");
            drop(server.take());
        }
    });
}

fn after_it_has_reset_them(pair: &Pair, notes: &mut Notes) {
    restart(pair, notes, true, |ends| {
        for (client, server) in ends {
            reset(server.take().unwrap());
            assert!(read(client.as_ref().unwrap(), 1).is_err());
        }
    });
}
