//! Separates the host's console into log lines and structured records.
//!
//! Programs print one record as: byte 0x1e (record separator), one JSON object, line feed. Everything else is the kernel's
//! log. The kernel may print in the middle of a record, since both share one port: such lines start with their time stamp,
//! and are cut out.

use serde_json::Value;

/// Starts a record.
const RECORD_SEPARATOR: u8 = 0x1e;
/// Longer lines are cut: the host is not trusted to end them.
const MAX_LINE: usize = 1 << 20;

/// One piece of console output.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// A log line without its line end; control characters are replaced.
    Line(String),
    /// A record.
    Record(Value),
}

/// The state between two pieces of input.
#[derive(Debug, Default)]
pub struct Console {
    line: Vec<u8>,
    /// A record that the kernel's log interrupted.
    partial: Option<Vec<u8>>,
}

impl Console {
    /// Takes the next bytes and returns what they complete.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Item> {
        let mut items = Vec::new();
        for byte in bytes {
            match byte {
                b'\n' => self.end_line(&mut items),
                _ if self.line.len() >= MAX_LINE => {}
                _ => self.line.push(*byte),
            }
        }
        items
    }

    /// Returns what the machine had printed of its last line when it ended.
    pub fn finish(&mut self) -> Vec<Item> {
        let mut items = Vec::new();
        if !self.line.is_empty() {
            self.end_line(&mut items);
        }
        if self.partial.take().is_some() {
            items.push(Item::Line("(an incomplete record)".into()));
        }
        items
    }

    fn end_line(&mut self, items: &mut Vec<Item>) {
        let mut line = std::mem::take(&mut self.line);
        while line.last() == Some(&b'\r') {
            line.pop();
        }
        // A record may start anywhere: the kernel may have printed half a line before it.
        if let Some(at) = line.iter().position(|byte| *byte == RECORD_SEPARATOR) {
            if self.partial.take().is_some() {
                items.push(Item::Line("(an incomplete record)".into()));
            }
            if at > 0 {
                items.push(text(&line[..at]));
            }
            self.record(line.split_off(at + 1), items);
            return;
        }
        match self.partial.take() {
            Some(partial) if time_stamp(&line) == Some(0) => {
                self.partial = Some(partial);
                items.push(text(&line));
            }
            Some(mut partial) if partial.len() + line.len() < MAX_LINE => {
                partial.extend(line);
                self.record(partial, items);
            }
            Some(_) => items.push(Item::Line("(a record of excessive length)".into())),
            None => items.push(text(&line)),
        }
    }

    fn record(&mut self, record: Vec<u8>, items: &mut Vec<Item>) {
        if let Ok(value) = serde_json::from_slice::<Value>(&record) {
            items.push(Item::Record(value));
        } else if let Some(at) = time_stamp(&record) {
            items.push(text(&record[at..]));
            self.partial = Some(record[..at].to_vec());
        } else {
            // Contents may be a prompt or an answer: they never reach a log.
            items.push(Item::Line(format!("(an unreadable record of {} bytes)", record.len())));
        }
    }
}

/// Where a kernel time stamp such as `[    1.234567] ` starts.
fn time_stamp(line: &[u8]) -> Option<usize> {
    (0..line.len()).filter(|at| line[*at] == b'[').find(|at| {
        let inside: Vec<u8> =
            line[at + 1..].iter().copied().take_while(|byte| *byte != b']').take(24).collect();
        let stamp = inside.trim_ascii_start();
        let followed =
            line.get(at + 1 + inside.len()) == Some(&b']') && line.get(at + 2 + inside.len()) == Some(&b' ');
        let digits = |part: &[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_digit);
        followed
            && stamp.iter().position(|byte| *byte == b'.').is_some_and(|dot| {
                digits(&stamp[..dot]) && stamp.len() == dot + 7 && digits(&stamp[dot + 1..])
            })
    })
}

fn text(line: &[u8]) -> Item {
    let clean = String::from_utf8_lossy(line);
    Item::Line(clean.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn all(input: &[u8]) -> Vec<Item> {
        let mut console = Console::default();
        let mut items = Vec::new();
        // One byte at a time: pieces may be cut anywhere.
        for byte in input {
            items.extend(console.feed(&[*byte]));
        }
        items.extend(console.finish());
        items
    }

    fn line(text: &str) -> Item {
        Item::Line(text.into())
    }

    #[test]
    fn lines_and_records() {
        let input = b"[    0.000000] Booting\r\n\x1e{\"event\":\"ready\"}\r\nplain\x07\n\x1e{\"n\":1}\nlast";
        let expected = [
            line("[    0.000000] Booting"),
            Item::Record(json!({"event": "ready"})),
            line("plain\u{fffd}"),
            Item::Record(json!({"n": 1})),
            line("last"),
        ];
        assert_eq!(all(input), expected);
    }

    #[test]
    fn a_record_survives_kernel_lines_in_its_middle() {
        let input =
            b"\x1e{\"text\":\"wake [    1.500000] first\r\n[   12.345678] second\r\n me [1] up\"}\r\nafter\n";
        let expected = [
            line("[    1.500000] first"),
            line("[   12.345678] second"),
            Item::Record(json!({"text": "wake  me [1] up"})),
            line("after"),
        ];
        assert_eq!(all(input), expected);
    }

    #[test]
    fn a_record_may_follow_half_a_kernel_line() {
        let input = b"[    1.500000] half\x1e{\"n\":1}\n";
        assert_eq!(all(input), [line("[    1.500000] half"), Item::Record(json!({"n": 1}))]);
    }

    #[test]
    fn unreadable_records_do_not_leak_their_contents() {
        let items =
            all(b"\x1e{\"text\":\"secret\n\x1e{\"text\":\"secre[    1.000000] x\n\x1e{}\n\x1e{\"secret");
        let shown = format!("{items:?}");
        assert!(!shown.contains("secr"), "{shown}");
        assert!(items.contains(&Item::Record(json!({}))));
    }

    #[test]
    fn endless_lines_are_cut() {
        let mut console = Console::default();
        for _ in 0..3 {
            assert!(console.feed(&vec![b'x'; MAX_LINE]).is_empty());
        }
        assert_eq!(console.feed(b"\n").len(), 1);
    }
}
