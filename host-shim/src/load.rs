//! What a partition is given before it starts: image, model, memory.
//!
//! Contents pass through one buffer of 2 MiB, are hashed there and given from there, so that what is measured is what was
//! given even if the file changes, and memory is needed for the partition only.

use std::sync::atomic::{AtomicBool, Ordering};

use guest_abi::virtio::VIRTIO_PAGES;
use hyp_abi::PAGE_SIZE;
use hyp_abi::manifest::{Region, kind, layout};
use hyp_abi::service::{MEASUREMENT_SIZE, STEP_PAGES};

use crate::error::{Code, Error, Result};
use crate::events::Event;
use crate::image::Image;
use crate::machine::{Contents, Machine};
use crate::measure::Measurer;
use crate::session::interrupted;

/// Bytes given at a time.
pub(crate) const STEP: usize = (STEP_PAGES * PAGE_SIZE) as usize;

/// What runs: an image with its model.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// The image.
    pub image: &'a Image,
    /// The model file.
    pub model: &'a [u8],
    /// Bytes of heap.
    pub heap_bytes: u64,
}

/// Pages to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece<'a> {
    pub ipa: u64,
    pub pages: u64,
    /// Given and measured; none: zero pages.
    pub contents: Option<&'a [u8]>,
    pub mappable: bool,
}

impl<'a> Piece<'a> {
    pub fn zero(region: &Region, pages: u64) -> Self {
        Piece { ipa: region.ipa, pages, contents: None, mappable: region.kind == kind::SHARED }
    }

    fn contents(ipa: u64, bytes: &'a [u8]) -> Self {
        let pages = (bytes.len() as u64).div_ceil(PAGE_SIZE);
        Piece { ipa, pages, contents: Some(bytes), mappable: false }
    }
}

impl<'a> Load<'a> {
    /// What to give, at ascending IPAs.
    pub(crate) fn pieces(&self) -> Result<Vec<Piece<'a>>> {
        let image = self.image;
        let mut pieces: Vec<_> =
            image.pages().iter().map(|pages| Piece::contents(pages.ipa, &pages.bytes)).collect();
        let mut session = false;
        for region in image.regions() {
            match region.kind {
                kind::ZERO if region.ipa == layout::HEAP => {
                    let pages = self.heap_bytes.div_ceil(PAGE_SIZE);
                    if pages > region.page_count {
                        let most = region.page_count.saturating_mul(PAGE_SIZE) >> 20;
                        return Err(Error::usage(
                            format!("the heap of {} MiB exceeds the image's {most}", self.heap_bytes >> 20),
                            "use a smaller --mem-heap or context (-c)",
                        ));
                    }
                    pieces.push(Piece::zero(region, pages));
                }
                kind::ZERO => pieces.push(Piece::zero(region, region.page_count)),
                kind::SHARED if region.ipa == layout::VIRTIO && region.page_count >= VIRTIO_PAGES => {
                    session = true;
                    pieces.push(Piece::zero(region, VIRTIO_PAGES));
                }
                _ => {}
            }
        }
        if !session {
            return Err(Error::image("it has no region for the session's devices"));
        }
        let Some(region) = image.region(kind::MODEL, layout::MODEL) else {
            return Err(Error::image("it has no region for a model"));
        };
        let mut model = Piece::contents(region.ipa, self.model);
        if model.pages > STEP_PAGES {
            // Zeros up to the next 2 MiB: as a block they cost the NPU one translation, and the CPU one entry of its TLB.
            model.pages = model.pages.next_multiple_of(STEP_PAGES).min(model.pages.max(region.page_count));
        }
        if model.pages > region.page_count {
            return Err(Error::new(
                Code::Partition,
                format!("the model of {} MiB does not fit the image's region", self.model.len() >> 20),
                "the caller's",
                "use a smaller model",
            ));
        }
        pieces.push(model);
        pieces.retain(|piece| piece.pages > 0);
        pieces.sort_by_key(|piece| piece.ipa);
        Ok(pieces)
    }
}

/// Gives all pieces; returns the measurement to expect.
pub(crate) fn give<M: Machine>(
    machine: &M,
    image: &Image,
    pieces: &[Piece<'_>],
    cancel: &AtomicBool,
    tell: &mut dyn FnMut(&Event<'_>),
) -> Result<[u8; MEASUREMENT_SIZE]> {
    let mut measurer = Measurer::new(image.manifest_bytes());
    let total = pieces.iter().filter_map(|piece| piece.contents).map(|bytes| bytes.len() as u64).sum();
    let (mut done, mut buffer) = (0, Vec::with_capacity(STEP));
    for piece in pieces {
        let Some(contents) = piece.contents else {
            machine.give(piece.ipa, Contents::Zero(piece.pages), piece.mappable)?;
            continue;
        };
        for (index, bytes) in contents.chunks(STEP).enumerate() {
            if cancel.load(Ordering::Relaxed) {
                return Err(interrupted());
            }
            let ipa = piece.ipa + (index * STEP) as u64;
            buffer.clear();
            buffer.extend_from_slice(bytes);
            let left = (piece.pages * PAGE_SIZE) as usize - index * STEP;
            buffer.resize(left.min(STEP), 0);
            measurer.pages(ipa, &buffer);
            machine.give(ipa, Contents::Bytes(&buffer), piece.mappable)?;
            done += bytes.len() as u64;
            tell(&Event::Progress { what: "load", done, total });
        }
    }
    Ok(measurer.finish())
}
