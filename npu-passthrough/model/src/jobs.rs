//! Jobs, done: from memory to the device's own and back, tile by tile.
//!
//! The device's memory holds the activations of a job, prepared for all its rows; a tile of rows, as they are stored; and
//! the tile's products. A tile is read once and multiplied with all tokens.

use std::time::{Duration, Instant};

use flexserve_engine::accelerate::add_assign;
use flexserve_engine::gguf::TensorType;
use flexserve_engine::{Activations, Multiplier};
use flexserve_npu_abi::{Capabilities, Error, Extents, Format, Job, Operation};
use zerocopy::IntoBytes;

use crate::dma::{Dma, Fault};
use crate::throttle::Throttle;
use crate::vectors::Vectors;

/// Bytes of weights in a tile: of the size of a second-level cache. The longest row is twice as long.
const TILE_BYTES: usize = 256 << 10;
const LONGEST_ROW: usize = Capabilities::MOST.columns_max as usize * 4;
/// Products of a tile.
const PRODUCTS: usize = 1 << 17;
/// Multiplications of a tile, which keep it to about a millisecond.
const WORK: usize = 1 << 26;
const WORK_PORTABLE: usize = 1 << 20;
/// Rows that the kernels take at once.
const PANEL: usize = 16;
/// Bytes of activations between two looks at whether to stop.
const PIECE: u64 = 1 << 20;

/// What a job runs in.
pub trait Context: Dma {
    /// Waits while others go first. Called between tiles.
    ///
    /// # Errors
    /// [`Fault::Stopped`] or [`Fault::Cancelled`] if the job is to end here.
    fn checkpoint(&self) -> Result<(), Fault>;

    /// Sleeps.
    ///
    /// # Errors
    /// As [`Context::checkpoint`].
    fn sleep(&self, time: Duration) -> Result<(), Fault>;

    /// Ends a list.
    fn cancel(&self, list_id: u32);

    /// A list begins.
    fn begin(&self, list_id: u32);

    /// A list has ended.
    fn end(&self, list_id: u32);

    /// Counts a job that is done.
    fn done(&self) {}
}

/// Why a job was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It is not valid.
    Invalid(Error),
    /// It ended early.
    Fault(Fault),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Invalid(error)
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Failure::Fault(fault)
    }
}

/// What computes, and its memory.
#[derive(Debug)]
pub struct Core {
    multiplier: Multiplier,
    vectors: Vectors,
    /// A row of activations, or what is being copied.
    row: Vec<u8>,
    tile: Vec<u8>,
    products: Vec<f32>,
    /// Most of each that was used since all was zero.
    dirty: [usize; 3],
    bias: Vec<f32>,
    work: usize,
    throttle: Throttle,
}

impl Core {
    /// Allocates all its memory. `portable`: computes by the definition.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(portable: bool, throttle: Throttle) -> flexserve_engine::Result<Self> {
        let most = Capabilities::MOST;
        let sizes = (most.elements_max as usize, most.columns_max as usize, most.tokens_max as usize);
        Ok(Core {
            multiplier: Multiplier::new(sizes.0, sizes.1, sizes.2, portable)?,
            vectors: Vectors::new()?,
            row: vec![0; LONGEST_ROW],
            tile: vec![0; LONGEST_ROW.max(TILE_BYTES)],
            products: vec![0.0; PRODUCTS],
            dirty: [0; 3],
            bias: vec![0.0; PRODUCTS],
            work: if portable { WORK_PORTABLE } else { WORK },
            throttle,
        })
    }

    /// Makes all its memory zero, in time proportional to what was used of it.
    pub fn scrub(&mut self) {
        let [row, tile, products] = std::mem::take(&mut self.dirty);
        self.multiplier.scrub();
        self.vectors.scrub();
        self.row.iter_mut().take(row).for_each(|byte| *byte = 0);
        self.tile.iter_mut().take(tile).for_each(|byte| *byte = 0);
        self.products.iter_mut().take(products).for_each(|product| *product = 0.0);
        // Of these there are no more.
        self.bias.iter_mut().take(products).for_each(|bias| *bias = 0.0);
    }

    fn soil(&mut self, used: [usize; 3]) {
        self.dirty.iter_mut().zip(used).for_each(|(dirty, used)| *dirty = used.max(*dirty));
    }

    /// Whether all its memory is zero.
    pub fn is_scrubbed(&self) -> bool {
        self.multiplier.is_scrubbed()
            && self.vectors.is_scrubbed()
            && self.row.iter().chain(&self.tile).all(|byte| *byte == 0)
            && self.products.iter().chain(&self.bias).all(|value| *value == 0.0)
    }

    /// Does a job; returns the bytes that it read and wrote.
    ///
    /// # Errors
    /// [`Failure`]. The output may be partly written then.
    pub fn run(&mut self, job: &Job, context: &dyn Context) -> Result<u64, Failure> {
        let extents = job.check(&Capabilities::MOST)?;
        context.checkpoint()?;
        match job.kind()? {
            Operation::Multiply => self.multiply(job, &extents, context),
            Operation::Copy => self.copy(&extents, context),
            Operation::Cancel => {
                context.cancel(job.target);
                Ok(0)
            }
            _ => self.vectors.run(job, &extents, context),
        }
    }

    fn multiply(&mut self, job: &Job, extents: &Extents, context: &dyn Context) -> Result<u64, Failure> {
        let begin = Instant::now();
        let ty = TensorType::from_number(job.format).ok_or(Error::Format)?;
        let (columns, tokens) = (job.columns as usize, job.tokens as usize);
        if !self.multiplier.begin(ty, columns, tokens) {
            return Err(Error::Limit.into());
        }
        let Extents { weights, input, second, output } = extents;
        let row_bytes = weights.row_bytes as usize;
        let most = (TILE_BYTES / row_bytes).min(PRODUCTS / tokens).min(self.work / (columns * tokens));
        let most = if most < PANEL { most.max(1) } else { most - most % PANEL };
        self.soil([input.row_bytes as usize, most * row_bytes, most * tokens]);
        self.read_activations(job.input_format, extents, context)?;
        let (mut first, mut bytes) = (0, input.bytes());
        while first < weights.count {
            context.checkpoint()?;
            let count = (weights.count - first).min(most as u64);
            let tile = self.tile.get_mut(..count as usize * row_bytes).ok_or(Error::Limit)?;
            if weights.stride == weights.row_bytes {
                context.read(weights.row(first), tile)?;
            } else {
                for (row, bytes) in (first..).zip(tile.chunks_exact_mut(row_bytes)) {
                    context.read(weights.row(row), bytes)?;
                }
            }
            let products = self.products.get_mut(..count as usize * tokens).ok_or(Error::Limit)?;
            self.multiplier.multiply(tile, products);
            if second.count > 0 {
                let bias = self.bias.get_mut(..count as usize).ok_or(Error::Limit)?;
                context.read(second.iova.wrapping_add(first * 4), bias.as_mut_bytes())?;
                products.chunks_exact_mut(count as usize).for_each(|row| add_assign(row, bias));
            }
            for (token, products) in (0..).zip(products.chunks_exact(count as usize)) {
                context.write(output.row(token).wrapping_add(first * 4), products.as_bytes())?;
            }
            first += count;
            bytes += count * (weights.row_bytes + 4 * tokens as u64);
            let operations = 2 * first * columns as u64 * tokens as u64;
            self.keep_pace(begin, (operations, bytes), context)?;
        }
        Ok(bytes)
    }

    fn read_activations(
        &mut self,
        format: u32,
        extents: &Extents,
        context: &dyn Context,
    ) -> Result<(), Failure> {
        let input = &extents.input;
        let row = self.row.get_mut(..input.row_bytes as usize).ok_or(Error::Limit)?;
        let between = (PIECE / input.row_bytes.max(1)).max(1);
        for token in 0..input.count {
            context.read(input.row(token), row)?;
            let activations = match format {
                n if n == Format::F32.number => Activations::F32(row),
                n if n == Format::Q8_0.number => Activations::Q8_0(row),
                n if n == Format::Q8_1.number => Activations::Q8_1(row),
                _ => Activations::Q8K(row),
            };
            if !self.multiplier.set(token as usize, activations) {
                return Err(Error::Format.into());
            }
            if token % between == between - 1 {
                context.checkpoint()?;
            }
        }
        Ok(())
    }

    fn copy(&mut self, extents: &Extents, context: &dyn Context) -> Result<u64, Failure> {
        let begin = Instant::now();
        self.soil([(extents.input.row_bytes as usize).min(LONGEST_ROW), 0, 0]);
        let mut bytes = 0;
        for row in 0..extents.input.count {
            for first in (0..extents.input.row_bytes).step_by(LONGEST_ROW) {
                context.checkpoint()?;
                let count = (extents.input.row_bytes - first).min(LONGEST_ROW as u64);
                let buffer = self.row.get_mut(..count as usize).ok_or(Error::Limit)?;
                context.read(extents.input.row(row).wrapping_add(first), buffer)?;
                context.write(extents.output.row(row).wrapping_add(first), buffer)?;
                bytes += 2 * count;
                self.keep_pace(begin, (0, bytes), context)?;
            }
        }
        Ok(bytes)
    }

    /// Sleeps as long as the modelled device would still be busy with what it has done of a job.
    fn keep_pace(&self, begin: Instant, done: (u64, u64), context: &dyn Context) -> Result<(), Fault> {
        let ahead = self.throttle.time(done.0, done.1).saturating_sub(begin.elapsed());
        if ahead.is_zero() { Ok(()) } else { context.sleep(ahead) }
    }
}
