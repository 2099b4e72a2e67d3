//! Threads change no bit of any result.

mod support;
#[path = "../src/bin/flexserve-engine/threads.rs"]
mod threads;

use std::path::PathBuf;

use flexserve_engine::{Error, Flow, KvFormat, Limits, Model, Parallel, Serial, Session, SessionConfig};
use support::reference::{Random, Shape};
use support::{F16, F32, Q8_0};
use threads::pool;

/// Logits after a prompt in batches, and after each of some tokens.
fn logits(model: &Model<'_>, parallel: &dyn Parallel, kv: KvFormat) -> Vec<u32> {
    let config = SessionConfig { threads: 8, batch: 7, kv, context: 64, ..SessionConfig::for_model(model) };
    let mut session = Session::new(model, &config).unwrap();
    session.share_work(parallel);
    let prompt: Vec<u32> = (0..17).map(|i| 1 + i * 13 % 200).collect();
    assert_eq!(session.prefill(&prompt, &mut |_, _| Flow::Continue), Ok(Flow::Continue));
    let mut bits: Vec<u32> = session.logits().iter().map(|logit| logit.to_bits()).collect();
    for token in 1..6 {
        session.decode(token).unwrap();
        bits.extend(session.logits().iter().map(|logit| logit.to_bits()));
    }
    bits
}

fn compare(models: &[Model<'_>]) {
    for pool in [1, 2, 3, 8].map(pool) {
        for model in models {
            let heads = model.hyperparameters();
            let fits = heads.key_length.is_multiple_of(32) && heads.value_length.is_multiple_of(32);
            for kv in KvFormat::ALL.into_iter().filter(|kv| fits || *kv != KvFormat::Q8_0) {
                let expected = logits(model, &Serial, kv);
                assert_eq!(logits(model, pool, kv), expected, "{} threads, {kv:?}", pool.width());
            }
        }
    }
}

#[test]
fn random_models() {
    for head in [16, 32] {
        let files = [&[F32][..], &[F16], &[Q8_0], &[Q8_0, F16, F32]]
            .map(|types| Random::new(&Shape::tiny(types).with_heads_of(head), 9).file.bytes());
        compare(&files.each_ref().map(|file| Model::load(file, &Limits::default()).unwrap()));
    }
}

#[test]
fn the_projects_models() {
    let files = ["tiny-f16.gguf", "demo.gguf"].map(|name| {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/models").join(name);
        std::fs::read(path).unwrap()
    });
    compare(&files.each_ref().map(|file| Model::load(file, &Limits::default()).unwrap()));
}

#[test]
fn jobs_of_the_demo_model_are_split() {
    #[derive(Debug)]
    struct Counting(std::sync::atomic::AtomicUsize, &'static dyn Parallel);
    impl Parallel for Counting {
        fn width(&self) -> usize {
            4
        }
        fn run(&self, pieces: usize, work: &(dyn Fn(usize) + Sync)) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            self.1.run(pieces, work);
        }
    }
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/models/demo.gguf");
    let file = std::fs::read(path).unwrap();
    let model = Model::load(&file, &Limits::default()).unwrap();
    let counting = Counting(Default::default(), pool(4));
    logits(&model, &counting, KvFormat::F16);
    assert!(counting.0.load(std::sync::atomic::Ordering::Relaxed) > 20, "{counting:?}");
    // More threads than there is scratch for are not used.
    let config = SessionConfig { threads: 3, ..SessionConfig::for_model(&model) };
    let mut session = Session::new(&model, &config).unwrap();
    let unused = Counting(Default::default(), pool(4));
    session.share_work(&unused);
    session.decode(1).unwrap();
    assert_eq!(unused.0.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[test]
fn no_threads_are_refused() {
    let file = Random::new(&Shape::tiny(&[F32]), 9).file.bytes();
    let model = Model::load(&file, &Limits::default()).unwrap();
    let config = SessionConfig { threads: 0, ..SessionConfig::for_model(&model) };
    let refused = Session::new(&model, &config).map(drop);
    assert_eq!(refused, Err(Error::Parameter { name: "threads", fault: "zero" }));
}
