//! Output that is valid by construction: a JSON schema decides, token by token, what a model may say.
//!
//! [`Grammar::from_schema`] compiles a schema. A [`Matcher`] follows the text; at every step it knows the tokens after which the
//! text is still the beginning of a valid one. The others are not chosen, whatever their logits, and an answer can only end
//! where it is valid. (An answer cut off by the token limit or the context is a beginning.) A [`TokenIndex`] keeps the
//! vocabulary in an order in which most tokens are passed over without being looked at.
//!
//! # What is written
//! One JSON value without space outside strings, members in the order of the schema's `properties`. Strings are UTF-8, escapes
//! included, and never hold half a surrogate pair. Numbers have at most 16 digits before and after the point and an exponent of
//! at most 2: all are finite. At most [`NESTING_MAX`] arrays and objects inside each other.
//!
//! # What is understood
//! `type` (a name or several), `properties`, `required`, `additionalProperties`, `items`, `minItems`, `maxItems`, `minLength`,
//! `maxLength`, `enum`, `const`, `anyOf`, `oneOf` (if no value can satisfy two branches), `allOf` of one schema, `$ref` within
//! the schema (recursive ones too), `true`, `false`, and for integers `minimum`, `maximum`, `exclusiveMinimum`,
//! `exclusiveMaximum`. `title`, `description`, `default`, `format` and the like demand nothing. What else is known from JSON
//! schema, `pattern` for one, is refused, as are keywords that nobody knows.
//!
//! A text never has members beyond those named in `properties` and `required`, even where the schema permits them; an object
//! without either may have any, with values of `additionalProperties`. A schema `{}` asks for an object, as in llama.cpp; inside
//! another it allows any value.
//!
//! # Bounds
//! A schema has at most [`SCHEMA_BYTES_MAX`] bytes, a value at most [`ALTERNATIVES_MAX`] alternatives. Compiling does not
//! recurse. Following takes a fixed amount of memory, allocated at the start: at most [`ALTERNATIVES_MAX`] ways to
//! understand the text are kept; of ambiguous schemas that exceed that, valid texts may become unreachable, never invalid ones
//! reachable.

mod check;
mod index;
mod json;
mod machine;
mod matcher;
mod rule;
mod scalar;
mod schema;
mod stack;
mod token_set;

pub use index::TokenIndex;
pub use matcher::Matcher;
pub use rule::{Grammar, NESTING_MAX};
pub use token_set::TokenSet;

use crate::Result;

/// Longest schema in bytes.
pub const SCHEMA_BYTES_MAX: usize = 16 << 10;
/// The most alternatives for one value: branches of `anyOf`, and optional members in a row.
pub const ALTERNATIVES_MAX: usize = 128;

/// A grammar to follow, and the vocabulary to follow it with.
#[derive(Clone, Copy, Debug)]
pub struct Constraint<'c> {
    /// What is valid.
    pub grammar: &'c Grammar,
    /// The model's vocabulary.
    pub index: &'c TokenIndex,
}

impl Grammar {
    /// Compiles a JSON schema. `memory_limit` bounds the bytes that reading it takes: a mebibyte is enough for every schema.
    ///
    /// # Errors
    /// [`crate::Error::Schema`] naming the place and the keyword, [`crate::Error::TooMany`], and those of allocation.
    pub fn from_schema(schema: &str, memory_limit: usize) -> Result<Self> {
        schema::compile(schema, memory_limit)
    }
}
