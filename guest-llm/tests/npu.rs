//! The engine with the device's own arithmetic as its accelerator: no bit changes, whatever is done by whom.

#[path = "../engine/tests/support/mod.rs"]
mod support;

use std::cell::{Cell, RefCell};
use std::time::Duration;

use flexserve_engine::gguf::TensorType;
use flexserve_engine::offload::{Offload, Place, Step};
use flexserve_engine::{Flow, KvFormat, Limits, Model, Session, SessionConfig};
use flexserve_npu_abi::Capabilities;
use flexserve_npu_model::dma::{Access, Dma, Fault};
use flexserve_npu_model::jobs::{Context, Core};
use flexserve_npu_model::throttle::Throttle;
use guest_llm::npu::{Addresses, jobs};
use support::reference::{Random, Shape};
use support::{F16, F32, Q8_0};

/// Memory where it is.
struct Here;

impl Addresses for Here {
    fn iova(&self, address: usize) -> u64 {
        address as u64
    }
}

/// What a list may reach: reads, and among these writes.
#[derive(Default)]
struct Reach {
    read: Vec<(u64, usize)>,
    write: Vec<(u64, usize)>,
}

fn holds(ranges: &[(u64, usize)], iova: u64, size: usize) -> bool {
    let holds = |(start, length): &(u64, usize)| {
        iova.checked_sub(*start).is_some_and(|offset| offset as usize + size <= *length)
    };
    ranges.iter().any(holds)
}

impl Dma for Reach {
    fn read(&self, iova: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        if !holds(&self.read, iova, buffer.len()) {
            return Err(Fault::Refused(Access::Read, iova));
        }
        // SAFETY: memory of a list that is being run, which is borrowed for that long.
        unsafe {
            std::ptr::copy(
                std::ptr::with_exposed_provenance(iova as usize),
                buffer.as_mut_ptr(),
                buffer.len(),
            )
        };
        Ok(())
    }

    fn write(&self, iova: u64, bytes: &[u8]) -> Result<(), Fault> {
        if !holds(&self.write, iova, bytes.len()) {
            return Err(Fault::Refused(Access::Write, iova));
        }
        // SAFETY: as above, and borrowed mutably.
        unsafe {
            std::ptr::copy(bytes.as_ptr(), std::ptr::with_exposed_provenance_mut(iova as usize), bytes.len())
        };
        Ok(())
    }
}

impl Context for Reach {
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

/// The device's core, which does every list but each `lost`th, of which it does a part.
struct Device<'d> {
    file: &'d [u8],
    core: RefCell<Core>,
    lost: usize,
    lists: Cell<usize>,
    steps: Cell<usize>,
}

impl std::fmt::Debug for Device<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Device")
    }
}

impl<'d> Device<'d> {
    fn new(file: &'d [u8], lost: usize) -> Self {
        let core = RefCell::new(Core::new(false, Throttle::default()).unwrap());
        Device { file, core, lost, lists: Cell::new(0), steps: Cell::new(0) }
    }
}

impl Device<'_> {
    /// Does some jobs of a part, or all.
    fn part(&self, buffers: &mut [&mut [u8]], steps: &[Step<'_>], some: Option<usize>) {
        let list = jobs(&Here, buffers, steps);
        if list.is_none() {
            let lengths: Vec<_> = buffers.iter().map(|buffer| buffer.len()).collect();
            let wrong = steps.iter().find(|step| jobs(&Here, buffers, &[**step]).is_none());
            panic!("not a job: {wrong:?}, buffers {lengths:?}");
        }
        let list = list.unwrap();
        let write: Vec<_> = buffers
            .iter_mut()
            .map(|buffer| (buffer.as_mut_ptr().expose_provenance() as u64, buffer.len()))
            .collect();
        let file = (self.file.as_ptr().expose_provenance() as u64, self.file.len());
        let reach = Reach { read: [&write[..], &[file]].concat(), write };
        let count = some.map_or(list.len(), |some| some % (list.len() + 1));
        for (i, job) in list.iter().take(count).enumerate() {
            let done = self.core.borrow_mut().run(job, &reach);
            assert!(done.is_ok(), "job {i} of {steps:?}: {done:?} {job:x?}");
        }
        self.steps.set(self.steps.get() + steps.len());
    }
}

impl Offload for Device<'_> {
    fn run(&self, buffers: &mut [&mut [u8]], steps: &[Step<'_>], ends: &[usize]) -> usize {
        let part = |index: usize| {
            let first = index.checked_sub(1).map_or(0, |before| ends[before]);
            ends.get(index).map(|end| &steps[first..*end])
        };
        for index in 0..ends.len() {
            let lists = self.lists.get() + 1;
            self.lists.set(lists);
            let is_lost = self.lost > 0 && lists.is_multiple_of(self.lost);
            // The next had begun when both were lost, whether or not this one was done.
            if let (true, Some(next)) = (self.lost > 0, part(index + 1)) {
                self.part(buffers, part(index).unwrap(), (lists % 3 == 0).then_some(lists));
                self.part(buffers, next, (lists % 2 == 0).then_some(lists));
            }
            self.part(buffers, part(index).unwrap(), is_lost.then_some(lists));
            if is_lost {
                return index;
            }
        }
        ends.len()
    }
}

/// Logits after a prompt in batches, and after each of some tokens.
fn logits(model: &Model<'_>, offload: Option<&dyn Offload>, kv: KvFormat) -> Vec<u32> {
    let config = SessionConfig {
        batch: 7,
        kv,
        context: 64,
        offload: if offload.is_some() { 20 } else { 0 },
        ..SessionConfig::for_model(model)
    };
    let mut session = Session::new(model, &config).unwrap();
    if let Some(offload) = offload {
        session.offload_to(offload);
    }
    let prompt: Vec<u32> = (0..39).map(|i| 1 + i * 13 % 200).collect();
    assert_eq!(session.prefill(&prompt, &mut |_, _| Flow::Continue), Ok(Flow::Continue));
    let mut bits: Vec<u32> = session.logits().iter().map(|logit| logit.to_bits()).collect();
    for token in 1..12 {
        session.decode(token).unwrap();
        bits.extend(session.logits().iter().map(|logit| logit.to_bits()));
    }
    bits
}

fn compare(file: &[u8], what: &str) {
    let model = Model::load(file, &Limits::default()).unwrap();
    let heads = model.hyperparameters();
    let fits = heads.key_length.is_multiple_of(32) && heads.value_length.is_multiple_of(32);
    for kv in KvFormat::ALL.into_iter().filter(|kv| fits || *kv != KvFormat::Q8_0) {
        let expected = logits(&model, None, kv);
        for lost in [0, 1, 2, 3, 7] {
            let device = Device::new(file, lost);
            let found = logits(&model, Some(&device), kv);
            assert_eq!(found, expected, "{what}, {kv:?}, every {lost}th list lost");
            assert!(device.steps.get() > 100);
        }
    }
}

#[test]
fn random_models_give_the_same_bits() {
    for head in [16, 32] {
        for types in [&[F32][..], &[F16], &[Q8_0], &[Q8_0, F16, F32]] {
            let shape = Shape::tiny(types).with_heads_of(head);
            compare(&Random::new(&shape, 9).file.bytes(), "llama");
        }
    }
    for (architecture, biases) in [("llama", true), ("qwen2", true), ("qwen3", false), ("qwen3", true)] {
        let shape = Shape { architecture, biases, ..Shape::tiny(&[Q8_0]).with_heads_of(32) };
        compare(&Random::new(&shape, 5).file.bytes(), architecture);
    }
    let shape = Shape { value_length: 32, rope_dimensions: 8, ..Shape::tiny(&[F16]) };
    compare(&Random::new(&shape, 5).file.bytes(), "partly rotated");
}

#[test]
fn the_demo_model_gives_the_same_bits() {
    let file = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/models/demo.gguf")).unwrap();
    compare(&file, "demo");
}

#[test]
fn steps_that_reach_beyond_their_memory_are_no_jobs() {
    let weight = [0; 16 * 4];
    let place = |buffer, offset, stride| Place { buffer, offset, stride };
    let normalise = |columns, rows, input: Place| Step::Normalise {
        weight: &weight,
        epsilon: 0.0,
        columns,
        rows,
        input,
        output: place(1, 0, 64),
    };
    let matrix = |rows, bias| Step::Multiply {
        ty: TensorType::F32,
        matrix: &weight,
        rows,
        columns: 4,
        tokens: 2,
        bias,
        input: place(0, 0, 16),
        output: place(1, 0, 16),
    };
    for (step, expected) in [
        (normalise(16, 2, place(0, 0, 64)), Some(1)),
        (normalise(16, 2, place(0, 4, 64)), None),
        (normalise(16, 2, place(0, 0, 68)), None),
        (normalise(16, 2, place(2, 0, 64)), None),
        (normalise(16, 3, place(0, 0, 64)), None),
        (normalise(16, 0, place(0, 0, 64)), None),
        (normalise(17, 1, place(0, 0, 64)), None),
        (normalise(16, usize::MAX, place(0, usize::MAX, usize::MAX)), None),
        (matrix(4, None), Some(1)),
        (matrix(5, None), None),
        (matrix(4, Some(&weight[..16])), Some(1)),
        (matrix(4, Some(&weight[..12])), None),
    ] {
        let (mut first, mut second) = ([0; 128], [0; 128]);
        let found = jobs(&Here, &mut [&mut first, &mut second], &[step]);
        assert_eq!(found.map(|jobs| jobs.len()), expected, "{step:?}");
    }
}

#[test]
fn large_matrices_are_several_jobs() {
    let weight = vec![0; 20 << 20];
    let (mut input, mut output) = (vec![0; 4096], vec![0; 20 << 10]);
    let step = Step::Multiply {
        ty: TensorType::F32,
        matrix: &weight,
        rows: 5 << 10,
        columns: 1 << 10,
        tokens: 1,
        bias: None,
        input: Place { buffer: 0, offset: 0, stride: 4096 },
        output: Place { buffer: 1, offset: 0, stride: 20 << 10 },
    };
    let jobs = jobs(&Here, &mut [&mut input, &mut output], &[step]).unwrap();
    assert_eq!(jobs.iter().map(|job| job.rows).collect::<Vec<_>>(), [2048, 2048, 1024]);
    assert!(jobs.iter().all(|job| job.check(&Capabilities::MOST).is_ok()));
    assert_eq!(jobs[2].weights - jobs[0].weights, 16 << 20);
    assert_eq!(jobs[2].output - jobs[0].output, 16 << 10);
}
