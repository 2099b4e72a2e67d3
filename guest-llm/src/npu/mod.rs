//! The NPU, lent by the hypervisor: what of the engine's work it does, and how.
//!
//! The engine names work by places in buffers; a job names it by addresses. [`jobs`] makes the one of the other, and checks
//! that no job reaches beyond the buffers and weights that it was given for. The NPU itself could: while it is lent, it
//! reaches all memory of the partition, and is trusted with it. Its answers are not: a job that failed is computed by the
//! engine, an NPU that breaks the rules is not asked again, and what it computes is data, whatever it is.
//!
//! [`Accelerator`] is free of unsafe code and of anything that needs the CPU; `device` has both.

use core::cell::{Cell, RefCell};
use core::fmt;

use arrayvec::ArrayVec;
use flexserve_engine::KvFormat;
use flexserve_engine::offload::{Offload, Place, Step};
use flexserve_npu_abi::{CHUNK_TOKENS, Cache, Capabilities, Format, JOBS_MAX, Job, Matrix, PAGE_SIZE, Rows};
use flexserve_npu_driver::{Broker, Hal, Lease, LeaseStats, Refusal, Wait};

#[cfg(target_os = "none")]
pub mod device;

/// Most jobs that are given at once.
pub const STEPS_MAX: usize = JOBS_MAX;
/// Most bytes of weights of a job: half of what one may touch.
const WEIGHTS_MAX: u64 = Capabilities::MOST.pages_max as u64 / 2 * PAGE_SIZE;

/// A look at the queue costs some loads, and now and then one from a register of the device's; this many times as little is done in between.
const SPINS: u32 = 64;

/// Most buffers that go with some steps.
const BUFFERS_MAX: usize = 16;

/// How the device names memory.
pub trait Addresses {
    /// The IOVA of an address.
    fn iova(&self, address: usize) -> u64;
}

/// Turns steps into jobs; none if a step is no job, or reaches beyond its memory.
pub fn jobs(
    addresses: &impl Addresses,
    buffers: &mut [&mut [u8]],
    steps: &[Step<'_>],
) -> Option<ArrayVec<Job, STEPS_MAX>> {
    let mut memory = Memory { addresses, buffers: ArrayVec::new() };
    for buffer in buffers {
        // The device writes there.
        let iova = addresses.iova(buffer.as_mut_ptr().expose_provenance());
        memory.buffers.try_push((iova, buffer.len())).ok()?;
    }
    let mut jobs = ArrayVec::new();
    let mut before = None;
    for step in steps {
        // Steps that share an input, or store what is there, need not wait for each other.
        let group = match step {
            Step::Multiply { input, .. } => Some((0, input.buffer)),
            Step::Store { .. } => Some((1, 0)),
            _ => None,
        };
        let start = jobs.len();
        memory.push(step, &mut jobs)?;
        if (group.is_none() || group != before)
            && let Some(job) = jobs.get_mut(start)
        {
            *job = job.fenced();
        }
        before = group;
    }
    Some(jobs)
}

fn number(value: usize) -> Option<u32> {
    u32::try_from(value).ok()
}

/// Buffers, as jobs name them.
struct Memory<'m, A> {
    addresses: &'m A,
    /// IOVA and length of each.
    buffers: ArrayVec<(u64, usize), BUFFERS_MAX>,
}

impl<A: Addresses> Memory<'_, A> {
    /// Rows of so many bytes at a place.
    fn rows(&self, place: &Place, bytes: usize, count: usize) -> Option<Rows> {
        let (start, length) = *self.buffers.get(place.buffer)?;
        let last = count.checked_sub(1)?.checked_mul(place.stride)?;
        let end = place.offset.checked_add(last)?.checked_add(bytes)?;
        let iova = start.checked_add(place.offset as u64)?;
        (end <= length).then_some(Rows { iova, stride: place.stride as u64 })
    }

    /// Rows of so many floats at a place.
    fn floats(&self, place: &Place, length: usize, count: usize) -> Option<Rows> {
        self.rows(place, length.checked_mul(size_of::<f32>())?, count)
    }

    /// A vector of so many floats among the weights.
    fn vector(&self, weights: &[u8], length: usize) -> Option<u64> {
        (length.checked_mul(size_of::<f32>())? <= weights.len()).then(|| self.weights(weights))
    }

    fn weights(&self, weights: &[u8]) -> u64 {
        self.addresses.iova(weights.as_ptr().expose_provenance())
    }

    fn push(&self, step: &Step<'_>, jobs: &mut ArrayVec<Job, STEPS_MAX>) -> Option<()> {
        let job = match *step {
            Step::Multiply { .. } => return self.push_products(step, jobs),
            Step::Normalise { weight, epsilon, columns, rows, ref input, ref output } => Job::normalise(
                self.vector(weight, columns)?,
                epsilon,
                (number(columns)?, number(rows)?),
                self.floats(input, columns, rows)?,
                self.floats(output, columns, rows)?,
            ),
            Step::Add { columns, rows, ref input, ref second, ref output } => Job::add(
                (number(columns)?, number(rows)?),
                self.floats(input, columns, rows)?,
                self.floats(second, columns, rows)?,
                self.floats(output, columns, rows)?,
            ),
            Step::Activate { columns, rows, ref gate, ref up, ref output } => Job::activate(
                (number(columns)?, number(rows)?),
                self.floats(gate, columns, rows)?,
                self.floats(up, columns, rows)?,
                self.floats(output, columns, rows)?,
            ),
            Step::Rotate { pairs, halves, heads, columns, tokens, ref input, ref rotations, ref output } => {
                let length = heads.checked_mul(columns)?;
                Job::rotate(
                    (number(pairs)?, halves),
                    (number(heads)?, number(columns)?, number(tokens)?),
                    self.floats(input, length, tokens)?,
                    self.floats(rotations, pairs.checked_mul(2)?, tokens)?,
                    self.floats(output, length, tokens)?,
                )
            }
            Step::Store { format, heads, columns, tokens, ref input, ref output } => {
                let format = cache_format(format)?;
                let row = Format::of_weights(format)?.row_bytes(number(columns)?)?;
                Job::store(
                    format,
                    (number(heads)?, number(columns)?, number(tokens)?),
                    self.floats(input, heads.checked_mul(columns)?, tokens)?,
                    self.rows(output, tokens.checked_mul(row as usize)?, heads)?,
                )
            }
            Step::Attend {
                format,
                kv_heads,
                heads,
                key_length,
                value_length,
                tokens,
                visible,
                ref cache,
                ref table,
                ref input,
                ref output,
            } => {
                let (_, pool) = *self.buffers.get(cache.buffer)?;
                let blocks = pool.checked_div(cache.stride)?;
                let chunks = visible.checked_add(tokens)?.checked_sub(1)?.div_ceil(CHUNK_TOKENS as usize);
                let mut cached = Cache {
                    format: cache_format(format)?,
                    heads: number(kv_heads)?,
                    key_length: number(key_length)?,
                    value_length: number(value_length)?,
                    iova: 0,
                    block_bytes: cache.stride as u64,
                    blocks: number(blocks)?,
                    table: self.rows(table, chunks.checked_mul(size_of::<u32>())?, 1)?.iova,
                };
                let layer_bytes = usize::try_from(cached.layer_bytes()?).ok()?;
                cached.iova = self.rows(cache, layer_bytes, blocks)?.iova;
                Job::attend(
                    cached,
                    (number(heads)?, number(tokens)?),
                    number(visible)?,
                    self.floats(input, heads.checked_mul(key_length)?, tokens)?,
                    self.floats(output, heads.checked_mul(value_length)?, tokens)?,
                )
            }
        };
        jobs.try_push(job).ok()
    }

    /// Several jobs, if a matrix is larger than one may be.
    fn push_products(&self, step: &Step<'_>, jobs: &mut ArrayVec<Job, STEPS_MAX>) -> Option<()> {
        let Step::Multiply { ty, matrix, rows, columns, tokens, bias, ref input, ref output } = *step else {
            return None;
        };
        if tokens == 0 {
            return Some(());
        }
        let format = ty.number();
        let stride = Format::of_weights(format)?.row_bytes(number(columns)?)?;
        if stride.checked_mul(rows as u64)? > matrix.len() as u64 {
            return None;
        }
        let bias = match bias {
            Some(bias) => Some(self.vector(bias, rows)?),
            None => None,
        };
        let iova = self.weights(matrix);
        let input = self.floats(input, columns, tokens)?;
        let output = self.floats(output, rows, tokens)?;
        let most = (WEIGHTS_MAX / stride).max(1) as usize;
        for first in (0..rows).step_by(most) {
            let count = number(most.min(rows - first))?;
            let weights = Matrix {
                format,
                rows: count,
                columns: number(columns)?,
                iova: iova + first as u64 * stride,
                stride,
            };
            let output = Rows { iova: output.iova + 4 * first as u64, ..output };
            let mut job = Job::multiply(weights, number(tokens)?, Format::F32.number, input, output);
            if let Some(bias) = bias {
                job = job.with_bias(bias + 4 * first as u64);
            }
            jobs.try_push(job).ok()?;
        }
        Some(())
    }
}

/// ggml's number of a format of keys and values.
fn cache_format(format: KvFormat) -> Option<u32> {
    match format {
        KvFormat::F32 => Some(0),
        KvFormat::F16 => Some(1),
        KvFormat::Q8_0 => Some(8),
        _ => None,
    }
}

/// What an accelerator needs of the world. Times are in ticks.
pub trait World {
    /// Reads a clock.
    fn ticks(&self) -> u64;
    /// Ticks of a second.
    fn second(&self) -> u64;
    /// Leaves the CPU to others for about so long.
    fn sleep(&self, ticks: u64);
    /// Writes a line to the log.
    fn log(&self, line: fmt::Arguments<'_>);
}

/// Seconds that a list of jobs may take.
const PATIENCE: u64 = 60;
/// Parts of a second that are waited for the NPU, if another has it, and then done without: some times as long as the hypervisor
/// lets another have it.
const TURN: u64 = 1;
/// A list that takes longer than this part of a second is waited for asleep.
const AWAKE: u64 = 250;
/// Longest sleep, as a part of a second.
const ASLEEP: u64 = 250;

/// The NPU as the engine's accelerator.
pub struct Accelerator<H: Hal, B: Broker, A> {
    lease: RefCell<Lease<H, B>>,
    world: A,
    /// Whether it may be used.
    enabled: Cell<bool>,
    /// When it may be asked for again, by the clock.
    not_before: Cell<u64>,
    /// Whether what is wrong with it was logged.
    logged: Cell<bool>,
}

impl<H: Hal, B: Broker, A> fmt::Debug for Accelerator<H, B, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accelerator").field("enabled", &self.enabled).finish_non_exhaustive()
    }
}

impl<H: Hal, B: Broker, A: Addresses + World> Accelerator<H, B, A> {
    /// Uses what the broker lends.
    pub fn new(broker: B, world: A) -> Self {
        let lease = RefCell::new(Lease::new(broker));
        Accelerator {
            lease,
            world,
            enabled: Cell::new(true),
            not_before: Cell::new(0),
            logged: Cell::new(false),
        }
    }

    /// Says whether it may be used from here on. If not, it is given back.
    pub fn enable(&self, enabled: bool) {
        self.enabled.set(enabled);
        if let (false, Ok(mut lease)) = (enabled, self.lease.try_borrow_mut()) {
            lease.give_back();
        }
    }

    /// Logs what it did so far.
    pub fn report(&self) {
        if let Ok(lease) = self.lease.try_borrow() {
            let LeaseStats { jobs, losses, refusals } = lease.stats();
            self.world
                .log(format_args!("NPU: {jobs} jobs, lost {losses} times, not to be had {refusals} times"));
        }
    }
}

impl<H: Hal, B: Broker, A: Addresses + World> Offload for Accelerator<H, B, A> {
    fn is_ready(&self) -> bool {
        self.enabled.get() && self.world.ticks() >= self.not_before.get()
    }

    fn run(&self, buffers: &mut [&mut [u8]], steps: &[Step<'_>], ends: &[usize]) -> usize {
        if !self.is_ready() {
            return 0;
        }
        let (world, second) = (&self.world, self.world.second());
        let Ok(mut lease) = self.lease.try_borrow_mut() else { return 0 };
        let (begin, mut waiting_for) = (Cell::new(world.ticks()), Wait::List);
        // What cannot be done ends the work: what is behind it cannot be done either.
        let mut make = |part: usize| {
            // Another list has ended.
            begin.set(world.ticks());
            let first = part.checked_sub(1).map_or(Some(0), |before| ends.get(before).copied())?;
            jobs(world, buffers, steps.get(first..*ends.get(part)?)?)
        };
        let (done, result) = lease.run(&mut make, &mut |wait| {
            let now = world.ticks();
            if wait != waiting_for {
                waiting_for = wait;
                begin.set(now);
            }
            let waited = now.wrapping_sub(begin.get());
            match wait {
                Wait::Turn => {
                    world.sleep(second / ASLEEP);
                    waited < second * TURN
                }
                Wait::List if waited < second / AWAKE => {
                    (0..SPINS).for_each(|_| core::hint::spin_loop());
                    true
                }
                Wait::List => {
                    world.sleep((waited / 2).min(second / ASLEEP));
                    waited < second * PATIENCE
                }
            }
        });
        match result {
            Ok(()) => {}
            Err(Refusal::NotNow) => self.not_before.set(world.ticks() + second * TURN),
            Err(refusal) => {
                if !self.logged.replace(true) {
                    world.log(format_args!("{refusal}"));
                }
            }
        }
        done
    }
}
