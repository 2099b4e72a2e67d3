//! Lays out and writes the boot bundle.
//!
//! ```text
//! 0                hypervisor (arm64 Image header, bundle header at 64, code, data)
//! kernel_offset    host kernel: an Image on a 2 MiB boundary, or a raw binary 0x8_0000 past one
//! initrd_offset    initrd, page-aligned, past the memory that the kernel needs
//! ```
//! The file is loaded at a 2 MiB boundary, so offsets keep their alignment in memory and nothing has to be moved.

use std::fmt;

use hyp_abi::bundle::{BundleHeader, COMMAND_LINE_SIZE, MAGIC, OFFSET, VERSION, entry_kind};
use zerocopy::{FromBytes, IntoBytes};

use crate::image::{IMAGE_SIZE_OFFSET, ImageHeader};

/// Alignment of the load address and of kernels (booting.rst).
pub const BLOCK_SIZE: u64 = 2 << 20;
/// Where a raw binary is entered, in bytes past the start of host memory.
pub const RAW_ENTRY_OFFSET: u64 = 0x8_0000;
/// The largest bundle; more does not fit the machines of `qemu-configs/`.
pub const MAX_SIZE: u64 = 4 << 30;
const PAGE_SIZE: u64 = hyp_abi::PAGE_SIZE;

/// What goes into a bundle.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// Flat hypervisor image with an arm64 Image header and a bundle header whose `hypervisor_size` is filled in.
    pub hypervisor: &'a [u8],
    /// The host's kernel: an arm64 Image, or any other contents, entered as a raw binary.
    pub kernel: &'a [u8],
    /// The host's initrd; may be empty.
    pub initrd: &'a [u8],
    /// The host's command line, at most [`COMMAND_LINE_SIZE`] bytes.
    pub command_line: &'a str,
}

/// Why a bundle cannot be packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackError {
    /// The hypervisor is not an arm64 Image.
    HypervisorImage,
    /// The hypervisor has no bundle header of this version, or its size in memory is smaller than its file.
    HypervisorHeader,
    /// The kernel is empty, or says a size in memory smaller than its file.
    Kernel,
    /// The command line is longer than [`COMMAND_LINE_SIZE`].
    CommandLine,
    /// The parts need more than [`MAX_SIZE`].
    TooLarge,
}

impl fmt::Display for PackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HypervisorImage => f.write_str("the hypervisor does not begin with an arm64 Image header"),
            Self::HypervisorHeader => f.write_str("the hypervisor has no usable bundle header at offset 64"),
            Self::Kernel => f.write_str("the host kernel is empty or larger than its own header says"),
            Self::CommandLine => {
                write!(f, "the host's command line is longer than {COMMAND_LINE_SIZE} bytes")
            }
            Self::TooLarge => write!(f, "the bundle would be larger than {MAX_SIZE} bytes"),
        }
    }
}

impl std::error::Error for PackError {}

/// Packs a bundle. The result is a valid arm64 Image.
pub fn pack(parts: &Parts<'_>) -> Result<Vec<u8>, PackError> {
    ImageHeader::parse(parts.hypervisor).ok_or(PackError::HypervisorImage)?;
    let template = parts
        .hypervisor
        .get(OFFSET..)
        .and_then(|rest| BundleHeader::read_from_prefix(rest).ok())
        .map(|(header, _)| header)
        .ok_or(PackError::HypervisorHeader)?;
    let header = layout(parts, &template)?;
    let end = header.initrd_offset + header.initrd_size;
    let mut bundle = Vec::with_capacity(end as usize);
    bundle.extend_from_slice(parts.hypervisor);
    bundle[OFFSET..OFFSET + size_of::<BundleHeader>()].copy_from_slice(header.as_bytes());
    // Loaders reserve this much memory; the kernel's BSS may reach past the end of the file.
    let memory_end = end.max(header.kernel_offset + header.kernel_memory_size);
    bundle[IMAGE_SIZE_OFFSET..IMAGE_SIZE_OFFSET + 8].copy_from_slice(&memory_end.to_le_bytes());
    bundle.resize(header.kernel_offset as usize, 0);
    bundle.extend_from_slice(parts.kernel);
    if !parts.initrd.is_empty() {
        bundle.resize(header.initrd_offset as usize, 0);
        bundle.extend_from_slice(parts.initrd);
    }
    Ok(bundle)
}

/// Fills in the header: where everything goes.
fn layout(parts: &Parts<'_>, template: &BundleHeader) -> Result<BundleHeader, PackError> {
    let hypervisor_size = template.hypervisor_size;
    if template.magic != MAGIC
        || template.version != VERSION
        || hypervisor_size < parts.hypervisor.len() as u64
    {
        return Err(PackError::HypervisorHeader);
    }
    let kernel_size = parts.kernel.len() as u64;
    let (entry_kind, distance, kernel_memory_size) = match ImageHeader::parse(parts.kernel) {
        Some(image) => (entry_kind::IMAGE, image.text_offset, image.image_size),
        None => (entry_kind::RAW, RAW_ENTRY_OFFSET, kernel_size),
    };
    if kernel_size == 0 || kernel_memory_size < kernel_size || distance >= BLOCK_SIZE {
        return Err(PackError::Kernel);
    }
    let initrd_size = parts.initrd.len() as u64;
    let place = || -> Option<(u64, u64)> {
        let kernel_offset = hypervisor_size.checked_next_multiple_of(BLOCK_SIZE)?.checked_add(distance)?;
        let initrd_offset =
            kernel_offset.checked_add(kernel_memory_size)?.checked_next_multiple_of(PAGE_SIZE)?;
        (initrd_offset.checked_add(initrd_size)? <= MAX_SIZE).then_some((kernel_offset, initrd_offset))
    };
    let (kernel_offset, initrd_offset) = place().ok_or(PackError::TooLarge)?;
    let text = parts.command_line.as_bytes();
    let mut command_line = [0; COMMAND_LINE_SIZE];
    command_line.get_mut(..text.len()).ok_or(PackError::CommandLine)?.copy_from_slice(text);
    Ok(BundleHeader {
        magic: MAGIC,
        version: VERSION,
        entry_kind,
        hypervisor_size,
        kernel_offset,
        kernel_size,
        kernel_memory_size,
        initrd_offset: if initrd_size == 0 { 0 } else { initrd_offset },
        initrd_size,
        command_line_size: text.len() as u64,
        command_line,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::sample;

    fn hypervisor(file_size: usize, memory_size: u64) -> Vec<u8> {
        let mut file = sample(file_size, 0, memory_size);
        let header = BundleHeader {
            magic: MAGIC,
            version: VERSION,
            entry_kind: 0,
            hypervisor_size: memory_size,
            kernel_offset: 0,
            kernel_size: 0,
            kernel_memory_size: 0,
            initrd_offset: 0,
            initrd_size: 0,
            command_line_size: 0,
            command_line: [0; COMMAND_LINE_SIZE],
        };
        file[OFFSET..OFFSET + size_of::<BundleHeader>()].copy_from_slice(header.as_bytes());
        file
    }

    fn header_of(bundle: &[u8]) -> BundleHeader {
        BundleHeader::read_from_prefix(&bundle[OFFSET..]).unwrap().0
    }

    #[test]
    fn an_image_runs_in_place_and_its_bss_does_not_reach_the_initrd() {
        let hyp = hypervisor(5000, 0x30_0001);
        let kernel = sample(7000, 0, 0x12_3456);
        let parts =
            Parts { hypervisor: &hyp, kernel: &kernel, initrd: b"initrd", command_line: "console=ttyAMA0" };
        let bundle = pack(&parts).unwrap();
        let header = header_of(&bundle);
        assert_eq!(header.entry_kind, entry_kind::IMAGE);
        assert_eq!(
            header.kernel_offset, 0x40_0000,
            "after all that the hypervisor occupies, on a 2 MiB boundary"
        );
        assert_eq!(header.initrd_offset, 0x52_4000);
        assert_eq!(&bundle[0x40_0000..][..7000], &kernel[..]);
        assert_eq!(&bundle[0x52_4000..], b"initrd");
        assert_eq!(&header.command_line[..header.command_line_size as usize], b"console=ttyAMA0");
        assert_eq!(ImageHeader::parse(&bundle).unwrap().image_size, 0x52_4006);
        assert_eq!(
            &bundle[size_of::<BundleHeader>() + OFFSET..5000],
            &hyp[size_of::<BundleHeader>() + OFFSET..]
        );
    }

    #[test]
    fn without_an_initrd_the_image_size_still_covers_the_kernels_bss() {
        let hyp = hypervisor(4096, 4096);
        let kernel = sample(100, 0x8_0000, 0x1_0000);
        let bundle =
            pack(&Parts { hypervisor: &hyp, kernel: &kernel, initrd: b"", command_line: "" }).unwrap();
        let header = header_of(&bundle);
        assert_eq!((header.initrd_offset, header.initrd_size), (0, 0));
        assert_eq!(header.kernel_offset, 0x28_0000, "an old kernel's text_offset is kept");
        assert_eq!(ImageHeader::parse(&bundle).unwrap().image_size, 0x29_0000);
    }

    #[test]
    fn a_raw_binary_is_entered_past_the_start_of_host_memory() {
        let hyp = hypervisor(4096, 0x20_0000);
        let bundle =
            pack(&Parts { hypervisor: &hyp, kernel: b"raw code", initrd: b"", command_line: "" }).unwrap();
        let header = header_of(&bundle);
        assert_eq!(header.entry_kind, entry_kind::RAW);
        assert_eq!(header.kernel_offset, 0x20_0000 + RAW_ENTRY_OFFSET);
        assert_eq!(header.kernel_memory_size, 8);
    }

    #[test]
    fn unusable_parts_are_refused() {
        let hyp = hypervisor(4096, 8192);
        let kernel = sample(64, 0, 64);
        let parts = Parts { hypervisor: &hyp, kernel: &kernel, initrd: b"", command_line: "" };
        assert!(pack(&parts).is_ok());
        let error = |changed: Parts<'_>| pack(&changed).unwrap_err();
        assert_eq!(error(Parts { hypervisor: &hyp[..40], ..parts }), PackError::HypervisorImage);
        assert_eq!(error(Parts { hypervisor: &hyp[..1000], ..parts }), PackError::HypervisorHeader);
        assert_eq!(error(Parts { hypervisor: &kernel, ..parts }), PackError::HypervisorHeader);
        assert_eq!(
            error(Parts { hypervisor: &hypervisor(4096, 4095), ..parts }),
            PackError::HypervisorHeader
        );
        assert_eq!(error(Parts { hypervisor: &hypervisor(4096, u64::MAX), ..parts }), PackError::TooLarge);
        assert_eq!(error(Parts { kernel: b"", ..parts }), PackError::Kernel);
        assert_eq!(error(Parts { kernel: &sample(64, 0, 63), ..parts }), PackError::Kernel);
        assert_eq!(error(Parts { kernel: &sample(64, BLOCK_SIZE, 64), ..parts }), PackError::Kernel);
        assert_eq!(error(Parts { kernel: &sample(64, 0, u64::MAX), ..parts }), PackError::TooLarge);
        let long = "x".repeat(COMMAND_LINE_SIZE + 1);
        assert_eq!(error(Parts { command_line: &long, ..parts }), PackError::CommandLine);
        assert!(pack(&Parts { command_line: &long[1..], ..parts }).is_ok());
    }
}
