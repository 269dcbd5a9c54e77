//! The program `shiioo`.

use std::process::ExitCode;

use shiioo_actors::mutants;

// A mutant is for the simulator alone.
const _: () = assert!(!mutants::BUILT_IN, "what ships has all its safeties");

/// Requests are parsed by one thread, applied by another and answered by a third, so that most memory is freed by
/// another thread than asked for it: see `docs/decisions/0029-an-allocator-of-its-own.md`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    shiioo::cli::main()
}
