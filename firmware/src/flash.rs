//! Lays out the machine's flash: the first stage at 0, a firmware image package behind it.

use std::fmt;

use monitor::fip::{ENTRY_SIZE, HEADER_SIZE, MAGIC, Name, OFFSET};

/// Second boot stage of Trusted Firmware-A.
pub const BL2: Name = 0x5ff9_ec0b_4d22_3e4d_a544_c39d_81c7_3f0a_u128.to_be_bytes();
/// Runtime firmware of Trusted Firmware-A.
pub const BL31: Name = 0x47d4_086d_4cfe_9846_9b95_2950_cbbd_5a00_u128.to_be_bytes();
/// Configuration of Trusted Firmware-A's boot: a device tree.
pub const TB_FW_CONFIG: Name = 0x6c04_58ff_af6b_7d4f_82ed_aa27_bc69_bfd2_u128.to_be_bytes();
/// The SPMC's manifest: a device tree.
pub const TOS_FW_CONFIG: Name = 0x2625_7c1a_dbc6_7f47_8d96_c4c4_b024_8021_u128.to_be_bytes();
/// Any but 0.
const SERIAL_NUMBER: u8 = 1;

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
    let table_size = (HEADER_SIZE + (images.len() + 1) * ENTRY_SIZE).next_multiple_of(16);
    let mut table = MAGIC.to_vec();
    table.push(SERIAL_NUMBER);
    table.resize(HEADER_SIZE, 0);
    let mut contents = Vec::new();
    let end: (Name, &[u8]) = ([0; 16], &[]);
    for (name, image) in images.iter().chain([&end]) {
        // Whole words, for whoever copies them out of flash with the MMU off.
        contents.resize(contents.len().next_multiple_of(16), 0);
        table.extend(name);
        for field in [table_size + contents.len(), image.len(), 0] {
            table.extend((field as u64).to_le_bytes());
        }
        contents.extend_from_slice(image);
    }
    table.resize(table_size, 0);
    let mut flash = first_stage.to_vec();
    flash.resize(OFFSET, 0);
    flash.extend(table);
    flash.extend(contents);
    if flash.len() > MAX_SIZE { Err(FlashError::TooLarge) } else { Ok(flash) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use monitor::fip::{BL32, find};

    #[test]
    fn what_is_packed_is_found() {
        let flash = pack(b"first", &[(BL32, b"the spmc"), (BL2, b""), (BL31, &[7; 33])]).unwrap();
        assert!(flash.starts_with(b"first"));
        let package = &flash[OFFSET..];
        assert_eq!(find(package, &BL32), Some(&b"the spmc"[..]));
        assert_eq!(find(package, &BL2), Some(&b""[..]));
        assert_eq!(find(package, &BL31), Some(&[7; 33][..]));
        assert_eq!(find(package, &TOS_FW_CONFIG), None);
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
            let at = OFFSET + HEADER_SIZE + offset;
            let old = flash[at..at + 8].to_vec();
            flash[at..at + 8].copy_from_slice(&value.to_le_bytes());
            assert_eq!(find(&flash[OFFSET..], &BL32), None);
            flash[at..at + 8].copy_from_slice(&old);
        }
        flash[OFFSET] ^= 1;
        assert_eq!(find(&flash[OFFSET..], &BL32), None);
    }
}
