//! What a kernel surely does not contain. A driver or file system that is built in has its name in the image as a string
//! that ends with NUL: `.driver.name = KBUILD_MODNAME`, `file_system_type.name`. Where there is no such string it is not
//! built in; where there is one it may stand for something else, and proves nothing.

use memchr::memmem;

/// Looks for names in an image that goes by in parts.
#[derive(Debug)]
pub struct Names {
    /// Those that have not been seen, each with its NUL.
    open: Vec<String>,
    /// The end of what has gone by, where a name may have begun.
    tail: Vec<u8>,
}

impl Names {
    pub fn new(names: &[String]) -> Self {
        Self {
            open: names.iter().map(|name| format!("{name}\0")).collect(),
            tail: Vec::new(),
        }
    }

    pub fn see(&mut self, part: &[u8]) {
        self.tail.extend_from_slice(part);
        self.open
            .retain(|name| memmem::find(&self.tail, name.as_bytes()).is_none());
        let longest = self.open.iter().map(String::len).max().unwrap_or(1);
        self.tail
            .drain(..self.tail.len().saturating_sub(longest - 1));
    }

    /// The names that were nowhere.
    pub fn absent(self) -> Vec<String> {
        self.open
            .iter()
            .map(|name| name.trim_end_matches('\0').to_owned())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_counts_with_its_end_wherever_the_parts_are_cut() {
        let image = b"xerofs\0ext4_super\0virtio_blk";
        let names: Vec<String> = ["erofs", "ext4", "virtio_blk"].map(String::from).into();
        for size in 1..image.len() {
            let mut seen = Names::new(&names);

            image.chunks(size).for_each(|part| seen.see(part));

            assert_eq!(seen.absent(), ["ext4", "virtio_blk"], "in parts of {size}");
        }
    }
}
