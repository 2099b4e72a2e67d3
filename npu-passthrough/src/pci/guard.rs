//! What the host may do to configuration space.

use super::register::*;
use super::{BAR_COUNT, Config, Function, Kind, Pci, RoutingId};

/// What became of a write of the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done, as far as it is the host's choice.
    Done,
    /// Refused: nothing changed.
    Ignored,
}

/// Whether a knob leaves a protection out: constant `false` in a shipped image.
macro_rules! skips {
    ($pci:expr, $skip:ident) => {{
        #[cfg(any(test, feature = "fault-knobs"))]
        let skip = $pci.skips.contains(super::Skips::$skip);
        #[cfg(not(any(test, feature = "fault-knobs")))]
        let skip = false;
        skip
    }};
}

/// An access of the host's that one register can answer.
#[derive(Clone, Copy)]
struct Access {
    id: RoutingId,
    offset: u16,
    width: u8,
}

impl Access {
    /// The register that holds all of it.
    fn register(self) -> u16 {
        self.offset & !3
    }

    fn shift(self) -> u32 {
        8 * u32::from(self.offset & 3)
    }

    fn mask(self) -> u32 {
        ones(self.width)
    }
}

fn ones(width: u8) -> u32 {
    u32::MAX >> (32 - 8 * u32::from(width.clamp(1, 4)))
}

impl Function {
    fn bar_count(&self) -> usize {
        if self.is_type1 { 2 } else { BAR_COUNT }
    }

    /// The number of the BAR register at `register`.
    fn bar_index(&self, register: u16) -> Option<usize> {
        let index = usize::from(register.checked_sub(BAR0)? / 4);
        (index < self.bar_count()).then_some(index)
    }

    fn bar_at(&self, index: usize) -> Option<super::Bar> {
        self.bars.get(index).copied().flatten()
    }

    /// What BAR register `index` shows: the address, or the size if all ones were written. No I/O BARs.
    fn bar_register(&self, index: usize) -> u32 {
        let is_sizing = self.sizing & 1 << index != 0;
        if let Some(bar) = self.bar_at(index) {
            let value = if is_sizing { !(bar.size - 1) } else { bar.base };
            return value as u32 & !0xf | bar.flags;
        }
        match index.checked_sub(1).and_then(|lower| self.bar_at(lower)) {
            Some(bar) if bar.is_64_bit() => {
                let value = if is_sizing { !(bar.size - 1) } else { bar.base };
                (value >> 32) as u32
            }
            _ => 0,
        }
    }

    /// Bits of the command register that the host chooses.
    fn host_command(&self) -> u16 {
        match self.kind {
            Kind::Endpoint => COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE,
            // Its driver may not know that clearing bus master resets nothing and stops everything.
            Kind::Npu => COMMAND_INTX_DISABLE,
            Kind::Bridge => 0,
        }
    }
}

impl Pci {
    /// The access, if it is aligned, and the index of the function that it is for.
    fn locate(&self, ecam_offset: u64, width: u8, npu_is_hosts: bool) -> Option<(Access, usize)> {
        let is_aligned = matches!(width, 1 | 2 | 4) && ecam_offset.is_multiple_of(width.into());
        let bus = u8::try_from(ecam_offset >> 20).ok()?.checked_add(self.first_bus)?;
        let id = RoutingId(u16::from(bus) << 8 | (ecam_offset >> 12) as u16 & 0xff);
        let index = self.functions.iter().position(|function| function.id == id)?;
        let is_npu = self.functions.get(index)?.kind == Kind::Npu;
        let is_visible = !is_npu || npu_is_hosts || skips!(self, NPU_CONFIG);
        let access = Access { id, offset: (ecam_offset & 0xfff) as u16, width };
        (is_aligned && is_visible).then_some((access, index))
    }

    /// What the host reads at `ecam_offset` from the first bus on, in `width` bytes. `npu_is_hosts`: the host owns the
    /// NPU, and its device driver may look. All ones where there is nothing for the host.
    pub fn host_read(&self, config: &impl Config, ecam_offset: u64, width: u8, npu_is_hosts: bool) -> u32 {
        let Some((access, index)) = self.locate(ecam_offset, width, npu_is_hosts) else { return ones(width) };
        let Some(function) = self.functions.get(index) else { return ones(width) };
        let value = match function.bar_index(access.register()) {
            Some(index) => function.bar_register(index) >> access.shift(),
            None => config.read(access.id, access.offset, width),
        };
        value & access.mask()
    }

    /// The host writes `value`.
    pub fn host_write(
        &mut self,
        config: &mut impl Config,
        ecam_offset: u64,
        width: u8,
        value: u32,
        npu_is_hosts: bool,
    ) -> Outcome {
        let Some((access, index)) = self.locate(ecam_offset, width, npu_is_hosts) else {
            return Outcome::Ignored;
        };
        let value = value & access.mask();
        if self.reaches_device(access, index) {
            config.write(access.id, access.offset, width, value);
            return Outcome::Done;
        }
        let Some(function) = self.functions.get_mut(index) else { return Outcome::Ignored };
        let register = access.register();
        if register == COMMAND {
            let choice = function.host_command();
            let written = (access.mask() << access.shift()) as u16 & choice;
            function.command = function.command & !written | (value << access.shift()) as u16 & written;
            config.write(access.id, COMMAND, 2, function.command.into());
            return if choice == 0 { Outcome::Ignored } else { Outcome::Done };
        }
        if let Some(index) = function.bar_index(register) {
            function.sizing &= !(1 << index);
            if value == u32::MAX {
                function.sizing |= 1 << index;
            }
            return Outcome::Done;
        }
        if access.offset == INTERRUPT_LINE {
            config.write(access.id, INTERRUPT_LINE, 1, value & 0xff);
            return Outcome::Done;
        }
        Outcome::Ignored
    }

    /// Lets the NPU's interrupt through as the host chose, or keeps it from the host altogether.
    pub fn set_npu_interrupt(&mut self, config: &mut impl Config, enabled: bool) {
        if let Some(npu) = self.npu() {
            let disable = if enabled { 0 } else { COMMAND_INTX_DISABLE };
            config.write(npu.id, COMMAND, 2, u32::from(npu.command | disable));
        }
    }

    /// Takes back what the host chose for the NPU (INTx disable, the interrupt line), before another owner comes.
    pub fn reset_npu(&mut self, config: &mut impl Config) {
        for npu in self.functions.iter_mut().filter(|function| function.kind == Kind::Npu) {
            npu.command &= !npu.host_command();
            npu.sizing = 0;
            config.write(npu.id, COMMAND, 2, npu.command.into());
            config.write(npu.id, INTERRUPT_LINE, 1, 0);
        }
    }

    /// Whether a knob lets the write through.
    #[cfg(any(test, feature = "fault-knobs"))]
    fn reaches_device(&self, access: Access, index: usize) -> bool {
        let Some(function) = self.functions.get(index) else { return false };
        let is_bus_number = function.is_type1 && access.register() == PRIMARY_BUS;
        let is_capability = (CAPABILITIES..EXTENDED).contains(&access.offset);
        function.kind == Kind::Npu && skips!(self, NPU_CONFIG)
            || function.bar_index(access.register()).is_some() && skips!(self, BAR_MOVE)
            || is_bus_number && skips!(self, BUS_NUMBERS)
            || is_capability && skips!(self, MSI)
    }

    #[cfg(not(any(test, feature = "fault-knobs")))]
    fn reaches_device(&self, _: Access, _: usize) -> bool {
        false
    }
}
