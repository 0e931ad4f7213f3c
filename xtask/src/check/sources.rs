//! The source files of a crate, without their tests.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Texts by module path.
pub(super) type Sources = BTreeMap<Vec<String>, String>;

/// The files in a crate's `src`.
pub(super) fn sources(src: &Path) -> Result<Sources> {
    let mut files = Sources::new();
    read_below(src, &[], &mut files).with_context(|| format!("cannot read {}", src.display()))?;
    Ok(files)
}

fn read_below(dir: &Path, above: &[String], files: &mut Sources) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let module = [above, &[name]].concat();
        if path.is_dir() {
            read_below(&path, &module, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            files.insert(module, without_tests(&fs::read_to_string(&path)?));
        }
    }
    Ok(())
}

pub(super) fn without_tests(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let tests = lines.windows(2).position(|pair| pair[0] == "#[cfg(test)]" && pair[1].contains("mod tests"));
    lines[..tests.unwrap_or(lines.len())].join("\n")
}
