//! The packet header (virtio 1.2, section 5.10.6; `struct virtio_vsock_hdr` of linux/virtio_vsock.h).

/// Bytes of a header; the payload follows it at once, wherever a descriptor ends.
pub const HEADER_BYTES: usize = 44;

/// The context id of the host (`VMADDR_CID_HOST`).
pub const HOST_CID: u64 = 2;

/// `VIRTIO_VSOCK_TYPE_STREAM`: the only socket type that is offered.
pub(crate) const TYPE_STREAM: u16 = 1;

/// Flags of a SHUTDOWN packet; both bits say what its *sender* will not do any more.
pub mod shutdown {
    /// `VIRTIO_VSOCK_SHUTDOWN_RCV`
    pub const RECEIVE: u32 = 1;
    /// `VIRTIO_VSOCK_SHUTDOWN_SEND`
    pub const SEND: u32 = 2;
    /// Neither direction.
    pub const BOTH: u32 = RECEIVE | SEND;
}

/// `enum virtio_vsock_op`, without the invalid 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    Request = 1,
    Response = 2,
    Reset = 3,
    Shutdown = 4,
    ReadWrite = 5,
    CreditUpdate = 6,
    CreditRequest = 7,
}

impl Op {
    /// The operation of this number, or `None` where the specification has none.
    pub fn from_raw(raw: u16) -> Option<Self> {
        Some(match raw {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::ReadWrite,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

/// One header as it was read or will be written. `op` stays a number: a peer may say anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    /// Bytes of payload.
    pub len: u32,
    /// The socket type; the field is called `type` in the specification.
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    /// Bytes of receive buffer that the sender has for this connection.
    pub buf_alloc: u32,
    /// Bytes that the sender has taken out of that buffer so far, wrapping.
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads the little-endian layout of the wire.
    pub fn decode(raw: &[u8; HEADER_BYTES]) -> Self {
        Self {
            src_cid: u64::from_le_bytes(field(raw, 0)),
            dst_cid: u64::from_le_bytes(field(raw, 8)),
            src_port: u32::from_le_bytes(field(raw, 16)),
            dst_port: u32::from_le_bytes(field(raw, 20)),
            len: u32::from_le_bytes(field(raw, 24)),
            kind: u16::from_le_bytes(field(raw, 28)),
            op: u16::from_le_bytes(field(raw, 30)),
            flags: u32::from_le_bytes(field(raw, 32)),
            buf_alloc: u32::from_le_bytes(field(raw, 36)),
            fwd_cnt: u32::from_le_bytes(field(raw, 40)),
        }
    }

    /// Writes the little-endian layout of the wire.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut raw = [0; HEADER_BYTES];
        raw[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        raw[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        raw[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        raw[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        raw[24..28].copy_from_slice(&self.len.to_le_bytes());
        raw[28..30].copy_from_slice(&self.kind.to_le_bytes());
        raw[30..32].copy_from_slice(&self.op.to_le_bytes());
        raw[32..36].copy_from_slice(&self.flags.to_le_bytes());
        raw[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        raw[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        raw
    }

    /// The RST that answers this packet, addresses swapped and the type kept, as Linux's vhost answers.
    pub(crate) fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: Op::Reset as u16,
            ..Self::default()
        }
    }
}

fn field<const N: usize>(raw: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&raw[at..at + N]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_that_of_the_kernel_header() {
        let header = Header {
            src_cid: 0x0102_0304_0506_0708,
            dst_cid: 2,
            src_port: 0x1122_3344,
            dst_port: 0x5566_7788,
            len: 0x99aa_bbcc,
            kind: 1,
            op: 5,
            flags: 3,
            buf_alloc: 0xdead_beef,
            fwd_cnt: 0x0bad_cafe,
        };

        let raw = header.encode();

        assert_eq!(raw[..8], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(raw[16..20], [0x44, 0x33, 0x22, 0x11]);
        assert_eq!(raw[28..32], [1, 0, 5, 0]);
        assert_eq!(raw[40..], [0xfe, 0xca, 0xad, 0x0b]);
        assert_eq!(Header::decode(&raw), header);
    }

    #[test]
    fn every_op_comes_back_from_its_number_and_no_other_does() {
        for raw in 0..=u16::MAX {
            match Op::from_raw(raw) {
                Some(op) => assert_eq!(op as u16, raw),
                None => assert!(raw == 0 || raw > 7),
            }
        }
    }
}
