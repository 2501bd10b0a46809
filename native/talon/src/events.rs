//! What happened, for whoever asks later: a bounded ring with sequence numbers. It lives in this process, so it survives
//! the daemon; a reader that was away too long learns that it missed something, never silently.

use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// Events kept.
const EVENTS_MAX: usize = 256;

/// The ring.
#[derive(Debug, Default)]
pub struct Events {
    ring: VecDeque<(u64, Value)>,
    last: u64,
}

impl Events {
    /// Notes an event, as Cloud Hypervisor's event monitor does, with a sequence number.
    pub fn note(&mut self, source: &str, event: &str, properties: Value) {
        self.last += 1;
        if self.ring.len() == EVENTS_MAX {
            self.ring.pop_front();
        }
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let value = json!({
            "seq": self.last,
            "timestamp": { "secs": since.as_secs(), "nanos": since.subsec_nanos() },
            "source": source,
            "event": event,
            "properties": properties,
        });
        self.ring.push_back((self.last, value));
    }

    /// Sequence number of the newest event, 0 before the first.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The events after `after`. `gap` says that some were dropped before they were asked for.
    #[must_use]
    pub fn after(&self, after: u64) -> Value {
        let oldest = self.ring.front().map_or(self.last + 1, |(seq, _)| *seq);
        let found: Vec<&Value> = self
            .ring
            .iter()
            .filter(|(seq, _)| *seq > after)
            .map(|(_, value)| value)
            .collect();
        json!({ "events": found, "last": self.last, "gap": after + 1 < oldest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_was_away_too_long_is_told_of_the_gap() {
        let mut events = Events::default();
        for _ in 0..EVENTS_MAX + 5 {
            events.note("vm", "paused", Value::Null);
        }

        let found = events.after(2);

        assert_eq!(found["gap"], true);
        assert_eq!(found["events"].as_array().unwrap().len(), EVENTS_MAX);
        assert_eq!(events.after(5)["gap"], false);
        assert_eq!(
            events.after(events.last())["events"]
                .as_array()
                .unwrap()
                .len(),
            0
        );
    }
}
