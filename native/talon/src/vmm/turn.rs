//! The loop: whatever is ready gets its turn.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use serde_json::{Value, json};

use super::{Ending, Fatal, Vmm};
use crate::api::server::{Incoming, Server};
use crate::machine::bus::Request;
use crate::machine::vcpu::Stop;
use crate::reactor::Token;
use crate::virtio::{Next, VirtioPciDevice};

impl Vmm {
    /// The loop. Returns when the guest powered off or somebody asked for the end.
    ///
    /// # Errors
    /// When the guest or the host makes it impossible to go on.
    pub fn run(&mut self) -> Result<(), Fatal> {
        let mut ready = Vec::new();
        while !self.ended {
            // What must not wait for a disk on this thread was put off until there is nothing to wait for.
            self.settle()?;
            if self.ended {
                break;
            }
            let deadline = self
                .later
                .iter()
                .map(|(_, at)| *at)
                .chain(self.server.as_ref().and_then(Server::deadline))
                .min();
            self.reactor
                .wait(deadline, &mut ready)
                .map_err(Fatal::Loop)?;
            for (token, events) in ready.drain(..) {
                match token {
                    Token::Listener => {
                        if let Some(server) = &mut self.server {
                            server.accept(&self.reactor);
                        }
                    }
                    Token::Connection(number) => {
                        let incoming = self
                            .server
                            .as_mut()
                            .and_then(|server| server.ready(number, events, &self.reactor));
                        self.serve_requests(incoming);
                    }
                    Token::Kick(slot) => self.serve_device(slot),
                    Token::Source(slot) => {
                        if let Some(device) = self.device(slot) {
                            device.source_ready();
                        }
                        self.serve_device(slot);
                    }
                    Token::Stops => self.hear_stops()?,
                    Token::Serial => {
                        if let Some(machine) = &self.machine {
                            machine.bus().serve_serial();
                        }
                    }
                }
            }
            self.serve_later();
            self.answer_waiting();
        }
        self.stop_machine();
        if let Some(server) = &mut self.server {
            server.finish();
        }
        Ok(())
    }

    /// Does what waited for a paused machine to be quiet, if it is.
    fn settle(&mut self) -> Result<(), Fatal> {
        if !self.is_quiet() && self.paused {
            return Ok(());
        }
        for incoming in std::mem::take(&mut self.deferred) {
            let open = self
                .server
                .as_ref()
                .is_some_and(|server| server.is_open(incoming.connection));
            // Whoever has gone does not expect it to be done any more.
            if open {
                self.serve_requests(Some(incoming));
            }
        }
        match self.ending.filter(|_| self.is_quiet()) {
            None => {}
            Some(Ending::Hold) => self.stop_machine(),
            Some(Ending::Leave) => self.ended = true,
            Some(Ending::Reboot) => self.reboot().map_err(Fatal::Start)?,
        }
        Ok(())
    }

    fn device(&self, slot: u8) -> Option<Arc<VirtioPciDevice>> {
        self.machine
            .as_ref()?
            .on_loop()
            .iter()
            .find(|device| device.slot() == slot)
            .cloned()
    }

    fn serve_device(&mut self, slot: u8) {
        let Some(device) = self.device(slot) else {
            return;
        };
        self.later.retain(|(waiting, _)| *waiting != slot);
        match device.serve() {
            Ok(Next::Wait) => {}
            Ok(Next::Again) => self.later.push((slot, Instant::now())),
            Ok(Next::At(at)) => self.later.push((slot, at)),
            Err(error) => {
                let chain = crate::chain_of(&error);
                self.events.note(
                    "virtio-device",
                    "broken",
                    json!({ "id": device.id(), "chain": chain }),
                );
            }
        }
    }

    fn serve_later(&mut self) {
        let now = Instant::now();
        let due: Vec<u8> = self
            .later
            .iter()
            .filter(|(_, at)| *at <= now)
            .map(|(slot, _)| *slot)
            .collect();
        for slot in due {
            self.serve_device(slot);
        }
    }

    fn hear_stops(&mut self) -> Result<(), Fatal> {
        let _ = self.stops.bell.read();
        loop {
            let heard = self
                .stops
                .queue
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop_front();
            let Some((cpu, stop)) = heard else {
                return Ok(());
            };
            if self.is_ending() && !matches!(stop, Stop::Failed(_)) {
                // Another processor's word on the same end.
                continue;
            }
            match stop {
                Stop::Panicked => self.events.note("vm", "panic", Value::Null),
                Stop::Request(Request::PowerOff) => {
                    self.events.note("vm", "shutdown", Value::Null);
                    self.stop_guest(if self.hold {
                        Ending::Hold
                    } else {
                        Ending::Leave
                    });
                }
                Stop::Request(Request::Reset) | Stop::TripleFault => {
                    let panicked = self
                        .machine
                        .as_ref()
                        .is_some_and(|machine| machine.bus().panicked.load(Ordering::Relaxed));
                    if panicked && !self.hold {
                        return Err(Fatal::GuestPanicked);
                    }
                    self.events.note(
                        "vm",
                        "reset",
                        json!({ "triple_fault": stop == Stop::TripleFault }),
                    );
                    self.stop_guest(if self.hold {
                        Ending::Hold
                    } else {
                        Ending::Reboot
                    });
                }
                Stop::Failed(reason) => return Err(Fatal::Processor { cpu, reason }),
            }
        }
    }

    fn serve_requests(&mut self, mut incoming: Option<Incoming>) {
        while let Some(request) = incoming {
            let connection = request.connection;
            let outcome = crate::api::routes::route(self, request);
            let Some(server) = &mut self.server else {
                return;
            };
            incoming = match outcome {
                crate::api::routes::Outcome::Answer(response) => {
                    server.answer(connection, &response, &self.reactor)
                }
                crate::api::routes::Outcome::Later(incoming) => {
                    self.deferred.push(incoming);
                    None
                }
                crate::api::routes::Outcome::Wait { after, time } => {
                    server.wait(connection, after, Instant::now() + time);
                    None
                }
            };
        }
    }

    fn answer_waiting(&mut self) {
        let Some(server) = &self.server else { return };
        for (connection, after) in server.due(self.events.last(), Instant::now()) {
            let response = crate::api::http::Response::json(&self.events.after(after));
            let next = self
                .server
                .as_mut()
                .and_then(|server| server.answer(connection, &response, &self.reactor));
            self.serve_requests(next);
        }
    }
}
