//! The page of runs that a test writes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs;
use std::path::Path;

fn write_run(results: &Path, name: &str, seed: u64, wrong: usize, class: &str) {
    let images = 40;
    let top1 = (images - wrong) as f64 / images as f64;
    let dir = results.join("runs").join(format!("{name}--s{seed}"));
    let predictions = common::predictions(images, |image| image < wrong, class);
    common::write_run(&dir, &common::record(name, seed, top1), &predictions);
    fs::create_dir_all(dir.join("figures")).unwrap();
    fs::write(dir.join("figures/mistakes.png"), common::DOT).unwrap();
}

#[test]
fn the_page_says_who_won_and_whether_that_is_chance() {
    let results = tempfile::tempdir().unwrap();
    write_run(results.path(), "good", 0, 2, "cat");
    write_run(results.path(), "bad", 0, 22, "cat");
    let written = report::write(results.path()).unwrap();
    assert_eq!((written.runs, written.problems.len()), (2, 0));
    let html = fs::read_to_string(&written.page).unwrap();
    for words in [
        // Wilson's interval of 38 of 40.
        "good--s0 is first with 95.00 % test top-1 (95 % interval 83.50 % to 98.62 %), 50.00 points before bad--s0: more than chance.",
        // Twenty images that only one has right, none that only the other has: 2 / 2^20.
        "<td class=\"number\">20</td><td class=\"number\">0</td><td class=\"number\">&lt; 0.0001</td>",
        // |0.95 − 0.9|, and |0.95 − 0.8| with temperature.
        "equal width: 5.00 %, and 15.00 % with the temperature 1.250",
        "trainer &#x27;it&#x27;\\&#x27;&#x27;s&#x27;",
    ] {
        assert!(html.contains(words), "{words}");
    }
    let chart = results.path().join("runs/good--s0/figures/reliability.svg");
    assert!(fs::read_to_string(chart).unwrap().starts_with("<svg xmlns"));
}

#[test]
fn names_from_outside_stay_text_and_nothing_is_fetched() {
    let results = tempfile::tempdir().unwrap();
    write_run(results.path(), "a", 0, 1, "<script>alert(1)</script>");
    write_run(results.path(), "\"><img src=x onerror=alert(1)>", 1, 1, "cat");
    let html = fs::read_to_string(report::write(results.path()).unwrap().page).unwrap();
    assert!(!html.contains("<script>alert") && !html.contains("<img src=x"));
    assert_eq!(html.matches("<script").count(), 1);
    assert!(!html.contains("src=\"http") && !html.contains("url(") && !html.contains("@import"));
}

#[test]
fn a_run_that_cannot_be_read_is_named_and_two_hundred_fit() {
    let results = tempfile::tempdir().unwrap();
    (0..200).for_each(|seed| write_run(results.path(), &format!("m{}", seed % 10), seed, 1, "cat"));
    let broken = results.path().join("runs/broken");
    fs::create_dir_all(&broken).unwrap();
    fs::write(broken.join("record.json"), "{\"format\": 1,").unwrap();
    let written = report::write(results.path()).unwrap();
    assert_eq!(written.runs, 200);
    assert!(written.problems[0].contains("broken/record.json"), "{:?}", written.problems);
    assert!(fs::metadata(&written.page).unwrap().len() < 8 << 20);
    assert!(report::write(&results.path().join("typo")).is_err());
}
