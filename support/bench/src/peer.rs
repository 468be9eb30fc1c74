//! Peers in other languages, and crates that conflict with the family's dependencies: separate
//! programs that are started as processes and print one number.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;
use tokio::sync::OnceCell;

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("peers").join(name)
}

/// Runs `npm install`, once per run, if the packages have changed since the last time.
async fn installed() -> Result<()> {
    static DONE: OnceCell<()> = OnceCell::const_new();
    DONE.get_or_try_init(|| async {
        let made = |file: &str| {
            std::fs::metadata(folder("node").join(file)).and_then(|meta| meta.modified()).ok()
        };
        if made("node_modules/.package-lock.json") >= made("package-lock.json") {
            return Ok(());
        }
        let install = Command::new("npm")
            .args(["install", "--no-audit", "--no-fund", "--silent"])
            .current_dir(folder("node"))
            .status();
        ensure!(
            install.await.context("npm is missing: apt-get install -y nodejs npm")?.success(),
            "npm install failed"
        );
        anyhow::Ok(())
    })
    .await
    .map(drop)
}

/// Runs a script of `peers/node` and returns the number it prints last.
pub(crate) async fn node(script: &str, arguments: impl AsRef<[String]>) -> Result<f64> {
    installed().await?;
    run(
        Command::new("node").arg(folder("node").join(script)).args(arguments.as_ref()),
        "apt-get install -y nodejs npm",
    )
    .await
}

/// Runs a script of `peers/laravel` and returns the number it prints last.
pub(crate) async fn laravel(script: &str, arguments: impl AsRef<[String]>) -> Result<f64> {
    let install =
        "apt-get install -y --no-install-recommends php-cli php-redis php-laravel-framework";
    ensure!(
        std::path::Path::new("/usr/share/php/Illuminate").is_dir(),
        "Laravel is missing: {install}"
    );
    run(Command::new("php").arg(folder("laravel").join(script)).args(arguments.as_ref()), install)
        .await
}

/// Runs a script of `peers/ruby` and returns the number it prints last.
pub(crate) async fn ruby(script: &str, arguments: impl AsRef<[String]>) -> Result<f64> {
    let install = "apt-get install -y --no-install-recommends ruby-sidekiq";
    ensure!(std::path::Path::new("/usr/bin/sidekiq").exists(), "Sidekiq is missing: {install}");
    run(Command::new("ruby").arg(folder("ruby").join(script)).args(arguments.as_ref()), install)
        .await
}

/// Runs the program of `peers/rust`, for crates that cannot be linked together with the family, and
/// returns the number it prints last.
pub(crate) async fn rust(arguments: impl AsRef<[String]>) -> Result<f64> {
    static BUILT: OnceCell<PathBuf> = OnceCell::const_new();
    let program =
        BUILT.get_or_try_init(|| built("rust", "peers", "peers/rust cannot be built")).await?;
    run(Command::new(program).args(arguments.as_ref()), "https://rustup.rs").await
}

/// Runs the program of `peers/limitador`, which is separate because it builds RocksDB: that takes
/// about ten minutes once.
pub(crate) async fn limitador(arguments: impl AsRef<[String]>) -> Result<f64> {
    static BUILT: OnceCell<PathBuf> = OnceCell::const_new();
    let needs = "peers/limitador cannot be built: apt-get install -y --no-install-recommends g++ \
        libclang-dev libssl-dev pkg-config";
    let program = BUILT.get_or_try_init(|| built("limitador", "limitador-peer", needs)).await?;
    run(Command::new(program).args(arguments.as_ref()), "https://rustup.rs").await
}

/// Builds a package of `peers`, and returns the path of its program.
async fn built(package: &str, program: &str, failed: &'static str) -> Result<PathBuf> {
    let target = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/peers");
    let mut cargo = Command::new("cargo");
    cargo
        .args(["build", "--quiet", "--release", "--target-dir"])
        .arg(&target)
        .current_dir(folder(package));
    ensure!(cargo.status().await.context("cargo is missing")?.success(), failed);
    Ok(target.join("release").join(program))
}

/// Runs this program again with the hidden command `words`, and returns the number it prints last.
pub(crate) async fn myself<const N: usize>(words: [&str; N]) -> Result<f64> {
    run(Command::new(std::env::current_exe()?).args(words), "cargo").await
}

async fn run(program: &mut Command, install: &str) -> Result<f64> {
    let name = program.as_std().get_program().to_string_lossy().into_owned();
    let output = program
        .stdin(Stdio::null())
        .output()
        .await
        .with_context(|| format!("{name} is missing: {install}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    text.split_whitespace()
        .next_back()
        .and_then(|n| n.parse().ok())
        .with_context(|| format!("{name} printed no number: {text}"))
}
