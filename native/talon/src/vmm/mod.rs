//! The process: one loop that serves the control socket, the devices of the main thread, and what processors have to say.
//!
//! ```text
//!           vm.create          vm.boot, vm.restore        vm.pause
//! (nothing) ─────────▶ Created ───────────────────▶ Running ◀──────▶ Paused
//!           ◀─────────         ◀─────────────────── vm.shutdown   vm.resume
//!           vm.delete
//! ```

mod fault;
mod turn;

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvm_ioctls::Kvm;
use serde_json::Value;
use vmm_sys_util::eventfd::EventFd;

use crate::api::server::{Incoming, Server};
use crate::config::{ConfigError, Fields, VmConfig};
use crate::events::Events;
use crate::layout;
use crate::machine::vcpu::{Stop, StopSink};
use crate::machine::{Machine, MachineError, Prepare, RamSource};
use crate::reactor::{EDGE, READ, Reactor, Token};
use crate::resources::{Opener, Resources};
use crate::virtio::Command;

pub use fault::{Fatal, VerbError};

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

    fn quiet(&self) {
        let _ = self.bell.write(1);
    }
}

/// What follows when a machine that stopped by itself has no request under way any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// The machine goes, the process stays.
    Hold,
    /// The process ends.
    Leave,
    /// The machine boots again.
    Reboot,
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
    /// Devices that want to be served again, and when.
    later: Vec<(u8, Instant)>,
    hold: bool,
    /// The guest is at its end, and a disk of the host may keep it for a while.
    ending: Option<Ending>,
    /// Requests that wait for a paused machine to be quiet.
    deferred: Vec<Incoming>,
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
            ending: None,
            deferred: Vec::new(),
            ended: false,
        })
    }

    /// Tells whoever asks for events what the jail is made of on this host.
    pub fn note_jail(&mut self, landlock_abi: u32) {
        let properties = serde_json::json!({ "landlock_abi": landlock_abi });
        self.events.note("vmm", "jailed", properties);
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
        Ok(Machine::new(
            &self.kvm,
            &created.config,
            &created.resources,
            ram,
        )?)
    }

    /// Takes a built machine over, watches its devices and begins its threads, the guest running or not.
    pub(crate) fn install(&mut self, mut machine: Machine, live: bool) -> Result<(), VerbError> {
        let refused = |source| {
            VerbError::Machine(MachineError::Host {
                what: "watch on a device",
                source,
            })
        };
        for device in machine.on_loop() {
            if let Some(doorbell) = device.doorbell() {
                // Told once for each ring, so that nobody has to read it.
                self.reactor
                    .add(
                        doorbell.as_raw_fd(),
                        READ | EDGE,
                        Token::Kick(device.slot()),
                    )
                    .map_err(refused)?;
            }
            for source in device.sources() {
                let events = match (source.edge, live) {
                    (true, _) => READ | EDGE,
                    (false, true) => READ,
                    (false, false) => 0,
                };
                self.reactor
                    .add(source.fd, events, Token::Source(device.slot()))
                    .map_err(refused)?;
            }
        }
        if let Some(terminal) = machine.bus().terminal() {
            let events = if live { READ } else { 0 };
            self.reactor
                .add(terminal.poll_fd(), events, Token::Serial)
                .map_err(refused)?;
            // Of the machine before, which may have had no room.
            terminal.room_again();
        }
        let stops: Arc<dyn StopSink> = Arc::<Stops>::clone(&self.stops);
        machine.start(&stops, self.prepare, live)?;
        self.machine = Some(machine);
        self.paused = !live;
        if live {
            self.serve_all_soon();
        }
        Ok(())
    }

    /// Whatever a device has to do first must not wait for its doorbell.
    fn serve_all_soon(&mut self) {
        let now = Instant::now();
        let slots = self.machine.iter().flat_map(Machine::on_loop);
        self.later.extend(slots.map(|device| (device.slot(), now)));
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
        self.events.note("vm", "booted", Value::Null);
        Ok(())
    }

    /// A paused device takes nothing from its sources, so those that tell a state rather than a change must be silent.
    fn listen_to_sources(&self, on: bool) {
        let devices = self.machine.iter().flat_map(Machine::on_loop);
        for device in devices {
            let levels = device.sources().into_iter().filter(|source| !source.edge);
            for source in levels {
                let events = if on { READ } else { 0 };
                let _ = self
                    .reactor
                    .change(source.fd, events, Token::Source(device.slot()));
            }
        }
        if let Some(terminal) = self
            .machine
            .as_ref()
            .and_then(|machine| machine.bus().terminal())
        {
            // What was printed before a pause is shown during it.
            terminal.serve();
            let events = if on { READ } else { 0 };
            let _ = self
                .reactor
                .change(terminal.poll_fd(), events, Token::Serial);
        }
    }

    fn resume_machine(&mut self) {
        self.paused = false;
        self.serve_all_soon();
        if let Some(machine) = &self.machine {
            machine.resume();
        }
    }

    /// Ends the machine; its configuration stays.
    pub(crate) fn stop_machine(&mut self) {
        if let Some(machine) = self.machine.take() {
            for device in machine.on_loop() {
                if let Some(doorbell) = device.doorbell() {
                    self.reactor.remove(doorbell.as_raw_fd());
                }
                for source in device.sources() {
                    self.reactor.remove(source.fd);
                }
            }
            if let Some(terminal) = machine.bus().terminal() {
                self.reactor.remove(terminal.poll_fd());
            }
            drop(machine);
            for resources in self.created.iter().map(|created| &created.resources) {
                // Its last words.
                for outlet in [&resources.serial, &resources.console] {
                    outlet
                        .terminal()
                        .into_iter()
                        .for_each(|terminal| terminal.serve());
                }
            }
        }
        self.later.clear();
        self.paused = false;
        self.ending = None;
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
        self.stop_guest(Ending::Leave);
    }

    /// The guest runs no more; what follows is done when no request is under way. Nobody waits for a disk here.
    fn stop_guest(&mut self, ending: Ending) {
        self.quiesce();
        self.ending = Some(ending);
    }

    /// Pauses the machine, if it is not. False while a request is under way.
    pub(crate) fn quiesce(&mut self) -> bool {
        let Some(machine) = &self.machine else {
            return true;
        };
        if !self.paused {
            machine.pause();
            self.paused = true;
            self.listen_to_sources(false);
        }
        self.is_quiet()
    }

    /// Whether nothing of a machine changes: there is none, or it is paused and no request is under way.
    pub(crate) fn is_quiet(&self) -> bool {
        self.machine
            .as_ref()
            .is_none_or(|machine| self.paused && machine.is_quiet())
    }

    /// Whether the guest has come to its end, and only a request under way keeps the machine.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    /// The state's name in Cloud Hypervisor's `vm.info`.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match (&self.machine, self.paused) {
            (None, _) => "Created",
            (Some(_), _) if self.is_ending() => "Shutdown",
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
                machine.vm().pulse(layout::POWER_BUTTON_GSI);
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
            Some(_) if self.is_ending() => Err(VerbError::State("not running")),
            Some(_) if !self.paused => {
                // A request under way goes on: whoever needs the disks to stand still waits for that.
                self.quiesce();
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
        if self.machine.is_none() || !self.paused || self.is_ending() {
            return Err(VerbError::State("not paused"));
        }
        self.listen_to_sources(true);
        self.resume_machine();
        self.events.note("vm", "resumed", Value::Null);
        Ok(())
    }

    /// `vm.link`: shows a network device's link up or down. After a restore links are down until the guest has its new
    /// identity.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn link(&mut self, body: &Value) -> Result<(), VerbError> {
        let mut fields = Fields::new("", body)?;
        let id = fields.text("id", 64)?;
        let up = fields
            .flag("up")?
            .ok_or_else(|| fields.problem("up", "is missing"))?;
        fields.finish()?;
        let machine = self
            .machine
            .as_ref()
            .ok_or(VerbError::State("not running"))?;
        let created = self.created.as_ref().ok_or(VerbError::NotCreated)?;
        let is_net = |name: &str| created.config.nets.iter().any(|net| net.id == name);
        let wanted: Vec<_> = machine
            .devices()
            .filter(|device| is_net(device.id()) && id.is_none_or(|id| id == device.id()))
            .collect();
        if wanted.is_empty() {
            return Err(VerbError::NoDevice("such network device"));
        }
        for device in wanted {
            device.command(&Command::Link(up));
            device.ring();
        }
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
