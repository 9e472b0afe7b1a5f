//! Measures runionfs beside its peers.

fn main() {}
