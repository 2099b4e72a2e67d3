//! Files that the VMM and the packer read.

use flexserve::image::Image;
use flexserve::job::Job;
use hyp_abi::PAGE_SIZE;

/// Parses the input as a partition image, as an ELF file to flatten, as a kernel's header and as a job.
pub fn image(data: &[u8]) {
    if let Ok(image) = Image::parse(data) {
        let regions = image.regions();
        for pages in image.pages() {
            let end = pages.ipa + pages.bytes.len() as u64;
            assert!(
                pages.ipa.is_multiple_of(PAGE_SIZE) && pages.bytes.len().is_multiple_of(PAGE_SIZE as usize)
            );
            let holds = |region: &&hyp_abi::manifest::Region| {
                region.ipa <= pages.ipa && end <= region.ipa + region.page_count * PAGE_SIZE
            };
            assert!(regions.iter().find(holds).is_some(), "pages at {:#x} lie in no region", pages.ipa);
        }
    }
    // Refused or not: they must come back.
    let _ = firmware::elf::flatten(data);
    let _ = firmware::image::ImageHeader::parse(data);
    let _ = Job::parse(data);
}
