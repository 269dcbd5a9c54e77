//! Reads and checks workflow specs.
