//! Real runs of `npkfs`: what it prints where, and its exit code.
//!
//! Tests of the mount need /dev/fuse, and some need root, fusermount3, setpriv or unshare: where these are missing,
//! the test says aloud what it skips and why.
#![cfg(feature = "fuse")]

mod booting;
mod commands;
mod common;
mod compression;
mod edits;
mod enduring;
#[path = "../upstream/fixtures.rs"]
mod fixtures;
mod living;
mod making;
mod mounting;
mod refusals;
mod repairing;
mod rights;
mod upgrading;
mod views;
mod ways;
