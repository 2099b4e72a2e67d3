//! A machine with an NPU: the registers of virtio-pci over the model's front end, and bounce buffers in its memory.

use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::rc::Rc;

use flexserve_npu_driver::{BufferDirection, Hal, Layout, Mmio, PciTransport, PhysAddr};
use flexserve_npu_model::Options;
use flexserve_npu_model::front_end::{FrontEnd, PAGE};
use flexserve_npu_model::queue::Ring;
use vm_memory::VolatileMemory;

/// Pages for virtqueues and buffers, at the start of memory; tensors follow.
pub const DMA_PAGES: usize = 128;
pub const TENSORS: usize = DMA_PAGES * PAGE as usize;
const MEMORY: usize = 16 << 20;
/// IOVA of the start of memory.
pub const IOVA: u64 = 0x4000_0000;
pub const LAYOUT: Layout =
    Layout { common: 0x1000, isr: 0x2000, device: 0x3000, notify: 0x4000, notify_multiplier: 4 };

thread_local! {
    static MACHINE: RefCell<Option<Rc<Machine>>> = const { RefCell::new(None) };
}

/// The machine of this thread.
pub struct Machine {
    pub front_end: FrontEnd,
    used: RefCell<[bool; DMA_PAGES]>,
    registers: RefCell<Registers>,
    /// Whether the hypervisor has taken the device: registers read as all ones.
    pub taken: Cell<bool>,
    /// What the device's magic is.
    pub magic: Cell<u16>,
    /// Accesses to registers until it is taken, if ever.
    pub countdown: Cell<Option<u32>>,
}

#[derive(Default)]
struct Registers {
    status: u8,
    feature_select: u32,
    driver_features: [u32; 2],
    queue: usize,
    rings: [Ring; 2],
    enabled: [bool; 2],
}

impl Machine {
    /// Starts a machine for this thread.
    pub fn start(options: Options) -> Rc<Self> {
        let front_end = FrontEnd::new(MEMORY, options).unwrap();
        front_end.map(IOVA, 0, MEMORY as u64 / PAGE, true);
        let machine = Rc::new(Machine {
            front_end,
            used: RefCell::new([false; DMA_PAGES]),
            registers: RefCell::default(),
            taken: Cell::new(false),
            magic: Cell::new(u16::from_le_bytes(*b"NP")),
            countdown: Cell::new(None),
        });
        MACHINE.set(Some(machine.clone()));
        machine
    }

    pub fn transport(self: &Rc<Self>) -> PciTransport<Window> {
        PciTransport::new(Window(self.clone()), LAYOUT)
    }

    /// Pages for DMA that are in use.
    pub fn pages_in_use(&self) -> usize {
        self.used.borrow().iter().filter(|used| **used).count()
    }

    /// The hypervisor takes the device away: resets it, and hides its registers.
    pub fn take(&self) {
        self.set_status(0);
        self.taken.set(true);
    }

    /// Counts an access to a register, before it happens.
    fn count(&self) {
        match self.countdown.get() {
            Some(0) => {
                self.countdown.set(None);
                self.take();
            }
            left => self.countdown.set(left.map(|left| left - 1)),
        }
    }

    fn set_status(&self, status: u8) {
        let mut registers = self.registers.borrow_mut();
        let was_ok = registers.status & 4 != 0;
        registers.status = status;
        if status == 0 {
            for queue in 0..2 {
                self.front_end.stop(queue).unwrap();
            }
            *registers = Registers::default();
        } else if status & 8 != 0 && registers.driver_features != [0, 3] {
            registers.status &= !8;
        } else if status & 4 != 0 && !was_ok {
            for queue in 0..2 {
                assert!(registers.enabled[queue], "a queue that is not enabled fails silently");
                self.front_end.start(queue, registers.rings[queue], 0).unwrap();
            }
        }
    }

    fn take_pages(&self, count: usize) -> usize {
        let mut used = self.used.borrow_mut();
        let first =
            used.windows(count).position(|run| run.iter().all(|used| !used)).expect("no page is left");
        used[first..first + count].fill(true);
        let first = first * PAGE as usize;
        self.front_end.write(first, &vec![0; count * PAGE as usize]);
        first
    }

    fn give_pages(&self, iova: u64, bytes: usize) {
        let first = ((iova - IOVA) / PAGE) as usize;
        self.used.borrow_mut()[first..first + bytes.div_ceil(PAGE as usize)].fill(false);
    }
}

fn machine<R>(act: impl FnOnce(&Machine) -> R) -> R {
    MACHINE.with_borrow(|machine| act(machine.as_ref().expect("no machine was started")))
}

pub struct Window(Rc<Machine>);

impl Window {
    fn read(&self, offset: usize, size: usize) -> u64 {
        let machine = &self.0;
        machine.count();
        if machine.taken.get() {
            return u64::MAX >> (64 - 8 * size);
        }
        let registers = machine.registers.borrow();
        let queue = registers.queue.min(1);
        match (offset, size) {
            (0x1004, 4) => [0, 3][registers.feature_select as usize & 1],
            (0x1014, 1) => registers.status.into(),
            (0x1015, 1) => 0,
            (0x1018, 2) => {
                if registers.queue < 2 {
                    64
                } else {
                    0
                }
            }
            (0x101c, 2) => registers.enabled[queue].into(),
            (0x101e, 2) => registers.queue as u64 + 3,
            (0x3000..0x3002, 1) => machine.magic.get().to_le_bytes()[offset - 0x3000].into(),
            (0x3002..0x3008, 1) => [1, 0, 0, 0, 0, 0][offset - 0x3002],
            _ => panic!("no register to read: {offset:#x} of {size}"),
        }
    }

    fn write(&self, offset: usize, size: usize, value: u64) {
        let machine = &self.0;
        machine.count();
        if machine.taken.get() {
            return;
        }
        if (offset, size) == (0x1014, 1) {
            return machine.set_status(value as u8);
        }
        let mut registers = machine.registers.borrow_mut();
        let queue = registers.queue.min(1);
        let half = |old: u64, high: bool| {
            if high { old & 0xffff_ffff | value << 32 } else { old & !0xffff_ffff | value }
        };
        match (offset, size) {
            (0x1000 | 0x1008, 4) => registers.feature_select = value as u32,
            (0x100c, 4) => {
                let select = registers.feature_select as usize & 1;
                registers.driver_features[select] = value as u32;
            }
            (0x1016, 2) => registers.queue = value as usize,
            (0x1018, 2) => registers.rings[queue].size = value as u16,
            (0x101a, 2) => assert_eq!(value, 0xffff),
            (0x101c, 2) => registers.enabled[queue] = value == 1,
            (0x1020 | 0x1024, 4) => {
                let ring = &mut registers.rings[queue];
                ring.descriptors = half(ring.descriptors, offset == 0x1024);
            }
            (0x1028 | 0x102c, 4) => {
                let ring = &mut registers.rings[queue];
                ring.available = half(ring.available, offset == 0x102c);
            }
            (0x1030 | 0x1034, 4) => {
                let ring = &mut registers.rings[queue];
                ring.used = half(ring.used, offset == 0x1034);
            }
            (0x400c | 0x4010, 2) => {
                assert_eq!(offset, 0x400c + 4 * value as usize, "another queue's register");
                machine.front_end.kick(value as usize);
            }
            _ => panic!("no register to write: {offset:#x} of {size}"),
        }
    }
}

impl Mmio for Window {
    fn read_u8(&self, offset: usize) -> u8 {
        self.read(offset, 1) as u8
    }

    fn read_u16(&self, offset: usize) -> u16 {
        self.read(offset, 2) as u16
    }

    fn read_u32(&self, offset: usize) -> u32 {
        self.read(offset, 4) as u32
    }

    fn write_u8(&self, offset: usize, value: u8) {
        self.write(offset, 1, value.into());
    }

    fn write_u16(&self, offset: usize, value: u16) {
        self.write(offset, 2, value.into());
    }

    fn write_u32(&self, offset: usize, value: u32) {
        self.write(offset, 4, value.into());
    }
}

/// Bounce buffers, so that a buffer that is not taken back stays what it was.
#[derive(Debug)]
pub struct Bounce;

// SAFETY: pages of the machine's memory, which is mapped as long as the machine lives, each used once.
unsafe impl Hal for Bounce {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        machine(|machine| {
            let first = machine.take_pages(pages);
            let slice = machine.front_end.memory.get_slice(first, pages * PAGE as usize).unwrap();
            (IOVA + first as u64, NonNull::new(slice.ptr_guard_mut().as_ptr()).unwrap())
        })
    }

    unsafe fn dma_dealloc(iova: PhysAddr, _: NonNull<u8>, pages: usize) -> i32 {
        machine(|machine| machine.give_pages(iova, pages * PAGE as usize));
        0
    }

    unsafe fn mmio_phys_to_virt(_: PhysAddr, _: usize) -> NonNull<u8> {
        unreachable!("there are no BARs");
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        machine(|machine| {
            let first = machine.take_pages(buffer.len().div_ceil(PAGE as usize));
            if direction != BufferDirection::DeviceToDriver {
                // SAFETY: the caller's promise.
                machine.front_end.write(first, unsafe { buffer.as_ref() });
            }
            IOVA + first as u64
        })
    }

    unsafe fn unshare(iova: PhysAddr, mut buffer: NonNull<[u8]>, direction: BufferDirection) {
        machine(|machine| {
            if direction != BufferDirection::DriverToDevice {
                // SAFETY: the caller's promise.
                machine.front_end.read((iova - IOVA) as usize, unsafe { buffer.as_mut() });
            }
            machine.give_pages(iova, buffer.len());
        });
    }
}
