//! What is allocated, counted by the allocator itself.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use flexserve_engine::{
    Detokenizer, Flow, Grammar, KvFormat, Limits, Model, Request, Sampler, Sampling, Session, SessionConfig,
    TokenIndex, generate, grammar::Matcher,
};
use support::reference::{Random, Shape};
use support::{F16, Q8_0};

thread_local! {
    /// Allocations of this thread, and their bytes.
    static COUNT: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
    /// Bytes that this thread has allocated and not freed, and the most that this ever was.
    static LIVE: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

struct Counting;

// SAFETY: passes everything to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set((count.get().0 + 1, count.get().1 + layout.size())));
        LIVE.with(|live| {
            let now = live.get().0 + layout.size() as isize;
            live.set((now, live.get().1.max(now)));
        });
        // SAFETY: the caller's promise about `layout`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.with(|live| live.set((live.get().0 - layout.size() as isize, live.get().1)));
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
    let file = Random::new(&Shape::tiny(&[Q8_0, F16]).with_heads_of(32), 5).file.bytes();
    let (model, _, bytes) = counted(|| Model::load(&file, &Limits::default()).unwrap());
    // The list of tokens that end an answer is a handful of numbers, outside the budget.
    let announced = model.memory_bytes();
    assert!((announced..announced + 256).contains(&bytes), "{bytes} bytes instead of {announced}");
    assert!(announced < file.len() / 10, "{announced} bytes for a file of {}", file.len());
    for (kv, context, batch, threads) in [
        (KvFormat::F16, 64, 32, 1),
        (KvFormat::F32, 33, 1, 3),
        (KvFormat::F16, 7, 1000, 2),
        (KvFormat::Q8_0, 64, 3, 2),
    ] {
        let config = SessionConfig { kv, context, batch, threads, ..SessionConfig::for_model(&model) };
        let needed = Session::required_bytes(&model, &config).unwrap();
        let (_session, _, bytes) = counted(|| Session::new(&model, &config).unwrap());
        assert_eq!(bytes, needed, "{config:?}");
    }
}

/// Runs `f`; returns its result, and the most bytes that were allocated at a time beyond those before.
fn peak<T>(f: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.get().0;
    LIVE.set((before, before));
    let result = f();
    (result, (LIVE.get().1 - before) as usize)
}

/// A request from the file's bytes to the answer, beyond which nothing is needed but the weights.
#[test]
fn a_request_takes_little_more_than_keys_values_and_activations() {
    let project = |name: &str| {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/models").join(name);
        std::fs::read(path).unwrap()
    };
    let shape = Shape {
        layers: 8,
        width: 256,
        hidden: 768,
        heads: 8,
        context: 512,
        types: vec![Q8_0],
        ..Shape::tiny(&[Q8_0]).with_heads_of(64)
    };
    let files = [
        ("demo", project("demo.gguf"), 256),
        ("random", Random::new(&shape, 1).file.bytes(), 512),
        ("random, short context", Random::new(&shape, 1).file.bytes(), 160),
    ];
    for (name, file, context) in &files {
        for kv in [KvFormat::F16, KvFormat::Q8_0] {
            let mut memory = None;
            let run = || {
                let model = Model::load(file, &Limits::default()).unwrap();
                let config = SessionConfig { kv, context: *context, ..SessionConfig::for_model(&model) };
                memory = Some((model.memory_bytes(), Session::memory(&model, &config).ok()?));
                let mut session = Session::new(&model, &config).unwrap();
                let request = Request { max_tokens: 20, ..Request::new("wake me at six") };
                Some(generate(&mut session, &request, &mut |_| Flow::Continue).unwrap())
            };
            let (report, peak) = peak(run);
            let (Some(report), Some((tables, memory))) = (report, memory) else {
                panic!("{name} does not run with {kv}");
            };
            assert!(report.tokens > 0);
            assert!(peak >= memory.total() + tables);
            let ratio = (peak - tables) as f64 / (memory.kv + memory.activations) as f64;
            assert!(ratio <= 1.1, "{name} {kv}: {ratio}, {peak} bytes, {tables} of tables, {memory:?}");
            println!("{name} {kv}: {ratio:.3} ({peak} bytes; {tables} of tables; {memory:?})");
        }
    }
}

#[test]
fn decoding_allocates_nothing() {
    let file = Random::new(&Shape::tiny(&[Q8_0, F16]).with_heads_of(32), 5).file.bytes();
    let model = Model::load(&file, &Limits::default()).unwrap();
    KvFormat::ALL.into_iter().for_each(|kv| decodes_without_allocating(&model, kv));
}

fn decodes_without_allocating(model: &Model<'_>, kv: KvFormat) {
    let config = SessionConfig { kv, context_shift: Some(1), ..SessionConfig::for_model(model) };
    let mut session = Session::new(model, &config).unwrap();
    let sampling = Sampling { temperature: 1.0, repeat_penalty: 1.1, ..Sampling::default() };
    let grammar = Grammar::from_schema(r#"{"minItems":80,"items":{"enum":[[],"a",{}]}}"#, 1 << 20).unwrap();
    let index = TokenIndex::new(model.tokenizer(), 1 << 20).unwrap();
    let mut matcher = Matcher::new(&grammar, &index).unwrap();
    let mut sampler = Sampler::new(&sampling, model.tokenizer().token_count()).unwrap();
    sampler.prepare_for_sets(model.tokenizer().token_count()).unwrap();
    let mut detokenizer = Detokenizer::new(model.tokenizer());
    let (result, allocations, _) = counted(|| session.prefill(&[1, 2, 3], &mut |_, _| Flow::Continue));
    assert_eq!((result, allocations), (Ok(Flow::Continue), 0));
    // Beyond the context's end, so that it is shifted, too.
    for _ in 3..session.context() + 40 {
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
