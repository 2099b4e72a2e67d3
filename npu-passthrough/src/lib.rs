//! SMMUv3 and NPU stream ownership.
