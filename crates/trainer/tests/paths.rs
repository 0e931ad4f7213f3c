//! Paths and names from outside, and where the program speaks: whatever they are, nothing panics, nothing that is read is
//! written over, and a name stays text.

mod runs;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use image::{Rgb, RgbImage};
use runs::{error_line, stdout, trainer};
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;
use trainer::network::weights::save;

const RECIPE: &str = r#"
model = { name = "convmixer_reference", depth = 1, embed_dim = 8, patch_size = 1 }
dataset = "folder"
[folder]
stored_size = 8
crop_mode = "squash"
interpolation = "bilinear"
on_error = "skip"
test_fraction = 0.25
[data]
image_size = 8
normalize = "unit"
validation.end.fraction = 0.25
[augment]
hflip = 0.0
[train]
epochs = 1
batch_size = 8
label_smoothing = 0.0
select = "last"
[optimizer]
name = "adamw"
lr = 1e-3
beta1 = 0.9
beta2 = 0.999
eps = 1e-8
weight_decay = 0.0
scale_decay_by_lr = false
[schedule]
name = "constant"
"#;

/// The network of the recipe, for two classes.
const NETWORK: [&str; 9] = [
    "convmixer_reference",
    "--image-size=8",
    "--num-classes=2",
    "--set",
    "model.depth=1",
    "--set",
    "model.embed_dim=8",
    "--set",
    "model.patch_size=1",
];

/// A recipe, and eight pictures of each of two classes.
struct Place(TempDir);

impl Place {
    fn new(classes: [&str; 2]) -> Self {
        let place = Self(tempfile::tempdir().expect("a temporary directory"));
        for (shade, class) in [(40, classes[0]), (200, classes[1])] {
            fs::create_dir_all(place.at("pictures").join(class)).expect("it can be made");
            for number in 0..8u8 {
                let picture = RgbImage::from_pixel(8, 8, Rgb([shade, shade + number, shade]));
                let file = place.at("pictures").join(class).join(format!("{number}.png"));
                picture.save(file).expect("it can be written");
            }
        }
        fs::write(place.at("recipe.toml"), RECIPE).expect("it can be written");
        place
    }

    fn at(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.0.path().join(name.as_ref())
    }

    /// `train` or `inspect` by the recipe, with further arguments.
    fn run(&self, command: &str, more: &[&OsStr]) -> Output {
        self.command(command).args(more).output().expect("the trainer starts")
    }

    fn command(&self, command: &str) -> Command {
        let mut trainer = Command::new(assert_cmd::cargo::cargo_bin!("trainer"));
        trainer.args([command, "--device", "cpu", "--recipe"]).arg(self.at("recipe.toml"));
        trainer.arg("--data-dir").arg(self.at("pictures")).env("COMPACT_VISION_CACHE", self.at("cache"));
        trainer.env("OMP_NUM_THREADS", "1").current_dir(runs::root());
        trainer
    }

    /// Fresh weights and images for them.
    fn weights_and_input(&self) -> (PathBuf, PathBuf) {
        let weights = self.at("weights.safetensors");
        let made = trainer().arg("init").args(NETWORK).arg("--output").arg(&weights).output();
        let made = made.expect("the trainer starts");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let images = Tensor::rand([2, 3, 8, 8], (Kind::Float, Device::Cpu));
        save(&self.at("input.safetensors"), &[("input".to_owned(), images)].into())
            .expect("it can be written");
        (weights, self.at("input.safetensors"))
    }
}

fn forward(weights: &Path, input: &Path, output: &Path) -> Output {
    let mut command = trainer();
    command.arg("forward").args(NETWORK);
    for (flag, file) in [("--weights", weights), ("--input", input), ("--output", output)] {
        command.arg(flag).arg(file);
    }
    command.output().expect("the trainer starts")
}

/// The command under a shell that has done `first`, with `redirection`.
fn in_shell(first: &str, command: &Command, redirection: &str) -> Output {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{first} exec \"$0\" \"$@\" {redirection}")]).arg(command.get_program());
    let settings = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
    shell.args(command.get_args()).envs(settings).current_dir(runs::root());
    shell.output().expect("a shell starts")
}

fn os(text: &str) -> &OsStr {
    OsStr::new(text)
}

/// A name that ends a line, clears the screen and turns the rest around.
const ACTING: &str = "x\n\u{1b}[2J\u{202e}y";
const ACTING_SHOWN: &str = r"x\n\u001b[2J\u202ey";

#[test]
fn outputs_are_never_inputs() {
    let place = Place::new(["a", "b"]);
    let (weights, input) = place.weights_and_input();
    symlink(&input, place.at("link")).expect("it can be linked");
    fs::hard_link(&weights, place.at("hard")).expect("it can be linked");
    let before = [&weights, &input].map(|file| fs::read(file).expect("it is there"));
    let roundabout = place.at("pictures/../weights.safetensors");
    for output in [&weights, &input, &place.at("link"), &place.at("hard"), &roundabout] {
        let line = error_line(&forward(&weights, &input, output), 2);
        assert!(line.contains(": this is the input ") && line.contains("name another output"), "{line}");
    }
    let recipe = place.at("recipe.toml");
    let picture = place.at("pictures/a/0.png");
    let sheet = place.at("pictures/a/sheet.png");
    let digits = runs::root().join("datasets/digits/digits.csv");
    let kept = fs::read(&picture).expect("it is there");
    for (output, words) in [
        (&recipe, "this is the input "),
        (&picture, "it would be part of what is in "),
        (&sheet, "it would be part of what is in "),
        (&digits, "it would be part of what is in "),
    ] {
        let line = error_line(&place.run("inspect", &[os("--output"), output.as_os_str()]), 2);
        assert!(line.contains(words), "{line}");
    }
    assert_eq!([&weights, &input].map(|file| fs::read(file).expect("it is there")), before);
    assert_eq!(fs::read(&recipe).expect("it is there"), RECIPE.as_bytes());
    assert_eq!(fs::read(&picture).expect("it is there"), kept);
    assert!(!sheet.exists());
    // An earlier output is no input.
    for _ in 0..2 {
        assert!(forward(&weights, &input, &place.at("output")).status.success());
        let sheet = place.at("sheet.png");
        assert!(place.run("inspect", &[os("--output"), sheet.as_os_str()]).status.success());
    }
}

/// The weights are no weights and the pictures are gone: what is said is of the output, which is looked at first.
#[test]
fn outputs_that_cannot_be_written_are_refused_before_anything_is_read() {
    let place = Place::new(["a", "b"]);
    fs::remove_dir_all(place.at("pictures")).expect("it can be removed");
    let wrong = place.at("recipe.toml");
    let long = "x".repeat(250);
    for (output, words, code) in [
        ("none/output", "there is no directory ", 2),
        ("recipe.toml/output", "there is no directory ", 2),
        ("", "this is a directory", 2),
        (&long, "too long", 1),
    ] {
        let output = place.at(output);
        let mut init = trainer();
        init.args(["init", "vit_reference", "--output"]).arg(&output);
        for outcome in [
            forward(&wrong, &wrong, &output),
            init.output().expect("the trainer starts"),
            place.run("inspect", &[os("--output"), output.as_os_str()]),
        ] {
            let line = error_line(&outcome, code);
            assert!(line.contains(words), "{line}");
        }
    }
}

/// Names of files may be any bytes. macOS allows UTF-8 only.
#[cfg(target_os = "linux")]
#[test]
fn paths_that_are_not_utf8_work_or_are_refused_at_once() {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    let place = Place::new(["a", "b"]);
    let odd = |name: &str| {
        let mut bytes = name.as_bytes().to_vec();
        bytes.push(0xe9);
        place.at(OsString::from_vec(bytes))
    };
    let (weights, input) = place.weights_and_input();
    for (from, to) in [(&weights, odd("w")), (&input, odd("i"))] {
        fs::copy(from, to).expect("it can be copied");
    }
    let ran = forward(&odd("w"), &odd("i"), &odd("o"));
    assert!(ran.status.success() && odd("o").exists(), "{ran:?}");
    let line = error_line(&forward(&odd("none"), &odd("i"), &odd("o")), 1);
    assert!(line.contains("none\u{fffd}: No such file"), "{line}");

    let (run, sheet) = (odd("run"), odd("sheet"));
    fs::rename(place.at("pictures"), odd("pictures")).expect("it can be renamed");
    fs::rename(place.at("recipe.toml"), odd("recipe")).expect("it can be renamed");
    let inspected = |command: &str| {
        let mut trainer = trainer();
        trainer.args([command, "--device", "cpu", "--recipe"]).arg(odd("recipe"));
        trainer.arg("--data-dir").arg(odd("pictures")).env("COMPACT_VISION_CACHE", odd("cache"));
        trainer
    };
    let ran = inspected("inspect").arg("--output").arg(&sheet).output().expect("the trainer starts");
    assert!(ran.status.success() && sheet.exists(), "{ran:?}");
    for repeated in [false, true] {
        let ran =
            inspected("train").arg("--json").arg("--out").arg(&run).output().expect("the trainer starts");
        assert!(ran.status.success() && ran.stderr.is_empty(), "{ran:?}");
        let events: Vec<serde_json::Value> =
            stdout(&ran).lines().map(|line| serde_json::from_str(line).expect("it is JSON")).collect();
        let path = events.iter().find(|event| event["event"] == "run").map(|event| event["path"].clone());
        let path = path.as_ref().and_then(|path| path.as_str());
        assert!(
            repeated == path.is_none() && path.is_none_or(|path| path.ends_with("run\u{fffd}")),
            "{path:?}"
        );
    }
    assert_eq!(runs::record(&run)["result"]["status"], "complete");
    let kept = run.join("last.safetensors");
    let mut evaluate = trainer();
    evaluate.args(["evaluate", "--device", "cpu", "--weights"]).arg(&kept).arg("--data-dir");
    let ran = evaluate.arg(odd("pictures")).env("COMPACT_VISION_CACHE", odd("cache")).output();
    assert!(ran.as_ref().is_ok_and(|ran| ran.status.success()), "{ran:?}");

    // A recipe is text, and has to name the weights.
    let tuned = odd("tuned");
    let ran = inspected("train").arg("--weights").arg(odd("w")).arg("--out").arg(&tuned).output();
    let line = error_line(&ran.expect("the trainer starts"), 2);
    assert!(line.contains("w\u{fffd}: this path is not UTF-8") && line.contains("rename the file"), "{line}");
    assert!(!tuned.exists());
}

#[test]
fn names_are_printed_as_text_only() {
    let place = Place::new([ACTING, "b"]);
    let damaged = place.at("pictures/b").join(format!("{ACTING}.png"));
    fs::write(damaged, "no picture").expect("it can be written");
    let clean = |output: &Output| {
        let said = stdout(output) + &String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains(|c: char| c.is_control() && c != '\n' || c == '\u{202e}'), "{said:?}");
        said
    };

    let inspected = place.run("inspect", &[]);
    assert!(inspected.status.success(), "{inspected:?}");
    let said = clean(&inspected);
    assert!(said.lines().any(|line| line.starts_with(&format!("| {ACTING_SHOWN} "))), "{said}");
    assert!(said.lines().any(|line| line.starts_with("left out: ") && line.contains(ACTING_SHOWN)), "{said}");
    let json = place.run("inspect", &[os("--json")]);
    clean(&json);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("it is JSON");
    assert!(json["classes"].as_array().is_some_and(|classes| classes.iter().any(|c| c["name"] == ACTING)));

    let run = place.at(format!("run {ACTING}"));
    let trained = place.run("train", &[os("--out"), run.as_os_str()]);
    assert!(trained.status.success(), "{trained:?}");
    let said = clean(&trained);
    assert!(said.contains(&format!("; in {}", place.at(format!("run {ACTING_SHOWN}")).display())), "{said}");
    let log = fs::read_to_string(run.join("train.log")).expect("there is a log");
    assert_eq!(
        log.lines().count(),
        said.lines().filter(|line| !line.contains("passed over")).count(),
        "{log}"
    );
    assert!(log.contains(ACTING_SHOWN) && !log.contains('\u{1b}'), "{log}");

    let line = error_line(&forward(&place.at(ACTING), &place.at(ACTING), &place.at("output")), 1);
    assert!(line.contains(&format!("{ACTING_SHOWN}: No such file")), "{line}");
    let unknown = trainer().args(["summary", ACTING]).output().expect("the trainer starts");
    assert!(error_line(&unknown, 2).contains("there is no model"));
    clean(&unknown);
}

#[test]
fn a_standard_error_that_cannot_be_written_changes_nothing() {
    let place = Place::new(["a", "b"]);
    fs::write(place.at("pictures/a/notes.txt"), "passed over, with a note").expect("it can be written");
    let plain = place.run("inspect", &[]);
    assert!(plain.status.success() && !plain.stderr.is_empty(), "{plain:?}");
    let wrong = [os("--set"), os("train.epochs=0")];
    for (arguments, code) in [(&[] as &[&OsStr], 0), (&wrong, 2)] {
        // Closed by whoever starts it, full, and closed by whoever reads it.
        for redirection in ["2>&-", "2>/dev/full"] {
            if cfg!(not(target_os = "linux")) && redirection.contains("full") {
                continue;
            }
            let mut command = place.command("inspect");
            let output = in_shell("", command.args(arguments), redirection);
            assert_eq!(output.status.code(), Some(code), "{redirection}");
            assert!(code != 0 || output.stdout == plain.stdout, "{redirection}");
        }
        let mut command = place.command("inspect");
        let child = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.expect("the trainer starts");
        drop(child.stderr.take());
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(code), "a reader that left");
        assert!(code != 0 || output.stdout == plain.stdout);
    }
}

#[test]
fn a_limit_on_the_size_of_files_is_an_error_like_a_full_disk() {
    let place = Place::new(["a", "b"]);
    let output = place.at("fresh.safetensors");
    let mut init = Command::new(assert_cmd::cargo::cargo_bin!("trainer"));
    init.arg("init").args(NETWORK).arg("--output").arg(&output);
    let line = error_line(&in_shell("ulimit -f 0;", &init, ""), 1);
    assert!(line.contains("fresh.safetensors: File too large"), "{line}");
    assert!(!output.exists());

    // Enough for the record of a run, and not for its checkpoints.
    let run = place.at("run");
    let mut train = place.command("train");
    train.args(["--set", "model.embed_dim=64", "--out"]).arg(&run);
    let line = error_line(&in_shell("ulimit -f 16;", &train, ""), 1);
    assert!(line.contains("File too large"), "{line}");
    let status = runs::record(&run)["result"]["status"].clone();
    assert!(status.as_str().is_some_and(|status| status.contains("File too large")), "{status}");
    // With more room, the same command goes on.
    assert!(train.output().is_ok_and(|output| output.status.success()));
}
