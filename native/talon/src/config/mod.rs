//! What a machine is made of: a strict subset of Cloud Hypervisor's `VmConfig` (its openapi, v54), the same names and
//! meanings. A resource is a path; `/dev/fd/N` is an inherited descriptor, and the only path that a jailed talon takes.

mod console;
mod device;
mod node;
mod source;

pub use console::{ConsoleConfig, ConsoleMode, KEPT_BYTES_MIN};
pub use device::{
    BalloonConfig, BucketConfig, DiskConfig, NetConfig, RateConfig, RateGroup, VsockConfig,
};
pub use node::{ConfigError, Fields};
pub use source::Source;

use serde_json::Value;

use crate::layout;
use crate::memory::HUGE_PAGE;
use console::parse_console;
use device::{
    Placed, fill_places, parse_balloon, parse_disk, parse_net, parse_rate_groups, parse_vsock,
};
use source::{ID_MAX, PATH_MAX, source};

/// Processors at most: the local APIC ids of the ACPI table.
pub const CPUS_MAX: u8 = 64;
/// RAM at most: what a 46-bit physical address space and the layout allow with ease.
pub const RAM_MAX: u64 = 1 << 42;
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
    /// Limits that disks share.
    pub rate_groups: Vec<RateGroup>,
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

/// Fields of Cloud Hypervisor's that are not done here.
const UNSUPPORTED: [&str; 16] = [
    "landlock_enable",
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
];

impl VmConfig {
    /// Reads a `VmConfig`.
    ///
    /// # Errors
    /// With the path of the first field that is unknown or bad.
    pub fn parse(value: &Value) -> Result<Self, ConfigError> {
        let mut root = Fields::new("", value)?;
        let payload = parse_payload(&mut root)?;
        let cpus = parse_cpus(&mut root)?;
        let memory = parse_memory(&mut root)?;
        let rate_groups = parse_rate_groups(&mut root)?;
        let parse_disk = |index: usize, fields: Fields<'_>| parse_disk(&rate_groups, index, fields);
        let disks = parse_list(&mut root, "disks", layout::DISKS_MAX, parse_disk, |disk| {
            &mut disk.place
        })?;
        let nets = parse_list(&mut root, "net", layout::NETS_MAX, parse_net, |net| {
            &mut net.place
        })?;
        let rng = parse_rng(&mut root)?;
        let balloon = root
            .object("balloon")?
            .map(|fields| parse_balloon(fields, memory.size))
            .transpose()?;
        let vsock = root.object("vsock")?.map(parse_vsock).transpose()?;
        let mut console = |key| {
            root.object(key)?
                .map_or(Ok(ConsoleConfig::OFF), parse_console)
        };
        let (serial, console) = (console("serial")?, console("console")?);
        // pvpanic and the generation id are always there: they cost nothing.
        root.flag("pvpanic")?;
        for key in UNSUPPORTED {
            root.unsupported(key)?;
        }
        root.finish()?;
        let config = Self {
            kernel: payload.kernel,
            initramfs: payload.initramfs,
            command_line: payload.command_line,
            cpus,
            ram: memory.size,
            shared: memory.shared,
            ram_file: memory.file,
            thp: memory.thp,
            rate_groups,
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

    /// Buses that a device stands on, the first always among them.
    #[must_use]
    pub fn buses(&self) -> u8 {
        let slots = self.disks.iter().map(|disk| layout::disk_slot(disk.place));
        slots.map(layout::bus_of).max().unwrap_or(0) + 1
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

struct Payload {
    kernel: Source,
    initramfs: Option<Source>,
    command_line: String,
}

fn parse_payload(root: &mut Fields<'_>) -> Result<Payload, ConfigError> {
    let mut fields = root
        .object("payload")?
        .ok_or_else(|| root.problem("payload", "is missing"))?;
    let kernel =
        source(&mut fields, "kernel")?.ok_or_else(|| fields.problem("kernel", "is missing"))?;
    let initramfs = source(&mut fields, "initramfs")?;
    let command_line = fields
        .text("cmdline", layout::COMMAND_LINE_BYTES_MAX - 1)?
        .unwrap_or_default()
        .to_owned();
    for key in ["firmware", "igvm", "host_data"] {
        fields.unsupported(key)?;
    }
    fields.finish()?;
    Ok(Payload {
        kernel,
        initramfs,
        command_line,
    })
}

fn parse_cpus(root: &mut Fields<'_>) -> Result<u8, ConfigError> {
    let Some(mut fields) = root.object("cpus")? else {
        return Ok(1);
    };
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
    Ok(u8::try_from(boot).unwrap_or(CPUS_MAX))
}

fn parse_list<T>(
    root: &mut Fields<'_>,
    key: &'static str,
    places: u8,
    parse: impl Fn(usize, Fields<'_>) -> Result<Placed<T>, ConfigError>,
    place: fn(&mut T) -> &mut u8,
) -> Result<Vec<T>, ConfigError> {
    let (mut devices, mut wanted) = (Vec::new(), Vec::new());
    for (index, (path, value)) in root
        .array(key, usize::from(places))?
        .into_iter()
        .enumerate()
    {
        let (device, at) = parse(index, Fields::new(path, value)?)?;
        devices.push(device);
        wanted.push(at);
    }
    for (device, at) in devices.iter_mut().zip(fill_places(key, &wanted, places)?) {
        *place(device) = at;
    }
    Ok(devices)
}

fn parse_rng(root: &mut Fields<'_>) -> Result<bool, ConfigError> {
    let Some(mut fields) = root.object("rng")? else {
        return Ok(false);
    };
    if fields
        .text("src", PATH_MAX)?
        .is_some_and(|src| src != "/dev/urandom")
    {
        return Err(fields.problem("src", "must be /dev/urandom"));
    }
    fields.unsupported("iommu")?;
    fields.finish()?;
    Ok(true)
}

struct Memory {
    size: u64,
    shared: bool,
    file: Option<Source>,
    thp: bool,
}

fn parse_memory(root: &mut Fields<'_>) -> Result<Memory, ConfigError> {
    let mut fields = root
        .object("memory")?
        .ok_or_else(|| root.problem("memory", "is missing"))?;
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
    fields.finish()?;
    Ok(Memory {
        size,
        shared,
        file,
        thp,
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
    fn a_disk_keeps_its_place_whatever_stands_beside_it() {
        let places = |disks: &[&str]| {
            let disks: Vec<Value> = disks
                .iter()
                .map(|place| match *place {
                    "" => json!({ "path": "/x" }),
                    place => json!({ "path": "/x", "place": place }),
                })
                .collect();
            let mut config = minimal();
            config["disks"] = disks.into();
            VmConfig::parse(&config)
                .map(|config| {
                    let slots: Vec<u8> = config
                        .disks
                        .iter()
                        .map(|disk| layout::disk_slot(disk.place))
                        .collect();
                    (slots, config.buses())
                })
                .map_err(|error| error.path)
        };

        assert_eq!(places(&[]), Ok((vec![], 1)));
        assert_eq!(places(&["", ""]), Ok((vec![8, 9], 1)));
        assert_eq!(
            places(&["root", "overlay", "volume0", "volume22"]),
            Ok((vec![8, 9, 33, 55], 2))
        );
        assert_eq!(
            places(&["overlay", "", "seed", ""]),
            Ok((vec![9, 8, 10, 11], 1))
        );
        assert_eq!(places(&[""; 27]).map(|(slots, _)| slots[26]), Ok(55));
        assert_eq!(
            places(&["seed", "", "seed"]),
            Err("disks[2].place".to_owned())
        );
        assert_eq!(places(&["volume23"]), Err("disks[0].place".to_owned()));
        assert_eq!(places(&[""; 28]), Err("disks".to_owned()));
    }

    #[test]
    fn eight_network_cards_have_places_too() {
        let net =
            |place: Option<u8>| json!({ "fds": [3], "mac": "02:00:00:00:00:01", "place": place });
        let mut config = minimal();
        config["net"] = json!([net(None), net(Some(0)), net(Some(7))]);

        let places: Vec<u8> = VmConfig::parse(&config)
            .unwrap()
            .nets
            .iter()
            .map(|net| net.place)
            .collect();

        assert_eq!(places, [1, 0, 7]);
        config["net"] = json!([net(Some(8))]);
        assert_eq!(path_of(&config), "net[0].place");
    }

    #[test]
    fn null_is_an_unset_optional() {
        let mut config = minimal();
        config["vsock"] = Value::Null;
        config["tpm"] = Value::Null;

        assert!(VmConfig::parse(&config).unwrap().vsock.is_none());
    }
}
