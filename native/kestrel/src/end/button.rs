//! The power button: an ACPI button is an input device whose KEY_POWER the kernel only reports, never acts on.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use crate::sys::{check, ioctl_request, poll_entry};

/// include/uapi/linux/input-event-codes.h.
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
/// `EVIOCGBIT(EV_KEY, 96)`: `_IOC(_IOC_READ, 'E', 0x20 + EV_KEY, 96)`; 96 bytes hold all keys.
const EVIOCGBIT_KEY_96: u32 = 0x8060_4521;
/// `struct input_event` on x86_64: two longs of time, type, code, value.
const EVENT_BYTES: usize = 24;

/// All power buttons of this guest; none is fine.
#[derive(Debug)]
pub struct Buttons(Vec<File>);

impl Buttons {
    pub fn open() -> Self {
        let devices = fs::read_dir("/dev/input")
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"event"))
            .filter_map(|entry| {
                OpenOptions::new()
                    .read(true)
                    .custom_flags(libc::O_NONBLOCK)
                    .open(entry.path())
                    .ok()
            })
            .filter(has_power_key)
            .collect();
        Self(devices)
    }

    /// Gives the devices' entries for poll, in a fixed order.
    pub fn entries(&self) -> impl Iterator<Item = libc::pollfd> + '_ {
        self.0
            .iter()
            .map(|device| poll_entry(device.as_raw_fd(), libc::POLLIN))
    }

    /// Reads what the polled devices have; `true` if the button went down.
    pub fn is_pressed(&mut self, polled: &[libc::pollfd]) -> bool {
        let mut pressed = false;
        let mut gone = Vec::new();
        for (device, entry) in self.0.iter_mut().zip(polled) {
            if entry.revents == 0 {
                continue;
            }
            let mut events = [0_u8; EVENT_BYTES * 16];
            match device.read(&mut events) {
                Ok(count) if count > 0 => {
                    let events = events.get(..count).unwrap_or_default();
                    pressed |= events.chunks_exact(EVENT_BYTES).any(is_power_down);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                _ => gone.push(device.as_raw_fd()),
            }
        }
        // An unplugged device would be ready for ever.
        self.0.retain(|device| !gone.contains(&device.as_raw_fd()));
        pressed
    }
}

fn has_power_key(device: &File) -> bool {
    let mut keys = [0_u8; 96];
    // SAFETY: the ioctl writes at most the 96 bytes that its number states.
    let asked = check(unsafe {
        libc::ioctl(
            device.as_raw_fd(),
            ioctl_request(EVIOCGBIT_KEY_96),
            keys.as_mut_ptr(),
        )
    });
    asked.is_ok()
        && keys
            .get(usize::from(KEY_POWER / 8))
            .is_some_and(|byte| byte & (1 << (KEY_POWER % 8)) != 0)
}

fn is_power_down(event: &[u8]) -> bool {
    let half = |at: usize| Some(u16::from_ne_bytes(*event.get(at..)?.first_chunk()?));
    let value = event
        .get(20..)
        .and_then(|rest| rest.first_chunk())
        .map(|bytes| i32::from_ne_bytes(*bytes));
    half(16) == Some(EV_KEY) && half(18) == Some(KEY_POWER) && value == Some(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u16, code: u16, value: i32) -> Vec<u8> {
        let mut bytes = vec![0; 16];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(code.to_ne_bytes());
        bytes.extend(value.to_ne_bytes());
        bytes
    }

    #[test]
    fn only_the_power_key_going_down_counts() {
        assert!(is_power_down(&event(EV_KEY, KEY_POWER, 1)));
        assert!(!is_power_down(&event(EV_KEY, KEY_POWER, 0)));
        assert!(!is_power_down(&event(EV_KEY, 30, 1)));
        assert!(!is_power_down(&event(0, KEY_POWER, 1)));
        assert!(!is_power_down(&[]));
    }
}
