//! Each device against Linux's own driver.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::time::Instant;

use serde_json::json;

use crate::harness::Suite;
use crate::machine::{Context, Talon, echo, inheritable, wait_for};

pub fn add(suite: &mut Suite) {
    suite.test("block reads and writes what the image holds", block);
    suite.test("block refuses to write a read-only image", block_readonly);
    suite.test("block discards and writes zeroes", block_discard);
    suite.test("block keeps to its rate", block_rate);
    suite.test(
        "a disk of the host that stands still holds up nobody",
        frozen,
    );
    suite.test("disks of both buses stand at their places", places);
    suite.test("vsock carries bulk both ways", vsock_bulk);
    suite.test("vsock lets the guest call the host", vsock_guest);
    suite.test("rng feeds the guest", rng);
    suite.test(
        "balloon takes and gives memory, and tells statistics",
        balloon,
    );
    suite.test(
        "balloon returns pages that the guest reports free",
        reporting,
    );
    suite.test("net carries packets with offloads", net);
    suite.test("serial and console write the same log lines", consoles);
}

const MIB: u64 = 1 << 20;

fn block(context: &Context) {
    let image = context.image("disk", 16 * MIB);
    let file = File::options()
        .read(true)
        .write(true)
        .open(&image)
        .expect("an image");
    file.write_all_at(b"from the host", 4096).expect("bytes");
    let mut config = context.config("vm");
    config["disks"] = json!([{ "path": image, "serial": "first-disk", "id": "root" }]);
    let talon = context.boot("vm", &config);

    assert_eq!(
        talon.ok("cat /sys/block/vda/size"),
        (16 * MIB / 512).to_string()
    );
    assert_eq!(talon.ok("cat /sys/block/vda/serial"), "first-disk");
    assert_eq!(
        talon.ok("dd if=/dev/vda bs=4096 skip=1 count=1 2>/dev/null | head -c 13"),
        "from the host"
    );
    talon.ok("head -c 8388608 /dev/urandom > /data && dd if=/data of=/dev/vda bs=1M seek=4 conv=fsync 2>/dev/null");
    let guest = talon
        .ok("md5sum /data")
        .split(' ')
        .next()
        .map(str::to_owned);
    let mut written = vec![0; 8 << 20];
    file.read_exact_at(&mut written, 4 * MIB).expect("bytes");
    fs::write(context.path("copy"), &written).expect("a copy");
    let host = Command::new("md5sum")
        .arg(context.path("copy"))
        .output()
        .expect("md5sum");
    assert_eq!(
        String::from_utf8_lossy(&host.stdout)
            .split(' ')
            .next()
            .map(str::to_owned),
        guest
    );
    let counters = talon.get("vm.counters").expect_status(200);
    assert!(
        counters["root"]["write_bytes"].as_u64() >= Some(8 * MIB),
        "{counters}"
    );
    assert_eq!(counters["root"]["errors"], 0);
}

/// A file system of the host's own, which can be made to stand still.
struct Frozen {
    folder: std::path::PathBuf,
}

impl Frozen {
    fn run(program: &str, arguments: &[&std::ffi::OsStr]) {
        let done = Command::new(program).args(arguments).status();
        assert!(
            done.expect("a program").success(),
            "{program} {arguments:?}"
        );
    }

    fn new(context: &Context) -> Self {
        let image = context.image("host", 64 * MIB);
        let folder = context.path("mnt");
        fs::create_dir(&folder).expect("a folder");
        Self::run(
            "modprobe",
            &["-a".as_ref(), "loop".as_ref(), "ext4".as_ref()],
        );
        Self::run("mkfs.ext4", &["-q".as_ref(), image.as_ref()]);
        Self::run(
            "mount",
            &[
                "-o".as_ref(),
                "loop".as_ref(),
                image.as_ref(),
                folder.as_ref(),
            ],
        );
        Self { folder }
    }

    fn freeze(&self, how: &str) {
        Self::run("fsfreeze", &[how.as_ref(), self.folder.as_ref()]);
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze")
            .arg("-u")
            .arg(&self.folder)
            .stderr(std::process::Stdio::null())
            .status();
        let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
    }
}

fn frozen(context: &Context) {
    let host = Frozen::new(context);
    let image = host.folder.join("disk");
    File::create(&image)
        .and_then(|file| file.set_len(16 * MIB))
        .expect("an image");
    let mut config = context.config("vm");
    config["disks"] = json!([{ "path": image, "id": "root" }]);
    let talon = context.boot("vm", &config);
    let begin = |number: u32| {
        host.freeze("-f");
        talon.ok(&format!(
            "(dd if=/dev/zero of=/dev/vda bs=4096 count=1 conv=fsync 2>/dev/null; echo $? >/done{number}) >/dev/null 2>&1 &"
        ));
        wait_for("a request under way", || {
            let counters = talon.get("vm.counters").expect_status(200);
            counters["root"]["write_ops"].as_u64() >= Some(u64::from(number))
        });
    };

    // Everything but the disk goes on.
    begin(1);
    let began = Instant::now();
    assert_eq!(talon.ok("echo here"), "here");
    talon.put("vm.pause", &json!({})).expect_status(204);
    let info = talon.get("vm.info").expect_status(200);
    assert_eq!(info["state"], "Paused");
    talon.put("vm.resume", &json!({})).expect_status(204);
    assert_eq!(talon.ok("echo again"), "again");
    assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
    assert_eq!(talon.sh("cat /done1").1, 1, "the disk stands still");
    host.freeze("-u");
    wait_for("the guest's write", || {
        talon.sh("cat /done1").0.trim() == "0"
    });

    // What needs the disk to be still waits for it, and nobody else does.
    begin(2);
    talon.put("vm.pause", &json!({})).expect_status(204);
    let folder = context.path("saved");
    fs::create_dir(&folder).expect("a folder");
    let url = json!({ "destination_url": format!("file://{}", folder.display()) });
    std::thread::scope(|scope| {
        let saved = scope.spawn(|| talon.put("vm.snapshot", &url).expect_status(200));
        for _ in 0..10 {
            let info = talon.get("vm.info").expect_status(200);
            assert_eq!(info["state"], "Paused");
        }
        assert!(!saved.is_finished() && !folder.join("state").exists());
        host.freeze("-u");
        saved.join().expect("a snapshot");
    });
    assert!(folder.join("state").exists() && folder.join("memory").exists());
    talon.put("vm.resume", &json!({})).expect_status(204);
    wait_for("the guest's write", || {
        talon.sh("cat /done2").0.trim() == "0"
    });

    // The machine's end, too, is told at once and done when the disk lets go.
    begin(3);
    std::thread::scope(|scope| {
        let stopped = scope.spawn(|| talon.put("vm.shutdown", &json!({})).expect_status(204));
        wait_for("the guest to stand still", || {
            talon.get("vm.info").expect_status(200)["state"] == "Paused"
        });
        assert!(!stopped.is_finished());
        host.freeze("-u");
        stopped.join().expect("an end");
    });
    talon.put("vm.delete", &json!({})).expect_status(204);
}

fn places(context: &Context) {
    let all = [
        ("root", "0000:00:08.0"),
        ("seed", "0000:00:0a.0"),
        ("volume0", "0000:01:01.0"),
        ("volume22", "0000:01:17.0"),
    ];
    let mut config = context.config("vm");
    let mut disks = Vec::new();
    for (place, _) in all {
        let image = context.image(place, MIB);
        File::options()
            .write(true)
            .open(&image)
            .and_then(|file| file.write_all_at(place.as_bytes(), 0))
            .expect("bytes");
        disks.push(json!({ "path": image, "place": place, "serial": place, "id": place }));
    }
    config["disks"] = disks.into();
    let talon = context.boot("vm", &config);

    for (place, address) in all {
        let found = talon.ok(&format!(
            "for d in /sys/block/vd*; do [ \"$(cat $d/serial)\" = {place} ] && readlink $d && head -c {} /dev/${{d##*/}}; done; true",
            place.len()
        ));
        assert!(found.contains(&format!("/{address}/")), "{place}: {found}");
        assert!(found.ends_with(place), "{place}: {found}");
    }
    let info = talon.get("vm.info").expect_status(200);
    assert_eq!(info["device_tree"]["volume22"]["pci_bdf"], "0000:01:17.0");
}

fn block_readonly(context: &Context) {
    let image = context.image("disk", 4 * MIB);
    let mut config = context.config("vm");
    config["disks"] = json!([{ "path": image, "readonly": true }]);
    let talon = context.boot("vm", &config);

    assert_eq!(talon.ok("cat /sys/block/vda/ro"), "1");
    assert_ne!(
        talon
            .sh("dd if=/dev/zero of=/dev/vda bs=512 count=1 2>/dev/null")
            .1,
        0
    );
}

fn block_discard(context: &Context) {
    let image = context.image("disk", 16 * MIB);
    let file = File::options()
        .read(true)
        .write(true)
        .open(&image)
        .expect("an image");
    file.write_all_at(&vec![7; 8 << 20], 0).expect("bytes");
    let mut config = context.config("vm");
    config["disks"] = json!([{ "path": image }]);
    let talon = context.boot("vm", &config);
    let blocks = || {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(&image).expect("an image").blocks()
    };
    let before = blocks();

    talon.ok("blkdiscard -o 0 -l 4194304 /dev/vda");
    let after = blocks();
    file.write_all_at(&vec![7; 1 << 20], 0).expect("bytes");
    talon.zero("/dev/vda");
    let mut first = vec![1; 1 << 20];
    file.read_exact_at(&mut first, 0).expect("bytes");
    assert!(first.iter().all(|byte| *byte == 0));

    assert!(after < before, "{before} blocks before, {after} after");
    assert_eq!(
        talon.ok("dd if=/dev/vda bs=1M count=4 2>/dev/null | tr -d '\\000' | wc -c"),
        "0"
    );
    assert_eq!(
        talon.ok("dd if=/dev/vda bs=1M skip=4 count=4 2>/dev/null | tr -d '\\007' | wc -c"),
        "0"
    );
}

fn block_rate(context: &Context) {
    let image = context.image("disk", 16 * MIB);
    let mut config = context.config("vm");
    config["disks"] = json!([{
        "path": image,
        "rate_limiter_config": { "bandwidth": { "size": 2 * MIB, "refill_time": 1000 } },
    }]);
    let talon = context.boot("vm", &config);
    // The bucket is full at the start, so eight MiB take three seconds at least.
    let began = Instant::now();

    talon.ok("dd if=/dev/vda of=/dev/null bs=256k count=32 iflag=direct 2>/dev/null");

    let seconds = began.elapsed().as_secs_f64();
    assert!(seconds >= 2.8, "8 MiB at 2 MiB/s took {seconds:.2} s");
}

fn vsock_bulk(context: &Context) {
    let talon = context.boot("vm", &context.config("vm"));
    let bytes: Vec<u8> = (0..4u32 << 20)
        .map(|index| (index.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0])
        .collect();

    echo(talon.connect(), &bytes);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| echo(talon.connect(), &bytes[..1 << 19]));
        }
    });
}

fn vsock_guest(context: &Context) {
    // Booting waits for such a connection; here its bytes are looked at.
    let talon = context.talon("vm");
    let listener = UnixListener::bind(format!("{}_53", talon.vsock.display())).expect("a socket");
    talon
        .put("vm.create", &context.config("vm"))
        .expect_status(204);
    talon.put("vm.boot", &json!({})).expect_status(204);

    let (mut stream, _) = listener.accept().expect("a connection");
    let mut said = String::new();
    stream.read_to_string(&mut said).expect("bytes");

    assert_eq!(said, "up\n");
}

fn rng(context: &Context) {
    let talon = context.boot("vm", &context.config("vm"));

    assert_eq!(
        talon.ok("cat /sys/class/misc/hw_random/rng_current"),
        "virtio_rng.0"
    );
    assert_eq!(talon.ok("head -c 65536 /dev/hwrng | wc -c"), "65536");
    let counters = talon.get("vm.counters").expect_status(200);
    assert!(
        counters["rng"]["bytes"].as_u64() >= Some(65536),
        "{counters}"
    );
}

fn free_kib(talon: &Talon) -> u64 {
    talon
        .ok("awk '/MemFree/ {print $2}' /proc/meminfo")
        .parse()
        .expect("a number")
}

/// KiB of this talon's memory that no other process shares.
fn private_kib(talon: &Talon) -> u64 {
    let rollup =
        fs::read_to_string(format!("/proc/{}/smaps_rollup", talon.child.id())).expect("smaps");
    rollup
        .lines()
        .filter(|line| line.starts_with("Private_"))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum()
}

fn balloon(context: &Context) {
    let mut config = context.config("vm");
    config["balloon"] = json!({ "size": 0, "deflate_on_oom": true });
    let talon = context.boot("vm", &config);
    let before = free_kib(&talon);

    talon
        .put("vm.resize", &json!({ "desired_balloon": 32 * MIB }))
        .expect_status(204);
    wait_for("inflation", || {
        talon.get("vm.counters").expect_status(200)["balloon"]["actual_bytes"].as_u64()
            == Some(32 * MIB)
    });
    let inflated = free_kib(&talon);
    talon
        .put("vm.resize", &json!({ "desired_balloon": 0 }))
        .expect_status(204);
    wait_for("deflation", || {
        talon.get("vm.counters").expect_status(200)["balloon"]["actual_bytes"].as_u64() == Some(0)
    });

    assert!(
        inflated + (24 << 10) < before,
        "{before} KiB free before, {inflated} with the balloon"
    );
    wait_for("statistics", || {
        let counters = talon.get("vm.counters").expect_status(200);
        counters["balloon"]["total_memory"].as_u64() > Some(100 * MIB)
    });
    let refused = talon
        .put("vm.resize", &json!({ "desired_balloon": 1u64 << 40 }))
        .expect_status(400);
    assert_eq!(refused["path"], "desired_balloon");
}

fn reporting(context: &Context) {
    let mut config = context.config("vm");
    config["balloon"] = json!({ "size": 0, "free_page_reporting": true });
    let talon = context.boot("vm", &config);
    talon.ok("mount -t tmpfs none /mnt 2>/dev/null || (mkdir -p /mnt && mount -t tmpfs none /mnt)");
    talon.ok("dd if=/dev/zero of=/mnt/big bs=1M count=64 2>/dev/null");
    let full = private_kib(&talon);

    talon.ok("rm /mnt/big");

    wait_for("reported pages", || private_kib(&talon) + (32 << 10) < full);
}

/// A tap with an address on the host's side. Returns its descriptor.
pub fn tap(name: &str, address: &str) -> std::os::fd::OwnedFd {
    const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .expect("tun");
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    // IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
    request[16..18].copy_from_slice(&0x5002u16.to_le_bytes());
    // SAFETY: the request is a whole ifreq.
    let done = unsafe {
        libc::ioctl(
            std::os::fd::AsRawFd::as_raw_fd(&file),
            TUNSETIFF,
            request.as_mut_ptr(),
        )
    };
    assert_eq!(done, 0, "TUNSETIFF: {}", std::io::Error::last_os_error());
    for command in [
        // Nobody speaks on it unasked.
        format!("echo 1 > /proc/sys/net/ipv6/conf/{name}/disable_ipv6"),
        format!("ip addr add {address} dev {name}"),
        format!("ip link set {name} up"),
    ] {
        let done = Command::new("sh")
            .args(["-c", &command])
            .status()
            .expect("ip");
        assert!(done.success(), "{command}");
    }
    inheritable(file)
}

fn net(context: &Context) {
    let tap = tap("taptest0", "10.9.0.1/24");
    let fds = [(std::os::fd::AsRawFd::as_raw_fd(&tap), 30)];
    let mut talon = context.talon_with("vm", &[], &fds);
    let up = talon.expect_up();
    let mut config = context.config("vm");
    config["net"] = json!([{ "fds": [30], "mac": "02:00:00:00:00:07", "mtu": 1400 }]);
    talon.put("vm.create", &config).expect_status(204);
    talon.put("vm.boot", &json!({})).expect_status(204);
    talon.wait_up(&up);
    drop(tap);

    assert_eq!(
        talon.ok("cat /sys/class/net/eth0/address"),
        "02:00:00:00:00:07"
    );
    assert_eq!(talon.ok("cat /sys/class/net/eth0/mtu"), "1400");
    talon.ok("ifconfig lo up && ifconfig eth0 10.9.0.2 netmask 255.255.255.0 up");
    talon.ok("ping -c 2 -W 5 10.9.0.1 >/dev/null");
    // Both directions of TCP in bulk, through segmentation offload.
    let listener = std::net::TcpListener::bind("10.9.0.1:7000").expect("a port");
    let sink = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut count = 0;
        let mut part = vec![0; 64 << 10];
        while let Ok(read @ 1..) = stream.read(&mut part) {
            count += read;
        }
        count
    });
    talon.ok("dd if=/dev/zero bs=64k count=128 2>/dev/null | nc -w 10 10.9.0.1 7000");
    assert_eq!(sink.join().expect("a sink"), 8 << 20);
    talon.ok("(nc -l -p 7001 | wc -c > /received) >/dev/null 2>&1 &");
    wait_for("a listener", || {
        talon.sh("netstat -ltn | grep -q 7001").1 == 0
    });
    let frames = || {
        let counters = talon.get("vm.counters").expect_status(200);
        counters["net0"]["rx_frames"].as_u64().expect("a number")
    };
    // Counted for this direction alone: the other one's acknowledgements come in too.
    let before = frames();
    let mut stream = std::net::TcpStream::connect("10.9.0.2:7001").expect("the guest");
    stream.write_all(&vec![1; 8 << 20]).expect("bytes");
    drop(stream);
    wait_for("the bytes", || talon.sh("grep -q 8388608 /received").1 == 0);
    let counters = talon.get("vm.counters").expect_status(200);
    // The guest's own frames are as large as what its program writes at once, so what was agreed is looked at there.
    let frames = frames() - before;
    assert!(
        frames < 4000,
        "8 MiB came in {frames} frames: no segmentation offload"
    );
    let features = talon.ok("cat /sys/class/net/eth0/device/features");
    for bit in [0, 1, 7, 8, 11, 12, 15] {
        assert_eq!(
            features.as_bytes()[bit],
            b'1',
            "feature {bit} in {features}"
        );
    }
    assert_eq!(counters["net0"]["dropped"], 0, "{counters}");
}

fn consoles(context: &Context) {
    let mut config = context.config("vm");
    config["serial"] = json!({ "mode": "File", "file": context.path("serial.console") });
    config["payload"]["cmdline"] = "console=hvc0 console=ttyS0 panic=-1 loglevel=7".into();
    let talon = context.boot("vm", &config);

    talon.ok("echo '<1>both hear this' > /dev/kmsg");

    for name in ["serial.console", "vm.console"] {
        wait_for(name, || {
            fs::read_to_string(context.path(name)).is_ok_and(|text| text.contains("both hear this"))
        });
    }
}
