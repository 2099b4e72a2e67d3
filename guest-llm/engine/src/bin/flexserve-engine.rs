//! The engine as a command on the development machine.

fn main() {}
