//! The firmware image package: how images lie in flash behind the first stage. The format is Trusted Firmware-A's
//! (`include/tools_share/firmware_image_package.h`), so that one flash layout serves both firmwares: the first stage at 0, the
//! package at [`OFFSET`].
//!
//! Behind a header of 16 bytes ([`MAGIC`], a serial number, flags) lies a table with 40 bytes for each image: its name, its offset
//! from the start of the package, its size, flags. An entry whose name is all zero ends it.

/// Where the package lies in flash: where Trusted Firmware-A's port to QEMU looks for it.
pub const OFFSET: usize = 0x4_0000;
/// The package's first bytes.
pub const MAGIC: [u8; 4] = 0xaa64_0001_u32.to_le_bytes();
/// Bytes of the header.
pub const HEADER_SIZE: usize = 16;
/// Bytes of an entry.
pub const ENTRY_SIZE: usize = 40;

/// An image's name: a UUID in the byte order of the table.
pub type Name = [u8; 16];
/// The SPMC.
pub const BL32: Name = 0x05d0_e189_53dc_1347_8d2b_500a_4b7a_3e38_u128.to_be_bytes();

/// Finds an image in a package; none if it is not there, or the table is none.
pub fn find<'a>(package: &'a [u8], name: &Name) -> Option<&'a [u8]> {
    let mut entries =
        package.strip_prefix(&MAGIC)?.get(HEADER_SIZE - MAGIC.len()..)?.chunks_exact(ENTRY_SIZE);
    let entry = entries.find(|entry| entry.starts_with(name) || entry.starts_with(&[0; 16]))?;
    let fields = entry.strip_prefix(name)?;
    let field = |at| usize::try_from(u64::from_le_bytes(*fields.get(at..)?.first_chunk()?)).ok();
    package.get(field(0)?..)?.get(..field(8)?)
}
