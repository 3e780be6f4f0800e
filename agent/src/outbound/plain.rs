//! To an endpoint of a service that is not reached over a tunnel: in the clear, or within the pod.

use agent_core::directory::Directory;
use agent_core::policy::PlainPermit;

use super::{Attempt, Flow, Limit};
use crate::failure::Failure;
use crate::relay::{self, Application, Early};
use crate::report::Record;

impl Flow<'_> {
    /// Carries the connection to the endpoint, under the permit.
    pub(super) async fn in_the_clear(
        &mut self,
        permit: &PlainPermit,
        limit: Limit,
        early: Early,
        record: &mut Record,
    ) -> Attempt {
        let route = permit.route();
        let dialled = if route.stays_in_pod() {
            // The application sees the client that connected, as it does when a tunnel brings it.
            let dial = self.pod.dial_application(route.destination().socket_addr(), self.client, limit.each).await;
            dial.map(|dial| dial.into_parts()).map(|(socket, announcement)| (socket, Some(announcement)))
        } else {
            let dial = self.pod.dial_plain(permit, &self.outbound.next_port, limit.each).await;
            dial.map(|socket| (socket, None))
        };
        let (socket, announcement) = match dialled {
            Ok(dialled) => dialled,
            Err(error) => return Attempt::unreached(Failure::of_application_dial(&error), early),
        };
        let mut endpoint = match Application::new(socket) {
            Ok(endpoint) => endpoint,
            Err(error) => return Attempt::unreached(Failure::endpoint(error), early),
        };
        if !permit.may_begin(&self.outbound.plane.directory()) {
            return Attempt::unreached(Failure::enrolled_meanwhile(), early);
        }
        let stop = self.outbound.plane.stop(self.pod.uid(), None, |directory: &Directory| permit.holds(directory));
        let outcome = relay::run_plain(&mut self.application, &mut endpoint, permit, early, stop).await;
        (record.sent, record.received) = (outcome.from_application, outcome.to_application);
        // The announcement must outlive the socket.
        drop(endpoint);
        drop(announcement);
        Attempt::of(outcome)
    }
}
