//! Parser of GGUF files.
