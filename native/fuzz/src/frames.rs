//! What comes from a guest's agent, or goes to it: any bytes, cut anywhere, through the decoder and the typed readers.

/// The first two bytes say where the rest is cut.
pub(crate) fn read(input: &[u8]) {
    let (cut, bytes) = input.split_at(input.len().min(2));
    let cut = cut
        .iter()
        .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    let (first, second) = bytes.split_at(cut.min(bytes.len()));
    aerie_protocol::hostile::decode([first, second]);
}
