//! The partition's image: an ELF file with the manifest in section `.manifest` and the contents of IMAGE regions in its
//! loadable segments. Checked here so that errors name what is wrong; what counts is the hypervisor's own check.

use std::ops::Range;
use std::path::Path;

use elf::ElfBytes;
use elf::abi::{EM_AARCH64, PT_LOAD};
use elf::endian::LittleEndian;
use elf::file::Class;
use hyp_abi::PAGE_SIZE;
use hyp_abi::manifest::{self, MAX_REGIONS, Manifest, Region, access, kind};
use hyp_abi::service::MAX_VCPUS;
use zerocopy::{FromBytes, IntoBytes};

use crate::error::{Error, Result};

/// Most bytes that an image may occupy in a partition: bounds what a malformed file makes this program allocate.
const MAX_IMAGE: u64 = 256 << 20;

/// Contents of consecutive pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pages {
    /// IPA of the first page.
    pub ipa: u64,
    /// A whole number of pages.
    pub bytes: Vec<u8>,
}

impl Pages {
    fn end(&self) -> u64 {
        self.ipa + self.bytes.len() as u64
    }
}

/// A partition image.
#[derive(Clone, Debug)]
pub struct Image {
    manifest: Manifest,
    pages: Vec<Pages>,
}

impl Image {
    /// Reads an image file.
    ///
    /// # Errors
    /// 2 if it cannot be read, 5 if it is refused.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|error| {
            Error::usage(format!("the partition image {}: {error}", path.display()), "name one with --image")
        })?;
        Self::parse(&bytes)
    }

    /// Parses an image.
    ///
    /// # Errors
    /// Code 5: malformed ELF, not for AArch64, no or a malformed manifest, segments outside IMAGE regions or overlapping,
    /// or more than 256 MiB.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let malformed = |error: elf::ParseError| Error::image(format!("malformed ELF file: {error}"));
        let file = ElfBytes::<LittleEndian>::minimal_parse(bytes).map_err(malformed)?;
        if file.ehdr.class != Class::ELF64 || file.ehdr.e_machine != EM_AARCH64 {
            return Err(Error::image("not a 64-bit ELF file for AArch64"));
        }
        let section = file.section_header_by_name(".manifest").map_err(malformed)?;
        let section = section.ok_or_else(|| Error::image("it has no section .manifest"))?;
        let (contents, compression) = file.section_data(&section).map_err(malformed)?;
        let manifest = Manifest::read_from_bytes(contents).ok().filter(|_| compression.is_none());
        let manifest =
            manifest.ok_or_else(|| Error::image(format!("its manifest has {} bytes", contents.len())))?;
        check(&manifest)?;

        let mut segments = Vec::new();
        for header in file.segments().into_iter().flatten() {
            if header.p_type == PT_LOAD && header.p_memsz != 0 {
                segments.push((
                    header.p_paddr,
                    header.p_memsz,
                    file.segment_data(&header).map_err(malformed)?,
                ));
            }
        }
        segments.sort_by_key(|segment| segment.0);
        Ok(Image { manifest, pages: lay_out(&manifest, &segments)? })
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The manifest as it is given to the hypervisor and measured.
    pub fn manifest_bytes(&self) -> &[u8] {
        self.manifest.as_bytes()
    }

    /// The pages that the image consists of, at ascending IPAs.
    pub fn pages(&self) -> &[Pages] {
        &self.pages
    }

    /// The only region of this kind that begins at `ipa`.
    pub fn region(&self, kind: u32, ipa: u64) -> Option<&Region> {
        self.regions().iter().find(|region| region.kind == kind && region.ipa == ipa)
    }

    /// The used regions.
    pub fn regions(&self) -> &[Region] {
        self.manifest.regions.get(..self.manifest.region_count as usize).unwrap_or(&[])
    }
}

fn range(region: &Region) -> Range<u64> {
    region.ipa..region.ipa.saturating_add(region.page_count.saturating_mul(PAGE_SIZE))
}

fn check(manifest: &Manifest) -> Result<()> {
    let refuse = |what: String| Err(Error::image(what));
    if manifest.magic != manifest::MAGIC || manifest.version != manifest::VERSION {
        return refuse(format!("its manifest is not one of version {}", manifest::VERSION));
    }
    if manifest.vcpu_count == 0 || manifest.vcpu_count as usize > MAX_VCPUS {
        return refuse(format!("it wants {} vCPUs of at most {MAX_VCPUS}", manifest.vcpu_count));
    }
    if manifest.region_count == 0 || manifest.region_count as usize > MAX_REGIONS || manifest.reserved != 0 {
        return refuse(format!(
            "its manifest has {} regions of at most {MAX_REGIONS}",
            manifest.region_count
        ));
    }
    let (used, unused) = manifest.regions.split_at(manifest.region_count as usize);
    if unused.iter().any(|region| *region != Region::default()) {
        return refuse("its manifest has more regions than it counts".into());
    }
    for (index, region) in used.iter().enumerate() {
        let known =
            [kind::IMAGE, kind::ZERO, kind::MODEL, kind::SHARED, kind::BORROWED].contains(&region.kind);
        let bits = access::READ | access::WRITE | access::EXECUTE;
        let both = access::WRITE | access::EXECUTE;
        if !known || region.access & !bits != 0 || region.access & both == both {
            return refuse(format!("region {index} is of unknown kind or access, or writable code"));
        }
        let range = range(region);
        if region.page_count == 0 || region.ipa % PAGE_SIZE != 0 || range.end > manifest::IPA_LIMIT {
            return refuse(format!("region {index} is empty, unaligned or beyond 40 bits"));
        }
        if (region.kind == kind::IMAGE) != (range.start < manifest::PRIVATE_END)
            || (region.kind == kind::IMAGE && range.end > manifest::PRIVATE_END)
        {
            return refuse(format!(
                "region {index} is on the wrong side of 4 GiB: the image lies below, all else above"
            ));
        }
        let overlaps =
            |other: &Region| range.start < self::range(other).end && self::range(other).start < range.end;
        if used.iter().take(index).any(overlaps) {
            return refuse(format!("region {index} overlaps another"));
        }
    }
    if !used
        .iter()
        .any(|region| region.access & access::EXECUTE != 0 && range(region).contains(&manifest.entry))
    {
        return refuse(format!("its entry {:#x} is not in executable memory", manifest.entry));
    }
    Ok(())
}

/// Puts sorted segments (address, bytes in memory, bytes in the file) into pages.
fn lay_out(manifest: &Manifest, segments: &[(u64, u64, &[u8])]) -> Result<Vec<Pages>> {
    let mut pages: Vec<Pages> = Vec::new();
    let (mut last, mut total) = (0, 0u64);
    for &(start, size, contents) in segments {
        let refuse = |what: &str| Err(Error::image(format!("its segment at {start:#x} {what}")));
        let end = start.saturating_add(size);
        let inside = |region: &&Region| {
            region.kind == kind::IMAGE && range(region).start <= start && end <= range(region).end
        };
        let Some(region) = manifest.regions.iter().find(inside) else {
            return refuse("is not inside one IMAGE region of its manifest");
        };
        if contents.len() as u64 > size {
            return refuse("is larger in the file than in memory");
        }
        if start < last {
            return refuse("overlaps another");
        }
        total = total.saturating_add(size).saturating_add(PAGE_SIZE);
        if total > MAX_IMAGE {
            return refuse("exceeds 256 MiB");
        }
        last = end;
        let first = start - start % PAGE_SIZE;
        let next = end.next_multiple_of(PAGE_SIZE);
        // A page shared with the segment before, or the next one, belongs to the same run, unless a region ends between.
        let joins = pages.last().is_some_and(|run| first <= run.end() && range(region).contains(&run.ipa));
        if !joins {
            pages.push(Pages { ipa: first, bytes: Vec::new() });
        }
        if let Some(run) = pages.last_mut() {
            run.bytes.resize(run.bytes.len().max((next - run.ipa) as usize), 0);
            let offset = (start - run.ipa) as usize;
            if let Some(target) = run.bytes.get_mut(offset..offset + contents.len()) {
                target.copy_from_slice(contents);
            }
        }
    }
    if pages.is_empty() {
        return Err(Error::image("it has nothing to load"));
    }
    Ok(pages)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use guest_abi::virtio::VIRTIO_PAGES;
    use hyp_abi::manifest::layout;

    /// The layout of the project's own image.
    pub fn manifest() -> Manifest {
        let region = |ipa, page_count, kind, access| Region { ipa, page_count, kind, access };
        let mut regions = [Region::default(); MAX_REGIONS];
        regions[0] = region(layout::IMAGE, 1024, kind::IMAGE, access::READ | access::EXECUTE);
        regions[1] = region(layout::IMAGE + (4 << 20), 1024, kind::IMAGE, access::READ | access::WRITE);
        regions[2] = region(layout::HEAP, 1 << 20, kind::ZERO, access::READ | access::WRITE);
        regions[3] = region(layout::VIRTIO, VIRTIO_PAGES, kind::SHARED, access::READ | access::WRITE);
        regions[4] = region(layout::MODEL, 1 << 20, kind::MODEL, access::READ);
        Manifest {
            magic: manifest::MAGIC,
            version: manifest::VERSION,
            vcpu_count: 1,
            entry: layout::IMAGE,
            region_count: 5,
            reserved: 0,
            name: *b"test\0\0\0\0\0\0\0\0\0\0\0\0",
            regions,
        }
    }

    /// Makes an ELF file of segments (address, bytes in memory, contents) and a manifest section.
    pub fn elf(manifest: &[u8], segments: &[(u64, u64, &[u8])]) -> Vec<u8> {
        let names = b"\0.manifest\0.shstrtab\0";
        let data = 64 + 56 * segments.len();
        let mut file = vec![0; data];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        let total: usize = segments.iter().map(|segment| segment.2.len()).sum();
        let sections = data + total + manifest.len() + names.len();
        put(0, b"\x7fELF\x02\x01\x01");
        put(16, &2u16.to_le_bytes());
        put(18, &EM_AARCH64.to_le_bytes());
        put(20, &1u32.to_le_bytes());
        put(32, &64u64.to_le_bytes());
        put(40, &(sections as u64).to_le_bytes());
        for (at, value) in [(52, 64u16), (54, 56), (56, segments.len() as u16), (58, 64), (60, 3), (62, 2)] {
            put(at, &value.to_le_bytes());
        }
        let mut offset = data;
        for (index, (address, size, contents)) in segments.iter().enumerate() {
            let at = 64 + 56 * index;
            put(at, &PT_LOAD.to_le_bytes());
            let words = [offset as u64, *address, *address, contents.len() as u64, *size, PAGE_SIZE];
            words.iter().enumerate().for_each(|(i, word)| put(at + 8 + 8 * i, &word.to_le_bytes()));
            offset += contents.len();
        }
        segments.iter().for_each(|segment| file.extend(segment.2));
        file.extend(manifest);
        file.extend(names);
        let mut section = |name: u32, kind: u32, offset: usize, size: usize| {
            let mut header = [0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[4..8].copy_from_slice(&kind.to_le_bytes());
            header[24..32].copy_from_slice(&(offset as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(size as u64).to_le_bytes());
            file.extend(header);
        };
        section(0, 0, 0, 0);
        section(1, 1, data + total, manifest.len());
        section(11, 3, data + total + manifest.len(), names.len());
        file
    }

    fn refusal(bytes: &[u8]) -> String {
        let error = Image::parse(bytes).unwrap_err();
        assert_eq!(error.code, crate::error::Code::Partition);
        error.what
    }

    #[test]
    fn segments_become_pages_with_zeros_around_them() {
        let data = layout::IMAGE + (4 << 20);
        let file = elf(
            manifest().as_bytes(),
            &[
                (data + 0x100, 0x1800, &[2; 4]),
                (layout::IMAGE, 5, &[1; 5]),
                (data + 0x1F00, 0x40, &[3; 0x40]),
            ],
        );
        let image = Image::parse(&file).unwrap();
        assert_eq!(image.manifest(), &manifest());
        let mut code = vec![1; 5];
        code.resize(4096, 0);
        let mut bytes = vec![0; 8192];
        bytes[0x100..0x104].fill(2);
        bytes[0x1F00..0x1F40].fill(3);
        assert_eq!(image.pages(), [Pages { ipa: layout::IMAGE, bytes: code }, Pages { ipa: data, bytes }]);
    }

    #[test]
    fn adjacent_regions_stay_apart() {
        let file = elf(
            manifest().as_bytes(),
            &[
                (layout::IMAGE + (4 << 20) - 4096, 4096, &[1; 4096]),
                (layout::IMAGE + (4 << 20), 4096, &[2; 4096]),
            ],
        );
        assert_eq!(Image::parse(&file).unwrap().pages().len(), 2, "a give stays inside one region");
    }

    #[test]
    fn malformed_files_are_refused_and_never_panic() {
        let good = elf(manifest().as_bytes(), &[(layout::IMAGE, 4096, &[1; 64])]);
        assert!(Image::parse(&good).is_ok());
        for length in 0..good.len() {
            assert!(Image::parse(&good[..length]).is_err(), "cut at {length}");
        }
        // Every byte of the headers, changed in several ways.
        for at in (0..64 + 56).chain(good.len() - 192..good.len()) {
            for value in [0, 1, 0x7F, 0x80, 0xFF] {
                let mut bad = good.clone();
                bad[at] = value;
                let _ = Image::parse(&bad);
            }
        }
        assert!(refusal(b"GGUF").contains("malformed ELF"));
        let mut other = good.clone();
        other[18] = 62;
        assert!(refusal(&other).contains("AArch64"));
    }

    #[test]
    fn segments_outside_their_regions_are_refused() {
        let file = |segments: &[(u64, u64, &[u8])]| elf(manifest().as_bytes(), segments);
        for segment in [
            (layout::IMAGE - 4096, 8192, &[][..]),
            (layout::HEAP, 4096, &[]),
            (layout::IMAGE, u64::MAX, &[]),
            (u64::MAX - 4, 4, &[]),
            (layout::IMAGE + (4 << 20) - 1, 2, &[]),
        ] {
            assert!(refusal(&file(&[segment])).contains("IMAGE region"), "{segment:x?}");
        }
        assert!(refusal(&file(&[(layout::IMAGE, 3, &[1; 4])])).contains("larger in the file"));
        assert!(
            refusal(&file(&[(layout::IMAGE, 64, &[]), (layout::IMAGE + 63, 1, &[])])).contains("overlaps")
        );
        assert!(refusal(&file(&[])).contains("nothing to load"));
    }

    #[test]
    fn huge_segments_allocate_nothing() {
        let mut manifest = manifest();
        (manifest.regions[1].ipa, manifest.regions[1].page_count) = (1 << 30, 1 << 18);
        let file = elf(manifest.as_bytes(), &[(1 << 30, 1 << 30, &[])]);
        assert!(refusal(&file).contains("256 MiB"));
    }

    #[test]
    fn malformed_manifests_are_refused() {
        let with = |change: &dyn Fn(&mut Manifest)| {
            let mut manifest = manifest();
            change(&mut manifest);
            refusal(&elf(manifest.as_bytes(), &[(layout::IMAGE, 64, &[])]))
        };
        assert!(with(&|m| m.magic[0] = 0).contains("version"));
        assert!(with(&|m| m.version = 2).contains("version"));
        assert!(with(&|m| m.vcpu_count = 0).contains("vCPUs"));
        assert!(with(&|m| m.vcpu_count = 9).contains("vCPUs"));
        assert!(with(&|m| m.region_count = 0).contains("regions"));
        assert!(with(&|m| m.region_count = 17).contains("regions"));
        assert!(with(&|m| m.region_count = u32::MAX).contains("regions"));
        assert!(with(&|m| m.region_count = 4).contains("more regions"));
        assert!(with(&|m| m.regions[2].kind = 9).contains("unknown kind"));
        assert!(with(&|m| m.regions[2].access = access::WRITE | access::EXECUTE).contains("writable code"));
        assert!(with(&|m| m.regions[2].page_count = 0).contains("empty"));
        assert!(with(&|m| m.regions[2].page_count = u64::MAX).contains("beyond 40 bits"));
        assert!(with(&|m| m.regions[2].ipa += 1).contains("unaligned"));
        assert!(with(&|m| m.regions[1].ipa = manifest::PRIVATE_END - PAGE_SIZE).contains("wrong side"));
        assert!(with(&|m| m.regions[2].ipa = 1 << 30).contains("wrong side"));
        assert!(with(&|m| m.regions[2].ipa = layout::VIRTIO).contains("overlaps"));
        assert!(with(&|m| m.entry = layout::HEAP).contains("entry"));
        assert!(refusal(&elf(&[0; 431], &[])).contains("431 bytes"));
        assert!(refusal(&elf(&[], &[])).contains("0 bytes"));
    }
}
