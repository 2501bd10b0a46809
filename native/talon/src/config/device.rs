//! Devices but for consoles: disks, network cards, balloon and vsock, with their limits.

use super::source::{ID_MAX, Source, source};
use super::{ConfigError, Fields};
use crate::layout;

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
    /// Flushes of a disk, each of which the host's file system may make everybody wait for.
    pub flushes: Option<BucketConfig>,
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
    /// Where on the bus it stands, see [`layout::disk_slot`].
    pub place: u8,
    /// Serial number, at most 20 bytes.
    pub serial: Option<String>,
    /// Limits.
    pub rate: RateConfig,
    /// Limits that it shares, in place of its own: which of [`super::VmConfig::rate_groups`].
    pub rate_group: Option<usize>,
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConfig {
    /// Name, `net0` by default.
    pub id: String,
    /// Where on the bus it stands, counted from [`layout::SLOT_NET`].
    pub place: u8,
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
    let Some(mut rate) = fields.object("rate_limiter_config")? else {
        return Ok(RateConfig::default());
    };
    let config = RateConfig {
        bandwidth: bucket(&mut rate, "bandwidth")?,
        ops: bucket(&mut rate, "ops")?,
        flushes: bucket(&mut rate, "flushes")?,
    };
    rate.finish()?;
    Ok(config)
}

/// Limits that disks share, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateGroup {
    /// The name.
    pub id: String,
    /// The limits.
    pub rate: RateConfig,
}

/// Groups at most: more than one for each disk is of no use.
const RATE_GROUPS_MAX: usize = layout::DISKS_MAX as usize;

pub(super) fn parse_rate_groups(root: &mut Fields<'_>) -> Result<Vec<RateGroup>, ConfigError> {
    let mut groups: Vec<RateGroup> = Vec::new();
    for (path, value) in root.array("rate_limit_groups", RATE_GROUPS_MAX)? {
        let mut fields = Fields::new(path, value)?;
        let id = fields
            .text("id", ID_MAX)?
            .ok_or_else(|| fields.problem("id", "is missing"))?;
        if groups.iter().any(|group| group.id == id) {
            return Err(fields.problem("id", "is another group's"));
        }
        let id = id.to_owned();
        let rate = rate(&mut fields)?;
        fields.finish()?;
        groups.push(RateGroup { id, rate });
    }
    Ok(groups)
}

fn id(fields: &mut Fields<'_>, default: String) -> Result<String, ConfigError> {
    match fields.text("id", ID_MAX)? {
        None => Ok(default),
        Some("") => Err(fields.problem("id", "is empty")),
        Some(id) => Ok(id.to_owned()),
    }
}

/// Places of disks that a machine has one of; volumes follow as `volume0` to `volume22`.
const OWN_DISKS: [&str; layout::OWN_DISKS as usize] = ["root", "overlay", "seed", "runtime"];

fn disk_place(fields: &mut Fields<'_>) -> Result<Option<u8>, ConfigError> {
    let Some(name) = fields.text("place", 16)? else {
        return Ok(None);
    };
    let own = (0..).zip(OWN_DISKS).find(|(_, own)| *own == name);
    let volume = || {
        let number = name.strip_prefix("volume")?.parse::<u8>().ok()?;
        (number < layout::VOLUMES_MAX).then_some(layout::OWN_DISKS + number)
    };
    match own.map(|(place, _)| place).or_else(volume) {
        Some(place) => Ok(Some(place)),
        None => Err(fields.problem(
            "place",
            "must be root, overlay, seed, runtime, or volume0 to volume22",
        )),
    }
}

/// Gives a place to whoever has none: the next free one, in the order of the list.
///
/// # Errors
/// When two want the same.
pub(super) fn fill_places(
    list: &'static str,
    wanted: &[Option<u8>],
    places: u8,
) -> Result<Vec<u8>, ConfigError> {
    let mut taken = 0u64;
    for (index, place) in wanted.iter().enumerate() {
        let Some(place) = place else { continue };
        if taken & 1 << place != 0 {
            let path = format!("{list}[{index}].place");
            return Err(ConfigError::new(path, "is another device's"));
        }
        taken |= 1 << place;
    }
    let mut free = (0..places).filter(|place| taken & 1 << place == 0);
    let places = wanted.iter().map(|place| place.or_else(|| free.next()));
    places
        .collect::<Option<Vec<u8>>>()
        .ok_or_else(|| ConfigError::new(list, "has more entries than places"))
}

/// A device with the place that it asks for.
pub(super) type Placed<T> = (T, Option<u8>);

pub(super) fn parse_disk(
    groups: &[RateGroup],
    index: usize,
    mut fields: Fields<'_>,
) -> Result<Placed<DiskConfig>, ConfigError> {
    let place = disk_place(&mut fields)?;
    let rate_group = match fields.text("rate_limit_group", ID_MAX)? {
        None => None,
        Some(name) => match groups.iter().position(|group| group.id == name) {
            None => return Err(fields.problem("rate_limit_group", "is no group")),
            group => group,
        },
    };
    let path = source(&mut fields, "path")?.ok_or_else(|| fields.problem("path", "is missing"))?;
    let config = DiskConfig {
        id: id(&mut fields, format!("disk{index}"))?,
        path,
        readonly: fields.flag("readonly")?.unwrap_or(false),
        place: 0,
        // Longer ones would be cut in the guest and then not be found by their name.
        serial: fields.text("serial", 20)?.map(str::to_owned),
        rate: rate(&mut fields)?,
        rate_group,
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
    Ok((config, place))
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

pub(super) fn parse_net(
    index: usize,
    mut fields: Fields<'_>,
) -> Result<Placed<NetConfig>, ConfigError> {
    let place = fields
        .number("place", 0, u64::from(layout::NETS_MAX - 1))?
        .and_then(|place| u8::try_from(place).ok());
    fields.unsupported("rate_limit_group")?;
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
        place: 0,
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
    Ok((config, place))
}

pub(super) fn parse_balloon(
    mut fields: Fields<'_>,
    ram: u64,
) -> Result<BalloonConfig, ConfigError> {
    let config = BalloonConfig {
        size: fields.number("size", 0, ram)?.unwrap_or(0),
        deflate_on_oom: fields.flag("deflate_on_oom")?.unwrap_or(false),
        free_page_reporting: fields.flag("free_page_reporting")?.unwrap_or(false),
    };
    fields.finish()?;
    Ok(config)
}

pub(super) fn parse_vsock(mut fields: Fields<'_>) -> Result<VsockConfig, ConfigError> {
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
