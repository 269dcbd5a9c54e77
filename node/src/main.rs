//! The program `shiioo`.

use std::process::ExitCode;

use shiioo_actors::mutants;

const _: () = assert!(!mutants::BUILT_IN, "what ships has all its safeties");

fn main() -> ExitCode {
    shiioo::program::main()
}
