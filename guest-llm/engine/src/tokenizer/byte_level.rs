//! The printable stand-ins for bytes that byte-level vocabularies are written in (GPT-2's `bytes_to_unicode`).
//!
//! Bytes that are printable in Latin-1 stand for themselves; the 68 others, in order, are U+0100 to U+0143.

use alloc::string::String;
use alloc::vec::Vec;

/// Stand-in of the first byte that is not printable.
const FIRST: u32 = 0x100;

/// Returns the stand-in of `byte`.
fn to_char(byte: u8) -> char {
    let code = match byte {
        0..=0x20 => FIRST + u32::from(byte),
        0x7f..=0xa0 => FIRST + 33 + u32::from(byte - 0x7f),
        0xad => FIRST + 67,
        printable => printable.into(),
    };
    char::from_u32(code).unwrap_or_default()
}

/// Returns the byte that `c` stands in for.
fn to_byte(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ 0x100..=0x120 => Some((code - FIRST) as u8),
        code @ 0x121..=0x142 => Some((code - FIRST - 33) as u8 + 0x7f),
        0x143 => Some(0xad),
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(code as u8),
        _ => None,
    }
}

/// Appends the stand-ins of `text`'s bytes, each of at most two bytes.
pub fn append_encoded(text: &[u8], encoded: &mut String) {
    encoded.extend(text.iter().map(|byte| to_char(*byte)));
}

/// Appends the bytes that a token's text stands for. What is no stand-in stays as it is.
pub fn append_decoded(text: &[u8], bytes: &mut Vec<u8>) {
    for chunk in text.utf8_chunks() {
        for c in chunk.valid().chars() {
            match to_byte(c) {
                Some(byte) => bytes.push(byte),
                None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        bytes.extend_from_slice(chunk.invalid());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_own_printable_stand_in() {
        let mut seen = std::collections::BTreeSet::new();
        for byte in 0..=255 {
            let c = to_char(byte);
            assert!(!c.is_whitespace() && !c.is_control() && seen.insert(c), "{byte:#x}");
            assert_eq!(to_byte(c), Some(byte));
        }
        assert_eq!((to_char(b' '), to_char(b'\n'), to_char(0x7f)), ('Ġ', 'Ċ', 'ġ'));
        assert_eq!(*seen.last().unwrap(), 'Ń');
        assert!(('\0'..=' ').chain(['\u{ad}', 'ń', '水']).all(|c| to_byte(c).is_none()));
    }
}
