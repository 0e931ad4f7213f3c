//! The program as it is called: exit codes, and one line per error.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io::Write;
use std::path::Path;

use assert_cmd::Command;

/// xtask in a workspace and with a cache of its own, without anything of the user's.
fn xtask(dir: &Path) -> Command {
    let mut command = Command::cargo_bin("xtask").unwrap();
    in_workspace(&mut command, dir);
    command
}

fn in_workspace<'a>(command: &'a mut Command, dir: &Path) -> &'a mut Command {
    command
        .current_dir(dir)
        .env("CARGO_MANIFEST_DIR", dir.join("xtask"))
        .env("COMPACT_VISION_CACHE", dir.join("cache"))
        .env("CUDA_VISIBLE_DEVICES", "-1")
        .env("RUST_BACKTRACE", "1")
        .env_remove("LIBTORCH")
        .env_remove("LIBTORCH_USE_PYTORCH")
}

fn workspace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("recipes/quick")).unwrap();
    dir
}

/// Runs it and returns the exit code and what it wrote on stderr.
fn outcome(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

fn assert_one_error_line(stderr: &str) {
    let lines: Vec<&str> = stderr.lines().collect();
    assert_eq!(lines.len(), 1, "{stderr}");
    assert!(lines[0].starts_with("error: "), "{stderr}");
}

#[test]
fn bad_usage_ends_with_2() {
    let dir = workspace();
    let hex = "0".repeat(64);
    for args in [
        &["no-such-command"][..],
        &["fetch", "imagenet"],
        &["compare", "results"],
        &["compare", "a", "b", "--images", "0"],
        &["compare", "a", "b", "--format", "xml"],
        &["setup", "--flavor", "rocm"],
        &["setup", "--archive", "x.zip"],
        &["setup", "--archive", "x.zip", "--sha256", "abc"],
        &["fetch", "cifar10", "--dir", "d", "--sha256", &hex],
    ] {
        let (code, stderr) = outcome(xtask(dir.path()).args(args));
        assert_eq!(code, Some(2), "{args:?}: {stderr}");
    }
    for (seeds, expected) in [
        ("3..0", "3..0 has no seed"),
        ("0..=x", "expected 0..3, 0..=2, 0,1,5 or 3"),
        ("0..1001", "at most 1000"),
    ] {
        let (code, stderr) = outcome(xtask(dir.path()).args(["train-all", "--seeds", seeds]));
        assert_eq!(code, Some(2));
        assert_one_error_line(&stderr);
        assert!(stderr.contains(expected), "{stderr}");
    }
    let both = ["train-all", "--seed", "1", "--seeds", "0..3"];
    assert_eq!(outcome(xtask(dir.path()).args(both)).0, Some(2));
    let (code, stderr) = outcome(xtask(dir.path()).args(["train-all", "--preset", "quik"]));
    assert_eq!(code, Some(2));
    assert_one_error_line(&stderr);
    assert!(stderr.contains("--preset quik is unknown; recipes/ has: quick"), "{stderr}");
}

#[test]
fn other_failures_end_with_1_and_one_line() {
    let dir = workspace();
    let (code, stderr) = outcome(xtask(dir.path()).args(["report"]));
    assert_eq!(code, Some(1));
    assert_one_error_line(&stderr);
    assert!(stderr.contains("results is no directory"), "{stderr}");

    let (code, stderr) = outcome(xtask(dir.path()).args(["setup"]).env("LIBTORCH", dir.path()));
    assert_eq!(code, Some(1));
    assert_one_error_line(&stderr);
    assert!(stderr.contains("LIBTORCH points to") && stderr.contains("is no libtorch directory"), "{stderr}");
}

/// Whatever becomes of what is said on stderr, the exit code and stdout are the same; and names are only text.
#[test]
fn a_standard_error_that_cannot_be_written_changes_nothing() {
    let dir = workspace();
    let run = dir.path().join("results/runs/cut\n\u{1b}[2J");
    fs::create_dir_all(&run).unwrap();
    fs::write(run.join("record.json"), "{").unwrap();
    let plain = xtask(dir.path()).arg("report").output().unwrap();
    assert_eq!(plain.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&plain.stdout).contains("0 of 1 runs written"));
    let said = String::from_utf8(plain.stderr).unwrap();
    assert_one_error_line(&said);
    assert!(said.contains("runs/cut\\n\\u001b[2J/record.json"), "{said}");
    for redirection in ["2>&-", "2>/dev/full"] {
        if redirection.contains("/dev/full") && !Path::new("/dev/full").exists() {
            continue; // macOS has none
        }
        let program = assert_cmd::cargo::cargo_bin!("xtask").display();
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("exec '{program}' report {redirection}")]);
        let output = in_workspace(&mut shell, dir.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{redirection}");
        assert_eq!(output.stdout, plain.stdout, "{redirection}");
    }
}

#[test]
fn a_limit_on_the_size_of_files_is_an_error_like_a_full_disk() {
    let dir = workspace();
    fs::create_dir_all(dir.path().join("results")).unwrap();
    let program = assert_cmd::cargo::cargo_bin!("xtask").display();
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("ulimit -f 0; exec '{program}' report")]);
    let (code, said) = outcome(in_workspace(&mut shell, dir.path()));
    assert_eq!(code, Some(1), "{said}");
    assert_one_error_line(&said);
    assert!(said.contains("results.csv") && said.contains("too large"), "{said}");
    assert_eq!(fs::read_dir(dir.path().join("results")).unwrap().count(), 0, "nothing half-written is left");
}

#[test]
fn a_file_system_that_takes_no_more_while_unpacking_is_one_error_and_nothing_is_left() {
    let dir = workspace();
    let path = dir.path().join("libtorch.zip");
    let mut zip = zip::ZipWriter::new(fs::File::create(&path).unwrap());
    zip.start_file("libtorch/lib/libtorch_cpu.so", zip::write::SimpleFileOptions::default()).unwrap();
    zip.write_all(&[1; 1 << 20]).unwrap();
    zip.finish().unwrap();
    let program = assert_cmd::cargo::cargo_bin!("xtask").display();
    let sha256 = run_record::sha256_file(&path).unwrap();
    let setup = format!("setup --archive {} --sha256 {sha256}", path.display());
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("ulimit -f 64; exec '{program}' {setup}")]);
    let (code, stderr) = outcome(in_workspace(&mut shell, dir.path()));
    assert_eq!(code, Some(1), "{stderr}");
    let last = stderr.lines().last().unwrap();
    assert!(last.starts_with("error: ") && last.contains("File too large"), "{stderr}");
    assert!(last.contains("lib/libtorch_cpu.so"), "{stderr}");
    assert_eq!(fs::read_dir(dir.path().join("cache/libtorch")).unwrap().count(), 0);
}

#[test]
fn a_python_that_is_missing_is_one_line_too() {
    let dir = workspace();
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let mut command = xtask(dir.path());
    command.args(["setup", "--flavor", "cpu"]).env("PATH", &empty).env_remove("VIRTUAL_ENV");
    let (code, stderr) = outcome(&mut command);
    assert_eq!(code, Some(1));
    let last = stderr.lines().last().unwrap();
    assert!(last.starts_with("error: ") && last.contains("python3"), "{stderr}");
    assert!(!dir.path().join(".libtorch").exists());
    // Nothing half-done is left beside the lock and the empty directory for entries.
    assert_eq!(fs::read_dir(dir.path().join("cache/libtorch")).unwrap().count(), 0);
}

#[test]
fn without_curl_a_download_says_how_to_do_without() {
    let dir = workspace();
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let (code, stderr) = outcome(xtask(dir.path()).args(["fetch", "cifar10"]).env("PATH", &empty));
    assert_eq!(code, Some(1));
    let last = stderr.lines().last().unwrap();
    for part in
        ["apt install curl", "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "--archive FILE"]
    {
        assert!(last.starts_with("error: ") && last.contains(part), "{part}: {stderr}");
    }
    let output = xtask(dir.path()).arg("doctor").env("PATH", &empty).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("PROBLEM  curl: ") && text.contains("mend it with: apt install curl"), "{text}");
}

#[test]
fn digits_need_no_fetching_and_help_shows_examples() {
    let dir = workspace();
    assert_eq!(outcome(xtask(dir.path()).args(["fetch", "digits"])).0, Some(0));
    for command in ["setup", "doctor", "fetch", "train-all", "report", "compare", "soak", "test", "check"] {
        let output = xtask(dir.path()).args([command, "--help"]).output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(&format!("cargo xtask {command}")), "{text}");
    }
}

#[test]
fn a_doctor_that_finds_something_wrong_names_the_command_and_ends_with_1() {
    let dir = workspace();
    let output = xtask(dir.path()).arg("doctor").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("PROBLEM  libtorch: not set up\n         mend it with: cargo xtask setup\n"),
        "{text}"
    );
    assert!(!dir.path().join("cache").exists(), "looking changes nothing");
}
