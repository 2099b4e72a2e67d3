//! The 64-byte header of an arm64 Image (Linux Documentation/arch/arm64/booting.rst).

/// Bytes of the header.
pub const HEADER_SIZE: usize = 64;
/// Where `image_size` lies.
pub const IMAGE_SIZE_OFFSET: usize = 16;
const TEXT_OFFSET_OFFSET: usize = 8;
const MAGIC_OFFSET: usize = 56;
const MAGIC: [u8; 4] = *b"ARM\x64";

/// What the header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageHeader {
    /// Distance of the image from a 2 MiB boundary, in bytes.
    pub text_offset: u64,
    /// Bytes that the image needs in memory, BSS included.
    pub image_size: u64,
}

impl ImageHeader {
    /// Reads the header; none if `file` is not an arm64 Image of a kernel new enough (3.17) to say its size.
    pub fn parse(file: &[u8]) -> Option<Self> {
        let magic = file.get(MAGIC_OFFSET..MAGIC_OFFSET + MAGIC.len())?;
        let header =
            Self { text_offset: word(file, TEXT_OFFSET_OFFSET)?, image_size: word(file, IMAGE_SIZE_OFFSET)? };
        (magic == MAGIC && file.len() >= HEADER_SIZE && header.image_size != 0).then_some(header)
    }
}

fn word(file: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(file.get(offset..offset + 8)?.try_into().ok()?))
}

#[cfg(test)]
pub(crate) fn sample(file_size: usize, text_offset: u64, image_size: u64) -> Vec<u8> {
    let mut file = vec![0; file_size];
    file[TEXT_OFFSET_OFFSET..][..8].copy_from_slice(&text_offset.to_le_bytes());
    file[IMAGE_SIZE_OFFSET..][..8].copy_from_slice(&image_size.to_le_bytes());
    file[MAGIC_OFFSET..][..4].copy_from_slice(&MAGIC);
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_and_others_are_refused() {
        let file = sample(100, 0x8_0000, 0x123_0000);
        assert_eq!(
            ImageHeader::parse(&file),
            Some(ImageHeader { text_offset: 0x8_0000, image_size: 0x123_0000 })
        );
        assert_eq!(ImageHeader::parse(&file[..63]), None);
        assert_eq!(ImageHeader::parse(&[]), None);
        let mut other = file;
        other[MAGIC_OFFSET] = 0;
        assert_eq!(ImageHeader::parse(&other), None);
        assert_eq!(ImageHeader::parse(&sample(64, 0, 0)), None);
    }
}
