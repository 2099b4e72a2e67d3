//! Partition runtime for the inference engine.

fn main() {}
