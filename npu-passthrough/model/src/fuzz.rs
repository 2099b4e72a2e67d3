//! What fuzzing does with its input: it must come back, and soon.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use crate::device::{Device, Options};
use crate::dma::{Access, Dma, Fault};
use crate::jobs::{Context, Core};
use crate::list::serve_chain;
use crate::protocol::Message;
use crate::queue::Ring;
use crate::server::Server;
use crate::throttle::Throttle;

/// Bytes of memory; what lies behind is refused.
const MEMORY: usize = 64 << 10;
/// Chains that are served.
const CHAINS: u16 = 16;

/// Memory that contains the input, repeated, so that short inputs are of use.
struct Flat {
    bytes: RefCell<Vec<u8>>,
    /// Accesses left, after which all are refused: as if the memory vanished.
    left: Cell<u32>,
}

impl Flat {
    fn range(&self, access: Access, iova: u64, size: usize) -> Result<std::ops::Range<usize>, Fault> {
        let left = self.left.get().checked_sub(1).ok_or(Fault::Refused(access, iova))?;
        self.left.set(left);
        let start = usize::try_from(iova).ok().filter(|start| *start <= MEMORY);
        let range = start.and_then(|start| Some(start..start.checked_add(size)?));
        range.filter(|range| range.end <= MEMORY).ok_or(Fault::Refused(access, iova))
    }
}

impl Dma for Flat {
    fn read(&self, iova: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        let range = self.range(Access::Read, iova, buffer.len())?;
        self.bytes.borrow().get(range).into_iter().for_each(|bytes| buffer.copy_from_slice(bytes));
        Ok(())
    }

    fn write(&self, iova: u64, bytes: &[u8]) -> Result<(), Fault> {
        let range = self.range(Access::Write, iova, bytes.len())?;
        self.bytes.borrow_mut().get_mut(range).into_iter().for_each(|to| to.copy_from_slice(bytes));
        Ok(())
    }
}

impl Context for Flat {
    fn checkpoint(&self) -> Result<(), Fault> {
        Ok(())
    }

    fn sleep(&self, _: Duration) -> Result<(), Fault> {
        Ok(())
    }

    fn cancel(&self, _: u32) {}

    fn begin(&self, _: u32) {}

    fn end(&self, _: u32) {}
}

/// Serves a queue whose rings, lists and tensors are the input: the descriptors lie at 0, the available ring at 0x400, the
/// used ring at 0x800.
pub fn queue(input: &[u8]) {
    thread_local! {
        static CORE: RefCell<Option<Core>> = const { RefCell::new(None) };
    }
    if input.is_empty() {
        return;
    }
    let bytes = input.iter().copied().cycle().take(MEMORY).collect();
    let memory = Flat { bytes: RefCell::new(bytes), left: Cell::new(1 << 14) };
    let ring = Ring { size: 64, descriptors: 0, available: 0x400, used: 0x800 };
    CORE.with_borrow_mut(|core| {
        if core.is_none() {
            *core = Core::new(false, Throttle::default()).ok();
        }
        let Some(core) = core else { return };
        for served in 0..CHAINS {
            if !matches!(serve_chain(&ring, served, core, &memory), Ok(Some(_))) {
                break;
            }
        }
        core.scrub();
    });
}

/// Acts on messages, each a byte of its number, one of its size, and as many bytes.
pub fn messages(input: &[u8]) {
    thread_local! {
        static DEVICE: Option<Device> = Device::new(Options::default()).ok();
    }
    DEVICE.with(|device| {
        let Some(device) = device else { return };
        let mut server = Server { device, status: 0 };
        let mut rest = input;
        while let [number, size, others @ ..] = rest {
            let (payload, others) = others.split_at(others.len().min(usize::from(*size)));
            rest = others;
            if let Ok(message) = Message::parse(u32::from(*number), payload, Vec::new()) {
                let _ = server.handle(message);
            }
        }
        device.reset();
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use flexserve_npu_abi::{Job, ListHeader, Matrix, Rows, VERSION};
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    /// Bytes of a list of two jobs.
    const LIST: u32 = (size_of::<ListHeader>() + 2 * size_of::<Job>()) as u32;

    /// A queue that makes sense, for mutations.
    fn sensible() -> Vec<u8> {
        let mut bytes = vec![0; MEMORY];
        let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
        for (index, (iova, length, flags, next)) in
            [(0x1000u64, LIST, 1u16, 1u16), (0x2000, 200, 2, 0)].into_iter().enumerate()
        {
            put(index * 16, &iova.to_le_bytes());
            put(index * 16 + 8, &length.to_le_bytes());
            put(index * 16 + 12, &[flags.to_le_bytes(), next.to_le_bytes()].concat());
        }
        put(0x402, &16u16.to_le_bytes());
        let matrix = Matrix { format: 8, rows: 40, columns: 64, iova: 0x4000, stride: 68 };
        let input = Rows { iova: 0x6000, stride: 256 };
        let job = Job::multiply(matrix, 5, 0, input, Rows { iova: 0x8000, stride: 160 });
        put(0x1000, ListHeader { version: VERSION, job_count: 2, list_id: 1, flags: 0 }.as_bytes());
        put(0x1010, [job, job].as_bytes());
        bytes
    }

    #[test]
    fn the_sensible_queue_is_served() {
        let memory = Flat { bytes: RefCell::new(sensible()), left: Cell::new(1 << 14) };
        let ring = Ring { size: 64, descriptors: 0, available: 0x400, used: 0x800 };
        let mut core = Core::new(false, Throttle::default()).unwrap();
        assert_eq!(serve_chain(&ring, 0, &mut core, &memory), Ok(Some(true)));
        assert_eq!(memory.bytes.borrow()[0x2004], 1, "a success");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_queue_comes_to_an_end(changes in proptest::collection::vec((0..0x3000usize, any::<u8>()), 0..40)) {
            let mut bytes = sensible();
            changes.iter().for_each(|(at, byte)| bytes[*at] = *byte);
            queue(&bytes);
        }

        #[test]
        fn any_jobs_come_to_an_end(changes in proptest::collection::vec((0x1010..0x1000 + LIST as usize, any::<u8>()), 0..10)) {
            let mut bytes = sensible();
            changes.iter().for_each(|(at, byte)| bytes[*at] = *byte);
            queue(&bytes);
        }

        #[test]
        fn any_bytes_come_to_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            queue(&bytes);
            messages(&bytes);
        }

        #[test]
        fn any_messages_come_to_an_end(parts in proptest::collection::vec((0..45u8, proptest::collection::vec(0..4u8, 0..48)), 0..20)) {
            let bytes: Vec<u8> = parts.iter().flat_map(|(number, payload)| {
                [*number, payload.len() as u8].into_iter().chain(payload.iter().copied())
            }).collect();
            messages(&bytes);
        }
    }
}
