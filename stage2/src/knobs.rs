//! Fault knobs: each skips exactly one operation, so that a test or an attack can show that the operation is what stops it.

use crate::FlexMem;

/// A protection that can be left out in a `fault-knobs` build. The discriminants travel in the vendor service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Knob {
    /// Give leaves the page in the host's stage 2, with all rights.
    SkipHostUnmap = 0,
    /// Nothing is invalidated when a page is taken out of a tree (breaks before a make still are).
    SkipTlbi = 1,
    /// Give does not zero the page ([`crate::Fill::Zero`]).
    SkipScrubOnGive = 2,
    /// Recall and destroy do not zero the page.
    SkipScrubOnRecall = 3,
    /// Pages are not cleaned to the point of coherency.
    SkipClean = 4,
    /// Give does not check who owns the page.
    SkipOwnershipCheck = 5,
    /// Give does not look for the same page twice in a call.
    SkipOverlapCheck = 6,
    /// Give takes pinned pages.
    SkipPinCheck = 7,
    /// Give maps over pages that the partition has.
    SkipIpaCheck = 8,
    /// Unshare leaves the page in the host's stage 2.
    SkipUnshareUnmap = 9,
    /// [`FlexMem::scrub_all`] does nothing.
    SkipScrubAll = 10,
    /// Entries change in place, without break-before-make.
    SkipBreak = 11,
}

impl FlexMem {
    /// Turns a knob: `true` leaves the protection out.
    pub fn set_knob(&mut self, _knob: Knob, _skip: bool) {}
}
