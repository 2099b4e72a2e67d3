//! Keys and values of a context, in chunks of 16 tokens.

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KvFormat {
    /// 4 bytes per element.
    F32,
    /// 2 bytes per element.
    F16,
}
