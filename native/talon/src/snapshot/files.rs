//! Snapshots and forks: a state file, and memory either as a file of its own or as the frozen memfd of a template.
//!
//! Both files are written whole or not at all as far as a name is concerned (a new file, renamed), and each can tell by
//! itself that it was cut short: the state by length and checksum, the memory file by its length and a last page that
//! carries the state's identity.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::bytes::to_usize;
use crate::memory::{PAGE, Ram};
use crate::snapshot::codec::{self, Decoder, Encoder, StateError, checksum};

/// Sections of a state file.
pub mod section {
    /// What it is a snapshot of, and its identity.
    pub const HEAD: u32 = 1;
    /// The configuration, JSON.
    pub const CONFIG: u32 = 2;
    /// One processor; they come in order.
    pub const CPU: u32 = 3;
    /// IOAPIC and clock.
    pub const PLATFORM: u32 = 4;
    /// Serial port.
    pub const SERIAL: u32 = 5;
    /// One device.
    pub const DEVICE: u32 = 6;
}

const MEMORY_MAGIC: [u8; 8] = *b"TALONMEM";
/// The largest write of memory at a time.
const RUN_BYTES_MAX: u64 = 1 << 20;
/// Room for the state of a small machine, so that it takes one read.
const STATE_BYTES_USUAL: usize = 16 << 10;
const PAGE_BYTES: usize = to_usize(PAGE);

/// Where the memory of a state is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryKind {
    /// A file with a last page.
    File,
    /// A sealed memfd of exactly the RAM's size.
    Template,
}

/// What a state is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Bytes of RAM.
    pub ram: u64,
    /// Processors.
    pub cpus: u8,
    /// Joins state and memory.
    pub id: [u8; 16],
    /// Where its memory is.
    pub memory: MemoryKind,
}

impl Head {
    /// As the content of its section.
    #[must_use]
    pub fn encode(&self) -> Encoder {
        let mut out = Encoder::new();
        out.u64(self.ram);
        out.u8(self.cpus);
        out.bytes(&self.id);
        out.u8(match self.memory {
            MemoryKind::File => 0,
            MemoryKind::Template => 1,
        });
        out
    }

    /// From the content of its section.
    ///
    /// # Errors
    /// When it holds an impossible value.
    pub fn decode(from: &mut Decoder<'_>) -> Result<Self, StateError> {
        let head = Self {
            ram: from.u64()?,
            cpus: from.u8()?,
            id: from
                .bytes()?
                .try_into()
                .map_err(|_| StateError::Invalid("identity"))?,
            memory: match from.u8()? {
                0 => MemoryKind::File,
                1 => MemoryKind::Template,
                _ => return Err(StateError::Invalid("kind of memory")),
            },
        };
        from.finish()?;
        Ok(head)
    }
}

/// Why a snapshot was not made or taken.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A file could not be written or read.
    #[error("cannot {action} the {what} file")]
    File {
        /// What was tried.
        action: &'static str,
        /// Which file.
        what: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The state is refused.
    #[error("the state is refused")]
    State(#[from] StateError),
    /// The memory file was cut short, or belongs to another state.
    #[error("the memory file is refused: {0}")]
    Memory(&'static str),
}

fn file_error(action: &'static str, what: &'static str) -> impl Fn(io::Error) -> SnapshotError {
    move |source| SnapshotError::File {
        action,
        what,
        source,
    }
}

/// A new file beside its final name, readable by its owner only, and gone again unless it is kept.
#[derive(Debug)]
pub struct NewFile {
    /// The file.
    pub file: File,
    path: Option<(PathBuf, PathBuf)>,
    what: &'static str,
}

impl NewFile {
    /// In `folder`, to become `name`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(folder: &Path, name: &'static str) -> Result<Self, SnapshotError> {
        let new = folder.join(format!(".{name}.{}.new", std::process::id()));
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o400)
            .open(&new)
            .map_err(file_error("create", name))?;
        Ok(Self {
            file,
            path: Some((new, folder.join(name))),
            what: name,
        })
    }

    /// Around a descriptor whose name is the caller's concern.
    #[must_use]
    pub fn given(file: File, what: &'static str) -> Self {
        Self {
            file,
            path: None,
            what,
        }
    }

    /// Makes it last and gives it its name.
    ///
    /// # Errors
    /// When the host cannot say that it lasts.
    pub fn keep(mut self) -> Result<(), SnapshotError> {
        match self.path.take() {
            None => match self.file.sync_all() {
                // A memfd or a pipe has nothing to last on.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
                other => other.map_err(file_error("write", self.what)),
            },
            Some((new, kept)) => {
                let done = self
                    .file
                    .sync_all()
                    .and_then(|()| std::fs::rename(&new, kept));
                if done.is_err() {
                    let _ = std::fs::remove_file(&new);
                }
                done.map_err(file_error("write", self.what))
            }
        }
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some((new, _)) = &self.path {
            let _ = std::fs::remove_file(new);
        }
    }
}

/// Writes RAM sparsely: pages of zeroes are holes. Returns the pages written.
///
/// # Errors
/// When the file cannot be written.
pub fn write_memory(ram: &Ram, out: &File) -> Result<u64, SnapshotError> {
    let failed = file_error("write", "memory");
    out.set_len(ram.size()).map_err(&failed)?;
    let (mut written, mut offset) = (0, 0);
    while offset < ram.size() {
        if is_zero(ram, offset) {
            offset += PAGE;
            continue;
        }
        let mut end = offset + PAGE;
        while end < ram.size() && end - offset < RUN_BYTES_MAX && !is_zero(ram, end) {
            end += PAGE;
        }
        write_run(ram, out, offset, end).map_err(&failed)?;
        written += (end - offset) / PAGE;
        offset = end;
    }
    Ok(written)
}

fn is_zero(ram: &Ram, offset: u64) -> bool {
    let page = ram.base().wrapping_add(to_usize(offset)).cast::<u64>();
    (0..to_usize(PAGE) / 8).all(|word| {
        // SAFETY: `offset` is a page inside the mapping, and the guest is paused; the read is volatile all the same.
        unsafe { page.add(word).read_volatile() == 0 }
    })
}

fn write_run(ram: &Ram, out: &File, start: u64, end: u64) -> io::Result<()> {
    let mut at = start;
    while at < end {
        let (Ok(offset), length) = (i64::try_from(at), to_usize(end - at)) else {
            return Err(io::ErrorKind::FileTooLarge.into());
        };
        // SAFETY: the range lies in the mapping, which lives as long as `ram`; the kernel only reads it.
        let done = unsafe {
            libc::pwrite(
                out.as_raw_fd(),
                ram.base().wrapping_add(to_usize(at)).cast(),
                length,
                offset,
            )
        };
        match u64::try_from(done) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(done) => at += done,
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
}

/// The last page of a memory file.
fn last_page(head: &Head) -> [u8; PAGE_BYTES] {
    let mut page = [0; PAGE_BYTES];
    page[..8].copy_from_slice(&MEMORY_MAGIC);
    page[8..24].copy_from_slice(&head.id);
    page[24..32].copy_from_slice(&head.ram.to_le_bytes());
    let sum = checksum(&page[..32]);
    page[32..40].copy_from_slice(&sum.to_le_bytes());
    page
}

/// Closes a memory file: without this page it is not whole.
///
/// # Errors
/// When it cannot be written.
pub fn close_memory(out: &File, head: &Head) -> Result<(), SnapshotError> {
    out.write_all_at(&last_page(head), head.ram)
        .map_err(file_error("write", "memory"))
}

/// Checks that `memory` is whole and belongs to the state.
///
/// # Errors
/// When it is not.
pub fn check_memory(memory: &File, head: &Head) -> Result<(), SnapshotError> {
    let failed = file_error("read", "memory");
    let bytes = memory.metadata().map_err(&failed)?.len();
    match head.memory {
        MemoryKind::File => {
            if Some(bytes) != head.ram.checked_add(PAGE) {
                return Err(SnapshotError::Memory(
                    "it was cut short or is of another machine",
                ));
            }
            let mut page = [0; PAGE_BYTES];
            memory.read_exact_at(&mut page, head.ram).map_err(&failed)?;
            if page != last_page(head) {
                return Err(SnapshotError::Memory(
                    "it is of another snapshot or was never finished",
                ));
            }
        }
        MemoryKind::Template => {
            // SAFETY: fcntl with integers on an open descriptor.
            let seals = unsafe { libc::fcntl(memory.as_raw_fd(), libc::F_GET_SEALS) };
            if seals < 0 || seals & libc::F_SEAL_WRITE == 0 || seals & libc::F_SEAL_SHRINK == 0 {
                return Err(SnapshotError::Memory("it is no sealed template"));
            }
            if bytes != head.ram {
                return Err(SnapshotError::Memory(
                    "it is the template of another machine",
                ));
            }
        }
    }
    Ok(())
}

/// Reads a whole state file.
///
/// # Errors
/// When it cannot be read or is larger than any state.
pub fn read_state(file: &File) -> Result<Vec<u8>, SnapshotError> {
    let failed = file_error("read", "state");
    let mut content = vec![0; STATE_BYTES_USUAL];
    let mut filled = 0;
    loop {
        match file.read_at(&mut content[filled..], filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
        // A file gives all that was asked for unless it ends there; one that does not is cut short to us.
        if filled < content.len() {
            break;
        }
        if filled > codec::BYTES_MAX {
            return Err(StateError::Length.into());
        }
        content.resize(filled * 2, 0);
    }
    content.truncate(filled);
    Ok(content)
}

/// What is known of a state before anything is built: its head, and the configuration it was made with.
///
/// # Errors
/// When it is no whole state of ours.
pub fn look(content: &[u8]) -> Result<(Head, Value), StateError> {
    let mut sections = Decoder::open(content, crate::layout::GENERATION)?;
    let (mut head, mut config) = (None, None);
    while let Some((tag, mut body)) = sections.section()? {
        match tag {
            section::HEAD => head = Some(Head::decode(&mut body)?),
            section::CONFIG => {
                let parsed = serde_json::from_slice(body.bytes()?);
                config = Some(parsed.map_err(|_| StateError::Invalid("configuration"))?);
            }
            _ => {}
        }
    }
    Ok((
        head.ok_or(StateError::Missing("head"))?,
        config.ok_or(StateError::Missing("configuration"))?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Backing, HUGE_PAGE};
    use vm_memory::{Bytes, GuestAddress};

    fn head(memory: MemoryKind) -> Head {
        Head {
            ram: HUGE_PAGE,
            cpus: 1,
            id: [7; 16],
            memory,
        }
    }

    #[test]
    fn memory_is_written_sparsely_and_read_back() {
        let ram = Ram::new(HUGE_PAGE, Backing::Anonymous, false).unwrap();
        ram.guest()
            .write_obj(0x1234u64, GuestAddress(5 * PAGE + 8))
            .unwrap();
        let file = Ram::memfd(0).unwrap();

        assert_eq!(write_memory(&ram, &file).unwrap(), 1);
        close_memory(&file, &head(MemoryKind::File)).unwrap();

        check_memory(&file, &head(MemoryKind::File)).unwrap();
        let copy = Ram::new(HUGE_PAGE, Backing::CopyOnWrite(file), false).unwrap();
        assert_eq!(
            copy.guest()
                .read_obj::<u64>(GuestAddress(5 * PAGE + 8))
                .unwrap(),
            0x1234
        );
    }

    #[test]
    fn a_memory_file_that_was_cut_short_is_refused() {
        let file = Ram::memfd(HUGE_PAGE).unwrap();
        assert!(check_memory(&file, &head(MemoryKind::File)).is_err());
        file.set_len(HUGE_PAGE + PAGE).unwrap();
        assert!(check_memory(&file, &head(MemoryKind::File)).is_err());

        close_memory(
            &file,
            &Head {
                id: [8; 16],
                ..head(MemoryKind::File)
            },
        )
        .unwrap();
        assert!(check_memory(&file, &head(MemoryKind::File)).is_err());
    }

    #[test]
    fn a_template_must_be_sealed() {
        let file = Ram::memfd(HUGE_PAGE).unwrap();

        assert!(check_memory(&file, &head(MemoryKind::Template)).is_err());
        let ram = Ram::new(HUGE_PAGE, Backing::Shared(file.try_clone().unwrap()), false).unwrap();
        ram.freeze(false).unwrap();
        check_memory(&file, &head(MemoryKind::Template)).unwrap();
    }

    #[test]
    fn a_new_file_that_is_not_kept_is_gone() {
        let folder = std::env::temp_dir().join(format!("talon-new-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();

        drop(NewFile::create(&folder, "state").unwrap());
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
        NewFile::create(&folder, "state").unwrap().keep().unwrap();
        assert!(folder.join("state").exists());

        std::fs::remove_dir_all(&folder).unwrap();
    }
}
