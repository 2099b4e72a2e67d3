//! `cargo xtask clean`: removes what was built; what set-up fetched stays, so that no network is needed afterwards.

use std::fs;

use anyhow::{Context, Result};

use crate::paths::Paths;

/// What stays in `target/`: set-up's results, and the running xtask itself.
const KEPT: &[&str] = &["apt", "kernel", "llama", "setup.json", "tf-a", "release"];

/// Cleans.
pub fn main(paths: &Paths) -> Result<()> {
    let target = paths.target("");
    let Ok(entries) = fs::read_dir(&target) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if KEPT.contains(&name.as_str()) || name.starts_with('.') {
            continue;
        }
        let path = entry.path();
        eprintln!("clean: {}", path.display());
        let removed =
            if entry.file_type()?.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}
