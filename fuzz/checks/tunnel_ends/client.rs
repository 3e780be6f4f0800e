//! The client's end of a link: its application, and the dialler.

use super::*;

impl Link {
    pub(super) fn open(&mut self, story: usize, kept: &Kept) -> bool {
        let client = &mut self.client;
        assert_eq!(client.story, None);
        let mut frames = Vec::new();
        let number = client.dialler.open(&open(story), &mut frames).unwrap();
        assert!(client.max_uses == 0 || number <= client.max_uses);
        client.story = Some(story);
        if !kept.bytes.is_empty() {
            frames.extend(client.dialler.data_header(kept.bytes.len()).unwrap());
            frames.extend(&kept.bytes);
        }
        if kept.finished {
            client.dialler.finish(&mut frames).unwrap();
        }
        client.kept.bytes.clone_from(&kept.bytes);
        client.kept.finished = kept.finished;
        self.to_server.write(&mut self.client.out, &frames);
        true
    }

    pub(super) fn client_write(&mut self, stories: &mut [Story], length: usize) -> bool {
        let client = &mut self.client;
        let may_send = client.dialler.may_send();
        let header = client.dialler.data_header(length);
        assert_eq!(header.is_ok(), may_send);
        let (Ok(header), Some(story)) = (header, client.story) else {
            return false;
        };
        let payload = stories[story].request.write(story, true, length);
        if client.dialler.keeps_early() {
            client.kept.bytes.clone_from(&payload);
        }
        let frame = [&header[..], &payload].concat();
        self.to_server.write(&mut self.client.out, &frame);
        true
    }

    pub(super) fn client_finish(&mut self, stories: &mut [Story]) -> bool {
        let client = &mut self.client;
        let mut frames = Vec::new();
        if client.dialler.finish(&mut frames).is_err() {
            return false;
        }
        client.kept.finished = true;
        stories[client.story.unwrap()].request.finished = true;
        self.to_server.write(&mut self.client.out, &frames);
        true
    }

    pub(super) fn client_delivered(&mut self, stories: &mut [Story]) -> bool {
        let Some(story) = self.client.story else {
            return false;
        };
        if self.client.dialler.delivered().is_err() {
            return false;
        }
        stories[story].response.delivered = true;
        self.client_over(stories);
        true
    }

    pub(super) fn client_abort(&mut self, stories: &mut [Story], reason: ResetReason) -> bool {
        if self.client.dialler.is_closed() {
            return false;
        }
        let mut frames = Vec::new();
        self.client.dialler.abort(reason, &mut frames);
        if let Some(story) = self.client.story.take() {
            self.aborted[0] = Some(reason);
            stories[story].fate = Fate::Reset;
        }
        self.to_server.write(&mut self.client.out, &frames);
        self.client_closes();
        true
    }

    pub(super) fn dialler_retires(&mut self) -> bool {
        self.client.dialler.retire();
        self.client_closes();
        true
    }

    pub(super) fn dialler_receives(&mut self, stories: &mut [Story], repeats: &mut Vec<(usize, Kept)>) -> bool {
        if self.client.dialler.is_closed() {
            return false;
        }
        let Some(record) = self.to_client.records.pop_front() else {
            return self.to_client.closed && self.client_transport_ends(stories);
        };
        let mut frames = Frames::new(&record);
        let mut out = Vec::new();
        while let Some(event) = self.client.dialler.receive(&mut frames, &mut out).unwrap() {
            self.client_event(event, stories, repeats);
        }
        assert!(out.is_empty());
        self.client_closes();
        true
    }

    fn client_event(&mut self, event: DiallerEvent<'_>, stories: &mut [Story], repeats: &mut Vec<(usize, Kept)>) {
        if event == DiallerEvent::Retired {
            return;
        }
        let at = self.client.story.unwrap();
        let story = &mut stories[at];
        match event {
            DiallerEvent::Opened => self.client.kept = Kept::default(),
            DiallerEvent::Data(bytes) => story.response.read(at, false, bytes),
            DiallerEvent::Fin => story.response.see_end(),
            DiallerEvent::Done => {
                assert!(story.request.delivered && story.response.is_complete());
                self.client_over(stories);
            }
            DiallerEvent::Refused(reason) => {
                assert!(reason == RefuseReason::Denied || self.expired && reason == RefuseReason::Expired);
                assert!(!story.served && story.request.got == 0);
                story.fate = Fate::Refused;
                self.client.story = None;
            }
            DiallerEvent::Reset(reason) => {
                assert_eq!(self.aborted[1], Some(reason));
                story.fate = Fate::Reset;
                self.client.story = None;
            }
            DiallerEvent::Repeat => {
                assert!(!story.served && self.client.dialler.keeps_early());
                repeats.push((at, std::mem::take(&mut self.client.kept)));
                self.client.story = None;
            }
            DiallerEvent::Retired => {}
        }
    }

    fn client_transport_ends(&mut self, stories: &mut [Story]) -> bool {
        let end = self.client.dialler.transport_ended();
        let story = self.client.story.take().map(|at| &mut stories[at]);
        match (end, story) {
            (End::Clean, None) => {}
            // The last bytes, all here, are still on their way to the application.
            (End::Clean, Some(story)) => {
                story.response.delivered = true;
                story.finish();
            }
            (End::Reset, Some(story)) => story.fate = Fate::Reset,
            (end, story) => panic!("{end:?} of {story:?}"),
        }
        self.client_closes();
        true
    }

    /// Takes note if the client's connection is over in order.
    fn client_over(&mut self, stories: &mut [Story]) {
        let dialler = &self.client.dialler;
        if dialler.is_idle() || dialler.is_closed() {
            stories[self.client.story.take().unwrap()].finish();
        }
        self.client_closes();
    }

    fn client_closes(&mut self) {
        if self.client.dialler.is_closed() {
            self.to_server.take(&mut self.client.out);
            self.to_server.closed = true;
        }
    }
}
