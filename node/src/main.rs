//! The program `shiioo`.

use std::process::ExitCode;

fn main() -> ExitCode {
    shiioo::program::main()
}
