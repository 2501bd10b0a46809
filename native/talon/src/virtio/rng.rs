//! virtio entropy device (virtio 1.2, section 5.4): one queue, device to driver only.

use std::io;

use super::{Backend, CONFIG_BYTES, Io, Kind, Next, ServeError};

/// Bytes served for one request. A chain may name one page many times, so its length is the guest's claim and not its
/// memory: without a cap the guest would size our work.
const REQUEST_BYTES_MAX: u64 = 4096;

/// Requests served before other devices have their turn.
const BATCH: usize = 32;

/// The device.
#[derive(Debug, Default)]
pub struct Rng {
    bytes: u64,
}

/// Fresh random bytes of the host's kernel.
///
/// # Errors
/// When the host has none yet, early in its boot.
pub fn fill(out: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < out.len() {
        let rest = &mut out[done..];
        // By number: std refers to the function weakly, and a link-time optimised program merges that with ours and is
        // then left without it.
        // SAFETY: the pointer and the length are of the same slice.
        let read =
            unsafe { libc::syscall(libc::SYS_getrandom, rest.as_mut_ptr(), rest.len(), 0u32) };
        match usize::try_from(read) {
            Ok(read) => done += read,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

impl Backend for Rng {
    fn kind(&self) -> Kind {
        Kind::Entropy
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[64]
    }

    fn config(&self, _out: &mut [u8; CONFIG_BYTES]) -> usize {
        0
    }

    /// A guest asks for entropy by itself now and then, so an idle one would wake the main thread.
    fn at_once(&self) -> bool {
        true
    }

    fn serve(&mut self, io: &mut Io<'_>) -> Result<Next, ServeError> {
        io.quiet(0)?;
        for _ in 0..BATCH {
            let Some(chain) = io.pop(0)? else {
                return Ok(if io.listen(0)? {
                    Next::Again
                } else {
                    Next::Wait
                });
            };
            let mut bytes = [0; 4096];
            let wanted = chain.writable_bytes().min(REQUEST_BYTES_MAX);
            let part = &mut bytes[..crate::bytes::to_usize(wanted)];
            fill(part).map_err(ServeError::Host)?;
            let written = chain.write(io.memory, 0, part);
            self.bytes += written as u64;
            io.push(0, chain.head, u32::try_from(written).unwrap_or(0))?;
        }
        Ok(Next::Again)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![("bytes", self.bytes)]
    }
}
