//! Links and examples of READMEs, which are also read where rustdoc does not process them.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Site of the documentation.
const SITE: &str = "https://docs.rs/";

/// Returns the lines of a README that only rustdoc would show as meant.
pub(crate) fn unreadable(text: &str) -> Vec<(usize, String)> {
    let (mut faults, mut in_fence, mut is_rust) = (Vec::new(), false, false);
    for (number, line) in text.lines().enumerate() {
        let mut fault = |what: String| faults.push((number + 1, what));
        if let Some(kind) = line.strip_prefix("```") {
            in_fence = !in_fence;
            is_rust = ["rust", "no_run", "compile_fail"].iter().any(|word| kind.starts_with(word));
            if in_fence && kind.is_empty() {
                fault("an example without a language".to_owned());
            }
        } else if in_fence {
            if is_rust && (line == "#" || line.starts_with("# ")) {
                fault("a hidden line of an example".to_owned());
            }
        } else {
            let targets = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
            for target in targets.filter(|target| target.contains("::") && !target.contains("//")) {
                fault(format!("a link to an item by its path: `{target}`"));
            }
            let is_definition = line.starts_with("[`") && line.contains("`]: http");
            for name in line.split("[`").skip(1).filter_map(shortcut).filter(|_| !is_definition) {
                if !text.contains(&format!("\n[`{name}`]: ")) {
                    fault(format!("a link without an address: `{name}`"));
                }
            }
        }
    }
    faults
}

/// Returns the name of a link that has its address elsewhere, from its text on.
fn shortcut(rest: &str) -> Option<&str> {
    let (name, after) = rest.split_once("`]")?;
    (!name.contains('`') && !after.starts_with(['(', '['])).then_some(name)
}

/// Checks that the links to the crates' documentation lead to pages and items in this folder.
pub(crate) fn check(files: &[PathBuf], folder: &Path) -> ExitCode {
    let mut faults = 0;
    for file in files {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        for rest in text.split(SITE).skip(1) {
            let end = rest.find(|c: char| c.is_whitespace() || ")>\"'`".contains(c));
            let address = &rest[..end.unwrap_or(rest.len())];
            if address.starts_with("scale-") && !leads_somewhere(address, folder) {
                eprintln!("{}: {SITE}{address} leads nowhere", file.display());
                faults += 1;
            }
        }
    }
    if faults == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Returns whether the documentation has the page, and the item on it.
fn leads_somewhere(address: &str, folder: &Path) -> bool {
    let (page, item) = address.split_once('#').unwrap_or((address, ""));
    // The first page of a crate.
    let Some((_, page)) = page.split_once("/latest/") else { return !page.contains('/') };
    let page = if page.ends_with('/') { format!("{page}index.html") } else { page.to_owned() };
    let Ok(html) = std::fs::read_to_string(folder.join(page)) else { return false };
    item.is_empty() || html.contains(&format!("id=\"{item}\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_readme_needs_no_rustdoc() {
        let good = "# A\n\n```sh\n# a comment\n```\n\nSee [`A::b`], [c](http://d/e::f).\n\
            \n[`A::b`]: https://docs.rs/a\n";
        assert!(unreadable(good).is_empty(), "{:?}", unreadable(good));
        let bad = "[`A`]: a\n[a](b::C)\n```rust\n# use a;\n```\n```\n```\n";
        let lines: Vec<_> = unreadable(bad).into_iter().map(|(line, _)| line).collect();
        assert_eq!(lines, [1, 2, 4, 6]);
    }
}
