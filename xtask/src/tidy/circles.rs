//! No circle of imports: of two modules that stand beside each other, one may need the other, not both each other, by way of
//! others either. What is in a module and what it is in may.

use std::collections::{BTreeMap, BTreeSet};

use super::Finding;
use super::paths::PathUse;

/// A module, by the names that lead to it from its crate's root.
type Module = Vec<String>;

/// Who needs whom of the modules in one module, with the first place that shows it.
type Arrows<'a> = BTreeMap<String, BTreeMap<String, (&'a str, usize)>>;

/// Every circle in the files' crates, each once.
pub(super) fn check(files: &[(String, Vec<PathUse>)]) -> Vec<Finding> {
    let mut crates: BTreeMap<&str, BTreeMap<Module, (&str, &[PathUse])>> = BTreeMap::new();
    for (path, named) in files {
        if let Some((folder, inside)) = path.split_once("/src/") {
            crates.entry(folder).or_default().insert(module(inside), (path, named));
        }
    }
    crates.values().flat_map(in_crate).collect()
}

/// Which module a file is, by its path from the crate's source folder.
fn module(path: &str) -> Module {
    match path.trim_end_matches(".rs") {
        "lib" | "main" => Module::new(),
        path => path.split('/').map(str::to_owned).collect(),
    }
}

fn in_crate(modules: &BTreeMap<Module, (&str, &[PathUse])>) -> Vec<Finding> {
    let known: BTreeSet<&Module> = modules.keys().collect();
    let mut levels: BTreeMap<Module, Arrows<'_>> = BTreeMap::new();
    for (from, (path, named)) in modules {
        for PathUse { path: to, line } in *named {
            let Some(to) = target(&known, from, to) else { continue };
            let shared = from.iter().zip(&to).take_while(|(one, other)| one == other).count();
            if let (Some(one), Some(other)) = (from.get(shared), to.get(shared)) {
                let arrows = levels.entry(from[..shared].to_vec()).or_default();
                arrows.entry(one.clone()).or_default().entry(other.clone()).or_insert((path, *line));
            }
        }
    }
    levels.values().flat_map(circles).collect()
}

/// The module that a path in `from` leads into.
fn target(known: &BTreeSet<&Module>, from: &Module, path: &str) -> Option<Module> {
    let mut parts = path.split("::").peekable();
    let mut reached = match *parts.peek()? {
        "crate" => Module::new(),
        _ => from.clone(),
    };
    while let Some(up) = parts.next_if(|part| matches!(*part, "crate" | "self" | "super")) {
        if up == "super" {
            reached.pop()?;
        }
    }
    for part in parts {
        reached.push(part.to_owned());
        if !known.contains(&reached) {
            reached.pop();
            break;
        }
    }
    Some(reached)
}

fn circles(arrows: &Arrows<'_>) -> Vec<Finding> {
    let reach: BTreeMap<&String, BTreeSet<&String>> = arrows.keys().map(|from| (from, reached(arrows, from))).collect();
    let mut told = BTreeSet::new();
    let mut found = Vec::new();
    for (first, others) in &reach {
        let circle: Vec<&String> = others
            .iter()
            .filter(|other| reach.get(**other).is_some_and(|back| back.contains(first)))
            .copied()
            .collect();
        if circle.is_empty() || !told.insert(circle.clone()) {
            continue;
        }
        let within = |name: &String| circle.contains(&name);
        let inside = arrows.iter().filter(|(from, _)| within(from)).flat_map(|(from, to)| {
            let to = to.iter().filter(|(to, _)| within(to));
            to.map(move |(to, (path, line))| (from, to, *path, *line))
        });
        let shown = inside.clone().map(|(from, to, path, line)| format!("{from} needs {to} ({path}:{line})"));
        let text = format!("a circle of imports; move what both need to where neither is: {}", join(shown, "; "));
        let (_, _, path, line) = inside.clone().next().unwrap_or((first, first, "", 0));
        let item = join(circle.iter().map(|name| (*name).clone()), ", ");
        found.push(Finding { rule: "circle", path: path.to_owned(), line, item, text });
    }
    found
}

/// Everything that can be reached from a module by arrows.
fn reached<'a>(arrows: &'a Arrows<'_>, from: &String) -> BTreeSet<&'a String> {
    let mut found = BTreeSet::new();
    let mut open: Vec<&String> = arrows.get(from).into_iter().flat_map(BTreeMap::keys).collect();
    while let Some(next) = open.pop() {
        if found.insert(next) {
            open.extend(arrows.get(next).into_iter().flat_map(BTreeMap::keys));
        }
    }
    found
}

fn join(words: impl Iterator<Item = String>, between: &str) -> String {
    words.collect::<Vec<_>>().join(between)
}
