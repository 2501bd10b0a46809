//! The loopback and the network cards, by rtnetlink: hardware addresses, MTU, addresses and routes of both families.
//!
//! A card is told once at boot, and again by every identity. One whose hardware address, addresses or routes become others is
//! lowered first, so that nothing of the guest's goes out under the name of another; one that stays as it is stays up, with
//! whatever the guest has added to it.

mod announce;
mod card;
mod connections;
mod error;
mod link;
mod netlink;
mod socket;

use std::fs;
use std::io;

pub use card::Cards;
pub use connections::reset as reset_connections;
pub use error::NetworkError;

use card::Card;
use error::failed;
use link::Link;
use netlink::Netlink;

/// The kernel's number of the loopback.
const LOOPBACK: u32 = 1;
/// The kernel's own metric of a route of IPv6; one of IPv4 is 0.
const METRIC6: u32 = 1024;
/// The metrics of one card are this far from those of the next: of two ways to everywhere, that of the first card is taken.
const METRIC_STEP: u32 = 100;

/// Brings the loopback up: without it not even 127.0.0.1 answers, and every port proxy goes there.
///
/// # Errors
/// The kernel's refusal.
pub fn loopback() -> Result<(), NetworkError> {
    let set = || link::set_up(&mut link::open()?, LOOPBACK, true);
    set().map_err(failed("raise the link", "lo"))
}

/// A card with the link that it is, and whether that becomes another.
struct Job<'a> {
    card: &'a Card,
    place: u32,
    link: Link,
    changes: bool,
}

/// Sets and raises each card. `before` is what was set last, if something was; `between` runs while the cards that become
/// others are down, and the others are up.
///
/// # Errors
/// The first card that is not there or refuses, when all others are done.
pub fn apply(
    cards: &Cards,
    before: Option<&Cards>,
    between: impl FnOnce(),
) -> Result<(), NetworkError> {
    apply_to(cards, before, &link::cards(), between)
}

fn apply_to(
    cards: &Cards,
    before: Option<&Cards>,
    links: &[Link],
    between: impl FnOnce(),
) -> Result<(), NetworkError> {
    if cards.cards.is_empty() {
        return Ok(());
    }
    let mut netlink = link::open().map_err(failed("open a socket", "the network"))?;
    let mut done = Ok(());
    let mut jobs = Vec::new();
    for (index, card) in cards.cards.iter().enumerate() {
        let Some(link) = links.get(index) else {
            done = done.and(Err(NetworkError::NoCard(index)));
            continue;
        };
        let old = before.and_then(|before| before.cards.get(index));
        match begin(&mut netlink, card, old, link) {
            Ok(changes) => jobs.push(Job {
                card,
                place: u32::try_from(index).unwrap_or(u32::MAX),
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
    announce::start(jobs.into_iter().map(|job| announce::Own {
        addresses: job.card.addresses.iter().map(|subnet| subnet.ip).collect(),
        link: job.link,
    }));
    done
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

impl Job<'_> {
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
fn routes(netlink: &mut Netlink, card: &Card, link: &Link, place: u32) -> Result<(), NetworkError> {
    for way in &card.ways {
        let metric = match (way.is_ipv4(), place.saturating_mul(METRIC_STEP)) {
            (true, metric) => metric,
            (false, metric) => METRIC6.saturating_add(metric),
        };
        // A router outside of all networks of the card is on its link all the same: the host says so.
        let on_link = way.via.is_some_and(|via| {
            let link_local = matches!(via, std::net::IpAddr::V6(ip) if ip.is_unicast_link_local());
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
            crate::observe::console::say(&format!("cannot write {path}: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use aerie_protocol::message::{Nic, Route};

    use super::*;
    use crate::test_network::{alone, ip};

    const HERE: &str = "setup::network::tests::";

    fn text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    /// A card with everything.
    fn full() -> Nic {
        Nic {
            mac: text("02:00:00:00:00:05"),
            address: text("10.42.0.5/24"),
            gateway: text("10.42.0.1"),
            address6: text("fd42::5/64"),
            gateway6: text("fd42::1"),
            mtu: Some(1400),
            routes: vec![
                Route {
                    destination: "172.20.0.0/16".to_owned(),
                    via: text("10.42.0.7"),
                },
                Route {
                    destination: "fd77::/32".to_owned(),
                    via: text("fd42::7"),
                },
                Route {
                    destination: "172.21.0.0/16".to_owned(),
                    via: None,
                },
            ],
            ..Nic::default()
        }
    }

    fn cards(nics: &[Nic]) -> Cards {
        Cards::of(nics).unwrap()
    }

    /// `NAME`, whose other end `NAME-host` is up.
    fn pair(name: &str) -> Link {
        ip(&format!("link add {name} type veth peer name {name}-host"));
        ip(&format!("link set {name}-host up"));
        let listed = ip(&format!("-o link show {name}"));
        Link {
            index: listed.split(':').next().unwrap().parse().unwrap(),
            name: name.to_owned(),
        }
    }

    /// `ip`'s lines, sorted, without spaces at their ends.
    fn lines(words: &str) -> Vec<String> {
        let mut lines: Vec<String> = ip(words)
            .lines()
            .map(|line| line.trim().to_owned())
            .collect();
        lines.sort();
        lines
    }

    fn addresses(name: &str) -> Vec<String> {
        let listed = ip(&format!("-o addr show {name} scope global"));
        let mut found: Vec<String> = listed
            .lines()
            .map(|line| {
                assert!(!line.contains("tentative"), "{line}");
                line.split_ascii_whitespace().nth(3).unwrap().to_owned()
            })
            .collect();
        found.sort();
        found
    }

    #[test]
    fn a_card_is_set_whole() {
        alone(&format!("{HERE}a_card_is_set_whole"), || {
            let link = pair("one");

            apply_to(&cards(&[full()]), None, &[link], || {}).unwrap();

            let shown = ip("link show one");
            assert!(
                shown.contains("mtu 1400") && shown.contains("02:00:00:00:00:05"),
                "{shown}"
            );
            assert_eq!(addresses("one"), ["10.42.0.5/24", "fd42::5/64"]);
            assert!(ip("-4 addr show one").contains("brd 10.42.0.255"));
            assert_eq!(
                lines("route show"),
                [
                    "10.42.0.0/24 dev one proto kernel scope link src 10.42.0.5",
                    "172.20.0.0/16 via 10.42.0.7 dev one proto static",
                    "172.21.0.0/16 dev one proto static scope link",
                    "default via 10.42.0.1 dev one proto static",
                ]
            );
            let routes = lines("-6 route show").join("\n");
            assert!(
                routes.contains("default via fd42::1 dev one proto static metric 1024"),
                "{routes}"
            );
            assert!(
                routes.contains("fd77::/32 via fd42::7 dev one proto static metric 1024"),
                "{routes}"
            );
            assert_eq!(
                fs::read_to_string("/proc/sys/net/ipv6/conf/one/accept_ra").unwrap(),
                "0\n"
            );
        });
    }

    #[test]
    fn a_card_that_becomes_another_keeps_nothing_of_the_first() {
        alone(
            &format!("{HERE}a_card_that_becomes_another_keeps_nothing_of_the_first"),
            || {
                let link = [pair("one")];
                let mother = cards(&[full()]);
                apply_to(&mother, None, &link, || {}).unwrap();
                ip("addr add 10.42.0.99/24 dev one");
                ip("addr add fd42::99/64 dev one");
                ip("route add 172.30.0.0/16 via 10.42.0.8");
                ip("neigh add 10.42.0.1 lladdr 02:00:00:00:00:01 dev one nud reachable");
                let child = Nic {
                    mac: text("02:00:00:00:00:06"),
                    address: text("10.42.0.6/24"),
                    gateway: text("10.42.0.1"),
                    address6: text("fd42::6/64"),
                    ..Nic::default()
                };
                let mut was_down = false;

                apply_to(&cards(&[child]), Some(&mother), &link, || {
                    was_down = ip("link show one").contains("state DOWN");
                })
                .unwrap();

                assert!(was_down);
                assert!(ip("link show one").contains("02:00:00:00:00:06"));
                assert_eq!(addresses("one"), ["10.42.0.6/24", "fd42::6/64"]);
                assert_eq!(
                    lines("route show"),
                    [
                        "10.42.0.0/24 dev one proto kernel scope link src 10.42.0.6",
                        "default via 10.42.0.1 dev one proto static",
                    ]
                );
                assert!(!ip("-6 route show").contains("default"));
                assert!(!ip("neigh show dev one").contains("02:00:00:00:00:01"));
            },
        );
    }

    #[test]
    fn a_card_that_stays_keeps_what_the_guest_has_added() {
        alone(
            &format!("{HERE}a_card_that_stays_keeps_what_the_guest_has_added"),
            || {
                let link = [pair("one")];
                let same = cards(&[full()]);
                apply_to(&same, None, &link, || {}).unwrap();
                ip("addr add 10.42.0.99/24 dev one");
                ip("route add 172.30.0.0/16 via 10.42.0.8");
                ip("route del 172.20.0.0/16");
                ip("neigh add 10.42.0.1 lladdr 02:00:00:00:00:01 dev one nud reachable");
                ip("neigh add 10.42.0.9 lladdr 02:00:00:00:00:09 dev one nud permanent");
                let mut was_up = false;

                apply_to(&same, Some(&same), &link, || {
                    was_up = !ip("link show one").contains("state DOWN");
                })
                .unwrap();

                assert!(was_up);
                assert_eq!(
                    addresses("one"),
                    ["10.42.0.5/24", "10.42.0.99/24", "fd42::5/64"]
                );
                let routes = lines("route show").join("\n");
                assert!(routes.contains("172.30.0.0/16 via 10.42.0.8"), "{routes}");
                assert!(routes.contains("172.20.0.0/16 via 10.42.0.7"), "{routes}");
                let neighbours = ip("neigh show dev one");
                assert!(!neighbours.contains("02:00:00:00:00:01"), "{neighbours}");
                assert!(neighbours.contains("02:00:00:00:00:09"), "{neighbours}");
            },
        );
    }

    #[test]
    fn a_card_without_a_carrier_is_set_for_the_moment_when_it_has_one() {
        let name = "a_card_without_a_carrier_is_set_for_the_moment_when_it_has_one";
        alone(&format!("{HERE}{name}"), || {
            let link = pair("one");
            ip("link set one-host down");

            apply_to(&cards(&[full()]), None, &[link], || {}).unwrap();

            for state in ["down", "up"] {
                ip(&format!("link set one-host {state}"));
                assert_eq!(addresses("one"), ["10.42.0.5/24", "fd42::5/64"], "{state}");
                let routes = lines("route show").join("\n");
                assert!(routes.contains("default via 10.42.0.1 dev one"), "{routes}");
                let routes = lines("-6 route show").join("\n");
                assert!(routes.contains("default via fd42::1 dev one"), "{routes}");
                assert!(routes.contains("fd77::/32 via fd42::7 dev one"), "{routes}");
            }
        });
    }

    #[test]
    fn of_several_cards_each_has_its_own_and_the_first_is_the_way_out() {
        let name = "of_several_cards_each_has_its_own_and_the_first_is_the_way_out";
        alone(&format!("{HERE}{name}"), || {
            let links = [pair("one"), pair("two"), pair("three")];
            let second = Nic {
                address: text("10.43.0.5/32"),
                gateway: text("10.43.0.1"),
                address6: text("fd43::5/64"),
                gateway6: text("fe80::1"),
                ..Nic::default()
            };
            let all = cards(&[full(), second, Nic::default(), Nic::default()]);

            let done = apply_to(&all, None, &links, || {});

            assert!(matches!(done, Err(NetworkError::NoCard(3))), "{done:?}");
            assert_eq!(addresses("two"), ["10.43.0.5/32", "fd43::5/64"]);
            assert_eq!(addresses("three"), [""; 0]);
            assert!(ip("link show three").contains("UP"));
            let routes = lines("route show").join("\n");
            assert!(
                routes.contains("default via 10.42.0.1 dev one proto static\n")
                    && routes
                        .contains("default via 10.43.0.1 dev two proto static metric 100 onlink"),
                "{routes}"
            );
            let routes = lines("-6 route show").join("\n");
            assert!(
                routes.contains("default via fd42::1 dev one proto static metric 1024")
                    && routes.contains("default via fe80::1 dev two proto static metric 1124"),
                "{routes}"
            );
        });
    }

    #[test]
    fn a_card_that_refuses_is_named_and_the_others_are_set() {
        alone(
            &format!("{HERE}a_card_that_refuses_is_named_and_the_others_are_set"),
            || {
                let links = [pair("one"), pair("two")];
                ip("link set one addr 02:00:00:00:00:77");
                // No IPv6 on a link of so small packets.
                let impossible = Nic {
                    mtu: Some(1000),
                    ..full()
                };
                let second = Nic {
                    address: text("10.43.0.5/24"),
                    ..Nic::default()
                };

                let done = apply_to(&cards(&[impossible, second]), None, &links, || {});

                let said = done.unwrap_err().to_string();
                assert_eq!(said, "cannot set the address of one");
                assert_eq!(addresses("two"), ["10.43.0.5/24"]);
            },
        );
    }
}
