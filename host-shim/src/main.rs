//! Host side: VMM and flexserve command line.

fn main() {}
