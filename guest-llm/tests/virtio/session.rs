//! The session between the partition's runtime and the host's end of it, over the stream.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use flexserve::machine::Line;
use flexserve::virtio::Devices;
use flexserve::virtio::socket::StreamEnd;
use flexserve::virtio::wire::Wire;
use guest_abi::session::{Channel, MAX_FRAME, Request, frame};
use guest_abi::virtio::{SLOT_STREAM, STREAM_PORT};
use guest_llm::serve::{End, Platform, serve};
use guest_llm::virtio::Doorbell;
use guest_llm::virtio::frames::Frames;
use zerocopy::IntoBytes;

use crate::honest::connected;
use crate::{Bell, Stream, World};

const MODEL: &[u8] = include_bytes!("../../../tests/models/tiny-f16.gguf");

/// A frame: kind and payload.
type Frame = (u32, Vec<u8>);

/// The host: says the next thing whenever the partition waits.
struct Host {
    wire: Rc<RefCell<Wire>>,
    heard: Rc<RefCell<Vec<Frame>>>,
    script: RefCell<Vec<Frame>>,
    bell: Bell,
    waits: Cell<u32>,
}

impl Host {
    /// A host, and the partition's end of the stream to it.
    fn new(world: &World, mut script: Vec<Frame>) -> (Self, Stream) {
        script.reverse();
        let wire = Rc::new(RefCell::new(Wire::new(Devices::new(world.memory.clone()))));
        let heard = Rc::default();
        let bell = Bell::new({
            let (wire, heard) = (wire.clone(), Rc::clone(&heard));
            move || look(&mut wire.borrow_mut(), &heard)
        });
        let slot = &world.region.devices[SLOT_STREAM];
        let stream = Stream::connect(slot, STREAM_PORT, bell.clone()).unwrap();
        (Host { wire, heard, script: script.into(), bell, waits: Cell::new(0) }, stream)
    }

    fn kinds(&self) -> Vec<u32> {
        let mut kinds: Vec<_> = self.heard.borrow().iter().map(|(kind, _)| *kind).collect();
        kinds.dedup();
        kinds
    }
}

fn look(wire: &mut Wire, heard: &RefCell<Vec<Frame>>) {
    let mut buffer = vec![0; MAX_FRAME];
    wire.service().unwrap();
    while let Some((kind, length)) = wire.receive(&mut buffer).unwrap() {
        heard.borrow_mut().push((kind, buffer[..length].to_vec()));
    }
    wire.service().unwrap();
}

impl Platform for Host {
    fn kick(&self) {
        unreachable!("a stream is never full for long");
    }

    fn wait(&self) {
        self.waits.set(self.waits.get() + 1);
        assert!(self.waits.get() < 1000, "it waits for ever");
        // What is on its way comes first.
        if self.waits.get().is_multiple_of(8)
            && let Some((kind, payload)) = self.script.borrow_mut().pop()
        {
            assert_eq!(self.wire.borrow_mut().send(kind, &payload, &[]), Ok(true));
        }
        self.bell.ring();
    }

    fn ticks(&self) -> u64 {
        0
    }

    fn heap_used(&self) -> usize {
        0
    }

    fn heap_free(&self) -> usize {
        64 << 20
    }
}

fn request(prompt: &[u8]) -> Frame {
    (frame::REQUEST, [Request { max_tokens: 6, ..Request::default() }.as_bytes(), prompt].concat())
}

#[test]
fn a_session_goes_over_the_stream() {
    let world = World::zeroed();
    // The longest request there is takes more packets than the partition has buffers.
    let mut longest = request(&[b'a'; MAX_FRAME - size_of::<Request>()]);
    longest.1.truncate(MAX_FRAME);
    let script = vec![request(b"wake me"), longest, request(b"wake me"), (frame::SHUTDOWN, vec![])];
    let (host, stream) = Host::new(&world, script);
    assert_eq!(serve(Frames::new(stream), MODEL, 0, &host), End::Shutdown);
    let answer = [frame::PREFILLED, frame::TOKEN, frame::DONE];
    assert_eq!(host.kinds(), [&[frame::READY][..], &answer, &[frame::ERROR], &answer].concat());
    assert_eq!(world.pages_in_use(), 0);
}

/// A host whose end of the stream does one thing when the partition waits.
struct Rude<F>(Bell, F);

impl<F: Fn()> Platform for Rude<F> {
    fn kick(&self) {}

    fn wait(&self) {
        (self.1)();
        self.0.ring();
    }

    fn ticks(&self) -> u64 {
        0
    }

    fn heap_used(&self) -> usize {
        0
    }

    fn heap_free(&self) -> usize {
        64 << 20
    }
}

#[test]
fn a_stream_that_breaks_ends_the_session() {
    let world = World::zeroed();
    let too_long = [frame::REQUEST.to_le_bytes(), (MAX_FRAME as u32 + 1).to_le_bytes()].concat();
    let acts: [&dyn Fn(&StreamEnd); 2] =
        [&|end| assert_eq!(end.write(&too_long), too_long.len()), &|end| end.hang_up()];
    for act in acts {
        world.restart();
        let (stream, end, bell) = connected(&world);
        assert_eq!(serve(Frames::new(stream), MODEL, 0, &Rude(bell, || act(&end))), End::Broken);
        assert_eq!(world.pages_in_use(), 0);
    }
}
