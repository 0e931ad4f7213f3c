//! The networks that come with the project in `weights/`: that their files are those of their records, their recipes those of
//! the preset, and the numbers in the documents theirs.

use std::path::PathBuf;

use run_record::{Recipe, sha256, sha256_file};

use super::*;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn shipped() -> Report {
    let report = collect(&root().join("weights")).unwrap();
    assert_eq!((&report.problems, &report.running, &report.stopped), (&vec![], &vec![], &vec![]));
    assert!(!report.complete.is_empty() && report.complete.len() == report.rows.len());
    report
}

#[test]
fn files_are_those_of_the_records_and_recipes_those_of_the_preset() {
    for name in &shipped().complete {
        let run = root().join("weights/runs").join(name);
        let RunRecord { result, weights_sha256, predictions_sha256, history_sha256, .. } =
            read_record(&run.join(layout::RECORD)).unwrap();
        let kept = [layout::BEST, layout::LAST].into_iter().find(|file| run.join(file).exists()).unwrap();
        for (file, said) in [
            (kept, weights_sha256),
            (layout::PREDICTIONS, predictions_sha256),
            (layout::HISTORY, history_sha256),
        ] {
            assert_eq!(sha256_file(&run.join(file)).ok(), said, "{name}: {file}");
        }
        let preset = root().join("recipes").join(&result.preset).join(format!("{}.toml", result.family));
        for recipe in [run.join(layout::RECIPE), preset] {
            let text = fs::read_to_string(&recipe).unwrap();
            let values = Recipe::parse(&text).unwrap().without_commentary().to_toml().unwrap();
            assert_eq!(sha256(values), result.recipe_sha256, "{}", recipe.display());
        }
        assert!(run.join("README.md").exists(), "{name} has no model card");
    }
}

#[test]
fn tables_are_those_of_the_records() {
    let rows = shipped().rows;
    let file = |name: &str| fs::read_to_string(root().join(name)).unwrap();
    assert_eq!(file("weights/results.csv").into_bytes(), to_csv(&rows).unwrap());
    assert_eq!(file("weights/summary.csv").into_bytes(), to_csv(&summary::summarise(&rows)).unwrap());
    let table = table(&rows).to_string();
    for page in ["docs/results.md", "weights/README.md"] {
        assert!(
            file(page).contains(&table),
            "{page} has not what `cargo xtask report --results weights` prints:\n{table}"
        );
    }
}
