//! How much heap a partition needs for a model. Asked of the engine itself, which the partition runs too, so that the two
//! agree; the file is hostile to both.

use flexserve_engine::{Limits, Model, Session, SessionConfig};
use hyp_abi::session::MAX_FRAME;

use crate::error::{Code, Error, Result};

/// Least heap.
pub const MIN_HEAP: u64 = 16 << 20;
/// Beside model tables and context: two frame buffers, what the runtime keeps free of a context, and the prompt's tokens
/// (one per byte at worst, in a few copies).
const RUNTIME: u64 = (2 * MAX_FRAME + (4 << 20) + 64 * MAX_FRAME) as u64;

/// Returns the bytes of heap for this model file with this context length (0: the model's own) and so many vCPUs. The allocator's own use is
/// taken to be a sixteenth at most: there are few allocations, and large ones.
///
/// # Errors
/// Code 5 if the engine refuses the model, 2 if it refuses the context.
pub fn needed(model: &[u8], context: u32, vcpus: u32) -> Result<u64> {
    used(model, context, vcpus).map(|used| MIN_HEAP.max(used + used / 16 + RUNTIME))
}

/// Bytes of the model's tables and of the context.
fn used(model: &[u8], context: u32, vcpus: u32) -> Result<u64> {
    let model = Model::load(model, &Limits::default()).map_err(|error| {
        Error::new(
            Code::Partition,
            format!("the model is refused: {error}"),
            "the model file's",
            "use a GGUF file of a supported model",
        )
    })?;
    let mut config = SessionConfig::for_model(&model);
    config.threads = vcpus as usize;
    if context != 0 {
        config.context = context as usize;
    }
    let session = Session::required_bytes(&model, &config)
        .map_err(|error| Error::usage(format!("the context (-c): {error}"), "use a shorter context"))?;
    Ok(model.memory_bytes() as u64 + session as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TINY: &[u8] = include_bytes!("../../tests/models/tiny-f16.gguf");

    #[test]
    fn it_grows_with_the_context() {
        let (short, long) = (used(TINY, 8, 1).unwrap(), used(TINY, 64, 1).unwrap());
        assert!(0 < short && short < long, "{short} {long}");
        assert!(used(TINY, 8, 1).unwrap() < used(TINY, 8, 4).unwrap());
        assert!(needed(TINY, 0, 1).unwrap() >= MIN_HEAP);
        assert_eq!(needed(TINY, u32::MAX, 1).unwrap_err().code, Code::Usage);
    }

    #[test]
    fn what_is_no_model_is_refused() {
        for bytes in [&b""[..], b"GGUF", &TINY[..1000], &[0; 100_000]] {
            let error = needed(bytes, 0, 1).unwrap_err();
            assert_eq!(error.code, Code::Partition, "{error}");
        }
    }
}
