//! Jobs other than products with weights: what is between them in a transformer.
//!
//! All rows are F32 and aligned to 4, weights of [`Operation::Normalise`] included; what is stored of keys and values is at any
//! alignment. Each operation is defined, to the bit, by what the engine does.

use crate::job::Extent;
use crate::{Capabilities, Error, Extents, Format, Job, Operation, Rows};

/// Tokens of a chunk of keys and values.
pub const CHUNK_TOKENS: u32 = 16;
/// Most elements of a key or value.
pub const HEAD_MAX: u32 = 1024;

/// Keys and values of a layer, in chunks of [`CHUNK_TOKENS`] tokens: keys of a head, token by token, head by head, then the same of
/// values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache {
    /// ggml's number of the format: F32, F16 or Q8_0.
    pub format: u32,
    /// Heads.
    pub heads: u32,
    /// Elements of a key.
    pub key_length: u32,
    /// Elements of a value.
    pub value_length: u32,
    /// IOVA of the layer in block 0.
    pub iova: u64,
    /// Bytes from block to block.
    pub block_bytes: u64,
    /// How many there are.
    pub blocks: u32,
    /// IOVA of the numbers (u32) of the blocks that hold the context's chunks, aligned to 4.
    pub table: u64,
}

impl Cache {
    /// The cache of an [`Operation::Attend`].
    pub fn of(job: &Job) -> Self {
        let [heads, value_length, _, blocks] = job.parameters;
        Cache {
            format: job.format,
            heads,
            key_length: job.columns,
            value_length,
            iova: job.weights,
            block_bytes: job.weights_stride,
            blocks,
            table: job.second,
        }
    }

    /// Bytes of a key and of a value; none if they are no whole blocks of one of the formats.
    pub fn row_bytes(&self) -> Option<(u64, u64)> {
        let format = cache_format(self.format)?;
        Some((format.row_bytes(self.key_length)?, format.row_bytes(self.value_length)?))
    }

    /// Bytes of the layer in a block; none as in [`Cache::row_bytes`].
    pub fn layer_bytes(&self) -> Option<u64> {
        let (key, value) = self.row_bytes()?;
        key.checked_add(value)?.checked_mul(u64::from(self.heads) * u64::from(CHUNK_TOKENS))
    }
}

fn cache_format(number: u32) -> Option<Format> {
    // F32, F16, Q8_0.
    if matches!(number, 0 | 1 | 8) { Format::of_weights(number) } else { None }
}

impl Job {
    /// Root mean square normalisation of `count` rows of `columns`, with F32 weights at `weights`.
    pub fn normalise(
        weights: u64,
        epsilon: f32,
        (columns, count): (u32, u32),
        input: Rows,
        output: Rows,
    ) -> Self {
        let job = Job { weights, parameters: [epsilon.to_bits(), 0, 0, 0], ..Job::default() };
        job.with(Operation::Normalise, (columns, count), input, output)
    }

    /// Sums of two times `count` rows of `columns`.
    pub fn add((columns, count): (u32, u32), input: Rows, second: Rows, output: Rows) -> Self {
        Job { second: second.iova, second_stride: second.stride, ..Job::default() }.with(
            Operation::Add,
            (columns, count),
            input,
            output,
        )
    }

    /// The gated linear unit with SiLU: `input` is the gate, `second` what passes.
    pub fn activate((columns, count): (u32, u32), input: Rows, second: Rows, output: Rows) -> Self {
        Job { operation: Operation::Activate as u32, ..Job::add((columns, count), input, second, output) }
    }

    /// Rotates the first `2 * pairs` elements of each of `heads` heads of `columns` in each of `count` rows, by the row's cosines and sines
    /// in `rotations`. `halves`: an element and that `pairs` behind it are a pair; else neighbours are.
    pub fn rotate(
        (pairs, halves): (u32, bool),
        (heads, columns, count): (u32, u32, u32),
        input: Rows,
        rotations: Rows,
        output: Rows,
    ) -> Self {
        Job {
            rows: heads,
            second: rotations.iova,
            second_stride: rotations.stride,
            parameters: [pairs, halves.into(), 0, 0],
            ..Job::default()
        }
        .with(Operation::Rotate, (columns, count), input, output)
    }

    /// Stores `heads` keys or values of `columns` of each of `count` tokens in `format`: those of a head next to each other, at the
    /// output's rows.
    pub fn store(format: u32, (heads, columns, count): (u32, u32, u32), input: Rows, output: Rows) -> Self {
        let job = Job { format, rows: heads, ..Job::default() };
        job.with(Operation::Store, (columns, count), input, output)
    }

    /// Attention of `count` tokens with `heads` queries each over a cache; the first token sees `visible` tokens, each
    /// other one more.
    pub fn attend(cache: Cache, (heads, count): (u32, u32), visible: u32, input: Rows, output: Rows) -> Self {
        Job {
            format: cache.format,
            rows: heads,
            weights: cache.iova,
            weights_stride: cache.block_bytes,
            second: cache.table,
            parameters: [cache.heads, cache.value_length, visible, cache.blocks],
            ..Job::default()
        }
        .with(Operation::Attend, (cache.key_length, count), input, output)
    }

    fn with(self, operation: Operation, (columns, tokens): (u32, u32), input: Rows, output: Rows) -> Self {
        Job {
            operation: operation as u32,
            columns,
            tokens,
            input: input.iova,
            input_stride: input.stride,
            output: output.iova,
            output_stride: output.stride,
            ..self
        }
    }

    /// Checks one of these; overlaps and pages are left to the caller.
    pub(crate) fn check_vector(
        &self,
        operation: Operation,
        capabilities: &Capabilities,
    ) -> Result<Extents, Error> {
        let (columns, rows) = (u64::from(self.columns), u64::from(self.rows));
        let is_headed = matches!(operation, Operation::Rotate | Operation::Store | Operation::Attend);
        if self.columns == 0 || self.tokens == 0 || (is_headed && self.rows == 0) {
            return Err(Error::Shape);
        }
        let mut expected = Job {
            operation: self.operation,
            flags: self.flags,
            columns: self.columns,
            tokens: self.tokens,
            input: self.input,
            input_stride: self.input_stride,
            output: self.output,
            output_stride: self.output_stride,
            ..Job::default()
        };
        let mut aligned = self.input | self.input_stride;
        let input_length = if is_headed { columns.saturating_mul(rows) } else { columns };
        let (mut weights, mut second) = (Extent::default(), Extent::default());
        let floats =
            |iova, stride, length: u64, count| Extent::new(iova, stride, length.saturating_mul(4), count);
        let mut output = floats(self.output, self.output_stride, input_length, self.tokens);
        if is_headed {
            expected.rows = self.rows;
        }
        match operation {
            Operation::Normalise => {
                (expected.weights, expected.parameters[0]) = (self.weights, self.parameters[0]);
                weights = floats(self.weights, 0, columns, 1)?;
            }
            Operation::Add | Operation::Activate => {
                (expected.second, expected.second_stride) = (self.second, self.second_stride);
                aligned |= self.second | self.second_stride;
                second = floats(self.second, self.second_stride, columns, self.tokens)?;
            }
            Operation::Rotate => {
                let [pairs, halves, ..] = self.parameters;
                (expected.second, expected.second_stride) = (self.second, self.second_stride);
                expected.parameters = [pairs, halves & 1, 0, 0];
                if pairs == 0 || u64::from(pairs) * 2 > columns {
                    return Err(Error::Shape);
                }
                aligned |= self.second | self.second_stride;
                second = floats(self.second, self.second_stride, u64::from(pairs) * 2, self.tokens)?;
            }
            Operation::Store => {
                expected.format = self.format;
                let format = cache_format(self.format).ok_or(Error::Format)?;
                let row = format.row_bytes(self.columns).ok_or(Error::Shape)?;
                if self.columns > HEAD_MAX {
                    return Err(Error::Limit);
                }
                let head = row.saturating_mul(self.tokens.into());
                output = Extent::new(self.output, self.output_stride, head, self.rows);
            }
            _ => {
                let cache = Cache::of(self);
                expected = Job::attend(
                    cache,
                    (self.rows, self.tokens),
                    self.parameters[2],
                    Rows { iova: self.input, stride: self.input_stride },
                    Rows { iova: self.output, stride: self.output_stride },
                );
                expected.flags = self.flags;
                let layer_bytes = cache.layer_bytes().ok_or(Error::Format)?;
                let visible = u64::from(self.parameters[2]) + u64::from(self.tokens) - 1;
                let chunks = visible.div_ceil(CHUNK_TOKENS.into());
                let elements = visible.saturating_mul(columns + u64::from(cache.value_length));
                let heads = self.rows.checked_rem(cache.heads);
                if self.parameters[2] == 0 || heads != Some(0) || chunks > cache.blocks.into() {
                    return Err(Error::Shape);
                }
                let output_length = rows.saturating_mul(cache.value_length.into());
                if self.columns.max(cache.value_length) > HEAD_MAX
                    || output_length > capabilities.columns_max.into()
                    || elements > capabilities.elements_max.into()
                    || output_length.saturating_mul(self.tokens.into()) > capabilities.elements_max.into()
                {
                    return Err(Error::Limit);
                }
                aligned |= self.second;
                let all = Extent::new(self.weights, self.weights_stride, layer_bytes, cache.blocks)?;
                output = floats(self.output, self.output_stride, output_length, self.tokens);
                if output?.overlaps(&all) {
                    return Err(Error::Overlap);
                }
                weights = Extent { count: chunks, ..all };
                second = Extent::new(self.second, 0, chunks * 4, 1)?;
            }
        }
        if expected != *self {
            return Err(Error::Reserved);
        }
        if operation != Operation::Store {
            aligned |= self.output | self.output_stride;
        }
        if !aligned.is_multiple_of(4) {
            return Err(Error::Alignment);
        }
        let elements = input_length.saturating_mul(self.tokens.into());
        if input_length > capabilities.columns_max.into()
            || self.tokens > capabilities.tokens_max
            || elements > capabilities.elements_max.into()
        {
            return Err(Error::Limit);
        }
        let input = floats(self.input, self.input_stride, input_length, self.tokens)?;
        Ok(Extents { weights, input, second, output: output? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Matrix;

    const LIMITS: Capabilities = Capabilities::MOST;
    const IN: Rows = Rows { iova: 0x20_0000, stride: 1024 };
    const SECOND: Rows = Rows { iova: 0x30_0000, stride: 1024 };
    const OUT: Rows = Rows { iova: 0x40_0000, stride: 2048 };

    /// Eight blocks with one layer in each, of 64 pages.
    const CACHE: Cache = Cache {
        format: 1,
        heads: 2,
        key_length: 64,
        value_length: 32,
        iova: 0x100_0001,
        block_bytes: 0x4_0000,
        blocks: 8,
        table: 0x50_0000,
    };

    fn each() -> [Job; 6] {
        [
            Job::normalise(0x10_0000, 1e-5, (256, 3), IN, OUT),
            Job::add((256, 3), IN, SECOND, OUT),
            Job::activate((256, 3), IN, SECOND, OUT),
            Job::rotate((32, true), (4, 64, 3), IN, SECOND, OUT),
            Job::store(8, (4, 64, 3), IN, Rows { iova: 0x40_0001, stride: 204 }),
            Job::attend(CACHE, (4, 3), 100, IN, OUT),
        ]
    }

    #[test]
    fn valid_jobs_say_what_they_touch() {
        let touched = each().map(|job| {
            let Extents { weights, input, second, output } = job.fenced().check(&LIMITS).unwrap();
            [weights, input, second, output].map(|extent| extent.bytes())
        });
        assert_eq!(touched[0], [1024, 3072, 0, 3072]);
        assert_eq!(touched[1], [0, 3072, 3072, 3072]);
        assert_eq!(touched[2], [0, 3072, 3072, 3072]);
        assert_eq!(touched[3], [0, 3072, 3 * 256, 3072]);
        assert_eq!(touched[4], [0, 3072, 0, 4 * 3 * 68]);
        // 102 tokens are seen, of 7 chunks.
        assert_eq!(touched[5], [7 * 16 * 2 * 192, 3072, 28, 3 * 4 * 32 * 4]);
    }

    #[test]
    fn what_an_operation_does_not_use_is_zero() {
        for job in each() {
            assert!(job.check(&LIMITS).is_ok());
            let changes: [fn(&mut Job); 5] = [
                |job| job.flags |= Job::BIAS,
                |job| job.target = 1,
                |job| job.input_format = 8,
                // The number of blocks, where there are any.
                |job| job.parameters[3] = if job.parameters[3] == 0 { 1 } else { 0 },
                |job| job.flags |= 4,
            ];
            for change in changes {
                let mut changed = job;
                change(&mut changed);
                assert!(changed.check(&LIMITS).is_err(), "{changed:x?}");
            }
        }
        let [normalise, add, ..] = each();
        assert_eq!(Job { second: 4, ..normalise }.check(&LIMITS), Err(Error::Reserved));
        assert_eq!(Job { weights: 4, ..add }.check(&LIMITS), Err(Error::Reserved));
        assert_eq!(Job { rows: 1, ..add }.check(&LIMITS), Err(Error::Reserved));
    }

    #[test]
    fn each_defect_is_refused_by_its_name() {
        let [normalise, add, _, rotate, store, attend] = each();
        assert_eq!(Job { columns: 0, ..normalise }.check(&LIMITS), Err(Error::Shape));
        assert_eq!(Job { tokens: 0, ..add }.check(&LIMITS), Err(Error::Shape));
        assert_eq!(Job { rows: 0, ..rotate }.check(&LIMITS), Err(Error::Shape));
        assert_eq!(Job { parameters: [33, 1, 0, 0], ..rotate }.check(&LIMITS), Err(Error::Shape));
        assert_eq!(Job { format: 2, ..store }.check(&LIMITS), Err(Error::Format));
        assert_eq!(Job { columns: 63, ..store }.check(&LIMITS), Err(Error::Shape));
        assert_eq!(Job { output_stride: 203, ..store }.check(&LIMITS), Err(Error::Stride));
        assert_eq!(Job { second: SECOND.iova + 2, ..add }.check(&LIMITS), Err(Error::Alignment));
        assert_eq!(Job { output: OUT.iova + 1, ..add }.check(&LIMITS), Err(Error::Alignment));
        assert_eq!(Job { output: IN.iova, ..add }.check(&LIMITS), Err(Error::Overlap));
        assert_eq!(Job { output: SECOND.iova, ..add }.check(&LIMITS), Err(Error::Overlap));
        assert_eq!(Job { output: 0x10_0000, ..normalise }.check(&LIMITS), Err(Error::Overlap));
        assert_eq!(Job { rows: 3, ..attend }.check(&LIMITS), Err(Error::Shape));
        assert_eq!(Job { parameters: [0, 32, 100, 8], ..attend }.check(&LIMITS), Err(Error::Shape));
        assert_eq!(Job { parameters: [2, 32, 0, 8], ..attend }.check(&LIMITS), Err(Error::Shape));
        // More than the blocks hold; and where a block is that is not even used.
        assert_eq!(Job { parameters: [2, 32, 127, 8], ..attend }.check(&LIMITS), Err(Error::Shape));
        let last = Job { output: 0x100_0000 + 7 * 0x4_0000, ..attend };
        assert_eq!(last.check(&LIMITS), Err(Error::Overlap));
        assert_eq!(Job { weights_stride: 100, ..attend }.check(&LIMITS), Err(Error::Stride));
        let long = Job { parameters: [2, 32, 1 << 20, 1 << 20], ..attend };
        assert_eq!(long.check(&LIMITS), Err(Error::Limit));
        let wide = Job::normalise(0, 0.0, (1 << 18, 1), IN, OUT);
        assert_eq!(wide.check(&LIMITS), Err(Error::Limit));
    }

    #[test]
    fn products_may_have_a_bias() {
        let matrix = Matrix { format: 0, rows: 64, columns: 32, iova: 0, stride: 128 };
        let job = Job::multiply(matrix, 2, 0, IN, OUT).with_bias(SECOND.iova);
        assert_eq!(job.check(&LIMITS).unwrap().second.bytes(), 256);
        assert_eq!(Job { second: SECOND.iova + 1, ..job }.check(&LIMITS), Err(Error::Alignment));
        assert_eq!(Job { second: OUT.iova, ..job }.check(&LIMITS), Err(Error::Overlap));
        assert_eq!(Job { flags: 0, ..job }.check(&LIMITS), Err(Error::Reserved));
        assert_eq!(Job { second_stride: 4, ..job }.check(&LIMITS), Err(Error::Reserved));
    }
}
