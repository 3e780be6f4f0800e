//! `cargo xtask test vm`: the core kernel tests under Debian's packaged kernels, each in a virtual machine of its own.

mod debian;
mod guest;
mod initramfs;
mod kernel;
mod outcome;

use std::time::Instant;

use crate::say::{self, Step};
use crate::setup::For;
use crate::shell::{Done, Failure};
use crate::vm::debian::{Packages, Release};
use crate::vm::guest::{Guest, Tests};
use crate::vm::kernel::Kernel;
use crate::vm::outcome::Outcome;
use crate::{build, setup, test};

/// The oldest kernel that the README claims; one before it must be refused when the agent starts.
const OLDEST: [u64; 2] = [6, 1];

/// Which kernels are tried if none is named.
const KERNELS: [&str; 4] = ["5.10", "6.1", "6.12", "newest"];

/// What loads every program, with no more capabilities than are documented. Where it fails the others are not tried.
const LOAD: &str = "start::the_capabilities_that_are_listed_are_enough";

/// What a kernel must let Mantle do. Each of these is in the core for a promise of the README's.
const CORE: [&str; 13] = [
    "capture::every_way_to_connect_is_captured",
    "fails_closed::an_agent_that_is_killed_or_stopped_fails_closed_and_recovers",
    "half_close::each_side_may_end_first_and_still_be_answered",
    "ipv6::both_applications_see_what_they_saw_without_mantle",
    "ipv6::every_way_to_connect_is_captured",
    "non_mesh::a_destination_outside_the_mesh_never_meets_the_agent",
    "peer_addresses::both_applications_see_what_they_saw_without_mantle",
    "refused_before::a_closed_port_resets_once_and_is_then_refused_in_connect_until_it_may_be_open",
    "reset::the_clients_reset_reaches_the_server",
    "restart::pods_that_left_came_or_were_replaced_meanwhile_are_told_apart",
    "strict::a_strangers_plaintext_is_refused_on_every_address_and_inside_the_pod_all_is_as_ever",
    "strict::an_enrolled_pod_is_served_where_a_stranger_is_not",
    "wire::the_secret_is_on_the_wire_without_mantle_and_not_with_it",
];

/// What to try under which kernels.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Kernels by their series, as in 6.1, or `newest` [default: 5.10 6.1 6.12 newest].
    kernels: Vec<String>,
    /// Tests whose names hold this text, instead of the core ones.
    #[arg(long)]
    tests: Option<String>,
    /// Which tests those are: `netns`, `conformance` or `programs`.
    #[arg(long, default_value = "netns", requires = "tests")]
    of: String,
    /// The memory of each machine, as qemu takes it.
    #[arg(long, default_value = "2G")]
    memory: String,
    /// Run the optimised `mantle`.
    #[arg(long)]
    release: bool,
}

/// Boots each kernel and runs the tests in it; fails if one does not do what the README says of it.
pub(crate) fn run(arguments: &Arguments) -> Done {
    setup::run(&[For::Build, For::World, For::Machines])?;
    let packages = Packages::list()?;
    let named = arguments.kernels.iter().map(String::as_str);
    let wanted: Vec<&str> = if arguments.kernels.is_empty() { KERNELS.into() } else { named.collect() };
    let releases: Vec<Release> = wanted.iter().map(|name| packages.release(name)).collect::<Done<_>>()?;
    let profile = if arguments.release { build::Profile::Release } else { build::Profile::Dev };
    let (mantle, executable) = (build::mantle(profile)?, test::executable(&arguments.of)?);
    let tests = match &arguments.tests {
        Some(text) => Tests::holding(text, mantle, executable),
        None => Tests::exactly(LOAD, &CORE, mantle, executable),
    };
    let acceleration = guest::acceleration();
    say::line(format!("the machines run on {acceleration}"));
    let mut rows = Vec::new();
    let mut wrong = Vec::new();
    for release in &releases {
        let step = Step::begin(format!("tests under Linux {release}"));
        let started = Instant::now();
        let kernel = Kernel::unpacked(&packages, release)?;
        let outcome = Guest::prepare(&kernel, &tests, &arguments.memory)?.run(acceleration)?;
        if let Err(failure) = outcome.check(release.is_at_least(OLDEST)) {
            say::failure(&failure.before(format!("Linux {release}")));
            wrong.push(release.to_string());
        } else {
            step.done();
        }
        rows.push(row(release, &outcome, &say::seconds(started.elapsed())));
    }
    say::plain(format!("\n{}", rows.join("\n")));
    if wrong.is_empty() { Ok(()) } else { Err(Failure::new(format!("not as the README says: {}", wrong.join(", ")))) }
}

fn row(release: &Release, outcome: &Outcome, took: &str) -> String {
    format!("{:<24} {:>12}  {outcome}", release.to_string(), took)
}
