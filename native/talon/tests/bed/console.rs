//! Consoles with a client, in the jail: what is typed arrives, what is printed comes back, and nobody is held up.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

use crate::harness::Suite;
use crate::jail::{Launch, boot};
use crate::machine::{Context, PATIENCE, Talon, wait_for};

pub fn add(suite: &mut Suite) {
    suite.test("a shell answers on the serial port", serial);
    suite.test("a shell answers on the virtio console", virtio);
    suite.test(
        "what is typed before the guest listens is not the end of it",
        early,
    );
    suite.test("a client that does not read holds no guest up", slow);
    suite.test("a client stays through pause, resume and reboot", life);
    suite.test(
        "a flooded log keeps its end and gives its beginning back",
        flood,
    );
}

/// The least that a log may keep; a console of a guest in the bed prints 20 KiB a second.
const KEPT: u64 = 64 << 10;

/// A guest whose two consoles are sockets, each with a log.
fn config(context: &Context) -> Value {
    let mut config = context.config("vm");
    config["payload"]["cmdline"] = "console=hvc0 console=ttyS0 panic=-1 quiet loglevel=3".into();
    for name in ["serial", "console"] {
        config[name] = json!({
            "mode": "Socket",
            "socket": context.path(&format!("{name}.sock")),
            "file": context.path(&format!("{name}.log")),
            "file_bytes": KEPT,
        });
    }
    config
}

struct Client {
    stream: UnixStream,
    seen: String,
}

impl Client {
    fn connect(context: &Context, name: &str) -> Self {
        let path = context.path(&format!("{name}.sock"));
        let stream = UnixStream::connect(path).expect("a console");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        Self {
            stream,
            seen: String::new(),
        }
    }

    fn type_in(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).expect("it types");
    }

    /// Reads on until this has been said.
    #[track_caller]
    fn expect(&mut self, text: &str) {
        let mut part = [0; 4096];
        while !self.seen.contains(text) {
            let count = self.stream.read(&mut part).expect("more output");
            assert_ne!(count, 0, "it ended before {text:?}: {}", self.seen);
            self.seen.push_str(&String::from_utf8_lossy(&part[..count]));
        }
    }
}

/// A shell on a terminal of the guest, as a getty would start one, without the line editor: so each line is said once.
fn start_shell(talon: &Talon, tty: &str) {
    talon.ok(&format!(
        "(stty -echo; printf '# '; while read -r line; do eval \"$line\"; done) </dev/{tty} >/dev/{tty} 2>&1 &"
    ));
}

fn converse(context: &Context, name: &str, tty: &str) {
    let talon = boot(context, "vm", &config(context));
    let mut client = Client::connect(context, name);
    start_shell(&talon, tty);
    client.expect("# ");

    client.type_in("echo sum $((40 + 2))\n");
    client.expect("sum 42");
    // More than any buffer on the way holds at once.
    for line in 0..400 {
        client.type_in(&format!("echo line {line} of {}\n", line * 7));
    }
    client.expect(&format!("line 399 of {}", 399 * 7));

    let said: Vec<_> = client
        .seen
        .lines()
        .filter_map(|line| line.split("line ").nth(1))
        .filter_map(|rest| rest.split(' ').next()?.parse::<u32>().ok())
        .collect();
    assert_eq!(said, (0..400).collect::<Vec<_>>());
    let log = fs::read_to_string(context.path(&format!("{name}.log"))).expect("a log");
    assert!(log.contains("sum 42") && log.contains("line 399"), "{log}");
}

fn serial(context: &Context) {
    converse(context, "serial", "ttyS0");
}

fn virtio(context: &Context) {
    converse(context, "console", "hvc0");
}

fn early(context: &Context) {
    let config = config(context);
    let launch = Launch::new(context, "vm", &config);
    let up = context.expect_up("vm");
    // Before there is a guest: more than the port's buffer holds, so that it stays full until somebody reads.
    let mut clients = ["serial", "console"].map(|name| Client::connect(context, name));
    for client in &mut clients {
        client.type_in(&"too early ".repeat(30));
        client.type_in("\n");
    }
    let mut talon = launch.start(context, "vm", |config| config, &[]);
    talon.wait_up(&up);
    for (client, tty) in clients.iter_mut().zip(["ttyS0", "hvc0"]) {
        start_shell(&talon, tty);
        client.expect("# ");

        client.type_in("\necho now $((40 + 2))\n");

        client.expect("now 42");
    }
}

fn slow(context: &Context) {
    let talon = boot(context, "vm", &config(context));
    let mut first = Client::connect(context, "console");
    let deaf = Client::connect(context, "serial");
    // Nobody reads: the guest prints on and comes to its end.
    talon.ok("yes 0123456789 | head -c 120000 > /dev/hvc0");
    talon.ok("yes 0123456789 | head -c 30000 > /dev/ttyS0");
    talon.ok("echo the last line > /dev/hvc0");

    let counters = talon.get("vm.counters").expect_status(200);
    assert!(
        counters["console"]["lost_bytes"].as_u64() > Some(10_000),
        "{counters}"
    );
    // What is newest is there when it reads at last.
    first.expect("the last line");
    drop(deaf);
    let mut second = Client::connect(context, "serial");
    start_shell(&talon, "ttyS0");
    second.type_in("echo still $((40 + 2))\n");
    second.expect("still 42");
}

fn life(context: &Context) {
    let talon = boot(context, "vm", &config(context));
    let mut client = Client::connect(context, "serial");
    start_shell(&talon, "ttyS0");
    client.expect("# ");
    talon.put("vm.pause", &json!({})).expect_status(204);
    client.type_in("echo paused $((40 + 2))\n");
    talon.put("vm.resume", &json!({})).expect_status(204);
    client.expect("paused 42");

    let up = context.expect_up("vm");
    talon.put("vm.reboot", &json!({})).expect_status(204);
    let mut talon = talon;
    talon.wait_up(&up);
    client.seen.clear();
    start_shell(&talon, "ttyS0");
    client.expect("# ");
    client.type_in("echo again $((40 + 2))\n");

    client.expect("again 42");
}

/// A little of everything that consoles do, for a talon that is watched and therefore slow.
pub fn trickle(context: &Context) {
    // What earlier boots left counts too.
    for name in ["serial", "console"] {
        let log = context.path(&format!("{name}.log"));
        fs::write(log, vec![b'x'; 80 << 10]).expect("a log");
    }
    let mut config = config(context);
    config["memory"]["shared"] = true.into();
    let mut talon = boot(context, "vm", &config);
    talon.get("vmm.ping").expect_status(200);
    let mut client = Client::connect(context, "serial");
    start_shell(&talon, "ttyS0");
    client.expect("# ");
    client.type_in("echo sum $((40 + 2))\n");
    client.expect("sum 42");
    // So that each log gives back its beginning, on its own kind of thread.
    for tty in ["ttyS0", "hvc0"] {
        talon.ok(&format!("yes 0123456789abcde | head -c 17000 > /dev/{tty}"));
    }
    talon.tell("sh poweroff -f");
    assert!(talon.end().success(), "{}", talon.last_words());
}

fn flood(context: &Context) {
    let talon = boot(context, "vm", &config(context));
    let path = context.path("console.log");
    talon.ok("yes 0123456789abcde | head -c 163840 > /dev/hvc0; echo the end > /dev/hvc0");

    wait_for("the end", || {
        fs::read(&path)
            .is_ok_and(|log| log.ends_with(b"the end\r\n") || log.ends_with(b"the end\n"))
    });
    let found = fs::metadata(&path).expect("a log");
    assert!(found.len() > 2 * KEPT);
    assert!(
        found.blocks() * 512 <= 2 * KEPT,
        "{} blocks",
        found.blocks()
    );
    let log = fs::read(&path).expect("a log");
    let tail = &log[log.len() - usize::try_from(KEPT).expect("small")..];
    assert!(!tail.contains(&0), "a hole in what is to be kept");
    // The serial port prints on a processor's thread, a byte an exit.
    talon.ok("yes 0123456789abcde | head -c 98304 > /dev/ttyS0");
    let found = fs::metadata(context.path("serial.log")).expect("a log");
    assert!(found.len() > KEPT + KEPT / 4);
    assert!(
        found.blocks() * 512 <= 2 * KEPT,
        "{} blocks",
        found.blocks()
    );
}
