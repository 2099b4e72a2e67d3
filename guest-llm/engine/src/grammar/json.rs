//! Reads JSON text into a flat list of values, without recursion and within a budget.
//!
//! Values stand in the order of the text, a container before what is in it; each knows where what follows it begins. Texts
//! come from whoever asks: nesting is bounded, names that occur twice are refused.

use alloc::vec::Vec;
use core::ops::Range;

use crate::budget::Budget;
use crate::{Error, Result};

/// A value's position in the list.
pub type Index = usize;
/// Containers inside each other.
const NESTING_MAX: usize = 64;

/// What kind of value it is.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    Null,
    Bool(bool),
    /// Its place in the source.
    Number(Range<usize>),
    /// Its place among the strings.
    String(Range<usize>),
    Array,
    /// Names and values alternate.
    Object,
}

#[derive(Clone, Debug)]
struct Value {
    kind: Kind,
    /// Where it begins in the source.
    offset: usize,
    /// The value behind it and all that is in it.
    next: Index,
}

/// A text that was read.
#[derive(Debug)]
pub struct Json<'t> {
    source: &'t str,
    values: Vec<Value>,
    strings: Vec<u8>,
}

/// What may come next.
#[derive(Clone, Copy, PartialEq)]
enum Expect {
    Value,
    ValueOrEnd,
    Name,
    NameOrEnd,
    /// A comma, or the end of the container.
    Next,
}

pub(super) fn error(offset: usize, what: &'static str, fault: &'static str) -> Error {
    Error::Schema { offset, what, fault }
}

impl<'t> Json<'t> {
    /// Reads `source`, which holds one value.
    pub fn parse(source: &'t str, budget: &mut Budget) -> Result<Self> {
        // A value takes a byte and what separates it from the next another; escapes only get shorter.
        let values = budget.reserve(source.len() / 2 + 1)?;
        let strings = budget.reserve(source.len())?;
        let mut json = Json { source, values, strings };
        json.read()?;
        Ok(json)
    }

    fn read(&mut self) -> Result<()> {
        let mut open = Budget::new(usize::MAX).reserve::<Index>(NESTING_MAX)?;
        let mut at = 0;
        let mut expect = Expect::Value;
        loop {
            at = self.skip_space(at);
            let byte = self.byte(at).ok_or(error(at, "the text", "ends too early"))?;
            let container = open.last().copied();
            let is_object =
                |json: &Self| container.is_some_and(|index| json.kind(index) == Some(&Kind::Object));
            match (expect, byte) {
                (Expect::ValueOrEnd | Expect::Next, b']') if container.is_some() && !is_object(self) => {
                    (at, expect) = (at + 1, self.close(&mut open));
                }
                (Expect::NameOrEnd | Expect::Next, b'}') if is_object(self) => {
                    (at, expect) = (at + 1, self.close(&mut open));
                }
                (Expect::Next, b',') if container.is_some() => {
                    at += 1;
                    expect = if is_object(self) { Expect::Name } else { Expect::Value };
                }
                (Expect::Name | Expect::NameOrEnd, b'"') => {
                    let offset = at;
                    at = self.string(at)?;
                    self.refuse_second(container.unwrap_or_default(), offset)?;
                    at = self.skip_space(at);
                    if self.byte(at) != Some(b':') {
                        return Err(error(at, "a colon", "is missing"));
                    }
                    at += 1;
                    expect = Expect::Value;
                }
                (Expect::Value | Expect::ValueOrEnd, b'[' | b'{') => {
                    if open.len() == NESTING_MAX {
                        return Err(error(at, "the text", "is nested too deep"));
                    }
                    open.push(self.values.len());
                    let kind = if byte == b'[' { Kind::Array } else { Kind::Object };
                    self.push(kind, at);
                    at += 1;
                    expect = if byte == b'[' { Expect::ValueOrEnd } else { Expect::NameOrEnd };
                }
                (Expect::Value | Expect::ValueOrEnd, _) => {
                    at = self.scalar(at, byte)?;
                    expect = Expect::Next;
                }
                _ => return Err(error(at, "this character", "does not belong here")),
            }
            if open.is_empty() {
                let end = self.skip_space(at);
                let is_end = end == self.source.len();
                return if is_end { Ok(()) } else { Err(error(end, "the text", "goes on after its end")) };
            }
        }
    }

    fn byte(&self, at: usize) -> Option<u8> {
        self.source.as_bytes().get(at).copied()
    }

    fn skip_space(&self, at: usize) -> usize {
        let rest = self.source.as_bytes().get(at..).unwrap_or_default();
        at + rest.iter().take_while(|byte| b" \t\r\n".contains(byte)).count()
    }

    fn push(&mut self, kind: Kind, offset: usize) {
        let next = self.values.len() + 1;
        self.values.push(Value { kind, offset, next });
    }

    /// Closes the innermost container.
    fn close(&mut self, open: &mut Vec<Index>) -> Expect {
        let end = self.values.len();
        if let Some(value) = open.pop().and_then(|index| self.values.get_mut(index)) {
            value.next = end;
        }
        Expect::Next
    }

    /// Reads a value that is no container; returns where it ends.
    fn scalar(&mut self, at: usize, byte: u8) -> Result<usize> {
        let rest = self.source.get(at..).unwrap_or_default();
        for (word, kind) in [("null", Kind::Null), ("true", Kind::Bool(true)), ("false", Kind::Bool(false))] {
            if rest.starts_with(word) {
                self.push(kind, at);
                return Ok(at + word.len());
            }
        }
        match byte {
            b'"' => self.string(at),
            b'-' | b'0'..=b'9' => {
                let length =
                    number_length(rest.as_bytes()).ok_or(error(at, "this number", "is malformed"))?;
                let value: Option<f64> = rest.get(..length).and_then(|text| text.parse().ok());
                if !value.is_some_and(f64::is_finite) {
                    return Err(error(at, "this number", "is too large"));
                }
                let end = at + length;
                self.push(Kind::Number(at..end), at);
                Ok(end)
            }
            _ => Err(error(at, "this character", "does not belong here")),
        }
    }

    /// Reads a string; returns where it ends.
    fn string(&mut self, offset: usize) -> Result<usize> {
        let start = self.strings.len();
        let mut at = offset + 1;
        loop {
            let byte = self.byte(at).ok_or(error(offset, "this string", "does not end"))?;
            at += 1;
            match byte {
                b'"' => break,
                b'\\' => at = self.escape(at)?,
                0..=0x1f => return Err(error(at - 1, "a control character", "is not allowed in a string")),
                _ => self.strings.push(byte),
            }
        }
        self.push(Kind::String(start..self.strings.len()), offset);
        Ok(at)
    }

    /// Reads what follows a backslash.
    fn escape(&mut self, at: usize) -> Result<usize> {
        let malformed = error(at, "this escape", "is malformed");
        let byte = self.byte(at).ok_or(malformed.clone())?;
        let plain = match byte {
            b'"' | b'\\' | b'/' => byte,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let high = self.hexadecimal(at + 1).ok_or(malformed.clone())?;
                let (code, end) = match high {
                    0xd800..=0xdbff => {
                        let has_low = self.source.as_bytes().get(at + 5..at + 7) == Some(b"\\u");
                        let low = if has_low { self.hexadecimal(at + 7) } else { None };
                        let low = low.and_then(|low| low.checked_sub(0xdc00)).filter(|low| *low < 0x400);
                        let low = low.ok_or(malformed.clone())?;
                        (0x10000 + ((high - 0xd800) << 10) + low, at + 11)
                    }
                    _ => (high, at + 5),
                };
                let c = char::from_u32(code).ok_or(malformed)?;
                self.strings.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(end);
            }
            _ => return Err(malformed),
        };
        self.strings.push(plain);
        Ok(at + 1)
    }

    fn hexadecimal(&self, at: usize) -> Option<u32> {
        let digits = self.source.as_bytes().get(at..at + 4)?;
        digits.iter().try_fold(0, |sum, digit| Some(sum * 16 + char::from(*digit).to_digit(16)?))
    }

    /// Refuses the name read last if it occurred in `object` before.
    fn refuse_second(&self, object: Index, offset: usize) -> Result<()> {
        let last = self.values.len() - 1;
        let name = self.string_at(last);
        let mut index = object + 1;
        while index < last {
            if self.string_at(index) == name {
                return Err(error(offset, "this name", "occurs twice"));
            }
            // The value that belongs to the name, then the next name.
            index = self.next(index + 1);
        }
        Ok(())
    }

    /// The kind of a value.
    pub fn kind(&self, index: Index) -> Option<&Kind> {
        self.values.get(index).map(|value| &value.kind)
    }

    /// Where a value begins in the source.
    pub fn offset(&self, index: Index) -> usize {
        self.values.get(index).map_or(self.source.len(), |value| value.offset)
    }

    fn next(&self, index: Index) -> Index {
        self.values.get(index).map_or(usize::MAX, |value| value.next)
    }

    /// A string's text.
    pub fn string_at(&self, index: Index) -> Option<&str> {
        let Some(Kind::String(range)) = self.kind(index) else { return None };
        core::str::from_utf8(self.strings.get(range.clone())?).ok()
    }

    /// A number's text.
    pub fn number_at(&self, index: Index) -> Option<&'t str> {
        let Some(Kind::Number(range)) = self.kind(index) else { return None };
        self.source.get(range.clone())
    }

    /// What is in a container; in an object names and values.
    pub fn children(&self, index: Index) -> impl Iterator<Item = Index> + '_ {
        let end = self.next(index);
        let is_container = matches!(self.kind(index), Some(Kind::Array | Kind::Object));
        let first = Some(index + 1).filter(|first| is_container && *first < end);
        core::iter::successors(first, move |index| Some(self.next(*index)).filter(|next| *next < end))
    }

    /// Names and values of an object.
    pub fn members(&self, index: Index) -> impl Iterator<Item = (&str, Index)> + '_ {
        let is_object = self.kind(index) == Some(&Kind::Object);
        let names = self.children(index).step_by(2).filter(move |_| is_object);
        names.filter_map(|name| Some((self.string_at(name)?, name + 1)))
    }

    /// The member of an object with this name.
    pub fn member(&self, index: Index, name: &str) -> Option<Index> {
        self.members(index).find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    /// Appends a value as it is written without space.
    pub fn write(&self, index: Index, out: &mut Vec<u8>) -> Result<()> {
        let end = self.next(index);
        // Containers that are open: where they end, how, and whether the next value is a member's.
        let mut open: Vec<(Index, bool)> = Budget::new(usize::MAX).reserve(NESTING_MAX + 1)?;
        let mut is_value = false;
        for current in index..end {
            let opened =
                current > index && matches!(self.kind(current - 1), Some(Kind::Array | Kind::Object));
            let mut closed = false;
            while let Some((_, is_object)) = open.pop_if(|(end, _)| *end == current) {
                extend(out, if is_object { b"}" } else { b"]" })?;
                closed = true;
            }
            let in_object = open.last().is_some_and(|(_, is_object)| *is_object);
            let is_name = in_object && (!is_value || closed);
            if in_object && !is_name {
                extend(out, b":")?;
            } else if current > index && (!opened || closed) {
                extend(out, b",")?;
            }
            is_value = is_name;
            match self.kind(current) {
                Some(Kind::Null) | None => extend(out, b"null")?,
                Some(Kind::Bool(value)) => extend(out, if *value { b"true" } else { b"false" })?,
                Some(Kind::Number(_)) => {
                    extend(out, self.number_at(current).unwrap_or_default().as_bytes())?;
                }
                Some(Kind::String(_)) => write_string(self.string_at(current).unwrap_or_default(), out)?,
                Some(kind @ (Kind::Array | Kind::Object)) => {
                    let is_object = *kind == Kind::Object;
                    extend(out, if is_object { b"{" } else { b"[" })?;
                    open.push((self.next(current), is_object));
                    is_value = false;
                }
            }
        }
        while let Some((_, is_object)) = open.pop() {
            extend(out, if is_object { b"}" } else { b"]" })?;
        }
        Ok(())
    }
}

fn extend(out: &mut Vec<u8>, bytes: &[u8]) -> Result<()> {
    out.try_reserve(bytes.len()).map_err(|_| Error::OutOfMemory { bytes: bytes.len() })?;
    out.extend_from_slice(bytes);
    Ok(())
}

/// Appends a string with the escapes that it needs.
pub fn write_string(text: &str, out: &mut Vec<u8>) -> Result<()> {
    extend(out, b"\"")?;
    for byte in text.bytes() {
        let short = match byte {
            b'"' => b"\\\"",
            b'\\' => b"\\\\",
            8 => b"\\b",
            12 => b"\\f",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b'\t' => b"\\t",
            0..=0x1f => {
                let digit = |value: u8| if value < 10 { b'0' + value } else { b'a' + value - 10 };
                extend(out, &[b'\\', b'u', b'0', b'0', digit(byte >> 4), digit(byte & 15)])?;
                continue;
            }
            _ => {
                extend(out, &[byte])?;
                continue;
            }
        };
        extend(out, short)?;
    }
    extend(out, b"\"")
}

/// Length of the number at the start of `text`, if it is one.
fn number_length(text: &[u8]) -> Option<usize> {
    let digits = |from: usize| {
        let rest = text.get(from..).unwrap_or_default();
        from + rest.iter().take_while(|byte| byte.is_ascii_digit()).count()
    };
    let at = |index: usize| text.get(index).copied();
    let start = usize::from(at(0) == Some(b'-'));
    let mut end = if at(start) == Some(b'0') { start + 1 } else { digits(start) };
    if end == start {
        return None;
    }
    if at(end) == Some(b'.') {
        let fraction = digits(end + 1);
        end = Some(fraction).filter(|fraction| *fraction > end + 1)?;
    }
    if matches!(at(end), Some(b'e' | b'E')) {
        let first = end + 1 + usize::from(matches!(at(end + 1), Some(b'+' | b'-')));
        end = Some(digits(first)).filter(|exponent| *exponent > first)?;
    }
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::String;

    fn compact(text: &str) -> core::result::Result<String, Error> {
        let json = Json::parse(text, &mut Budget::new(1 << 20))?;
        let mut out = Vec::new();
        json.write(0, &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn what_is_read_is_what_serde_json_reads() {
        let good = [
            "null",
            " true ",
            "[]",
            "{}",
            "[[],{}]",
            "[1,-0.5e+3,0,10]",
            r#"{"a":{"b":[1,{"c":2},[]],"d":{}},"e":"f"}"#,
            r#"[{"a":1},{"b":[2,3]},"x"]"#,
            r#""\"\\\/\b\f\n\r\t\u0041\u00e9\ud83e\udd99é水\u0001""#,
            "\n[ 1 ,\t2 ]\r",
        ];
        for text in good {
            let expected: serde_json::Value = serde_json::from_str(text).unwrap();
            let written = compact(text).unwrap();
            assert_eq!(serde_json::from_str::<serde_json::Value>(&written).unwrap(), expected, "{written}");
            assert!(!written.contains([' ', '\n']), "{written}");
        }
        assert_eq!(
            compact(r#"{ "b" : [ 1 , { } ] , "a" : "\u00e9\u0001" }"#).unwrap(),
            "{\"b\":[1,{}],\"a\":\"é\\u0001\"}"
        );
    }

    #[test]
    fn malformed_texts_are_refused() {
        let bad = [
            "",
            " ",
            "nul",
            "[",
            "]",
            "[1",
            "[1,",
            "[1,]",
            "[,]",
            "{",
            "{1:2}",
            r#"{"a"}"#,
            r#"{"a":}"#,
            r#"{"a":1,}"#,
            r#"{"a":1 "b":2}"#,
            "[1 2]",
            "1 2",
            "01",
            "-",
            "1.",
            "1.e2",
            "1e",
            "+1",
            ".5",
            "\"",
            "\"\\\"",
            r#""\x""#,
            r#""\u12""#,
            r#""\ud800""#,
            r#""\ud800\u0041""#,
            r#""\udc00""#,
            "\"\n\"",
            "[1}",
            "1e400",
            "{]",
            "tru",
            "'a'",
        ];
        for text in bad {
            assert!(matches!(compact(text), Err(Error::Schema { .. })), "{text}");
            assert!(serde_json::from_str::<serde_json::Value>(text).is_err(), "{text}");
        }
        let twice = compact(r#"{"a":1,"b":{"a":[]},"\u0061":2}"#);
        assert_eq!(twice, Err(error(20, "this name", "occurs twice")));
        let deep = std::format!("{}{}", "[".repeat(NESTING_MAX + 1), "]".repeat(NESTING_MAX + 1));
        assert!(compact(&deep).is_err() && compact(&deep[1..deep.len() - 1]).is_ok());
    }

    #[test]
    fn members_are_found() {
        let text = r#"{"a":[1,[2],3],"b":{"a":0},"c":null}"#;
        let json = Json::parse(text, &mut Budget::new(1 << 20)).unwrap();
        let a = json.member(0, "a").unwrap();
        assert_eq!(json.children(a).count(), 3);
        assert_eq!(json.number_at(json.children(a).nth(2).unwrap()), Some("3"));
        assert_eq!(json.member(json.member(0, "b").unwrap(), "a").map(|a| json.offset(a)), Some(24));
        assert_eq!(json.members(0).map(|(name, _)| name).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!((json.member(0, "d"), json.member(a, "a")), (None, None));
    }
}
