//! Where things lie: the checkout and what is made under its `target/`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The checkout.
#[derive(Clone, Debug)]
pub struct Paths {
    /// Its top folder.
    pub root: PathBuf,
}

impl Paths {
    /// The checkout that this run belongs to. Cargo says so at run time; a copied binary falls back to where it was built.
    pub fn discover() -> Result<Self> {
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
            .map(PathBuf::from)
            .filter(|dir| dir.ends_with("xtask"))
            .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
        let root = manifest.parent().context("xtask has no parent folder")?.to_path_buf();
        Ok(Self { root })
    }

    /// `path` below the checkout.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    /// `path` below `target/`.
    pub fn target(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join("target").join(path)
    }

    /// Takes a lock between xtask processes; it ends with the returned file.
    pub fn lock(&self, name: &str) -> Result<File> {
        fs::create_dir_all(self.target("")).context("cannot create target/")?;
        let path = self.target(format!(".{name}.lock"));
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        if file.try_lock().is_err() {
            eprintln!("{name}: waiting for another xtask");
            file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        }
        Ok(file)
    }

    /// A fresh folder `target/KIND/NAME`. If another live run owns that name, a number is added, so that runs side by side
    /// do not clash. The lock lives as long as the returned file.
    pub fn state(&self, kind: &str, name: &str) -> Result<(PathBuf, File)> {
        let parent = self.target(kind);
        fs::create_dir_all(&parent).with_context(|| format!("cannot create {}", parent.display()))?;
        for number in 1..1000 {
            let dir = parent.join(if number == 1 { name.to_owned() } else { format!("{name}-{number}") });
            let lock_path = dir.with_extension("lock");
            let lock =
                File::create(&lock_path).with_context(|| format!("cannot create {}", lock_path.display()))?;
            if lock.try_lock().is_err() {
                continue;
            }
            if dir.exists() {
                fs::remove_dir_all(&dir).with_context(|| format!("cannot empty {}", dir.display()))?;
            }
            fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
            return Ok((dir, lock));
        }
        anyhow::bail!("more than 999 runs named {name} at once")
    }
}

/// Writes a file so that a reader sees the old or the new contents, never half of them.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension(format!("tmp{}", std::process::id()));
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    }
    fs::write(&temporary, bytes).with_context(|| format!("cannot write {}", temporary.display()))?;
    fs::rename(&temporary, path).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_of_the_same_name_do_not_clash() {
        let root = std::env::temp_dir().join(format!("xtask-paths-{}", std::process::id()));
        let paths = Paths { root: root.clone() };
        let (first, first_lock) = paths.state("run", "x").unwrap();
        let (second, _second_lock) = paths.state("run", "x").unwrap();
        assert_ne!(first, second);
        fs::write(first.join("old"), b"old").unwrap();
        drop(first_lock);
        let (again, _again_lock) = paths.state("run", "x").unwrap();
        assert_eq!(first, again);
        assert!(!again.join("old").exists(), "a state starts empty");
        fs::remove_dir_all(root).unwrap();
    }
}
