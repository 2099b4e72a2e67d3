//! Turns a linked AArch64 ELF executable into the flat image that lies in memory (what `objcopy -O binary` does).

use std::fmt;

/// The largest flat image accepted; a link error can otherwise ask for terabytes.
pub const MAX_FLAT_SIZE: u64 = 64 << 20;

const EM_AARCH64: u16 = 183;
const PT_LOAD: u32 = 1;

/// Why a file is not a usable executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElfError {
    /// Not a 64-bit little-endian AArch64 ELF file.
    Format,
    /// A table or segment lies outside the file.
    Truncated,
    /// No loadable contents.
    Empty,
    /// The segments span more than [`MAX_FLAT_SIZE`].
    TooLarge,
}

impl fmt::Display for ElfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Format => "not a little-endian AArch64 ELF executable",
            Self::Truncated => "the ELF file is cut short",
            Self::Empty => "the ELF file has nothing to load",
            Self::TooLarge => "the ELF file's segments lie too far apart",
        })
    }
}

impl std::error::Error for ElfError {}

/// Returns the bytes from the lowest loaded physical address to the end of the last file contents; gaps are zero and
/// trailing BSS is left out.
pub fn flatten(file: &[u8]) -> Result<Vec<u8>, ElfError> {
    let identified = file.get(..6) == Some(b"\x7fELF\x02\x01");
    if !identified || u16_at(file, 18) != Some(EM_AARCH64) {
        return Err(ElfError::Format);
    }
    let table = u64_at(file, 32).ok_or(ElfError::Truncated)?;
    let entry_size = u16_at(file, 54).ok_or(ElfError::Truncated)?;
    let count = u16_at(file, 56).ok_or(ElfError::Truncated)?;
    let mut segments = Vec::new();
    for index in 0..u64::from(count) {
        let at = table
            .checked_add(index * u64::from(entry_size))
            .and_then(|at| usize::try_from(at).ok())
            .ok_or(ElfError::Truncated)?;
        let header = at.checked_add(56).and_then(|end| file.get(at..end)).ok_or(ElfError::Truncated)?;
        let field = |offset| u64_at(header, offset).ok_or(ElfError::Truncated);
        let (offset, address, size) = (field(8)?, field(24)?, field(32)?);
        let is_load = header.get(..4) == Some(&PT_LOAD.to_le_bytes()[..]);
        if !is_load || size == 0 {
            continue;
        }
        let end = offset.checked_add(size).ok_or(ElfError::Truncated)?;
        let range = usize::try_from(offset).ok().zip(usize::try_from(end).ok()).ok_or(ElfError::Truncated)?;
        let bytes = file.get(range.0..range.1).ok_or(ElfError::Truncated)?;
        let last = address.checked_add(size).ok_or(ElfError::TooLarge)?;
        segments.push((address, last, bytes));
    }
    let start = segments.iter().map(|(first, _, _)| *first).min().ok_or(ElfError::Empty)?;
    let end = segments.iter().map(|(_, last, _)| *last).max().ok_or(ElfError::Empty)?;
    if end - start > MAX_FLAT_SIZE {
        return Err(ElfError::TooLarge);
    }
    let mut flat = vec![0; (end - start) as usize];
    for (first, last, bytes) in segments {
        flat[(first - start) as usize..(last - start) as usize].copy_from_slice(bytes);
    }
    Ok(flat)
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(offset..offset + 2)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(offset..offset + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file with the given segments: (type, physical address, contents).
    fn elf(segments: &[(u32, u64, &[u8])]) -> Vec<u8> {
        let mut file = vec![0; 64 + 56 * segments.len()];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[18..20].copy_from_slice(&EM_AARCH64.to_le_bytes());
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[54..56].copy_from_slice(&56u16.to_le_bytes());
        file[56..58].copy_from_slice(&(segments.len() as u16).to_le_bytes());
        for (index, (kind, address, contents)) in segments.iter().enumerate() {
            let offset = file.len() as u64;
            let at = 64 + 56 * index;
            file[at..at + 4].copy_from_slice(&kind.to_le_bytes());
            file[at + 8..at + 16].copy_from_slice(&offset.to_le_bytes());
            file[at + 24..at + 32].copy_from_slice(&address.to_le_bytes());
            file[at + 32..at + 40].copy_from_slice(&(contents.len() as u64).to_le_bytes());
            file.extend_from_slice(contents);
        }
        file
    }

    #[test]
    fn segments_land_at_their_distance_and_gaps_are_zero() {
        let file =
            elf(&[(1, 0x4020_0008, b"data"), (2, 0, b"dynamic"), (1, 0x4020_0000, b"code"), (1, 0, b"")]);
        assert_eq!(flatten(&file).unwrap(), b"code\0\0\0\0data");
    }

    #[test]
    fn malformed_files_are_refused() {
        let good = elf(&[(1, 0x1000, b"code")]);
        for length in 0..good.len() {
            assert!(flatten(&good[..length]).is_err(), "cut at {length}");
        }
        assert_eq!(flatten(&elf(&[])), Err(ElfError::Empty));
        assert_eq!(flatten(&elf(&[(1, 0, b"a"), (1, 1 << 40, b"b")])), Err(ElfError::TooLarge));
        assert_eq!(flatten(&elf(&[(1, u64::MAX, b"ab")])), Err(ElfError::TooLarge));
        let mut wrapping = good.clone();
        wrapping[64 + 8..64 + 16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(flatten(&wrapping), Err(ElfError::Truncated));
        let mut other = good;
        other[18] = 62;
        assert_eq!(flatten(&other), Err(ElfError::Format));
    }
}
