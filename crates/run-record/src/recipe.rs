//! A recipe: everything that decides what a run trains on, what it trains and how.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::augment::AugmentRecipe;
use crate::data::{DataRecipe, DatasetName, FolderRecipe};
use crate::explain::ExplainRecipe;
use crate::optim::{EmaRecipe, OptimizerRecipe, RollbackRecipe, Schedule};

/// One training run, complete: two runs of one recipe with one seed differ only in time and place.
///
/// Unknown keys are errors, and nothing that influences the result has a default.
///
/// ```toml
/// model = "convmixer_reference"
/// dataset = "cifar10"
///
/// [data]
/// image_size = 32
/// normalize = "unit"
/// validation_from = "start"
/// validation_count = 5000
///
/// [augment]
/// hflip = 0.5
///
/// [train]
/// epochs = 10
/// batch_size = 128
/// label_smoothing = 0.0
/// select = "best"
///
/// [optimizer]
/// name = "adamw"
/// lr = 1e-3
/// beta1 = 0.9
/// beta2 = 0.999
/// eps = 1e-7
/// weight_decay = 1e-4
/// scale_decay_by_lr = false
///
/// [schedule]
/// name = "constant"
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Which network, with fields of its configuration replaced where the recipe says so.
    pub model: ModelChoice,
    /// Which data set.
    pub dataset: DatasetName,
    /// How the data is split and presented.
    pub data: DataRecipe,
    /// How the pictures of `dataset = "folder"` are stored and split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<FolderRecipe>,
    /// What is random about training images.
    pub augment: AugmentRecipe,
    /// How long, and on what loss.
    pub train: TrainRecipe,
    /// The optimiser and its constants.
    pub optimizer: OptimizerRecipe,
    /// How the learning rate moves.
    pub schedule: Schedule,
    /// A running average of the weights, if one is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<EmaRecipe>,
    /// What to do when the loss is no longer a number, if not to stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<RollbackRecipe>,
    /// What is drawn of the network while it trains, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explain: Option<ExplainRecipe>,
    /// The weights training starts from, if not fresh draws.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_weights: Option<InitialWeights>,
    /// The published numbers this recipe sets out to reproduce.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<Reference>,
    /// How long a run takes, for the forecast `train-all` prints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<Estimate>,
}

/// A network by name: `model = "convmixer_reference"`, or a table that also replaces fields of that
/// variant's configuration: `model = { name = "convmixer_reference", depth = 4 }`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "ModelForm", into = "ModelForm")]
pub struct ModelChoice {
    /// A name out of `cargo xtask list`.
    pub name: String,
    /// Configuration fields to replace, by name.
    pub fields: BTreeMap<String, FieldValue>,
}

/// The two spellings of [`ModelChoice`].
#[derive(Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a model name, or a table with `name` and fields of its configuration"
)]
enum ModelForm {
    Name(String),
    Table {
        name: String,
        #[serde(flatten)]
        fields: BTreeMap<String, FieldValue>,
    },
}

impl From<ModelForm> for ModelChoice {
    fn from(form: ModelForm) -> Self {
        match form {
            ModelForm::Name(name) => Self { name, fields: BTreeMap::new() },
            ModelForm::Table { name, fields } => Self { name, fields },
        }
    }
}

impl From<ModelChoice> for ModelForm {
    fn from(choice: ModelChoice) -> Self {
        if choice.fields.is_empty() {
            Self::Name(choice.name)
        } else {
            Self::Table { name: choice.name, fields: choice.fields }
        }
    }
}

/// The value of a model field in a recipe; its type is checked against the model's configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FieldValue {
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// A number with a fraction or an exponent.
    Float(f64),
    /// A string.
    Text(String),
    /// A list, for example of one width per stage.
    List(Vec<FieldValue>),
}

/// How long a run is, and on what loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainRecipe {
    /// Passes over the training part.
    pub epochs: u32,
    /// Images per step; the last batch of an epoch holds what is left.
    pub batch_size: usize,
    /// Target: (1 − s)·onehot + s/K.
    pub label_smoothing: f64,
    /// Which epoch's weights are kept and tested.
    pub select: Select,
    /// The loss, if not cross-entropy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<Loss>,
    /// Binary cross-entropy: add the classes up instead of taking their mean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bce_sum: Option<bool>,
    /// Binary cross-entropy: targets above this become 1, the others 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bce_target_thresh: Option<f64>,
    /// Parts a batch is passed through the network in, one after the other. The update is that of the whole
    /// batch; it takes less memory and more time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accumulate: Option<usize>,
    /// The largest 2-norm of all gradients together; longer ones are scaled to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_grad: Option<f64>,
    /// Epochs without a better validation top-1 after which the run ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<u32>,
}

/// What training makes small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Cross-entropy of the softmax.
    CrossEntropy,
    /// Binary cross-entropy of each class's sigmoid (Wightman et al., arXiv:2110.00476).
    Bce,
}

/// Which epoch's weights a run keeps and tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Select {
    /// The first with the best validation top-1.
    Best,
    /// The last.
    Last,
}

impl Select {
    /// The file of the kept weights in a run directory.
    pub fn weights_file(self) -> &'static str {
        match self {
            Self::Best => "best.safetensors",
            Self::Last => "last.safetensors",
        }
    }
}

/// Weights to start from. A head for other classes is drawn anew, and a position embedding for another size of image
/// resampled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitialWeights {
    /// A safetensors file; its path is UTF-8, or a recipe could not hold it.
    pub file: PathBuf,
    /// Its SHA-256 in lower-case hexadecimal; another file is refused.
    pub sha256: String,
}

/// Published numbers to compare with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// Where they were published.
    pub source: String,
    /// Test top-1 accuracy, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_top1: Option<f64>,
    /// Test top-5 accuracy, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_top5: Option<f64>,
}

/// How long a run takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Estimate {
    /// Minutes of training on two CPU cores with AVX-512.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_minutes: Option<f64>,
}

/// A value of a recipe that is out of its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{field} = {value}: {expected}")]
pub struct RecipeError {
    /// The key, as `--set` would name it.
    pub field: &'static str,
    /// What it was set to.
    pub value: String,
    /// What it has to be.
    pub expected: &'static str,
}

/// All values of a recipe that are out of their ranges; one at least.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct RecipeErrors(pub Vec<RecipeError>);

impl Recipe {
    /// Reads a recipe and checks its ranges.
    ///
    /// # Errors
    /// What is wrong, in one line that names the line of the text or the keys.
    pub fn parse(text: &str) -> Result<Self, String> {
        let recipe: Self = toml::from_str(text).map_err(|error| {
            let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
            match error.span().and_then(|span| text.get(..span.start)) {
                Some(before) => format!("line {}: {message}", before.matches('\n').count() + 1),
                None => message,
            }
        })?;
        recipe.validate().map_err(|error| error.to_string())?;
        Ok(recipe)
    }

    /// Checks every value that has a range. What depends on the data set's size or on the model
    /// is checked where those are known.
    ///
    /// # Errors
    /// All values out of range, with their ranges.
    pub fn validate(&self) -> Result<(), RecipeErrors> {
        let mut faults = Faults::default();
        self.check(&mut faults);
        if faults.0.is_empty() { Ok(()) } else { Err(RecipeErrors(faults.0)) }
    }

    fn check(&self, faults: &mut Faults) {
        let Self { data, train, optimizer, .. } = self;
        let non_negative = |x: f64| x.is_finite() && x >= 0.0;
        let fraction = |x: f64| (0.0..1.0).contains(&x);
        data.check(self.dataset, self.folder.as_ref(), faults);
        self.augment.check(data.image_size, faults);
        let some_epochs = (1..=100_000).contains(&train.epochs);
        faults.check("train.epochs", train.epochs, some_epochs, "1 to 100000");
        faults.check(
            "train.batch_size",
            train.batch_size,
            (1..=65_536).contains(&train.batch_size),
            "1 to 65536",
        );
        let smoothing = train.label_smoothing;
        faults.check("train.label_smoothing", smoothing, fraction(smoothing), "0 or more, below 1");
        let bce = train.loss == Some(Loss::Bce);
        if let Some(threshold) = train.bce_target_thresh {
            faults.check("train.bce_target_thresh", threshold, fraction(threshold), "0 or more, below 1");
        }
        for (field, given) in [
            ("train.bce_sum", train.bce_sum.is_some()),
            ("train.bce_target_thresh", train.bce_target_thresh.is_some()),
        ] {
            faults.check(field, "(given)", bce || !given, "it is for train.loss = \"bce\" only");
        }
        if let Some(parts) = train.accumulate {
            faults.check(
                "train.accumulate",
                parts,
                (1..=train.batch_size).contains(&parts),
                "1 to train.batch_size",
            );
        }
        if let Some(norm) = train.clip_grad {
            faults.check("train.clip_grad", norm, norm.is_finite() && norm > 0.0, "a finite number above 0");
        }
        if let Some(epochs) = train.patience {
            faults.check("train.patience", epochs, epochs > 0, "1 or more");
        }
        optimizer.check(faults);
        if some_epochs {
            self.schedule.check(train.epochs, faults);
        }
        if let Some(EmaRecipe { decay, .. }) = self.ema {
            faults.check("ema.decay", decay, fraction(decay), "0 or more, below 1");
        }
        if let Some(RollbackRecipe { times, lr_factor }) = self.rollback {
            faults.check("rollback.times", times, times > 0, "1 or more");
            let holds = lr_factor > 0.0 && lr_factor <= 1.0;
            faults.check("rollback.lr_factor", lr_factor, holds, "above 0, at most 1");
        }
        if let Some(explain) = &self.explain {
            explain.check(faults);
        }
        if let Some(InitialWeights { sha256, .. }) = &self.initial_weights {
            let digits = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            let holds = sha256.len() == 64 && sha256.bytes().all(digits);
            faults.check("initial_weights.sha256", sha256, holds, "64 hexadecimal digits in lower case");
        }
        let Self { reference, estimate, .. } = self;
        for (field, value) in [
            ("reference.test_top1", reference.as_ref().and_then(|reference| reference.test_top1)),
            ("reference.test_top5", reference.as_ref().and_then(|reference| reference.test_top5)),
        ] {
            let share = value.unwrap_or_default();
            faults.check(field, share, (0.0..=1.0).contains(&share), "a share from 0 to 1, not a percentage");
        }
        let minutes = estimate.as_ref().and_then(|estimate| estimate.cpu_minutes).unwrap_or_default();
        faults.check("estimate.cpu_minutes", minutes, non_negative(minutes), "a finite number, 0 or more");
    }

    /// The recipe without its published numbers, its forecast, what is drawn and the place of its initial weights: what
    /// decides the outcome of a run.
    pub fn without_commentary(&self) -> Self {
        let mut recipe = Self { reference: None, estimate: None, explain: None, ..self.clone() };
        if let Some(weights) = &mut recipe.initial_weights {
            weights.file = PathBuf::new();
        }
        recipe
    }
}

pub(crate) fn show(value: impl fmt::Debug) -> String {
    format!("{value:?}")
}

/// What is wrong with a recipe, as far as it was checked.
#[derive(Debug, Default)]
pub(crate) struct Faults(pub Vec<RecipeError>);

impl Faults {
    /// Notes a value unless it holds.
    pub fn check(
        &mut self,
        field: &'static str,
        value: impl fmt::Display,
        holds: bool,
        expected: &'static str,
    ) {
        if !holds {
            self.0.push(RecipeError { field, value: value.to_string(), expected });
        }
    }

    /// Fields that only mean something together are all there or all absent.
    pub fn together(&mut self, field: &'static str, given: &[bool], expected: &'static str) {
        let count = given.iter().filter(|given| **given).count();
        let value = format!("{count} of {} keys", given.len());
        self.check(field, value, count == 0 || count == given.len(), expected);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Normalize, ValidationFrom};

    const EXAMPLE: &str = r#"
model = "convmixer_reference"
dataset = "cifar10"
[data]
image_size = 32
normalize = "unit"
validation_from = "start"
validation_count = 5000
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
        let missing =
            toml::from_str::<Recipe>(&EXAMPLE.replace("hflip = 0.5\n", "")).unwrap_err().to_string();
        assert!(missing.contains("missing field `hflip`"), "{missing}");
    }

    #[test]
    fn mistakes_in_a_text_are_named_with_their_line() {
        assert_eq!(Recipe::parse(EXAMPLE), Ok(example()));
        for (from, to, words) in [
            // At the start of a line, and in the middle of one.
            ("epochs = 10", "epoch = 10", "line 12: unknown field `epoch`"),
            ("hflip = 0.5", "hflip = true", "line 10: invalid type: boolean `true`"),
            ("epochs = 10", "epochs = 0", "train.epochs = 0: 1 to 100000"),
        ] {
            let message = Recipe::parse(&EXAMPLE.replace(from, to)).unwrap_err();
            assert!(message.starts_with(words) && !message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn values_out_of_range_are_named() {
        assert_eq!(example().validate(), Ok(()));
        type Spoil = fn(&mut Recipe);
        let cases: [(&str, Spoil); 19] = [
            ("data.image_size", |r| r.data.image_size = 0),
            ("initial_weights.sha256", |r| {
                r.initial_weights = Some(InitialWeights { file: PathBuf::new(), sha256: "ab".into() });
            }),
            ("augment.crop_from", |r| r.augment.crop_from = Some(31)),
            ("data.crop_pct", |r| r.data.crop_pct = Some(0.9)),
            ("data.validation_count", |r| r.data.validation_count = None),
            ("data.validation_count", |r| r.data.validation_fraction = Some(0.1)),
            ("data.validation_fraction", |r| {
                (r.data.validation_count, r.data.validation_fraction) = (None, Some(1.0));
            }),
            ("data.validation_from", |r| {
                (r.data.validation_from, r.data.validation_count) = (ValidationFrom::Folder, None);
            }),
            ("folder", |r| r.dataset = DatasetName::Folder),
            ("schedule.warmup", |r| {
                r.schedule = Schedule::WarmupCosine { warmup: 1.0, tutorial_steps: None }
            }),
            ("data.mean", |r| r.data.mean = Some([0.5; 3])),
            ("data.normalize", |r| r.data.normalize = Normalize::Fixed),
            ("data.validation_count", |r| r.data.validation_count = Some(0)),
            ("train.epochs", |r| r.train.epochs = 0),
            ("train.batch_size", |r| r.train.batch_size = 0),
            ("train.label_smoothing", |r| r.train.label_smoothing = 1.0),
            ("optimizer.lr", |r| r.optimizer.lr = f64::NAN),
            ("optimizer.weight_decay", |r| r.optimizer.weight_decay = -0.1),
            ("reference.test_top1", |r| {
                r.reference =
                    Some(Reference { source: String::new(), test_top1: Some(82.71), test_top5: None });
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
    fn statistics_are_on_the_scale_of_1() {
        let mut recipe = example();
        recipe.data.normalize = Normalize::Fixed;
        (recipe.data.mean, recipe.data.std) = (Some([0.485, 0.456, 0.406]), Some([0.229, 0.224, 0.225]));
        assert_eq!(recipe.validate(), Ok(()));
        (recipe.data.mean, recipe.data.std) =
            (Some([123.675, 116.28, 103.53]), Some([58.395, 57.12, 57.375]));
        let message = recipe.validate().unwrap_err().to_string();
        assert!(message.contains("data.mean = [123.675, 116.28, 103.53]: three numbers on the scale 0 to 1"));
        assert!(message.contains("; data.std = ") && message.contains("divide by 255"), "{message}");
    }

    #[test]
    fn the_commentary_does_not_count_as_part_of_the_run() {
        let mut recipe = example();
        recipe.reference =
            Some(Reference { source: "a tutorial".into(), test_top1: Some(0.8), test_top5: None });
        recipe.estimate = Some(Estimate { cpu_minutes: Some(3.0) });
        assert_eq!(recipe.without_commentary(), example());

        let from = |file: &str, sha256: &str| Recipe {
            initial_weights: Some(InitialWeights { file: file.into(), sha256: sha256.into() }),
            ..example()
        };
        assert_eq!(from("a", "1").without_commentary(), from("b", "1").without_commentary());
        assert_ne!(from("a", "1").without_commentary(), from("a", "2").without_commentary());
    }
}
