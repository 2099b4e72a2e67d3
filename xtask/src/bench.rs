//! `cargo xtask bench`: measurements, and the report under target/bench.

use anyhow::Result;

use crate::cli::BenchArgs;
use crate::failure::Failure;
use crate::paths::Paths;

/// Runs the benchmarks.
pub fn main(_paths: &Paths, _args: &BenchArgs) -> Result<()> {
    Err(Failure::usage("this checkout has no benchmarks yet", "update it"))
}
