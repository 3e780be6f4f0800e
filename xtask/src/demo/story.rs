//! The chapters of the demo while every agent runs.

use std::collections::BTreeMap;
use std::time::Duration;

use super::stage::{CLIENT, GHOST, STRANGER, Stage, WEB, now};
use crate::mesh::{Mode, Pod, Record};
use crate::say;
use crate::shell::{Done, Failure};
use crate::world::wait;
use crate::world::wire::Wire;

/// The port on which agents take tunnels.
const TUNNELS: u16 = 15008;

/// Chapter 1: plaintext, and that the capture sees it.
pub(super) fn before(stage: &mut Stage) -> Done {
    let capture = stage.capture("wire-1")?;
    let request = stage.ask("before", &stage.client)?;
    let wire = capture.end()?;
    holds(request.worked(), || format!("the server answers the client: {request:?}"))?;
    say::check("the client's request works");
    let readable = wire.between(CLIENT, *WEB.ip()).find(|stream| stream.holds(&stage.secret));
    let readable = readable.ok_or_else(|| Failure::new("the secret did not pass the wire, so the capture is blind"))?;
    say::check(format!("tcpdump read from {} to {}: X-Secret: {}", readable.from, readable.to, stage.secret));
    Ok(())
}

/// Chapter 2: from nothing to strict, under load.
pub(super) fn enrol(stage: &mut Stage) -> Done {
    stage.start_asking()?;
    stage.asked_since(Duration::ZERO, 10)?;
    say::line("the client asks 25 times a second, with a connection for each request");
    stage.mesh.start_ca(&stage.world)?;
    stage.mesh.start_agent(&stage.world, 0)?;
    stage.mesh.start_agent(&stage.world, 1)?;
    stage.mesh.until("both agents read the directory", |status| status.revision() >= 1)?;
    say::check("the CA and both agents run, under a directory that lists no pod");
    stage.capture = Some(stage.capture("wire-2")?);

    publish(stage, Mode::Permissive, false)?;
    say::check("listed: each agent has its pod's certificate and listeners, and reports `serving`");
    let revision = publish(stage, Mode::Permissive, true)?;
    stage.published = now();
    say::check(format!("published: both agents have revision {revision}: from here on, no connection is plaintext"));
    let stranger = stage.ask("stranger", &stage.stranger)?;
    holds(stranger.worked(), || format!("a permissive pod takes plaintext: {stranger:?}"))?;
    say::check("a stranger outside the mesh is still served: the pods are permissive");
    let revision = publish(stage, Mode::Strict, true)?;
    say::check(format!("strict: both agents have revision {revision}: no plaintext enters"));

    stage.asked_since(now(), 25)?;
    let asked = stage.asked()?;
    let failed: Vec<_> = asked.iter().filter(|request| !request.worked()).collect();
    holds(failed.is_empty(), || format!("no request fails: {failed:?}"))?;
    say::check(format!("{} requests so far, none failed, and nothing was restarted", asked.len()));
    Ok(())
}

/// Chapter 3: what passed between the nodes from the publication on.
pub(super) fn wire(stage: &mut Stage) -> Done {
    let capture = stage.capture.take().ok_or_else(|| Failure::new("no capture is running"))?;
    let wire = capture.end()?;
    only_tls(&wire, stage)?;
    let tunnels = wire.between(CLIENT, *WEB.ip()).filter(|stream| stream.to.port() == TUNNELS);
    let (count, bytes) = tunnels.fold((0, 0), |(count, bytes), stream| (count + 1, bytes + stream.bytes.len()));
    holds(count > 0 && bytes > 0, || "tunnels pass the wire".to_owned())?;
    say::check(format!("{count} tunnels to port {TUNNELS}, {bytes} bytes of TLS records from first to last"));
    say::check("no byte to port 80, and the secret is not on the wire");
    Ok(())
}

/// Chapter 4: the addresses that both applications see.
pub(super) fn addresses(stage: &mut Stage) -> Done {
    let served = stage.served()?;
    let served: BTreeMap<_, _> = served.iter().map(|(name, from, to)| (name.as_str(), (*from, *to))).collect();
    let mut compared = 0;
    for request in stage.asked()?.iter().filter(|request| request.at > stage.published) {
        let Ok(ends) = &request.ended else { continue };
        let (from, to) = served
            .get(request.name.as_str())
            .copied()
            .ok_or_else(|| Failure::new(format!("the server's log lacks request {}", request.name)))?;
        holds(from == ends.local, || format!("the server sees {from}, the client's own address is {}", ends.local))?;
        holds(ends.peer == WEB.into(), || format!("the client sees {} in place of {WEB}", ends.peer))?;
        holds(to.ip() == *WEB.ip(), || format!("the server's own address is {to}"))?;
        compared += 1;
    }
    holds(compared > 0, || "requests were compared".to_owned())?;
    say::check(format!("{compared} requests: nginx logged the client's true address and port each time"));
    say::check(format!("and the client's sockets had {WEB} as their peer"));
    Ok(())
}

/// Chapter 5: the records of both agents, joined by their ids.
pub(super) fn records(stage: &mut Stage) -> Done {
    let pods = stage.pods(Mode::Strict, true);
    let [client, web, ..] = pods.as_slice() else {
        return Err(Failure::new("the demo has two pods"));
    };
    let published = stage.published;
    let asked = stage.asked()?;
    let locals: Vec<String> = asked
        .iter()
        .filter(|request| request.at > published)
        .filter_map(|request| Some(request.ended.as_ref().ok()?.local.to_string()))
        .collect();
    // A record is written when its connection is quite over, which is after the client has its answer.
    let joined = wait("each connection has its two records", Duration::from_secs(5), || {
        let (out, into) = (of(&stage.mesh.records(0)?, "outbound"), of(&stage.mesh.records(1)?, "inbound"));
        Ok(join(&locals, &out, &into))
    })?;
    for (out, into) in &joined {
        check_record(out, client, web)?;
        check_record(into, client, web)?;
    }
    let Some((out, _)) = joined.last() else {
        return Err(Failure::new("no connection was recorded"));
    };
    say::check(format!(
        "{} connections, each with one record at either agent, joined by its id; the last:",
        joined.len()
    ));
    show(out);
    Ok(())
}

/// Chapter 6: the pod without a certificate, and the stranger.
pub(super) fn outsiders(stage: &mut Stage) -> Done {
    let capture = stage.capture("wire-6")?;
    let ghost = stage.ask("ghost", &stage.ghost)?;
    let stranger = stage.ask("stranger", &stage.stranger)?;
    let wire = capture.end()?;
    holds(!ghost.worked(), || "a pod without a certificate is not served".to_owned())?;
    holds(wire.between(GHOST, *WEB.ip()).next().is_none(), || "none of its packets leaves the node".to_owned())?;
    say::check(format!("the enrolled pod that the CA does not know connects nowhere: {}", reason(&ghost.ended)));
    holds(!stranger.worked(), || "a stranger is not served".to_owned())?;
    let sent: usize = wire.between(STRANGER, *WEB.ip()).map(|stream| stream.bytes.len()).sum();
    holds(sent == 0, || format!("the stranger gets no byte through, not {sent}"))?;
    say::check(format!("the stranger's plaintext is refused by the kernel: {}", reason(&stranger.ended)));
    Ok(())
}

/// Fails unless everything that began between the pods since the publication is TLS to the agents' port.
pub(super) fn only_tls(wire: &Wire, stage: &Stage) -> Done {
    for stream in wire.between(CLIENT, *WEB.ip()) {
        let ends = format!("{} to {}", stream.from, stream.to);
        if stream.began < stage.published {
            continue;
        }
        let tunnel = stream.from.port() == TUNNELS || stream.to.port() == TUNNELS;
        holds(tunnel || stream.bytes.is_empty(), || format!("no plaintext passes, but {ends} did"))?;
        holds(!tunnel || !stream.whole || stream.is_tls(), || format!("all is TLS, but not {ends}"))?;
        holds(!stream.holds(&stage.secret), || format!("the secret is not on the wire, but {ends} has it"))?;
    }
    Ok(())
}

/// Fails unless `truth`; the claim is told with the failure.
pub(super) fn holds(truth: bool, claim: impl FnOnce() -> String) -> Done {
    if truth { Ok(()) } else { Err(Failure::new(format!("does not hold: {}", claim()))) }
}

/// Publishes the pods, and waits until both agents have taken up the revision and serve the two that can.
fn publish(stage: &mut Stage, mode: Mode, serving: bool) -> Done<u64> {
    let pods = stage.pods(mode, serving);
    let revision = stage.mesh.publish(&pods)?;
    stage.mesh.until_serving(&pods, revision)?;
    Ok(revision)
}

fn show(record: &Record) {
    say::line(format!("  id          {}", record.text("/id")));
    for end in ["source", "destination"] {
        let text = |part: &str| record.text(&format!("/{end}/{part}")).to_owned();
        say::line(format!("  {end:<11} {} as {} ({})", text("pod"), text("identity"), text("address")));
    }
    let tls = |part: &str| record.text(&format!("/tls/{part}")).to_owned();
    say::line(format!("  tls         {} {} {}", tls("version"), tls("group"), tls("cipher")));
    let numbers = (record.number("/sent"), record.number("/received"), record.number("/duration_us"));
    say::line(format!("  bytes       {} sent, {} received, in {} µs", numbers.0, numbers.1, numbers.2));
}

fn of(records: &[Record], direction: &str) -> Vec<Record> {
    records.iter().filter(|record| record.text("/direction") == direction).cloned().collect()
}

/// For each of these client addresses its only outbound record and the only inbound one with the same id; none while
/// any is missing.
fn join(locals: &[String], out: &[Record], into: &[Record]) -> Option<Vec<(Record, Record)>> {
    let only = |records: &[Record], pointer: &str, text: &str| {
        let mut found = records.iter().filter(|record| record.text(pointer) == text);
        Some(found.next()?.clone()).filter(|_| found.next().is_none())
    };
    let pair = |local: &String| {
        let out = only(out, "/source/address", local)?;
        let into = only(into, "/id", out.text("/id"))?;
        Some((out, into))
    };
    locals.iter().map(pair).collect()
}

fn check_record(record: &Record, client: &Pod, web: &Pod) -> Done {
    for (end, pod) in [("source", client), ("destination", web)] {
        for (part, expected) in
            [("identity", pod.identity()), ("pod", format!("shop/{}", pod.name)), ("uid", pod.uid.clone())]
        {
            let found = record.text(&format!("/{end}/{part}"));
            holds(found == expected, || format!("the {end}'s {part} is {expected}, not `{found}`: {record:?}"))?;
        }
    }
    holds(record.text("/destination/address") == WEB.to_string(), || format!("the destination is {WEB}: {record:?}"))?;
    holds(record.text("/tls/version") == "1.3", || format!("TLS is 1.3: {record:?}"))?;
    holds(record.text("/close") == "finished", || format!("the connection finished in order: {record:?}"))
}

fn reason<T>(ended: &Result<T, String>) -> &str {
    ended.as_ref().err().map_or("", String::as_str)
}
