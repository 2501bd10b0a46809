//! Writes a tar stream: ustar headers, with a PAX header before those that do not fit one.

use super::{BLOCK_BYTES, Entry, EntryKind, Sparse};

/// The header of an entry, a whole number of blocks; the map of a sparse file is at its end.
pub fn header(entry: &Entry) -> Vec<u8> {
    let mut pax = Vec::new();
    let map = entry.sparse.as_ref().map(Sparse::map).unwrap_or_default();
    let plain = match &entry.sparse {
        Some(sparse) => {
            record(&mut pax, b"GNU.sparse.major", b"1");
            record(&mut pax, b"GNU.sparse.minor", b"0");
            record(&mut pax, b"GNU.sparse.name", &entry.path);
            let size = sparse.size.to_string();
            record(&mut pax, b"GNU.sparse.realsize", size.as_bytes());
            &Entry {
                path: plain_name(&entry.path),
                size: entry.size.saturating_add(map.len() as u64),
                ..entry.clone()
            }
        }
        None => entry,
    };
    if plain.path.len() > 100 {
        record(&mut pax, b"path", &plain.path);
    }
    if entry.link.len() > 100 {
        record(&mut pax, b"linkpath", &entry.link);
    }
    if octal(plain.size, 11).is_none() {
        record(&mut pax, b"size", plain.size.to_string().as_bytes());
    }
    for (key, id) in [(&b"uid"[..], entry.uid), (b"gid", entry.gid)] {
        if octal(u64::from(id), 7).is_none() {
            record(&mut pax, key, id.to_string().as_bytes());
        }
    }
    let (seconds, nanos) = entry.mtime;
    if seconds < 0 || nanos != 0 {
        record(&mut pax, b"mtime", time(seconds, nanos).as_bytes());
    }
    for (name, value) in &entry.xattrs {
        record(&mut pax, &[b"SCHILY.xattr.", &name[..]].concat(), value);
    }
    let mut bytes = Vec::new();
    if !pax.is_empty() {
        let extension = Entry {
            kind: EntryKind::File,
            path: b"PaxHeaders/entry".to_vec(),
            link: vec![],
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            size: pax.len() as u64,
            sparse: None,
            device: (0, 0),
            xattrs: vec![],
        };
        bytes.extend(block(&extension, b'x'));
        bytes.extend_from_slice(&pax);
        bytes.extend(padding(pax.len() as u64));
    }
    bytes.extend(block(plain, type_byte(entry.kind)));
    bytes.extend(map);
    bytes
}

/// What GNU tar calls a sparse file for readers that know nothing of holes.
fn plain_name(path: &[u8]) -> Vec<u8> {
    let slash = path
        .iter()
        .rposition(|&byte| byte == b'/')
        .map_or(0, |at| at + 1);
    let (folder, name) = path.split_at(slash);
    [folder, b"GNUSparseFile.0/", name].concat()
}

/// The zeros after `size` bytes of data.
pub fn padding(size: u64) -> Vec<u8> {
    let over = usize::try_from(size % BLOCK_BYTES as u64).unwrap_or(0);
    vec![0; (BLOCK_BYTES - over) % BLOCK_BYTES]
}

/// The end of a stream.
pub fn end() -> [u8; 2 * BLOCK_BYTES] {
    [0; 2 * BLOCK_BYTES]
}

const fn type_byte(kind: EntryKind) -> u8 {
    match kind {
        EntryKind::File | EntryKind::Other => b'0',
        EntryKind::HardLink => b'1',
        EntryKind::Symlink => b'2',
        EntryKind::Char => b'3',
        EntryKind::Block => b'4',
        EntryKind::Dir => b'5',
        EntryKind::Fifo => b'6',
    }
}

fn block(entry: &Entry, kind: u8) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, from) in block.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    };
    // What does not fit is in the PAX header; a reader without PAX gets the front.
    put(0, entry.path.get(..100).unwrap_or(&entry.path));
    put(157, entry.link.get(..100).unwrap_or(&entry.link));
    put(100, &field(u64::from(entry.mode), 7));
    put(108, &field(u64::from(entry.uid), 7));
    put(116, &field(u64::from(entry.gid), 7));
    put(124, &field(entry.size, 11));
    put(136, &field(u64::try_from(entry.mtime.0).unwrap_or(0), 11));
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    put(329, &field(u64::from(entry.device.0), 7));
    put(337, &field(u64::from(entry.device.1), 7));
    put(148, b"        ");
    let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
    for (to, from) in block.iter_mut().skip(148).zip(field(sum, 6)) {
        *to = from;
    }
    block
}

/// Zero where it does not fit: the PAX header has it.
fn field(value: u64, digits: usize) -> Vec<u8> {
    octal(value, digits).unwrap_or_else(|| vec![b'0'; digits])
}

fn octal(value: u64, digits: usize) -> Option<Vec<u8>> {
    let text = format!("{value:0digits$o}");
    (text.len() == digits).then(|| text.into_bytes())
}

/// One PAX record. Its length counts its own digits.
fn record(pax: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    pax.extend_from_slice(length.to_string().as_bytes());
    pax.push(b' ');
    pax.extend_from_slice(key);
    pax.push(b'=');
    pax.extend_from_slice(value);
    pax.push(b'\n');
}

fn time(seconds: i64, nanos: u32) -> String {
    match (seconds, nanos) {
        (_, 0) => seconds.to_string(),
        (0.., _) => format!("{seconds}.{nanos:09}"),
        // Before 1970 the fraction counts away from zero.
        _ => {
            let whole = seconds + 1;
            let sign = if whole == 0 { "-" } else { "" };
            format!("{sign}{whole}.{:09}", 1_000_000_000 - nanos)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        for size in 0..1200 {
            let mut pax = Vec::new();
            record(&mut pax, b"k", &vec![b'v'; size]);
            let stated: usize = String::from_utf8_lossy(&pax)
                .split(' ')
                .next()
                .unwrap()
                .parse()
                .unwrap();
            assert_eq!(stated, pax.len());
        }
    }

    #[test]
    fn times_before_1970_count_away_from_zero() {
        assert_eq!(time(-2, 750_000_000), "-1.250000000");
        assert_eq!(time(-1, 500_000_000), "-0.500000000");
        assert_eq!(time(5, 1), "5.000000001");
        assert_eq!(time(-5, 0), "-5");
    }
}
