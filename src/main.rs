//! The `mini` binary: everything is in the library.

fn main() -> std::process::ExitCode {
    mini::cli::main()
}
