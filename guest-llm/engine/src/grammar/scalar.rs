//! Strings and numbers, byte by byte.

/// States of a string: which bytes may come next.
pub mod string {
    /// The quotation mark that begins it.
    pub const OPEN: u16 = 0;
    /// A character, or the quotation mark that ends it.
    pub const BODY: u16 = 1;
    /// What follows a backslash.
    const ESCAPE: u16 = 2;
    /// The first digit of `\u`.
    const CODE: u16 = 3;
    /// The second, after a first that was D: a surrogate perhaps.
    const CODE_D: u16 = 4;
    /// Three, two or one more digits.
    const CODE_3: u16 = 5;
    const CODE_2: u16 = 6;
    const CODE_1: u16 = 7;
    /// The last two digits of a high surrogate, then the low one.
    const HIGH_2: u16 = 8;
    const HIGH_1: u16 = 9;
    const LOW_BACKSLASH: u16 = 10;
    const LOW_U: u16 = 11;
    const LOW_D: u16 = 12;
    const LOW_C: u16 = 13;
    /// Three, two or one more bytes of a character.
    const MORE_3: u16 = 14;
    const MORE_2: u16 = 15;
    const MORE_1: u16 = 16;
    /// The second byte after E0, ED, F0, F4: not every one is allowed.
    const AFTER_E0: u16 = 17;
    const AFTER_ED: u16 = 18;
    const AFTER_F0: u16 = 19;
    const AFTER_F4: u16 = 20;

    /// What a byte did to a string.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Step {
        /// It goes on in this state.
        Inside(u16),
        /// A character is complete.
        Character,
        /// The string is.
        Closed,
    }

    /// Takes a byte; none if it may not come here. Strings are UTF-8 and hold no half of a surrogate pair.
    pub fn step(state: u16, byte: u8) -> Option<Step> {
        use Step::*;
        let more = matches!(byte, 0x80..=0xbf);
        let digit = byte.is_ascii_hexdigit();
        Some(match (state, byte) {
            (OPEN, b'"') => Inside(BODY),
            (BODY, b'"') => Closed,
            (BODY, b'\\') => Inside(ESCAPE),
            (BODY, 0x20..=0x7f) => Character,
            (BODY, 0xc2..=0xdf) => Inside(MORE_1),
            (BODY, 0xe0) => Inside(AFTER_E0),
            (BODY, 0xed) => Inside(AFTER_ED),
            (BODY, 0xe1..=0xef) => Inside(MORE_2),
            (BODY, 0xf0) => Inside(AFTER_F0),
            (BODY, 0xf1..=0xf3) => Inside(MORE_3),
            (BODY, 0xf4) => Inside(AFTER_F4),
            (AFTER_E0, 0xa0..=0xbf) | (AFTER_ED, 0x80..=0x9f) => Inside(MORE_1),
            (AFTER_F0, 0x90..=0xbf) | (AFTER_F4, 0x80..=0x8f) => Inside(MORE_2),
            (MORE_3, _) if more => Inside(MORE_2),
            (MORE_2, _) if more => Inside(MORE_1),
            (MORE_1, _) if more => Character,
            (ESCAPE, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Character,
            (ESCAPE, b'u') => Inside(CODE),
            (CODE, b'd' | b'D') => Inside(CODE_D),
            (CODE, _) if digit => Inside(CODE_3),
            (CODE_D, b'0'..=b'7') => Inside(CODE_2),
            (CODE_D, b'8' | b'9' | b'a' | b'b' | b'A' | b'B') => Inside(HIGH_2),
            (CODE_3, _) if digit => Inside(CODE_2),
            (CODE_2, _) if digit => Inside(CODE_1),
            (CODE_1, _) if digit => Character,
            (HIGH_2, _) if digit => Inside(HIGH_1),
            (HIGH_1, _) if digit => Inside(LOW_BACKSLASH),
            (LOW_BACKSLASH, b'\\') => Inside(LOW_U),
            (LOW_U, b'u') => Inside(LOW_D),
            (LOW_D, b'd' | b'D') => Inside(LOW_C),
            (LOW_C, b'c'..=b'f' | b'C'..=b'F') => Inside(CODE_2),
            _ => return None,
        })
    }
}

/// States of a number, with a count of digits.
pub mod number {
    /// The sign, or the first digit.
    pub const START: u16 = 0;
    const FIRST: u16 = 1;
    const ZERO: u16 = 2;
    const WHOLE: u16 = 3;
    const POINT: u16 = 4;
    const FRACTION: u16 = 5;
    const EXPONENT: u16 = 6;
    const EXPONENT_FIRST: u16 = 7;
    const EXPONENT_DIGITS: u16 = 8;

    /// The most digits before the point, and after it.
    const DIGITS_MAX: u32 = 16;
    /// The most digits of the exponent: every number is finite.
    const EXPONENT_DIGITS_MAX: u32 = 2;

    /// Takes a byte, after so many digits of the part; returns state and count. None if it may not come here.
    pub fn step(state: u16, digits: u32, byte: u8) -> Option<(u16, u32)> {
        Some(match (state, byte) {
            (START, b'-') => (FIRST, 0),
            (START | FIRST, b'0') => (ZERO, 0),
            (START | FIRST, b'1'..=b'9') => (WHOLE, 1),
            (WHOLE, b'0'..=b'9') if digits < DIGITS_MAX => (WHOLE, digits + 1),
            (ZERO | WHOLE, b'.') => (POINT, 0),
            (POINT, b'0'..=b'9') => (FRACTION, 1),
            (FRACTION, b'0'..=b'9') if digits < DIGITS_MAX => (FRACTION, digits + 1),
            (ZERO | WHOLE | FRACTION, b'e' | b'E') => (EXPONENT, 0),
            (EXPONENT, b'+' | b'-') => (EXPONENT_FIRST, 0),
            (EXPONENT | EXPONENT_FIRST, b'0'..=b'9') => (EXPONENT_DIGITS, 1),
            (EXPONENT_DIGITS, b'0'..=b'9') if digits < EXPONENT_DIGITS_MAX => (EXPONENT_DIGITS, digits + 1),
            _ => return None,
        })
    }

    /// Tells whether a number may end here.
    pub fn is_complete(state: u16) -> bool {
        matches!(state, ZERO | WHOLE | FRACTION | EXPONENT_DIGITS)
    }
}

/// States of an integer within bounds, with its digits' value.
pub mod integer {
    /// The sign, or the first digit.
    pub const START: u16 = 0;
    const NEGATIVE_FIRST: u16 = 1;
    const NEGATIVE: u16 = 2;
    const POSITIVE: u16 = 3;

    /// More digits than a bound has.
    const DIGITS_MAX: u32 = 19;

    /// Takes a byte, after digits of this value; returns state and value. None if no integer within the bounds begins so.
    pub fn step(state: u16, value: u64, byte: u8, min: i64, max: i64) -> Option<(u16, u64)> {
        if (state, byte) == (START, b'-') {
            return (min < 0).then_some((NEGATIVE_FIRST, 0));
        }
        let digit = u64::from(byte.checked_sub(b'0').filter(|digit| *digit < 10)?);
        let is_negative = matches!(state, NEGATIVE_FIRST | NEGATIVE);
        let is_first = matches!(state, START | NEGATIVE_FIRST);
        // A leading zero is the whole number, and has no sign.
        if !is_first && value == 0 || is_first && is_negative && digit == 0 {
            return None;
        }
        let value = value.checked_mul(10)?.checked_add(digit)?;
        let (least, most) = magnitudes(is_negative, min, max)?;
        is_prefix(value, least, most).then_some((if is_negative { NEGATIVE } else { POSITIVE }, value))
    }

    /// Tells whether an integer may end here.
    pub fn is_complete(state: u16, value: u64, min: i64, max: i64) -> bool {
        let is_negative = state == NEGATIVE;
        matches!(state, NEGATIVE | POSITIVE)
            && magnitudes(is_negative, min, max).is_some_and(|(least, most)| (least..=most).contains(&value))
    }

    /// The smallest and the largest magnitude of this sign.
    fn magnitudes(is_negative: bool, min: i64, max: i64) -> Option<(u64, u64)> {
        if is_negative {
            (min < 0).then(|| (if max < 0 { max.unsigned_abs() } else { 1 }, min.unsigned_abs()))
        } else {
            (max >= 0).then(|| (min.max(0).unsigned_abs(), max.unsigned_abs()))
        }
    }

    /// Tells whether digits that follow `value`, or none, make a number from `least` to `most`.
    fn is_prefix(value: u64, least: u64, most: u64) -> bool {
        let (mut low, mut high) = (value, value);
        for _ in 0..=DIGITS_MAX {
            if low <= most && least <= high {
                return true;
            }
            // Zero stays alone; numbers beyond the largest only grow.
            if value == 0 || low > most {
                return false;
            }
            low = low.saturating_mul(10);
            high = high.saturating_mul(10).saturating_add(9);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;
    use std::string::String;
    use std::vec::Vec;

    fn is_string(text: &[u8]) -> bool {
        let mut state = string::OPEN;
        for (index, byte) in text.iter().enumerate() {
            match string::step(state, *byte) {
                Some(string::Step::Inside(next)) => state = next,
                Some(string::Step::Character) => state = string::BODY,
                Some(string::Step::Closed) => return index + 1 == text.len(),
                None => return false,
            }
        }
        false
    }

    #[test]
    fn strings_are_what_serde_json_reads() {
        let is_read = |text: &[u8]| serde_json::from_slice::<String>(text).is_ok();
        // Every byte, and every second one after bytes that begin something.
        let mut insides: Vec<Vec<u8>> = (0..=255).map(|byte| [byte].to_vec()).collect();
        for first in (0xc0..=0xff).chain([b'\\', 0x80]) {
            for second in 0..=255 {
                insides.extend([
                    [first, second].to_vec(),
                    [first, second, 0x80].to_vec(),
                    [first, second, 0xbf, 0x80].to_vec(),
                ]);
            }
        }
        for code in 0..=0xffff {
            insides.push(format!("\\u{code:04x}").into_bytes());
        }
        for pair in
            ["\\ud83e\\uDD99", "\\uDBFF\\uDFFF", "\\ud83e\\n", "\\ud83eu", "\\ud83e\\u0041", "\\ud83e\\ud83e"]
        {
            insides.push(pair.into());
        }
        for inside in insides {
            let text = [b"\"", &inside[..], b"\""].concat();
            assert_eq!(is_string(&text), is_read(&text), "{text:x?}");
        }
    }

    fn is_number(text: &str) -> bool {
        let (mut state, mut digits) = (number::START, 0);
        for byte in text.bytes() {
            let Some(next) = number::step(state, digits, byte) else { return false };
            (state, digits) = next;
        }
        number::is_complete(state)
    }

    #[test]
    fn numbers_are_those_of_json_and_finite() {
        let good = ["0", "-0", "7", "-12.50", "1e5", "0.1E-9", "9999999999999999.9999999999999999e+99"];
        let bad = [
            "",
            "-",
            "01",
            "1.",
            ".5",
            "+1",
            "1e",
            "1e+",
            "1.5.5",
            "1e100",
            "10000000000000000",
            "1a",
            "0x1",
        ];
        for text in good {
            assert!(is_number(text) && serde_json::from_str::<f64>(text).unwrap().is_finite(), "{text}");
        }
        assert!(bad.iter().all(|text| !is_number(text)));
    }

    #[test]
    fn integers_stay_within_their_bounds_and_reach_all_of_them() {
        let read = |text: &str, min, max| {
            let (mut state, mut value) = (integer::START, 0);
            for byte in text.bytes() {
                (state, value) = integer::step(state, value, byte, min, max)?;
            }
            Some(integer::is_complete(state, value, min, max))
        };
        let ranges =
            [(0, 100), (-5, 5), (7, 7), (95, 1203), (-1203, -95), (0, 0), (-100, -100), (10, 19), (-1, 0)];
        for (min, max) in ranges {
            for number in -1300..=1300_i64 {
                let text = format!("{number}");
                assert_eq!(
                    read(&text, min, max) == Some(true),
                    (min..=max).contains(&number),
                    "{text} {min} {max}"
                );
                // What may be begun can be ended.
                for end in 1..=text.len() {
                    let can_end = (min..=max).any(|other| format!("{other}").starts_with(&text[..end]));
                    assert_eq!(
                        read(&text[..end], min, max).is_some(),
                        can_end,
                        "{} {min} {max}",
                        &text[..end]
                    );
                }
            }
        }
        let edge = 1_000_000_000_000_000_000;
        assert_eq!(read("1000000000000000000", -edge, edge), Some(true));
        assert_eq!(read("-1000000000000000001", -edge, edge), None);
        assert_eq!(read("99999999999999999999999999", -edge, edge), None);
        assert!(read("-0", -5, 5).is_none() && read("00", 0, 5).is_none());
    }
}
