//! Jobs and what makes one valid.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Capabilities, Format, PAGE_SIZE, Status};

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Operation {
    /// `output[t][r] = sum over c of weights[r][c] * input[t][c]` for all tokens `t`, F32; plus `second[r]` with [`Job::BIAS`].
    Multiply = 1,
    /// Copies `tokens` rows of `columns` bytes from input to output.
    Copy = 2,
    /// Ends the list named [`Job::target`], or lets it end before it begins. Looks at nothing else.
    Cancel = 3,
    /// [`Job::normalise`].
    Normalise = 4,
    /// [`Job::add`].
    Add = 5,
    /// [`Job::activate`].
    Activate = 6,
    /// [`Job::rotate`].
    Rotate = 7,
    /// [`Job::store`].
    Store = 8,
    /// [`Job::attend`].
    Attend = 9,
}

const OPERATIONS: [Operation; 9] = [
    Operation::Multiply,
    Operation::Copy,
    Operation::Cancel,
    Operation::Normalise,
    Operation::Add,
    Operation::Activate,
    Operation::Rotate,
    Operation::Store,
    Operation::Attend,
];

/// One job. Fields that an operation does not use are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Job {
    /// [`Operation`].
    pub operation: u32,
    /// Bits: [`Job::FENCE`], [`Job::BIAS`].
    pub flags: u32,
    /// ggml's number of the weights' format.
    pub format: u32,
    /// ggml's number of the activations' format.
    pub input_format: u32,
    /// Rows of the matrix, and columns of the output.
    pub rows: u32,
    /// Columns of the matrix, and of the input.
    pub columns: u32,
    /// Rows of input and output: 1 for a product with a vector.
    pub tokens: u32,
    /// A list's id.
    pub target: u32,
    /// IOVA of the weights, at any alignment.
    pub weights: u64,
    /// Bytes from one row of weights to the next.
    pub weights_stride: u64,
    /// IOVA of the activations; F32 is aligned to 4, quants are at any alignment.
    pub input: u64,
    /// Bytes from one row of activations to the next.
    pub input_stride: u64,
    /// IOVA of the output, F32 and aligned to 4.
    pub output: u64,
    /// Bytes from one row of the output to the next.
    pub output_stride: u64,
    /// IOVA of another input, F32 and aligned to 4.
    pub second: u64,
    /// Bytes from one of its rows to the next.
    pub second_stride: u64,
    /// Numbers that an operation needs.
    pub parameters: [u32; 4],
}
const _: () = assert!(size_of::<Job>() == 112);

/// Where a matrix is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// ggml's number of its format.
    pub format: u32,
    /// Rows.
    pub rows: u32,
    /// Elements of a row.
    pub columns: u32,
    /// IOVA of the first row.
    pub iova: u64,
    /// Bytes from one row to the next.
    pub stride: u64,
}

/// Where rows of activations, or of products, are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// IOVA of the first.
    pub iova: u64,
    /// Bytes from one to the next.
    pub stride: u64,
}

/// What is wrong with a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// No such operation.
    Operation,
    /// Flags that are not known, or a field that should be zero.
    Reserved,
    /// No such format of weights, or none of activations that goes with it.
    Format,
    /// A dimension is zero or no whole number of blocks.
    Shape,
    /// A row is longer than the stride.
    Stride,
    /// An address or stride that is to be aligned is not.
    Alignment,
    /// A tensor does not fit into the address space.
    Range,
    /// Output overlaps an input.
    Overlap,
    /// More than the device can do.
    Limit,
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        match error {
            Error::Operation | Error::Format | Error::Limit => Status::Unsupported,
            Error::Reserved
            | Error::Shape
            | Error::Stride
            | Error::Alignment
            | Error::Range
            | Error::Overlap => Status::BadJob,
        }
    }
}

/// Some rows of equal length in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// IOVA of the first.
    pub iova: u64,
    /// Bytes from one to the next.
    pub stride: u64,
    /// Bytes of one.
    pub row_bytes: u64,
    /// How many there are.
    pub count: u64,
}

impl Extent {
    /// Checks that rows do not overlap each other, and that the last ends within the address space.
    pub(crate) fn new(iova: u64, stride: u64, row_bytes: u64, count: u32) -> Result<Self, Error> {
        if stride < row_bytes && count > 1 {
            return Err(Error::Stride);
        }
        let extent = Extent { iova, stride, row_bytes, count: count.into() };
        extent.last_byte().map(|_| extent).ok_or(Error::Range)
    }

    fn last_byte(&self) -> Option<u64> {
        let last_row = self.stride.checked_mul(self.count.checked_sub(1)?)?;
        self.iova.checked_add(last_row)?.checked_add(self.row_bytes.checked_sub(1)?)
    }

    /// IOVA of row `index`, which there must be.
    pub fn row(&self, index: u64) -> u64 {
        self.iova.wrapping_add(self.stride.wrapping_mul(index))
    }

    /// Bytes of all rows.
    pub fn bytes(&self) -> u64 {
        self.row_bytes.saturating_mul(self.count)
    }

    /// Most pages that the rows touch.
    pub fn pages(&self) -> u64 {
        let Some(last) = self.last_byte() else { return 0 };
        let span = (last / PAGE_SIZE).saturating_sub(self.iova / PAGE_SIZE).saturating_add(1);
        let each = self.row_bytes.div_ceil(PAGE_SIZE).saturating_add(1);
        span.min(each.saturating_mul(self.count))
    }

    /// Whether the spans from first to last byte overlap.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        match (self.last_byte(), other.last_byte()) {
            (Some(last), Some(other_last)) => self.iova <= other_last && other.iova <= last,
            _ => false,
        }
    }
}

/// The memory that a valid job touches; empty where it has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extents {
    /// Weights.
    pub weights: Extent,
    /// Activations, or what is copied.
    pub input: Extent,
    /// The other input.
    pub second: Extent,
    /// Products, or copies.
    pub output: Extent,
}

impl Extents {
    /// Pages that the job may touch.
    pub fn pages(&self) -> u64 {
        [self.weights, self.input, self.second, self.output]
            .iter()
            .fold(0, |sum, extent| sum.saturating_add(extent.pages()))
    }
}

impl Job {
    /// Begins when the jobs before it in the list have ended.
    pub const FENCE: u32 = 1;
    /// Adds a bias to products, [`Job::second`], as long as a row of the output.
    pub const BIAS: u32 = 2;

    /// A product of `matrix` and `tokens` rows of activations in a format that ggml numbers `input_format`.
    pub fn multiply(matrix: Matrix, tokens: u32, input_format: u32, input: Rows, output: Rows) -> Self {
        Job {
            operation: Operation::Multiply as u32,
            format: matrix.format,
            input_format,
            rows: matrix.rows,
            columns: matrix.columns,
            tokens,
            weights: matrix.iova,
            weights_stride: matrix.stride,
            input: input.iova,
            input_stride: input.stride,
            output: output.iova,
            output_stride: output.stride,
            ..Job::default()
        }
    }

    /// The same, with a bias at an IOVA.
    pub fn with_bias(self, second: u64) -> Self {
        Job { flags: self.flags | Self::BIAS, second, ..self }
    }

    /// A copy of `count` rows of `bytes`.
    pub fn copy(bytes: u32, count: u32, from: Rows, to: Rows) -> Self {
        Job {
            operation: Operation::Copy as u32,
            columns: bytes,
            tokens: count,
            input: from.iova,
            input_stride: from.stride,
            output: to.iova,
            output_stride: to.stride,
            ..Job::default()
        }
    }

    /// The end of a list.
    pub fn cancel(list_id: u32) -> Self {
        Job { operation: Operation::Cancel as u32, target: list_id, ..Job::default() }
    }

    /// The same, to begin when the jobs before it have ended.
    pub fn fenced(self) -> Self {
        Job { flags: self.flags | Self::FENCE, ..self }
    }

    /// Finds out what the job is.
    ///
    /// # Errors
    /// [`Error::Operation`].
    pub fn kind(&self) -> Result<Operation, Error> {
        OPERATIONS.into_iter().find(|operation| *operation as u32 == self.operation).ok_or(Error::Operation)
    }

    /// Checks the job for a device with these capabilities, and says what memory it touches.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, capabilities: &Capabilities) -> Result<Extents, Error> {
        let operation = self.kind()?;
        let has_bias = operation == Operation::Multiply && self.flags & Self::BIAS != 0;
        if self.flags & !(Self::FENCE | if has_bias { Self::BIAS } else { 0 }) != 0 {
            return Err(Error::Reserved);
        }
        let extents = match operation {
            Operation::Multiply => self.check_multiply(capabilities, has_bias)?,
            Operation::Copy => self.check_copy()?,
            Operation::Cancel => {
                let expected = Job { flags: self.flags, ..Job::cancel(self.target) };
                return if *self == expected { Ok(Extents::default()) } else { Err(Error::Reserved) };
            }
            operation => self.check_vector(operation, capabilities)?,
        };
        let Extents { weights, input, second, output } = extents;
        // Of a cache the check did more.
        let is_cache = operation == Operation::Attend;
        if output.overlaps(&input) || output.overlaps(&second) || (!is_cache && output.overlaps(&weights)) {
            return Err(Error::Overlap);
        }
        if extents.pages() > capabilities.pages_max.into() {
            return Err(Error::Limit);
        }
        Ok(extents)
    }

    fn check_multiply(&self, capabilities: &Capabilities, has_bias: bool) -> Result<Extents, Error> {
        let unused = u64::from(self.target) | self.second_stride | if has_bias { 0 } else { self.second };
        if unused != 0 || self.parameters != [0; 4] {
            return Err(Error::Reserved);
        }
        let offers = |mask: u64, number: u32| mask.checked_shr(number).is_some_and(|mask| mask & 1 != 0);
        if !offers(capabilities.formats, self.format)
            || !offers(capabilities.input_formats, self.input_format)
        {
            return Err(Error::Format);
        }
        let format = Format::of_weights(self.format).ok_or(Error::Format)?;
        let input_format = Format::of_input(self.input_format, format).ok_or(Error::Format)?;
        if self.rows == 0 || self.tokens == 0 {
            return Err(Error::Shape);
        }
        let weights_bytes = format.row_bytes(self.columns).ok_or(Error::Shape)?;
        let input_bytes = input_format.row_bytes(self.columns).ok_or(Error::Shape)?;
        let mut aligned = self.output | self.output_stride | self.second;
        if input_format == Format::F32 {
            aligned |= self.input | self.input_stride;
        }
        if !aligned.is_multiple_of(4) {
            return Err(Error::Alignment);
        }
        let elements = u64::from(self.columns).saturating_mul(self.tokens.into());
        if self.columns > capabilities.columns_max
            || self.tokens > capabilities.tokens_max
            || elements > capabilities.elements_max.into()
        {
            return Err(Error::Limit);
        }
        let output_bytes = u64::from(self.rows).saturating_mul(4);
        Ok(Extents {
            weights: Extent::new(self.weights, self.weights_stride, weights_bytes, self.rows)?,
            input: Extent::new(self.input, self.input_stride, input_bytes, self.tokens)?,
            second: if has_bias { Extent::new(self.second, 0, output_bytes, 1)? } else { Extent::default() },
            output: Extent::new(self.output, self.output_stride, output_bytes, self.tokens)?,
        })
    }

    fn check_copy(&self) -> Result<Extents, Error> {
        let unused = u64::from(self.format | self.input_format | self.rows | self.target);
        let unused = unused | self.weights | self.weights_stride | self.second | self.second_stride;
        if unused != 0 || self.parameters != [0; 4] {
            return Err(Error::Reserved);
        }
        if self.columns == 0 || self.tokens == 0 {
            return Err(Error::Shape);
        }
        Ok(Extents {
            input: Extent::new(self.input, self.input_stride, self.columns.into(), self.tokens)?,
            output: Extent::new(self.output, self.output_stride, self.columns.into(), self.tokens)?,
            ..Extents::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Capabilities = Capabilities::MOST;

    fn job() -> Job {
        let matrix = Matrix { format: 8, rows: 64, columns: 256, iova: 0x10_0001, stride: 272 };
        Job::multiply(
            matrix,
            4,
            0,
            Rows { iova: 0x20_0000, stride: 1024 },
            Rows { iova: 0x30_0000, stride: 256 },
        )
    }

    fn refused(change: impl FnOnce(&mut Job)) -> Error {
        let mut job = job();
        change(&mut job);
        job.check(&LIMITS).unwrap_err()
    }

    #[test]
    fn valid_jobs_say_what_they_touch() {
        let extents = job().fenced().check(&LIMITS).unwrap();
        assert_eq!(extents.weights.bytes(), 64 * 272);
        assert_eq!((extents.weights.pages(), extents.input.pages(), extents.output.pages()), (5, 1, 1));
        assert_eq!(extents.output.row(3), 0x30_0300);
        let copy = Job::copy(10, 2, Rows { iova: 1, stride: 10 }, Rows { iova: 21, stride: 11 });
        assert_eq!(copy.check(&LIMITS).unwrap().pages(), 2);
        assert_eq!(Job::cancel(7).check(&LIMITS), Ok(Extents::default()));
    }

    #[test]
    fn each_defect_is_refused_by_its_name() {
        assert_eq!(refused(|job| job.operation = 0), Error::Operation);
        assert_eq!(refused(|job| job.flags = 4), Error::Reserved);
        assert_eq!(refused(|job| job.target = 1), Error::Reserved);
        assert_eq!(refused(|job| job.format = 9), Error::Format);
        assert_eq!(refused(|job| job.format = 64), Error::Format);
        assert_eq!(refused(|job| job.input_format = 15), Error::Format);
        assert_eq!(refused(|job| job.rows = 0), Error::Shape);
        assert_eq!(refused(|job| job.tokens = 0), Error::Shape);
        assert_eq!(refused(|job| job.columns = 255), Error::Shape);
        assert_eq!(refused(|job| job.columns = 0), Error::Shape);
        assert_eq!(refused(|job| job.weights_stride = 271), Error::Stride);
        assert_eq!(refused(|job| job.output_stride = 252), Error::Stride);
        assert_eq!(refused(|job| job.output += 2), Error::Alignment);
        assert_eq!(refused(|job| job.input_stride += 1), Error::Alignment);
        assert_eq!(refused(|job| job.weights = u64::MAX - 100), Error::Range);
        assert_eq!(refused(|job| job.weights_stride = u64::MAX / 2), Error::Range);
        assert_eq!(refused(|job| job.columns = 512), Error::Stride);
        assert_eq!(refused(|job| job.columns = 1 << 18), Error::Limit);
        assert_eq!(refused(|job| (job.tokens, job.input) = (4097, 1 << 40)), Error::Limit);
        let huge = |job: &mut Job| (job.rows, job.output_stride, job.weights) = (1 << 20, 4 << 20, 1 << 40);
        assert_eq!(refused(huge), Error::Limit);
    }

    #[test]
    fn outputs_overlap_no_input() {
        for (output, valid) in [
            (0x20_0000, false),
            (0x20_0000 + 4 * 1024, true),
            (0x20_0000 - 4 * 256, true),
            (0x20_0000 - 4 * 256 + 4, false),
            (0x10_0000, false),
            (0x10_0000 + 64 * 272, false),
            (0x10_0004 + 64 * 272, true),
        ] {
            let result = Job { output, ..job() }.check(&LIMITS);
            assert_eq!(result.is_ok(), valid, "{output:#x} {result:?}");
        }
    }

    #[test]
    fn rows_far_apart_count_by_the_page() {
        // Every stride lands in another page, but there are few rows.
        let extents = Job { output_stride: 1 << 30, ..job() }.check(&LIMITS).unwrap();
        assert_eq!(extents.output.pages(), 8);
        // One row needs no stride.
        Job { tokens: 1, input_stride: 0, output_stride: 0, ..job() }.check(&LIMITS).unwrap();
    }

    #[test]
    fn unused_fields_are_zero() {
        let copy = Job::copy(16, 1, Rows { iova: 0, stride: 0 }, Rows { iova: 16, stride: 0 });
        assert!(copy.check(&LIMITS).is_ok());
        assert_eq!(Job { weights: 1, ..copy }.check(&LIMITS), Err(Error::Reserved));
        assert_eq!(Job { rows: 1, ..Job::cancel(3) }.check(&LIMITS), Err(Error::Reserved));
    }
}
