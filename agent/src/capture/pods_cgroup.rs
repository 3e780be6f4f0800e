//! The cgroup below which pods' tasks are. The kernel programs know it by its id, and one that is made anew has another: they
//! would take every pod's task for none.

use tracing::warn;

use super::program::{self, UnknownRule};
use super::{Capture, StartError, strangers};

impl Capture {
    /// Tells the programs the pods' cgroup again if it is another one now, or gone; then nobody is taken for a pod, nor for a
    /// probe. To be called now and then.
    ///
    /// # Errors
    /// [`StartError`]; the programs know what they were told before.
    pub fn follow_pods_cgroup(&mut self) -> Result<(), StartError> {
        let Some(path) = &self.pods_cgroup else { return Ok(()) };
        let cgroup = strangers::id(path).unwrap_or(0);
        if cgroup == self.held.rule.cgroup {
            return Ok(());
        }
        let rule = UnknownRule { cgroup, ..self.held.rule };
        let mut object = program::load(&self.pins, &rule)?;
        self.held.seats = program::attach_to_cgroup(&mut object, &self.pins, &self.held.cgroup)?;
        self.held.rule = rule;
        match cgroup {
            0 => warn!(path = %path.display(), "the pods' cgroup is gone"),
            id => warn!(path = %path.display(), id, "the pods' cgroup was made anew"),
        }
        Ok(())
    }
}
