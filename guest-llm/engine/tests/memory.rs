//! What is allocated, counted by the allocator itself.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use flexserve_engine::{
    Detokenizer, Flow, Grammar, KvFormat, Limits, Model, Sampler, Sampling, Session, SessionConfig,
    TokenIndex, grammar::Matcher,
};
use support::reference::{Random, Shape};
use support::{F16, Q8_0};

thread_local! {
    /// Allocations of this thread, and their bytes.
    static COUNT: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

struct Counting;

// SAFETY: passes everything to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set((count.get().0 + 1, count.get().1 + layout.size())));
        // SAFETY: the caller's promise about `layout`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise; all memory comes from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `f`; returns its result, and the allocations and bytes it took.
fn counted<T>(f: impl FnOnce() -> T) -> (T, usize, usize) {
    let before = COUNT.get();
    let result = f();
    let after = COUNT.get();
    (result, after.0 - before.0, after.1 - before.1)
}

#[test]
fn allocations_are_those_announced() {
    let file = Random::new(&Shape::tiny(&[Q8_0, F16]), 5).file.bytes();
    let (model, _, bytes) = counted(|| Model::load(&file, &Limits::default()).unwrap());
    // The list of tokens that end an answer is a handful of numbers, outside the budget.
    let announced = model.memory_bytes();
    assert!((announced..announced + 256).contains(&bytes), "{bytes} bytes instead of {announced}");
    assert!(announced < file.len() / 10, "{announced} bytes for a file of {}", file.len());
    for (kv, context, batch) in [(KvFormat::F16, 64, 32), (KvFormat::F32, 33, 1), (KvFormat::F16, 7, 1000)] {
        let config = SessionConfig { kv, context, batch, ..SessionConfig::for_model(&model) };
        let needed = Session::required_bytes(&model, &config).unwrap();
        let (_session, _, bytes) = counted(|| Session::new(&model, &config).unwrap());
        assert_eq!(bytes, needed, "{config:?}");
    }
}

#[test]
fn decoding_allocates_nothing() {
    let file = Random::new(&Shape::tiny(&[Q8_0, F16]), 5).file.bytes();
    let model = Model::load(&file, &Limits::default()).unwrap();
    let mut session = Session::new(&model, &SessionConfig::for_model(&model)).unwrap();
    let sampling = Sampling { temperature: 1.0, repeat_penalty: 1.1, ..Sampling::default() };
    let grammar = Grammar::from_schema(r#"{"minItems":40,"items":{"enum":[[],"a",{}]}}"#, 1 << 20).unwrap();
    let index = TokenIndex::new(model.tokenizer(), 1 << 20).unwrap();
    let mut matcher = Matcher::new(&grammar, &index).unwrap();
    let mut sampler = Sampler::new(&sampling, model.tokenizer().token_count()).unwrap();
    sampler.prepare_for_sets(model.tokenizer().token_count()).unwrap();
    let mut detokenizer = Detokenizer::new(model.tokenizer());
    let (result, allocations, _) = counted(|| session.prefill(&[1, 2, 3], &mut |_, _| Flow::Continue));
    assert_eq!((result, allocations), (Ok(Flow::Continue), 0));
    for _ in 3..session.context() {
        let ((), allocations, _) = counted(|| {
            let token = sampler.sample_from(session.logits(), Some(matcher.allowed())).unwrap();
            sampler.accept(token);
            matcher.accept(model.tokenizer(), token).unwrap();
            detokenizer.push(token).unwrap();
            session.decode(token).unwrap();
        });
        assert_eq!(allocations, 0);
    }
}
