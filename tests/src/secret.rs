//! The secret of an attack: 16 random bytes that only the partition ever has in clear.
//!
//! The host holds and passes the complement, so that a search of RAM for the secret finds the partition's copies and
//! whatever leaked from them, but nothing of the suite's own.

use anyhow::{Context, Result, bail};
use guest_abi::session::probe::PATTERN_SIZE;
use serde_json::json;

use crate::report::{ask, to_hex};

/// A secret's complement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Secret {
    complement: [u8; PATTERN_SIZE],
}

impl Secret {
    /// Makes a new one.
    pub fn new() -> Result<Self> {
        let mut complement = [0; PATTERN_SIZE];
        let mut source = std::fs::File::open("/dev/urandom")?;
        std::io::Read::read_exact(&mut source, &mut complement).context("/dev/urandom")?;
        Ok(Self { complement })
    }

    /// What travels to the partition.
    pub fn complement(&self) -> &[u8; PATTERN_SIZE] {
        &self.complement
    }

    /// From what [`Self::hex`] gave.
    pub fn from_hex(text: &str) -> Result<Self> {
        Ok(Self { complement: complement_of_hex(text, 0)?.as_slice().try_into()? })
    }

    /// The complement in hexadecimal.
    pub fn hex(&self) -> String {
        to_hex(&self.complement)
    }

    /// Whether a word is one of the secret's two.
    pub fn has_word(&self, word: u64) -> bool {
        self.complement.chunks_exact(8).any(|half| (!word).to_le_bytes() == half)
    }

    /// Where in RAM it is, seen from outside; at most 64 places.
    pub fn search(&self) -> Result<Vec<u64>> {
        let answer = ask(json!({"ask": "search", "bytes": self.hex()}))?;
        serde_json::from_value(answer["hits"].clone()).context("the outside's answer")
    }

    /// Whether it is at a physical address, seen from outside.
    pub fn is_at(&self, address: u64) -> Result<bool> {
        let answer = ask(json!({"ask": "read", "address": address, "size": PATTERN_SIZE}))?;
        let bytes = complement_of_hex(answer["bytes"].as_str().unwrap_or_default(), 0xFF)?;
        Ok(bytes == self.complement)
    }
}

/// Reads hexadecimal; every byte is XORed with `mask` before it is stored.
pub fn complement_of_hex(text: &str, mask: u8) -> Result<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        bail!("bad hexadecimal");
    }
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).map(|byte| byte ^ mask);
    (0..text.len()).step_by(2).map(|at| byte(at).context("bad hexadecimal")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_compared_with_the_clear_secret() {
        let secret = Secret { complement: *b"0123456789abcdef" };
        let clear: Vec<u8> = secret.complement.iter().map(|byte| !byte).collect();
        assert!(secret.has_word(u64::from_le_bytes(clear[..8].try_into().unwrap())));
        assert!(secret.has_word(u64::from_le_bytes(clear[8..].try_into().unwrap())));
        assert!(!secret.has_word(u64::from_le_bytes(secret.complement[..8].try_into().unwrap())));
        assert_eq!(Secret::from_hex(&secret.hex()).unwrap(), secret);
        assert_eq!(complement_of_hex("00ff", 0xFF).unwrap(), [0xFF, 0]);
        assert!(complement_of_hex("0", 0).is_err() && complement_of_hex("é0", 0).is_err());
    }
}
