//! Connections that are older than an enrolment, seen from the pods that are enrolled.

use agent_core::directory::Directory;

use super::{Enrolled, Enrolment, Stage};
use crate::legacy::{Look, Subject};

impl Enrolment {
    /// Looks at the pods' older connections. To be called now and then.
    pub fn look(&mut self, directory: &Directory, look: Look) {
        let subjects = self.pods.values().map(|Enrolled { pod, attached, stage, unwritten, .. }| {
            let serves = *stage == Stage::Serving;
            Subject { pod, attached, serves, told: unwritten.is_none() }
        });
        self.watch.look(directory, subjects, look);
    }
}
