//! Validation of the manifest that the host passes with CREATE. Everything later relies on what is checked here:
//! regions do not overlap, no page is both writable and executable, the entry lies in an executable region, and what lies below
//! [`PRIVATE_END`] is the image.

use crate::service::Refusal;
use hyp_abi::PAGE_SIZE;
use hyp_abi::ffa::error::INVALID_PARAMETERS;
use hyp_abi::manifest::{
    IPA_LIMIT, MAGIC, MAX_REGIONS, Manifest, PRIVATE_END, Region, VERSION, access, kind,
};
use hyp_abi::service::MAX_VCPUS;

/// Checks every rule. The refusal names the index of the region at fault, or [`MAX_REGIONS`] for the header.
pub(crate) fn validate(manifest: &Manifest) -> Result<(), Refusal> {
    let header_is_sound = manifest.magic == MAGIC
        && manifest.version == VERSION
        && (1..=MAX_VCPUS as u32).contains(&manifest.vcpu_count)
        && (1..=MAX_REGIONS as u32).contains(&manifest.region_count)
        && manifest.reserved == 0
        && name_is_sound(&manifest.name);
    if !header_is_sound {
        return Err(Refusal { code: INVALID_PARAMETERS, value: MAX_REGIONS as u64 });
    }
    let used = manifest.region_count as usize;
    for (index, region) in manifest.regions.iter().enumerate() {
        let sound = if index < used {
            region_is_sound(region)
                && !manifest.regions.iter().take(index).any(|other| overlap(region, other))
        } else {
            *region == Region::default()
        };
        if !sound {
            return Err(Refusal { code: INVALID_PARAMETERS, value: index as u64 });
        }
    }
    if !is_entry(manifest, manifest.entry) {
        return Err(Refusal { code: INVALID_PARAMETERS, value: MAX_REGIONS as u64 });
    }
    Ok(())
}

/// Finds the region that holds `ipa`. The manifest is validated.
pub(crate) fn region_of(manifest: &Manifest, ipa: u64) -> Option<(usize, &Region)> {
    manifest
        .regions
        .iter()
        .enumerate()
        .find(|(_, region)| ipa >= region.ipa && ipa - region.ipa < region.page_count * PAGE_SIZE)
}

/// Whether a vCPU may start at `ipa`: an instruction's address in an executable region.
pub(crate) fn is_entry(manifest: &Manifest, ipa: u64) -> bool {
    ipa.is_multiple_of(4)
        && region_of(manifest, ipa).is_some_and(|(_, region)| region.access & access::EXECUTE != 0)
}

/// Whether contents of this region are given and measured, rather than zeroed.
pub(crate) fn has_contents(region: &Region) -> bool {
    matches!(region.kind, kind::IMAGE | kind::MODEL)
}

/// A name that cannot forge a log line: printable ASCII, then zeros.
fn name_is_sound(name: &[u8; 16]) -> bool {
    let length = name.iter().position(|b| *b == 0).unwrap_or(name.len());
    let (text, padding) = name.split_at(length);
    text.iter().all(|b| b.is_ascii_graphic()) && padding.iter().all(|b| *b == 0)
}

fn region_is_sound(region: &Region) -> bool {
    let bits = region.access;
    let allowed = match region.kind {
        kind::IMAGE => access::READ | access::WRITE | access::EXECUTE,
        kind::ZERO | kind::MODEL | kind::SHARED | kind::BORROWED => access::READ | access::WRITE,
        _ => return false,
    };
    bits & access::READ != 0
        && bits & !allowed == 0
        && bits & (access::WRITE | access::EXECUTE) != (access::WRITE | access::EXECUTE)
        && region.ipa.is_multiple_of(PAGE_SIZE)
        && (1..=IPA_LIMIT / PAGE_SIZE).contains(&region.page_count)
        && region.ipa <= IPA_LIMIT - region.page_count * PAGE_SIZE
        && match region.kind {
            kind::IMAGE => region.ipa + region.page_count * PAGE_SIZE <= PRIVATE_END,
            _ => region.ipa >= PRIVATE_END,
        }
}

/// Both regions are sound, so their ends do not overflow.
fn overlap(a: &Region, b: &Region) -> bool {
    a.ipa < b.ipa + b.page_count * PAGE_SIZE && b.ipa < a.ipa + a.page_count * PAGE_SIZE
}
