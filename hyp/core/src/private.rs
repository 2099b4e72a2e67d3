//! Private memory: a partition's image with its data and stacks, which lie below [`PRIVATE_END`].
//!
//! At EL2 it is memory like all of a partition's. At S-EL2 the partition finds it in the secure address space, in secure RAM:
//! each page that the host gives there is copied as it comes, and the copy is what is measured and run. The given page stays
//! the partition's and is not used, so that ownership, accounts and the way back are the same in both deployments. Who has
//! which page of secure RAM is in a record of the same kind, where "the host's" means free; nobody runs on the host's tree.

use crate::service::Refusal;
use crate::{Hypervisor, Platform};
use hyp_abi::PAGE_SIZE;
use hyp_abi::ffa::error::DENIED;
use hyp_abi::manifest::PRIVATE_END;
use stage2::{Error, Fill, FlexMem, Ipa, Pa, PageRange, STEP_PAGES, Slot};

/// Whether an address is private.
pub(crate) fn is_private(ipa: u64) -> bool {
    ipa < PRIVATE_END
}

/// The record of what a partition finds at `ipa`.
pub(crate) fn space<'a>(memory: &'a FlexMem, secure: &'a Option<FlexMem>, ipa: u64) -> &'a FlexMem {
    secure.as_ref().filter(|_| is_private(ipa)).unwrap_or(memory)
}

impl Hypervisor {
    /// Boot: private memory lies in the pages that are the host's in `secure`.
    pub fn install_secure_ram(&mut self, secure: FlexMem) {
        self.secure = Some(secure);
    }

    /// Copies the `page_count` pages that a partition was just given, if they are private. All or nothing: when secure RAM or
    /// its tables are full they go back, and the answer is DENIED with the IPA, since no memory of the host's would help.
    pub(crate) fn copy_private(
        &mut self,
        platform: &mut impl Platform,
        slot: Slot,
        ipa: u64,
        page_count: u64,
    ) -> Result<(), Refusal> {
        let Self { secure: Some(secure), memory, buffer, .. } = self else { return Ok(()) };
        let mut free = Pa(0);
        for page in (0..page_count).filter(|_| is_private(ipa)) {
            let at = Ipa(ipa + page * PAGE_SIZE);
            let mut copy = || -> Result<u64, Error> {
                let given = memory.partition_page(platform, slot, at).ok_or(Error::Corrupted)?;
                free = secure.host_page(platform, free).ok_or(Error::TooMany)?;
                platform.read_page(given.pa, buffer);
                platform.write_page(free, 0, buffer);
                let range = [PageRange::new(free, 1)?];
                secure.host_give_partition(platform, slot, &range, at, given.access, Fill::Keep)
            };
            if let Err(error) = copy() {
                if page > 0 {
                    secure.host_recall_partition(platform, slot, Ipa(ipa), page)?;
                }
                memory.host_recall_partition(platform, slot, Ipa(ipa), page_count)?;
                return Err(match error {
                    Error::TooMany | Error::NoTables { .. } => Refusal { code: DENIED, value: at.0 },
                    error => error.into(),
                });
            }
        }
        Ok(())
    }

    /// Frees the copies of pages that went back to the host, scrubbed.
    pub(crate) fn recall_private(
        &mut self,
        platform: &mut impl Platform,
        slot: Slot,
        ipa: u64,
        page_count: u64,
    ) -> Result<(), Error> {
        let most = PRIVATE_END.saturating_sub(ipa) / PAGE_SIZE;
        match &mut self.secure {
            Some(secure) if most > 0 => {
                secure.host_recall_partition(platform, slot, Ipa(ipa), page_count.min(most)).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Frees copies of a partition that ends, at most 512, scrubbed; 0 if none is left.
    pub(crate) fn destroy_private(&mut self, platform: &mut impl Platform, slot: Slot) -> Result<u64, Error> {
        match self.secure.as_mut().map(|secure| secure.partition_destroy(platform, slot, STEP_PAGES)) {
            None | Some(Err(Error::NoSuchPartition)) => Ok(0),
            Some(remaining) => remaining,
        }
    }
}
