//! The `thinbak` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    thinbak_agent::cli::main()
}
