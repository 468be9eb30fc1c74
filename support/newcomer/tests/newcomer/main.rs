//! Plays a new user of the crates: makes empty projects from nothing but the READMEs, copies
//! examples out of the tree, builds both with the packaged crates, runs them, and checks their
//! answers.
//!
//! The versions of other crates are those of the project's lock file, so that the result does not
//! change with what others publish. `NEWCOMER=all` also builds the examples with large trees.

mod client;
mod project;
mod templates;

use anyhow::{Context, Result, ensure};

use client::Client;
use project::{Project, packages, root};
use testkit::{Postgres, Redis};

#[test]
fn the_readme_of_the_cache_loads_a_value() -> Result<()> {
    let program = Project::of_readme("scale-cache")?.built()?.run(&[])?;
    program.prints("Blue mug")?;
    program.ends_well()
}

#[test]
fn the_readme_of_the_database_reads_what_it_has_written() -> Result<()> {
    let program = Project::of_readme("scale-db")?.built()?.run(&[])?;
    program.prints("4200 cents")?;
    program.ends_well()
}

#[test]
fn the_readme_of_the_queue_runs_a_job() -> Result<()> {
    let program = Project::of_readme("scale-queue")?.built()?.run(&[])?;
    program.prints("order 7, attempt 1")?;
    program.interrupt()?;
    program.ends_well()
}

#[test]
fn the_readme_of_the_sessions_counts_visits() -> Result<()> {
    let project = Project::of_readme("scale-session")?.built()?;
    let (mut client, address) = Client::of_free_port()?;
    let _program = project.run(&[&address])?;
    ensure!(client.get("/")?.body == "visit 1\n");
    ensure!(client.get("/")?.body == "visit 2\n", "with the cookie");
    ensure!(client.another().get("/")?.body == "visit 1\n", "somebody else");
    Ok(())
}

#[test]
fn the_readme_of_the_limits_limits_log_ins() -> Result<()> {
    let project = Project::of_readme("scale-limit")?.built()?;
    let (mut client, address) = Client::of_free_port()?;
    let _program = project.run(&[&address])?;
    for _ in 0..5 {
        ensure!(client.post("/login", "")?.status == 200);
    }
    let refused = client.post("/login", "")?;
    ensure!(refused.status == 429 && refused.head.contains("retry-after: "), "{}", refused.head);
    ensure!(client.get("/")?.status == 200, "other pages are not limited");
    Ok(())
}

/// Holds the conversation that each guest book answers in the same way.
fn guest_book(example: &str) -> Result<()> {
    let project = Project::of_example(example)?.built()?;
    let (mut client, address) = Client::of_free_port()?;
    let port = address.rsplit(':').next().unwrap_or_default();
    let arguments: &[&str] = if example == "loco" { &["start"] } else { &[] };
    let program = project.start(arguments, &[("ADDRESS", &address), ("PORT", port)])?;
    let first = client.get("/").with_context(|| program.errors())?;
    ensure!(first.body.starts_with("visit 1\n"), "{example}: {}", first.body);
    for n in 1..=5 {
        let written = client.post("/", &format!("text=entry+{n}"))?;
        ensure!(written.status == 303, "{example}: {}\n{}", written.head, program.errors());
        // The cache, and the visitor's own write.
        ensure!(client.get("/")?.body.contains(&format!("\nentry {n}\n")), "{example}: entry {n}");
    }
    let refused = client.post("/", "text=too+much")?;
    ensure!(refused.status == 429, "{example}: {}", refused.head);
    ensure!(refused.head.contains("retry-after: "), "{example}: {}", refused.head);
    let last = client.get("/")?;
    ensure!(last.body.starts_with("visit 7\nentry 5\n"), "{example}: {}", last.body);
    ensure!(!last.body.contains("too much"));
    ensure!(client.another().get("/")?.body.starts_with("visit 1\n"), "somebody else");
    program.prints("a new entry: entry 5")?;
    program.interrupt()?;
    program.ends_well()
}

#[test]
fn the_guest_book_on_axum() -> Result<()> {
    guest_book("axum")
}

/// The same program as a fleet: two processes with a primary, a replica and a Redis.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_guest_book_runs_on_many_servers() -> Result<()> {
    let (postgres, redis) = tokio::try_join!(Postgres::start(1), Redis::start())?;
    let (database, replica) = (postgres.node(0).url(), postgres.node(1).url());
    let shared = redis.url();
    tokio::task::spawn_blocking(move || {
        let projects = [Project::of_example("axum")?, Project::of_example("axum")?];
        let [one, another] = projects.map(Project::built);
        let (mut client, first) = Client::of_free_port()?;
        let (_, second) = Client::of_free_port()?;
        let start = |project: Result<Project>, address: &str| {
            let (database, replica) = (("DATABASE", &*database), ("REPLICA", &*replica));
            let variables = [("ADDRESS", address), database, replica, ("SHARED", &*shared)];
            project?.run_with(&variables)
        };
        let one = start(one, &first)?;
        ensure!(client.get("/")?.body.starts_with("visit 1\n"), "{}", one.errors());
        let programs = [one, start(another, &second)?];
        for n in 1..=5 {
            client.moves_to(if n % 2 == 0 { &first } else { &second });
            let written = client.post("/", &format!("text=entry+{n}"))?;
            ensure!(written.status == 303, "{}", written.head);
            client.moves_to(if n % 2 == 0 { &second } else { &first });
            // Another server hears of it within milliseconds.
            project::within(|| {
                let page = client.get("/").ok()?.body;
                page.contains(&format!("\nentry {n}\n")).then_some(())
            })
            .with_context(|| format!("entry {n}"))?;
        }
        ensure!(client.post("/", "text=too+much")?.status == 429, "one limit for both");
        let visits = client.get("/")?.body;
        let visits = visits.lines().next().and_then(|line| line.strip_prefix("visit "));
        ensure!(visits.context("no visits")?.parse::<u32>()? >= 7, "one session for both");
        for program in programs {
            program.interrupt()?;
            program.ends_well()?;
        }
        Ok(())
    })
    .await?
}

#[test]
fn the_guest_book_on_hyper() -> Result<()> {
    guest_book("hyper")
}

#[test]
fn the_guest_book_on_actix() -> Result<()> {
    guest_book("actix")
}

#[test]
fn grpc_on_tonic() -> Result<()> {
    Project::of_example("tonic")?.test()
}

/// Examples with large trees of their own, in `./test --all`.
#[test]
fn larger_frameworks() -> Result<()> {
    if std::env::var("NEWCOMER").is_ok_and(|value| value == "all") {
        for example in ["poem", "salvo", "loco"] {
            guest_book(example)?;
        }
        pages_of_leptos()?;
    }
    Ok(())
}

/// Holds the conversation of a browser without scripts.
fn pages_of_leptos() -> Result<()> {
    let project = Project::of_example("leptos")?.built()?;
    let (mut client, address) = Client::of_free_port()?;
    let program = project.run_with(&[("ADDRESS", &address)])?;
    let first = client.get("/").with_context(|| program.errors())?;
    ensure!(first.body.contains("visit 1"), "{}\n{}", first.body, program.errors());
    let (_, form) = first.body.split_once("action=\"").context("no form")?;
    let action = form.split('"').next().unwrap_or_default();
    for n in 1..=5 {
        let written = client.post(action, &format!("text=entry+{n}"))?;
        ensure!(written.status == 302, "{}\n{}", written.head, program.errors());
        ensure!(client.get("/")?.body.contains(&format!("entry {n}")), "entry {n}");
    }
    ensure!(client.post(action, "text=too+much")?.status == 429, "limited");
    ensure!(client.get("/")?.body.contains("visit 7"));
    ensure!(client.another().get("/")?.body.contains("visit 1"), "somebody else");
    program.interrupt()?;
    program.ends_well()
}

/// The application of the examples does not depend on the framework.
#[test]
fn each_guest_book_is_the_same_application() -> Result<()> {
    let of = |example: &str| {
        std::fs::read_to_string(root().join(format!("examples/{example}/src/guestbook.rs")))
    };
    let axum = of("axum")?;
    for example in ["hyper", "actix", "poem", "salvo", "loco", "leptos"] {
        ensure!(of(example)? == axum, "examples/{example}/src/guestbook.rs differs");
    }
    Ok(())
}

/// The project's README quotes code that is built.
#[test]
fn the_tour_quotes_the_guest_book() -> Result<()> {
    let readme = std::fs::read_to_string(root().join("README.md"))?;
    let quoted = readme.split("```rust\n").nth(1).and_then(|rest| rest.split("```").next());
    let book = std::fs::read_to_string(root().join("examples/axum/src/guestbook.rs"))?;
    // Without the indentation of the file.
    let lines = |text: &str| text.lines().map(str::trim).collect::<Vec<_>>().join("\n");
    let quoted = lines(quoted.context("no example")?);
    ensure!(lines(&book).contains(&quoted), "the README quotes another version");
    Ok(())
}

/// The manifests of the examples name nothing of the workspace.
#[test]
fn each_example_can_be_copied() -> Result<()> {
    let mut examples = 0;
    for example in std::fs::read_dir(root().join("examples"))? {
        let manifest = example?.path().join("Cargo.toml");
        let Ok(text) = std::fs::read_to_string(&manifest) else { continue };
        ensure!(
            !text.contains("workspace") && !text.contains("path = \".."),
            "{manifest:?}: {text}"
        );
        examples += 1;
    }
    ensure!(examples >= 13, "{examples} examples");
    ensure!(packages()?.len() >= 8);
    Ok(())
}
