//! Registers (chapter 6), commands (chapter 4) and structures (chapter 5) of the specification, as far as used.

pub const IDR0: u64 = 0x0;
pub const IDR0_S2P: u32 = 1 << 0;
pub const IDR0_TTF_AARCH64: u32 = 1 << 3;
pub const IDR0_COHACC: u32 = 1 << 4;
pub const IDR0_ATS: u32 = 1 << 10;
pub const IDR0_VMID16: u32 = 1 << 18;
/// TTENDIAN = 0b01 is reserved, 0b11 big-endian only.
pub const IDR0_TTENDIAN_NOT_LITTLE: u32 = 1 << 21;
/// STALL_MODEL = 0b10: stalling is forced.
pub const IDR0_STALL_FORCED: u32 = 1 << 25;
/// ST_LEVEL = 0b01: two levels.
pub const IDR0_ST_LEVEL_2: u32 = 1 << 27;

pub const IDR1: u64 = 0x4;
/// SIDSIZE.
pub fn idr1_stream_id_bits(idr1: u32) -> u32 {
    idr1 & 0x3f
}
/// EVENTQS, as a power of two.
pub fn idr1_event_queue_log2(idr1: u32) -> u32 {
    idr1 >> 16 & 0x1f
}
/// CMDQS, as a power of two.
pub fn idr1_command_queue_log2(idr1: u32) -> u32 {
    idr1 >> 21 & 0x1f
}
/// QUEUES_PRESET and TABLES_PRESET.
pub const IDR1_PRESET: u32 = 3 << 29;

pub const IDR3: u64 = 0xc;
pub const IDR3_RIL: u32 = 1 << 10;
/// BBML.
pub fn idr3_bbm_level(idr3: u32) -> u8 {
    (idr3 >> 11 & 3) as u8
}

pub const IDR5: u64 = 0x14;
pub const IDR5_GRAN4K: u32 = 1 << 4;
/// OAS, encoded as PS in VTCR_EL2.
pub fn idr5_output_size(idr5: u32) -> u32 {
    idr5 & 7
}
/// OAS and S2PS of 40 bits.
pub const OUTPUT_SIZE_40: u32 = 2;

pub const CR0: u64 = 0x20;
pub const CR0ACK: u64 = 0x24;
pub const CR0_SMMUEN: u32 = 1 << 0;
pub const CR0_EVENTQEN: u32 = 1 << 2;
pub const CR0_CMDQEN: u32 = 1 << 3;
/// Translated transactions of ATS are looked up, not waved through.
pub const CR0_ATSCHK: u32 = 1 << 4;

pub const CR1: u64 = 0x28;
/// Tables and queues: inner shareable, write-back, inner and outer.
pub const CR1_WRITE_BACK: u32 = 3 << 10 | 1 << 8 | 1 << 6 | 3 << 4 | 1 << 2 | 1;

pub const CR2: u64 = 0x2c;
/// Records C_BAD_STREAMID.
pub const CR2_RECINVSID: u32 = 1 << 1;
/// Private TLB: broadcast TLBIs of the CPUs do not count, so that this driver's commands are what does.
pub const CR2_PTM: u32 = 1 << 2;

pub const GBPA: u64 = 0x44;
pub const GBPA_ABORT: u32 = 1 << 20;
pub const GBPA_UPDATE: u32 = 1 << 31;

pub const IRQ_CTRL: u64 = 0x50;
pub const IRQ_CTRL_ACK: u64 = 0x54;

pub const GERROR: u64 = 0x60;
pub const GERRORN: u64 = 0x64;
pub const GERROR_CMDQ_ERR: u32 = 1 << 0;
pub const GERROR_EVENTQ_ABT_ERR: u32 = 1 << 2;

pub const STRTAB_BASE: u64 = 0x80;
pub const STRTAB_BASE_CFG: u64 = 0x88;
/// FMT = two levels, SPLIT = 8, LOG2SIZE = 16.
pub const STRTAB_BASE_CFG_PER_BUS: u32 = 1 << 16 | SPLIT << 6 | STREAM_ID_BITS;
/// Bits of a StreamID (PCI bus, device, function).
pub const STREAM_ID_BITS: u32 = 16;
/// Bits of a StreamID that index a level-2 table.
pub const SPLIT: u32 = 8;

pub const CMDQ_BASE: u64 = 0x90;
pub const CMDQ_PROD: u64 = 0x98;
pub const CMDQ_CONS: u64 = 0x9c;
/// CMDQ_CONS.ERR.
pub fn cmdq_cons_error(cons: u32) -> u32 {
    cons >> 24 & 0x7f
}
/// The command could not be fetched.
pub const CERROR_ABT: u32 = 2;

pub const EVENTQ_BASE: u64 = 0xa0;
pub const EVENTQ_PROD: u64 = 0x1_00a8;
pub const EVENTQ_CONS: u64 = 0x1_00ac;
/// OVFLG in PROD, OVACKFLG in CONS.
pub const EVENTQ_OVERFLOW: u32 = 1 << 31;

/// Read-allocate (write-allocate) hint of the three bases.
pub const BASE_ALLOCATE: u64 = 1 << 62;

/// Command: CMD_CFGI_STE of one StreamID; Leaf = 1, for level-1 descriptors never change.
pub fn cfgi_ste(stream: u32) -> [u64; 2] {
    [u64::from(CFGI_STE) | u64::from(stream) << 32, 1]
}
/// Command: all configuration (CMD_CFGI_ALL).
pub const CFGI_ALL_STREAMS: [u64; 2] = [CFGI_ALL as u64, 31];
/// Command: CMD_TLBI_S12_VMALL.
pub fn tlbi_s12_vmall(vmid: u16) -> [u64; 2] {
    [u64::from(TLBI_S12_VMALL) | u64::from(vmid) << 32, 0]
}
/// Command: CMD_TLBI_S2_IPA of one page, walk caches included (Leaf = 0).
pub fn tlbi_s2_ipa(vmid: u16, ipa: u64) -> [u64; 2] {
    [u64::from(TLBI_S2_IPA) | u64::from(vmid) << 32, ipa]
}
/// Command: CMD_TLBI_S2_IPA of `count << scale` pages of 4 KiB; `count` 1 to 32. One page has no such form.
pub fn tlbi_s2_range(vmid: u16, ipa: u64, count: u64, scale: u32) -> [u64; 2] {
    let [low, high] = tlbi_s2_ipa(vmid, ipa);
    [low | (count - 1) << 12 | u64::from(scale) << 20, high | 1 << 10]
}
/// Command: everything of EL1 and of stage 2 (CMD_TLBI_NSNH_ALL).
pub const TLBI_EVERYTHING: [u64; 2] = [TLBI_NSNH_ALL as u64, 0];
/// Command: CMD_SYNC without a signal; its consumption is what is waited for.
pub const SYNC_COMMAND: [u64; 2] = [SYNC as u64, 0];

pub const CFGI_STE: u8 = 0x3;
pub const CFGI_ALL: u8 = 0x4;
pub const TLBI_S12_VMALL: u8 = 0x28;
pub const TLBI_S2_IPA: u8 = 0x2a;
pub const TLBI_NSNH_ALL: u8 = 0x30;
pub const SYNC: u8 = 0x46;

/// Level-1 stream table descriptor: Span of a whole level-2 table (2^(Span - 1) entries).
pub const L1_SPAN: u64 = SPLIT as u64 + 1;
/// Bytes of a stream table entry.
pub const STE_SIZE: u64 = 64;
/// Word 0 of an entry: V, Config = abort.
pub const STE_ABORT: u64 = 1;
/// Word 0: V, Config = stage 2 only.
pub const STE_STAGE2: u64 = 1 | 0b110 << 1;
/// Word 1: SHCFG = incoming; EATS = 0, so ATS requests are refused; S2FWB = 0.
pub const STE_WORD1: u64 = 1 << 44;
/// Upper half of word 2: S2T0SZ = 25 (39 bits), S2SL0 = 1 (from level 1 on), walks write-back and inner shareable, 4
/// KiB granule, S2PS = 40 bits, S2AA64, S2AFFD (the Access flag is set by software), S2R (faults are recorded), S2S = 0
/// (and abort).
pub const STE_STAGE2_FORMAT: u64 =
    (25 | 1 << 6 | 1 << 8 | 1 << 10 | 3 << 12 | (OUTPUT_SIZE_40 as u64) << 16 | 1 << 19 | 1 << 21 | 1 << 26)
        << 32;
