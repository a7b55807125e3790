//! Puts every message on the simulated network into the history's digest, byte for byte: turmoil traces them.

use super::history::History;
use parking_lot::Mutex;
use std::fmt::Write;
use std::sync::Arc;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

pub struct Wire {
    history: Arc<Mutex<History>>,
}

impl Wire {
    pub fn new(history: Arc<Mutex<History>>) -> Self {
        Self { history }
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = write!(self.0, " {field}={value:?}");
    }
}

impl Subscriber for Wire {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "turmoil" && *metadata.level() == Level::TRACE && metadata.is_event()
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        // turmoil counts its steps; a line without addresses says nothing that time does not.
        if let Some(mut history) = self.history.try_lock() {
            history.wire(&line.0);
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}
