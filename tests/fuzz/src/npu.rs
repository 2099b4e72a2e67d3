//! The model of the NPU, attacked by whoever owns it (queues, job lists) and by what speaks for QEMU (messages).

use flexserve_npu_model::fuzz;

/// The first byte says who attacks.
pub fn npu(data: &[u8]) {
    match data.split_first() {
        Some((who, rest)) if who & 1 == 0 => fuzz::queue(rest),
        Some((_, rest)) => fuzz::messages(rest),
        None => {}
    }
}
