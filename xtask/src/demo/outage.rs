//! The last chapter: what happens without an agent.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::stage::{STRANGER, Stage, WEB, now};
use super::story::{holds, only_tls};
use crate::mesh::Mode;
use crate::say;
use crate::shell::Done;
use crate::world::wait;

/// How many requests must fail before the agent returns, and then succeed in a row.
const REQUESTS: usize = 10;

/// The server's agent is killed, then the client's is stopped in order.
pub(super) fn both(stage: &mut Stage) -> Done {
    one(stage, 1, Signal::SIGKILL)?;
    one(stage, 0, Signal::SIGTERM)
}

fn one(stage: &mut Stage, at: usize, signal: Signal) -> Done {
    let node = stage.mesh.agents[at].node;
    let capture = stage.capture(&format!("wire-7-{node}"))?;
    stage.mesh.end_agent(at, signal)?;
    let gone = now();
    let without = stage.asked_since(gone, REQUESTS)?;
    let worked: Vec<_> = without.iter().filter(|request| request.worked()).collect();
    holds(worked.is_empty(), || format!("without {node}'s agent no request works: {worked:?}"))?;
    let stranger = stage.ask("stranger", &stage.stranger)?;
    holds(!stranger.worked(), || "a stranger is refused without an agent too".to_owned())?;
    let how = without.iter().find_map(|request| request.ended.as_ref().err()).map_or("", String::as_str);
    say::check(format!("{node}'s agent is gone ({signal}): {} requests, all fail closed: {how}", without.len()));

    let restarted = Instant::now();
    stage.mesh.start_agent(&stage.world, at)?;
    let pods = stage.pods(Mode::Strict, true);
    let revision = stage.mesh.revision();
    stage.mesh.until_serving(&pods, revision)?;
    recovered(stage)?;
    let wire = capture.end()?;
    only_tls(&wire, stage)?;
    let sent: usize = wire.between(STRANGER, *WEB.ip()).map(|stream| stream.bytes.len()).sum();
    holds(sent == 0, || format!("the stranger gets no byte through, not {sent}"))?;
    say::check(format!("no byte of plaintext passed; it returns without a new token, and serves after {}", {
        say::seconds(restarted.elapsed())
    }));
    Ok(())
}

/// Waits until the last requests have all worked.
fn recovered(stage: &mut Stage) -> Done {
    wait("requests work again", Duration::from_secs(15), || {
        stage.check()?;
        let asked = stage.asked()?;
        let last = &asked[asked.len().saturating_sub(REQUESTS)..];
        Ok(last.iter().all(super::requests::Request::worked).then_some(()))
    })
}
