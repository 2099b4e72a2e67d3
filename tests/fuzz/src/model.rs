//! A hostile model file in the engine.

use flexserve_engine::{Flow, Limits, Model, Request, Session, SessionConfig, generate};

/// A well-formed file with random weights.
const TINY: &[u8] = include_bytes!("../../models/tiny-f16.gguf");
/// What the engine may allocate.
const MEMORY: usize = 32 << 20;
/// The first byte of an input that is a file as it stands.
pub const WHOLE: u8 = b'G';

/// Loads a model and has it answer. The input is a GGUF file, or, when its first byte is not that of one, changes to a
/// well-formed one: the prompt's length, the prompt, then four bytes each, a position (24 bits) and what is there
/// instead. Positions are folded into the first 64 KiB, where header, vocabulary and tensor table lie.
pub fn model(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else { return };
    if first == WHOLE {
        return answer(data, "hello");
    }
    let (prompt, patches) = rest.split_at(rest.len().min(usize::from(first)));
    let mut file = TINY.to_vec();
    for patch in patches.as_chunks::<4>().0 {
        let [low, middle, high, byte] = *patch;
        let at = u32::from_le_bytes([low, middle, high, 0]) as usize % (64 << 10);
        if let Some(target) = file.get_mut(at) {
            *target = byte;
        }
    }
    answer(&file, &String::from_utf8_lossy(prompt));
}

fn answer(file: &[u8], prompt: &str) {
    let limits = Limits { memory_bytes: MEMORY, ..Limits::default() };
    let Ok(model) = Model::load(file, &limits) else { return };
    let mut config = SessionConfig::for_model(&model);
    config.context = config.context.min(48);
    config.memory_limit = MEMORY;
    let Ok(mut session) = Session::new(&model, &config) else { return };
    let request = Request { raw: true, max_tokens: 2, ..Request::new(prompt) };
    // An answer or an error; its text is UTF-8 by its type.
    let _ = generate(&mut session, &request, &mut |_| Flow::Continue);
}
