//! `cargo xtask demo`: Mantle on this machine in a minute, every claim checked as it is made.

mod outage;
mod requests;
mod stage;
mod story;

use std::time::Instant;

use crate::build::{self, Profile};
use crate::say;
use crate::setup::{self, For};
use crate::shell::{Context as _, Done};
use crate::world::{self, interrupt};
use stage::Stage;

/// The name of the demo's world.
const NAME: &str = "mantle-demo";

/// What to do with the demo.
#[derive(clap::Args, Default)]
pub(crate) struct Arguments {
    /// Leave everything running at the end, to try things by hand.
    #[arg(long)]
    keep: bool,
    /// End what `--keep` left running.
    #[arg(long, conflicts_with = "keep")]
    stop: bool,
}

/// Shows Mantle.
pub(crate) fn run(arguments: &Arguments) -> Done {
    setup::run(&[For::Build, For::World])?;
    if arguments.stop {
        let there = world::end(NAME)?;
        say::line(if there { "the demo has ended, and nothing of it is left" } else { "no demo is running" });
        return Ok(());
    }
    let mantle = build::mantle(Profile::Dev)?;
    interrupt::watch()?;
    let started = Instant::now();
    let mut stage = Stage::set(mantle)?;
    tell(&mut stage)?;
    let took = started.elapsed();
    if arguments.keep {
        stage.keep()?;
        say::plain(TRY);
        return Ok(());
    }
    stage.end()?;
    say::heading(format!("Every check held, in {}; nothing is left behind.", say::seconds(took)));
    Ok(())
}

/// A part of the story: its heading, and what it does and checks.
type Chapter = (&'static str, fn(&mut Stage) -> Done);

const STORY: [Chapter; 7] = [
    ("1. Without Mantle, anyone on the wire between the nodes can read the request", story::before),
    ("2. Both pods are enrolled while the client goes on asking: no restart, no failed request", story::enrol),
    ("3. Between the pods' addresses, the wire now shows TLS to port 15008 and nothing else", story::wire),
    ("4. Both applications still see their real peer", story::addresses),
    ("5. Each agent has left one record for each connection, with both identities", story::records),
    ("6. Who has no certificate gets nowhere", story::outsiders),
    ("7. An agent is killed, then another is stopped: connections fail closed, and recover", outage::both),
];

fn tell(stage: &mut Stage) -> Done {
    STORY.iter().try_for_each(|(heading, chapter)| {
        say::heading(heading);
        chapter(stage).context(heading)
    })
}

const TRY: &str = "
It is still running. As root, try:

  a request from the client's pod
      nsenter --net=/run/netns/mantle-demo-client curl -si http://10.77.2.10/
  the same from the stranger, who is refused
      nsenter --net=/run/netns/mantle-demo-stranger curl -si http://10.77.2.10/
  the wire between the nodes
      nsenter --net=/run/netns/mantle-demo-b tcpdump -ni wire -A tcp
  what the agents say of each connection
      tail -f /run/mantle-demo/records-node-*.jsonl
  the directory: change it, with a higher revision, and see the agents take it up
      cat /run/mantle-demo/directory.yaml /run/mantle-demo/status-node-*.json

End it with `cargo xtask demo --stop`.";
