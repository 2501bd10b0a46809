//! A Debian package from a stream: an `ar` archive whose member `data.tar.*` holds the files (deb(5), ar(5)).

use std::io::{self, Read, Take};

use crate::pack::error::{Error, Result, show};

/// The first bytes of every `ar` archive.
pub const MAGIC: &[u8; 8] = b"!<arch>\n";
/// Size of a member's header.
const HEADER: usize = 60;
/// A package has three members; some tools add signatures.
const MEMBERS_MAX: u32 = 32;

/// Goes to the member that holds the files. `input` stands behind the magic.
///
/// # Errors
/// `package_malformed` if this is no Debian package, `archive_truncated` if it ends before its data.
pub fn data_member<R: Read>(mut input: R) -> Result<Take<R>> {
    let mut offset = MAGIC.len() as u64;
    for number in 0..MEMBERS_MAX {
        let mut header = [0; HEADER];
        exact(&mut input, &mut header, offset)?;
        offset += HEADER as u64;
        let (name, size) = parse(&header)?;
        if number == 0 && name != b"debian-binary" {
            return Err(bad(format!(
                "its first member is \"{}\", not \"debian-binary\"",
                show(name)
            )));
        }
        if name.starts_with(b"data.tar") {
            return Ok(input.take(size));
        }
        let padded = size + size % 2;
        let skipped = io::copy(&mut input.by_ref().take(padded), &mut io::sink())
            .map_err(|error| Error::from_read("the package", error))?;
        offset += skipped;
        if skipped < padded {
            return Err(Error::Truncated {
                what: "the package",
                offset,
            });
        }
    }
    Err(bad("it has no member \"data.tar\"".into()))
}

/// Name and size of a member.
fn parse(header: &[u8; HEADER]) -> Result<(&[u8], u64)> {
    if &header[58..] != b"`\n" {
        return Err(bad("a member's header is damaged".into()));
    }
    let trim = |field: &'static str, bytes: &[u8]| -> Result<u64> {
        std::str::from_utf8(bytes)
            .ok()
            .map(|text| text.trim_end_matches(' '))
            .filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| bad(format!("a member's {field} is no number")))
    };
    let name = header[..16].trim_ascii_end();
    Ok((
        name.strip_suffix(b"/").unwrap_or(name),
        trim("size", &header[48..58])?,
    ))
}

fn bad(reason: String) -> Error {
    Error::Package { reason }
}

fn exact(input: &mut impl Read, buf: &mut [u8], offset: u64) -> Result<()> {
    input.read_exact(buf).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Error::Truncated {
            what: "the package",
            offset,
        },
        _ => Error::from_read("the package", error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, data: &[u8]) -> Vec<u8> {
        let mut member = format!(
            "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n",
            0,
            0,
            0,
            100_644,
            data.len()
        )
        .into_bytes();
        member.extend(data);
        member.resize(member.len().next_multiple_of(2), b'\n');
        member
    }

    fn read(package: &[u8]) -> Result<Vec<u8>> {
        let mut data = Vec::new();
        data_member(package)?.read_to_end(&mut data).unwrap();
        Ok(data)
    }

    #[test]
    fn the_data_member_is_found_behind_odd_members() {
        let package = [
            member("debian-binary", b"2.0\n"),
            member("control.tar.xz/", b"odd"),
            member("data.tar.zst", b"files"),
        ];

        assert_eq!(read(&package.concat()).unwrap(), b"files");
    }

    #[test]
    fn what_is_no_package_is_refused() {
        let code = |package: &[u8]| read(package).unwrap_err().code().as_str();
        let plain = member("debian-binary", b"2.0\n");

        assert_eq!(code(&member("libc.o/", b"x")), "package_malformed");
        assert_eq!(
            code(&[plain.clone(), vec![b'x'; 60]].concat()),
            "package_malformed"
        );
        assert_eq!(code(&plain), "archive_truncated");
        assert_eq!(code(&plain[..62]), "archive_truncated");
        assert_eq!(code(&plain.repeat(40)), "package_malformed");
    }
}
