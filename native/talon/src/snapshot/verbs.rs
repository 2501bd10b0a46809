//! `vm.snapshot`, `vm.restore`, `vm.fork`: where their files come from, and what happens in which order.
//!
//! A destination or source is `file:///folder` (files `state` and `memory` in it), or `fd:` with the files as descriptors
//! of the request, state first. In the jail only descriptors are taken.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::files::{
    Head, MemoryKind, NewFile, SnapshotError, check_memory, close_memory, look, read_state,
    write_memory,
};
use crate::config::{ConfigError, Fields, VmConfig};
use crate::machine::{MachineError, RamSource};
use crate::memory::Backing;
use crate::virtio::rng;
use crate::vmm::{Created, VerbError, Vmm};

const URL_BYTES_MAX: usize = 4096;

/// Files of a snapshot: by folder, or given.
enum Place {
    Folder(PathBuf),
    Given(std::vec::IntoIter<OwnedFd>),
}

impl Place {
    fn parse(
        vmm: &Vmm,
        fields: &mut Fields<'_>,
        key: &'static str,
        fds: Vec<OwnedFd>,
    ) -> Result<Self, ConfigError> {
        let url = fields
            .text(key, URL_BYTES_MAX)?
            .ok_or_else(|| fields.problem(key, "is missing"))?;
        if url == "fd:" {
            return Ok(Self::Given(fds.into_iter()));
        }
        match url.strip_prefix("file://") {
            Some(_) if vmm.opener.jailed => {
                Err(fields.problem(key, "must be fd: with descriptors: paths end at the jail"))
            }
            Some(path) if path.starts_with('/') => Ok(Self::Folder(path.into())),
            _ => Err(fields.problem(key, "must be fd: or file:///folder")),
        }
    }

    /// The next file to write.
    fn create(&mut self, key: &str, name: &'static str) -> Result<NewFile, VerbError> {
        match self {
            Self::Folder(folder) => Ok(NewFile::create(folder, name)?),
            Self::Given(fds) => match fds.next() {
                Some(fd) => Ok(NewFile::given(File::from(fd), name)),
                None => Err(ConfigError::new(
                    key,
                    format!("needs a descriptor for the {name} file"),
                )
                .into()),
            },
        }
    }

    /// The next file to read.
    fn open(&mut self, key: &str, name: &'static str) -> Result<File, VerbError> {
        match self {
            Self::Folder(folder) => {
                let opened = File::open(folder.join(name));
                Ok(opened.map_err(|source| SnapshotError::File {
                    action: "open",
                    what: name,
                    source,
                })?)
            }
            Self::Given(fds) => match fds.next() {
                Some(fd) => Ok(File::from(fd)),
                None => Err(ConfigError::new(
                    key,
                    format!("needs a descriptor for the {name} file"),
                )
                .into()),
            },
        }
    }
}

impl Vmm {
    fn new_head(&self, memory: MemoryKind) -> Result<Head, VerbError> {
        let created = self.created.as_ref().ok_or(VerbError::NotCreated)?;
        let mut id = [0; 16];
        rng::fill(&mut id).map_err(|source| MachineError::Host {
            what: "random identity",
            source,
        })?;
        Ok(Head {
            ram: created.config.ram,
            cpus: created.config.cpus,
            id,
            memory,
        })
    }

    fn save_state(&self, head: &Head) -> Result<Vec<u8>, VerbError> {
        let created = self.created.as_ref().ok_or(VerbError::NotCreated)?;
        let machine = self
            .machine
            .as_ref()
            .ok_or(VerbError::State("not running"))?;
        Ok(super::machine::save(
            machine,
            &self.kvm,
            head,
            &created.value,
        )?)
    }

    fn require_paused(&self) -> Result<(), VerbError> {
        if self.machine.is_none() {
            Err(VerbError::State("not running"))
        } else if self.paused {
            Ok(())
        } else {
            Err(VerbError::State("running; pause it first"))
        }
    }

    /// Writes memory as a file of its own, then the state. Returns the pages written.
    fn write_whole(&self, place: &mut Place, key: &str) -> Result<u64, VerbError> {
        let machine = self
            .machine
            .as_ref()
            .ok_or(VerbError::State("not running"))?;
        let head = self.new_head(MemoryKind::File)?;
        let state = place.create(key, "state")?;
        let memory = place.create(key, "memory")?;
        let content = self.save_state(&head)?;
        let pages = write_memory(machine.ram(), &memory.file)?;
        close_memory(&memory.file, &head)?;
        memory.keep()?;
        write_state(state, &content)?;
        Ok(pages)
    }

    /// `vm.snapshot` of a paused machine.
    ///
    /// # Errors
    /// When it is not paused, or a file cannot be written; no name is then left behind.
    pub fn snapshot(&mut self, body: &Value, fds: Vec<OwnedFd>) -> Result<Value, VerbError> {
        let mut fields = Fields::new("", body)?;
        let mut place = Place::parse(self, &mut fields, "destination_url", fds)?;
        fields.finish()?;
        self.require_paused()?;
        self.events.note("vm", "snapshotting", Value::Null);
        let pages = self.write_whole(&mut place, "destination_url")?;
        self.events
            .note("vm", "snapshotted", json!({ "pages": pages }));
        Ok(json!({ "pages": pages }))
    }

    /// `vm.fork` of a paused machine: its memory becomes a frozen template that any number of children share, where it
    /// is the launcher's memfd and was not forked before; otherwise it is copied, which is slower and never refused.
    ///
    /// # Errors
    /// When the machine is not paused, or a file cannot be written.
    pub fn fork(&mut self, body: &Value, fds: Vec<OwnedFd>) -> Result<Value, VerbError> {
        let mut fields = Fields::new("", body)?;
        let mut place = Place::parse(self, &mut fields, "destination_url", fds)?;
        fields.finish()?;
        self.require_paused()?;
        let created = self.created.as_ref().ok_or(VerbError::NotCreated)?;
        let machine = self
            .machine
            .as_ref()
            .ok_or(VerbError::State("not running"))?;
        let thp = created.config.thp;
        let sharable = created.resources.ram.is_some()
            && matches!(*machine.ram().backing(), Backing::Shared(_));
        let outcome = if sharable {
            let head = self.new_head(MemoryKind::Template)?;
            let state = place.create("destination_url", "state")?;
            let content = self.save_state(&head)?;
            machine.ram().freeze(thp).map_err(MachineError::Memory)?;
            write_state(state, &content)?;
            json!({ "memory": "template", "pages_copied": 0 })
        } else {
            let pages = self.write_whole(&mut place, "destination_url")?;
            json!({ "memory": "copy", "pages_copied": pages })
        };
        self.events.note("vm", "forked", outcome.clone());
        Ok(outcome)
    }

    /// `vm.restore` in a process without a machine. With `config` the machine stands on new resources; it must be of
    /// the same shape. Memory is mapped copy-on-write, so the cost does not depend on its size.
    ///
    /// # Errors
    /// When the snapshot is not whole, not of this layout, or not possible on this host; nothing is then created.
    pub fn restore(&mut self, body: &Value, fds: Vec<OwnedFd>) -> Result<(), VerbError> {
        let mut fields = Fields::new("", body)?;
        let mut place = Place::parse(self, &mut fields, "source_url", fds)?;
        let resume = fields.flag("resume")?.unwrap_or(false);
        fields.unsupported("prefault")?;
        if fields
            .text("memory_restore_mode", 16)?
            .is_some_and(|mode| mode != "copyonwrite")
        {
            return Err(fields
                .problem("memory_restore_mode", "must be copyonwrite")
                .into());
        }
        let given = fields.value("config");
        fields.finish()?;
        if self.created.is_some() {
            return Err(VerbError::AlreadyCreated);
        }
        self.events.note("vm", "restoring", Value::Null);
        let content = read_state(&place.open("source_url", "state")?)?;
        let (head, saved) = look(&content).map_err(SnapshotError::State)?;
        let value = given.unwrap_or(&saved);
        let config = self.parse_config(value)?;
        if (config.ram, config.cpus) != (head.ram, head.cpus) {
            return Err(ConfigError::new(
                "config",
                "has other memory or processors than the snapshot",
            )
            .into());
        }
        if given.is_some() && disks(&config) != disks(&VmConfig::parse(&saved)?) {
            // A guest knows its disks by their serials, and goes on writing to whatever stands in the slot.
            return Err(ConfigError::new("config", "has other disks than the snapshot").into());
        }
        let value = value.clone();
        let memory = place.open("source_url", "memory")?;
        check_memory(&memory, &head)?;
        let resources = self.opener.all(&config)?;
        self.created = Some(Created {
            value,
            config,
            resources,
        });
        let done = self.fill(memory, &content, resume);
        if done.is_err() {
            self.stop_machine();
            self.created = None;
            return done;
        }
        self.events.note("vm", "restored", Value::Null);
        if resume {
            self.events.note("vm", "resumed", Value::Null);
        }
        Ok(())
    }

    fn fill(&mut self, memory: File, content: &[u8], resume: bool) -> Result<(), VerbError> {
        let machine = self.build(RamSource::Template(memory))?;
        for device in machine.devices() {
            device.pause();
        }
        super::machine::fill(&machine, content)?;
        self.install(machine, resume)
    }
}

/// What a guest knows of its disks.
fn disks(config: &VmConfig) -> Vec<(u8, Option<&str>, bool)> {
    let disks = config.disks.iter();
    disks
        .map(|disk| (disk.place, disk.serial.as_deref(), disk.readonly))
        .collect()
}

fn write_state(state: NewFile, content: &[u8]) -> Result<(), SnapshotError> {
    use std::os::unix::fs::FileExt;
    state
        .file
        .write_all_at(content, 0)
        .map_err(|source| SnapshotError::File {
            action: "write",
            what: "state",
            source,
        })?;
    state.keep()
}
