//! An SMMUv3 with RAM, for tests, that uses every liberty the specification gives to hardware, to the disadvantage of
//! the software: it caches level-1 descriptors, each word of stream table entries, table pointers and translations
//! until the right command *and* a CMD_SYNC came, reads commands only when CMDQ_PROD moves, and panics on writes that
//! are CONSTRAINED UNPREDICTABLE. It can be told to break.

use super::registers::*;
use super::{Memory, Registers};
use core::cell::Cell;
use std::collections::BTreeMap;
use std::vec::Vec;

/// Why a transaction of [`FakeSmmu::dma`] did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Aborted without an event: GBPA or an entry that says so.
    Abort,
    /// C_BAD_STREAMID.
    BadStreamId,
    /// C_BAD_STE.
    BadSte,
    /// F_TRANSLATION.
    Translation,
    /// F_PERMISSION.
    Permission,
}

/// How the fake breaks.
#[derive(Clone, Debug, Default)]
pub struct Breaks {
    /// Commands are never consumed.
    pub stuck: bool,
    /// CR0ACK does not follow CR0.
    pub no_ack: bool,
    /// Opcode, CERROR code, how often: such a command stops the queue.
    pub refuse: Option<(u8, u32, u32)>,
    /// Opcodes that are consumed without effect.
    pub ignore: Vec<u8>,
    /// GBPA.Update stays set.
    pub gbpa_stuck: bool,
    /// GBPA.ABORT does not stick.
    pub gbpa_deaf: bool,
}

#[derive(Clone, Copy, Debug)]
struct Translation {
    vmid: u16,
    ipa: u64,
    size: u64,
    pa: u64,
    rights: u64,
}

/// See the module's documentation.
pub struct FakeSmmu {
    /// Page 0, then page 1.
    registers: [[u32; 64]; 2],
    /// How the fake breaks.
    pub breaks: Breaks,
    /// Devices keep translations of their own, whatever their stream's entry says, that only TLBI_S12_VMALL and
    /// TLBI_NSNH_ALL end for certain (as vhost devices under QEMU do).
    pub device_caches: bool,
    /// A DMA that is tried at every store and register write; what it reached is in `reached`.
    pub adversary: Option<(u32, u64)>,
    /// Physical addresses that the adversary reached.
    pub reached: Vec<u64>,
    /// Commands consumed.
    pub commands: Vec<[u64; 2]>,
    ram: BTreeMap<u64, u64>,
    next_table: u64,
    pending: Vec<[u64; 2]>,
    level1: BTreeMap<u64, u64>,
    entries: BTreeMap<(u32, u64), u64>,
    pointers: BTreeMap<(u16, u64), u64>,
    tlb: Vec<Translation>,
    devices: BTreeMap<(u32, u64), (u64, u64)>,
    gbpa_delay: Cell<u32>,
}

impl Default for FakeSmmu {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeSmmu {
    /// As QEMU's `virt` machine resets it: everything bypasses.
    pub fn new() -> Self {
        let mut fake = Self {
            registers: [[0; 64]; 2],
            breaks: Breaks::default(),
            device_caches: false,
            adversary: None,
            reached: Vec::new(),
            commands: Vec::new(),
            ram: BTreeMap::new(),
            next_table: 0x70_0000_0000,
            pending: Vec::new(),
            level1: BTreeMap::new(),
            entries: BTreeMap::new(),
            pointers: BTreeMap::new(),
            tlb: Vec::new(),
            devices: BTreeMap::new(),
            gbpa_delay: Cell::new(0),
        };
        for (offset, value) in [
            (IDR0, 0x0d44_101b),
            (IDR1, 19 << 21 | 19 << 16 | 16),
            (IDR3, IDR3_RIL | 2 << 11),
            (IDR5, IDR5_GRAN4K | 4),
            (GBPA, 0x1000),
        ] {
            fake.set_register(offset, value);
        }
        fake
    }

    /// Sets a register from outside, as reset or earlier software left it.
    pub fn set_register(&mut self, offset: u64, value: u32) {
        self.registers[(offset >> 16) as usize][(offset as u16 / 4) as usize] = value;
    }

    /// Whether anything of `vmid` is cached.
    pub fn caches(&self, vmid: u16) -> bool {
        self.tlb.iter().any(|known| known.vmid == vmid) || self.pointers.keys().any(|known| known.0 == vmid)
    }

    /// Reads fake RAM.
    pub fn ram(&self, address: u64) -> u64 {
        self.ram.get(&address).copied().unwrap_or(0)
    }

    /// New tables for [`Self::map`].
    pub fn new_root(&mut self) -> u64 {
        self.next_table += 0x1000;
        self.next_table - 0x1000
    }

    /// Maps a page in the tables at `root`; no rights at all unmaps it.
    pub fn map(&mut self, root: u64, ipa: u64, pa: u64, readable: bool, writable: bool) {
        let mut table = root;
        for level in 1..3 {
            let entry = table + 8 * index(ipa, level);
            if self.ram(entry) == 0 {
                self.next_table += 0x1000;
                self.ram.insert(entry, (self.next_table - 0x1000) | 3);
            }
            table = self.ram(entry) & ADDRESS;
        }
        let rights = u64::from(readable) << 6 | u64::from(writable) << 7;
        let leaf = if rights == 0 { 0 } else { pa | 3 | 0xf << 2 | 3 << 8 | 1 << 10 | rights };
        self.ram.insert(table + 8 * index(ipa, 3), leaf);
    }

    fn register(&self, offset: u64) -> u32 {
        self.registers[(offset >> 16) as usize][(offset as u16 / 4) as usize]
    }

    fn is_on(&self, bit: u32) -> bool {
        self.register(CR0) & bit != 0
    }

    fn base(&self, offset: u64) -> u64 {
        (u64::from(self.register(offset)) | u64::from(self.register(offset + 4)) << 32)
            & 0x000f_ffff_ffff_ffc0
    }

    /// A read or write of a device: where it lands.
    pub fn dma(&mut self, stream: u32, ipa: u64, is_write: bool) -> Result<u64, Fault> {
        let right = 1 << (6 + u32::from(is_write));
        if let Some(&(pa, rights)) = self.devices.get(&(stream, ipa >> 12))
            && rights & right != 0
        {
            return Ok(pa | ipa & 0xfff);
        }
        let result = self.translate(stream, ipa, right);
        let (kind, fault) = match result {
            Ok(found) => {
                if self.device_caches && found.rights != 0 {
                    self.devices.insert((stream, ipa >> 12), (found.pa & !0xfff, found.rights));
                }
                return Ok(found.pa);
            }
            Err(Fault::Abort) => return Err(Fault::Abort),
            Err(fault @ Fault::BadStreamId) => (0x02, fault),
            Err(fault @ Fault::BadSte) => (0x04, fault),
            Err(fault @ Fault::Translation) => (0x10, fault),
            Err(fault @ Fault::Permission) => (0x13, fault),
        };
        self.record([
            kind | u64::from(stream) << 32,
            u64::from(!is_write) << 35 | 1 << 39,
            ipa,
            ipa & !0xfff,
        ]);
        Err(fault)
    }

    fn record(&mut self, event: [u64; 4]) {
        if !self.is_on(CR0_EVENTQEN) {
            return;
        }
        let log2 = self.register(EVENTQ_BASE) & 0x1f;
        let (prod, cons) = (self.register(EVENTQ_PROD), self.register(EVENTQ_CONS));
        let pointer = (2 << log2) - 1;
        if (prod ^ cons) & pointer == 1 << log2 {
            if (prod ^ cons) & EVENTQ_OVERFLOW == 0 {
                self.set_register(EVENTQ_PROD, prod ^ EVENTQ_OVERFLOW);
            }
            return;
        }
        let entry = self.base(EVENTQ_BASE) + 32 * u64::from(prod & ((1 << log2) - 1));
        for (index, word) in event.into_iter().enumerate() {
            self.ram.insert(entry + 8 * index as u64, word);
        }
        self.set_register(EVENTQ_PROD, prod & EVENTQ_OVERFLOW | (prod + 1) & pointer);
    }

    fn translate(&mut self, stream: u32, ipa: u64, right: u64) -> Result<Translation, Fault> {
        let bypass = Translation { vmid: 0, ipa, size: 0, pa: ipa, rights: 0 };
        if !self.is_on(CR0_SMMUEN) {
            return if self.register(GBPA) & GBPA_ABORT != 0 { Err(Fault::Abort) } else { Ok(bypass) };
        }
        let config = self.register(STRTAB_BASE_CFG);
        assert_eq!(config >> 16 & 3, 1, "a linear stream table");
        let (bits, split) = (config & 0x3f, config >> 6 & 0x1f);
        if stream >> bits != 0 {
            return Err(Fault::BadStreamId);
        }
        let at = self.base(STRTAB_BASE) + 8 * u64::from(stream >> split);
        let level1 = *self.level1.entry(at).or_insert(self.ram.get(&at).copied().unwrap_or(0));
        let (span, index) = (level1 & 0x1f, u64::from(stream) & ((1 << split) - 1));
        if span == 0 || index >= 1 << (span - 1) {
            return Err(Fault::BadStreamId);
        }
        let entry = (level1 & 0x000f_ffff_ffff_ffc0) + STE_SIZE * index;
        let [word0, word1, word2, root] = [0, 1, 2, 3].map(|word| {
            let value = self.ram.get(&(entry + 8 * word)).copied().unwrap_or(0);
            *self.entries.entry((stream, word)).or_insert(value)
        });
        match (word0 & 1, word0 >> 1 & 7) {
            (0, _) => return Err(Fault::BadSte),
            (_, 0) => return Err(Fault::Abort),
            (_, 4) => return Ok(bypass),
            (_, 6) => {}
            _ => return Err(Fault::BadSte),
        }
        let output_size = self.register(IDR5) & 7;
        let format_is_valid = word2 >> 16 & 0xffff == 0
            && matches!(word2 >> 32 & 0x3f, 24 | 25) // 40 or 39 bits of input
            && word2 >> 38 & 3 == 1 // from level 1 on
            && word2 >> 46 & 3 == 0 // 4 KiB
            && (word2 >> 48 & 7) as u32 <= output_size
            && word2 >> 48 & 7 == 2
            && word2 >> 51 & 1 == 1 // VMSAv8-64
            && word2 >> 57 & 1 == 0 // no stalls
            && word1 >> 28 & 3 == 0 // no ATS
            && (4..8).all(|word| self.ram(entry + 8 * word) == 0)
            && root.is_multiple_of(0x1000)
            && root >> 40 == 0;
        if !format_is_valid {
            return Err(Fault::BadSte);
        }
        let vmid = word2 as u16;
        let hit = |known: &&Translation| known.vmid == vmid && ipa.wrapping_sub(known.ipa) < known.size;
        let found = match self.tlb.iter().find(hit) {
            Some(known) => *known,
            None => {
                if ipa >> (64 - (word2 >> 32 & 0x3f)) != 0 {
                    return Err(Fault::Translation);
                }
                let found = self.walk(vmid, root, ipa).ok_or(Fault::Translation)?;
                self.tlb.push(found);
                found
            }
        };
        let pa = found.pa + (ipa - found.ipa);
        if found.rights & right != 0 { Ok(Translation { pa, ..found }) } else { Err(Fault::Permission) }
    }

    fn walk(&mut self, vmid: u16, root: u64, ipa: u64) -> Option<Translation> {
        let cached = self.pointers.get(&(vmid, ipa >> 21)).copied();
        let mut table = cached.unwrap_or(root);
        for level in if cached.is_some() { 3 } else { 1 }..4 {
            let descriptor = self.ram(table + 8 * index(ipa, level));
            if descriptor & 1 == 0 {
                return None;
            }
            if level < 3 && descriptor & 2 != 0 {
                table = descriptor & ADDRESS;
                if level == 2 {
                    self.pointers.insert((vmid, ipa >> 21), table);
                }
                continue;
            }
            let size = 0x1000 << (9 * (3 - level));
            let pa = descriptor & ADDRESS & !(size - 1);
            return Some(Translation { vmid, ipa: ipa & !(size - 1), size, pa, rights: descriptor & 0xc0 });
        }
        None
    }

    /// Executes what CMDQ_PROD shows.
    fn consume(&mut self) {
        let log2 = self.register(CMDQ_BASE) & 0x1f;
        let pointer = (2 << log2) - 1;
        loop {
            let (prod, cons) = (self.register(CMDQ_PROD) & pointer, self.register(CMDQ_CONS) & pointer);
            let failed = (self.register(GERROR) ^ self.register(GERRORN)) & GERROR_CMDQ_ERR != 0;
            if !self.is_on(CR0_CMDQEN) || self.breaks.stuck || failed || prod == cons {
                return;
            }
            assert!(
                prod.wrapping_sub(cons) & pointer <= 1 << log2,
                "more commands than the queue has room for"
            );
            let at = self.base(CMDQ_BASE) + 16 * u64::from(cons & ((1 << log2) - 1));
            let command = [self.ram(at), self.ram(at + 8)];
            if let Some((opcode, error, count)) = self.breaks.refuse
                && command[0] as u8 == opcode
                && count > 0
            {
                self.breaks.refuse = Some((opcode, error, count - 1));
                self.set_register(CMDQ_CONS, cons | error << 24);
                let gerror = self.register(GERROR);
                self.set_register(GERROR, gerror ^ GERROR_CMDQ_ERR);
                return;
            }
            self.commands.push(command);
            if !self.breaks.ignore.contains(&(command[0] as u8)) {
                self.pending.push(command);
            }
            if command[0] as u8 == SYNC {
                for command in core::mem::take(&mut self.pending) {
                    self.execute(command);
                }
            }
            self.set_register(CMDQ_CONS, (cons + 1) & pointer);
        }
    }

    fn execute(&mut self, [low, high]: [u64; 2]) {
        let (stream, vmid) = ((low >> 32) as u32, (low >> 32) as u16);
        match low as u8 {
            CFGI_STE => self.entries.retain(|entry, _| entry.0 != stream),
            CFGI_ALL => {
                assert_eq!(high & 0x1f, 31, "a range of streams");
                self.entries.clear();
                self.level1.clear();
            }
            TLBI_S12_VMALL => {
                self.tlb.retain(|known| known.vmid != vmid);
                self.pointers.retain(|known, _| known.0 != vmid);
                self.devices.clear();
            }
            TLBI_S2_IPA => {
                let (num, scale, granule) = (low >> 12 & 0x1f, low >> 20 & 0x1f, high >> 10 & 3);
                assert!(granule == 1 || (num, scale) == (0, 0), "a range of no granule");
                assert!(granule == 0 || (num, scale) != (0, 0), "reserved: a range of one page of any level");
                let (first, pages) = (high & ADDRESS, (num + 1) << scale);
                let last = first + (pages << 12) - 1;
                let overlaps = |ipa: u64, size: u64| ipa <= last && first < ipa + size;
                self.tlb.retain(|known| known.vmid != vmid || !overlaps(known.ipa, known.size));
                if high & 1 == 0 {
                    self.pointers.retain(|known, _| known.0 != vmid || !overlaps(known.1 << 21, 1 << 21));
                }
                // A device's own cache is reached only through its stream's entry of the moment.
                let entries = &self.entries;
                self.devices.retain(|known, _| {
                    let owner = entries.get(&(known.0, 2)).map(|word| *word as u16);
                    owner != Some(vmid) || !overlaps(known.1 << 12, 0x1000)
                });
            }
            TLBI_NSNH_ALL => {
                self.tlb.clear();
                self.pointers.clear();
                self.devices.clear();
            }
            SYNC => {}
            other => panic!("command {other:#x}"),
        }
    }

    fn provoke(&mut self) {
        let Some((stream, ipa)) = self.adversary else { return };
        match self.dma(stream, ipa, true) {
            Ok(pa) => self.reached.push(pa),
            // Words are cached, and evicted, one by one.
            Err(_) => drop(self.entries.remove(&(stream, 0))),
        }
    }
}

const ADDRESS: u64 = 0xff_ffff_f000;

/// Index into the table of `level`. Of two concatenated level-1 tables the first is always used, as QEMU does.
fn index(ipa: u64, level: u32) -> u64 {
    ipa >> (12 + 9 * (3 - level)) & 0x1ff
}

impl Memory for FakeSmmu {
    fn load(&self, address: u64) -> u64 {
        assert!(address.is_multiple_of(8));
        self.ram(address)
    }

    fn store(&mut self, address: u64, value: u64) {
        assert!(address.is_multiple_of(8));
        self.ram.insert(address, value);
        self.provoke();
    }
}

impl Registers for FakeSmmu {
    fn read(&self, offset: u64) -> u32 {
        match offset {
            GBPA if self.gbpa_delay.get() > 0 => {
                self.gbpa_delay.set(self.gbpa_delay.get() - 1);
                self.register(GBPA) | GBPA_UPDATE
            }
            GBPA if self.breaks.gbpa_stuck => self.register(GBPA) | GBPA_UPDATE,
            CR0ACK if !self.breaks.no_ack => self.register(CR0),
            IRQ_CTRL_ACK => self.register(IRQ_CTRL),
            _ => self.register(offset),
        }
    }

    fn write(&mut self, offset: u64, value: u32) {
        let is_on = |bits: u32| self.register(CR0) & bits != 0;
        match offset {
            CR1 | CR2 => assert!(!is_on(CR0_SMMUEN | CR0_CMDQEN | CR0_EVENTQEN), "CR1, CR2 while in use"),
            0x80..0x90 => assert!(!is_on(CR0_SMMUEN), "the stream table while in use"),
            0x90..0x98 | CMDQ_CONS => assert!(!is_on(CR0_CMDQEN), "the command queue while in use"),
            0xa0..0xa8 | EVENTQ_PROD => assert!(!is_on(CR0_EVENTQEN), "the event queue while in use"),
            GERRORN => {
                let active = self.register(GERROR) ^ self.register(GERRORN);
                let toggled = value ^ self.register(GERRORN);
                assert_eq!(toggled & !active, 0, "acknowledges an error that is not active");
            }
            CR0 => {
                let bypasses = value & CR0_SMMUEN == 0 && self.register(GBPA) & GBPA_ABORT == 0;
                assert!(!(is_on(CR0_SMMUEN) && bypasses), "translation off without GBPA.ABORT");
                let queues = CR0_CMDQEN | CR0_EVENTQEN;
                let is_change = value & CR0_SMMUEN != 0 && !is_on(CR0_SMMUEN);
                assert!(!is_change || value & queues == queues, "translation on without queues");
            }
            GBPA => {
                assert!(value & GBPA_UPDATE != 0, "GBPA without Update");
                self.gbpa_delay.set(3);
            }
            EVENTQ_CONS | CMDQ_PROD | IRQ_CTRL => {}
            _ => panic!("write of register {offset:#x}"),
        }
        let value = match offset {
            GBPA if self.breaks.gbpa_deaf => value & !(GBPA_UPDATE | GBPA_ABORT),
            GBPA => value & !GBPA_UPDATE,
            _ => value,
        };
        self.set_register(offset, value);
        self.consume();
        self.provoke();
    }
}
