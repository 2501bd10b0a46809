//! Boots real guests and speaks with them. Thin on purpose: the whole product is tested on guests elsewhere; this proves that
//! kestrel alone keeps its side of the protocol.
//!
//! Needs, by environment (else every test says what is missing and passes over):
//! `AERIE_TEST_KERNEL` a boot image, `AERIE_TEST_MODULES` its `lib/modules/VERSION` folder, `AERIE_TEST_KESTREL` the static
//! binary, `AERIE_TEST_WING` the static wing (for `wing vsock`), `AERIE_TEST_LOOPBACK` the static example `loopback`; and `qemu-system-x86_64`, `mkfs.erofs`, `mke2fs`, `e2fsck`,
//! `cpio`, `xz`, `busybox` (static), `tar` on the machine.
#![allow(
    clippy::unwrap_used,
    reason = "a test whose guest does not answer has failed"
)]

mod bed;

use std::ffi::OsString;
use std::time::{Duration, Instant};

use aerie_protocol::message::{
    Attach, CopyIn, CopyInDone, CopyOut, CopyOutOk, Empty, EventKind, Exec, FEATURES, FileSpec,
    FileStat, Identity, IdentityOk, List, ListOk, Logs, Metrics, Network, NetworkMode, Nic, Owner,
    Proxy, Route, Stat, Workload,
};
use aerie_protocol::{Frame, Kind, encode, parse_json};

use bed::{Bed, Got, Setup, Talk, exec_default, finish, program};

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

fn shell_exec(script: &str) -> Exec {
    Exec {
        argv: words(&["sh", "-c", script]),
        ..exec_default()
    }
}

fn workload(script: &str) -> Workload {
    Workload {
        argv: words(&["sh", "-c", script]),
        env: exec_default().env,
        cwd: None,
        user: None,
        tty: false,
        hold: false,
        stop_signal: 15,
        cols: None,
        rows: None,
    }
}

fn ready(bed: &mut Bed) {
    let event = bed.event();
    assert!(matches!(event.kind, EventKind::Ready { .. }), "{event:?}");
}

#[test]
fn a_guest_boots_runs_commands_and_powers_off() {
    let Some(mut bed) = Bed::boot(Setup::default()) else {
        return;
    };
    let event = bed.event();
    let EventKind::Ready { boot_ms } = event.kind else {
        panic!("{event:?}");
    };

    let done = bed.exec(&shell_exec("echo out; echo err >&2; hostname; exit 7"));
    assert_eq!(done.stdout, b"out\nguest\n");
    assert_eq!(done.stderr, b"err\n");
    assert_eq!(done.exit.code, 7);

    let code = |argv: &[&str]| {
        bed.exec(&Exec {
            argv: words(argv),
            ..exec_default()
        })
        .exit
        .code
    };
    assert_eq!(code(&["no-such-program"]), 127);
    assert_eq!(code(&["/etc/passwd"]), 126);
    assert_eq!(code(&["sh", "-c", "kill -9 $$"]), 137);

    let killed = Instant::now();
    let done = bed.exec(&Exec {
        timeout_ms: Some(500),
        ..shell_exec("sleep 100 & sleep 100")
    });
    assert_eq!(done.exit.code, 124);
    assert!(killed.elapsed() < Duration::from_secs(20));
    assert_eq!(
        bed.shell("ps | grep '[s]leep 100'"),
        "",
        "its background job lives on"
    );

    let done = bed.exec(&Exec {
        user: Some("web".to_owned()),
        cwd: Some("/tmp".to_owned()),
        ..shell_exec("id; pwd; echo $HOME; cat /proc/self/oom_score_adj; echo x > /dev/stdout")
    });
    assert_eq!(
        String::from_utf8(done.stdout).unwrap(),
        "uid=33(web) gid=33(web) groups=4(adm)\n/tmp\n/var/www\n0\nx\n"
    );
    let mut talk = bed.open(
        Kind::Exec,
        &Exec {
            user: Some("nobody-here".to_owned()),
            ..shell_exec("true")
        },
    );
    assert!(matches!(talk.next(), Got::Error(body) if body.contains("not_found")));

    // The root is the image's, writable, of the promised size, and nothing of the initramfs is in sight.
    assert_eq!(
        bed.shell(
            "touch /x && cat /etc/machine-id && ls /init /modules /k 2>/dev/null; stat -c %a /"
        ),
        "0123456789abcdef0123456789abcdef\n755\n"
    );
    let size: u64 = bed
        .shell("df -k / | tail -1 | awk '{print $2}'")
        .trim()
        .parse()
        .unwrap();
    assert!((900_000..1_100_000).contains(&size), "{size} KiB");

    let resident = bed.shell("awk '/VmRSS/{print $2}' /proc/1/status");
    let resident: u64 = resident.trim().parse().unwrap();
    eprintln!("ready after {boot_ms} ms, {resident} KiB resident");
    assert!(resident <= 2048, "{resident} KiB");

    bed.stop(1000);
    bed.wait_off();
    assert!(bed.overlay_is_clean());
}

#[test]
fn bytes_go_both_ways_and_none_is_lost() {
    let Some(mut bed) = Bed::boot(Setup::default()) else {
        return;
    };
    ready(&mut bed);

    // stdin: more than two windows, binary, echoed.
    let sent: Vec<u8> = (0..700_000_u32)
        .map(|n| (n * 7 % 251).to_le_bytes()[0])
        .collect();
    let mut talk = bed.open(
        Kind::Exec,
        &Exec {
            argv: words(&["cat"]),
            stdin: true,
            ..exec_default()
        },
    );
    assert!(matches!(talk.next(), Got::Ok(_)));
    let echoed = talk.feed(&sent);
    assert_eq!(echoed.stdout.len(), sent.len());
    assert!(echoed.stdout == sent, "echoed bytes differ");
    assert_eq!(echoed.exit.code, 0);

    // Output at the very end, with a background child that holds the pipe open.
    let began = Instant::now();
    let done = bed.exec(&shell_exec("sleep 300 & head -c 60000 /dev/zero; exit 3"));
    assert_eq!((done.stdout.len(), done.exit.code), (60_000, 3));
    assert!(began.elapsed() < Duration::from_secs(60));

    // A host that reads nothing for a while loses nothing.
    let mut talk = bed.open(
        Kind::Exec,
        &shell_exec("head -c 3000000 /dev/zero; echo done >&2"),
    );
    std::thread::sleep(Duration::from_millis(500));
    assert!(matches!(talk.next(), Got::Ok(_)));
    let done = finish(&mut talk);
    assert_eq!(
        (done.stdout.len(), &done.stderr[..]),
        (3_000_000, &b"done\n"[..])
    );

    // A terminal: its size, a resize, what is typed, a signal.
    let mut talk = bed.open(
        Kind::Exec,
        &Exec {
            tty: true,
            stdin: true,
            cols: Some(100),
            rows: Some(30),
            ..shell_exec("stty size; trap 'stty size; exit 9' WINCH; trap 'echo int' INT; read x; echo got $x; while :; do sleep 0.1; done")
        },
    );
    assert!(matches!(talk.next(), Got::Ok(_)));
    talk.until("30 100\r\n");
    talk.send(&Frame::Stdin(b"typed\n"));
    talk.until("got typed\r\n");
    talk.send(&Frame::Signal(2));
    talk.until("int\r\n");
    talk.send(&Frame::Resize {
        columns: 90,
        rows: 20,
    });
    talk.until("20 90\r\n");
    assert_eq!(finish(&mut talk).exit.code, 9);

    // A host that goes away takes its process along, its jobs too.
    let mut talk = bed.open(
        Kind::Exec,
        &shell_exec("trap '' HUP; sleep 777 & sleep 777"),
    );
    assert!(matches!(talk.next(), Got::Ok(_)));
    drop(talk);
    bed.wait_for_shell("ps | grep '[s]leep 777'", "");

    // stdin beyond the window costs the conversation.
    let mut talk = bed.open(
        Kind::Exec,
        &Exec {
            stdin: true,
            ..shell_exec("sleep 100")
        },
    );
    assert!(matches!(talk.next(), Got::Ok(_)));
    for _ in 0..6 {
        talk.send(&Frame::Stdin(&[0; 65_536]));
    }
    let refused = loop {
        match talk.next() {
            // What fits the pipe is given back.
            Got::Window(_) => {}
            other => break other,
        }
    };
    assert!(matches!(refused, Got::Error(body) if body.contains("window_exceeded")));
}

#[test]
fn a_held_workload_starts_with_its_attach_and_its_end_ends_the_guest() {
    let held = Workload {
        hold: true,
        ..workload("cat; head -c 2000000 /dev/zero; echo err >&2; exit 7")
    };
    let Some(mut bed) = Bed::boot(Setup {
        workload: Some(held),
        ..Setup::default()
    }) else {
        return;
    };
    ready(&mut bed);
    let metrics: Metrics = bed.ask(Kind::Metrics, &Empty {});
    assert_eq!(metrics.workload.pid, None);

    let mut talk = bed.open(
        Kind::Attach,
        &Attach {
            stdin: true,
            replay: true,
            cols: None,
            rows: None,
        },
    );
    assert!(matches!(talk.next(), Got::Ok(body) if body == br#"{"tty":false,"released":true}"#));
    let started = bed.event();
    assert!(
        matches!(started.kind, EventKind::Started { .. }),
        "{started:?}"
    );
    let done = talk.feed(b"hello ");
    assert_eq!(done.stdout.len(), 2_000_006);
    assert!(done.stdout.starts_with(b"hello "));
    assert_eq!((&done.stderr[..], done.exit.code), (&b"err\n"[..], 7));

    // The daemon dies before it has acknowledged, and comes back: the exit is told again.
    let exited = EventKind::Exited {
        code: 7,
        signal: None,
        oom: false,
        message: None,
    };
    assert_eq!(bed.event_unacked().kind, exited);
    let open = bed.cut_session(2);
    assert_eq!(
        (open.secret.as_deref(), open.last_event),
        (Some(&*bed.secret), 3)
    );
    assert_eq!(bed.event().kind, exited);
    bed.wait_off();
}

#[test]
fn a_workload_is_logged_stopped_and_reported() {
    let Some(mut bed) = Bed::boot(Setup {
        workload: Some(workload(
            "trap 'echo bye; exit 5' TERM; echo hello; echo oops >&2; while :; do sleep 0.1; done",
        )),
        ..Setup::default()
    }) else {
        return;
    };
    let started = bed.event();
    assert!(
        matches!(started.kind, EventKind::Started { .. }),
        "{started:?}"
    );
    ready(&mut bed);

    let mut talk = bed.open(
        Kind::Logs,
        &Logs {
            from: 0,
            follow: true,
        },
    );
    assert!(matches!(talk.next(), Got::Ok(_)));
    let lines = [talk.log(), talk.log()];
    assert!(lines.contains(&(1, "hello\n".to_owned())), "{lines:?}");
    assert!(lines.contains(&(2, "oops\n".to_owned())), "{lines:?}");

    let mut attach = bed.open(
        Kind::Attach,
        &Attach {
            stdin: false,
            replay: true,
            cols: None,
            rows: None,
        },
    );
    assert!(matches!(attach.next(), Got::Ok(_)));
    assert!(bed.request("ping", |_| {}).ok);
    let unknown = bed.request("dance", |_| {});
    assert_eq!(unknown.code.as_deref(), Some("op_unknown"));
    assert!(bed.request("quiesce", |_| {}).ok);
    assert!(bed.request("thaw", |_| {}).ok);
    assert_eq!(bed.shell("echo x > /after && cat /after"), "x\n");

    bed.stop(20_000);
    assert_eq!(talk.log(), (1, "bye\n".to_owned()));
    assert!(matches!(talk.next(), Got::Eof));
    let done = finish(&mut attach);
    assert_eq!(done.stdout, b"hello\nbye\n");
    assert_eq!((&done.stderr[..], done.exit.code), (&b"oops\n"[..], 5));
    let event = bed.event();
    assert!(
        matches!(event.kind, EventKind::Exited { code: 5, .. }),
        "{event:?}"
    );
    bed.wait_off();
    assert!(bed.overlay_is_clean());
}

#[test]
fn the_power_button_stops_and_an_unwilling_workload_is_killed() {
    let Some(mut bed) = Bed::boot(Setup {
        workload: Some(workload("trap '' TERM; echo up; while :; do sleep 1; done")),
        grace_ms: 1000,
        ..Setup::default()
    }) else {
        return;
    };
    bed.event();
    ready(&mut bed);

    let mut talk = bed.open(
        Kind::Logs,
        &Logs {
            from: 0,
            follow: true,
        },
    );
    assert!(matches!(talk.next(), Got::Ok(_)));
    assert_eq!(talk.log(), (1, "up\n".to_owned()));
    bed.powerdown();

    assert_eq!(bed.event().kind, EventKind::Button);
    let event = bed.event();
    assert!(
        matches!(
            event.kind,
            EventKind::Exited {
                code: 137,
                signal: Some(9),
                oom: false,
                ..
            }
        ),
        "{event:?}"
    );
    bed.wait_off();
}

#[test]
fn a_workload_that_eats_the_memory_is_told_from_a_killed_one() {
    let Some(mut bed) = Bed::boot(Setup {
        workload: Some(workload("tail /dev/zero")),
        ..Setup::default()
    }) else {
        return;
    };
    bed.event();
    ready(&mut bed);

    let event = bed.event();

    assert!(
        matches!(
            event.kind,
            EventKind::Exited {
                code: 137,
                signal: Some(9),
                oom: true,
                ..
            }
        ),
        "{event:?}"
    );
    bed.wait_off();
}

#[test]
fn a_workload_that_is_not_there_is_reported_as_such() {
    let Some(mut bed) = Bed::boot(Setup {
        workload: Some(Workload {
            argv: words(&["/no/such/program"]),
            ..workload("")
        }),
        overlay_bytes: None,
        ..Setup::default()
    }) else {
        return;
    };

    let event = bed.event();
    assert!(
        matches!(event.kind, EventKind::Exited { code: 127, .. }),
        "{event:?}"
    );
    ready(&mut bed);
    bed.wait_off();
}

#[test]
fn a_guest_without_its_disk_says_so_and_powers_off() {
    let Some(mut bed) = Bed::boot(Setup {
        overlay_bytes: None,
        promise_overlay: true,
        ..Setup::default()
    }) else {
        return;
    };

    let event = bed.event();

    let expected = EventKind::Failed {
        stage: "root".to_owned(),
        message: "there is no disk with the serial \"overlay\"".to_owned(),
    };
    assert_eq!(event.kind, expected);
    bed.wait_off();
    assert!(bed.serial().contains("kestrel: root: there is no disk"));
}

#[test]
fn files_ports_and_numbers_of_the_guest_are_reached() {
    // Without an overlay disk: the changes are in memory.
    let Some(mut bed) = Bed::boot(Setup {
        overlay_bytes: None,
        ..Setup::default()
    }) else {
        return;
    };
    ready(&mut bed);

    let archive = bed
        .tar("mkdir d; head -c 400000 /dev/urandom > d/f; ln d/f d/g; ln -s f d/l; chmod 4750 d/f");
    let mut talk = bed.open(
        Kind::CopyIn,
        &CopyIn {
            path: "/srv/new".to_owned(),
            owner: Owner::Root,
            mode: None,
            archive: true,
        },
    );
    for part in archive.chunks(100_000) {
        talk.send(&Frame::Stdin(part));
    }
    talk.send(&Frame::Eof);
    let Got::Ok(body) = talk.next() else {
        panic!("no answer")
    };
    let done: CopyInDone = parse_json(&body).unwrap();
    assert_eq!((done.bytes, done.skipped), (400_000, 0));
    assert_eq!(
        bed.shell("cd /srv/new/d; stat -c '%a %u %h' f; readlink l"),
        "4750 0 2\nf\n"
    );

    let mut talk = bed.open(
        Kind::CopyOut,
        &CopyOut {
            path: "/srv/new/d".to_owned(),
            follow: false,
            sparse: false,
        },
    );
    let Got::Ok(body) = talk.next() else {
        panic!("no answer")
    };
    let ok: CopyOutOk = parse_json(&body).unwrap();
    assert!(ok.name == "d" && ok.is_dir);
    let mut back = Vec::new();
    loop {
        match talk.next() {
            Got::Stdout(bytes) => back.extend(bytes),
            Got::Eof => break,
            other => panic!("{other:?}"),
        }
    }
    bed.same_tree(&back, "d");

    let stat: FileStat = bed.ask(
        Kind::Stat,
        &Stat {
            path: "/srv/new/d/l".to_owned(),
            follow: false,
        },
    );
    assert_eq!(stat.link_target.as_deref(), Some("f"));
    let list: ListOk = bed.ask(
        Kind::List,
        &List {
            path: "/srv/new/d".to_owned(),
            limit: 2,
        },
    );
    assert!(list.entries.len() == 2 && list.truncated);

    let metrics: Metrics = bed.ask(Kind::Metrics, &Empty {});
    assert!(
        metrics.memory.total > 100 << 20 && metrics.processes > 1,
        "{metrics:?}"
    );
    assert_eq!(metrics.disks[0].mount, "/");

    assert_eq!(
        bed.shell("mkdir /www && echo page > /www/index.html && httpd -p 8080 -h /www && echo up"),
        "up\n"
    );
    let mut talk = bed.open(Kind::Proxy, &Proxy::Port { port: 8080 });
    assert!(matches!(talk.next(), Got::Ok(_)));
    talk.send(&Frame::Stdin(b"GET /index.html HTTP/1.0\r\n\r\n"));
    talk.send(&Frame::Eof);
    let mut answer = Vec::new();
    loop {
        match talk.next() {
            Got::Stdout(bytes) => answer.extend(bytes),
            Got::Eof => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(answer.ends_with(b"page\n"));
    let mut talk = bed.open(Kind::Proxy, &Proxy::Port { port: 1 });
    assert!(matches!(talk.next(), Got::Error(body) if body.contains("connection_refused")));

    let _: Empty = bed.ask(
        Kind::Identity,
        &Identity {
            hostname: "other".to_owned(),
            machine_id: "f".repeat(32),
            entropy: "00".repeat(32),
            time_ns: 2_000_000_000_000_000_000,
            network: None,
            nics: None,
        },
    );
    assert_eq!(
        bed.shell(
            "hostname; cat /etc/hostname /etc/machine-id; grep -c other /etc/hosts; date -u +%Y"
        ),
        format!("other\nother\n{}\n1\n2033\n", "f".repeat(32))
    );
}

#[test]
fn volumes_files_and_a_network_are_there_when_the_workload_starts() {
    let tty = Workload {
        tty: true,
        hold: true,
        user: Some("33:33".to_owned()),
        cwd: Some("/made/here".to_owned()),
        ..workload("pwd; id -u; stty size; cat /etc/secret; read x; echo got $x")
    };
    let Some(mut bed) = Bed::boot(Setup {
        workload: Some(tty),
        extras: true,
        files: vec![FileSpec {
            path: "/etc/secret".to_owned(),
            mode: 0o644,
            content_base64: "c2VjcmV0Cg==".to_owned(),
        }],
        ..Setup::default()
    }) else {
        return;
    };
    ready(&mut bed);

    assert_eq!(
        bed.shell(
            "echo kept > /data/x; cat /data/x; ls -d /data/base/bin; touch /data/base/x 2>&1"
        ),
        "kept\n/data/base/bin\ntouch: /data/base/x: Read-only file system\n"
    );
    assert_eq!(
        bed.shell("ip -4 addr show eth0 | grep -o 'inet [^ ]*'; ip route | grep default; cat /etc/resolv.conf"),
        "inet 10.0.2.15/24\ndefault via 10.0.2.2 dev eth0 \nnameserver 10.0.2.3\n"
    );
    // A restored guest is told the address of its own card, and keeps its way out.
    let identity = |mac: &str| Identity {
        hostname: "guest".to_owned(),
        machine_id: "f".repeat(32),
        entropy: "00".repeat(32),
        time_ns: 2_000_000_000_000_000_000,
        network: Some(Network {
            mode: NetworkMode::User,
            mac: Some(mac.to_owned()),
        }),
        nics: None,
    };
    let _: Empty = bed.ask(Kind::Identity, &identity("02:ae:00:00:00:09"));
    assert_eq!(
        bed.shell("cat /sys/class/net/eth0/address; ip -4 addr show eth0 | grep -o 'inet [^ ]*'; ip route | grep default"),
        "02:ae:00:00:00:09\ninet 10.0.2.15/24\ndefault via 10.0.2.2 dev eth0 \n"
    );
    // A list of cards, which later hosts send, comes before the one card of earlier ones.
    let listed = Identity {
        nics: Some(vec![Nic {
            mac: Some("02:ae:00:00:00:0a".to_owned()),
            address: Some("10.0.2.77/16".to_owned()),
            ..Nic::default()
        }]),
        ..identity("02:ae:00:00:00:09")
    };
    let _: Empty = bed.ask(Kind::Identity, &listed);
    assert_eq!(
        bed.shell("cat /sys/class/net/eth0/address; ip -4 addr show eth0 | grep -o 'inet [^ ]*'"),
        "02:ae:00:00:00:0a\ninet 10.0.2.77/16\n"
    );
    let mut talk = bed.open(Kind::Identity, &identity("ff:ff:ff:ff:ff:ff"));
    assert!(matches!(talk.next(), Got::Error(body) if body.contains("ff:ff")));
    let metrics: Metrics = bed.ask(Kind::Metrics, &Empty {});
    let data = metrics.disks.iter().find(|disk| disk.mount == "/data");
    assert!(data.unwrap().size > 200 << 20, "{metrics:?}");

    let attach = Attach {
        stdin: true,
        replay: false,
        cols: Some(70),
        rows: Some(20),
    };
    let mut talk = bed.open(Kind::Attach, &attach);
    assert!(matches!(talk.next(), Got::Ok(body) if body == br#"{"tty":true,"released":true}"#));
    talk.until("/made/here\r\n33\r\n20 70\r\nsecret\r\n");
    // A second typist is refused; the first may leave and come back.
    let mut second = bed.open(Kind::Attach, &attach);
    assert!(matches!(second.next(), Got::Error(body) if body.contains("busy")));
    drop(talk);
    let mut talk = bed.wait_for_attach(&attach);
    talk.send(&Frame::Stdin(b"more\n"));
    talk.until("got more\r\n");
    assert_eq!(finish(&mut talk).exit.code, 0);
    bed.event();
    bed.event();
    bed.wait_off();
}

#[test]
fn cards_are_set_asked_for_and_changed_and_connections_of_the_first_guest_end() {
    let text = |text: &str| Some(text.to_owned());
    let fixed = Nic {
        mac: text("02:ae:00:00:00:01"),
        address: text("10.0.2.15/24"),
        gateway: text("10.0.2.2"),
        address6: text("fd42::15/64"),
        gateway6: text("fd42::2"),
        mtu: Some(1400),
        routes: vec![Route {
            destination: "172.20.0.0/16".to_owned(),
            via: text("10.0.2.9"),
        }],
        dns: vec!["10.0.2.3".to_owned()],
        search: vec!["one.aerie".to_owned()],
        dhcp: false,
    };
    let asking = Nic {
        dhcp: true,
        ..Nic::default()
    };
    let Some(mut bed) = Bed::boot(Setup {
        // An echo that is no program of the guest's.
        cards: vec![
            (
                fixed.clone(),
                "user,restrict=on,ipv6-prefix=fd42::,ipv6-host=fd42::2,guestfwd=tcp:10.0.2.100:7-cmd:cat",
            ),
            (
                asking.clone(),
                "user,restrict=on,ipv6=off,net=10.9.0.0/24,dhcpstart=10.9.0.50,dnssearch=two.aerie",
            ),
        ],
        ..Setup::default()
    }) else {
        return;
    };
    ready(&mut bed);

    const ADDRESSES: &str = "for card in eth0 eth1; do ip addr show $card | grep 'scope global' | \
        grep -o 'inet6* [^ ]*'; done; ip addr show eth0 | grep tentative";
    const ROUTES: &str = "ip route | sort; ip -6 route | grep default";
    assert_eq!(
        bed.shell(ADDRESSES),
        "inet 10.0.2.15/24\ninet6 fd42::15/64\ninet 10.9.0.50/24\n"
    );
    assert_eq!(
        bed.shell(ROUTES),
        "10.0.2.0/24 dev eth0 scope link  src 10.0.2.15 \n10.9.0.0/24 dev eth1 scope link  src 10.9.0.50 \n\
         172.20.0.0/16 via 10.0.2.9 dev eth0 \ndefault via 10.0.2.2 dev eth0 \n\
         default via fd42::2 dev eth0  metric 1024 \n"
    );
    assert_eq!(
        bed.shell("cat /sys/class/net/eth0/mtu /etc/hosts /etc/resolv.conf"),
        "1400\n127.0.0.1 localhost\n10.0.2.15\tguest\nfd42::15\tguest\n\
         search one.aerie two.aerie\nnameserver 10.0.2.3\n"
    );
    assert_eq!(
        bed.shell("ping -c 1 -W 20 fd42::2 | grep -o '1 packets received'"),
        "1 packets received\n"
    );

    // A connection out, one to itself, and what listens.
    const CONNECTED: &str = "grep -c ' 6402000A:0007 01 ' /proc/net/tcp";
    bed.shell("httpd -p 80 -h /etc; mkfifo /dev/shm/in; sleep 1000 > /dev/shm/in & (nc 10.0.2.100 7 < /dev/shm/in > /dev/shm/out; echo end > /dev/shm/end) &");
    bed.wait_for_shell(CONNECTED, "1\n");
    bed.shell("sleep 1000 | nc 127.0.0.1 80 > /dev/null 2>&1 &");
    const LOOPBACK: &str = "grep -c '0100007F:[0-9A-F]* 0100007F:[0-9A-F]* 01 ' /proc/net/tcp";
    bed.wait_for_shell(LOOPBACK, "1\n");

    let identity = Identity {
        hostname: "child".to_owned(),
        machine_id: "f".repeat(32),
        entropy: "00".repeat(32),
        time_ns: 2_000_000_000_000_000_000,
        network: None,
        nics: Some(vec![
            Nic {
                mac: text("02:ae:00:00:00:05"),
                address: text("10.0.2.16/24"),
                address6: text("fd42::16/64"),
                routes: vec![],
                ..fixed
            },
            Nic {
                mac: text("02:ae:00:00:00:06"),
                ..asking
            },
        ]),
    };
    let applied: IdentityOk = bed.ask(Kind::Identity, &identity);

    assert_eq!(applied.features, FEATURES);
    assert_eq!(bed.shell(CONNECTED), "0\n");
    assert_eq!(bed.shell(LOOPBACK), "1\n");
    bed.wait_for_shell("cat /dev/shm/end", "end\n");
    assert_eq!(
        bed.shell("wget -qO- http://127.0.0.1/hostname; cat /sys/class/net/eth*/address"),
        "child\n02:ae:00:00:00:05\n02:ae:00:00:00:06\n"
    );
    bed.wait_for_shell(
        ADDRESSES,
        "inet 10.0.2.16/24\ninet6 fd42::16/64\ninet 10.9.0.51/24\n",
    );
    bed.wait_for_shell(
        ROUTES,
        "10.0.2.0/24 dev eth0 scope link  src 10.0.2.16 \n10.9.0.0/24 dev eth1 scope link  src 10.9.0.51 \n\
         default via 10.0.2.2 dev eth0 \n\
         default via fd42::2 dev eth0  metric 1024 \n",
    );
    assert_eq!(
        bed.shell("cat /etc/hosts; grep -c . /etc/resolv.conf"),
        "127.0.0.1 localhost\n10.0.2.16\tchild\nfd42::16\tchild\n2\n"
    );
    assert_eq!(bed.shell("echo x | nc -w 5 10.0.2.100 7"), "x\n");
    bed.stop(500);
    bed.wait_off();
}

/// `rename(argv[1], argv[2])`, ends with the errno: no tool that copies instead of it.
const RENAME: &str = "488b7c2410488b742418b8520000000f05f7d889c7b83c0000000f05";

/// A generator as crypto libraries have it: a page of `MADV_WIPEONFORK`, filled by getrandom(2) whenever it is zero, its first
/// eight bytes written to the begin of stdout 50 times a second.
const GENERATOR: &str = "b80900000031ffbe00100000ba0300000041ba2200000049c7c0ffffffff4531c90f054889c3b81c0000004889df\
    be00100000ba120000000f0548833b007511b83e0100004889dfbe0800000031d20f05b812000000bf010000004889deba080000004531d20f05\
    68002d31016a00b8230000004889e731f60f054883c410ebb9";

#[test]
fn a_guest_is_what_its_image_says_and_wakes_whatever_became_of_its_files() {
    let Some(mut bed) = Bed::boot(Setup {
        extras: true,
        files: vec![
            program("/bin/ren", RENAME),
            program("/bin/generator", &GENERATOR.replace(' ', "")),
        ],
        ..Setup::default()
    }) else {
        return;
    };
    ready(&mut bed);

    // What the image holds is there, on the disk.
    assert_eq!(
        bed.shell("stat -c '%u %g %a' /run/app; stat -c %a /tmp; cat /tmp/file; grep -c ' /tmp \\| /run ' /proc/mounts"),
        "1000 1000 750\n1777\nkept\n0\n"
    );
    assert_eq!(
        bed.shell(
            "df -k /dev/shm | awk 'NR == 2 { print $2 }'; echo x > /dev/shm/x && cat /dev/shm/x"
        ),
        "65536\nx\n"
    );
    assert_eq!(
        bed.shell(
            "ren /srv /srv2; echo $?; ren /srv2/deep /tmp/deep; echo $?; ls -d /srv* /tmp/deep"
        ),
        "0\n0\n/srv2\n/tmp/deep\n"
    );
    // Limits.
    assert_eq!(
        bed.shell("ulimit -n; ulimit -Hn; ulimit -u; cd /proc/sys; cat fs/inotify/max_user_watches fs/inotify/max_user_instances kernel/pid_max"),
        "65536\n1048576\nunlimited\n1048576\n8192\n4194304\n"
    );
    let mut as_web = shell_exec("httpd -p 80 -h /etc && wget -qO- http://127.0.0.1/hostname");
    as_web.user = Some("web".to_owned());
    assert_eq!(
        String::from_utf8_lossy(&bed.exec(&as_web).stdout),
        "guest\n"
    );
    // Names.
    assert_eq!(
        bed.shell("hostname; cat /etc/hostname /etc/hosts /etc/resolv.conf"),
        "guest\nguest\n127.0.0.1 localhost\n10.0.2.15\tguest\nnameserver 10.0.2.3\n"
    );

    let wake = |bed: &Bed, hostname: &str| {
        let identity = Identity {
            hostname: hostname.to_owned(),
            machine_id: "f".repeat(32),
            entropy: "00".repeat(32),
            time_ns: 2_000_000_000_000_000_000,
            network: None,
            nics: None,
        };
        let _: Empty = bed.ask(Kind::Identity, &identity);
        assert_eq!(bed.shell("hostname"), format!("{hostname}\n"));
        assert_eq!(
            bed.shell("date -u +%Y"),
            "2033\n",
            "the clock of the identity"
        );
    };
    // A program that keeps a generator of its own draws from the kernel again.
    bed.shell("generator > /dev/shm/state & until test -s /dev/shm/state; do usleep 10000; done");
    let before = bed.shell("od -An -tx8 /dev/shm/state");
    wake(&bed, "second");
    bed.wait_for_shell(
        &format!(
            "test \"$(od -An -tx8 /dev/shm/state)\" != '{}' && echo new",
            before.trim_end()
        ),
        "new\n",
    );
    assert_eq!(
        bed.shell("cat /etc/hostname /etc/machine-id /etc/hosts"),
        format!(
            "second\n{}\n127.0.0.1 localhost\n10.0.2.15\tsecond\n",
            "f".repeat(32)
        )
    );
    // What is no plain file is left alone, and holds up nobody.
    bed.shell("cd /etc; rm hostname hosts machine-id passwd; mkfifo hostname passwd; ln -s hosts hosts; mknod machine-id c 1 7");
    wake(&bed, "third");
    assert_eq!(
        bed.shell("cd /etc; test -p hostname && test -c machine-id && test -h hosts && echo same"),
        "same\n"
    );
    bed.shell("cd /etc; rm hostname hosts machine-id passwd; ip link set eth0 down; ip link set eth0 name odd");
    wake(&bed, "fourth");
    // A disk that is full: nothing is lost of what is there.
    bed.shell("cat /etc/hosts > /dev/shm/hosts; cat /dev/zero > /full 2>/dev/null; cat /dev/zero >> /full 2>/dev/null");
    wake(&bed, "a-name-of-another-length");
    assert_eq!(
        bed.shell("grep -c localhost /etc/hosts; test -s /etc/hostname && echo whole"),
        "2\nwhole\n"
    );
    bed.shell("rm /full; sync; mount -o remount,ro /");
    let before = bed.shell("cat /etc/hosts /etc/hostname");
    wake(&bed, "fifth");
    assert_eq!(bed.shell("cat /etc/hosts /etc/hostname"), before);
    bed.stop(500);
    bed.wait_off();
}

#[test]
fn a_payload_in_the_initramfs_needs_no_disk() {
    let Some(mut bed) = Bed::boot(Setup {
        overlay_bytes: None,
        in_memory: true,
        ..Setup::default()
    }) else {
        return;
    };
    ready(&mut bed);

    assert_eq!(
        bed.shell("ls -d /init /modules /bin/sh 2>/dev/null; touch /x && echo ok"),
        "/bin/sh\nok\n"
    );

    // As a guest's own root would: the machine restarts or powers off in good order.
    bed.shell("poweroff");
    bed.wait_off();
}

#[test]
fn hostile_hosts_cost_their_connection_and_nothing_else() {
    let Some(mut bed) = Bed::boot(Setup::default()) else {
        return;
    };
    ready(&mut bed);

    let mut answers = Vec::new();
    for bytes in [
        // Unknown type; longer than allowed; no magic; bad JSON; a frame that does not open.
        vec![0, 0, 0, 0, 0x99],
        vec![0xff, 0xff, 0xff, 0xff, 0x10],
        b"\x0a\0\0\0\x01XXXX\x01\0\x02\0{}".to_vec(),
        b"\x09\0\0\0\x01KSTR\x01\0\x02\0{".to_vec(),
        vec![0, 0, 0, 0, 0x13],
        open(7, 2, b"{}"),
        open(1, 99, b"{}"),
        open(1, 1, b"{}"),
        open(1, 2, b"{}"),
        open(1, 6, br#"{"path":"relative"}"#),
    ] {
        let mut talk = bed.dial();
        talk.raw(&bytes);
        match talk.next() {
            Got::Error(body) => {
                let body: serde_json::Value = serde_json::from_str(&body).unwrap();
                answers.push(body["code"].as_str().unwrap().to_owned());
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(talk.next(), Got::Closed));
    }
    assert_eq!(
        answers,
        [
            "frame_type_unknown",
            "frame_too_long",
            "frame_magic_invalid",
            "frame_json_invalid",
            "frame_unexpected",
            "generation_unknown",
            "kind_unknown",
            "kind_unknown",
            "body_invalid",
            "body_invalid",
        ]
    );

    let silent: Vec<Talk> = (0..256).map(|_| bed.dial()).collect();
    // Connections that say nothing take no room of commands, which have a limit of their own.
    let sleeping: Vec<Talk> = (0..96)
        .map(|_| {
            let mut talk = bed.open(Kind::Exec, &shell_exec("sleep 1000"));
            assert!(matches!(talk.next(), Got::Ok(_)));
            talk
        })
        .collect();
    let mut refused = bed.open(Kind::Exec, &shell_exec("true"));
    assert!(matches!(refused.next(), Got::Error(body) if body.contains("busy")));
    drop(sleeping);
    drop(silent);
    bed.wait_for_shell_retrying("echo alive", "alive\n");

    let resident: u64 = bed
        .shell("awk '/VmRSS/{print $2}' /proc/1/status")
        .trim()
        .parse()
        .unwrap();
    eprintln!("{resident} KiB resident after 257 connections");
}

#[test]
fn a_user_of_the_guest_is_not_the_host() {
    let Some(program) = std::env::var_os("AERIE_TEST_LOOPBACK") else {
        eprintln!("skipped: AERIE_TEST_LOOPBACK is not set");
        return;
    };
    let Some(mut bed) = Bed::boot(Setup {
        files: vec![bed::file("/bin/loopback", program.as_ref())],
        ..Setup::default()
    }) else {
        return;
    };
    ready(&mut bed);

    let said = bed.exec(&Exec {
        user: Some("web".to_owned()),
        // By the loopback's own CID.
        ..shell_exec("loopback 1")
    });

    assert_eq!(
        String::from_utf8_lossy(&said.stdout),
        "connected, 0 bytes of answer\n"
    );
}

fn open(generation: u16, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let frame = Frame::Open {
        generation,
        kind,
        body,
    };
    encode(&frame, &mut bytes).unwrap();
    bytes
}
