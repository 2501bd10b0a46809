//! Ports of the host that lead to guests.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    thread,
};

use serde_json::{Value, json};

use super::rig::{Controller, Helper, SOON};

/// A listener of the host's, taken over by the helper, and where it is.
fn published(controller: &mut Controller, id: &str, target: Option<SocketAddr>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    controller.listen(id, "tcp", target, listener);
    address
}

fn guest() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn client(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.set_write_timeout(Some(SOON)).unwrap();
    stream
}

fn accepted(guest: &TcpListener) -> TcpStream {
    let (stream, _) = guest.accept().unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.set_write_timeout(Some(SOON)).unwrap();
    stream
}

fn is_reset(mut stream: &TcpStream) -> bool {
    stream
        .read(&mut [0])
        .is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

fn reset(stream: TcpStream) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    let len = libc::socklen_t::try_from(size_of_val(&linger)).unwrap();
    // SAFETY: the value is as long as is said and lives through the call.
    let set = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            len,
        )
    };
    assert_eq!(set, 0);
}

/// The stats of one listener, once they are as wanted.
fn listener(controller: &mut Controller, id: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let start = std::time::Instant::now();
    loop {
        let stats = controller.stats();
        let listeners = stats["listeners"].as_array().unwrap();
        let found = listeners
            .iter()
            .find(|one| one["id"] == id)
            .cloned()
            .unwrap_or_default();
        if wanted(&found) {
            return found;
        }
        assert!(start.elapsed() < SOON, "{found}");
        thread::yield_now();
    }
}

#[test]
fn bytes_and_half_closes_pass_both_ways() {
    let (_helper, mut controller) = Helper::told(&[]);
    let (guest, target) = guest();
    let mut client = client(published(&mut controller, "p", Some(target)));
    let mut server = accepted(&guest);

    // The server speaks first.
    server.write_all(b"220 hello\n").unwrap();
    let mut greeting = [0; 10];
    client.read_exact(&mut greeting).unwrap();
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut all = String::new();
    server.read_to_string(&mut all).unwrap();
    assert_eq!(all, "question");
    server.write_all(b"answer").unwrap();
    drop(server);
    all.clear();
    client.read_to_string(&mut all).unwrap();
    assert_eq!(all, "answer");

    let stats = listener(&mut controller, "p", |one| one["connections"] == 0);
    let expected = json!({
        "id": "p", "proto": "tcp", "target": target, "connections": 0, "accepted": 1, "rx_bytes": 8, "tx_bytes": 16,
        "refused": 0, "note": null,
    });
    assert_eq!(stats, expected);
}

#[test]
fn much_passes_at_once_both_ways_and_a_slow_reader_holds_up_its_writer() {
    const BYTES: usize = 24 << 20;
    let (_helper, mut controller) = Helper::told(&[]);
    let (guest, target) = guest();
    let client = client(published(&mut controller, "p", Some(target)));
    let server = accepted(&guest);
    let pattern = |at: usize| u8::try_from(at * 31 % 251).unwrap();

    // Nobody reads yet: what is held on the way is bounded by the sockets' buffers and a little more.
    let mut writer = client.try_clone().unwrap();
    writer.set_nonblocking(true).unwrap();
    let mut written = 0;
    let start = std::time::Instant::now();
    let mut last = std::time::Instant::now();
    while last.elapsed().as_millis() < 300 {
        let chunk: Vec<u8> = (written..written + 16384).map(pattern).collect();
        match writer.write(&chunk) {
            Ok(len) => {
                written += len;
                last = std::time::Instant::now();
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        assert!(
            written < BYTES && start.elapsed() < SOON,
            "nothing holds the writer up"
        );
    }
    writer.set_nonblocking(false).unwrap();

    let threads = [
        thread::spawn(move || {
            let rest: Vec<u8> = (written..BYTES).map(pattern).collect();
            writer.write_all(&rest).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        }),
        {
            let mut server = server.try_clone().unwrap();
            thread::spawn(move || {
                let all: Vec<u8> = (0..BYTES).map(pattern).collect();
                server.write_all(&all).unwrap();
                server.shutdown(Shutdown::Write).unwrap();
            })
        },
    ];
    let readers = [client, server].map(|mut stream| {
        thread::spawn(move || {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            all.len() == BYTES
                && all
                    .iter()
                    .enumerate()
                    .all(|(at, byte)| *byte == u8::try_from(at * 31 % 251).unwrap())
        })
    });
    for thread in threads {
        thread.join().unwrap();
    }
    for reader in readers {
        assert!(reader.join().unwrap());
    }
    let stats = listener(&mut controller, "p", |one| one["connections"] == 0);
    assert_eq!(
        (&stats["rx_bytes"], &stats["tx_bytes"]),
        (&json!(BYTES), &json!(BYTES))
    );
}

#[test]
fn who_refuses_is_said_by_a_reset() {
    let (_helper, mut controller) = Helper::told(&[]);
    let nobody = guest().1;
    let refused = client(published(&mut controller, "refused", Some(nobody)));
    assert!(is_reset(&refused));
    let stats = listener(&mut controller, "refused", |one| one["refused"] == 1);
    assert_eq!(stats["note"], "the guest refused the connection");

    let alone = client(published(&mut controller, "alone", None));
    assert!(is_reset(&alone));
    let stats = listener(&mut controller, "alone", |one| one["refused"] == 1);
    assert_eq!(stats["note"], "nobody is behind the port");
}

#[test]
fn a_reset_of_either_side_becomes_one_on_the_other() {
    let (_helper, mut controller) = Helper::told(&[]);
    let (guest, target) = guest();
    let address = published(&mut controller, "p", Some(target));

    let (there, here) = (client(address), accepted(&guest));
    reset(here);
    assert!(is_reset(&there));

    let (there, here) = (client(address), accepted(&guest));
    reset(there);
    assert!(is_reset(&here));
    listener(&mut controller, "p", |one| one["connections"] == 0);
}

#[test]
fn another_target_is_for_the_next_connection_and_an_end_for_all() {
    let (_helper, mut controller) = Helper::told(&[]);
    let (first, target) = guest();
    let (second, other) = guest();
    let address = published(&mut controller, "p", Some(target));
    let mut old = client(address);
    let mut server = accepted(&first);

    let answer = controller.call(&json!({"type": "retarget", "id": "p", "target": other}));
    assert_eq!(answer, json!({"type": "retargeted", "id": "p"}));
    let new = client(address);
    let other_server = accepted(&second);
    old.write_all(b"x").unwrap();
    server.read_exact(&mut [0]).unwrap();

    controller.call(&json!({"type": "retarget", "id": "p", "target": null}));
    assert!(is_reset(&client(address)));

    let answer = controller.call(&json!({"type": "unlisten", "id": "p"}));
    assert_eq!(answer, json!({"type": "unlistened", "id": "p"}));
    for stream in [&old, &server, &new, &other_server] {
        assert!(is_reset(stream));
    }
    let refused = TcpStream::connect(address).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(controller.stats()["listeners"], json!([]));
}

#[test]
fn a_socket_that_the_daemon_holds_too_is_no_longer_served_after_its_end() {
    let (_helper, mut controller) = Helper::told(&[]);
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap();
    controller.listen("p", "tcp", None, held.try_clone().unwrap());
    let again = json!({"type": "listen", "id": "p", "proto": "tcp", "target": null});
    controller.say_with(&again, held.try_clone().unwrap());
    assert_eq!(controller.hear()["code"], "listener_exists");
    controller.call(&json!({"type": "unlisten", "id": "p"}));

    let mut client = client(address);
    held.set_nonblocking(false).unwrap();
    let mut ours = accepted(&held);
    ours.write_all(b"daemon").unwrap();
    let mut word = [0; 6];
    client.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"daemon");
}

#[test]
fn connections_and_listeners_outlive_the_daemon() {
    let (helper, mut controller) = Helper::told(&[]);
    let (guest, target) = guest();
    let address = published(&mut controller, "p", Some(target));
    let mut old = client(address);
    let mut server = accepted(&guest);

    drop(controller);

    old.write_all(b"still").unwrap();
    server.read_exact(&mut [0; 5]).unwrap();
    let mut new = client(address);
    accepted(&guest).write_all(b"new").unwrap();
    new.read_exact(&mut [0; 3]).unwrap();
    let mut next = helper.connect();
    let stats = listener(&mut next, "p", |one| one["accepted"] == 2);
    assert_eq!(
        (&stats["target"], &stats["rx_bytes"]),
        (&json!(target), &json!(5))
    );
}

/// Two thousand sockets do not fit in the usual soft limit of 1,024.
fn raise_descriptors() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` lives through both calls.
    let set = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit)
    };
    assert_eq!(set, 0);
}

#[test]
fn more_connections_than_a_port_may_have_are_reset_and_said() {
    raise_descriptors();
    let (_helper, mut controller) = Helper::told(&[]);
    let (guest, target) = guest();
    let address = published(&mut controller, "p", Some(target));
    let accepting = thread::spawn(move || {
        (0..1024)
            .map(|_| guest.accept().unwrap().0)
            .collect::<Vec<_>>()
    });
    let clients: Vec<_> = (0..1024).map(|_| client(address)).collect();
    let servers = accepting.join().unwrap();
    listener(&mut controller, "p", |one| one["connections"] == 1024);

    assert!(is_reset(&client(address)));

    let stats = listener(&mut controller, "p", |one| one["refused"] == 1);
    assert_eq!(
        stats["note"],
        "the port has as many connections as it may have"
    );
    drop((clients, servers));
    listener(&mut controller, "p", |one| one["connections"] == 0);
}

#[test]
fn datagrams_find_their_clients_again() {
    let (_helper, mut controller) = Helper::told(&[]);
    let guest = UdpSocket::bind("127.0.0.1:0").unwrap();
    guest.set_read_timeout(Some(SOON)).unwrap();
    let published = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = published.local_addr().unwrap();
    controller.listen("u", "udp", Some(guest.local_addr().unwrap()), published);
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            client.connect(address).unwrap();
            client.set_read_timeout(Some(SOON)).unwrap();
            client
        })
        .collect();

    let mut came = Vec::new();
    for (number, client) in (0..).zip(&clients) {
        client.send(&[number; 1000]).unwrap();
        let mut bytes = [0; 2000];
        let (len, from) = guest.recv_from(&mut bytes).unwrap();
        came.push((bytes[..len].to_vec(), from));
    }
    for (bytes, from) in came.iter().rev() {
        guest.send_to(&bytes[..10], from).unwrap();
    }

    for (number, client) in (0u8..).zip(&clients) {
        let mut bytes = [0; 2000];
        let len = client.recv(&mut bytes).unwrap();
        assert_eq!(bytes[..len], [number; 10]);
    }
    let stats = listener(&mut controller, "u", |one| one["tx_bytes"] == 30);
    assert_eq!(
        (&stats["connections"], &stats["rx_bytes"]),
        (&json!(3), &json!(3000))
    );

    // A guest that is gone, and one that came in its place.
    drop(guest);
    clients[0].send(b"x").unwrap();
    listener(&mut controller, "u", |one| {
        one["refused"] == 1 && one["connections"] == 2
    });
    let next = UdpSocket::bind("127.0.0.1:0").unwrap();
    next.set_read_timeout(Some(SOON)).unwrap();
    controller.call(&json!({"type": "retarget", "id": "u", "target": next.local_addr().unwrap()}));
    clients[1].send(b"again").unwrap();
    assert_eq!(next.recv(&mut [0; 10]).unwrap(), 5);
}
