//! What a machine is made of: a strict subset of Cloud Hypervisor's `VmConfig` (its openapi, v54), the same names and
//! meanings. A resource is a path; `/dev/fd/N` is an inherited descriptor, and the only path that a jailed talon takes.

mod node;

pub use node::{ConfigError, Fields};

use serde_json::Value;

use crate::layout;
use crate::machine::log::{KEPT_BYTES, KEPT_BYTES_MIN};
use crate::memory::HUGE_PAGE;

/// Processors at most: the local APIC ids of the ACPI table.
pub const CPUS_MAX: u8 = 64;
/// RAM at most: what a 46-bit physical address space and the layout allow with ease.
pub const RAM_MAX: u64 = 1 << 42;
const PATH_MAX: usize = 4096;
const ID_MAX: usize = 64;

/// Where bytes come from or go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// An inherited descriptor.
    Fd(i32),
    /// A file to open, outside the jail only.
    Path(String),
}

impl Source {
    fn parse(text: &str) -> Result<Self, String> {
        let number = text
            .strip_prefix("/dev/fd/")
            .or_else(|| text.strip_prefix("/proc/self/fd/"));
        match number {
            None if text.is_empty() => Err("is empty".to_owned()),
            None => Ok(Self::Path(text.to_owned())),
            Some(number) => match number.parse::<i32>() {
                Ok(fd) if fd >= 0 => Ok(Self::Fd(fd)),
                _ => Err(format!("{text} names no descriptor")),
            },
        }
    }
}

/// A token bucket as in Firecracker and Cloud Hypervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BucketConfig {
    /// Tokens it holds.
    pub size: u64,
    /// Tokens given once on top.
    pub one_time_burst: u64,
    /// Time to fill it, in milliseconds.
    pub refill_time_ms: u64,
}

/// Limits of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RateConfig {
    /// Bytes.
    pub bandwidth: Option<BucketConfig>,
    /// Requests.
    pub ops: Option<BucketConfig>,
}

/// A block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskConfig {
    /// Name, `disk0` by default.
    pub id: String,
    /// The raw image.
    pub path: Source,
    /// The guest may not write.
    pub readonly: bool,
    /// Serial number, at most 20 bytes.
    pub serial: Option<String>,
    /// Limits.
    pub rate: RateConfig,
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConfig {
    /// Name, `net0` by default.
    pub id: String,
    /// The tap.
    pub fd: i32,
    /// Hardware address.
    pub mac: [u8; 6],
    /// Largest packet, told to the guest.
    pub mtu: Option<u16>,
    /// Checksum offload.
    pub offload_csum: bool,
    /// TCP segmentation offload.
    pub offload_tso: bool,
    /// UDP segmentation offload.
    pub offload_ufo: bool,
    /// Limits.
    pub rate: RateConfig,
}

/// The balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalloonConfig {
    /// Bytes to take at start.
    pub size: u64,
    /// Give back when the guest is short of memory.
    pub deflate_on_oom: bool,
    /// The guest reports pages that it does not use.
    pub free_page_reporting: bool,
}

/// The socket device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VsockConfig {
    /// Context id of the guest.
    pub cid: u32,
    /// Path of the host's socket; guest-initiated connections go to `<socket>_<port>`.
    pub socket: String,
    /// Inherited listening socket; without it talon binds `socket` itself.
    pub listen_fd: Option<i32>,
}

/// What a console is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsoleMode {
    /// The device is not there.
    Off,
    /// The device is there, its output goes nowhere.
    Null,
    /// Standard output.
    Tty,
    /// A file.
    File,
    /// A Unix socket, for one client at a time.
    Socket(Source),
}

/// A console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleConfig {
    /// What it is connected to.
    pub mode: ConsoleMode,
    /// Takes its output: for mode `File`, and beside a socket.
    pub file: Option<Source>,
    /// Bytes of the file that are kept at least: the newest.
    pub file_bytes: u64,
}

impl ConsoleConfig {
    const OFF: Self = Self {
        mode: ConsoleMode::Off,
        file: None,
        file_bytes: KEPT_BYTES,
    };
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmConfig {
    /// Kernel, a vmlinux.
    pub kernel: Source,
    /// Initial RAM file system.
    pub initramfs: Option<Source>,
    /// Kernel command line.
    pub command_line: String,
    /// Processors.
    pub cpus: u8,
    /// Bytes of RAM.
    pub ram: u64,
    /// RAM is a memfd that can be frozen for forks.
    pub shared: bool,
    /// The launcher's memfd.
    pub ram_file: Option<Source>,
    /// Ask the host for huge pages.
    pub thp: bool,
    /// Block devices, in order.
    pub disks: Vec<DiskConfig>,
    /// Network devices, in order.
    pub nets: Vec<NetConfig>,
    /// Entropy device.
    pub rng: bool,
    /// Balloon.
    pub balloon: Option<BalloonConfig>,
    /// Socket device.
    pub vsock: Option<VsockConfig>,
    /// Serial port.
    pub serial: ConsoleConfig,
    /// Virtio console.
    pub console: ConsoleConfig,
}

impl VmConfig {
    /// Reads a `VmConfig`.
    ///
    /// # Errors
    /// With the path of the first field that is unknown or bad.
    pub fn parse(value: &Value) -> Result<Self, ConfigError> {
        let mut root = Fields::new("", value)?;
        let mut payload = root
            .object("payload")?
            .ok_or_else(|| root.problem("payload", "is missing"))?;
        let kernel = source(&mut payload, "kernel")?
            .ok_or_else(|| payload.problem("kernel", "is missing"))?;
        let initramfs = source(&mut payload, "initramfs")?;
        let command_line = payload
            .text("cmdline", layout::COMMAND_LINE_BYTES_MAX - 1)?
            .unwrap_or_default()
            .to_owned();
        for key in ["firmware", "igvm", "host_data"] {
            payload.unsupported(key)?;
        }
        payload.finish()?;

        let mut cpus = 1;
        if let Some(mut fields) = root.object("cpus")? {
            let limit = u64::from(CPUS_MAX);
            let boot = fields.number("boot_vcpus", 1, limit)?.unwrap_or(1);
            let max = fields.number("max_vcpus", boot, limit)?.unwrap_or(boot);
            if max != boot {
                return Err(fields.problem(
                    "max_vcpus",
                    "must equal boot_vcpus: processors are not hot-plugged",
                ));
            }
            fields.finish()?;
            cpus = u8::try_from(boot).unwrap_or(CPUS_MAX);
        }

        let mut fields = root
            .object("memory")?
            .ok_or_else(|| root.problem("memory", "is missing"))?;
        let memory = parse_memory(&mut fields)?;
        fields.finish()?;

        let mut disks = Vec::new();
        for (index, (path, value)) in root
            .array("disks", usize::from(layout::DISKS_MAX))?
            .into_iter()
            .enumerate()
        {
            disks.push(parse_disk(index, Fields::new(path, value)?)?);
        }
        let mut nets = Vec::new();
        for (index, (path, value)) in root
            .array("net", usize::from(layout::NETS_MAX))?
            .into_iter()
            .enumerate()
        {
            nets.push(parse_net(index, Fields::new(path, value)?)?);
        }
        let rng = match root.object("rng")? {
            None => false,
            Some(mut fields) => {
                if fields
                    .text("src", PATH_MAX)?
                    .is_some_and(|src| src != "/dev/urandom")
                {
                    return Err(fields.problem("src", "must be /dev/urandom"));
                }
                fields.unsupported("iommu")?;
                fields.finish()?;
                true
            }
        };
        let balloon = root
            .object("balloon")?
            .map(|fields| parse_balloon(fields, memory.size))
            .transpose()?;
        let vsock = root.object("vsock")?.map(parse_vsock).transpose()?;
        let serial = root
            .object("serial")?
            .map_or(Ok(ConsoleConfig::OFF), parse_console)?;
        let console = root
            .object("console")?
            .map_or(Ok(ConsoleConfig::OFF), parse_console)?;
        // pvpanic and the generation id are always there: they cost nothing.
        root.flag("pvpanic")?;
        root.unsupported("landlock_enable")?;
        for key in [
            "rate_limit_groups",
            "fs",
            "generic_vhost_user",
            "pmem",
            "debug_console",
            "devices",
            "user_devices",
            "vdpa",
            "numa",
            "iommu",
            "watchdog",
            "rtc",
            "pci_segments",
            "platform",
            "tpm",
            "landlock_rules",
        ] {
            root.unsupported(key)?;
        }
        root.finish()?;
        let config = Self {
            kernel,
            initramfs,
            command_line,
            cpus,
            ram: memory.size,
            shared: memory.shared,
            ram_file: memory.file,
            thp: memory.thp,
            disks,
            nets,
            rng,
            balloon,
            vsock,
            serial,
            console,
        };
        config.check_ids()?;
        Ok(config)
    }

    fn check_ids(&self) -> Result<(), ConfigError> {
        let mut seen = vec!["rng", "balloon", "vsock", "console"];
        let disks = self
            .disks
            .iter()
            .enumerate()
            .map(|(index, disk)| (format!("disks[{index}].id"), &disk.id));
        let nets = self
            .nets
            .iter()
            .enumerate()
            .map(|(index, net)| (format!("net[{index}].id"), &net.id));
        for (path, id) in disks.chain(nets) {
            if seen.contains(&id.as_str()) {
                return Err(ConfigError::new(path, format!("{id} is another device's")));
            }
            seen.push(id);
        }
        Ok(())
    }
}

fn source(fields: &mut Fields<'_>, key: &'static str) -> Result<Option<Source>, ConfigError> {
    fields
        .text(key, PATH_MAX)?
        .map(|text| Source::parse(text).map_err(|problem| fields.problem(key, problem)))
        .transpose()
}

struct Memory {
    size: u64,
    shared: bool,
    file: Option<Source>,
    thp: bool,
}

fn parse_memory(fields: &mut Fields<'_>) -> Result<Memory, ConfigError> {
    let mut size = fields.number("size", 0, RAM_MAX)?.unwrap_or(0);
    let mut shared = fields.flag("shared")?.unwrap_or(false);
    let thp = fields.flag("thp")?.unwrap_or(true);
    let mut file = None;
    let mut size_path = fields.path("size");
    if let Some((path, value)) = fields.array("zones", 1)?.into_iter().next() {
        let mut zone = Fields::new(path, value)?;
        if size != 0 {
            return Err(fields.problem("size", "must be 0 when there is a zone"));
        }
        zone.text("id", ID_MAX)?
            .ok_or_else(|| zone.problem("id", "is missing"))?;
        size = zone
            .number("size", 1, RAM_MAX)?
            .ok_or_else(|| zone.problem("size", "is missing"))?;
        shared = zone.flag("shared")?.unwrap_or(shared);
        file = source(&mut zone, "file")?;
        if file.is_some() && !shared {
            return Err(zone.problem("shared", "must be true for a zone with a file"));
        }
        for key in [
            "hugepages",
            "hugepage_size",
            "host_numa_node",
            "hotplug_size",
            "hotplugged_size",
            "prefault",
        ] {
            zone.unsupported(key)?;
        }
        size_path = zone.path("size");
        zone.finish()?;
    }
    if size < 32 << 20 || !size.is_multiple_of(HUGE_PAGE) {
        return Err(ConfigError::new(
            size_path,
            "must be a multiple of 2 MiB and at least 32 MiB",
        ));
    }
    for key in [
        "hugepages",
        "hugepage_size",
        "prefault",
        "mergeable",
        "hotplug_size",
        "hotplugged_size",
        "reserve",
    ] {
        fields.unsupported(key)?;
    }
    if fields
        .text("hotplug_method", 16)?
        .is_some_and(|method| method != "Acpi")
    {
        return Err(fields.problem("hotplug_method", "is not supported"));
    }
    Ok(Memory {
        size,
        shared,
        file,
        thp,
    })
}

fn bucket(fields: &mut Fields<'_>, key: &'static str) -> Result<Option<BucketConfig>, ConfigError> {
    let Some(mut bucket) = fields.object(key)? else {
        return Ok(None);
    };
    // A day: beyond it a refill is no rate any more.
    const REFILL_MS_MAX: u64 = 86_400_000;
    let size = bucket
        .number("size", 1, 1 << 60)?
        .ok_or_else(|| bucket.problem("size", "is missing"))?;
    let one_time_burst = bucket.number("one_time_burst", 0, 1 << 60)?.unwrap_or(0);
    let refill_time_ms = bucket
        .number("refill_time", 1, REFILL_MS_MAX)?
        .ok_or_else(|| bucket.problem("refill_time", "is missing"))?;
    bucket.finish()?;
    Ok(Some(BucketConfig {
        size,
        one_time_burst,
        refill_time_ms,
    }))
}

fn rate(fields: &mut Fields<'_>) -> Result<RateConfig, ConfigError> {
    fields.unsupported("rate_limit_group")?;
    let Some(mut rate) = fields.object("rate_limiter_config")? else {
        return Ok(RateConfig::default());
    };
    let config = RateConfig {
        bandwidth: bucket(&mut rate, "bandwidth")?,
        ops: bucket(&mut rate, "ops")?,
    };
    rate.finish()?;
    Ok(config)
}

fn id(fields: &mut Fields<'_>, default: String) -> Result<String, ConfigError> {
    match fields.text("id", ID_MAX)? {
        None => Ok(default),
        Some("") => Err(fields.problem("id", "is empty")),
        Some(id) => Ok(id.to_owned()),
    }
}

fn parse_disk(index: usize, mut fields: Fields<'_>) -> Result<DiskConfig, ConfigError> {
    let path = source(&mut fields, "path")?.ok_or_else(|| fields.problem("path", "is missing"))?;
    let config = DiskConfig {
        id: id(&mut fields, format!("disk{index}"))?,
        path,
        readonly: fields.flag("readonly")?.unwrap_or(false),
        // Longer ones would be cut in the guest and then not be found by their name.
        serial: fields.text("serial", 20)?.map(str::to_owned),
        rate: rate(&mut fields)?,
    };
    fields.number("num_queues", 1, 1)?;
    fields.number("queue_size", 1, 32768)?;
    if fields
        .text("image_type", 16)?
        .is_some_and(|kind| !matches!(kind, "Raw" | "Unknown"))
    {
        return Err(fields.problem("image_type", "must be Raw"));
    }
    for key in [
        "direct",
        "iommu",
        "vhost_user",
        "vhost_socket",
        "backing_files",
        "queue_affinity",
        "pci_segment",
    ] {
        fields.unsupported(key)?;
    }
    fields.finish()?;
    Ok(config)
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    // Multicast is nobody's address.
    (parts.next().is_none() && mac[0] & 1 == 0).then_some(mac)
}

fn parse_net(index: usize, mut fields: Fields<'_>) -> Result<NetConfig, ConfigError> {
    let mut fds = Vec::new();
    for (path, value) in fields.array("fds", 1)? {
        match value.as_i64().and_then(|fd| i32::try_from(fd).ok()) {
            Some(fd) if fd >= 0 => fds.push(fd),
            _ => return Err(ConfigError::new(path, "is no descriptor")),
        }
    }
    fields.unsupported("tap")?;
    let fd = *fds
        .first()
        .ok_or_else(|| fields.problem("fds", "must hold the tap's descriptor"))?;
    let mac = fields
        .text("mac", 17)?
        .ok_or_else(|| fields.problem("mac", "is missing"))?;
    let mac =
        parse_mac(mac).ok_or_else(|| fields.problem("mac", "is not a unicast hardware address"))?;
    let config = NetConfig {
        id: id(&mut fields, format!("net{index}"))?,
        fd,
        mac,
        mtu: fields
            .number("mtu", 1280, 65535)?
            .and_then(|mtu| u16::try_from(mtu).ok()),
        offload_csum: fields.flag("offload_csum")?.unwrap_or(true),
        offload_tso: fields.flag("offload_tso")?.unwrap_or(true),
        offload_ufo: fields.flag("offload_ufo")?.unwrap_or(true),
        rate: rate(&mut fields)?,
    };
    fields.number("num_queues", 2, 2)?;
    fields.number("queue_size", 1, 32768)?;
    for key in [
        "ip",
        "mask",
        "host_mac",
        "iommu",
        "vhost_user",
        "vhost_socket",
        "vhost_mode",
        "pci_segment",
    ] {
        fields.unsupported(key)?;
    }
    fields.finish()?;
    Ok(config)
}

fn parse_balloon(mut fields: Fields<'_>, ram: u64) -> Result<BalloonConfig, ConfigError> {
    let config = BalloonConfig {
        size: fields.number("size", 0, ram)?.unwrap_or(0),
        deflate_on_oom: fields.flag("deflate_on_oom")?.unwrap_or(false),
        free_page_reporting: fields.flag("free_page_reporting")?.unwrap_or(false),
    };
    fields.finish()?;
    Ok(config)
}

fn parse_vsock(mut fields: Fields<'_>) -> Result<VsockConfig, ConfigError> {
    // 0 to 2 belong to the hypervisor, the loopback and the host; the last is VMADDR_CID_ANY (virtio 1.2, 5.10.4).
    let cid = fields
        .number("cid", 3, 0xffff_fffe)?
        .and_then(|cid| u32::try_from(cid).ok())
        .ok_or_else(|| fields.problem("cid", "is missing"))?;
    // sockaddr_un holds 107 bytes, of which `_<port>` takes up to 11.
    let socket = fields
        .text("socket", 96)?
        .ok_or_else(|| fields.problem("socket", "is missing"))?
        .to_owned();
    let listen_fd = fields
        .number("fd", 0, i32::MAX as u64)?
        .and_then(|fd| i32::try_from(fd).ok());
    fields.text("id", ID_MAX)?;
    fields.unsupported("iommu")?;
    fields.unsupported("pci_segment")?;
    fields.finish()?;
    Ok(VsockConfig {
        cid,
        socket,
        listen_fd,
    })
}

fn parse_console(mut fields: Fields<'_>) -> Result<ConsoleConfig, ConfigError> {
    let file = source(&mut fields, "file")?;
    let socket = source(&mut fields, "socket")?;
    let file_bytes = fields
        .number("file_bytes", KEPT_BYTES_MIN, 1 << 50)?
        .unwrap_or(KEPT_BYTES);
    let mode = match fields.text("mode", 16)? {
        Some("Off") => ConsoleMode::Off,
        Some("Null") => ConsoleMode::Null,
        Some("Tty") => ConsoleMode::Tty,
        Some("File") if file.is_none() => {
            return Err(fields.problem("file", "is missing for mode File"));
        }
        Some("File") => ConsoleMode::File,
        Some("Socket") => ConsoleMode::Socket(
            socket
                .clone()
                .ok_or_else(|| fields.problem("socket", "is missing for mode Socket"))?,
        ),
        Some(_) => return Err(fields.problem("mode", "must be Off, Null, Tty, File or Socket")),
        None => return Err(fields.problem("mode", "is missing")),
    };
    if file.is_some() && !matches!(mode, ConsoleMode::File | ConsoleMode::Socket(_)) {
        return Err(fields.problem("file", "is of no use without mode File or Socket"));
    }
    if socket.is_some() && !matches!(mode, ConsoleMode::Socket(_)) {
        return Err(fields.problem("socket", "is of no use without mode Socket"));
    }
    fields.unsupported("iommu")?;
    fields.finish()?;
    Ok(ConsoleConfig {
        mode,
        file,
        file_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn minimal() -> Value {
        json!({ "payload": { "kernel": "/dev/fd/5" }, "memory": { "size": 128 << 20 } })
    }

    fn path_of(value: &Value) -> String {
        VmConfig::parse(value).unwrap_err().path
    }

    #[test]
    fn the_smallest_machine_has_one_processor_and_no_devices() {
        let config = VmConfig::parse(&minimal()).unwrap();

        assert_eq!(
            (config.cpus, config.ram, config.kernel),
            (1, 128 << 20, Source::Fd(5))
        );
        assert!(config.disks.is_empty() && !config.rng);
    }

    #[test]
    fn errors_name_the_field() {
        let with = |key: &str, value: Value| {
            let mut config = minimal();
            config[key] = value;
            config
        };

        assert_eq!(path_of(&json!({})), "payload");
        assert_eq!(path_of(&json!([])), "");
        assert_eq!(
            path_of(&with("memory", json!({ "size": 5 }))),
            "memory.size"
        );
        assert_eq!(
            path_of(&with(
                "disks",
                json!([{ "path": "/dev/fd/3" }, { "path": 1 }])
            )),
            "disks[1].path"
        );
        assert_eq!(
            path_of(&with(
                "disks",
                json!([{ "path": "/x", "id": "a" }, { "path": "/x", "id": "a" }])
            )),
            "disks[1].id"
        );
        assert_eq!(path_of(&with("colour", json!(1))), "colour");
        assert_eq!(
            path_of(&with("vsock", json!({ "cid": 2, "socket": "/v" }))),
            "vsock.cid"
        );
        assert_eq!(
            path_of(&with(
                "net",
                json!([{ "fds": [3], "mac": "01:00:00:00:00:01" }])
            )),
            "net[0].mac"
        );
        assert!(
            VmConfig::parse(&with("tpm", json!({ "socket": "/t" })))
                .unwrap_err()
                .unsupported
        );
    }

    #[test]
    fn a_console_has_what_its_mode_needs_and_nothing_else() {
        let console = |console: Value| {
            let mut config = minimal();
            config["serial"] = console;
            VmConfig::parse(&config)
                .map(|config| config.serial)
                .map_err(|error| error.path)
        };

        let socket = json!({ "mode": "Socket", "socket": "/dev/fd/7", "file": "/dev/fd/8", "file_bytes": 1 << 20 });
        let expected = ConsoleConfig {
            mode: ConsoleMode::Socket(Source::Fd(7)),
            file: Some(Source::Fd(8)),
            file_bytes: 1 << 20,
        };
        assert_eq!(console(socket), Ok(expected));
        for (bad, path) in [
            (json!({ "mode": "Socket" }), "serial.socket"),
            (json!({ "mode": "File" }), "serial.file"),
            (json!({ "mode": "Pty" }), "serial.mode"),
            (json!({ "mode": "Null", "socket": "/s" }), "serial.socket"),
            (json!({ "mode": "Tty", "file": "/f" }), "serial.file"),
            (
                json!({ "mode": "File", "file": "/f", "file_bytes": 1 }),
                "serial.file_bytes",
            ),
        ] {
            assert_eq!(console(bad.clone()), Err(path.to_owned()), "{bad}");
        }
    }

    #[test]
    fn null_is_an_unset_optional() {
        let mut config = minimal();
        config["vsock"] = Value::Null;
        config["tpm"] = Value::Null;

        assert!(VmConfig::parse(&config).unwrap().vsock.is_none());
    }
}
