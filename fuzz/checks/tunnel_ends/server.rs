//! The server's end of a link: its application, and the acceptor.

use super::*;

impl Link {
    pub(super) fn serve(&mut self, stories: &mut [Story]) -> bool {
        let mut frames = Vec::new();
        // Judged at each OPEN: none is served after the end.
        if self.expired {
            return self.refuse();
        }
        if self.server.acceptor.opened(&mut frames).is_err() {
            return false;
        }
        let at = self.server.story.unwrap();
        let story = &mut stories[at];
        assert!(!story.served, "one connection is served twice");
        story.served = true;
        let held = std::mem::take(&mut self.server.held);
        story.request.read(at, true, &held.bytes);
        if held.finished {
            story.request.see_end();
        }
        self.to_client.write(&mut self.server.out, &frames);
        true
    }

    pub(super) fn refuse(&mut self) -> bool {
        let mut frames = Vec::new();
        let reason = if self.expired { RefuseReason::Expired } else { RefuseReason::Denied };
        let refused = self.server.acceptor.refuse(reason, &mut frames);
        if refused.is_err() {
            return false;
        }
        self.server.held = Kept::default();
        self.server.story = None;
        self.to_client.write(&mut self.server.out, &frames);
        true
    }

    pub(super) fn server_write(&mut self, stories: &mut [Story], length: usize) -> bool {
        let may_send = self.server.acceptor.may_send();
        let header = self.server.acceptor.data_header(length);
        assert_eq!(header.is_ok(), may_send);
        let (Ok(header), Some(at)) = (header, self.server.story) else {
            return false;
        };
        let payload = stories[at].response.write(at, false, length);
        let frame = [&header[..], &payload].concat();
        self.to_client.write(&mut self.server.out, &frame);
        true
    }

    pub(super) fn server_finish(&mut self, stories: &mut [Story]) -> bool {
        let mut frames = Vec::new();
        if self.server.acceptor.finish(&mut frames).is_err() {
            return false;
        }
        stories[self.server.story.unwrap()].response.finished = true;
        self.server_over(stories);
        self.to_client.write(&mut self.server.out, &frames);
        true
    }

    pub(super) fn server_delivered(&mut self, stories: &mut [Story]) -> bool {
        let mut frames = Vec::new();
        if self.server.acceptor.delivered(&mut frames).is_err() {
            return false;
        }
        stories[self.server.story.unwrap()].request.delivered = true;
        self.server_over(stories);
        self.to_client.write(&mut self.server.out, &frames);
        true
    }

    pub(super) fn server_abort(&mut self, reason: ResetReason) -> bool {
        if self.server.acceptor.is_closed() {
            return false;
        }
        let mut frames = Vec::new();
        self.server.acceptor.abort(reason, &mut frames);
        if self.server.story.take().is_some() {
            self.aborted[1] = Some(reason);
        }
        self.to_client.write(&mut self.server.out, &frames);
        self.server_closes();
        true
    }

    pub(super) fn acceptor_retires(&mut self) -> bool {
        let mut frames = Vec::new();
        self.server.acceptor.retire(&mut frames);
        self.to_client.write(&mut self.server.out, &frames);
        !frames.is_empty()
    }

    /// What is under way goes on; an OPEN that is on its way is not served.
    pub(super) fn expires(&mut self) -> bool {
        !std::mem::replace(&mut self.expired, true) && self.acceptor_retires()
    }

    pub(super) fn acceptor_receives(&mut self, stories: &mut [Story]) -> bool {
        if self.server.acceptor.is_closed() {
            return false;
        }
        let Some(record) = self.to_server.records.pop_front() else {
            return self.to_server.closed && self.server_transport_ends();
        };
        let mut frames = Frames::new(&record);
        let mut out = Vec::new();
        while let Some(event) = self.server.acceptor.receive(&mut frames, &mut out).unwrap() {
            self.server_event(event, stories);
        }
        assert!(out.is_empty());
        self.server_closes();
        true
    }

    fn server_event(&mut self, event: AcceptorEvent<'_>, stories: &mut [Story]) {
        if let AcceptorEvent::Open(opened) = event {
            let at = usize::from(opened.id.0[0]) | usize::from(opened.id.0[1]) << 8;
            assert_eq!(opened, open(at));
            assert_eq!(self.server.story.replace(at), None);
            assert!(self.server.held.bytes.is_empty() && !self.server.held.finished);
            return;
        }
        let at = self.server.story.unwrap();
        let opening = self.server.acceptor.is_opening();
        let held = &mut self.server.held;
        match event {
            AcceptorEvent::Data(bytes) if opening => {
                held.bytes.extend(bytes);
                assert!(held.bytes.len() <= MAX_PAYLOAD);
            }
            AcceptorEvent::Data(bytes) => stories[at].request.read(at, true, bytes),
            AcceptorEvent::Fin if opening => held.finished = true,
            AcceptorEvent::Fin => stories[at].request.see_end(),
            AcceptorEvent::Reset(reason) => {
                assert_eq!(self.aborted[0], Some(reason));
                self.server.story = None;
            }
            AcceptorEvent::Open(_) => {}
        }
    }

    fn server_transport_ends(&mut self) -> bool {
        let end = self.server.acceptor.transport_ended();
        let story = self.server.story.take();
        assert_eq!(end == End::Reset, story.is_some());
        self.server_closes();
        true
    }

    fn server_over(&mut self, stories: &[Story]) {
        if self.server.acceptor.is_idle() {
            let story = &stories[self.server.story.take().unwrap()];
            assert!(story.request.delivered && story.response.finished);
        }
    }

    fn server_closes(&mut self) {
        if self.server.acceptor.is_closed() {
            self.to_client.take(&mut self.server.out);
            self.to_client.closed = true;
        }
    }
}
