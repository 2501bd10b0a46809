//! Extended attributes stored behind an inode ("inline xattrs" of `erofs_fs.h`).

/// `struct erofs_xattr_ibody_header`.
const HEADER: usize = 12;
/// `struct erofs_xattr_entry`.
const ENTRY: usize = 4;

/// The names whose beginning is a number on disk; what has another cannot be stored.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

fn index(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|&(prefix, index)| {
        let rest = name.strip_prefix(prefix)?;
        // The two ACLs are whole names, the others need something behind them.
        ((prefix.ends_with(b".")) != rest.is_empty()).then_some((index, rest))
    })
}

/// Whether EROFS has a place for an attribute of this name.
pub fn is_storable(name: &[u8]) -> bool {
    index(name).is_some_and(|(_, rest)| u8::try_from(rest.len()).is_ok())
}

/// Bytes of a set behind its inode; 0 for none.
pub fn len(set: &[(Vec<u8>, Vec<u8>)]) -> usize {
    if set.is_empty() {
        return 0;
    }
    let entries = set
        .iter()
        .filter_map(|(name, value)| Some(entry_len(index(name)?.1, value)));
    HEADER + entries.sum::<usize>()
}

fn entry_len(rest: &[u8], value: &[u8]) -> usize {
    (ENTRY + rest.len() + value.len()).next_multiple_of(4)
}

/// `i_xattr_icount` for a set of `len` bytes.
pub fn count(len: usize) -> u16 {
    match len {
        0 => 0,
        len => u16::try_from((len - HEADER) / 4 + 1).unwrap_or(u16::MAX),
    }
}

/// Appends a set as it stands behind its inode.
pub fn encode(set: &[(Vec<u8>, Vec<u8>)], out: &mut Vec<u8>) {
    if set.is_empty() {
        return;
    }
    out.extend([0; HEADER]);
    for (name, value) in set {
        let Some((index, rest)) = index(name) else {
            continue;
        };
        let end = out.len() + entry_len(rest, value);
        out.push(u8::try_from(rest.len()).unwrap_or(0));
        out.push(index);
        out.extend(u16::try_from(value.len()).unwrap_or(0).to_le_bytes());
        out.extend(rest);
        out.extend(value);
        out.resize(end, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_with_a_place_on_disk_are_storable() {
        for name in [
            &b"user.x"[..],
            b"security.capability",
            b"trusted.overlay.opaque",
            b"system.posix_acl_access",
        ] {
            assert!(is_storable(name));
        }
        for name in [
            &b"user."[..],
            b"system.nfs4_acl",
            b"com.apple.quarantine",
            b"system.posix_acl_accessory",
            b"",
        ] {
            assert!(!is_storable(name), "{}", String::from_utf8_lossy(name));
        }
    }

    #[test]
    fn a_set_takes_as_many_bytes_as_it_says() {
        let set = vec![
            (b"security.capability".to_vec(), vec![1; 20]),
            (b"user.a".to_vec(), vec![]),
        ];
        let mut bytes = Vec::new();

        encode(&set, &mut bytes);

        assert_eq!(bytes.len(), len(&set));
        assert_eq!(count(bytes.len()), 1 + (36 + 8) / 4);
        assert_eq!(&bytes[12..16], &[10, 6, 20, 0]);
    }
}
