//! The `npkfs` command.

fn main() {}
