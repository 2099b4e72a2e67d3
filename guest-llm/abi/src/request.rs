//! The payload of a REQUEST frame: a fixed part, then texts.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// [`Request::version`] of this layout. A number that no field of an older one is likely to have in its place.
pub const REQUEST_VERSION: u32 = 0x5251_0004;
/// The most stop strings.
pub const STOP_COUNT_MAX: usize = 16;
/// Longest JSON schema in bytes.
pub const SCHEMA_BYTES_MAX: usize = 16 << 10;
/// Longest system text in bytes.
pub const SYSTEM_BYTES_MAX: usize = 16 << 10;

/// The fixed part. The texts follow without padding: system text, JSON schema, stop strings (each after its length as u16), and
/// the prompt, which takes the rest. All are UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Request {
    /// [`REQUEST_VERSION`].
    pub version: u32,
    /// Bits: [`REQUEST_RAW`] and those after it.
    pub flags: u32,
    /// Most tokens of the answer.
    pub max_tokens: u32,
    /// Context length in tokens; 0: the model's own.
    pub context: u32,
    /// Sampler seed.
    pub seed: u64,
    /// Temperature as f32 bits; 0 is greedy.
    pub temperature: u32,
    /// Keeps that many of the likeliest tokens; 0: all.
    pub top_k: u32,
    /// Keeps the likeliest tokens up to this sum, as f32 bits; 1: all.
    pub top_p: u32,
    /// Keeps tokens that are so likely, relative to the likeliest, as f32 bits; 0: all.
    pub min_p: u32,
    /// Repetition penalty as f32 bits; 1: none.
    pub repeat_penalty: u32,
    /// Tokens back that it looks.
    pub repeat_last_n: u32,
    /// Bytes of the system text.
    pub system_bytes: u32,
    /// Bytes of the JSON schema; 0: none.
    pub schema_bytes: u32,
    /// Bytes of all stop strings, lengths included.
    pub stop_bytes: u32,
    /// How keys and values are stored, one of [`cache`].
    pub cache: u32,
    /// With [`REQUEST_SHIFT`]: so many first tokens of a full context are not forgotten. Else 0.
    pub keep: u32,
    /// Zero.
    pub reserved: u32,
}
const _: () = assert!(size_of::<Request>() == 72);

/// Formats of keys and values ([`Request::cache`]).
pub mod cache {
    /// What the partition thinks best.
    pub const DEFAULT: u32 = 0;
    /// 4 bytes per element.
    pub const F32: u32 = 1;
    /// 2 bytes per element.
    pub const F16: u32 = 2;
    /// 34 bytes per 32 elements.
    pub const Q8_0: u32 = 3;
}

/// [`Request::flags`]: raw completion, no request template. Independent of all requests before.
pub const REQUEST_RAW: u32 = 1;
/// [`Request::flags`]: the user's next turn of the conversation that the partition keeps, in the model's chat template. A
/// request without it is independent, and ends the conversation, as does another context length, cache format or shift.
pub const REQUEST_CHAT: u32 = 2;
/// [`Request::flags`]: there is a system text, though maybe an empty one, in place of the template's own.
pub const REQUEST_SYSTEM: u32 = 4;
/// [`Request::flags`]: the model is to think before it answers.
pub const REQUEST_THINK: u32 = 8;
/// [`Request::flags`]: it is not to. With neither, as its template does by itself.
pub const REQUEST_NO_THINK: u32 = 16;
/// [`Request::flags`]: when the context is full, the oldest half of it is forgotten, and the answer goes on.
pub const REQUEST_SHIFT: u32 = 32;
/// [`Request::flags`]: the NPU is not to be used.
pub const REQUEST_NO_NPU: u32 = 64;
const KNOWN_FLAGS: u32 = REQUEST_RAW
    | REQUEST_CHAT
    | REQUEST_SYSTEM
    | REQUEST_THINK
    | REQUEST_NO_THINK
    | REQUEST_SHIFT
    | REQUEST_NO_NPU;

impl Default for Request {
    /// Greedy, without filters and texts.
    fn default() -> Self {
        Request {
            version: REQUEST_VERSION,
            flags: 0,
            max_tokens: 0,
            context: 0,
            seed: 0,
            temperature: 0,
            top_k: 0,
            top_p: 1f32.to_bits(),
            min_p: 0,
            repeat_penalty: 1f32.to_bits(),
            repeat_last_n: 0,
            system_bytes: 0,
            schema_bytes: 0,
            stop_bytes: 0,
            cache: cache::DEFAULT,
            keep: 0,
            reserved: 0,
        }
    }
}

/// A request taken apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parts<'p> {
    /// The fixed part, its flags checked.
    pub request: Request,
    /// The system text, if there is one.
    pub system: Option<&'p str>,
    /// The JSON schema, if there is one.
    pub schema: Option<&'p str>,
    /// The prompt.
    pub prompt: &'p str,
    stops: &'p [u8],
}

/// Takes a payload apart. Numbers other than lengths are not checked.
///
/// # Errors
/// What is wrong with it.
pub fn parse_request(payload: &[u8]) -> Result<Parts<'_>, &'static str> {
    let (request, rest) = Request::read_from_prefix(payload).map_err(|_| "the request is too short")?;
    if request.version != REQUEST_VERSION {
        return Err("the request is of another version of the protocol");
    }
    let both = |a, b| request.flags & (a | b) == a | b;
    if request.flags & !KNOWN_FLAGS != 0 || request.reserved != 0 {
        return Err("the request has unknown flags");
    }
    if both(REQUEST_RAW, REQUEST_CHAT) || both(REQUEST_THINK, REQUEST_NO_THINK) {
        return Err("the request has flags that exclude each other");
    }
    if request.flags & REQUEST_SHIFT == 0 && request.keep != 0 {
        return Err("the request keeps tokens of a context that forgets none");
    }
    if request.cache > cache::Q8_0 {
        return Err("the request has an unknown format of keys and values");
    }
    if request.schema_bytes as usize > SCHEMA_BYTES_MAX || request.system_bytes as usize > SYSTEM_BYTES_MAX {
        return Err("the schema or the system text is too long");
    }
    let has_system = request.flags & REQUEST_SYSTEM != 0;
    if !has_system && request.system_bytes > 0 {
        return Err("the request has a system text and says that it has none");
    }
    let cut = |rest: &'_ [u8], bytes: u32| -> Result<usize, &'static str> {
        if rest.len() < bytes as usize {
            Err("the request's texts are longer than it is")
        } else {
            Ok(bytes as usize)
        }
    };
    let (system, rest) = rest.split_at(cut(rest, request.system_bytes)?);
    let (schema, rest) = rest.split_at(cut(rest, request.schema_bytes)?);
    let (stops, prompt) = rest.split_at(cut(rest, request.stop_bytes)?);
    let text = |bytes| core::str::from_utf8(bytes).map_err(|_| "a text of the request is not UTF-8");
    let parts = Parts {
        request,
        system: Some(text(system)?).filter(|_| has_system),
        schema: Some(text(schema)?).filter(|schema| !schema.is_empty()),
        prompt: text(prompt)?,
        stops,
    };
    let mut left = stops;
    let mut count = 0;
    while let Some((_, rest)) = next_stop(left) {
        left = rest;
        count += 1;
    }
    if !left.is_empty() {
        return Err("the stop strings are malformed");
    }
    if count > STOP_COUNT_MAX {
        return Err("the request has too many stop strings");
    }
    Ok(parts)
}

/// The first stop string of a list, and the rest.
fn next_stop(list: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = list.split_first_chunk()?;
    let (text, rest) = rest.split_at_checked(u16::from_le_bytes(*length).into())?;
    Some((core::str::from_utf8(text).ok()?, rest))
}

impl<'p> Parts<'p> {
    /// The stop strings, at most [`STOP_COUNT_MAX`].
    pub fn stops(&self) -> impl Iterator<Item = &'p str> {
        let mut left = self.stops;
        core::iter::from_fn(move || {
            let (text, rest) = next_stop(left)?;
            left = rest;
            Some(text)
        })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    fn whole(request: Request, texts: &[&[u8]]) -> Vec<u8> {
        [request.as_bytes(), &texts.concat()].concat()
    }

    const TEXTS: [&[u8]; 5] = [b"be kind", b"{}", b"\x02\0ab\x03\0\xe6\xb0\xb4", b"wake", b" me"];

    fn full() -> Request {
        Request {
            flags: REQUEST_CHAT | REQUEST_SYSTEM | REQUEST_NO_THINK,
            system_bytes: 7,
            schema_bytes: 2,
            stop_bytes: 9,
            max_tokens: 5,
            ..Request::default()
        }
    }

    #[test]
    fn the_texts_are_found() {
        let bytes = whole(full(), &TEXTS);
        let parts = parse_request(&bytes).unwrap();
        assert_eq!((parts.system, parts.schema, parts.prompt), (Some("be kind"), Some("{}"), "wake me"));
        assert_eq!(parts.stops().collect::<Vec<_>>(), ["ab", "水"]);
        assert_eq!(parts.request, full());
        let bytes = whole(Request::default(), &[b"x"]);
        let parts = parse_request(&bytes).unwrap();
        assert_eq!((parts.system, parts.schema, parts.prompt, parts.stops().count()), (None, None, "x", 0));
        // An empty system text is one.
        let bytes = whole(Request { flags: REQUEST_SYSTEM, ..Request::default() }, &[]);
        assert_eq!(parse_request(&bytes).unwrap().system, Some(""));
    }

    #[test]
    fn malformed_requests_are_refused() {
        let with = |change: fn(&mut Request)| {
            let mut request = full();
            change(&mut request);
            parse_request(&whole(request, &TEXTS)).unwrap_err()
        };
        assert!(with(|request| request.version = 1).contains("version"));
        assert!(with(|request| request.flags |= 128).contains("unknown"));
        assert!(with(|request| request.keep = 1).contains("forgets none"));
        assert!(with(|request| request.cache = 4).contains("unknown format"));
        assert!(with(|request| request.reserved = 1).contains("unknown"));
        assert!(with(|request| request.flags |= REQUEST_RAW).contains("exclude"));
        assert!(with(|request| request.flags |= REQUEST_THINK).contains("exclude"));
        assert!(with(|request| request.flags &= !REQUEST_SYSTEM).contains("says that it has none"));
        assert!(with(|request| request.system_bytes = u32::MAX).contains("too long"));
        assert!(with(|request| request.schema_bytes = SCHEMA_BYTES_MAX as u32 + 1).contains("too long"));
        assert!(with(|request| request.stop_bytes = u32::MAX).contains("longer than it is"));
        assert!(with(|request| request.stop_bytes = 8).contains("UTF-8"));
        assert!(with(|request| request.stop_bytes = 10).contains("malformed"));
        // It ends inside a character.
        assert!(with(|request| request.schema_bytes = 9).contains("UTF-8"));
        assert!(parse_request(&[0; 71]).unwrap_err().contains("too short"));
        assert!(parse_request(&whole(Request::default(), &[b"\xff"])).unwrap_err().contains("UTF-8"));
        let many = b"\0\0".repeat(STOP_COUNT_MAX + 1);
        let request = Request { stop_bytes: many.len() as u32, ..Request::default() };
        assert!(parse_request(&whole(request, &[&many])).unwrap_err().contains("too many"));
        // The layout before this one: 24 bytes, the count of tokens first.
        assert!(parse_request(&[&[12][..], &[0; 200]].concat()).unwrap_err().contains("version"));
    }
}
