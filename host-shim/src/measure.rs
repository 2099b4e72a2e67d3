//! The measurement as [`hyp_abi::manifest`] defines it, computed by the host to compare with the hypervisor's.
//!
//! This comparison catches mistakes, not attacks: the host computes both what it gives and what it expects. Evidence for
//! others is the hypervisor's to give.

use hyp_abi::PAGE_SIZE;
use hyp_abi::manifest::MEASURE_LABEL;
use hyp_abi::service::MEASUREMENT_SIZE;
use sha2::{Digest, Sha384};

/// A measurement under way. Pages come in ascending order of their IPAs.
#[derive(Clone, Debug)]
pub struct Measurer(Sha384);

impl Measurer {
    /// Starts with the manifest's bytes.
    pub fn new(manifest: &[u8]) -> Self {
        Measurer(Sha384::new().chain_update(MEASURE_LABEL).chain_update(manifest))
    }

    /// Adds pages from `ipa` on; the last one may be short and counts as if zeros followed.
    pub fn pages(&mut self, ipa: u64, bytes: &[u8]) {
        for (index, page) in bytes.chunks(PAGE_SIZE as usize).enumerate() {
            self.0.update((ipa + index as u64 * PAGE_SIZE).to_le_bytes());
            self.0.update(page);
            self.0.update(&[0; PAGE_SIZE as usize][page.len()..]);
        }
    }

    /// Ends.
    pub fn finish(self) -> [u8; MEASUREMENT_SIZE] {
        self.0.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_hash_of_label_manifest_and_addressed_pages() {
        let mut measurer = Measurer::new(b"manifest");
        measurer.pages(0x40_0000, &[1; 8192]);
        measurer.pages(0x8_0000_0000, &[2; 10]);
        let mut all = b"flexserve-meas-1manifest".to_vec();
        for (ipa, fill, length) in [(0x40_0000u64, 1, 4096), (0x40_1000, 1, 4096), (0x8_0000_0000, 2, 10)] {
            all.extend(ipa.to_le_bytes());
            let start = all.len();
            all.resize(start + length, fill);
            all.resize(start + 4096, 0);
        }
        assert_eq!(measurer.finish()[..], Sha384::digest(all)[..]);
    }
}
