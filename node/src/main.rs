//! The program `shiioo`.

use std::process::ExitCode;

use shiioo_actors::mutants;

// A mutant is for the simulator alone.
const _: () = assert!(!mutants::BUILT_IN, "what ships has all its safeties");

fn main() -> ExitCode {
    shiioo::cli::main()
}
