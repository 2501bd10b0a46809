//! Cards in network namespaces of their own, with servers on the other end of a link.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use aerie_protocol::message::{Nic, Route};

use super::*;
use crate::test_folder::TestFolder;
use crate::test_network::{Other, alone, ip};

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

fn set(
    network: &mut Network,
    cards: &Cards,
    links: &[Link],
    between: impl FnOnce(),
) -> Result<(), NetworkError> {
    network.set_links(cards.clone(), links, "web", SECOND, between, || {})
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

        set(&mut Network::default(), &cards(&[full()]), &[link], || {}).unwrap();

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
            let mut network = Network::default();
            set(&mut network, &mother, &link, || {}).unwrap();
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

            set(&mut network, &cards(&[child]), &link, || {
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
            let mut network = Network::default();
            set(&mut network, &same, &link, || {}).unwrap();
            ip("addr add 10.42.0.99/24 dev one");
            ip("route add 172.30.0.0/16 via 10.42.0.8");
            ip("route del 172.20.0.0/16");
            ip("neigh add 10.42.0.1 lladdr 02:00:00:00:00:01 dev one nud reachable");
            ip("neigh add 10.42.0.9 lladdr 02:00:00:00:00:09 dev one nud permanent");
            let mut was_up = false;

            set(&mut network, &same, &link, || {
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

        set(&mut Network::default(), &cards(&[full()]), &[link], || {}).unwrap();

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
fn a_guest_without_ipv6_has_the_rest() {
    alone(&format!("{HERE}a_guest_without_ipv6_has_the_rest"), || {
        let link = [pair("one")];
        fs::write("/proc/sys/net/ipv6/conf/one/disable_ipv6", "1").unwrap();
        let mut network = Network::default();

        for whenever in ["first", "again"] {
            let mut was_up = false;
            set(&mut network, &cards(&[full()]), &link, || {
                was_up = ip("link show one").contains("state UP");
            })
            .unwrap();

            assert_eq!(was_up, whenever == "again");
            assert_eq!(addresses("one"), ["10.42.0.5/24"]);
            assert!(ip("route show").contains("default via 10.42.0.1 dev one"));
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

        let done = set(&mut Network::default(), &all, &links, || {});

        assert!(matches!(done, Err(NetworkError::NoCard(3))), "{done:?}");
        assert_eq!(addresses("two"), ["10.43.0.5/32", "fd43::5/64"]);
        assert_eq!(addresses("three"), [""; 0]);
        assert!(ip("link show three").contains("UP"));
        let routes = lines("route show").join("\n");
        assert!(
            routes.contains("default via 10.42.0.1 dev one proto static\n")
                && routes.contains("default via 10.43.0.1 dev two proto static metric 100 onlink"),
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

            let done = set(
                &mut Network::default(),
                &cards(&[impossible, second]),
                &links,
                || {},
            );

            let said = done.unwrap_err().to_string();
            assert_eq!(said, "cannot set the address of one");
            assert_eq!(addresses("two"), ["10.43.0.5/24"]);
        },
    );
}

/// A second of the clients here: what a server gives for 60 s ends after 1.2 s.
const SHORT: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(20);

fn asking() -> Cards {
    cards(&[Nic {
        mac: text("02:00:00:00:00:05"),
        dhcp: true,
        ..Nic::default()
    }])
}

/// A link whose other end is in another namespace, at 10.42.0.1.
fn pair_of_namespaces() -> (Link, Other) {
    let (link, other) = (pair("one"), Other::new());
    ip(&format!("link set one-host netns {}", other.pid()));
    other.ip("link set one-host up");
    other.ip("addr add 10.42.0.1/24 dev one-host");
    other.ip("route add 255.255.255.255/32 dev one-host");
    (link, other)
}

/// Sets the cards and waits for the first lease; counts the news of it.
fn ask(network: &mut Network, cards: &Cards, link: &Link) -> Arc<AtomicUsize> {
    let told = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&told);
    let tell = move || {
        count.fetch_add(1, Ordering::SeqCst);
    };
    let links = [link.clone()];
    network
        .set_links(cards.clone(), &links, "web", SHORT, || {}, tell)
        .unwrap();
    told
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn leased(network: &Network) {
    let deadline = Instant::now() + PATIENCE;
    assert!(network.waiters().iter().all(|waiter| waiter.wait(deadline)));
}

#[test]
fn a_card_is_what_a_common_server_says() {
    alone(
        &format!("{HERE}a_card_is_what_a_common_server_says"),
        || {
            let (link, other) = pair_of_namespaces();
            let folder = TestFolder::new();
            let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
            fs::write(at("leases"), "").unwrap();
            let plan = format!(
                "start 10.42.0.20\nend 10.42.0.29\ninterface one-host\nlease_file {}\npidfile {}\n\
             option subnet 255.255.255.0\noption router 10.42.0.1\noption dns 10.42.0.1 10.42.0.3\n\
             option domain one.aerie\noption search one.aerie two.aerie\noption mtu 1400\noption lease 60\n",
                at("leases"),
                at("pid")
            );
            fs::write(at("plan"), plan).unwrap();
            let mut server = other
                .command("busybox")
                .args(["udhcpd", "-f", "-a", "1", &at("plan")])
                .stderr(fs::File::create(at("said")).unwrap())
                .spawn()
                .unwrap();
            let acks = || {
                let said = fs::read_to_string(at("said")).unwrap();
                said.matches("sending ACK to 10.42.0.2").count()
            };
            let mut network = Network::default();

            let told = ask(&mut network, &asking(), &link);
            leased(&network);

            let first = addresses("one");
            assert!(
                first.len() == 1 && first[0].starts_with("10.42.0.2"),
                "{first:?}"
            );
            assert!(first[0].ends_with("/24"), "{first:?}");
            let routes = lines("route show").join("\n");
            assert!(routes.contains("default via 10.42.0.1 dev one"), "{routes}");
            assert!(ip("link show one").contains("mtu 1400"));
            let now = network.cards();
            assert_eq!(
                now.dns.iter().map(ToString::to_string).collect::<Vec<_>>(),
                ["10.42.0.1", "10.42.0.3"]
            );
            assert_eq!(now.search, ["one.aerie", "two.aerie"]);
            assert_eq!(now.own_addresses().len(), 1);
            // It is asked for again in time, and nothing changes.
            until("a renewal", || acks() >= 2);
            assert_eq!(told.load(Ordering::SeqCst), 1);
            assert_eq!(addresses("one"), first);

            // A guest that wakes as the same keeps its address and asks whether it holds.
            let before = acks();
            let told = ask(&mut network, &asking(), &link);
            assert_eq!(addresses("one"), first);
            until("a confirmation", || acks() > before);
            assert_eq!(told.load(Ordering::SeqCst), 0);

            // One that wakes as another gets another.
            let mut child = asking();
            child.cards[0].mac = Some([2, 0, 0, 0, 0, 6]);
            ask(&mut network, &child, &link);
            leased(&network);
            let second = addresses("one");
            assert!(second.len() == 1 && second != first, "{second:?}");

            // A lease that nobody makes longer ends, and with it the address.
            server.kill().unwrap();
            server.wait().unwrap();
            until("the end of the lease", || addresses("one").is_empty());
            assert!(network.cards().own_addresses().is_empty() && network.cards().dns.is_empty());
        },
    );
}

/// A server by hand: hears questions and sends whatever it is told to.
struct Server(UdpSocket);

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;
const NAK: u8 = 6;

impl Server {
    /// In another namespace, which this thread goes to.
    fn new(other: &Other) -> Self {
        other.enter();
        let socket = UdpSocket::bind("0.0.0.0:67").unwrap();
        socket.set_broadcast(true).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    /// The next question of this kind.
    fn hear(&self, kind: u8) -> Vec<u8> {
        loop {
            let mut bytes = vec![0; 2000];
            let count = self.0.recv(&mut bytes).unwrap();
            bytes.truncate(count);
            if bytes[240..243] == [53, 1, kind] {
                return bytes;
            }
        }
    }

    fn answer(question: &[u8], kind: u8, last: u8, options: &[u8]) -> Vec<u8> {
        let mut bytes = question[..240].to_vec();
        bytes[0] = 2;
        bytes[16..20].copy_from_slice(&[10, 42, 0, last]);
        bytes.extend([53, 1, kind, 54, 4, 10, 42, 0, 1, 51, 4, 0, 0, 0, 60]);
        bytes.extend([1, 4, 255, 255, 255, 0]);
        bytes.extend(options);
        bytes.push(255);
        bytes
    }

    fn send(&self, bytes: &[u8]) {
        self.0.send_to(bytes, "255.255.255.255:68").unwrap();
    }
}

#[test]
fn a_client_waits_for_an_answer_that_makes_sense_and_takes_a_refusal() {
    let name = "a_client_waits_for_an_answer_that_makes_sense_and_takes_a_refusal";
    alone(&format!("{HERE}{name}"), || {
        let (link, other) = pair_of_namespaces();
        let mut network = Network::default();
        let told = ask(&mut network, &asking(), &link);
        let server = std::thread::spawn(move || {
            let server = Server::new(&other);
            let question = server.hear(DISCOVER);
            for at in [0, 4, 28, 236] {
                let mut wrong = Server::answer(&question, OFFER, 66, &[]);
                wrong[at] ^= 1;
                server.send(&wrong);
            }
            server.send(&[]);
            server.send(&question);
            server.send(&[2; 1472]);
            server.send(&Server::answer(&question, ACK, 66, &[1, 4, 1, 0, 1, 0]));
            // An offer that is not kept.
            server.send(&Server::answer(&server.hear(DISCOVER), OFFER, 67, &[]));
            server.send(&Server::answer(&server.hear(REQUEST), NAK, 67, &[]));
            server.send(&Server::answer(&server.hear(DISCOVER), OFFER, 68, &[]));
            let router = [3, 4, 10, 42, 0, 1];
            server.send(&Server::answer(&server.hear(REQUEST), ACK, 68, &router));
            // Other routes for the same address.
            let routes = [121, 8, 24, 172, 20, 0, 10, 42, 0, 9];
            server.send(&Server::answer(&server.hear(REQUEST), ACK, 68, &routes));
            // The address is another's now.
            server.send(&Server::answer(&server.hear(REQUEST), NAK, 68, &[]));
            server.send(&Server::answer(&server.hear(DISCOVER), OFFER, 69, &[]));
            server.send(&Server::answer(&server.hear(REQUEST), ACK, 69, &[]));
            other
        });

        until("the last of the leases", || {
            addresses("one") == ["10.42.0.69/24"]
        });

        let other = server.join().unwrap();
        // 68, its routes, its end, 69.
        until("the news", || told.load(Ordering::SeqCst) >= 4);
        assert_eq!(
            lines("route show"),
            ["10.42.0.0/24 dev one proto kernel scope link src 10.42.0.69"]
        );
        drop(network);
        drop(other);
    });
}

#[test]
fn a_client_that_is_stopped_changes_nothing_any_more() {
    let name = "a_client_that_is_stopped_changes_nothing_any_more";
    alone(&format!("{HERE}{name}"), || {
        let (link, other) = pair_of_namespaces();
        let mut network = Network::default();
        ask(&mut network, &asking(), &link);
        let waiters = network.waiters();
        // Nobody answers, and nobody who boots waits longer than he wants.
        assert!(!waiters.iter().any(|waiter| waiter.wait(Instant::now())));
        let fixed = cards(&[Nic {
            address: text("10.42.0.5/24"),
            ..Nic::default()
        }]);

        ask(&mut network, &fixed, &link);

        // Whoever waits for it does not wait on.
        assert!(
            waiters
                .iter()
                .all(|waiter| waiter.wait(Instant::now() + PATIENCE))
        );
        until("the end of its thread", || {
            let threads = fs::read_dir("/proc/self/task").unwrap().flatten();
            let mut names =
                threads.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
            !names.any(|name| name == "dhcp\n")
        });
        assert_eq!(addresses("one"), ["10.42.0.5/24"]);
        assert!(network.waiters().is_empty());
        drop(other);
    });
}
