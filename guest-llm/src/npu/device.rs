//! The NPU's registers and the memory that it sees.
//!
//! Registers are at a fixed address ([`crate::layout::NPU`]). While the NPU is another's, the hypervisor carries out accesses to
//! them, which it can only if they are single loads and stores. The device sees memory at the addresses where the partition
//! has it, coherently, so that nothing is copied.

use alloc::alloc::{alloc_zeroed, dealloc};
use core::alloc::Layout;
use core::fmt;
use core::ptr::NonNull;

use flexserve_npu_driver::{
    BufferDirection, Hal, Layout as Registers, Mmio, NotLent, Ownership, PciTransport, PhysAddr,
};
use hyp_abi::PAGE_SIZE;
use hyp_abi::ffa::error::BUSY;
use hyp_abi::service::{npu, op};

use super::{Accelerator, Addresses, World};
use crate::{arch, ffa, layout};

/// The registers.
#[derive(Debug)]
pub struct Window {
    bytes: usize,
}

impl Window {
    fn at(&self, offset: usize, size: usize) -> Option<usize> {
        (offset.checked_add(size)? <= self.bytes).then_some(layout::NPU as usize + offset)
    }
}

macro_rules! accesses {
    ($($read:ident, $write:ident, $ty:ty;)*) => {
        impl Mmio for Window {
            $(fn $read(&self, offset: usize) -> $ty {
                match self.at(offset, size_of::<$ty>()) {
                    // SAFETY: the window is mapped for good and holds registers of the NPU alone.
                    Some(address) => unsafe { arch::mmio::$read(address) },
                    None => <$ty>::MAX,
                }
            }

            fn $write(&self, offset: usize, value: $ty) {
                if let Some(address) = self.at(offset, size_of::<$ty>()) {
                    // SAFETY: as above; what the driver makes the NPU write is lent to it.
                    unsafe { arch::mmio::$write(address, value) }
                }
            })*
        }
    };
}

accesses! {
    read_u8, write_u8, u8;
    read_u16, write_u16, u16;
    read_u32, write_u32, u32;
}

/// Memory where it is.
#[derive(Debug)]
pub struct Direct;

fn pages_layout(pages: usize) -> Option<Layout> {
    Layout::from_size_align(pages.checked_mul(PAGE_SIZE as usize)?, PAGE_SIZE as usize).ok()
}

// SAFETY: pages come zeroed and aligned from the allocator, each once; all memory is where the device sees it.
unsafe impl Hal for Direct {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let Some(layout) = pages_layout(pages).filter(|layout| layout.size() > 0) else {
            return (0, NonNull::dangling());
        };
        // SAFETY: the size is not zero.
        NonNull::new(unsafe { alloc_zeroed(layout) })
            .map_or((0, NonNull::dangling()), |pages| (pages.as_ptr().expose_provenance() as u64, pages))
    }

    unsafe fn dma_dealloc(_: PhysAddr, address: NonNull<u8>, pages: usize) -> i32 {
        if let Some(layout) = pages_layout(pages).filter(|layout| layout.size() > 0) {
            // SAFETY: the caller's promise: they came from `dma_alloc`.
            unsafe { dealloc(address.as_ptr(), layout) }
        }
        0
    }

    unsafe fn mmio_phys_to_virt(_: PhysAddr, _: usize) -> NonNull<u8> {
        NonNull::dangling()
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().as_ptr().expose_provenance() as u64
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

/// The hypervisor, which lends the NPU.
#[derive(Debug)]
pub struct Broker {
    registers: Registers,
    bytes: usize,
}

impl Broker {
    /// Finds out whether there is an NPU.
    pub fn find() -> Option<Self> {
        let [_, ipa, offsets, shape] = ffa::npu(op::NPU_STATE).ok()?;
        let inside = ipa.checked_sub(layout::NPU_IPA).filter(|inside| *inside < layout::NPU_SIZE)?;
        let offset = |index: u32| (inside + (offsets >> (16 * index) & 0xffff)) as usize;
        let registers = Registers {
            common: offset(0),
            isr: offset(1),
            device: offset(2),
            notify: offset(3),
            notify_multiplier: shape as u32 as usize,
        };
        let bytes = (inside + (shape >> 32) * PAGE_SIZE).min(layout::NPU_SIZE) as usize;
        Some(Broker { registers, bytes })
    }
}

fn ownership([state, ..]: [u64; 4]) -> Ownership {
    Ownership {
        held: state & npu::HELD != 0,
        wanted: state & npu::WANTED != 0,
        generation: state >> npu::GENERATION_SHIFT,
    }
}

impl flexserve_npu_driver::Broker for Broker {
    type Transport = PciTransport<Window>;

    fn state(&mut self) -> Option<Ownership> {
        ffa::npu(op::NPU_STATE).ok().map(ownership)
    }

    fn acquire(&mut self) -> Result<Ownership, NotLent> {
        ffa::npu(op::NPU_ACQUIRE).map(ownership).map_err(|ffa::Status(status)| match status {
            BUSY => NotLent::Busy,
            _ => NotLent::Broken,
        })
    }

    fn release(&mut self) {
        // DENIED if it is not held, which is as good.
        let _ = ffa::npu(op::NPU_RELEASE);
    }

    fn transport(&mut self) -> Self::Transport {
        PciTransport::new(Window { bytes: self.bytes }, self.registers)
    }
}

/// The partition's clock and log, and its addresses, which are the device's.
#[derive(Debug)]
pub struct Partition;

impl Addresses for Partition {
    fn iova(&self, address: usize) -> u64 {
        address as u64
    }
}

impl World for Partition {
    fn ticks(&self) -> u64 {
        arch::ticks()
    }

    fn second(&self) -> u64 {
        arch::ticks_per_second()
    }

    fn sleep(&self, ticks: u64) {
        arch::sleep(ticks);
    }

    fn log(&self, line: fmt::Arguments<'_>) {
        ffa::log_line(line);
    }
}

/// The NPU as the engine's accelerator.
pub type Npu = Accelerator<Direct, Broker, Partition>;
