//! A hostile host in the partition's session.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use arbitrary::Unstructured;
use guest_abi::session::{Channel, MAX_FRAME, RING_SIZE, Ring, RingError, Session};
use guest_llm::serve::{End, Platform, serve};
use zerocopy::IntoBytes;

const TINY: &[u8] = include_bytes!("../../models/tiny-f16.gguf");
/// Turns of the host before it breaks the ring for good, so that every run ends.
const TURNS: u32 = 64;
/// Schemas for requests in good order.
const SCHEMAS: [&str; 4] = [
    "{}",
    r#"{"type":["integer","null"]}"#,
    r##"{"items":{"anyOf":[{"$ref":"#"},{"const":"a"}]}}"##,
    r#"{"properties":{"a":{"maxLength":3},"b":{"enum":[1,12]}},"required":["b"]}"#,
];
/// Offset of the data in a ring: behind head and tail, 64 bytes each.
const DATA: usize = 128;

struct Host<'a> {
    session: Box<Session>,
    input: RefCell<Unstructured<'a>>,
    turns: Cell<u32>,
}

impl Host<'_> {
    fn word(ring: &Ring, offset: usize) -> &AtomicU32 {
        // SAFETY: head (0) and tail (64) are atomics of the ring, which is `repr(C)`.
        unsafe { &*core::ptr::from_ref(ring).cast::<u8>().add(offset).cast() }
    }

    fn byte(ring: &Ring, index: usize) -> &AtomicU8 {
        // SAFETY: the data are `RING_SIZE` atomic bytes behind the positions.
        unsafe { &*core::ptr::from_ref(ring).cast::<u8>().add(DATA + index % RING_SIZE).cast() }
    }

    /// Does something to the rings.
    fn act(&self) {
        let turn = self.turns.replace(self.turns.get() + 1);
        let mut input = self.input.borrow_mut();
        let rings = [&self.session.to_partition, &self.session.to_host];
        if turn >= TURNS || input.is_empty() {
            for ring in rings {
                let tail = Self::word(ring, 64).load(Ordering::Relaxed);
                Self::word(ring, 0).store(tail ^ 1 << 31, Ordering::Relaxed);
            }
            return;
        }
        let _ = self.act_by(&mut input, rings);
    }

    fn act_by(&self, input: &mut Unstructured<'_>, [requests, answers]: [&Ring; 2]) -> arbitrary::Result<()> {
        match input.int_in_range(0..=9)? {
            // A frame in good order, mostly a request.
            0..=4 => {
                let kind = if input.ratio(3, 4)? { input.int_in_range(1..=3)? } else { input.arbitrary()? };
                let mut head = guest_abi::session::Request::default();
                let mut texts = Vec::new();
                if input.ratio(7, 8)? {
                    head.max_tokens = input.int_in_range(0..=3)?;
                    head.context = input.int_in_range(0..=64)?;
                    head.flags = input.int_in_range(0..=31)?;
                    if input.ratio(1, 2)? {
                        head.temperature = f32::from(input.arbitrary::<u8>()?).to_bits();
                        head.repeat_penalty = (f32::from(input.arbitrary::<u8>()?) / 64.0).to_bits();
                        head.repeat_last_n = input.int_in_range(0..=9)?;
                    }
                    if head.flags & guest_abi::session::REQUEST_SYSTEM != 0 {
                        texts.extend(b"system");
                        head.system_bytes = 6;
                    }
                    if input.ratio(1, 2)? {
                        let schema = *input.choose(&SCHEMAS)?;
                        texts.extend(schema.as_bytes());
                        head.schema_bytes = schema.len() as u32;
                    }
                    if input.ratio(1, 4)? {
                        texts.extend(b"\x01\0a\x02\0bc");
                        head.stop_bytes = 7;
                    }
                } else {
                    input.fill_buffer(head.as_mut_bytes())?;
                    if input.arbitrary()? {
                        head.version = guest_abi::session::REQUEST_VERSION;
                    }
                }
                let length = input.int_in_range(0..=200)?.min(input.len());
                texts.extend(input.bytes(length)?);
                let _ = requests.send(kind, head.as_bytes(), &texts);
            }
            // The host reads its answers.
            5 | 6 => {
                let mut buffer = vec![0; MAX_FRAME];
                while let Ok(Some(_)) = answers.receive(&mut buffer) {}
            }
            // Bytes and positions at will.
            7 => {
                let at: u16 = input.arbitrary()?;
                let length = input.int_in_range(0..=32)?.min(input.len());
                for (i, byte) in input.bytes(length)?.iter().enumerate() {
                    Self::byte(requests, usize::from(at) + i).store(*byte, Ordering::Relaxed);
                }
            }
            8 => {
                let ring = if input.arbitrary()? { requests } else { answers };
                let position = Self::word(ring, if input.arbitrary()? { 0 } else { 64 });
                position.fetch_add(input.int_in_range(-64..=64i32)? as u32, Ordering::Relaxed);
            }
            _ => {
                let ring = if input.arbitrary()? { requests } else { answers };
                Self::word(ring, if input.arbitrary()? { 0 } else { 64 })
                    .store(input.arbitrary()?, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

impl Platform for Host<'_> {
    fn kick(&self) {
        self.act();
    }
    fn wait(&self) {
        self.act();
    }
    fn ticks(&self) -> u64 {
        u64::from(self.turns.get())
    }
    fn heap_used(&self) -> usize {
        1 << 20
    }
    fn heap_free(&self) -> usize {
        64 << 20
    }
}

/// The rings as a channel that has the host look at what is sent.
struct Rings<'h, 'a>(&'h Host<'a>);

impl Channel for Rings<'_, '_> {
    type Error = RingError;

    fn send(&mut self, kind: u32, first: &[u8], second: &[u8]) -> Result<bool, RingError> {
        let sent = self.0.session.to_host.send(kind, first, second)?;
        self.0.act();
        Ok(sent)
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Result<Option<(u32, usize)>, RingError> {
        self.0.session.to_partition.receive(buffer)
    }
}

/// Serves a host that does what the input says; it must end, in one of the three ways.
pub fn session(data: &[u8]) {
    let host = Host {
        // SAFETY: zeros are a valid session.
        session: unsafe { Box::<Session>::new_zeroed().assume_init() },
        input: RefCell::new(Unstructured::new(data)),
        turns: Cell::new(0),
    };
    let end = serve(Rings(&host), TINY, 0, &host);
    assert!(matches!(end, End::Shutdown | End::Broken), "a good model was refused");
}
