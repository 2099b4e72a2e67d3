//! Computation on tensors.
