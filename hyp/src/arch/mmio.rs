//! Accesses to devices: those that others made and that are carried out here, and our own.

/// A load or store of one general register that stage 2 refused, from its syndrome (Arm ARM D24.2.40, ISS of a data abort).
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// Bytes: 1, 2, 4 or 8.
    pub width: u8,
    /// Whether it stores.
    pub write: bool,
    register: usize,
    sign_extend: bool,
    is_64_bit: bool,
}

impl Access {
    /// Whether a syndrome (ESR_EL2) is that of an instruction fetch.
    pub fn is_fetch(esr: u64) -> bool {
        const EC_INSTRUCTION_ABORT: u64 = 0x20;
        esr >> 26 & 0x3f == EC_INSTRUCTION_ABORT
    }

    /// What it was; none if the syndrome does not say: then it was more than a load or store of one register.
    pub fn decode(esr: u64) -> Option<Self> {
        const ISV: u64 = 1 << 24;
        (esr & ISV != 0 && !Self::is_fetch(esr)).then_some(Self {
            width: 1 << (esr >> 22 & 3),
            write: esr & 1 << 6 != 0,
            register: (esr >> 16 & 31) as usize,
            sign_extend: esr & 1 << 21 != 0,
            is_64_bit: esr & 1 << 15 != 0,
        })
    }

    /// What a store stores. Register 31 is zero.
    pub fn value(&self, registers: &[u64; 31]) -> u64 {
        registers.get(self.register).copied().unwrap_or(0) & self.mask()
    }

    /// Gives a load its value.
    pub fn complete(&self, registers: &mut [u64; 31], value: u64) {
        if self.write {
            return;
        }
        let mut value = value & self.mask();
        if self.sign_extend {
            let unused = 64 - 8 * u32::from(self.width);
            value = ((value << unused) as i64 >> unused) as u64;
        }
        if let Some(register) = registers.get_mut(self.register) {
            *register = if self.is_64_bit { value } else { value & u64::from(u32::MAX) };
        }
    }

    fn mask(&self) -> u64 {
        u64::MAX >> (64 - 8 * u32::from(self.width))
    }
}

/// Registers of a device that the hypervisor drives.
#[derive(Clone, Copy)]
pub struct Device(u64);

impl Device {
    /// # Safety
    /// From `base` on lie registers of a device that this program drives or guards, mapped as device memory; callers stay
    /// inside.
    pub const unsafe fn new(base: u64) -> Self {
        Self(base)
    }

    /// Reads `width` bytes (1, 2, 4, 8) at an offset that is a multiple of it.
    pub fn read(&self, offset: u64, width: u8) -> u64 {
        let at = self.0 + offset;
        // SAFETY: a register of the device that the maker of this value vouched for.
        unsafe {
            match width {
                1 => (at as *const u8).read_volatile().into(),
                2 => (at as *const u16).read_volatile().into(),
                4 => (at as *const u32).read_volatile().into(),
                _ => (at as *const u64).read_volatile(),
            }
        }
    }

    /// Writes `width` bytes at an offset that is a multiple of it. Whatever was stored to memory before is seen first.
    pub fn write(&self, offset: u64, width: u8, value: u64) {
        let at = self.0 + offset;
        // SAFETY: as above; a barrier.
        unsafe {
            core::arch::asm!("dsb st", options(nostack));
            match width {
                1 => (at as *mut u8).write_volatile(value as u8),
                2 => (at as *mut u16).write_volatile(value as u16),
                4 => (at as *mut u32).write_volatile(value as u32),
                _ => (at as *mut u64).write_volatile(value),
            }
        }
    }
}

impl npu_passthrough::smmu::Registers for Device {
    fn read(&self, offset: u64) -> u32 {
        let value = Device::read(self, offset, 4) as u32;
        // SAFETY: a barrier: what the device stored before is seen by later loads.
        unsafe { core::arch::asm!("dmb osh", options(nostack)) };
        value
    }

    fn write(&mut self, offset: u64, value: u32) {
        Device::write(self, offset, 4, value.into());
    }
}

/// The SMMU's registers and its structures, which lie in the hypervisor's own memory.
impl npu_passthrough::smmu::Memory for Device {
    fn load(&self, address: u64) -> u64 {
        // SAFETY: the driver loads from the structures that it was given (`devices`), which nobody else writes but the SMMU.
        unsafe { (address as *const u64).read_volatile() }
    }

    fn store(&mut self, address: u64, value: u64) {
        // SAFETY: as above, and the driver's caller holds the lock. The barrier orders the store after earlier ones.
        unsafe {
            core::arch::asm!("dmb oshst", options(nostack));
            (address as *mut u64).write_volatile(value);
        }
    }
}

impl npu_passthrough::npu::Mmio for Device {
    fn read(&self, offset: u64, width: u8) -> u32 {
        Device::read(self, offset, width) as u32
    }

    fn write(&mut self, offset: u64, width: u8, value: u32) {
        Device::write(self, offset, width, value.into());
    }
}
