//! The process: one loop that serves the control socket, the devices of the main thread, and what processors have to say.
//!
//! ```text
//!           vm.create          vm.boot, vm.restore        vm.pause
//! (nothing) ─────────▶ Created ───────────────────▶ Running ◀──────▶ Paused
//!           ◀─────────         ◀─────────────────── vm.shutdown   vm.resume
//!           vm.delete
//! ```

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvm_ioctls::Kvm;
use serde_json::{Value, json};
use vmm_sys_util::eventfd::EventFd;

use crate::api::server::{Incoming, Server};
use crate::config::{ConfigError, VmConfig};
use crate::events::Events;
use crate::layout;
use crate::machine::bus::Request;
use crate::machine::cpu_state::CpuStateError;
use crate::machine::save::SaveError;
use crate::machine::vcpu::{Stop, StopSink};
use crate::machine::{Machine, MachineError, Prepare, RamSource};
use crate::reactor::{EDGE, READ, Reactor, Token};
use crate::resources::{Opener, Resources};
use crate::snapshot::SnapshotError;
use crate::virtio::{Function, Next};

/// Why the process ends otherwise than asked.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The loop cannot go on.
    #[error("the host refuses the main loop")]
    Loop(#[source] io::Error),
    /// A processor cannot go on.
    #[error("processor {cpu} stopped: {reason}")]
    Processor {
        /// Which.
        cpu: u8,
        /// Why.
        reason: String,
    },
    /// The guest told of its panic and then reset.
    #[error("the guest panicked")]
    GuestPanicked,
    /// The machine of the launch could not be made.
    #[error("cannot start the machine")]
    Start(#[source] VerbError),
}

impl Fatal {
    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Loop(_) => "loop_failed",
            Self::Processor { .. } => "processor_failed",
            Self::GuestPanicked => "guest_panicked",
            Self::Start(error) => error.code(),
        }
    }
}

/// Why a verb was not done.
#[derive(Debug, thiserror::Error)]
pub enum VerbError {
    /// The body is no JSON.
    #[error("the body is not JSON")]
    Json(#[source] serde_json::Error),
    /// A field is wrong.
    #[error("the configuration is refused")]
    Config(#[from] ConfigError),
    /// There is no machine yet.
    #[error("no machine has been created")]
    NotCreated,
    /// There is one already.
    #[error("a machine has been created already")]
    AlreadyCreated,
    /// Not in this state.
    #[error("the machine is {0}")]
    State(&'static str),
    /// It could not be built.
    #[error("the machine could not be built")]
    Machine(#[from] MachineError),
    /// A snapshot was refused or could not be written.
    #[error("the snapshot failed")]
    Snapshot(#[from] SnapshotError),
    /// A machine could not be saved or filled.
    #[error("the machine's state could not be moved")]
    Save(#[from] SaveError),
    /// A device that the verb needs is not there.
    #[error("the machine has no {0}")]
    NoDevice(&'static str),
}

impl VerbError {
    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Json(_) => "body_not_json",
            Self::Config(ConfigError {
                unsupported: true, ..
            }) => "not_supported",
            Self::Config(_) => "config_invalid",
            Self::NotCreated => "vm_not_created",
            Self::AlreadyCreated => "vm_already_created",
            Self::State(_) => "vm_state",
            Self::Machine(_) => "machine_failed",
            Self::NoDevice(_) => "device_missing",
            Self::Snapshot(SnapshotError::File { .. }) => "snapshot_file",
            Self::Snapshot(_) | Self::Save(SaveError::State(_) | SaveError::Shape(_)) => {
                "snapshot_invalid"
            }
            Self::Save(SaveError::Cpu { source, .. }) => match source {
                CpuStateError::Missing(_) => "snapshot_host_lacks",
                CpuStateError::State(_) => "snapshot_invalid",
                CpuStateError::Kvm { .. } => "machine_failed",
            },
            Self::Save(SaveError::Kvm(_)) => "machine_failed",
        }
    }

    /// Its status.
    #[must_use]
    pub const fn status(&self) -> u16 {
        match self {
            Self::Json(_) | Self::Config(_) => 400,
            Self::NotCreated => 404,
            Self::AlreadyCreated | Self::State(_) | Self::NoDevice(_) => 409,
            Self::Snapshot(SnapshotError::State(_) | SnapshotError::Memory(_))
            | Self::Save(SaveError::State(_) | SaveError::Shape(_)) => 400,
            Self::Save(SaveError::Cpu {
                source: CpuStateError::Missing(_) | CpuStateError::State(_),
                ..
            }) => 400,
            Self::Machine(_) | Self::Snapshot(_) | Self::Save(_) => 500,
        }
    }
}

/// What processors have said and nobody has heard yet.
#[derive(Debug)]
struct Stops {
    queue: Mutex<VecDeque<(u8, Stop)>>,
    bell: EventFd,
}

impl StopSink for Stops {
    fn stopped(&self, cpu: u8, stop: Stop) {
        self.queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back((cpu, stop));
        let _ = self.bell.write(1);
    }
}

/// A configuration and what it stands on.
#[derive(Debug)]
pub(crate) struct Created {
    pub(crate) value: Value,
    pub(crate) config: VmConfig,
    pub(crate) resources: Resources,
}

/// The process's state.
#[derive(Debug)]
pub struct Vmm {
    pub(crate) kvm: Kvm,
    pub(crate) reactor: Reactor,
    server: Option<Server>,
    pub(crate) opener: Opener,
    prepare: Prepare,
    pub(crate) created: Option<Created>,
    pub(crate) machine: Option<Machine>,
    pub(crate) paused: bool,
    pub(crate) events: Events,
    stops: Arc<Stops>,
    /// Functions that want to be served again, and when.
    later: Vec<(u8, Instant)>,
    hold: bool,
    ended: bool,
}

/// How a launched process is set up.
#[derive(Debug, Clone, Copy)]
pub struct Launch {
    /// Paths are refused.
    pub jailed: bool,
    /// What threads do first.
    pub prepare: Prepare,
    /// The guest's end stops the machine and nothing else: the process stays with its events, for who was not looking.
    pub hold: bool,
}

impl Vmm {
    /// A process without a machine.
    ///
    /// # Errors
    /// When the host refuses descriptors.
    pub fn new(kvm: Kvm, listener: Option<UnixListener>, launch: Launch) -> Result<Self, Fatal> {
        let reactor = Reactor::new().map_err(Fatal::Loop)?;
        let server = listener
            .map(|listener| Server::new(listener, &reactor))
            .transpose()
            .map_err(Fatal::Loop)?;
        let bell = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(Fatal::Loop)?;
        reactor
            .add(bell.as_raw_fd(), READ, Token::Stops)
            .map_err(Fatal::Loop)?;
        crate::machine::vcpu::install_kick_handler().map_err(Fatal::Loop)?;
        crate::sigbus::install().map_err(Fatal::Loop)?;
        Ok(Self {
            kvm,
            reactor,
            server,
            opener: Opener {
                jailed: launch.jailed,
            },
            prepare: launch.prepare,
            created: None,
            machine: None,
            paused: false,
            events: Events::default(),
            stops: Arc::new(Stops {
                queue: Mutex::default(),
                bell,
            }),
            later: Vec::new(),
            hold: launch.hold,
            ended: false,
        })
    }

    /// What a launch asks: a machine to boot, or `{"restore": ...}`, the body of `vm.restore` with the state and memory
    /// files at the inherited descriptors `state_fd` and `memory_fd`.
    ///
    /// # Errors
    /// As of the verbs.
    pub fn launch(&mut self, value: Value) -> Result<(), VerbError> {
        match value.get("restore") {
            Some(restore) => {
                let (body, files) = restore_of_launch(restore)?;
                self.restore(&body, files)
            }
            None => self.create(value).and_then(|()| self.boot()),
        }
    }

    /// A configuration as this process sees it: in the jail the vsock folder has a place of its own.
    pub(crate) fn parse_config(&self, value: &Value) -> Result<VmConfig, ConfigError> {
        let mut config = VmConfig::parse(value)?;
        if let Some(vsock) = config.vsock.as_mut().filter(|_| self.opener.jailed) {
            let name = std::path::Path::new(&vsock.socket)
                .file_name()
                .and_then(std::ffi::OsStr::to_str)
                .ok_or_else(|| ConfigError::new("vsock.socket", "names no file"))?;
            vsock.socket = format!("{}/{name}", crate::jail::root::VSOCK_FOLDER);
        }
        Ok(config)
    }

    /// `vm.create`.
    ///
    /// # Errors
    /// When there is a machine, or the configuration is bad; nothing is then created.
    pub fn create(&mut self, value: Value) -> Result<(), VerbError> {
        if self.created.is_some() {
            return Err(VerbError::AlreadyCreated);
        }
        let config = self.parse_config(&value)?;
        let resources = self.opener.all(&config)?;
        self.created = Some(Created {
            value,
            config,
            resources,
        });
        Ok(())
    }

    pub(crate) fn build(&self, ram: RamSource) -> Result<Machine, VerbError> {
        let created = self.created.as_ref().ok_or(VerbError::NotCreated)?;
        let stops: Arc<dyn StopSink> = Arc::<Stops>::clone(&self.stops);
        Ok(Machine::new(
            &self.kvm,
            &created.config,
            &created.resources,
            ram,
            &stops,
            self.prepare,
        )?)
    }

    /// Takes a built machine over and watches its devices.
    pub(crate) fn install(&mut self, machine: Machine, live: bool) -> Result<(), VerbError> {
        let refused = |source| {
            VerbError::Machine(MachineError::Host {
                what: "watch on a device",
                source,
            })
        };
        for function in machine.on_loop() {
            self.reactor
                .add(
                    function.kick().as_raw_fd(),
                    READ,
                    Token::Kick(function.slot()),
                )
                .map_err(refused)?;
            for source in function.sources() {
                let events = match (source.edge, live) {
                    (true, _) => READ | EDGE,
                    (false, true) => READ,
                    (false, false) => 0,
                };
                self.reactor
                    .add(source.fd, events, Token::Source(function.slot()))
                    .map_err(refused)?;
            }
        }
        self.machine = Some(machine);
        Ok(())
    }

    /// `vm.boot`.
    ///
    /// # Errors
    /// When there is nothing to boot or it cannot be built.
    pub fn boot(&mut self) -> Result<(), VerbError> {
        if self.machine.is_some() {
            return Err(VerbError::State("running already"));
        }
        self.events.note("vm", "booting", Value::Null);
        let machine = self.build(RamSource::Fresh)?;
        let created = self.created.as_ref().ok_or(VerbError::NotCreated)?;
        machine.load(&created.config, &created.resources)?;
        self.install(machine, true)?;
        self.resume_machine();
        self.events.note("vm", "booted", Value::Null);
        Ok(())
    }

    /// A paused device takes nothing from its sources, so those that tell a state rather than a change must be silent.
    fn listen_to_sources(&self, on: bool) {
        let functions = self.machine.iter().flat_map(Machine::on_loop);
        for function in functions {
            let levels = function.sources().into_iter().filter(|source| !source.edge);
            for source in levels {
                let events = if on { READ } else { 0 };
                let _ = self
                    .reactor
                    .change(source.fd, events, Token::Source(function.slot()));
            }
        }
    }

    pub(crate) fn resume_machine(&mut self) {
        self.paused = false;
        if let Some(machine) = &self.machine {
            machine.resume();
        }
    }

    /// Ends the machine; its configuration stays.
    pub(crate) fn stop_machine(&mut self) {
        if let Some(machine) = self.machine.take() {
            for function in machine.on_loop() {
                self.reactor.remove(function.kick().as_raw_fd());
                for source in function.sources() {
                    self.reactor.remove(source.fd);
                }
            }
            drop(machine);
        }
        self.later.clear();
        self.paused = false;
        // A processor that stopped in the meantime belongs to a machine that is gone.
        self.stops
            .queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    /// `vm.reboot`.
    ///
    /// # Errors
    /// When there is nothing to reboot or it cannot be built again.
    pub fn reboot(&mut self) -> Result<(), VerbError> {
        if self.machine.is_none() {
            return Err(VerbError::State("not running"));
        }
        self.events.note("vm", "rebooting", Value::Null);
        self.stop_machine();
        if let Some(created) = &self.created
            && let Some(ram) = &created.resources.ram
        {
            wipe(ram).map_err(|source| {
                VerbError::Machine(MachineError::Host {
                    what: "wipe of memory",
                    source,
                })
            })?;
        }
        self.boot()?;
        self.events.note("vm", "rebooted", Value::Null);
        Ok(())
    }

    /// Asks the process to end; it answers what it owes first.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// The loop. Returns when the guest powered off or somebody asked for the end.
    ///
    /// # Errors
    /// When the guest or the host makes it impossible to go on.
    pub fn run(&mut self) -> Result<(), Fatal> {
        let mut ready = Vec::new();
        while !self.ended {
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
                    Token::Kick(slot) => self.serve_function(slot, true),
                    Token::Source(slot) => self.serve_function(slot, false),
                    Token::Stops => self.hear_stops()?,
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

    fn function(&self, slot: u8) -> Option<Arc<Function>> {
        self.machine
            .as_ref()?
            .on_loop()
            .iter()
            .find(|function| function.slot() == slot)
            .cloned()
    }

    fn serve_function(&mut self, slot: u8, rung: bool) {
        let Some(function) = self.function(slot) else {
            return;
        };
        if rung {
            let _ = function.kick().read();
        } else {
            function.source_ready();
        }
        self.later.retain(|(waiting, _)| *waiting != slot);
        match function.serve() {
            Ok(Next::Wait) => {}
            Ok(Next::Again) => self.later.push((slot, Instant::now())),
            Ok(Next::At(at)) => self.later.push((slot, at)),
            Err(error) => {
                let chain = crate::chain_of(&error);
                self.events.note(
                    "virtio-device",
                    "broken",
                    json!({ "id": function.id(), "chain": chain }),
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
            self.serve_function(slot, false);
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
            match stop {
                Stop::Panicked => self.events.note("vm", "panic", Value::Null),
                Stop::Request(Request::PowerOff) => {
                    self.events.note("vm", "shutdown", Value::Null);
                    if self.hold {
                        self.stop_machine();
                    } else {
                        self.ended = true;
                    }
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
                    if self.hold {
                        self.stop_machine();
                        continue;
                    }
                    self.reboot().map_err(Fatal::Start)?;
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

    /// The state's name in Cloud Hypervisor's `vm.info`.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match (&self.machine, self.paused) {
            (None, _) => "Created",
            (Some(_), true) => "Paused",
            (Some(_), false) => "Running",
        }
    }

    /// Presses the power button.
    ///
    /// # Errors
    /// When the machine does not run.
    pub fn press_power_button(&mut self) -> Result<(), VerbError> {
        match &self.machine {
            Some(machine) if !self.paused => {
                machine.lines().pulse(layout::POWER_BUTTON_GSI);
                Ok(())
            }
            _ => Err(VerbError::State("not running")),
        }
    }

    /// `vm.pause`.
    ///
    /// # Errors
    /// When the machine does not run.
    pub fn pause(&mut self) -> Result<(), VerbError> {
        match &self.machine {
            Some(machine) if !self.paused => {
                machine.pause();
                self.paused = true;
                self.listen_to_sources(false);
                self.events.note("vm", "paused", Value::Null);
                Ok(())
            }
            Some(_) => Err(VerbError::State("paused already")),
            None => Err(VerbError::State("not running")),
        }
    }

    /// `vm.resume`.
    ///
    /// # Errors
    /// When the machine is not paused.
    pub fn resume(&mut self) -> Result<(), VerbError> {
        if self.machine.is_none() || !self.paused {
            return Err(VerbError::State("not paused"));
        }
        self.listen_to_sources(true);
        self.resume_machine();
        self.events.note("vm", "resumed", Value::Null);
        Ok(())
    }
}

/// Splits a launch's `restore` into the verb's body and its files.
fn restore_of_launch(restore: &Value) -> Result<(Value, Vec<std::os::fd::OwnedFd>), VerbError> {
    let Value::Object(map) = restore else {
        return Err(ConfigError::new("restore", "expected an object").into());
    };
    let mut body = map.clone();
    let mut files = Vec::new();
    for key in ["state_fd", "memory_fd"] {
        let fd = body
            .remove(key)
            .and_then(|fd| i32::try_from(fd.as_i64()?).ok());
        let fd =
            fd.ok_or_else(|| ConfigError::new(format!("restore.{key}"), "is no descriptor"))?;
        let file = crate::resources::adopt(fd)
            .map_err(|error| ConfigError::new(format!("restore.{key}"), error.to_string()))?;
        files.push(file);
    }
    body.insert("source_url".to_owned(), "fd:".into());
    Ok((Value::Object(body), files))
}

/// How long a request for events may wait.
pub const EVENT_WAIT_MAX: Duration = Duration::from_secs(60);

/// Empties a memory file, so that a rebooted guest starts with zeroes.
fn wipe(file: &std::fs::File) -> io::Result<()> {
    let bytes = file.metadata()?.len();
    let Ok(length) = i64::try_from(bytes) else {
        return Ok(());
    };
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: punches a hole in our own memory file.
    if unsafe { libc::fallocate(file.as_raw_fd(), mode, 0, length) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
