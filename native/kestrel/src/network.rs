//! The loopback, and QEMU's user network, by the old ioctls (netdevice(7)): no netlink is needed for four numbers.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use aerie_protocol::message::NetworkMode;

use crate::sys::{check, ioctl_request, own};

/// include/uapi/linux/sockios.h.
const SIOCADDRT: u32 = 0x890b;
const SIOCSIFFLAGS: u32 = 0x8914;
const SIOCSIFADDR: u32 = 0x8916;
const SIOCSIFNETMASK: u32 = 0x891c;

/// What QEMU's user network always gives (its documentation, "-netdev user").
const USER_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const USER_MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
const USER_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

/// `AF_INET` in the width of the field.
const FAMILY: libc::sa_family_t = 2;
const _: () = assert!(libc::AF_INET == 2);

/// The DNS server of a network, for `/etc/resolv.conf`.
pub const fn dns(mode: NetworkMode) -> Option<&'static str> {
    match mode {
        NetworkMode::None => None,
        NetworkMode::User => Some("10.0.2.3"),
    }
}

/// A network that cannot be brought up.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("there is no network card")]
    NoCard,
    #[error("cannot {step} of {card}")]
    Set {
        step: &'static str,
        card: String,
        #[source]
        source: io::Error,
    },
}

/// Brings the loopback up: without it not even 127.0.0.1 answers, and every port proxy goes there.
///
/// # Errors
/// The kernel's refusal.
pub fn loopback() -> Result<(), NetworkError> {
    let control = control("lo")?;
    raise(&control, "lo")
}

/// Brings up what the configuration asks for.
///
/// # Errors
/// No card where one is needed, or the kernel's refusal.
pub fn apply(mode: NetworkMode) -> Result<(), NetworkError> {
    match mode {
        NetworkMode::None => Ok(()),
        NetworkMode::User => {
            let card = first_card().ok_or(NetworkError::NoCard)?;
            let control = control(&card)?;
            address(
                &control,
                &card,
                "set the address",
                SIOCSIFADDR,
                USER_ADDRESS,
            )?;
            address(&control, &card, "set the mask", SIOCSIFNETMASK, USER_MASK)?;
            raise(&control, &card)?;
            route(&control, &card, USER_GATEWAY)
        }
    }
}

/// The first interface with a device behind it, by name.
fn first_card() -> Option<String> {
    let mut names: Vec<String> = fs::read_dir("/sys/class/net")
        .ok()?
        .flatten()
        .filter(|entry| entry.path().join("device").exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names.into_iter().next()
}

fn control(card: &str) -> Result<OwnedFd, NetworkError> {
    // SAFETY: socket touches no memory of ours.
    own(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })
        .map_err(failed("open a socket", card))
}

fn failed<'a>(step: &'static str, card: &'a str) -> impl FnOnce(io::Error) -> NetworkError + 'a {
    move |source| NetworkError::Set {
        step,
        card: card.to_owned(),
        source,
    }
}

fn request(card: &str) -> libc::ifreq {
    // SAFETY: ifreq is plain data; zero is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One less than the array: the name stays null-terminated.
    for (to, from) in request.ifr_name.iter_mut().take(15).zip(card.bytes()) {
        *to = from.cast_signed();
    }
    request
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let [a, b, c, d] = address.octets();
    // SAFETY: sockaddr is plain data; zero is a value of it.
    let mut raw: libc::sockaddr = unsafe { std::mem::zeroed() };
    raw.sa_family = FAMILY;
    // sockaddr_in: port (2 bytes), then the address.
    for (to, from) in raw.sa_data.iter_mut().skip(2).zip([a, b, c, d]) {
        *to = from.cast_signed();
    }
    raw
}

fn address(
    control: &OwnedFd,
    card: &str,
    step: &'static str,
    number: u32,
    value: Ipv4Addr,
) -> Result<(), NetworkError> {
    let mut request = request(card);
    request.ifr_ifru.ifru_addr = socket_address(value);
    // SAFETY: a valid ifreq.
    check(unsafe {
        libc::ioctl(
            control.as_raw_fd(),
            number as libc::Ioctl,
            &raw const request,
        )
    })
    .map_err(failed(step, card))?;
    Ok(())
}

fn raise(control: &OwnedFd, card: &str) -> Result<(), NetworkError> {
    let mut request = request(card);
    let up = libc::IFF_UP | libc::IFF_RUNNING;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(up).unwrap_or(libc::c_short::MAX);
    // SAFETY: a valid ifreq.
    check(unsafe {
        libc::ioctl(
            control.as_raw_fd(),
            ioctl_request(SIOCSIFFLAGS),
            &raw const request,
        )
    })
    .map_err(failed("raise the link", card))?;
    Ok(())
}

fn route(control: &OwnedFd, card: &str, gateway: Ipv4Addr) -> Result<(), NetworkError> {
    // SAFETY: rtentry is plain data; zero (the default route) is a value of it.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = socket_address(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: a valid rtentry.
    match check(unsafe {
        libc::ioctl(
            control.as_raw_fd(),
            ioctl_request(SIOCADDRT),
            &raw const route,
        )
    }) {
        // Set already: after a restore this is applied once more.
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other.map(drop).map_err(failed("set the route", card)),
    }
}
