//! The shape of the source: no circle between the files of a crate, and no file that is too long to be read in a sitting.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::check::sources::{Sources, sources};

/// Lines a file may have, its tests apart.
const MOST_LINES: usize = 500;

/// Files that are too long.
pub(super) fn long_files(root: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for (name, files) in crates(root)? {
        for (module, text) in files {
            let lines = text.lines().count();
            if lines > MOST_LINES {
                let file = module.join("/");
                found.push(format!(
                    "{name}/src/{file}.rs has {lines} lines without its tests, more than {MOST_LINES}"
                ));
            }
        }
    }
    Ok(found)
}

/// Files of a crate that use each other in a circle.
pub(super) fn circles(root: &Path) -> Result<Vec<String>> {
    let circles = crates(root)?.into_iter().map(|(name, files)| (name, circle_in(&files)));
    let found = circles.filter(|(_, circle)| !circle.is_empty());
    Ok(found
        .map(|(name, circle)| format!("{name}: {} use each other in a circle", circle.join(", ")))
        .collect())
}

/// Every crate of the workspace, by its directory.
fn crates(root: &Path) -> Result<Vec<(String, Sources)>> {
    let mut names = vec!["xtask".to_owned()];
    for entry in fs::read_dir(root.join("crates")).context("cannot list crates/")? {
        names.push(format!("crates/{}", entry.context("cannot list crates/")?.file_name().display()));
    }
    names.sort();
    let read = |name: String| {
        let files = sources(&root.join(&name).join("src"))?;
        Ok((name, files))
    };
    names.into_iter().map(read).collect()
}

/// The files in circles and between them: what is left when a file that uses none of the others is taken away, again and
/// again. The root of a crate declares its modules and is in no circle.
fn circle_in(files: &Sources) -> Vec<String> {
    let root = ["lib".to_owned()];
    // What the root re-exports, and the file behind it.
    let mut reexports = BTreeMap::new();
    for path in paths(files.get(&root[..]).map_or("", String::as_str), &["pub use ", "pub(crate) use "]) {
        if let (Some(name), Some(file)) = (path.last(), file_of(files, &[], &path)) {
            reexports.insert(name.clone(), file);
        }
    }
    let used = |module: &[String], text: &str| -> Vec<Vec<String>> {
        let file = |path: Vec<String>| {
            file_of(files, module, &path)
                .or_else(|| (path[0] == "crate").then(|| reexports.get(path.get(1)?).cloned())?)
        };
        let uses = paths(text, &["crate::", "super::", "self::"]);
        uses.into_iter().filter_map(file).filter(|file| file != module).collect()
    };
    let modules = files.iter().filter(|(module, _)| !matches!(module[0].as_str(), "lib" | "main"));
    let mut left: BTreeMap<_, _> = modules.map(|(module, text)| (module, used(module, text))).collect();
    while let Some(free) = left.iter().find(|(_, uses)| !uses.iter().any(|file| left.contains_key(file))) {
        let free = *free.0;
        left.remove(free);
    }
    left.into_keys().map(|file| file.join("/")).collect()
}

/// The file a path in `module` leads to: the longest part of the path that is a file.
fn file_of(files: &Sources, module: &[String], path: &[String]) -> Option<Vec<String>> {
    let mut full = module.to_vec();
    for part in path {
        match part.as_str() {
            "crate" => full.clear(),
            "self" => {}
            "super" => drop(full.pop()),
            _ => full.push(part.clone()),
        }
    }
    (1..=full.len()).rev().map(|length| full[..length].to_vec()).find(|part| files.contains_key(part))
}

/// The paths that begin with, or for `use` declarations after, one of `starts`.
fn paths(text: &str, starts: &[&str]) -> Vec<Vec<String>> {
    let code: String =
        text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    for start in starts {
        for (at, _) in code.match_indices(start) {
            let is_part = code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
            if !is_part {
                let from = if start.ends_with(' ') { at + start.len() } else { at };
                tree(&mut &code[from..], Vec::new(), &mut found);
            }
        }
    }
    found
}

/// Reads `a::b` or `a::{b, c::{d, e}}`, as far as it is one.
fn tree(rest: &mut &str, mut path: Vec<String>, found: &mut Vec<Vec<String>>) {
    loop {
        *rest = rest.trim_start();
        if let Some(inside) = rest.strip_prefix('{') {
            *rest = inside;
            while !rest.is_empty() && !rest.starts_with('}') {
                tree(rest, path.clone(), found);
                // Over a comma, an `as` and a `*`.
                *rest =
                    rest.trim_start_matches(|c| !matches!(c, ',' | '}')).trim_start_matches(',').trim_start();
            }
            *rest = rest.strip_prefix('}').unwrap_or(rest);
            return;
        }
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        if end > 0 {
            path.push(rest[..end].to_owned());
        }
        *rest = &rest[end..];
        match rest.strip_prefix("::") {
            Some(after) if end > 0 => *rest = after,
            _ => return found.push(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::sources::without_tests;

    fn files(of: &[(&str, &str)]) -> Sources {
        let module = |name: &str| name.split('/').map(str::to_owned).collect();
        of.iter().map(|(name, text)| (module(name), without_tests(text))).collect()
    }

    #[test]
    fn circles_are_found_through_lists_parents_and_reexports() {
        let found = |of: &[(&str, &str)]| circle_in(&files(of));
        assert_eq!(found(&[("a", "use crate::b::B;"), ("b", "use crate::a::{self, A};")]), ["a", "b"]);
        assert_eq!(
            found(&[("a", "fn f() { crate::b::g() }"), ("b", "use super::{c, a::A as B};"), ("c", "")]),
            ["a", "b"]
        );
        let behind =
            [("lib", "mod a;\npub use a::{A, b::*};"), ("a", "use super::b::x;"), ("b", "use crate::A;")];
        assert_eq!(found(&behind), ["a", "b"]);
        let below = [
            ("a/one", "use super::two::x;"),
            ("a/two", "use crate::b;"),
            ("b", "use crate::{c, a::{one::y}};"),
            ("c", ""),
        ];
        assert_eq!(found(&below), ["a/one", "a/two", "b"]);
    }

    #[test]
    fn what_is_no_circle_is_none() {
        let plain = [
            ("lib", "mod a;\nmod b;\npub use a::A;\npub use b::B;"),
            ("a", "use crate::b::B; // and crate::c::C uses this\nuse other_crate::c::X;"),
            ("b", "use std::fs;\n\n#[cfg(test)]\nmod tests {\n    use crate::a::A;\n}"),
            ("c", "use crate::{A, B};"),
        ];
        assert_eq!(circle_in(&files(&plain)), [""; 0]);
    }

    #[test]
    fn tests_do_not_count_as_lines() {
        let root = tempfile::tempdir().unwrap();
        let write = |file: &str, lines: usize, tests: usize| {
            let file = root.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            let text = "// x\n".repeat(lines) + "#[cfg(test)]\nmod tests {\n" + &"//\n".repeat(tests) + "}\n";
            fs::write(file, text).unwrap();
        };
        write("xtask/src/main.rs", 500, 500);
        write("crates/a/src/b/tests.rs", 600, 0);
        write("crates/a/src/b/c.rs", 501, 0);
        let said = ["crates/a/src/b/c.rs has 501 lines without its tests, more than 500"];
        assert_eq!(long_files(root.path()).unwrap(), said);
    }
}
