//! See the library.

#[tokio::main]
async fn main() -> std::process::ExitCode {
    shop::main().await
}
