//! Whole recipes: what is read, what is refused, and in which words.

use super::*;
use crate::data::{HeldOut, Interpolation, Normalize, Resize, Validation};
use crate::fault::RecipeError;
use std::path::Path;

const EXAMPLE: &str = r#"
model = "convmixer_reference"
dataset = "cifar10"
[data]
image_size = 32
normalize = "unit"
validation.start.count = 5000
[augment]
hflip = 0.5
[train]
epochs = 10
batch_size = 128
label_smoothing = 0.0
select = "best"
[optimizer]
name = "adamw"
lr = 1e-3
beta1 = 0.9
beta2 = 0.999
eps = 1e-7
weight_decay = 1e-4
scale_decay_by_lr = false
[schedule]
name = "constant"
"#;

fn example() -> Recipe {
    toml::from_str(EXAMPLE).unwrap()
}

#[test]
fn both_spellings_of_a_model_survive_a_round_trip() {
    let named = example();
    assert_eq!(named.model.name, "convmixer_reference");
    assert_eq!(toml::from_str::<Recipe>(&toml::to_string(&named).unwrap()).unwrap(), named);

    let table = EXAMPLE.replace(
        "\"convmixer_reference\"",
        "{ name = \"convmixer_reference\", depth = 4, bn_momentum = 0.1, init = \"glorot\" }",
    );
    let changed: Recipe = toml::from_str(&table).unwrap();
    assert_eq!(changed.model.fields["depth"], FieldValue::Integer(4));
    assert_eq!(changed.model.fields["bn_momentum"], FieldValue::Float(0.1));
    assert_eq!(changed.model.fields["init"], FieldValue::Text("glorot".into()));
    assert_eq!(toml::from_str::<Recipe>(&toml::to_string(&changed).unwrap()).unwrap(), changed);
}

#[test]
fn unknown_and_missing_keys_are_errors_that_name_the_key() {
    let unknown = toml::from_str::<Recipe>(&EXAMPLE.replace("epochs", "epoch")).unwrap_err().to_string();
    assert!(unknown.contains("unknown field `epoch`") && unknown.contains("epochs"), "{unknown}");
    let missing = toml::from_str::<Recipe>(&EXAMPLE.replace("hflip = 0.5\n", "")).unwrap_err().to_string();
    assert!(missing.contains("missing field `hflip`"), "{missing}");
}

#[test]
fn a_mistake_has_its_file_line_field_value_and_remedy() {
    assert_eq!(Recipe::parse(EXAMPLE), Ok(example()));
    let file = Path::new("recipes/own/vit.toml");
    for (from, to, line, field, value, remedy) in [
        (
            "epochs = 10",
            "epoch = 10",
            Some(11),
            "train.epoch",
            Some("10"),
            "unknown field `epoch`, expected one of",
        ),
        (
            "hflip = 0.5",
            "hflip = true",
            Some(9),
            "augment.hflip",
            Some("true"),
            "invalid type: boolean `true`",
        ),
        ("hflip = 0.5\n", "", Some(8), "augment", None, "missing field `hflip`"),
        ("lr = 1e-3\n", "", Some(15), "optimizer", None, "missing field `lr`"),
        ("eps = 1e-7", "eps = 1e-7\nmomentum = 0.9", Some(15), "optimizer", None, "unknown field `momentum`"),
        ("epochs = 10", "epochs = 0", Some(11), "train.epochs", Some("0"), "1 to 100000"),
        (
            "hflip = 0.5",
            "hflip = 0.5\n\nmixup.alpha = 0",
            Some(11),
            "augment.mixup.alpha",
            Some("0"),
            "0.001 to 1000",
        ),
        (
            "[train]",
            "[augment.mixup]\nalpha = -1.0\n[train]",
            Some(11),
            "augment.mixup.alpha",
            Some("-1"),
            "0.001 to 1000",
        ),
        (
            "\"unit\"",
            "{ fixed = { mean = [0, 0, 7], std = [1, 1, 1] } }",
            Some(6),
            "data.normalize.fixed.mean",
            Some("[0.0, 0.0, 7.0]"),
            "three numbers on the scale 0 to 1",
        ),
        ("count = 5000", "count = 0", Some(7), "data.validation.start.count", Some("0"), "1 or more"),
        (
            "[augment]\nhflip = 0.5",
            "[augment]\nhflip = 0.5\npolicy.name = \"rand-x3\"",
            Some(10),
            "augment.policy.name",
            Some("\"rand-x3\""),
            "augmentation policy \"rand-x3\": \"x\" is not known",
        ),
        (
            "dataset = \"cifar10\"",
            "dataset = \"folder\"",
            None,
            "folder",
            Some("absent"),
            "goes with dataset",
        ),
        ("[data]", "[data", Some(4), "", None, "unclosed table"),
    ] {
        let text = EXAMPLE.replace(from, to);
        let RecipeErrors(faults) = Recipe::parse(&text).unwrap_err().in_file(file);
        let [fault] = faults.as_slice() else { panic!("{faults:?}") };
        assert_eq!(
            (fault.line, fault.field.as_str(), fault.value.as_deref()),
            (line, field, value),
            "{to}: {fault}"
        );
        assert_eq!(fault.file.as_deref(), Some(file));
        assert!(fault.remedy.starts_with(remedy), "{to}: {fault}");
        assert!(!fault.to_string().contains('\n'));
    }
}

#[test]
fn an_error_says_what_is_known_of_it() {
    let whole = RecipeError {
        file: Some("a.toml".into()),
        line: Some(12),
        field: "train.epochs".into(),
        value: Some("0".into()),
        remedy: "1 to 100000".into(),
    };
    assert_eq!(whole.to_string(), "a.toml: line 12: train.epochs = 0: 1 to 100000");
    let missing = RecipeError { file: None, value: None, ..whole.clone() };
    assert_eq!(missing.to_string(), "line 12: train.epochs: 1 to 100000");
    let no_toml = RecipeError { field: String::new(), line: None, ..missing };
    assert_eq!(no_toml.to_string(), "1 to 100000");
    let both = RecipeErrors(vec![whole, no_toml]).to_string();
    assert_eq!(both, "a.toml: line 12: train.epochs = 0: 1 to 100000; 1 to 100000");
}

#[test]
fn values_out_of_range_are_named() {
    assert_eq!(example().validate(), Ok(()));
    type Spoil = fn(&mut Recipe);
    let cases: [(&str, Spoil); 25] = [
        ("data.image_size", |r| r.data.image_size = 0),
        ("initial_weights.sha256", |r| {
            r.initial_weights = Some(InitialWeights { file: PathBuf::new(), sha256: "ab".into() });
        }),
        ("augment.padding", |r| r.augment.padding = Some(0)),
        ("data.resize.crop_pct", |r| {
            r.data.resize = Some(Resize { interpolation: Interpolation::Bicubic, crop_pct: 0.1 });
        }),
        ("data.validation.end.fraction", |r| r.data.validation = Validation::End(HeldOut::Fraction(1.0))),
        ("data.validation.start.fraction", |r| {
            r.data.validation = Validation::Start(HeldOut::Fraction(f64::NAN));
        }),
        ("data.validation.end.count", |r| r.data.validation = Validation::End(HeldOut::Count(0))),
        ("data.validation", |r| r.data.validation = Validation::Folder),
        ("folder", |r| r.dataset = DatasetName::Folder),
        ("schedule.warmup", |r| {
            r.schedule = Schedule::WarmupCosine { warmup: 1.0, tutorial_steps: false };
        }),
        ("train.epochs", |r| r.train.epochs = 0),
        ("train.epochs", |r| r.train.epochs = 100_001),
        ("train.batch_size", |r| r.train.batch_size = 0),
        ("train.label_smoothing", |r| r.train.label_smoothing = 1.0),
        ("train.bce.target_thresh", |r| r.train.bce = Some(Bce { sum: true, target_thresh: Some(1.0) })),
        ("train.accumulate", |r| r.train.accumulate = Some(129)),
        ("train.clip_grad", |r| r.train.clip_grad = Some(0.0)),
        ("train.patience", |r| r.train.patience = Some(0)),
        ("train.freeze_epochs", |r| r.train.freeze_epochs = Some(0)),
        ("train.freeze_epochs", |r| r.train.freeze_epochs = Some(r.train.epochs + 1)),
        ("train.class_weights", |r| {
            r.train.bce = Some(Bce { sum: false, target_thresh: None });
            r.train.class_weights = Some(ClassWeights::Balanced);
        }),
        ("optimizer.lr", |r| r.optimizer.lr = f64::NAN),
        ("estimate.cpu_minutes", |r| r.estimate = Some(Estimate { cpu_minutes: Some(-1.0) })),
        ("reference.test_top1", |r| {
            r.reference = Some(Reference {
                source: String::new(),
                test_top1: Some(82.71),
                test_top5: None,
                milestones: Vec::new(),
            });
        }),
        ("reference.milestones", |r| {
            r.reference = Some(Reference {
                source: String::new(),
                test_top1: None,
                test_top5: None,
                milestones: vec![(1, 44.38)],
            });
        }),
    ];
    for (field, spoil) in cases {
        let mut recipe = example();
        spoil(&mut recipe);
        assert_eq!(recipe.validate().unwrap_err().0[0].field, field);
    }
    // All at once, and nothing that only follows from another mistake.
    let mut recipe = example();
    (recipe.train.epochs, recipe.data.image_size, recipe.augment.hflip) = (0, 4000, 7.0);
    recipe.schedule = Schedule::HarmonicWarmupCosine { warmup_epochs: 5 };
    let fields: Vec<_> = recipe.validate().unwrap_err().0.into_iter().map(|fault| fault.field).collect();
    assert_eq!(fields, ["data.image_size", "augment.hflip", "train.epochs"]);
}

#[test]
fn what_is_held_out_and_how_bytes_become_floats_is_one_choice() {
    let read = |from: &str, to: &str| Recipe::parse(&EXAMPLE.replace(from, to));
    let end = read("start.count = 5000", "end.fraction = 0.1").unwrap();
    assert_eq!(end.data.validation, Validation::End(HeldOut::Fraction(0.1)));
    assert_eq!(example().data.validation, Validation::Start(HeldOut::Count(5000)));
    let fixed = "normalize.fixed = { mean = [0.485, 0.456, 0.406], std = [0.229, 0.224, 0.225] }";
    let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
    assert_eq!(read("normalize = \"unit\"", fixed).unwrap().data.normalize, Normalize::Fixed { mean, std });
    for (from, to, words) in [
        ("start.count = 5000", "start = { count = 5000, fraction = 0.1 }", "1 element"),
        ("start.count = 5000", "start = {}", "1 element"),
        ("start.count = 5000", "middle.count = 5000", "unknown variant `middle`"),
        ("normalize = \"unit\"", "normalize = \"fixed\"", "fixed"),
        ("normalize = \"unit\"", "normalize.fixed = { mean = [0.5, 0.5, 0.5] }", "missing field `std`"),
        (
            "normalize = \"unit\"",
            "normalize.fixed = { mean = [0.5, 0.5, 0.5], std = [1, 1, 1], x = 1 }",
            "unexpected keys in table: x",
        ),
        ("select = \"best\"", "select = \"first\"", "unknown variant `first`, expected `best` or `last`"),
        ("select = \"best\"", "select = \"best\"\nbce = { target_thresh = 0.2 }", "missing field `sum`"),
    ] {
        let message = read(from, to).unwrap_err().to_string();
        assert!(message.contains(words), "{to}: {message}");
    }
}

#[test]
fn the_commentary_does_not_count_as_part_of_the_run() {
    let mut recipe = example();
    recipe.reference = Some(Reference {
        source: "a tutorial".into(),
        test_top1: Some(0.8),
        test_top5: None,
        milestones: vec![(1, 0.4)],
    });
    recipe.estimate = Some(Estimate { cpu_minutes: Some(3.0) });
    assert_eq!(recipe.without_commentary(), example());

    let from = |file: &str, sha256: &str| Recipe {
        initial_weights: Some(InitialWeights { file: file.into(), sha256: sha256.into() }),
        ..example()
    };
    assert_eq!(from("a", "1").without_commentary(), from("b", "1").without_commentary());
    assert_ne!(from("a", "1").without_commentary(), from("a", "2").without_commentary());
}

#[test]
fn balanced_weights_make_all_classes_count_alike() {
    let counts = [30, 10, 20];
    let weights = ClassWeights::Balanced.of(&counts);
    assert_eq!(weights, [20.0 / 30.0, 2.0, 1.0]);
    let shares: Vec<f64> = weights.iter().zip(counts).map(|(weight, count)| weight * count as f64).collect();
    assert!(shares.iter().all(|share| (share - 20.0).abs() < 1e-12), "{shares:?}");
}

#[test]
fn a_shorter_run_keeps_the_shares_of_what_counts_in_epochs() {
    let mut recipe = example();
    recipe.train.epochs = 40;
    recipe.train.patience = Some(10);
    recipe.train.freeze_epochs = Some(10);
    recipe.augment.mixup = Some(crate::Mixup { alpha: 0.2 });
    recipe.augment.mix = Some(crate::MixRecipe { off_epoch: Some(30), ..crate::MixRecipe::default() });
    recipe.estimate = Some(Estimate { cpu_minutes: Some(3.0) });
    let cosine = |warmup_epochs, cooldown_epochs| Schedule::Cosine {
        min_lr: 0.0,
        warmup_lr: 1e-6,
        warmup_epochs,
        cooldown_epochs,
        on_updates: true,
    };
    recipe.schedule = cosine(8, 4);
    let of = |epochs| {
        let short = recipe.lasting(epochs);
        short.validate().unwrap();
        assert_eq!(short.train.freeze_epochs, short.train.patience);
        let off = short.augment.mix.and_then(|mix| mix.off_epoch);
        (short.train.epochs, short.train.patience, off, short.schedule)
    };
    assert_eq!(of(10), (10, Some(3), Some(8), cosine(2, 1)));
    // One epoch is all that is left for the rate to fall in.
    assert_eq!(of(1), (1, Some(1), Some(1), cosine(0, 0)));
    assert_eq!(of(80), (80, Some(20), Some(60), cosine(16, 8)));
    assert_eq!(recipe.lasting(40), Recipe { estimate: None, ..recipe.clone() });

    recipe.schedule = Schedule::PiecewiseLinear { points: vec![(0.0, 0.0), (16.0, 1.0), (40.0, 0.0)] };
    let points = vec![(0.0, 0.0), (4.0, 1.0), (10.0, 0.0)];
    assert_eq!(recipe.lasting(10).schedule, Schedule::PiecewiseLinear { points });
    recipe.schedule = Schedule::HarmonicWarmupCosine { warmup_epochs: 40 };
    assert_eq!(recipe.lasting(4).schedule, Schedule::HarmonicWarmupCosine { warmup_epochs: 3 });
}
