//! Templates for `cargo generate`: examples with what a repository needs around them.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::client::Client;
use crate::project::{Project, root, within};

const TEMPLATES: [&str; 3] = ["axum", "worker", "shop"];

/// A generated project is the example that is built and tested here, under another name.
#[test]
fn a_template_is_its_example() -> Result<()> {
    for template in TEMPLATES {
        let folder = root().join("examples").join(template);
        let read = |file: &str| {
            fs::read_to_string(folder.join(file)).with_context(|| format!("{template}/{file}"))
        };
        let (manifest, generated) = (read("Cargo.toml")?, read("Cargo.toml.liquid")?);
        let name = manifest.lines().find(|line| line.starts_with("name = ")).context("no name")?;
        let expected = manifest.replacen(name, "name = \"{{project-name}}\"", 1);
        ensure!(generated == expected, "{template}/Cargo.toml.liquid differs");
        for file in ["Dockerfile", "compose.yaml", "README.md", ".github/workflows/ci.yml"] {
            ensure!(!read(file)?.is_empty());
        }
        let listed = fs::read_to_string(root().join("cargo-generate.toml"))?;
        ensure!(listed.contains(&format!("\"examples/{template}\"")), "{template} is not listed");
    }
    Ok(())
}

/// A job is pushed by one process and sent by another, which a second one asks for its metrics.
#[test]
fn the_worker_sends_a_mail() -> Result<()> {
    worker(Project::of_example("worker")?)
}

fn worker(project: Project) -> Result<()> {
    let project = project.built()?;
    let (mut client, address) = Client::of_free_port()?;
    project.set("config/laptop.toml", "127.0.0.1:9000", &address)?;
    let program = project.start(&[], &[])?;
    let metrics = client.get("/metrics").with_context(|| program.errors())?;
    ensure!(metrics.status == 200, "{}", metrics.head);
    program.project().runs(&["push", "ann@example.org"])?;
    let mails = program.project().path("mails");
    let mail = within(|| {
        let mail = fs::read_dir(&mails).ok()?.filter_map(Result::ok).map(|mail| mail.path());
        let mail = mail.filter(|mail| mail.extension().is_some_and(|kind| kind == "eml"));
        fs::read_to_string(mail.last()?).ok().filter(|mail| mail.contains("Subject"))
    })
    .with_context(|| program.errors())?;
    ensure!(mail.contains("To: ann@example.org") && mail.contains("Subject: Welcome"), "{mail}");
    let counted = "scale_queue_jobs_total";
    within(|| client.get("/metrics").ok()?.body.contains(counted).then_some(()))?;
    program.interrupt()?;
    program.ends_well()
}

/// The examples with large trees, and what `cargo generate` makes of the templates.
#[test]
fn generated_projects() -> Result<()> {
    if std::env::var("NEWCOMER").is_ok_and(|value| value == "all") {
        worker(Project::of_template("worker", "our-worker")?)?;
        for template in ["axum", "shop"] {
            let project = Project::of_template(template, &format!("our-{template}"))?;
            let manifest = project.read("Cargo.toml")?;
            ensure!(manifest.contains(&format!("name = \"our-{template}\"")), "{manifest}");
            let workflow = project.read(".github/workflows/ci.yml")?;
            ensure!(workflow.contains("${{ github.ref }}"), "{workflow}");
            ensure!(project.read("cargo-generate.toml").is_err(), "it is no template itself");
            project.built()?;
        }
        for example in ["bridges", "postgres_limits", "tcp_store"] {
            Project::of_example(example)?.test()?;
        }
    }
    Ok(())
}
