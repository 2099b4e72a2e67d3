//! How much heap a partition needs for a model. Asked of the engine itself, which the partition runs too, so that the two
//! agree; the file is hostile to both.

use flexserve_engine::{KvFormat, Limits, Model, Session, SessionConfig, SessionMemory};
use guest_abi::session::MAX_FRAME;

use crate::error::{Code, Error, Result};

/// Least heap.
pub const MIN_HEAP: u64 = 16 << 20;
/// Beside model tables and context: two frame buffers, what the runtime keeps free of a context, and the prompt's tokens
/// (one per byte at worst, in a few copies).
const RUNTIME: u64 = (2 * MAX_FRAME + (4 << 20) + 64 * MAX_FRAME) as u64;

/// What a partition's heap is for, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Needed {
    /// Tables of the model: its tensors, an index of its vocabulary.
    pub tables: usize,
    /// What a context takes.
    pub session: SessionMemory,
}

impl Needed {
    /// Bytes of a heap that suffices. The allocator's own use is taken to be a sixteenth at most: there are few allocations,
    /// and large ones.
    pub fn heap(&self) -> u64 {
        let used = self.used();
        MIN_HEAP.max(used + used / 16 + RUNTIME)
    }

    /// What a partition with this model file and heap takes, for people.
    pub fn describe(&self, model_bytes: usize, heap_bytes: u64) -> String {
        let mib = |bytes: u64| (bytes as f64 / (1 << 20) as f64).max(0.1);
        let SessionMemory { kv, activations, scratch } = self.session;
        let of = |bytes: usize| mib(bytes as u64);
        format!(
            "memory of the partition: model {:.1} MiB, used in place; heap {:.1} MiB, for keys and values {:.1}, activations \
             {:.1}, scratch {:.1}, model tables {:.1}, the rest for prompts and spare",
            of(model_bytes),
            mib(heap_bytes),
            of(kv),
            of(activations),
            of(scratch),
            of(self.tables),
        )
    }

    fn used(&self) -> u64 {
        self.tables as u64 + self.session.total() as u64
    }
}

/// Returns what this model file takes with this context length (0: the model's own), format of keys and values (none: the
/// engine's choice), so many vCPUs, and maybe an NPU.
///
/// # Errors
/// Code 5 if the engine refuses the model, 2 if it refuses the context.
pub fn needed(model: &[u8], context: u32, format: Option<KvFormat>, vcpus: u32, npu: bool) -> Result<Needed> {
    let model = Model::load(model, &Limits::default()).map_err(|error| {
        Error::new(
            Code::Partition,
            format!("the model is refused: {error}"),
            "the model file's",
            "use a GGUF file of a supported model",
        )
    })?;
    let mut config = SessionConfig::for_model(&model);
    if npu {
        config = config.with_offload();
    }
    config.threads = vcpus as usize;
    config.kv = format.unwrap_or(config.kv);
    if context != 0 {
        config.context = context as usize;
    }
    let session = Session::memory(&model, &config).map_err(|error| {
        Error::usage(
            format!("the context (-c, --cache-type): {error}"),
            "use a shorter context, or f16 for keys and values",
        )
    })?;
    Ok(Needed { tables: model.memory_bytes(), session })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TINY: &[u8] = include_bytes!("../../tests/models/tiny-f16.gguf");

    #[test]
    fn it_grows_with_the_context() {
        let used = |context, vcpus| needed(TINY, context, None, vcpus, false).unwrap().used();
        let (short, long) = (used(8, 1), used(64, 1));
        assert!(0 < short && short < long, "{short} {long}");
        assert!(used(8, 1) < used(8, 4));
        assert!(used(64, 1) < needed(TINY, 64, None, 1, true).unwrap().used());
        assert!(needed(TINY, 0, None, 1, false).unwrap().heap() >= MIN_HEAP);
        assert_eq!(needed(TINY, u32::MAX, None, 1, false).unwrap_err().code, Code::Usage);
    }

    #[test]
    fn it_is_described_part_by_part() {
        let text = needed(TINY, 64, None, 1, false).unwrap().describe(TINY.len(), 20 << 20);
        assert!(text.contains("model 0.3 MiB") && text.contains("heap 20.0 MiB"), "{text}");
    }

    #[test]
    fn the_format_of_keys_and_values_counts() {
        let kv = |format| needed(TINY, 64, Some(format), 1, false).unwrap().session.kv;
        assert!(kv(KvFormat::F16) < kv(KvFormat::F32));
        // Its heads are shorter than a block.
        let error = needed(TINY, 64, Some(KvFormat::Q8_0), 1, false).unwrap_err();
        assert!(error.code == Code::Usage && error.what.contains("--cache-type"), "{error}");
    }

    #[test]
    fn what_is_no_model_is_refused() {
        for bytes in [&b""[..], b"GGUF", &TINY[..1000], &[0; 100_000]] {
            let error = needed(bytes, 0, None, 1, false).unwrap_err();
            assert_eq!(error.code, Code::Partition, "{error}");
        }
    }
}
