//! Fault knobs: each skips exactly one operation, so that a test or an attack can show that the operation is what stops
//! it. Without the feature `fault-knobs` (or in other crates' builds) none of this exists.

/// Whether a knob leaves a protection out: constant `false` in a shipped image.
#[cfg(not(any(test, feature = "fault-knobs")))]
macro_rules! skips {
    ($flexmem:expr, $knob:ident) => {
        false
    };
}

/// Whether a knob leaves a protection out.
#[cfg(any(test, feature = "fault-knobs"))]
macro_rules! skips {
    ($flexmem:expr, $knob:ident) => {
        $flexmem.knobs & (1 << crate::Knob::$knob as u32) != 0
    };
}

#[cfg(any(test, feature = "fault-knobs"))]
macro_rules! knobs {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// A protection that can be left out. The discriminants travel in the vendor service.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Knob { $($(#[$doc])* $name = $number,)* }

        impl Knob {
            /// All knobs, in the order of their numbers.
            pub const ALL: [Self; [$(Self::$name,)*].len()] = [$(Self::$name,)*];
        }
    };
}

#[cfg(any(test, feature = "fault-knobs"))]
knobs! {
    /// Give leaves the page in the host's stage 2, with all rights.
    SkipHostUnmap = 0,
    /// Give, unshare and recall invalidate nothing (breaks before a make still do).
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
    /// [`crate::FlexMem::scrub_all`] does nothing.
    SkipScrubAll = 10,
    /// Blocks and tables replace each other in place, without break-before-make.
    SkipBreak = 11,
    /// A host's send does not check who owns the page.
    SkipSendOwnershipCheck = 12,
    /// A host's send takes pinned pages.
    SkipSendPinCheck = 13,
    /// A host's lend or donation leaves the page in the host's stage 2.
    SkipLendUnmap = 14,
    /// Relinquish leaves the page in the borrower's stage 2.
    SkipRelinquishUnmap = 15,
    /// Reclaim does not look whether somebody still has the pages.
    SkipBorrowedCheck = 16,
    /// Reclaim does not zero what was lent.
    SkipScrubOnReclaim = 17,
    /// A send does not look for the same page twice in its list.
    SkipSendOverlapCheck = 18,
    /// The window stays in the tree of who loses it.
    SkipWindowUnmap = 19,
}

#[cfg(any(test, feature = "fault-knobs"))]
impl crate::FlexMem {
    /// Turns a knob: `true` leaves the protection out.
    pub fn set_knob(&mut self, knob: Knob, skip: bool) {
        let bit = 1 << knob as u32;
        self.knobs = if skip { self.knobs | bit } else { self.knobs & !bit };
    }
}
