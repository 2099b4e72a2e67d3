//! Errors, each naming the guilty part of the file or request.

use core::fmt;

/// The crate's result.
pub type Result<T> = core::result::Result<T, Error>;

/// A name out of an untrusted file, cut to [`Name::MAX`] bytes so that errors need no allocation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Name {
    len: u8,
    bytes: [u8; Name::MAX],
}

impl Name {
    /// Most bytes kept; GGUF limits tensor names to 64 bytes.
    pub const MAX: usize = 64;

    /// Copies the first [`Name::MAX`] bytes of `name`.
    pub fn new(name: &[u8]) -> Self {
        let len = name.len().min(Self::MAX);
        let mut bytes = [0; Self::MAX];
        bytes[..len].copy_from_slice(&name[..len]);
        Name { len: len as u8, bytes }
    }

    /// Formats a name; what does not fit is cut.
    pub(crate) fn format(arguments: fmt::Arguments<'_>) -> Self {
        let mut name = Name::new(b"");
        // Cutting is the only error, and intended.
        let _ = fmt::write(&mut name, arguments);
        name
    }

    /// The name as text; empty if it is not UTF-8, as one out of a file may not be.
    pub(crate) fn as_str(&self) -> &str {
        core::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    /// The bytes kept.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&self.bytes)
    }
}

impl fmt::Write for Name {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let used = usize::from(self.len);
        let room = self.bytes.get_mut(used..).unwrap_or_default();
        let count = text.len().min(room.len());
        for (to, from) in room.iter_mut().zip(text.as_bytes()) {
            *to = *from;
        }
        self.len = (used + count) as u8;
        Ok(())
    }
}

impl From<&str> for Name {
    fn from(name: &str) -> Self {
        Name::new(name.as_bytes())
    }
}

impl fmt::Display for Name {
    /// Escapes what is not printable ASCII: the name may end up in a terminal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.as_bytes().escape_ascii())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Why a model or a request was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The first four bytes are not `GGUF`.
    Magic,
    /// The container's version is neither 2 nor 3 in little-endian order.
    Version(u32),
    /// The file ends inside the named part, which starts at byte `offset`.
    Truncated {
        /// What was being read.
        part: &'static str,
        /// Where that part starts, in bytes from the start of the file.
        offset: usize,
    },
    /// The file declares more of something than the caller's [`crate::Limits`] or the format allows.
    TooMany {
        /// What is counted.
        what: &'static str,
        /// The count in the file.
        count: u64,
        /// The most allowed.
        limit: u64,
    },
    /// A metadata key-value pair is at fault.
    Key {
        /// The key.
        key: Name,
        /// What is wrong with it.
        fault: KeyFault,
    },
    /// A tensor is at fault.
    Tensor {
        /// The tensor's name.
        name: Name,
        /// What is wrong with it.
        fault: TensorFault,
    },
    /// The file asks for something that this engine does not implement.
    Unsupported {
        /// The kind of thing: "architecture", "tokenizer", ...
        what: &'static str,
        /// Its name in the file.
        name: Name,
    },
    /// A vocabulary entry is at fault.
    Token {
        /// The token's id.
        id: u32,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// An allocation would exceed the caller's limit.
    MemoryLimit {
        /// Bytes asked for.
        bytes: usize,
        /// The caller's limit.
        limit: usize,
    },
    /// The heap could not serve an allocation.
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
    },
    /// A request or session parameter is out of range.
    Parameter {
        /// The parameter.
        name: &'static str,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// A JSON schema is malformed or asks for something that is not supported.
    Schema {
        /// Where, in bytes from its start.
        offset: usize,
        /// The keyword or part at fault; never text of the schema itself.
        what: &'static str,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// The prompt gives no token at all.
    EmptyPrompt,
    /// The tokens do not fit into what is left of the context.
    ContextFull {
        /// Tokens needed.
        tokens: usize,
        /// Tokens left.
        left: usize,
    },
    /// A token id is not in the vocabulary.
    UnknownToken(u32),
    /// The model produced logits that are not numbers, so there is nothing to choose from.
    Logits,
}

/// What is wrong with a metadata key-value pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyFault {
    /// The file lacks it and there is no default.
    Missing,
    /// It occurs twice.
    Duplicate,
    /// The key is not UTF-8.
    NotUtf8,
    /// The value type is not one that GGUF defines.
    UnknownType(u32),
    /// The value has another type than the key asks for.
    WrongType,
    /// Arrays are nested deeper than the engine follows.
    Nested,
    /// The array's length is not the vocabulary's (or another length it must match).
    Length {
        /// Elements in the file.
        found: u64,
        /// Elements needed.
        expected: u64,
    },
    /// The number is outside what the engine or the format allows.
    OutOfRange(u64),
    /// The floating-point number is not finite or not positive.
    BadNumber,
}

/// What is wrong with a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TensorFault {
    /// The architecture needs it and the file lacks it.
    Missing,
    /// Its name occurs twice.
    Duplicate,
    /// Its name is not UTF-8, is empty, or exceeds 64 bytes.
    BadName,
    /// Its type is one this engine does not compute with (the number is ggml's).
    UnsupportedType(u32),
    /// It has no or more than four dimensions.
    DimensionCount(u32),
    /// A dimension is zero, or their product or size in bytes overflows.
    Dimensions,
    /// The row length is not a multiple of the type's block.
    RowLength {
        /// Elements per row.
        row: u64,
        /// Elements per block.
        block: u64,
    },
    /// Its offset is not a multiple of the file's alignment.
    Misaligned(u64),
    /// It reaches past the end of the file.
    OutOfFile {
        /// Offset within the tensor data, in bytes.
        offset: u64,
        /// Size in bytes.
        size: u64,
    },
    /// It shares bytes with another tensor; its offset within the tensor data.
    Overlaps(u64),
    /// Its shape is not the one that the hyperparameters imply (innermost dimension first).
    Shape {
        /// Dimensions in the file.
        found: [u64; 2],
        /// Dimensions needed.
        expected: [u64; 2],
    },
    /// A vector whose type is not F32.
    VectorType,
    /// The architecture has no such tensor; computing without it would silently give wrong answers.
    Unused,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Magic => write!(f, "not a GGUF file"),
            Error::Version(version) if (1..=3).contains(&version.swap_bytes()) => {
                write!(f, "big-endian GGUF files are not supported")
            }
            Error::Version(version) => write!(f, "GGUF version {version} is not supported (2 and 3 are)"),
            Error::Truncated { part, offset } => write!(f, "file ends inside {part} at byte {offset}"),
            Error::TooMany { what, count, limit } => write!(f, "{count} {what}, at most {limit} are allowed"),
            Error::Key { key, fault } => write!(f, "key {key}: {fault}"),
            Error::Tensor { name, fault } => write!(f, "tensor {name}: {fault}"),
            Error::Unsupported { what, name } => write!(f, "{what} {name} is not supported"),
            Error::Token { id, fault } => write!(f, "token {id}: {fault}"),
            Error::MemoryLimit { bytes, limit } => {
                write!(f, "{bytes} bytes more would exceed the memory limit of {limit} bytes")
            }
            Error::OutOfMemory { bytes } => write!(f, "out of memory allocating {bytes} bytes"),
            Error::Parameter { name, fault } => write!(f, "parameter {name}: {fault}"),
            Error::Schema { offset, what, fault } => write!(f, "JSON schema, byte {offset}: {what} {fault}"),
            Error::EmptyPrompt => write!(f, "the prompt is empty"),
            Error::ContextFull { tokens, left } => {
                write!(f, "{tokens} tokens do not fit into the {left} left of the context")
            }
            Error::UnknownToken(id) => write!(f, "token {id} is not in the vocabulary"),
            Error::Logits => write!(f, "the model's logits are not numbers"),
        }
    }
}

impl core::error::Error for Error {}

impl fmt::Display for KeyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyFault::Missing => write!(f, "missing"),
            KeyFault::Duplicate => write!(f, "occurs twice"),
            KeyFault::NotUtf8 => write!(f, "not UTF-8"),
            KeyFault::UnknownType(ty) => write!(f, "value type {ty} is not defined"),
            KeyFault::WrongType => write!(f, "value has the wrong type"),
            KeyFault::Nested => write!(f, "nested arrays are not supported"),
            KeyFault::Length { found, expected } => write!(f, "{found} elements instead of {expected}"),
            KeyFault::OutOfRange(value) => write!(f, "value {value} is out of range"),
            KeyFault::BadNumber => write!(f, "value is not a usable number"),
        }
    }
}

impl fmt::Display for TensorFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TensorFault::Missing => write!(f, "missing"),
            TensorFault::Duplicate => write!(f, "occurs twice"),
            TensorFault::BadName => write!(f, "bad name"),
            TensorFault::UnsupportedType(number) => match type_name(*number) {
                Some(name) => write!(f, "type {name} is not supported"),
                None => write!(f, "type {number} is not supported"),
            },
            TensorFault::DimensionCount(count) => write!(f, "{count} dimensions instead of 1 to 4"),
            TensorFault::Dimensions => write!(f, "dimensions are zero or too large"),
            TensorFault::RowLength { row, block } => {
                write!(f, "row of {row} elements is not a multiple of the block of {block}")
            }
            TensorFault::Misaligned(offset) => write!(f, "offset {offset} is not aligned"),
            TensorFault::OutOfFile { offset, size } => {
                write!(f, "{size} bytes at offset {offset} reach past the end of the file")
            }
            TensorFault::Overlaps(offset) => write!(f, "overlaps another tensor at offset {offset}"),
            TensorFault::Shape { found: [fc, fr], expected: [ec, er] } => {
                write!(f, "shape {fc}x{fr} instead of {ec}x{er}")
            }
            TensorFault::VectorType => write!(f, "not F32, as vectors must be"),
            TensorFault::Unused => write!(f, "not part of this architecture"),
        }
    }
}

/// What ggml calls the tensor types that the engine does not compute with.
fn type_name(number: u32) -> Option<&'static str> {
    Some(match number {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        40 => "NVFP4",
        _ => return None,
    })
}
