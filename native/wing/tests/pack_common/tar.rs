//! Archives made entry by entry, lies included.

/// A tar archive that grows.
#[derive(Debug, Clone, Default)]
pub struct Tar(Vec<u8>);

/// One header, as its author wants it.
#[derive(Debug, Clone)]
pub struct Header<'a> {
    pub path: &'a str,
    pub kind: u8,
    pub link: &'a str,
    pub mode: u32,
    pub size: u64,
    pub mtime: u64,
    pub device: (u32, u32),
}

impl Default for Header<'_> {
    fn default() -> Self {
        Self {
            path: "",
            kind: b'0',
            link: "",
            mode: 0o644,
            size: 0,
            mtime: 1_000_000_000,
            device: (0, 0),
        }
    }
}

impl Tar {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn file(self, path: &str, data: impl AsRef<[u8]>) -> Self {
        let data = data.as_ref();
        let size = data.len() as u64;
        let header = Header {
            path,
            size,
            ..Header::default()
        };
        self.header(&header).data(data)
    }

    pub fn folder(self, path: &str) -> Self {
        self.header(&Header {
            path,
            kind: b'5',
            mode: 0o755,
            ..Header::default()
        })
    }

    pub fn symlink(self, path: &str, link: &str) -> Self {
        self.header(&Header {
            path,
            kind: b'2',
            link,
            mode: 0o777,
            ..Header::default()
        })
    }

    pub fn hard_link(self, path: &str, link: &str) -> Self {
        self.header(&Header {
            path,
            kind: b'1',
            link,
            ..Header::default()
        })
    }

    /// PAX records for the next entry.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut len = rest + 1;
            while len != rest + len.to_string().len() {
                len = rest + len.to_string().len();
            }
            data.extend(format!("{len} {key}=").into_bytes());
            data.extend(*value);
            data.push(b'\n');
        }
        let header = Header {
            path: "pax",
            kind: b'x',
            size: data.len() as u64,
            ..Header::default()
        };
        self.header(&header).data(&data)
    }

    pub fn header(mut self, header: &Header) -> Self {
        let mut block = [0; 512];
        let mut put =
            |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
        if header.path.len() <= 100 {
            put(0, header.path);
        } else {
            let cut = header.path[..155].rfind('/').unwrap();
            put(345, &header.path[..cut]);
            put(0, &header.path[cut + 1..]);
        }
        put(100, &format!("{:07o}\0", header.mode));
        put(108, "0000000\0");
        put(116, "0000000\0");
        put(124, &format!("{:011o}\0", header.size));
        put(136, &format!("{:011o}\0", header.mtime));
        put(148, "        ");
        put(157, header.link);
        put(257, "ustar\x0000");
        put(329, &format!("{:07o}\0", header.device.0));
        put(337, &format!("{:07o}\0", header.device.1));
        block[156] = header.kind;
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend(block);
        self
    }

    pub fn data(mut self, data: &[u8]) -> Self {
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// Ends the archive.
    pub fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }

    /// The archive without its end.
    pub fn unended(self) -> Vec<u8> {
        self.0
    }
}
