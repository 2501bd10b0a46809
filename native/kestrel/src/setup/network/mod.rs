//! The loopback and the network cards, by rtnetlink: hardware addresses, MTU, addresses and routes of both families.
//!
//! A card is told once at boot, and again by every identity. One whose hardware address, addresses or routes become others is
//! lowered first, so that nothing of the guest's goes out under the name of another; one that stays as it is stays up, with
//! whatever the guest has added to it.

mod announce;
mod card;
mod connections;
mod dhcp;
mod error;
mod link;
mod netlink;
mod socket;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use crate::observe::console::{chain, say};

pub use card::Cards;
pub use connections::reset as reset_connections;
pub use dhcp::Waiter;
pub use error::NetworkError;

use card::{Card, Way};
use dhcp::{Client, Lease, Plan};
use error::failed;
use link::Link;
use netlink::Netlink;

/// The kernel's number of the loopback.
const LOOPBACK: u32 = 1;
/// The kernel's own metric of a route of IPv6; one of IPv4 is 0.
const METRIC6: u32 = 1024;
/// The metrics of one card are this far from those of the next: of two ways to everywhere, that of the first card is taken.
const METRIC_STEP: u32 = 100;
const SECOND: Duration = Duration::from_secs(1);

/// Brings the loopback up: without it not even 127.0.0.1 answers, and every port proxy goes there.
///
/// # Errors
/// The kernel's refusal.
pub fn loopback() -> Result<(), NetworkError> {
    let set = || link::set_up(&mut link::open()?, LOOPBACK, true);
    set().map_err(failed("raise the link", "lo"))
}

/// The cards of this guest as the host said them last, and what runs for them.
#[derive(Debug, Default)]
pub struct Network {
    cards: Cards,
    /// Of the cards that ask for an address, by their place.
    clients: BTreeMap<usize, Client>,
}

/// A card with the link that it is, and whether that becomes another.
struct Job {
    card: Card,
    place: usize,
    link: Link,
    changes: bool,
}

impl Network {
    /// Sets and raises each card; those that ask by DHCP begin to. `between` runs while the cards that become others are down,
    /// and the others are up. `told` runs whenever a server has changed what [`cards`](Self::cards) gives.
    ///
    /// # Errors
    /// The first card that is not there or refuses, when all others are done.
    pub fn set(
        &mut self,
        cards: Cards,
        hostname: &str,
        between: impl FnOnce(),
        told: impl Fn() + Clone + Send + 'static,
    ) -> Result<(), NetworkError> {
        let links = link::cards();
        self.set_links(cards, &links, hostname, SECOND, between, told)
    }

    fn set_links(
        &mut self,
        cards: Cards,
        links: &[Link],
        hostname: &str,
        second: Duration,
        between: impl FnOnce(),
        told: impl Fn() + Clone + Send + 'static,
    ) -> Result<(), NetworkError> {
        if cards.cards.is_empty() {
            return Ok(());
        }
        let clients = std::mem::take(&mut self.clients).into_iter();
        // The clients end here.
        let mut leases: BTreeMap<usize, Option<Lease>> = clients
            .map(|(place, client)| (place, client.lease()))
            .collect();
        let before = std::mem::replace(&mut self.cards, cards);
        let mut netlink = link::open().map_err(failed("open a socket", "the network"))?;
        let mut done = Ok(());
        let mut jobs = Vec::new();
        for (place, card) in self.cards.cards.iter().enumerate() {
            let Some(link) = links.get(place) else {
                done = done.and(Err(NetworkError::NoCard(place)));
                continue;
            };
            let card = usable(card, link);
            let old = before.cards.get(place).map(|old| usable(old, link));
            match begin(&mut netlink, &card, old.as_ref(), link) {
                Ok(changes) => jobs.push(Job {
                    card,
                    place,
                    link: link.clone(),
                    changes,
                }),
                Err(error) => done = done.and(Err(error)),
            }
        }
        between();
        for job in &jobs {
            done = done.and(job.run(&mut netlink));
        }
        for job in jobs.iter().filter(|job| job.card.dhcp) {
            let plan = Plan {
                link: job.link.clone(),
                hostname: hostname.to_owned(),
                // A card that became another has no address any more.
                known: leases.remove(&job.place).flatten().filter(|_| !job.changes),
                second,
            };
            let (card, place, link) = (job.card.clone(), job.place, job.link.clone());
            let apply = move |old: Option<&Lease>, new: Option<&Lease>| {
                if let Err(error) = apply_lease(&card, place, &link, old, new) {
                    say(&chain(&error));
                }
            };
            match Client::start(plan, apply, told.clone()) {
                Ok(client) => drop(self.clients.insert(job.place, client)),
                Err(source) => {
                    let error = failed("ask by DHCP", &job.link.name)(source);
                    done = done.and(Err(error));
                }
            }
        }
        announce::start(jobs.into_iter().map(|job| announce::Own {
            addresses: ips(&job.card).collect(),
            link: job.link,
        }));
        done
    }

    /// The cards as they are now, with what servers have given.
    pub fn cards(&self) -> Cards {
        let mut cards = self.cards.clone();
        for (place, client) in &self.clients {
            let lease = client.lease();
            if let Some(card) = cards.cards.get_mut(*place) {
                *card = with_lease(card, lease.as_ref());
            }
            if let Some(lease) = lease {
                cards.add_names(lease.dns.into_iter().map(IpAddr::V4), lease.search);
            }
        }
        cards
    }

    /// One for each card that asks for an address.
    pub fn waiters(&self) -> Vec<Waiter> {
        self.clients.values().map(Client::waiter).collect()
    }
}

/// A card without IPv6 where the kernel has none, or the guest has switched it off for the card.
fn usable(card: &Card, link: &Link) -> Card {
    let mut card = card.clone();
    let path = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", link.name);
    let has_ipv6 = fs::read(path).is_ok_and(|value| value.starts_with(b"0"));
    if !has_ipv6 {
        card.addresses.retain(|subnet| subnet.ip.is_ipv4());
        card.ways.retain(Way::is_ipv4);
    }
    card
}

fn ips(card: &Card) -> impl Iterator<Item = IpAddr> {
    card.addresses.iter().map(|subnet| subnet.ip)
}

/// A card with what a server has given for it; what the host says comes first.
fn with_lease(card: &Card, lease: Option<&Lease>) -> Card {
    let mut card = card.clone();
    let Some(lease) = lease else { return card };
    card.addresses.insert(0, lease.address);
    let has_way_out = card
        .ways
        .iter()
        .any(|way| way.destination.is_none() && way.is_ipv4());
    let given = lease.ways.iter();
    let given = given.filter(|way| way.destination.is_some() || !has_way_out);
    card.ways.extend(given);
    card.mtu = card.mtu.or(lease.mtu);
    card
}

/// Makes a card what a server says now; `old` is what it said before.
fn apply_lease(
    card: &Card,
    place: usize,
    link: &Link,
    old: Option<&Lease>,
    new: Option<&Lease>,
) -> Result<(), NetworkError> {
    let said = |lease: &Lease| (lease.address, lease.ways.clone());
    let changes = old.is_some() && old.map(said) != new.map(said);
    let mut netlink = link::open().map_err(failed("open a socket", &link.name))?;
    if changes {
        link::set_up(&mut netlink, link.index, false)
            .map_err(failed("lower the link", &link.name))?;
    }
    let card = with_lease(card, new);
    let addresses = ips(&card).collect();
    let job = Job {
        card,
        place,
        link: link.clone(),
        changes,
    };
    job.run(&mut netlink)?;
    announce::start(std::iter::once(announce::Own {
        addresses,
        link: job.link,
    }));
    Ok(())
}

/// Tells whether a link becomes another one, and lowers it then.
fn begin(
    netlink: &mut Netlink,
    card: &Card,
    old: Option<&Card>,
    link: &Link,
) -> Result<bool, NetworkError> {
    let state = link::state(netlink, link.index).map_err(failed("read the state", &link.name))?;
    let has =
        link::addresses(netlink, link.index).map_err(failed("list the addresses", &link.name))?;
    let other_mac = card.mac.is_some_and(|mac| mac != state.mac);
    let other_plan = old.is_some_and(|old| {
        (&old.addresses, &old.ways, old.dhcp) != (&card.addresses, &card.ways, card.dhcp)
    });
    let lacks = card.addresses.iter().any(|subnet| !has.contains(subnet));
    let changes = other_mac || other_plan || lacks || !state.is_up;
    if changes && state.is_up {
        link::set_up(netlink, link.index, false).map_err(failed("lower the link", &link.name))?;
    }
    Ok(changes)
}

impl Job {
    fn run(&self, netlink: &mut Netlink) -> Result<(), NetworkError> {
        let Self { card, link, .. } = self;
        let (index, name) = (link.index, link.name.as_str());
        let is_static = !card.addresses.is_empty();
        if is_static {
            quiet(name);
        }
        if self.changes {
            if let Some(mac) = card.mac {
                link::set_mac(netlink, index, mac)
                    .map_err(failed("set the hardware address", name))?;
            }
            let old =
                link::addresses(netlink, index).map_err(failed("list the addresses", name))?;
            for subnet in old.iter().filter(|subnet| !card.addresses.contains(subnet)) {
                link::remove_address(netlink, index, *subnet)
                    .map_err(failed("remove an address", name))?;
            }
        }
        if let Some(mtu) = card.mtu {
            link::set_mtu(netlink, index, mtu).map_err(failed("set the MTU", name))?;
        }
        for subnet in &card.addresses {
            link::add_address(netlink, index, *subnet).map_err(failed("set the address", name))?;
        }
        link::set_up(netlink, index, true).map_err(failed("raise the link", name))?;
        if !self.changes {
            link::forget_neighbours(netlink, index).map_err(failed("forget neighbours", name))?;
        }
        routes(netlink, card, link, self.place)
    }
}

/// Sets the routes of a card that is up.
fn routes(
    netlink: &mut Netlink,
    card: &Card,
    link: &Link,
    place: usize,
) -> Result<(), NetworkError> {
    let step = METRIC_STEP.saturating_mul(u32::try_from(place).unwrap_or(u32::MAX));
    for way in &card.ways {
        let metric = match way.is_ipv4() {
            true => step,
            false => METRIC6.saturating_add(step),
        };
        // A router outside of all networks of the card is on its link all the same: the host says so.
        let on_link = way.via.is_some_and(|via| {
            let link_local = matches!(via, IpAddr::V6(ip) if ip.is_unicast_link_local());
            !link_local && !card.addresses.iter().any(|subnet| subnet.holds(via))
        });
        link::add_route(netlink, link.index, way, metric, on_link)
            .map_err(failed("set a route", &link.name))?;
    }
    Ok(())
}

/// Makes a card keep to what it is told: no addresses and routes of router advertisements, and no wait for somebody else who
/// has its address. A kernel without IPv6 has no such files.
fn quiet(name: &str) {
    for (key, value) in [("accept_ra", "0"), ("autoconf", "0"), ("accept_dad", "0")] {
        let path = format!("/proc/sys/net/ipv6/conf/{name}/{key}");
        if let Err(error) = fs::write(&path, value)
            && error.kind() != io::ErrorKind::NotFound
        {
            say(&format!("cannot write {path}: {error}"));
        }
    }
}

#[cfg(test)]
mod tests;
