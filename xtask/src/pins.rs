//! What the agents of a world leave in the kernel.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::say;
use crate::shell::{self, Context as _, Done};

/// The file in a world's folder that says which `mantle` runs there.
pub(crate) const BINARY: &str = "mantle-binary";

/// Takes away what the agents of the world in `folder` have pinned in the kernel.
pub(crate) fn remove(folder: &Path) -> Done {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(());
    };
    let mantle = fs::read_to_string(folder.join(BINARY)).unwrap_or_default();
    for entry in entries {
        let path = entry.context(folder.display())?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(node) = name.strip_prefix("agent-").and_then(|name| name.strip_suffix(".yaml")) else {
            continue;
        };
        let cleaned = shell::output(Command::new(mantle.trim()).args(["agent", "cleanup", "--config"]).arg(&path));
        // An agent that never came so far has nothing to clean; one whose program is gone leaves only its pins.
        let pins = Path::new("/sys/fs/bpf/mantle").join(instance(folder, node));
        if pins.exists() {
            say::line(format!("`mantle agent cleanup` left {}: removed", pins.display()));
            fs::remove_dir_all(&pins).context(pins.display())?;
            cleaned?;
        }
    }
    Ok(())
}

/// The instance of `node`'s agent in the world in `folder`: two worlds' agents are apart.
pub(crate) fn instance(folder: &Path, node: &str) -> String {
    let world = folder.file_name().unwrap_or_default().to_string_lossy();
    format!("{}-{}", world.trim_start_matches("mantle-"), node.trim_start_matches("node-"))
}
