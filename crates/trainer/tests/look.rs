//! `predict` and `explain` from the outside: pictures of every kind, and drawings that change nothing.

mod runs;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::OnceLock;

use image::{Rgb, RgbImage};
use runs::{error_line, root, stdout, trainer};
use serde_json::Value;
use tempfile::TempDir;

const SMALL: [&str; 10] = [
    "--set",
    "model.embed_dim=16",
    "--set",
    "model.depth=2",
    "--set",
    "train.epochs=2",
    "--set",
    "train.batch_size=16",
    "--set",
    "schedule.name=constant",
];

fn train(out: &Path, model: &str, more: &[&str]) -> Output {
    let output = trainer()
        .args(["train", "--model", model, "--preset", "quick", "--device", "cpu", "--out"])
        .arg(out)
        .args(more)
        .output()
        .expect("the trainer starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// A finished run on the digits, one for all tests.
fn run() -> &'static Path {
    static RUN: OnceLock<TempDir> = OnceLock::new();
    let directory = RUN.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a temporary directory");
        train(&directory.path().join("run"), "convmixer_reference", &SMALL);
        directory
    });
    // A static is never dropped; the system's own cleaning has to do.
    Box::leak(directory.path().join("run").into_boxed_path())
}

fn look(command: &str, arguments: &[&str], pictures: &[&Path]) -> Output {
    let mut trainer = trainer();
    trainer.args([command, "--device", "cpu", "--weights"]).arg(run()).args(arguments).args(pictures);
    trainer.output().expect("the trainer starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn golden(name: &str) -> PathBuf {
    root().join("crates/data-cifar/tests/golden/decoding").join(name)
}

/// The digits of the test part as PNG files named by their number and class.
fn digits(directory: &Path) {
    let set = data_cifar::load_digits(&root().join("datasets/digits")).expect("the digits are there");
    for (n, (image, label)) in set.test.images.outer_iter().zip(set.test.labels.iter()).enumerate() {
        let picture =
            RgbImage::from_fn(32, 32, |x, y| Rgb([0, 1, 2].map(|c| image[[c, y as usize, x as usize]])));
        picture.save(directory.join(format!("{n:04}-{label}.png"))).expect("it can be written");
    }
}

#[test]
fn answers_for_files_are_those_for_the_data_set() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    digits(directory.path());
    let output = look("predict", &["--format", "json", "--top", "2"], &[directory.path()]);
    assert!(output.status.success() && output.stderr.is_empty(), "{}", stderr(&output));
    let rows: Vec<Value> =
        stdout(&output).lines().map(|line| serde_json::from_str(line).expect("it is JSON")).collect();
    assert_eq!(rows.len(), 326);
    let right = rows.iter().filter(|row| {
        let name = row["picture"].as_str().expect("a name");
        let top = row["top"].as_array().expect("a list");
        assert!(top.len() == 2 && top[0]["probability"].as_f64() >= top[1]["probability"].as_f64());
        name.ends_with(&format!("-{}.png", top[0]["class"].as_str().expect("a class")))
    });
    let record = runs::record(run());
    let top1 = record["result"]["test_top1"].as_f64().expect("it was tested");
    assert!((right.count() as f64 / 326.0 - top1).abs() < 1e-6, "{top1}");

    // The same in other words, and by way of a pattern and of a list.
    let table = look("predict", &["--top", "1"], &[&directory.path().join("000[0-2]*.png")]);
    let lines: Vec<String> = stdout(&table).lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 4);
    assert!(lines[0].starts_with("top-1") && lines[0].ends_with("picture"), "{lines:?}");
    for (line, row) in lines[1..].iter().zip(&rows) {
        let share = 100.0 * row["top"][0]["probability"].as_f64().expect("a number");
        let class = row["top"][0]["class"].as_str().expect("a class");
        assert!(line.starts_with(class) && line.contains(&format!("{share:.2} %")), "{line}");
        assert!(line.ends_with(row["picture"].as_str().expect("a name")), "{line}");
    }
    let names: String =
        rows[..3].iter().map(|row| format!("{}\n", row["picture"].as_str().expect("a name"))).collect();
    let listed = trainer()
        .args(["predict", "--device", "cpu", "--format", "csv", "--top", "1", "--weights"])
        .arg(run())
        .arg("-")
        .write_stdin(names.replace('\n', "\r\n"))
        .output()
        .expect("the trainer starts");
    let csv = stdout(&listed);
    assert!(csv.starts_with("picture,top1,probability1\n") && csv.lines().count() == 4, "{csv}");
    // A picture's own bytes.
    let bytes = fs::read(rows[7]["picture"].as_str().expect("a name")).expect("it is there");
    let piped = trainer()
        .args(["predict", "--device", "cpu", "--format", "json", "--top", "2", "--weights"])
        .arg(run())
        .arg("-")
        .write_stdin(bytes)
        .output()
        .expect("the trainer starts");
    let answer: Value = serde_json::from_str(&stdout(&piped)).expect("it is JSON");
    assert_eq!(
        (answer["picture"].as_str(), &answer["top"][0]["class"]),
        (Some("-"), &rows[7]["top"][0]["class"])
    );
}

#[test]
fn weights_are_not_lost_from_their_classes_wherever_they_lie() {
    let answer = |weights: &Path| {
        let mut trainer = trainer();
        trainer.args(["predict", "--device", "cpu", "--format", "csv", "--weights"]).arg(weights);
        trainer.arg(golden("jpeg_cmyk.jpg")).output().expect("the trainer starts")
    };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let checkpoint = run().join("checkpoints/epoch-0002/model.safetensors");
    let elsewhere = directory.path().join("anything.safetensors");
    fs::copy(&checkpoint, &elsewhere).expect("it can be copied");
    // The last epoch's weights are those that were kept.
    let (moved, kept) = (answer(&elsewhere), answer(run()));
    assert!(moved.status.success(), "{}", stderr(&moved));
    assert_eq!(stdout(&moved), stdout(&kept));

    let drawn = directory.path().join("drawn.safetensors");
    let made = trainer().args(["init", "vit_reference", "--output"]).arg(&drawn).output();
    assert!(made.expect("the trainer starts").status.success());
    let line = error_line(&answer(&drawn), 1);
    assert!(line.contains("these are initial weights of vit_reference"), "{line}");
}

#[test]
fn what_is_no_picture_is_named_and_the_rest_is_answered() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| directory.path().join(name);
    fs::create_dir_all(at("empty")).expect("it can be made");
    fs::write(at("notes.txt"), "not a picture\n").expect("it can be written");
    fs::write(at("nothing.png"), "").expect("it can be written");
    RgbImage::from_pixel(1, 1, Rgb([9; 3])).save(at("dot.png")).expect("it can be written");
    // The header of a PNG that claims 20,000 by 20,000 pixels and holds none.
    let mut huge = fs::read(at("dot.png")).expect("it is there");
    huge[16..24].copy_from_slice(&[0, 0, 0x4e, 0x20, 0, 0, 0x4e, 0x20]);
    fs::write(at("huge.png"), huge).expect("it can be written");

    let bad =
        [at("notes.txt"), at("empty"), at("nothing.png"), at("huge.png"), at("none.png"), at("x*y.png")];
    let good = [
        at("dot.png"),
        golden("jpeg_cmyk.jpg"),
        golden("png_16bit_rgb.png"),
        golden("gif_animated.gif"),
        golden("jpeg_orientation.jpg"),
    ];
    let all: Vec<&Path> = bad.iter().chain(&good).map(PathBuf::as_path).collect();
    let output = look("predict", &["--format", "json"], &all);
    let (said, rows) = (stderr(&output), stdout(&output));
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.ends_with("error: 6 of 11 pictures could not be read\n"), "{said}");
    for words in [
        "notes.txt: text, not a picture",
        "empty: no picture in this folder (jpg, ",
        "nothing.png: empty",
        "huge.png: claims 20000x20000 pixels",
        "none.png: there is no such file",
        "x*y.png: no file matches this pattern",
        "jpeg_cmyk.jpg: CMYK; converted",
        "png_16bit_rgb.png: 16 bits a colour",
        "gif_animated.gif: an animation; its first picture",
        "jpeg_orientation.jpg: turned ",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(said.lines().count(), 11, "{said}");
    assert_eq!(rows.lines().filter(|line| line.contains("\"error\"")).count(), 6);
    assert_eq!(rows.lines().filter(|line| line.contains("\"top\"")).count(), 5);
    // Nothing else on the table's stream.
    let table = look("predict", &[], &[&bad[0], &good[0]]);
    assert_eq!(stdout(&table).lines().count(), 2);

    for (input, words) in [("", "-: standard input is empty"), ("\u{1}\u{2}", "-: none of JPEG")] {
        let output = trainer()
            .args(["predict", "--device", "cpu", "--weights"])
            .arg(run())
            .arg("-")
            .write_stdin(input)
            .output()
            .expect("the trainer starts");
        assert!(output.status.code() == Some(1) && stderr(&output).starts_with(words), "{}", stderr(&output));
    }
}

#[test]
fn a_reader_that_has_enough_ends_it_without_an_error() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    digits(directory.path());
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin!("trainer"))
        .args(["predict", "--device", "cpu", "--weights"])
        .arg(run())
        .args([directory.path(); 20])
        .env("OMP_NUM_THREADS", "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the trainer starts");
    let mut first = String::new();
    BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut first).expect("there is a line");
    assert!(first.starts_with("top-1"), "{first}");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success() && output.stderr.is_empty(), "{}", stderr(&output));
}

/// A finished run in a workspace's directory: the one of [`run`], with changes to the row of its record.
fn place(workspace: &Path, to: &str, changes: &[(&str, serde_json::Value)]) {
    let to = workspace.join(to);
    fs::create_dir_all(&to).expect("it can be made");
    let mut record = runs::record(run());
    for (column, value) in changes {
        record["result"][column] = value.clone();
    }
    fs::write(to.join("record.json"), record.to_string()).expect("it can be written");
    let weights = ["best.safetensors", "last.safetensors"].map(|name| run().join(name));
    let weights = weights.iter().find(|path| path.exists()).expect("there are weights");
    fs::copy(weights, to.join(weights.file_name().expect("a name"))).expect("it can be copied");
}

/// `predict` in a directory that has what a workspace is known by.
fn predict_in(workspace: &Path, weights: Option<&str>) -> Output {
    for directory in ["recipes", "datasets/digits"] {
        fs::create_dir_all(workspace.join(directory)).expect("it can be made");
    }
    let mut predict = trainer();
    predict.current_dir(workspace).args(["predict", "--device", "cpu"]).arg(golden("jpeg_rgb.jpg"));
    predict.args(weights.iter().flat_map(|weights| ["--weights", weights]));
    predict.output().expect("the trainer starts")
}

#[test]
fn the_newest_finished_run_is_asked_if_no_weights_are_named() {
    let workspace = tempfile::tempdir().expect("a temporary directory");
    let workspace = workspace.path();
    let refused = error_line(&predict_in(workspace, None), 2);
    assert!(refused.contains("there is no finished run in") && refused.contains("--weights"), "{refused}");
    place(workspace, "results/runs/older", &[("started_at", "2019-01-01T00:00:00Z".into())]);
    place(workspace, "results/runs/old", &[("started_at", "2020-01-01T00:00:00Z".into())]);
    let broken = [("started_at", "2030-01-01T00:00:00Z".into()), ("status", "stopped".into())];
    place(workspace, "results/runs/broken", &broken);
    // Whatever comes with the project, what one has trained oneself is asked.
    place(workspace, "weights/runs/shipped", &[("started_at", "2040-01-01T00:00:00Z".into())]);
    let output = predict_in(workspace, None);
    let said = stderr(&output);
    assert!(output.status.success() && said.lines().count() == 1, "{said}");
    assert!(said.starts_with("convmixer_reference, trained on digits (10 classes)"), "{said}");
    assert!(said.contains("results/runs/old/"), "{said}");
}

#[test]
fn networks_that_come_with_the_project_are_asked_by_name_and_without_any_run_the_best_of_them() {
    let workspace = tempfile::tempdir().expect("a temporary directory");
    let workspace = workspace.path();
    place(
        workspace,
        "weights/runs/a",
        &[("val_top1", 0.7.into()), ("model", "vit_reference".into()), ("family", "vit".into())],
    );
    place(workspace, "weights/runs/b", &[("val_top1", 0.9.into())]);
    place(
        workspace,
        "weights/runs/c",
        &[("val_top1", 0.8.into()), ("model", "cct_reference".into()), ("family", "cct".into())],
    );
    let output = predict_in(workspace, None);
    assert!(output.status.success() && stderr(&output).contains("weights/runs/b/"), "{}", stderr(&output));
    let best = stdout(&output);
    for name in ["convmixer_reference", "convmixer", "weights/runs/b"] {
        let output = predict_in(workspace, Some(name));
        assert!(output.status.success() && stdout(&output) == best, "{}", stderr(&output));
    }
    let refused = error_line(&predict_in(workspace, Some("convmixr")), 2);
    let words = "--weights convmixr: there is no such file, and weights/ has cct_reference, convmixer_reference, vit_reference";
    assert!(refused.contains(words), "{refused}");
    let refused = error_line(&predict_in(workspace, Some("convmixer.safetensors")), 1);
    assert!(refused.contains("convmixer.safetensors: No such file"), "{refused}");
}

#[test]
fn explanations_are_drawn_beside_and_never_over_what_they_explain() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| directory.path().join(name);
    RgbImage::from_fn(300, 200, |x, y| Rgb([x as u8, y as u8, 99])).save(at("a.png")).expect("written");
    fs::create_dir(at("b")).expect("it can be made");
    fs::copy(golden("jpeg_1x1.jpg"), at("b/a.jpg")).expect("it can be copied");
    let output = look("explain", &["--out", at("out").to_str().expect("text")], &[&at("a.png"), &at("b")]);
    assert!(output.status.success(), "{}", stderr(&output));
    let mut names: Vec<String> = fs::read_dir(at("out"))
        .expect("it was made")
        .map(|entry| entry.expect("it is there").file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".png"))
        .collect();
    names.sort();
    let kernels = ["first", "last", "middle"].map(|place| format!("kernels-{place}-depthwise-kernels.png"));
    let mut expected = vec!["a.explained-2.png".to_owned(), "a.explained.png".to_owned()];
    expected.extend(kernels);
    expected.push("kernels-patch-embeddings.png".to_owned());
    assert_eq!(names, expected);
    assert_eq!(stdout(&output).lines().count(), 6);
    // A picture and one map beside it, each 320 pixels wide.
    let figure = image::open(at("out/a.explained.png")).expect("it is a picture");
    assert_eq!(figure.width(), 16 + 2 * 320 + 16 + 16);
    let svg = fs::read_to_string(at("out/a.explained.svg")).expect("it is text");
    assert!(svg.contains("Grad-CAM: ") && svg.contains("convmixer_reference: a.png"), "{}", &svg[..500]);
    let refused = error_line(&look("explain", &["--method", "rollout"], &[&at("a.png")]), 2);
    assert!(refused.contains("convmixer_reference has none; it has gradcam, kernels"), "{refused}");
    let refused = error_line(&look("explain", &["--class", "cat"], &[&at("a.png")]), 2);
    assert!(refused.contains("--class cat: the network knows 0, 1, 2"), "{refused}");
    let before = fs::read(at("a.png")).expect("it is there");
    let again = look("explain", &["--out", directory.path().to_str().expect("text")], &[&at("a.png")]);
    assert!(again.status.success() && fs::read(at("a.png")).expect("it is there") == before);
}

#[test]
fn drawing_while_training_changes_no_weight() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| directory.path().join(name);
    let small = ["--set", "model.depth=2", "--set", "train.epochs=2", "--set", "train.batch_size=64"];
    let explain = [
        "--set",
        "explain.every=1",
        "--set",
        "explain.pictures=2",
        "--set",
        "explain.methods=[\"attention\",\"rollout\",\"gradcam\",\"positions\",\"kernels\"]",
    ];
    train(&at("plain"), "vit_reference", &small);
    train(&at("drawn"), "vit_reference", &[&small[..], &explain].concat());
    let tensors = |run: &str| {
        let weights = ["best.safetensors", "last.safetensors"].map(|name| at(run).join(name));
        let bytes =
            fs::read(weights.iter().find(|path| path.exists()).expect("weights")).expect("they are there");
        let header = u64::from_le_bytes(*bytes.first_chunk().expect("a length")) as usize;
        bytes[8 + header..].to_vec()
    };
    assert!(tensors("plain") == tensors("drawn"));
    assert_eq!(runs::history(&at("plain")), runs::history(&at("drawn")));
    assert!(!at("plain/figures/explain-0001.png").exists());
    for name in ["explain", "positions", "kernels-patch-embeddings"] {
        for end in ["0001.png", "0002.png", "0002.svg"] {
            assert!(at("drawn/figures").join(format!("{name}-{end}")).is_file(), "{name} {end}");
        }
    }
    // Two rows of a picture and three maps.
    let figure = image::open(at("drawn/figures/explain-0002.png")).expect("it is a picture");
    assert!(figure.width() > 4 * 150 && figure.height() > 2 * 150, "{}x{}", figure.width(), figure.height());
}

#[test]
fn what_grad_cam_weighs_leads_to_the_networks_own_logits() {
    for model in [
        "cct_reference",
        "cvt_7_4_32",
        "gcvit_xxtiny_64",
        "patchconvnet_reference",
        "vit_reference",
        "convmixer_reference",
    ] {
        let architecture = trainer::network::registry::find(model).expect("there is one");
        let vs = tch::nn::VarStore::new(tch::Device::Cpu);
        let network = architecture.init(&vs.root()).expect("it builds");
        let side = architecture.facts.image_size;
        let images = tch::Tensor::rand([2, 3, side, side], (tch::Kind::Float, tch::Device::Cpu));
        let (logits, evidence) =
            tch::no_grad(|| (network.forward_t(&images, false), network.class_evidence(&images)));
        assert!((logits - evidence.logits).abs().max().double_value(&[]) < 1e-5, "{model}");
        let [height, width] = evidence.grid;
        let map = core_layers::grad_cam(network.as_ref(), &images, &tch::Tensor::from_slice(&[0i64, 1]));
        assert_eq!(map.expect("there are such classes").size(), [2, height, width], "{model}");
        // No parameter has got a gradient by it.
        assert!(vs.trainable_variables().iter().all(|variable| !variable.grad().defined()), "{model}");
    }
}
