//! The hypervisor image.

fn main() {}
