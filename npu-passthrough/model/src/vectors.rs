//! Jobs other than products, row by row, with the engine's own kernels.

use flexserve_engine::accelerate::{self, Attention, TILE};
use flexserve_engine::gguf::TensorType;
use flexserve_npu_abi::{CHUNK_TOKENS, Cache, Capabilities, Error, Extents, HEAD_MAX, Job, Operation};
use zerocopy::IntoBytes;

use crate::jobs::{Context, Failure};

/// Most elements of a row.
const ROW: usize = Capabilities::MOST.columns_max as usize;
/// Most bytes of a head's keys and values, and what the last chunk has beyond the context.
const CACHE: usize =
    Capabilities::MOST.elements_max as usize * 4 + 2 * CHUNK_TOKENS as usize * HEAD_MAX as usize * 4;
/// Rows between two looks at whether to stop.
const ROWS: u64 = 64;

/// What computes, and its memory.
#[derive(Debug)]
pub struct Vectors {
    row: Vec<f32>,
    second: Vec<f32>,
    output: Vec<f32>,
    bytes: Vec<u8>,
    /// Keys of a head, then its values.
    cache: Vec<u8>,
    /// Bytes of it that may not be zero.
    cached: usize,
    attention: Attention,
}

/// A part of a buffer, which limits keep from being too short.
fn part<T>(buffer: &mut [T], length: usize) -> Result<&mut [T], Error> {
    buffer.get_mut(..length).ok_or(Error::Limit)
}

impl Vectors {
    /// Allocates all its memory.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new() -> flexserve_engine::Result<Self> {
        Ok(Vectors {
            row: vec![0.0; ROW],
            second: vec![0.0; ROW],
            output: vec![0.0; ROW],
            bytes: vec![0; HEAD_MAX as usize * 4],
            cache: vec![0; CACHE],
            cached: 0,
            attention: Attention::new(HEAD_MAX as usize)?,
        })
    }

    /// Makes all its memory zero.
    pub fn scrub(&mut self) {
        [&mut self.row, &mut self.second, &mut self.output].into_iter().for_each(|buffer| buffer.fill(0.0));
        self.bytes.fill(0);
        self.cache.iter_mut().take(self.cached).for_each(|byte| *byte = 0);
        self.cached = 0;
        self.attention.scrub();
    }

    /// Whether all its memory is zero.
    pub fn is_scrubbed(&self) -> bool {
        let mut floats = self.row.iter().chain(&self.second).chain(&self.output);
        let mut bytes = self.bytes.iter().chain(&self.cache);
        floats.all(|value| *value == 0.0) && bytes.all(|byte| *byte == 0) && self.attention.is_scrubbed()
    }

    /// Does a valid job; returns the bytes that it read and wrote.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn run(&mut self, job: &Job, extents: &Extents, context: &dyn Context) -> Result<u64, Failure> {
        if job.kind()? == Operation::Attend {
            self.attend(job, extents, context)
        } else {
            self.rows(job, extents, context)
        }
    }

    fn rows(&mut self, job: &Job, extents: &Extents, context: &dyn Context) -> Result<u64, Failure> {
        let operation = job.kind()?;
        let Extents { weights, input, second, output } = extents;
        let columns = job.columns as usize;
        let length = (input.row_bytes / 4) as usize;
        let row = part(&mut self.row, length)?;
        let result = part(&mut self.output, columns)?;
        let is_norm = operation == Operation::Normalise;
        let other = part(&mut self.second, if is_norm { columns } else { (second.row_bytes / 4) as usize })?;
        if is_norm {
            context.read(weights.iova, other.as_mut_bytes())?;
        }
        for token in 0..input.count {
            if token % ROWS == 0 {
                context.checkpoint()?;
            }
            context.read(input.row(token), row.as_mut_bytes())?;
            if second.count > 0 {
                context.read(second.row(token), other.as_mut_bytes())?;
            }
            match operation {
                Operation::Normalise => {
                    let epsilon = f32::from_bits(job.parameters[0]);
                    accelerate::rms_norm(row, other.as_bytes(), epsilon, result);
                    context.write(output.row(token), result.as_bytes())?;
                    continue;
                }
                Operation::Add => accelerate::add_assign(row, other),
                Operation::Activate => accelerate::silu_mul(row, other),
                Operation::Rotate => {
                    accelerate::rotate(row, columns, job.parameters[1] != 0, other.as_chunks().0)
                }
                _ => {
                    let format = TensorType::from_number(job.format).and_then(accelerate::kv_format);
                    let format = format.ok_or(Error::Format)?;
                    let bytes = output.row_bytes / input.count;
                    let stored = part(&mut self.bytes, bytes as usize)?;
                    for (head, values) in (0..).zip(row.chunks_exact(columns)) {
                        accelerate::store(format, values, stored);
                        context.write(output.row(head).wrapping_add(token * bytes), stored)?;
                    }
                    continue;
                }
            }
            context.write(output.row(token), row.as_bytes())?;
        }
        Ok(weights.bytes() + input.bytes() + second.bytes() + output.bytes())
    }

    fn attend(&mut self, job: &Job, extents: &Extents, context: &dyn Context) -> Result<u64, Failure> {
        let cache = Cache::of(job);
        let (key_bytes, value_bytes) = cache.row_bytes().ok_or(Error::Format)?;
        let format =
            TensorType::from_number(cache.format).and_then(accelerate::kv_format).ok_or(Error::Format)?;
        let (key_length, value_length) = (cache.key_length as usize, cache.value_length as usize);
        let chunk = u64::from(CHUNK_TOKENS);
        let (chunks, heads) = (extents.weights.count, u64::from(cache.heads));
        let (tokens, group) = (u64::from(job.tokens), u64::from(job.rows) / heads);
        let visible = job.parameters[2] as usize;
        let key_part = (chunks * chunk * key_bytes) as usize;
        let all = key_part + (chunks * chunk * value_bytes) as usize;
        let mut bytes = extents.second.bytes();
        for head in 0..heads {
            self.cached = self.cached.max(all);
            let (keys, values) =
                part(&mut self.cache, all)?.split_at_mut_checked(key_part).ok_or(Error::Limit)?;
            let parts = [
                (&mut *keys, key_bytes * chunk, head * key_bytes * chunk),
                (&mut *values, value_bytes * chunk, (heads * key_bytes + head * value_bytes) * chunk),
            ];
            for (rows, size, offset) in parts {
                for (index, rows) in (0..chunks).zip(rows.chunks_exact_mut(size as usize)) {
                    let mut block = [0; 4];
                    context.read(extents.second.iova.wrapping_add(4 * index), &mut block)?;
                    let block = u32::from_le_bytes(block);
                    if block >= cache.blocks {
                        return Err(Error::Range.into());
                    }
                    context.read(extents.weights.row(block.into()).wrapping_add(offset), rows)?;
                }
            }
            let cached = accelerate::Cache { format, key_length, value_length, keys, values };
            for first in (0..tokens * group).step_by(TILE) {
                context.checkpoint()?;
                let count = (tokens * group - first).min(TILE as u64);
                // A query's token, and its number among the token's queries.
                let place = |query: u64| (query / group, head * group + query % group);
                let queries = part(&mut self.row, TILE * key_length)?;
                for (query, row) in (first..first + count).zip(queries.chunks_exact_mut(key_length)) {
                    let (token, number) = place(query);
                    let at = extents.input.row(token).wrapping_add(number * 4 * u64::from(cache.key_length));
                    context.read(at, row.as_mut_bytes())?;
                }
                let seen = (0..count).map(|i| (i as usize, visible + place(first + i).0 as usize));
                let result = part(&mut self.output, TILE * value_length)?;
                if !self.attention.attend(&cached, seen, queries, result) {
                    return Err(Error::Limit.into());
                }
                for (query, row) in (first..first + count).zip(result.chunks_exact(value_length)) {
                    let (token, number) = place(query);
                    let at =
                        extents.output.row(token).wrapping_add(number * 4 * u64::from(cache.value_length));
                    context.write(at, row.as_bytes())?;
                }
            }
            bytes += all as u64;
        }
        Ok(bytes + extents.input.bytes() + extents.output.bytes())
    }
}
