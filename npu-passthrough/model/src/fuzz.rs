//! What fuzzing does with its input.
