//! One device slot: identification, handshake, and what virtio-drivers needs of a transport.

use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use core::marker::PhantomData;
use core::sync::atomic::Ordering;

use guest_abi::virtio::{
    self, CONFIG_SIZE, DevicePage, F_ACCESS_PLATFORM, F_VERSION_1, MAX_QUEUES, QueueRegisters, status,
};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::pool::Access;
use super::shadow::Shadow;
use super::{Doorbell, Fault, PATIENCE};

/// Attempts to read a configuration that does not change meanwhile.
const CONFIG_ATTEMPTS: u32 = 8;
/// VIRTIO_BLK_F_RO and VIRTIO_BLK_F_FLUSH: the device-specific features that are passed on. Indirect descriptors and event
/// indices are not: the shadow has neither.
const BLOCK_FEATURES: u64 = 1 << 5 | 1 << 9;

/// A device that was found, as it was then.
pub struct Device<A, D> {
    page: &'static DevicePage,
    doorbell: D,
    kind: DeviceType,
    features: u64,
    config: [u8; CONFIG_SIZE],
    queue_sizes: [u32; MAX_QUEUES],
    /// Queues whose driver waits in a loop after a notification, a bit each.
    synchronous: u32,
    status: Cell<u32>,
    sequence: Cell<u32>,
    fault: Cell<Option<Fault>>,
    queues: RefCell<[Option<Shadow>; MAX_QUEUES]>,
    access: PhantomData<A>,
}

fn pair(registers: &[core::sync::atomic::AtomicU32; 2]) -> u64 {
    let [low, high] = registers;
    u64::from(low.load(Ordering::Relaxed)) | u64::from(high.load(Ordering::Relaxed)) << 32
}

fn set_pair(registers: &[core::sync::atomic::AtomicU32; 2], value: u64) {
    let [low, high] = registers;
    low.store(value as u32, Ordering::Relaxed);
    high.store((value >> 32) as u32, Ordering::Relaxed);
}

impl<A: Access, D: Doorbell> Device<A, D> {
    /// Resets the device of a slot and reads what it is.
    ///
    /// # Errors
    /// [`Fault::Silent`], [`Fault::Absent`] if it is not of this kind, [`Fault::Features`], [`Fault::Config`].
    pub fn find(page: &'static DevicePage, kind: DeviceType, doorbell: D) -> Result<Rc<Self>, Fault> {
        let mut device = Device {
            page,
            doorbell,
            kind,
            features: 0,
            config: [0; CONFIG_SIZE],
            queue_sizes: [0; MAX_QUEUES],
            synchronous: match kind {
                // Packets are sent and waited for; received ones come when they come.
                DeviceType::Socket => 1 << 1,
                _ => 1,
            },
            status: Cell::new(0),
            sequence: Cell::new(page.sequence.load(Ordering::Relaxed)),
            fault: Cell::new(None),
            queues: RefCell::new([const { None }; MAX_QUEUES]),
            access: PhantomData,
        };
        device.announce(0)?;
        let identity = [&page.magic, &page.version, &page.device_id].map(|word| word.load(Ordering::Relaxed));
        if identity != [virtio::MAGIC, virtio::VERSION, kind as u32] {
            return Err(Fault::Absent);
        }
        let needed = F_VERSION_1 | F_ACCESS_PLATFORM;
        let offered = pair(&page.device_features);
        if offered & needed != needed {
            return Err(Fault::Features);
        }
        let specific = if kind == DeviceType::Block { BLOCK_FEATURES } else { 0 };
        device.features = offered & (needed | specific);
        for (size, register) in device.queue_sizes.iter_mut().zip(&page.queue_size_max) {
            *size = register.load(Ordering::Relaxed);
        }
        device.config = snapshot(page).ok_or(Fault::Config)?;
        Ok(Rc::new(device))
    }

    /// Bytes of the configuration from an offset, as they were at the start.
    pub fn config_u64(&self, offset: usize) -> u64 {
        let bytes = self.config.get(offset..).and_then(|bytes| bytes.first_chunk());
        u64::from_le_bytes(bytes.copied().unwrap_or_default())
    }

    /// Features that both sides may use.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Why the device was given up.
    ///
    /// # Errors
    /// That.
    pub fn health(&self) -> Result<(), Fault> {
        self.fault.get().map_or(Ok(()), Err)
    }

    /// Gives the device up. The first reason stays.
    pub fn give_up(&self, fault: Fault) -> Fault {
        let first = self.fault.get().unwrap_or(fault);
        self.fault.set(Some(first));
        let mut queues = self.queues.borrow_mut();
        let waiting = queues.iter_mut().enumerate().filter(|(index, _)| self.synchronous >> index & 1 != 0);
        waiting.filter_map(|(_, queue)| queue.as_mut()).for_each(Shadow::abandon);
        first
    }

    /// Bytes written to the chain of a queue that was used last.
    pub fn last_length(&self, queue: usize) -> u32 {
        let queues = self.queues.borrow();
        queues.get(queue).and_then(Option::as_ref).map_or(0, Shadow::last_length)
    }

    /// Shows the driver what the device has used since.
    ///
    /// # Errors
    /// Why the device is given up.
    pub fn collect(&self, queue: usize) -> Result<bool, Fault> {
        self.health()?;
        self.with_queue(queue, |shadow| shadow.collect()).map_err(|fault| self.give_up(fault))
    }

    fn with_queue(
        &self,
        queue: usize,
        act: impl FnOnce(&mut Shadow) -> Result<bool, Fault>,
    ) -> Result<bool, Fault> {
        let mut queues = self.queues.borrow_mut();
        queues.get_mut(queue).and_then(Option::as_mut).map_or(Err(Fault::Absent), act)
    }

    /// Gives the device one look.
    pub fn ring(&self) {
        self.doorbell.ring();
    }

    /// Writes the status and waits until the device has acted on the registers.
    fn announce(&self, status: u32) -> Result<(), Fault> {
        self.health()?;
        self.status.set(status);
        let sequence = self.sequence.get().wrapping_add(1);
        self.sequence.set(sequence);
        self.page.status.store(status, Ordering::Relaxed);
        self.page.sequence.store(sequence, Ordering::Release);
        for _ in 0..PATIENCE {
            self.doorbell.ring();
            if self.page.served.load(Ordering::Acquire) == sequence {
                return Ok(());
            }
        }
        Err(self.give_up(Fault::Silent))
    }

    fn set_status(&self, wanted: u32) -> Result<(), Fault> {
        // ACKNOWLEDGE and DRIVER alone ask nothing of the device.
        if wanted & (status::FEATURES_OK | status::DRIVER_OK) == 0 && wanted != 0 {
            self.status.set(wanted);
            return Ok(());
        }
        self.announce(wanted)?;
        let seen = self.page.device_status.load(Ordering::Relaxed);
        if seen & status::NEEDS_RESET != 0 || seen & wanted != wanted {
            return Err(self.give_up(Fault::Features));
        }
        Ok(())
    }

    /// Publishes a queue, and waits for its chains if the driver will.
    fn notify(&self, queue: usize) -> Result<(), Fault> {
        self.health()?;
        let published = A::with(|pool| self.with_queue(queue, |shadow| shadow.publish(pool).map(|()| true)));
        published.ok_or(Fault::Memory).flatten()?;
        if self.synchronous >> queue & 1 == 0 {
            return Ok(());
        }
        for _ in 0..PATIENCE {
            self.doorbell.ring();
            self.with_queue(queue, |shadow| shadow.collect())?;
            if !self.with_queue(queue, |shadow| Ok(shadow.is_pending()))? {
                return Ok(());
            }
        }
        Err(Fault::Silent)
    }

    fn registers(&self, queue: usize) -> Option<&'static QueueRegisters> {
        self.page.queues.get(queue)
    }
}

/// Reads the configuration space, whole, while its generation stands still.
fn snapshot(page: &DevicePage) -> Option<[u8; CONFIG_SIZE]> {
    for _ in 0..CONFIG_ATTEMPTS {
        let before = page.config_generation.load(Ordering::Acquire);
        let config = core::array::from_fn(|at| page.config.get(at).map_or(0, |b| b.load(Ordering::Acquire)));
        if page.config_generation.load(Ordering::Acquire) == before {
            return Some(config);
        }
    }
    None
}

/// A device as virtio-drivers wants it.
pub struct SlotTransport<A, D>(pub Rc<Device<A, D>>);

impl<A: Access, D: Doorbell> Transport for SlotTransport<A, D> {
    fn device_type(&self) -> DeviceType {
        self.0.kind
    }

    fn read_device_features(&mut self) -> u64 {
        self.0.features
    }

    /// ACCESS_PLATFORM is accepted for the driver, which does not know that its buffers are copied.
    fn write_driver_features(&mut self, driver_features: u64) {
        set_pair(&self.0.page.driver_features, driver_features | F_ACCESS_PLATFORM);
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.0.queue_sizes.get(usize::from(queue)).copied().unwrap_or(0)
    }

    fn notify(&mut self, queue: u16) {
        if let Err(fault) = self.0.notify(queue.into()) {
            self.0.give_up(fault);
        }
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.0.status.get())
    }

    /// A refusal is found by [`Device::health`].
    fn set_status(&mut self, status: DeviceStatus) {
        let _ = self.0.set_status(status.bits());
    }

    fn set_guest_page_size(&mut self, _: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        let index = usize::from(queue);
        let shadow = A::with(|pool| Shadow::new(pool, size, descriptors, driver_area, device_area)).flatten();
        let (Some(shadow), Some(registers)) = (shadow, self.0.registers(index)) else {
            self.0.give_up(Fault::Memory);
            return;
        };
        registers.size.store(size, Ordering::Relaxed);
        set_pair(&registers.descriptors, descriptors);
        set_pair(&registers.available, driver_area);
        set_pair(&registers.used, device_area);
        registers.ready.store(1, Ordering::Relaxed);
        if let Some(place) = self.0.queues.borrow_mut().get_mut(index) {
            *place = Some(shadow);
        }
    }

    fn queue_unset(&mut self, queue: u16) {
        if let Some(registers) = self.0.registers(queue.into()) {
            registers.ready.store(0, Ordering::Relaxed);
        }
        let shadow = self.0.queues.borrow_mut().get_mut(usize::from(queue)).and_then(Option::take);
        if let Some(shadow) = shadow {
            A::with(|pool| shadow.release(pool));
        }
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.0.queues.borrow().get(usize::from(queue)).is_none_or(Option::is_some)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::empty()
    }

    /// The configuration is a snapshot, so its generation never changes.
    fn read_config_generation(&self) -> u32 {
        0
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> virtio_drivers::Result<T> {
        let bytes = self.0.config.get(offset..).ok_or(Error::ConfigSpaceTooSmall)?;
        T::read_from_prefix(bytes).map(|(value, _)| value).map_err(|_| Error::ConfigSpaceTooSmall)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, _: usize, _: T) -> virtio_drivers::Result<()> {
        Err(Error::Unsupported)
    }
}
