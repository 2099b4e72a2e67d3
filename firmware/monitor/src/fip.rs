//! The firmware image package: how images lie in flash behind the first stage. The format is Trusted Firmware-A's
//! (`include/tools_share/firmware_image_package.h`), so that one flash layout serves both firmwares: the first stage at 0, the
//! package at [`OFFSET`].
//!
//! A table of contents, one [`Entry`] for each image, ends with an entry whose name is all zero.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Where the package lies in flash: where Trusted Firmware-A's port to QEMU looks for it.
pub const OFFSET: usize = 0x4_0000;
/// [`Header::name`].
pub const NAME: u32 = 0xaa64_0001;

/// An image's name: a UUID in the byte order of the table.
pub type Name = [u8; 16];
/// Second boot stage of Trusted Firmware-A.
pub const BL2: Name = 0x5ff9_ec0b_4d22_3e4d_a544_c39d_81c7_3f0a_u128.to_be_bytes();
/// Runtime firmware of Trusted Firmware-A.
pub const BL31: Name = 0x47d4_086d_4cfe_9846_9b95_2950_cbbd_5a00_u128.to_be_bytes();
/// The SPMC.
pub const BL32: Name = 0x05d0_e189_53dc_1347_8d2b_500a_4b7a_3e38_u128.to_be_bytes();
/// Configuration of Trusted Firmware-A's boot: a device tree.
pub const TB_FW_CONFIG: Name = 0x6c04_58ff_af6b_7d4f_82ed_aa27_bc69_bfd2_u128.to_be_bytes();
/// The SPMC's manifest: a device tree.
pub const TOS_FW_CONFIG: Name = 0x2625_7c1a_dbc6_7f47_8d96_c4c4_b024_8021_u128.to_be_bytes();

/// Starts the package.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// [`NAME`].
    pub name: u32,
    /// Anything but 0.
    pub serial_number: u32,
    /// 0.
    pub flags: u64,
}

/// One image.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Entry {
    /// Which image.
    pub name: Name,
    /// Where it lies, in bytes from the start of the package.
    pub offset: u64,
    /// Its size in bytes.
    pub size: u64,
    /// 0.
    pub flags: u64,
}
const _: () = assert!(size_of::<Header>() == 16 && size_of::<Entry>() == 40);

/// Finds an image in a package; none if it is not there, or the table is none.
pub fn find<'a>(package: &'a [u8], name: &Name) -> Option<&'a [u8]> {
    let (header, mut rest) = Header::read_from_prefix(package).ok()?;
    if header.name != NAME {
        return None;
    }
    loop {
        let (entry, next) = Entry::read_from_prefix(rest).ok()?;
        if entry.name == [0; 16] {
            return None;
        }
        if entry.name == *name {
            let start = usize::try_from(entry.offset).ok()?;
            let end = start.checked_add(usize::try_from(entry.size).ok()?)?;
            return package.get(start..end);
        }
        rest = next;
    }
}
