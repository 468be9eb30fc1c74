//! Import circles of a crate: files that import each other through at least one third file.
//!
//! An import is a path that begins with `crate`, `super`, `self` or a child module, in a `use` or
//! elsewhere in the code. A name that another module re-exports counts as an import of the file
//! that defines it. A re-export of a module's own children is no import.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

/// Path of a module inside its crate: empty for the root.
type Module = Vec<String>;

/// Returns one circle of at least three files for each set of files that form one.
pub(crate) fn circles(folder: &Path, texts: &BTreeMap<PathBuf, String>) -> Vec<String> {
    let edges = imports(folder, texts);
    let mut found = BTreeSet::new();
    let mut circles = Vec::new();
    for (from, targets) in &edges {
        for to in targets {
            let Some(path) = way_back(&edges, to, from) else { continue };
            if found.insert(path.iter().copied().collect::<BTreeSet<_>>()) {
                let names = [from].into_iter().chain(path).map(shown);
                circles.push(names.collect::<Vec<_>>().join(" → "));
            }
        }
    }
    circles
}

fn shown(module: &Module) -> String {
    if module.is_empty() { "lib".to_owned() } else { module.join("/") }
}

/// Returns a path between two modules that does not consist of one direct import.
fn way_back<'a>(
    edges: &'a BTreeMap<Module, BTreeSet<Module>>,
    from: &'a Module,
    to: &'a Module,
) -> Option<Vec<&'a Module>> {
    let mut before = BTreeMap::from([(from, None)]);
    let mut queue = VecDeque::from([from]);
    while let Some(module) = queue.pop_front() {
        for next in edges.get(module).into_iter().flatten() {
            if (module == from && next == to) || before.contains_key(next) {
                continue;
            }
            before.insert(next, Some(module));
            if next == to {
                let mut path = vec![next];
                while let Some(Some(previous)) = path.last().and_then(|last| before.get(last)) {
                    path.push(previous);
                }
                path.reverse();
                return Some(path);
            }
            queue.push_back(next);
        }
    }
    None
}

/// Returns the files that each file of a crate imports.
fn imports(folder: &Path, texts: &BTreeMap<PathBuf, String>) -> BTreeMap<Module, BTreeSet<Module>> {
    let files = texts.iter().filter_map(|(file, text)| Some((module_of(folder, file)?, text)));
    let files: BTreeMap<Module, Vec<Import>> =
        files.map(|(module, text)| (module, imports_of(text))).collect();
    let names: BTreeMap<&Module, BTreeMap<&str, Module>> = files
        .iter()
        .map(|(module, imports)| {
            let known = imports.iter().filter_map(|import| {
                let target = absolute(&files, module, &import.path)?;
                Some((import.path.last()?.as_str(), target))
            });
            (module, known.collect())
        })
        .collect();
    let edges = files.iter().map(|(module, imports)| {
        let targets = imports.iter().filter_map(|import| {
            let target = absolute(&files, module, &import.path)?;
            if import.is_public && target.starts_with(module) {
                return None;
            }
            resolved(&names, &target, 0).filter(|target| target != module)
        });
        (module.clone(), targets.collect())
    });
    edges.collect()
}

/// A path that a file imports.
struct Import {
    path: Vec<String>,
    is_public: bool,
}

/// Returns a file's module, if the file belongs to the crate.
fn module_of(folder: &Path, file: &Path) -> Option<Module> {
    let file = file.strip_prefix(folder.join("src")).ok()?.with_extension("");
    let mut module: Module = file.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if module.last().is_some_and(|last| last == "mod" || last == "lib") {
        module.pop();
    }
    Some(module)
}

/// Returns the imports of a file, without those of its tests.
fn imports_of(text: &str) -> Vec<Import> {
    let lines = text.lines().take_while(|line| *line != "#[cfg(test)]");
    let code: Vec<&str> = lines.map(|line| line.split("//").next().unwrap_or_default()).collect();
    let code = code.join("\n");
    let mut imports = Vec::new();
    for statement in code.split_inclusive(';') {
        let start = statement.rfind("use ").filter(|at| is_use(&statement[..*at]));
        if let Some(at) = start {
            let before = statement[..at].trim_end();
            let is_public = before.ends_with("pub") || before.ends_with(')');
            let tree = statement[at + 4..].trim_end_matches(';');
            let paths = expanded(&tree.split_whitespace().collect::<Vec<_>>().join(" "));
            imports.extend(paths.into_iter().map(|path| Import { path, is_public }));
        }
        let code = &statement[..start.unwrap_or(statement.len())];
        for word in code.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')) {
            let path: Vec<String> = word.split("::").map(str::to_owned).collect();
            let is_own = ["crate", "super", "self"].iter().any(|first| path[0] == *first);
            if is_own && path.len() > 1 && path.iter().all(|part| !part.is_empty()) {
                imports.push(Import { path, is_public: false });
            }
        }
    }
    imports
}

/// Returns whether a `use` after this text begins an import.
fn is_use(before: &str) -> bool {
    let line = before.rsplit('\n').next().unwrap_or_default().trim();
    line.is_empty() || line == "pub" || (line.starts_with("pub(") && line.ends_with(')'))
}

/// Returns the paths of an import tree: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expanded(tree: &str) -> Vec<Vec<String>> {
    let tree = tree.trim();
    let Some(open) = tree.find('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        return vec![path.split("::").map(|part| part.trim().to_owned()).collect()];
    };
    let (prefix, inside) = (&tree[..open], tree[open + 1..].trim_end());
    let inside = inside.strip_suffix('}').unwrap_or(inside);
    let (mut depth, mut start, mut parts) = (0_usize, 0, Vec::new());
    for (at, c) in inside.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&inside[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&inside[start..]);
    let parts = parts.into_iter().map(str::trim).filter(|part| !part.is_empty());
    parts.flat_map(|part| expanded(&format!("{prefix}{part}"))).collect()
}

/// Returns a path from the root of the crate; `None` if it leads into another crate.
fn absolute(
    files: &BTreeMap<Module, Vec<Import>>,
    module: &Module,
    path: &[String],
) -> Option<Module> {
    let (first, rest) = path.split_first()?;
    let joined = |base: &[String], rest: &[String]| [base, rest].concat();
    match first.as_str() {
        "crate" => Some(rest.to_vec()),
        "self" => Some(joined(module, rest)),
        "super" => {
            let ups = path.iter().take_while(|part| *part == "super").count();
            Some(joined(&module[..module.len().checked_sub(ups)?], &path[ups..]))
        }
        child => {
            let child = joined(module, &[child.to_owned()]);
            files.contains_key(&child).then(|| joined(&child, rest))
        }
    }
}

/// Returns the file that defines a path: follows re-exports.
fn resolved(
    names: &BTreeMap<&Module, BTreeMap<&str, Module>>,
    path: &Module,
    depth: usize,
) -> Option<Module> {
    for length in (0..=path.len()).rev() {
        let (module, rest) = (path[..length].to_vec(), &path[length..]);
        let Some(known) = names.get(&module) else { continue };
        let target = rest.first().and_then(|name| known.get(name.as_str()));
        let Some(target) = target.filter(|_| depth < 10) else { return Some(module) };
        let target = [target, &rest[1..]].concat();
        if target == *path {
            return Some(module);
        }
        return resolved(names, &target, depth + 1);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circles_of(files: &[(&str, &str)]) -> Vec<String> {
        let texts = files.iter().map(|(file, text)| (file.into(), (*text).to_owned()));
        circles(Path::new("x"), &texts.collect())
    }

    #[test]
    fn three_files_that_import_each_other_are_a_circle() {
        let files = [
            ("x/src/a.rs", "use crate::b::{self, B};\n"),
            ("x/src/b.rs", "//! Of `crate::a`.\nfn f() { crate::c::g() }\n"),
            ("x/src/c/mod.rs", "mod d;\nuse super::a::A;\n"),
        ];
        assert_eq!(circles_of(&files), ["a → b → c → a"]);
    }

    #[test]
    fn two_files_and_re_exports_are_none() {
        let files = [
            ("x/src/lib.rs", "mod a;\nmod b;\nmod c;\npub use a::A;\npub use b::B;\n"),
            ("x/src/a.rs", "use crate::b::B;\n"),
            ("x/src/b.rs", "use crate::a::A;\nuse std::sync::Arc;\n"),
            ("x/src/c.rs", "use crate::{A, B};\n#[cfg(test)]\nmod t { use crate::a; }\n"),
        ];
        assert!(circles_of(&files).is_empty());
        // A re-export does not hide an import.
        let hidden = [
            ("x/src/lib.rs", "mod a;\nmod b;\nmod c;\npub use c::C;\n"),
            ("x/src/a.rs", "use crate::b::B;\n"),
            ("x/src/b.rs", "use crate::C;\n"),
            ("x/src/c.rs", "use crate::a::{\n    A,\n};\n"),
        ];
        assert_eq!(circles_of(&hidden), ["a → b → c → a"]);
    }
}
