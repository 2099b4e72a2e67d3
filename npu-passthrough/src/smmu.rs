//! SMMUv3 (Arm IHI0070) as far as nobody owns a stream: every transaction is aborted.

/// Access to the register page 0 of one SMMU. Offsets are the specification's.
pub trait Registers {
    /// Reads a 32-bit register.
    fn read(&self, offset: u64) -> u32;
    /// Writes a 32-bit register.
    fn write(&mut self, offset: u64, value: u32);
}

/// The SMMU did not do what the specification says it must.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// CR0ACK did not follow CR0.
    NotDisabled,
    /// GBPA.Update did not clear.
    UpdateStuck,
    /// GBPA.ABORT did not stick.
    NotAborting,
}

const CR0: u64 = 0x20;
const CR0ACK: u64 = 0x24;
const GBPA: u64 = 0x44;
const CR0_SMMUEN: u32 = 1 << 0;
const GBPA_ABORT: u32 = 1 << 20;
const GBPA_UPDATE: u32 = 1 << 31;
/// Reads until the hardware is given up on.
const PATIENCE: u32 = 1_000_000;

fn settle(done: impl Fn() -> bool) -> bool {
    (0..PATIENCE).any(|_| done())
}

/// Makes the SMMU abort every transaction of every stream (section 6.3.15): translation off, GBPA.ABORT set. Aborting is
/// arranged before translation is turned off, so that there is no moment of bypass.
pub fn abort_all(registers: &mut impl Registers) -> Result<(), Error> {
    if !settle(|| registers.read(GBPA) & GBPA_UPDATE == 0) {
        return Err(Error::UpdateStuck);
    }
    let gbpa = registers.read(GBPA);
    registers.write(GBPA, gbpa | GBPA_ABORT | GBPA_UPDATE);
    if !settle(|| registers.read(GBPA) & GBPA_UPDATE == 0) {
        return Err(Error::UpdateStuck);
    }
    if registers.read(GBPA) & GBPA_ABORT == 0 {
        return Err(Error::NotAborting);
    }
    let cr0 = registers.read(CR0);
    registers.write(CR0, cr0 & !CR0_SMMUEN);
    if !settle(|| registers.read(CR0ACK) & CR0_SMMUEN == 0) {
        return Err(Error::NotDisabled);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;

    /// An SMMU whose updates take a few reads to finish, and that remembers whether it ever bypassed.
    struct Fake {
        gbpa: Cell<u32>,
        delay: Cell<u32>,
        cr0: Cell<u32>,
        bypassed_after_update: Cell<bool>,
        stuck: bool,
        deaf: bool,
    }

    impl Fake {
        fn new(gbpa: u32, cr0: u32) -> Self {
            Self {
                gbpa: Cell::new(gbpa),
                delay: Cell::new(0),
                cr0: Cell::new(cr0),
                bypassed_after_update: Cell::new(false),
                stuck: false,
                deaf: false,
            }
        }
    }

    impl Registers for Fake {
        fn read(&self, offset: u64) -> u32 {
            match offset {
                GBPA => {
                    if self.delay.get() > 0 && !self.stuck {
                        self.delay.set(self.delay.get() - 1);
                    } else if !self.stuck {
                        self.gbpa.set(self.gbpa.get() & !GBPA_UPDATE);
                    }
                    self.gbpa.get()
                }
                CR0 | CR0ACK => self.cr0.get(),
                _ => 0,
            }
        }

        fn write(&mut self, offset: u64, value: u32) {
            match offset {
                GBPA => {
                    self.gbpa.set(if self.deaf { value & !GBPA_ABORT } else { value });
                    self.delay.set(3);
                }
                CR0 => {
                    if value & CR0_SMMUEN == 0 && self.gbpa.get() & GBPA_ABORT == 0 {
                        self.bypassed_after_update.set(true);
                    }
                    self.cr0.set(value);
                }
                _ => {}
            }
        }
    }

    #[test]
    fn aborts_from_reset_and_from_a_bootloader_that_left_it_on() {
        for cr0 in [0, CR0_SMMUEN | 0xc] {
            let mut fake = Fake::new(0x1000, cr0);
            assert_eq!(abort_all(&mut fake), Ok(()));
            assert_eq!(fake.gbpa.get() & (GBPA_ABORT | GBPA_UPDATE), GBPA_ABORT);
            assert_eq!(fake.gbpa.get() & 0x1000, 0x1000, "the other fields stay");
            assert_eq!(fake.cr0.get() & CR0_SMMUEN, 0);
            assert!(!fake.bypassed_after_update.get());
        }
    }

    #[test]
    fn broken_hardware_is_reported() {
        let mut fake = Fake::new(GBPA_UPDATE, 0);
        fake.stuck = true;
        assert_eq!(abort_all(&mut fake), Err(Error::UpdateStuck));
        let mut fake = Fake::new(0, 0);
        fake.deaf = true;
        assert_eq!(abort_all(&mut fake), Err(Error::NotAborting));
    }
}
