//! `cargo xtask test`: which tests were asked for.

use crate::setup::For;
use crate::shell::Done;
use crate::tally::Count;
use crate::{ci, setup, test, vm};

/// What to test.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only this tier's tests; without it every check that CI makes.
    #[command(subcommand)]
    tier: Option<Tier>,
}

/// A kind of tests, by what they need.
#[derive(clap::Subcommand)]
enum Tier {
    /// Unit and property tests, no privileges.
    Unit(Filter),
    /// The real kernel programs between network namespaces: root.
    Kernel(Filter),
    /// The core of the kernel tests under Debian's packaged kernels, in virtual machines: root, and some minutes.
    Vm(vm::Arguments),
}

/// Which tests.
#[derive(clap::Args)]
struct Filter {
    /// Only tests whose name holds this text.
    name: Option<String>,
}

/// Runs the tests that were asked for.
pub(crate) fn run(arguments: &Arguments) -> Done {
    let mut count = Count::default();
    let outcome = match &arguments.tier {
        None => return ci::run(),
        Some(Tier::Vm(arguments)) => return vm::run(arguments),
        Some(Tier::Unit(filter)) => {
            setup::run(&[For::Build])?;
            test::unit(filter.name.as_deref(), &mut count)
        }
        Some(Tier::Kernel(filter)) => {
            setup::run(&[For::Build, For::World, For::Programs])?;
            test::kernel(filter.name.as_deref(), &mut count)
        }
    };
    count.say();
    outcome
}
