//! Model files.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::sys::FileMap;

/// Finds a model: a path, or the name of a file in `folder`, with or without `.gguf`.
///
/// # Errors
/// Code 2 if there is none.
pub fn find(model: &str, folder: &Path) -> Result<PathBuf> {
    let mut places = vec![PathBuf::from(model)];
    if !model.contains('/') {
        places.extend([folder.join(model), folder.join(format!("{model}.gguf"))]);
    }
    places.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        Error::usage(
            format!("there is no model {model}, here or in {}", folder.display()),
            "name a GGUF file by its path, or one of that folder",
        )
    })
}

/// Opens a model and maps it, so that it need not be in memory twice.
///
/// # Errors
/// Code 2 if it cannot be read.
pub fn open(path: &Path) -> Result<(File, FileMap)> {
    let open = || {
        let file = File::open(path)?;
        let map = FileMap::new(&file)?;
        Ok((file, map))
    };
    open().map_err(|error: io::Error| {
        Error::usage(format!("the model {}: {error}", path.display()), "name a readable file")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_found_by_path_and_by_name() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/models");
        let path = folder.join("tiny-f16.gguf");
        assert_eq!(find(path.to_str().unwrap(), Path::new("/nonexistent")).unwrap(), path);
        assert_eq!(find("tiny-f16", &folder).unwrap(), path);
        assert_eq!(find("tiny-f16.gguf", &folder).unwrap(), path);
        let error = find("../models/tiny-f16.gguf", &folder).unwrap_err();
        assert_eq!(error.code, crate::error::Code::Usage);
        assert!(find("none", &folder).is_err());
    }
}
