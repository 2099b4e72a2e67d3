//! `cargo xtask attack`: every attack with its defence on (blocked) and off (succeeds).

use anyhow::Result;

use crate::cli::AttackArgs;
use crate::failure::Failure;
use crate::paths::Paths;

/// Runs the attacks.
pub fn main(_paths: &Paths, _args: &AttackArgs) -> Result<()> {
    Err(Failure::usage("this checkout has no attacks yet", "update it"))
}
