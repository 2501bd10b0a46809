//! From a request to the machine's verb and back. Names, methods and states are Cloud Hypervisor's.

use std::time::Duration;

use serde_json::{Value, json};

use super::http::Response;
use super::server::Incoming;
use crate::config::Fields;
use crate::layout;
use crate::virtio::Command;
use crate::vmm::{EVENT_WAIT_MAX, VerbError, Vmm};

/// What becomes of a request.
#[derive(Debug)]
pub enum Outcome {
    /// An answer now.
    Answer(Response),
    /// An answer when something happens.
    Wait {
        /// The newest event that the client knows.
        after: u64,
        /// How long it waits.
        time: Duration,
    },
    /// The machine's disks are at work: to be asked again when they are not.
    Later(Incoming),
}

const PREFIX: &str = "/api/v1/";

/// Verbs and their methods.
const VERBS: [(&str, &str); 18] = [
    ("vmm.ping", "GET"),
    ("vmm.shutdown", "PUT"),
    ("vm.create", "PUT"),
    ("vm.boot", "PUT"),
    ("vm.info", "GET"),
    ("vm.counters", "GET"),
    ("vm.events", "GET"),
    ("vm.pause", "PUT"),
    ("vm.resume", "PUT"),
    ("vm.shutdown", "PUT"),
    ("vm.delete", "PUT"),
    ("vm.reboot", "PUT"),
    ("vm.power-button", "PUT"),
    ("vm.resize", "PUT"),
    ("vm.snapshot", "PUT"),
    ("vm.restore", "PUT"),
    ("vm.fork", "PUT"),
    ("vm.link", "PUT"),
];

fn refusal(error: &VerbError) -> Response {
    let chain = crate::chain_of(error);
    let path = match error {
        VerbError::Config(config) => Some(config.path.as_str()),
        _ => None,
    };
    Response::fault(
        error.status(),
        error.code(),
        &error.to_string(),
        &chain[1..],
        path,
    )
}

/// Does what a request asks.
pub fn route(vmm: &mut Vmm, incoming: Incoming) -> Outcome {
    let verb = incoming
        .request
        .path
        .strip_prefix(PREFIX)
        .unwrap_or_default();
    let Some((verb, method)) = VERBS.iter().find(|(name, _)| *name == verb) else {
        return Outcome::Answer(Response::fault(
            404,
            "verb_unknown",
            "there is no such verb",
            &[],
            None,
        ));
    };
    if incoming.request.method != *method {
        let message = format!("{verb} takes {method}");
        return Outcome::Answer(Response::fault(405, "method_wrong", &message, &[], None));
    }
    if must_wait(vmm, verb) {
        return Outcome::Later(incoming);
    }
    let done = if *verb == "vm.events" {
        return events(vmm, &incoming.request.query);
    } else {
        perform(vmm, verb, incoming)
    };
    Outcome::Answer(match done {
        Ok(None) => Response::done(),
        Ok(Some(value)) => Response::json(&value),
        Err(error) => refusal(&error),
    })
}

/// Whether a verb needs the machine's disks to stand still, and they do not yet. A request to a slow disk may take minutes:
/// the guest stops at once, the answer waits, and everything else goes on.
fn must_wait(vmm: &mut Vmm, verb: &str) -> bool {
    match verb {
        "vm.snapshot" | "vm.fork" => vmm.paused && !vmm.is_quiet(),
        "vm.shutdown" | "vm.delete" | "vm.reboot" => !vmm.quiesce(),
        _ => false,
    }
}

fn body(bytes: &[u8]) -> Result<Value, VerbError> {
    if bytes.is_empty() {
        return Ok(json!({}));
    }
    serde_json::from_slice(bytes).map_err(VerbError::Json)
}

fn perform(vmm: &mut Vmm, verb: &str, incoming: Incoming) -> Result<Option<Value>, VerbError> {
    let value = body(&incoming.request.body)?;
    match verb {
        "vmm.ping" => Ok(Some(ping())),
        "vmm.shutdown" => {
            vmm.end();
            Ok(None)
        }
        "vm.create" => vmm.create(value).map(|()| None),
        "vm.boot" => vmm.boot().map(|()| None),
        "vm.info" => info(vmm).map(Some),
        "vm.counters" => counters(vmm).map(Some),
        "vm.pause" => vmm.pause().map(|()| None),
        "vm.resume" => vmm.resume().map(|()| None),
        "vm.shutdown" => {
            if vmm.machine.is_none() {
                return Err(VerbError::State("not running"));
            }
            vmm.stop_machine();
            vmm.events.note("vm", "shutdown", Value::Null);
            Ok(None)
        }
        "vm.delete" => {
            vmm.stop_machine();
            vmm.created = None;
            vmm.events.note("vm", "deleted", Value::Null);
            Ok(None)
        }
        "vm.reboot" => vmm.reboot().map(|()| None),
        "vm.power-button" => vmm.press_power_button().map(|()| None),
        "vm.resize" => resize(vmm, &value).map(|()| None),
        "vm.snapshot" => vmm.snapshot(&value, incoming.fds).map(Some),
        "vm.fork" => vmm.fork(&value, incoming.fds).map(Some),
        "vm.restore" => vmm.restore(&value, incoming.fds).map(|()| None),
        _ => vmm.link(&value).map(|()| None),
    }
}

fn ping() -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "build_version": concat!("talon/", env!("CARGO_PKG_VERSION")),
        "pid": std::process::id(),
        "features": ["talon", "events", "fork", "link"],
    })
}

fn pci_address(slot: u8) -> String {
    let bus = layout::bus_of(slot);
    format!("0000:{bus:02x}:{:02x}.0", slot % layout::BUS_SLOTS)
}

fn info(vmm: &Vmm) -> Result<Value, VerbError> {
    let created = vmm.created.as_ref().ok_or(VerbError::NotCreated)?;
    let devices: serde_json::Map<String, Value> = vmm
        .machine
        .iter()
        .flat_map(|machine| machine.devices())
        .map(|device| {
            let state = json!({
                "id": device.id(),
                "pci_bdf": pci_address(device.slot()),
                "broken": device.is_broken(),
            });
            (device.id().to_owned(), state)
        })
        .collect();
    Ok(json!({
        "config": created.value,
        "state": vmm.state(),
        "memory_actual_size": created.config.ram,
        "device_tree": devices,
    }))
}

fn counters(vmm: &Vmm) -> Result<Value, VerbError> {
    let machine = vmm
        .machine
        .as_ref()
        .ok_or(VerbError::State("not running"))?;
    let mut all = serde_json::Map::new();
    for device in machine.devices() {
        let counters: serde_json::Map<String, Value> = device
            .counters()
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.into()))
            .collect();
        all.insert(device.id().to_owned(), Value::Object(counters));
        if device.id() == "balloon" {
            device.command(&Command::RefreshStatistics);
            device.ring();
        }
    }
    if let Some(terminal) = machine.bus().terminal() {
        all.insert(
            "serial".to_owned(),
            json!({ "lost_bytes": terminal.lost() }),
        );
    }
    Ok(Value::Object(all))
}

fn resize(vmm: &mut Vmm, value: &Value) -> Result<(), VerbError> {
    let created = vmm.created.as_ref().ok_or(VerbError::NotCreated)?;
    let ram = created.config.ram;
    let mut fields = Fields::new("", value)?;
    fields.unsupported("desired_vcpus")?;
    fields.unsupported("desired_ram")?;
    let wanted = fields.number("desired_balloon", 0, ram)?;
    fields.finish()?;
    let machine = vmm
        .machine
        .as_ref()
        .ok_or(VerbError::State("not running"))?;
    if let Some(bytes) = wanted {
        let balloon = machine.devices().find(|device| device.id() == "balloon");
        balloon
            .ok_or(VerbError::NoDevice("balloon"))?
            .command(&Command::Balloon(bytes));
        vmm.events
            .note("vm", "resized", json!({ "desired_balloon": bytes }));
    }
    Ok(())
}

/// `GET vm.events?after=SEQ&timeout_ms=N`: at once when there is one, else when there is or the time is over.
fn events(vmm: &Vmm, query: &str) -> Outcome {
    let (mut after, mut wait) = (0, 0);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let number = pair
            .split_once('=')
            .and_then(|(key, value)| Some((key, value.parse::<u64>().ok()?)));
        match number {
            Some(("after", value)) => after = value,
            Some(("timeout_ms", value)) => wait = value,
            _ => {
                let message = format!("{pair:.64} is not a parameter of vm.events");
                return Outcome::Answer(Response::fault(400, "query_invalid", &message, &[], None));
            }
        }
    }
    let time = Duration::from_millis(wait).min(EVENT_WAIT_MAX);
    if after < vmm.events.last() || time.is_zero() {
        Outcome::Answer(Response::json(&vmm.events.after(after)))
    } else {
        Outcome::Wait { after, time }
    }
}
