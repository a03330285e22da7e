//! The command line: grammar, commands, exit codes.
