//! Checks the style of the project's files, and fails if a file breaks a rule:
//!
//! - Doc comments begin with a noun or a verb, never with a relative word: "Returns…", not "What…".
//! - No line of code or prose is wider than 100 columns. Rows of tables may be, and lines with a
//!   word that cannot be broken.
//! - The metrics in a crate's README are those in its code.
//! - Policies name no runtime, store or database, and stores no face: data flows one way.
//! - No three files of a crate import each other in a circle.
//! - READMEs read well where rustdoc does not process them: no hidden lines in examples, no links
//!   to items by their paths.
//!
//! `cargo run -p scale-style` in the project's root. `cargo run -p scale-style -- links FOLDER`
//! checks that the links to docs.rs lead to pages and items of the documentation in that folder.

mod imports;
mod links;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Widest line, in characters.
const WIDTH: usize = 100;
/// Widest line of an example: docs.rs cuts longer ones off.
const EXAMPLE: usize = 95;
/// Longest word of a line that may be wider: an address or a hash.
const UNBREAKABLE: usize = 60;

/// Words that no doc comment begins with.
const RELATIVE: [&str; 19] = [
    "What", "Who", "Whom", "Whose", "Whoever", "Whatever", "Whichever", "Whether", "How", "When",
    "Where", "Why", "Which", "So", "Of", "By", "Those", "Such", "That",
];

/// Crates with metrics.
const CRATES: [&str; 5] =
    ["scale-cache", "scale-db", "scale-limit", "scale-queue", "scale-session"];

/// Crates whose files must not import each other in circles, beside those with metrics.
const SUPPORT: [&str; 3] = ["support/scale-common", "support/scale-redis", "support/scale-sql"];

/// Folders of decisions without input or output, except for their tests.
const POLICIES: [&str; 3] =
    ["scale-cache/src/policy/", "scale-limit/src/algorithm/", "scale-db/src/router/"];

/// Words that must not occur in policies.
const IMPURE: [&str; 3] = ["tokio", "redis", "sqlx"];

/// Faces: modules that stores must not import.
const FACES: [&str; 11] = [
    "auth", "batch", "cache", "chain", "dashboard", "layer", "limiter", "queue", "session",
    "space", "worker",
];

/// Files that are not checked: test data, third-party code, and style sheets.
const EXCEPTIONS: [&str; 3] = ["/vendor/", "/tests/schemas/", ".css"];

fn main() -> ExitCode {
    let files = match listed() {
        Ok(files) => files,
        Err(error) => {
            eprintln!("could not list the files of the project with git: {error}");
            return ExitCode::FAILURE;
        }
    };
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [links, folder] = &words[..]
        && links == "links"
    {
        return links::check(&files, Path::new(folder));
    }
    let mut faults = 0;
    let mut texts = BTreeMap::new();
    for file in files {
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        for (line, fault) in faults_of(&file, &text) {
            eprintln!("{}:{line}: {fault}", file.display());
            faults += 1;
        }
        texts.insert(file, text);
    }
    for name in CRATES {
        let (code, docs) = metrics_of(Path::new(name), &texts);
        for metric in code.symmetric_difference(&docs) {
            let place = if code.contains(metric) { "README" } else { "code" };
            eprintln!("{name}: `{metric}` is missing in the {place}");
            faults += 1;
        }
    }
    for name in CRATES.into_iter().chain(SUPPORT) {
        for circle in imports::circles(Path::new(name), &texts) {
            eprintln!("{name}: these files import each other: {circle}");
            faults += 1;
        }
    }
    if faults == 0 {
        return ExitCode::SUCCESS;
    }
    eprintln!("{faults} faults: the rules are in support/style");
    ExitCode::FAILURE
}

/// Returns the files that git tracks, or would track with the next commit.
fn listed() -> std::io::Result<Vec<PathBuf>> {
    let arguments = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let output = Command::new("git").args(arguments).output()?;
    let checked = |path: &&str| {
        let path = Path::new(path);
        path.extension().is_some_and(|kind| ["rs", "md"].iter().any(|known| kind == *known))
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let excepted = |path: &&str| EXCEPTIONS.iter().any(|part| path.contains(part));
    Ok(text.lines().filter(checked).filter(|path| !excepted(path)).map(PathBuf::from).collect())
}

/// Returns the faults of a file, each with its line number.
fn faults_of(file: &Path, text: &str) -> Vec<(usize, String)> {
    let is_rust = file.extension().is_some_and(|kind| kind == "rs");
    let mut faults = Vec::new();
    let (mut was_doc, mut in_fence) = (false, false);
    for (number, line) in text.lines().enumerate() {
        let trimmed = line.trim_start();
        let doc = doc_of(trimmed).filter(|_| is_rust);
        if let Some(doc) = doc.filter(|doc| !was_doc && !doc.is_empty()) {
            let first = doc.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
            if RELATIVE.contains(&first) {
                faults.push((number + 1, format!("a doc comment begins with `{first}`")));
            }
        }
        was_doc = doc.is_some();
        let prose = doc.unwrap_or(trimmed);
        // A comment ends with the fence of its example.
        in_fence &= !is_rust || doc.is_some();
        let is_fence = (!is_rust || doc.is_some()) && prose.starts_with("```");
        in_fence ^= is_fence;
        let shown = doc_text(trimmed).filter(|_| is_rust).unwrap_or(line);
        let is_shown = in_fence && is_read_on_docs_rs(file) && !shown.starts_with("# ");
        if is_shown && shown.chars().count() > EXAMPLE {
            faults.push((number + 1, format!("an example wider than {EXAMPLE} columns")));
        }
        let width = line.chars().count();
        let is_table = prose.starts_with('|') && !in_fence;
        if width > WIDTH && !is_table && !has_long_word(line) {
            faults.push((number + 1, format!("{width} columns, {WIDTH} are the most")));
        }
    }
    faults.extend(flow_of(file, text));
    if file.file_name().is_some_and(|name| name == "README.md") {
        faults.extend(links::unreadable(text));
    }
    faults
}

/// Returns the lines of a policy that name a runtime or a store, and those of a store that name a
/// face.
fn flow_of(file: &Path, text: &str) -> Vec<(usize, String)> {
    let path = file.to_string_lossy();
    let is_policy = POLICIES.iter().any(|folder| path.starts_with(folder));
    let is_store = path.contains("/src/store/");
    let code = text.lines().take_while(|line| *line != "#[cfg(test)]");
    let code = code.enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
    let fault = |line: &str| {
        let impure = IMPURE.iter().find(|word| is_policy && line.contains(**word));
        let impure = impure.map(|word| format!("a policy names `{word}`"));
        let face = line.strip_prefix("use crate::").filter(|_| is_store);
        let face = face.and_then(|path| path.split([':', ';']).next());
        let face = face.filter(|name| FACES.contains(name));
        impure.or_else(|| face.map(|name| format!("a store imports the face `{name}`")))
    };
    code.filter_map(|(number, line)| Some((number + 1, fault(line)?))).collect()
}

/// Returns the names of a crate's metrics in its code, and those in its README's tables.
fn metrics_of(
    name: &Path,
    texts: &BTreeMap<PathBuf, String>,
) -> (BTreeSet<String>, BTreeSet<String>) {
    let mut code = BTreeSet::new();
    for text in texts.iter().filter(|(file, _)| file.starts_with(name.join("src"))).map(|(_, t)| t)
    {
        for made in ["counter!(", "gauge!(", "histogram!(", "Key::from_parts("] {
            let after = text.split(made).skip(1).map(str::trim_start);
            let names = after.filter_map(|rest| rest.strip_prefix('"')?.split('"').next());
            code.extend(names.filter(|name| name.starts_with("scale_")).map(str::to_owned));
        }
    }
    let readme = texts.get(&name.join("README.md")).map_or("", String::as_str);
    let section = readme.split("\n## Metrics\n").nth(1).unwrap_or_default();
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    (code, rows.map(str::to_owned).collect())
}

/// Returns the text of a line of a doc comment.
fn doc_of(trimmed: &str) -> Option<&str> {
    doc_text(trimmed).map(str::trim_start)
}

/// Returns the same, with its indentation.
fn doc_text(trimmed: &str) -> Option<&str> {
    let rest = trimmed.strip_prefix("///").or_else(|| trimmed.strip_prefix("//!"))?;
    (!rest.starts_with('/')).then(|| rest.strip_prefix(' ').unwrap_or(rest))
}

/// Returns whether the file is a part of a published crate's documentation.
fn is_read_on_docs_rs(file: &Path) -> bool {
    let path = file.to_string_lossy();
    let is_published = CRATES.iter().any(|name| path.starts_with(name));
    is_published && !path.contains("/tests/") || path.starts_with("support/guide/")
}

fn has_long_word(line: &str) -> bool {
    line.split_whitespace().any(|word| word.chars().count() > UNBREAKABLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(file: &str, text: &str) -> Vec<usize> {
        faults_of(Path::new(file), text).into_iter().map(|(line, _)| line).collect()
    }

    #[test]
    fn an_example_fits_the_page() {
        let wide = "x ".repeat(48);
        let readme = format!("```rust\n{wide}\n```\n{wide}\n");
        assert_eq!(faults("scale-db/README.md", &readme), [2]);
        assert_eq!(faults("CONTRIBUTING.md", &readme), [0; 0]);
        let code = format!("/// A page.\n///\n/// ```\n/// {wide}\n/// ```\nlet {wide}\n");
        assert_eq!(faults("scale-db/src/page.rs", &code), [4]);
    }

    #[test]
    fn doc_comments_begin_with_a_noun_or_a_verb() {
        let good =
            "//! Rooms.\n\n/// Returns it.\n/// What follows is fine.\nfn f() {}\n// So is this.";
        assert!(faults("a.rs", good).is_empty());
        assert_eq!(faults("a.rs", "/// Whether it is.\nfn f() {}\n\n    //! How it is."), [1, 4]);
        assert!(faults("a.rs", "/// Whetherness.").is_empty());
        assert!(faults("a.md", "What a page says.").is_empty());
    }

    #[test]
    fn metrics_are_found_in_code_and_docs() {
        let code = "metrics::counter!(\n    \"scale_x_a_total\", \"by\" => by).increment(1);\n\
            metrics::Key::from_parts(\"scale_x_b\", v); \"scale_x_table\"";
        let readme = "\n## Metrics\n\n| name |\n| --- |\n| `scale_x_a_total` | of all |\n\
            \n## Features\n\n| `scale_x_c` |\n";
        let texts = [("x/src/lib.rs", code), ("x/README.md", readme)];
        let texts = texts.map(|(file, text)| (file.into(), text.to_owned()));
        let (code, docs) = metrics_of(Path::new("x"), &texts.into());
        assert_eq!(Vec::from_iter(code), ["scale_x_a_total", "scale_x_b"]);
        assert_eq!(Vec::from_iter(docs), ["scale_x_a_total"]);
    }

    #[test]
    fn data_flows_one_way() {
        let policy = "//! Not of tokio.\nuse tokio::time::Instant;\n#[cfg(test)]\nuse tokio::test;";
        assert_eq!(faults("scale-cache/src/policy/a.rs", policy), [2]);
        assert!(faults("scale-cache/src/core/a.rs", policy).is_empty());
        let store = "use crate::queue::Queue;\nuse crate::error::Error;";
        assert_eq!(faults("scale-queue/src/store/sql/a.rs", store), [1]);
        assert!(faults("scale-queue/src/worker/a.rs", store).is_empty());
    }

    #[test]
    fn lines_are_not_too_wide() {
        let wide = "word ".repeat(21);
        assert_eq!(faults("a.rs", &format!("fn f() {{}}\n// {wide}")), [2]);
        assert_eq!(faults("a.md", &wide), [1]);
        assert!(faults("a.rs", &format!("/// | {wide} |\n// {}", "x".repeat(99))).is_empty());
        assert!(faults("a.md", &format!("| {wide} |\nsee https://{}", "x".repeat(99))).is_empty());
        assert!(faults("a.rs", &"ä".repeat(100)).is_empty(), "characters, not bytes");
    }
}
