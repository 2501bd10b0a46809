//! The jail: that a machine does all its work in it, and what is left outside.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use serde_json::{Value, json};

use crate::harness::Suite;
use crate::machine::{Context, Talon, echo, inheritable, wait_for};
use crate::snapshot::memfd;

pub fn add(suite: &mut Suite) {
    suite.test("every device works in the jail", devices);
    suite.test(
        "every thread of a jailed machine is filtered and powerless",
        powerless,
    );
    suite.test("a path is refused in the jail", paths);
    suite.test(
        "a jailed guest is rebooted, saved, restored and forked",
        life,
    );
    suite.test("a jail that cannot be shut stops the start", refused);
    suite.test("the launcher puts it in namespaces of its own", launched);
    suite.test(
        "it is alone in a pid namespace and reaches nobody outside",
        alone,
    );
    suite.test("check tells what this host can enforce", check);
}

/// The machine's files as descriptors from 50 on, and the launch configuration at 49.
pub struct Launch {
    config: Value,
    fds: Vec<OwnedFd>,
    jailed: bool,
}

const FIRST: i32 = 50;

impl Launch {
    pub fn new(context: &Context, name: &str, config: &Value) -> Self {
        let mut launch = Self {
            config: config.clone(),
            fds: Vec::new(),
            jailed: true,
        };
        for pointer in [
            "/payload/kernel",
            "/payload/initramfs",
            "/disks/0/path",
            "/console/file",
            "/serial/file",
        ] {
            let Some(path) = launch
                .config
                .pointer(pointer)
                .and_then(Value::as_str)
                .map(str::to_owned)
            else {
                continue;
            };
            let writes = !pointer.starts_with("/payload");
            let file = File::options()
                .read(true)
                .write(writes)
                .create(writes)
                .truncate(false)
                .open(&path);
            let number = launch.give(file.unwrap_or_else(|error| panic!("{path}: {error}")));
            *launch.config.pointer_mut(pointer).expect("it is there") =
                format!("/dev/fd/{number}").into();
        }
        for pointer in ["/serial/socket", "/console/socket"] {
            let Some(path) = launch.config.pointer(pointer).and_then(Value::as_str) else {
                continue;
            };
            let number = launch.give(UnixListener::bind(path).expect("a socket"));
            *launch.config.pointer_mut(pointer).expect("it is there") =
                format!("/dev/fd/{number}").into();
        }
        let socket = context.path(&format!("{name}.vsock"));
        launch.config["vsock"]["socket"] = socket.to_str().expect("a path").into();
        let number = launch.give(UnixListener::bind(socket).expect("a socket"));
        launch.config["vsock"]["fd"] = number.into();
        launch
    }

    /// With the jail, as is usual, or without.
    pub fn jailed(mut self, jailed: bool) -> Self {
        self.jailed = jailed;
        self
    }

    fn give(&mut self, file: impl Into<OwnedFd>) -> i32 {
        self.fds.push(inheritable(file));
        FIRST + i32::try_from(self.fds.len()).expect("few") - 1
    }

    /// Starts a jailed talon with this launch, or with the restore that `wrap` makes of it.
    pub fn start(
        &self,
        context: &Context,
        name: &str,
        wrap: impl FnOnce(Value) -> Value,
        more: &[(i32, i32)],
    ) -> Talon {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let theirs = inheritable(theirs);
        let api = UnixListener::bind(context.path(&format!("{name}.api"))).expect("a socket");
        let mut fds = vec![(api.as_raw_fd(), 48), (theirs.as_raw_fd(), 49)];
        fds.extend(
            self.fds
                .iter()
                .zip(FIRST..)
                .map(|(fd, number)| (fd.as_raw_fd(), number)),
        );
        fds.extend_from_slice(more);
        let text = wrap(self.config.clone()).to_string();
        let writer = std::thread::spawn(move || drop((&ours).write_all(text.as_bytes())));
        let jail = if self.jailed { "on" } else { "off" };
        let arguments = ["--config-fd", "49", "--api-fd", "48", "--jail", jail];
        let talon = context.jailed_with(name, &arguments, &fds);
        drop(theirs);
        writer.join().expect("the configuration is taken");
        talon
    }
}

/// Boots a jailed guest of this configuration and waits until it is up.
pub fn boot(context: &Context, name: &str, config: &Value) -> Talon {
    let launch = Launch::new(context, name, config);
    let up = context.expect_up(name);
    let mut talon = launch.start(context, name, |config| config, &[]);
    talon.wait_up(&up);
    talon
}

pub fn devices(context: &Context) {
    let image = context.image("disk", 16 << 20);
    let tap = crate::devices::tap("taptest2", "10.9.2.1/24");
    let mut config = context.config("vm");
    config["disks"] = json!([{ "path": image, "rate_limiter_config": { "ops": { "size": 1000, "refill_time": 100 } } }]);
    config["balloon"] = json!({ "size": 0, "free_page_reporting": true });
    config["serial"] = json!({ "mode": "File", "file": context.path("serial.console") });
    config["net"] = json!([{ "fds": [30], "mac": "02:00:00:00:00:09" }]);
    let launch = Launch::new(context, "vm", &config);
    let up = context.expect_up("vm");
    let mut talon = launch.start(context, "vm", |config| config, &[(tap.as_raw_fd(), 30)]);
    talon.wait_up(&up);

    talon.ok("dd if=/dev/urandom of=/dev/vda bs=64k count=16 conv=fsync 2>/dev/null");
    talon.ok("blkdiscard -o 0 -l 1048576 /dev/vda");
    talon.zero("/dev/vda");
    talon.ok("head -c 4096 /dev/hwrng | wc -c");
    talon.ok(
        "ifconfig eth0 10.9.2.2 netmask 255.255.255.0 up && ping -c 1 -W 5 10.9.2.1 >/dev/null",
    );
    let bytes = vec![7; 1 << 20];
    echo(talon.connect(), &bytes);
    talon
        .put("vm.resize", &json!({ "desired_balloon": 8 << 20 }))
        .expect_status(204);
    wait_for("inflation", || {
        talon.get("vm.counters").expect_status(200)["balloon"]["actual_bytes"].as_u64()
            == Some(8 << 20)
    });
    // A stream whose host does not read until nothing more goes in, and one that is idle, for the reset of their device
    // to end.
    let held = [4 << 20, 1].map(|bytes| {
        let mut stream = talon.connect();
        stream
            .set_write_timeout(Some(std::time::Duration::from_secs(3)))
            .expect("a time-out");
        stream.write_all(b"echo\n").expect("a line");
        let _ = stream.write_all(&vec![7; bytes]);
        stream
    });
    // Drivers that reset their devices, on the processor's thread.
    // vsock's own goes last and in the background, for it carries the commands.
    for device in ["0000:00:08.0", "0000:00:10.0", "0000:00:03.0"] {
        let name = talon.ok(&format!("ls /sys/bus/pci/devices/{device} | grep ^virtio"));
        let link = format!("/sys/bus/virtio/devices/{name}/driver");
        let driver = talon.ok(&format!("basename $(readlink {link})"));
        let folder = format!("/sys/bus/virtio/drivers/{driver}");
        talon.ok(&format!(
            "(sleep 2; echo {name} > {folder}/unbind; echo {name} > {folder}/bind; touch /{driver}) >/dev/null 2>&1 &"
        ));
        // A connection that the reset of its own device cut off has no answer; the next one has.
        wait_for("the driver", || {
            talon.try_sh(&format!("test -e /{driver}")) == Some(0)
        });
    }
    drop(held);
    talon.put("vm.pause", &json!({})).expect_status(204);
    talon.put("vm.resume", &json!({})).expect_status(204);
    talon.put("vm.power-button", &json!({})).expect_status(204);
    assert_eq!(talon.ok("echo here"), "here");
    talon.tell("sh poweroff -f");
    let status = talon.end();
    assert!(status.success(), "{status}: {}", talon.last_words());
}

fn powerless(context: &Context) {
    let image = context.image("disk", 1 << 20);
    let mut config = context.config("vm");
    config["disks"] = json!([{ "path": image }]);
    let talon = boot(context, "vm", &config);
    let process = format!("/proc/{}", talon.child.id());

    let mut names = Vec::new();
    for thread in fs::read_dir(format!("{process}/task"))
        .expect("threads")
        .flatten()
    {
        let status = fs::read_to_string(thread.path().join("status")).expect("a status");
        let field = |name: &str| {
            let line = status
                .lines()
                .find(|line| line.starts_with(name))
                .unwrap_or_default();
            line.split_whitespace()
                .nth(1)
                .unwrap_or_default()
                .to_owned()
        };
        // Some kernels put a thread of KVM's own beside ours.
        if field("Name:").starts_with("kvm-") {
            continue;
        }
        names.push(field("Name:"));
        assert_eq!(field("Seccomp:"), "2", "{status}");
        assert_eq!(field("NoNewPrivs:"), "1", "{status}");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(
                u64::from_str_radix(&field(set), 16),
                Ok(0),
                "{set} {status}"
            );
        }
        let filters: u32 = field("Seccomp_filters:").parse().expect("a number");
        let wanted = if field("Name:") == "talon" { 1 } else { 2 };
        assert_eq!(filters, wanted, "{status}");
    }
    names.sort();
    assert_eq!(names, ["io8", "talon", "vcpu0"]);
    let root: Vec<_> = fs::read_dir(format!("{process}/root"))
        .expect("a root")
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(root, ["vsock"]);
    let limits = fs::read_to_string(format!("{process}/limits")).expect("limits");
    let cores = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .expect("a line");
    assert_eq!(cores.split_whitespace().nth(4), Some("0"), "{cores}");
    let mounts = fs::read_to_string(format!("{process}/mountinfo")).expect("mounts");
    assert_eq!(mounts.lines().count(), 2, "{mounts}");
    assert!(
        mounts.lines().all(|line| line
            .split(' ')
            .nth(5)
            .is_some_and(|options| options.starts_with("ro,"))),
        "{mounts}"
    );
}

fn paths(context: &Context) {
    let talon = context.jailed_with(
        "vm",
        &["--vsock-folder", context.path("").to_str().expect("a path")],
        &[],
    );

    let error = talon
        .put("vm.create", &context.config("vm"))
        .expect_status(400);
    assert!(
        error["chain"][0]
            .as_str()
            .is_some_and(|text| text.contains("descriptor")),
        "{error}"
    );
    let url = json!({ "source_url": "file:///tmp" });
    assert_eq!(
        talon.put("vm.restore", &url).expect_status(400)["path"],
        "source_url"
    );
    talon.get("vmm.ping").expect_status(200);
}

pub fn life(context: &Context) {
    const BYTES: u64 = 192 << 20;
    let ram = memfd(c"ram", BYTES);
    let mut config = context.config("vm");
    config["memory"] = json!({ "size": 0, "zones": [{ "id": "ram", "size": BYTES, "shared": true, "file": "/dev/fd/40" }] });
    let first = Launch::new(context, "vm", &config);
    let up = context.expect_up("vm");
    let mut talon = first.start(context, "vm", |config| config, &[(ram.as_raw_fd(), 40)]);
    talon.wait_up(&up);
    talon.put("vm.reboot", &json!({})).expect_status(204);
    talon.wait_up(&up);
    talon.ok("echo kept > /mark");
    talon.put("vm.pause", &json!({})).expect_status(204);

    let (state, memory) = (memfd(c"state", 0), memfd(c"memory", 0));
    let url = json!({ "destination_url": "fd:" });
    talon
        .put_fds(
            "vm.snapshot",
            &url,
            &[state.as_raw_fd(), memory.as_raw_fd()],
        )
        .expect_status(200);
    let forked = memfd(c"forked", 0);
    let outcome = talon
        .put_fds("vm.fork", &url, &[forked.as_raw_fd()])
        .expect_status(200);
    assert_eq!(outcome["memory"], "template");
    talon.put("vm.resume", &json!({})).expect_status(204);
    assert_eq!(talon.ok("cat /mark"), "kept");

    config["memory"] = json!({ "size": BYTES });
    for (name, state, memory) in [("restored", &state, &memory), ("forked", &forked, &ram)] {
        let mut own = config.clone();
        own["console"]["file"] = context
            .path(&format!("{name}.console"))
            .to_str()
            .expect("a path")
            .into();
        let launch = Launch::new(context, name, &own);
        let wrap = |config: Value| json!({ "restore": { "state_fd": 41, "memory_fd": 42, "resume": true, "config": config } });
        let more = [(state.as_raw_fd(), 41), (memory.as_raw_fd(), 42)];
        let child = launch.start(context, name, wrap, &more);
        assert_eq!(child.ok("cat /mark"), "kept", "{name}");
        assert_eq!(child.get("vm.info").expect_status(200)["state"], "Running");
    }
}

fn refused(context: &Context) {
    let talon = std::env::var_os("AERIE_BED_TALON").expect("set");
    let api = context.path("vm.api");
    let run = |arguments: &[&str]| {
        let done = std::process::Command::new(&talon)
            .arg("run")
            .arg("--api-socket")
            .arg(&api)
            .args(arguments)
            .output();
        let _ = fs::remove_file(&api);
        let done = done.expect("talon runs");
        (
            done.status.code(),
            String::from_utf8_lossy(&done.stderr).into_owned(),
        )
    };

    let (code, words) = run(&["--landlock-abi-min", "1000"]);
    assert_eq!(code, Some(1), "{words}");
    assert!(
        words.contains("jail_failed") && words.contains("1000"),
        "{words}"
    );
    let (code, words) = run(&["--vsock-folder", "/nowhere"]);
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains("jail_failed"), "{words}");
}

fn check(_: &Context) {
    let talon = std::env::var_os("AERIE_BED_TALON").expect("set");
    let done = std::process::Command::new(talon)
        .arg("check")
        .output()
        .expect("talon runs");
    let report: Value = serde_json::from_slice(&done.stdout).expect("JSON");

    assert_eq!(report["kvm"]["usable"], true, "{report}");
    let mut release = String::new();
    File::open("/proc/sys/kernel/osrelease")
        .and_then(|mut file| file.read_to_string(&mut release))
        .expect("a release");
    if release.starts_with("6.1.") {
        assert_eq!(report["jail"]["landlock_abi"], 2, "{report}");
    } else if release.starts_with("6.12.") {
        assert_eq!(report["jail"]["landlock_abi"], 6, "{report}");
    }
    assert_eq!(report["jail"]["seccomp_kill_process"], true, "{report}");
}

/// The way the daemon starts a machine: `wing launch` makes the namespaces, talon shuts the jail inside them. The pid that
/// it reports is talon's.
fn launch_in(context: &Context, namespaces: &[&str]) -> (Talon, i32) {
    use std::os::unix::process::CommandExt;

    let launch = Launch::new(context, "vm", &context.config("vm"));
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let report = inheritable(OwnedFd::from(writer));
    let api = inheritable(UnixListener::bind(context.path("vm.api")).expect("a socket"));
    let kvm = File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .expect("KVM");
    let kvm = inheritable(kvm);
    let config = memfd(c"config", 0);
    let mut writer = File::from(config.try_clone().expect("a copy"));
    writer
        .write_all(launch.config.to_string().as_bytes())
        .expect("a configuration");
    std::io::Seek::rewind(&mut writer).expect("its start");
    let mut given = vec![
        (config.as_raw_fd(), 40),
        (api.as_raw_fd(), 41),
        (kvm.as_raw_fd(), 42),
        (report.as_raw_fd(), 43),
    ];
    given.extend(
        launch
            .fds
            .iter()
            .zip(FIRST..)
            .map(|(fd, number)| (fd.as_raw_fd(), number)),
    );
    let spec = json!({
        "argv": ["talon", "run", "--config-fd", "40", "--api-fd", "41", "--kvm-fd", "42"],
        "exe": std::env::var("AERIE_BED_TALON").expect("set"),
        "namespaces": namespaces,
        "report_fd": 43,
        "capabilities": "keep",
        "no_new_privs": false,
        "fds": given.iter().filter(|(_, number)| *number != 43).map(|(_, number)| json!([number, number])).collect::<Vec<_>>(),
    });
    let text = memfd(c"spec", 0);
    let mut writer = File::from(text.try_clone().expect("a copy"));
    writer
        .write_all(spec.to_string().as_bytes())
        .expect("a specification");
    std::io::Seek::rewind(&mut writer).expect("its start");
    given.push((text.as_raw_fd(), 3));
    let mut command = std::process::Command::new(std::env::var_os("AERIE_BED_WING").expect("set"));
    command
        .arg("launch")
        .stderr(File::create(context.path("vm.stderr")).expect("a log"));
    // Moved out of the way first, so that no target is another's source.
    // SAFETY: between fork and exec only fcntl and dup2 are called.
    unsafe {
        command.pre_exec(move || {
            for (from, _) in &mut given {
                *from = libc::fcntl(*from, libc::F_DUPFD_CLOEXEC, 100);
            }
            for (from, to) in &given {
                if libc::dup2(*from, *to) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    let talon = context.adopt("vm", command.spawn().expect("wing runs"));
    drop(report);
    let mut told = String::new();
    reader.read_to_string(&mut told).expect("a report");
    let told: Value = serde_json::from_str(told.lines().next().unwrap_or_default())
        .unwrap_or_else(|error| panic!("{told:?}: {error}; {}", talon.last_words()));
    let pid = told["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    (talon, pid.unwrap_or_else(|| panic!("{told}")))
}

fn assert_apart(pid: i32, kinds: &[&str]) {
    for kind in kinds {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("a namespace");
        assert_ne!(of(&pid.to_string()), of("self"), "{kind}");
    }
}

fn launched(context: &Context) {
    let up = context.expect_up("vm");
    let (mut talon, pid) = launch_in(context, &["user", "mount", "net", "ipc"]);
    talon.wait_up(&up);

    assert_eq!(talon.ok("echo here"), "here");
    assert_eq!(u32::try_from(pid), Ok(talon.child.id()));
    assert_apart(pid, &["user", "mnt", "net", "ipc"]);
    assert_eq!(talon.get("vm.info").expect_status(200)["state"], "Running");
}

/// As the daemon does it, with a pid namespace too: talon is its first process, and then it is our child itself.
fn alone(context: &Context) {
    let up = context.expect_up("vm");
    let (talon, pid) = launch_in(context, &["user", "mount", "net", "pid", "ipc"]);
    wait_for("the guest", || up.accept().is_ok());

    assert_eq!(talon.ok("echo here"), "here");
    assert_apart(pid, &["user", "mnt", "net", "pid", "ipc"]);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a status");
    assert!(status.contains(&format!("NSpid:\t{pid}\t1\n")), "{status}");
    // No /proc to look at, neither its own nor the host's.
    let root = fs::read_dir(format!("/proc/{pid}/root")).expect("a root");
    let names: Vec<_> = root.flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(names, ["vsock"]);
    // Whoever is in there, with every right that root has, has no number for anybody outside, and so no signal.
    let own = i32::try_from(std::process::id()).expect("a pid");
    assert_eq!(signal_from_inside(pid, own), libc::ESRCH);
    assert_eq!(signal_from_inside(pid, pid), libc::ESRCH);
    assert_eq!(signal_from_inside(pid, 1), 0, "talon is process 1 in there");

    // It ends for good with a kill of its first process.
    // SAFETY: the pid is our child's, which has not been waited for.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    let mut ended = 0;
    // SAFETY: as above; writes one integer.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut ended, 0) }, pid);
    assert!(libc::WIFSIGNALED(ended) && libc::WTERMSIG(ended) == libc::SIGKILL);
}

/// What asking whether `target` can be signalled gives in the pid namespace of `pid`: an error number, or 0.
fn signal_from_inside(pid: i32, target: i32) -> i32 {
    let namespace = File::open(format!("/proc/{pid}/ns/pid")).expect("a namespace");
    // SAFETY: the children make calls and end; they never return into this process.
    unsafe {
        let outer = libc::fork();
        if outer == 0 {
            if libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWPID) < 0 {
                libc::_exit(255);
            }
            // The next child is in it.
            let inner = libc::fork();
            if inner == 0 {
                let refused = libc::kill(target, 0) < 0;
                libc::_exit(if refused {
                    *libc::__errno_location()
                } else {
                    0
                });
            }
            let mut status = 0;
            libc::waitpid(inner, &raw mut status, 0);
            libc::_exit(libc::WEXITSTATUS(status));
        }
        let mut status = 0;
        libc::waitpid(outer, &raw mut status, 0);
        libc::WEXITSTATUS(status)
    }
}
