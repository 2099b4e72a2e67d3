//! Lays out the machine's flash: the first stage at 0, a firmware image package behind it.

use std::fmt;

use monitor::fip::{Entry, Header, NAME, Name, OFFSET};
use zerocopy::IntoBytes;

/// The size of the `virt` machine's flash bank.
pub const MAX_SIZE: usize = 64 << 20;

/// Why there is no flash image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlashError {
    /// The first stage reaches into the package.
    FirstStage,
    /// All together is larger than [`MAX_SIZE`].
    TooLarge,
}

impl fmt::Display for FlashError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FirstStage => write!(f, "the first stage is larger than {OFFSET:#x} bytes"),
            Self::TooLarge => write!(f, "the flash image would be larger than {MAX_SIZE:#x} bytes"),
        }
    }
}

impl std::error::Error for FlashError {}

/// Puts a first stage and named images together.
pub fn pack(first_stage: &[u8], images: &[(Name, &[u8])]) -> Result<Vec<u8>, FlashError> {
    if first_stage.len() > OFFSET {
        return Err(FlashError::FirstStage);
    }
    let table_size = size_of::<Header>() + (images.len() + 1) * size_of::<Entry>();
    let mut table = Header { name: NAME, serial_number: 1, flags: 0 }.as_bytes().to_vec();
    let mut contents = Vec::new();
    let offset = |contents: &mut Vec<u8>| {
        // Whole words, for whoever copies them out of flash with the MMU off.
        contents.resize(contents.len().next_multiple_of(16), 0);
        (table_size.next_multiple_of(16) + contents.len()) as u64
    };
    for (name, image) in images {
        let entry = Entry { name: *name, offset: offset(&mut contents), size: image.len() as u64, flags: 0 };
        table.extend_from_slice(entry.as_bytes());
        contents.extend_from_slice(image);
    }
    let end = Entry { name: [0; 16], offset: offset(&mut contents), size: 0, flags: 0 };
    table.extend_from_slice(end.as_bytes());
    table.resize(table_size.next_multiple_of(16), 0);
    let mut flash = first_stage.to_vec();
    flash.resize(OFFSET, 0);
    flash.extend(table);
    flash.extend(contents);
    if flash.len() > MAX_SIZE { Err(FlashError::TooLarge) } else { Ok(flash) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use monitor::fip::{BL2, BL31, BL32, find};

    #[test]
    fn what_is_packed_is_found() {
        let flash = pack(b"first", &[(BL32, b"the spmc"), (BL2, b""), (BL31, &[7; 33])]).unwrap();
        assert!(flash.starts_with(b"first"));
        let package = &flash[OFFSET..];
        assert_eq!(find(package, &BL32), Some(&b"the spmc"[..]));
        assert_eq!(find(package, &BL2), Some(&b""[..]));
        assert_eq!(find(package, &BL31), Some(&[7; 33][..]));
        assert_eq!(find(package, &monitor::fip::TOS_FW_CONFIG), None);
        for length in 0..package.len() {
            // Cut anywhere: found whole or not at all.
            assert!(find(&package[..length], &BL32).is_none_or(|image| image == b"the spmc"));
        }
        assert_eq!(pack(&[0; OFFSET + 1], &[]), Err(FlashError::FirstStage));
        assert_eq!(pack(b"", &[(BL2, &vec![0; MAX_SIZE])]), Err(FlashError::TooLarge));
    }

    #[test]
    fn entries_that_point_outside_are_refused() {
        let mut flash = pack(b"", &[(BL32, b"the spmc")]).unwrap();
        for (offset, value) in [(16, u64::MAX), (24, u64::MAX), (24, 1 << 40)] {
            let at = OFFSET + size_of::<Header>() + offset;
            let old = flash[at..at + 8].to_vec();
            flash[at..at + 8].copy_from_slice(&value.to_le_bytes());
            assert_eq!(find(&flash[OFFSET..], &BL32), None);
            flash[at..at + 8].copy_from_slice(&old);
        }
        flash[OFFSET] ^= 1;
        assert_eq!(find(&flash[OFFSET..], &BL32), None);
    }
}
