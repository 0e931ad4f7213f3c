//! `check`: everything a change has to pass besides the tests.

mod house;
mod sources;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::check::sources::sources;
use crate::machine::libtorch::{self, FlavorChoice};
use crate::process::{Place, cargo, ending, note, output, say};

/// How a step ended.
enum Outcome {
    Passed,
    Skipped(String),
    Failed(String),
}

/// Top-level names a checkout may hold.
const TOP_LEVEL: [&str; 21] = [
    ".cargo",
    ".ci",
    ".gitignore",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "clippy.toml",
    "crates",
    "datasets",
    "deny.toml",
    "docs",
    "fuzz",
    "recipes",
    "weights",
    "rustfmt.toml",
    "xtask",
    ".gitattributes",
    ".github",
];

/// Endings of what a build, an editor or a download leaves.
const LITTER: [&str; 13] =
    [".so", ".dylib", ".a", ".o", ".rlib", ".whl", ".zip", ".gz", ".bin", ".pyc", ".orig", ".rej", "~"];

/// Largest file that belongs into the repository.
const SIZE_LIMIT: u64 = 1 << 20;

/// Largest weights of a network that comes with the project.
const WEIGHTS_LIMIT: u64 = 25 << 20;

pub(crate) fn check(place: &Place) -> Result<u8> {
    libtorch::ensure(place, FlavorChoice::Auto, None)?;
    type Step = (&'static str, fn(&Place) -> Outcome);
    let steps: [Step; 9] = [
        ("formatting", |place| run(place, &["fmt", "--all", "--check"])),
        ("lints", |place| {
            run(place, &["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"])
        }),
        ("licences and sources", licences),
        ("advisories", advisories),
        ("dependency directions", |place| outcome(dependency_directions(place))),
        ("circles between files", |place| outcome(house::circles(&place.root))),
        ("lengths of files", |place| outcome(house::long_files(&place.root))),
        ("stray files", stray_files),
        ("tensors of a batch on its device", |place| outcome(host_tensors(place))),
    ];
    let mut summary = Vec::new();
    let mut failed = false;
    for (name, step) in steps {
        note(format!("checking {name}"));
        summary.push(match step(place) {
            Outcome::Passed => format!("passed   {name}"),
            Outcome::Skipped(why) => format!("skipped  {name}: {why}"),
            Outcome::Failed(why) => {
                failed = true;
                format!("FAILED   {name}: {why}")
            }
        });
    }
    summary.iter().for_each(say);
    Ok(u8::from(failed))
}

fn run(place: &Place, args: &[&str]) -> Outcome {
    match cargo(place).args(args).status() {
        Ok(status) if status.success() => Outcome::Passed,
        Ok(status) => Outcome::Failed(format!("cargo {} {}", args.join(" "), ending(status))),
        Err(error) => Outcome::Failed(format!("cargo cannot be started: {error}")),
    }
}

/// Why cargo-deny is not asked.
fn no_deny(place: &Place) -> Option<Outcome> {
    let why = "cargo-deny is not installed (cargo install --locked cargo-deny)";
    output(cargo(place).args(["deny", "--version"])).is_none().then(|| Outcome::Skipped(why.to_owned()))
}

fn licences(place: &Place) -> Outcome {
    let check = ["deny", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"];
    no_deny(place).unwrap_or_else(|| run(place, &check))
}

/// Apart from the others, because their database may be out of reach.
fn advisories(place: &Place) -> Outcome {
    if let Some(skipped) = no_deny(place) {
        return skipped;
    }
    match cargo(place).args(["deny", "check", "advisories"]).output() {
        Ok(output) if output.status.success() => Outcome::Passed,
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            match said.lines().find(|line| line.contains("failed to fetch advisory database")) {
                Some(_) => Outcome::Skipped("their database cannot be fetched".to_owned()),
                None => Outcome::Failed(said.into_owned()),
            }
        }
        Err(error) => Outcome::Failed(format!("cargo cannot be started: {error}")),
    }
}

fn outcome(violations: Result<Vec<String>>) -> Outcome {
    match violations {
        Ok(violations) if violations.is_empty() => Outcome::Passed,
        Ok(violations) => Outcome::Failed(violations.join("; ")),
        Err(error) => Outcome::Failed(format!("{error:#}")),
    }
}

fn dependency_directions(place: &Place) -> Result<Vec<String>> {
    let mut command = cargo(place);
    command.args(["metadata", "--format-version", "1", "--no-deps"]);
    let text = output(&mut command).context("cargo metadata fails")?;
    violations(&serde_json::from_str(&text).context("what cargo metadata prints cannot be read")?)
}

/// Whether a crate of the workspace may depend on another one.
fn may_depend(from: &str, on: &str) -> bool {
    match from {
        // Nothing needs xtask, and only tests need test-support.
        _ if on == "xtask" || on == "test-support" => false,
        "core-layers" => on == "torch-ext",
        "torch-ext" | "run-record" => false,
        "trainer" => true,
        "xtask" | "report" | "data-cifar" => on == "run-record",
        // Everything else is an architecture, which sees no other one, no data and no trainer.
        _ => on == "core-layers",
    }
}

/// Breaches of the dependency directions, given the output of `cargo metadata --no-deps`.
fn violations(metadata: &Value) -> Result<Vec<String>> {
    // Per crate: the names it depends on, and whether only its tests do.
    let mut crates: BTreeMap<&str, Vec<(&str, bool)>> = BTreeMap::new();
    for package in metadata["packages"].as_array().context("cargo metadata lists no packages")? {
        let name = package["name"].as_str().context("a package has no name")?;
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        let edges = dependencies.filter_map(|d| Some((d["name"].as_str()?, d["kind"] == "dev")));
        crates.insert(name, edges.collect());
    }
    if !crates.contains_key("xtask") {
        bail!("cargo metadata does not list xtask");
    }
    let mut found = Vec::new();
    for (from, edges) in &crates {
        for (on, only_in_tests) in edges.iter().filter(|(on, _)| crates.contains_key(on)) {
            let forbidden = if *only_in_tests { *on == "xtask" } else { !may_depend(from, on) };
            if forbidden {
                found.push(format!("{from} must not depend on {on}"));
            }
        }
    }
    let mut reached = BTreeSet::new();
    let mut ahead = vec!["xtask"];
    while let Some(name) = ahead.pop() {
        let edges = crates.get(name).into_iter().flatten().filter(|(_, only_in_tests)| !only_in_tests);
        ahead.extend(edges.map(|(on, _)| *on).filter(|on| reached.insert(*on)));
    }
    if reached.contains("tch") || reached.contains("torch-sys") {
        found.push("xtask must not depend on tch, not even through another crate".to_owned());
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// What every batch passes in the trainer, besides all of data-cifar.
const BATCH_PATH: [&str; 6] =
    ["data/presentation", "optim/ema", "optim/loss", "optim/optimizer", "run/evaluate", "run/fit"];

/// What a tensor made on the host in there must say above it.
const ON_THE_HOST: &str = "// On the host: ";

/// Places where a batch might wait for its device: a tensor copied there from memory that is not pinned.
fn host_tensors(place: &Place) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for src in ["crates/trainer/src", "crates/data-cifar/src"] {
        let mut files = sources(&place.root.join(src))?;
        files.retain(|module, _| !src.contains("trainer") || BATCH_PATH.contains(&module.join("/").as_str()));
        for (module, text) in files {
            let file = module.join("/");
            found.extend(on_the_host(&text).into_iter().map(|line| {
                format!(
                    "{src}/{file}.rs:{line} makes a tensor on the host: use `upload`, or say why above it ({ON_THE_HOST}…)"
                )
            }));
        }
    }
    Ok(found)
}

/// Lines of a file without its tests, outside `upload`, that make a tensor on the host and do not say why.
fn on_the_host(text: &str) -> Vec<usize> {
    let mut found = Vec::new();
    let (mut in_upload, mut said) = (false, false);
    for (index, line) in text.lines().enumerate() {
        in_upload = line.contains("fn upload<") || (in_upload && line != "}");
        if line.contains("from_slice(") && line.contains("Tensor::") && !in_upload && !said {
            found.push(index + 1);
        }
        said = line.trim_start().starts_with(ON_THE_HOST);
    }
    found
}

fn stray_files(place: &Place) -> Outcome {
    let mut git = Command::new("git");
    git.current_dir(&place.root)
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .stderr(Stdio::null());
    match git.output() {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let files: Vec<&str> = text.split('\0').filter(|name| !name.is_empty()).collect();
            let size = |name: &str| fs::metadata(place.root.join(name)).map_or(0, |metadata| metadata.len());
            outcome(Ok(strays(&files, size)))
        }
        _ => Outcome::Skipped("not in a git checkout".to_owned()),
    }
}

/// Files that do not fit the layout of the workspace.
fn strays(files: &[&str], size: impl Fn(&str) -> u64) -> Vec<String> {
    let mut found = Vec::new();
    let mut crates = BTreeSet::new();
    for file in files {
        let (top, rest) = file.split_once('/').unwrap_or((file, ""));
        if !TOP_LEVEL.contains(&top) {
            found.push(format!("{file} has no place at the top level"));
        }
        if top == "crates" {
            crates.insert(rest.split('/').next().unwrap_or_default());
        }
        if LITTER.iter().any(|ending| file.ends_with(ending)) {
            found.push(format!("{file} looks like the output of a program"));
        }
        let in_tests = Path::new(file).components().any(|part| part.as_os_str() == "tests");
        let tensors = file.ends_with(".safetensors");
        if tensors && !in_tests && top != "weights" {
            found.push(format!(
                "{file}: weights belong into results or weights, references into a crate's tests"
            ));
        }
        let limit = if tensors && top == "weights" { WEIGHTS_LIMIT } else { SIZE_LIMIT };
        if size(file) > limit && !file.starts_with("datasets/digits/") {
            found.push(format!("{file} is larger than {} MiB", limit >> 20));
        }
    }
    for name in crates {
        let manifest = format!("crates/{name}/Cargo.toml");
        if !files.contains(&manifest.as_str()) {
            found.push(format!("crates/{name} has no Cargo.toml"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A crate, and what it depends on in which way.
    type Crate<'a> = (&'a str, &'a [(&'a str, Option<&'a str>)]);

    fn metadata(crates: &[Crate]) -> Value {
        let package = |(name, edges): &Crate| {
            let edges: Vec<_> = edges.iter().map(|(on, kind)| json!({"name": on, "kind": kind})).collect();
            json!({"name": name, "dependencies": edges})
        };
        json!({"packages": crates.iter().map(package).collect::<Vec<_>>()})
    }

    #[test]
    fn the_directions_of_the_design_pass() {
        let good = metadata(&[
            ("core-layers", &[("tch", None), ("test-support", Some("dev"))]),
            ("test-support", &[("core-layers", None)]),
            ("convmixer", &[("core-layers", None), ("tch", None), ("data-cifar", Some("dev"))]),
            ("a-new-one", &[("core-layers", None)]),
            ("data-cifar", &[("tch", None), ("run-record", None)]),
            ("run-record", &[("serde", None)]),
            (
                "trainer",
                &[("convmixer", None), ("data-cifar", None), ("run-record", None), ("core-layers", None)],
            ),
            ("report", &[("run-record", None), ("minijinja", None)]),
            ("xtask", &[("run-record", None), ("clap", None)]),
        ]);
        assert_eq!(violations(&good).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn every_breach_is_named() {
        let bad = metadata(&[
            ("core-layers", &[("run-record", Some("build"))]),
            ("convmixer", &[("vit", None), ("xtask", Some("dev"))]),
            ("vit", &[("data-cifar", None)]),
            ("data-cifar", &[("torch-ext", None)]),
            ("torch-ext", &[]),
            ("run-record", &[("tch", None)]),
            ("report", &[("data-cifar", None)]),
            ("test-support", &[("core-layers", None)]),
            ("trainer", &[("xtask", None), ("test-support", None)]),
            ("xtask", &[("run-record", None), ("trainer", None)]),
        ]);
        let expected = [
            "convmixer must not depend on vit",
            "convmixer must not depend on xtask",
            "core-layers must not depend on run-record",
            "data-cifar must not depend on torch-ext",
            "report must not depend on data-cifar",
            "trainer must not depend on test-support",
            "trainer must not depend on xtask",
            "vit must not depend on data-cifar",
            "xtask must not depend on tch, not even through another crate",
            "xtask must not depend on trainer",
        ];
        assert_eq!(violations(&bad).unwrap(), expected);
        assert!(violations(&json!({"packages": []})).is_err());
    }

    #[test]
    fn a_tensor_of_a_batch_is_made_by_upload_or_says_why_not() {
        let text = "fn batch() {
    let a = Tensor::from_slice(&values).to_device(device);
    // On the host: once for the set.
    let b = Tensor::f_from_slice(&values)?;
    let c = tch::Tensor::f_from_slice(&values)?;
    let d = upload(&values, device)?; d.copy_from_slice(&values);
}

fn upload<T>(values: &[T]) -> Tensor {
    Tensor::from_slice(values)
}

fn after() -> Tensor {
    Tensor::from_slice(&[1])
}
";
        assert_eq!(on_the_host(text), [2, 5, 14]);
    }

    #[test]
    fn strays_are_found_and_the_layout_passes() {
        let size = |name: &str| if name.contains("large") { SIZE_LIMIT + 1 } else { 10 };
        let good = [
            "Cargo.toml",
            "crates/vit/Cargo.toml",
            "crates/vit/tests/data/parity.safetensors",
            "datasets/digits/large.csv",
            "recipes/quick/vit.toml",
            "weights/runs/large/last.safetensors",
        ];
        assert_eq!(strays(&good, size), Vec::<String>::new());
        let bad = [
            "notes.txt",
            "crates/empty/README.md",
            "docs/page.md~",
            "docs/large.png",
            "weights/large.csv",
            "docs/best.safetensors",
            "xtask/libx.so",
        ];
        let found = strays(&bad, size);
        assert_eq!(found.len(), bad.len(), "{found:?}");
        for (name, text) in bad.iter().zip([
            "notes.txt",
            "crates/empty",
            "page.md~",
            "large.png",
            "large.csv",
            "best",
            "libx.so",
        ]) {
            assert!(found.iter().any(|line| line.contains(text)), "{name}: {found:?}");
        }
    }
}
