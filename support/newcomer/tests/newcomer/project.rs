//! A project of a new user, and its running program.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

/// Crates in an order in which they can be published.
const CRATES: [&str; 9] = [
    "scale-common", "scale-redis", "scale-sql", "scale-testkit", "scale-db", "scale-cache",
    "scale-queue", "scale-session", "scale-limit",
];
/// Time for which a program may take to print or to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Returns the root of the workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Folder of the packages and of what is built with them.
fn work() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("newcomer")
}

/// Returns the unpacked packages, as the registry would deliver them.
pub(crate) fn packages() -> Result<&'static [(&'static str, PathBuf)]> {
    static PACKAGES: OnceLock<Result<Vec<(&'static str, PathBuf)>, String>> = OnceLock::new();
    let made = PACKAGES.get_or_init(|| package().map_err(|error| format!("{error:#}")));
    match made {
        Ok(packages) => Ok(packages),
        Err(error) => bail!("{error}"),
    }
}

fn package() -> Result<Vec<(&'static str, PathBuf)>> {
    let (target, unpacked) = (work().join("packages"), work().join("unpacked"));
    let mut package = Command::new(env!("CARGO"));
    package.args(["package", "--no-verify", "--allow-dirty", "--quiet", "--target-dir"]);
    package.arg(&target).current_dir(root());
    for name in CRATES {
        package.args(["-p", name]);
    }
    succeeds(&mut package)?;
    if unpacked.exists() {
        fs::remove_dir_all(&unpacked)?;
    }
    fs::create_dir_all(&unpacked)?;
    let mut packages = Vec::new();
    for name in CRATES {
        let version = env!("CARGO_PKG_VERSION");
        let archive = target.join(format!("package/{name}-{version}.crate"));
        succeeds(Command::new("tar").arg("xzf").arg(archive).arg("-C").arg(&unpacked))?;
        packages.push((name, unpacked.join(format!("{name}-{version}"))));
    }
    Ok(packages)
}

fn succeeds(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {errors}");
    Ok(())
}

pub(crate) struct Project {
    name: String,
    folder: TempDir,
}

impl Project {
    /// Makes an empty project, runs the `cargo add` lines of a crate's README in it, and takes the
    /// README's first program.
    pub(crate) fn of_readme(name: &'static str) -> Result<Self> {
        let readme = fs::read_to_string(root().join(name).join("README.md"))?;
        let fence = |kind: &str| {
            let (_, rest) = readme.split_once(&format!("```{kind}"))?;
            Some(rest.split_once('\n')?.1.split_once("\n```")?.0)
        };
        let commands = fence("sh").context("no commands")?;
        let program = fence("rust").context("no program")?;
        let project = Self::empty(&format!("try-{name}"))?;
        let folder = project.folder.path();
        succeeds(
            Command::new(env!("CARGO"))
                .args(["init", "--quiet", "--name", &project.name])
                .current_dir(folder),
        )?;
        project.patched()?;
        for command in commands.lines() {
            let words: Vec<_> = command.split_whitespace().collect();
            let ["cargo", "add", added @ ..] = &words[..] else {
                bail!("not `cargo add`: {command}")
            };
            let mut add = Command::new(env!("CARGO"));
            add.args(["add", "--quiet"]).current_dir(folder);
            for word in added {
                // The crates of the family are not in the registry yet.
                match packages()?.iter().find(|(name, _)| name == word) {
                    Some((_, path)) => add.arg("--path").arg(path),
                    None => add.arg(word),
                };
            }
            succeeds(&mut add)?;
        }
        fs::write(folder.join("src/main.rs"), format!("{program}\n"))?;
        Ok(project)
    }

    /// Copies an example out of the tree.
    pub(crate) fn of_example(example: &str) -> Result<Self> {
        let from = root().join("examples").join(example);
        let manifest = fs::read_to_string(from.join("Cargo.toml"))?;
        let name = manifest.lines().find_map(|line| line.strip_prefix("name = \""));
        let name = name.and_then(|name| name.strip_suffix('"')).context("no name")?;
        let project = Self::empty(name)?;
        succeeds(Command::new("cp").arg("-r").arg(from.join(".")).arg(project.folder.path()))?;
        project.patched()?;
        Ok(project)
    }

    /// Generates a project from a template, as `cargo generate` does.
    pub(crate) fn of_template(template: &str, name: &str) -> Result<Self> {
        let project = Self::empty(name)?;
        let from = root().join("examples").join(template);
        succeeds(
            Command::new("cargo-generate")
                .args(["generate", "--silent", "--init", "--vcs", "none", "--name", name, "--path"])
                .arg(from)
                .current_dir(project.folder.path()),
        )?;
        project.patched()?;
        Ok(project)
    }

    /// Returns the content of a file.
    pub(crate) fn read(&self, file: &str) -> Result<String> {
        fs::read_to_string(self.path(file)).with_context(|| file.to_owned())
    }

    fn empty(name: &str) -> Result<Self> {
        Ok(Self { name: name.to_owned(), folder: tempfile::tempdir()? })
    }

    /// Points the project to the packages, and to the versions of the project's lock file.
    fn patched(&self) -> Result<()> {
        let folder = self.folder.path();
        let mut config = String::from("[patch.crates-io]\n");
        for (name, path) in packages()? {
            let _ = writeln!(config, "{name} = {{ path = \"{}\" }}", path.display());
        }
        fs::create_dir(folder.join(".cargo"))?;
        fs::write(folder.join(".cargo/config.toml"), config)?;
        fs::copy(root().join("Cargo.lock"), folder.join("Cargo.lock"))?;
        Ok(())
    }

    fn cargo(&self, what: &str) -> Result<()> {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args([what, "--quiet", "--target-dir"]).arg(work().join("target"));
        cargo.env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_INCREMENTAL", "0");
        // Set by the test run itself.
        cargo.env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS");
        succeeds(cargo.current_dir(self.folder.path()))
    }

    /// Runs the project's own tests.
    pub(crate) fn test(self) -> Result<()> {
        self.cargo("test")
    }

    pub(crate) fn run(self, arguments: &[&str]) -> Result<Program> {
        self.start(arguments, &[])
    }

    pub(crate) fn run_with(self, variables: &[(&str, &str)]) -> Result<Program> {
        self.start(&[], variables)
    }

    /// Replaces a part of a file, as a user does with an editor.
    pub(crate) fn set(&self, file: &str, old: &str, new: &str) -> Result<()> {
        let text = self.read(file)?;
        ensure!(text.contains(old), "{file}: {text}");
        Ok(fs::write(self.path(file), text.replace(old, new))?)
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    /// Runs a command of the program to its end.
    pub(crate) fn runs(&self, arguments: &[&str]) -> Result<()> {
        let program = work().join("target/debug").join(&self.name);
        succeeds(Command::new(program).args(arguments).current_dir(self.folder.path()))
    }

    /// Builds the project. A server's port is chosen afterwards, as this takes minutes.
    pub(crate) fn built(self) -> Result<Self> {
        self.cargo("build")?;
        Ok(self)
    }

    pub(crate) fn start(self, arguments: &[&str], variables: &[(&str, &str)]) -> Result<Program> {
        let folder = self.folder.path();
        let (out, err) = (folder.join("out"), folder.join("err"));
        let child = Command::new(work().join("target/debug").join(&self.name))
            .args(arguments)
            .envs(variables.iter().copied())
            .current_dir(folder)
            .stdout(fs::File::create(&out)?)
            .stderr(fs::File::create(&err)?)
            .stdin(Stdio::null())
            .spawn()?;
        Ok(Program { child: Running(child), out, err, project: self })
    }
}

/// A running program; killed on drop.
pub(crate) struct Program {
    child: Running,
    out: PathBuf,
    err: PathBuf,
    project: Project,
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Program {
    pub(crate) fn project(&self) -> &Project {
        &self.project
    }

    pub(crate) fn errors(&self) -> String {
        fs::read_to_string(&self.err).unwrap_or_default()
    }

    /// Waits until the program has printed a line.
    pub(crate) fn prints(&self, line: &str) -> Result<()> {
        let printed = || fs::read_to_string(&self.out).unwrap_or_default();
        let has_line = || printed().lines().any(|printed| printed == line).then_some(());
        within(has_line).with_context(|| {
            format!("`{line}` is not printed, but: {}\n{}", printed(), self.errors())
        })
    }

    /// Asks the program to stop, as Ctrl-C does.
    pub(crate) fn interrupt(&self) -> Result<()> {
        succeeds(Command::new("kill").args(["-INT", &self.child.0.id().to_string()]))
    }

    pub(crate) fn ends_well(mut self) -> Result<()> {
        let mut ended = || self.child.0.try_wait().ok().flatten();
        let ended: Result<ExitStatus> = within(&mut ended);
        let ended = ended.with_context(|| format!("it does not end\n{}", self.errors()))?;
        ensure!(ended.success(), "{ended}: {}", self.errors());
        Ok(())
    }
}

pub(crate) fn within<T>(mut done: impl FnMut() -> Option<T>) -> Result<T> {
    let began = Instant::now();
    loop {
        if let Some(done) = done() {
            return Ok(done);
        }
        ensure!(began.elapsed() < PATIENCE, "waited for {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
