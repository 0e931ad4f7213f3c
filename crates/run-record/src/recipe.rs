//! A recipe: everything that decides what a run trains on, what it trains and how.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::augment::AugmentRecipe;
use crate::data::{DataRecipe, DatasetName, FolderRecipe};
use crate::explain::ExplainRecipe;
use crate::fault::{Faults, RecipeErrors};
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
/// validation.start.count = 5000
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
    /// The loss is binary cross-entropy, not cross-entropy of the softmax.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bce: Option<Bce>,
    /// Parts a batch is passed through the network in, one after the other. The update is that of the whole
    /// batch; it takes less memory and more time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accumulate: Option<usize>,
    /// Whether batch norm normalises by the images of all processes, and not by those of each.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sync_batch_norm: bool,
    /// The largest 2-norm of all gradients together; longer ones are scaled to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_grad: Option<f64>,
    /// Epochs without a better validation top-1 after which the run ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<u32>,
    /// Epochs at the start in which the head alone learns; the rest of the network answers as in evaluation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze_epochs: Option<u32>,
    /// How much an image of each class counts in the loss. Absent: all count alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_weights: Option<ClassWeights>,
}

/// Where the weight of a class comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClassWeights {
    /// N / (K·n) for a class with n of the N training images of K classes, so that all classes count alike
    /// (scikit-learn's `balanced`).
    Balanced,
}

impl ClassWeights {
    /// The weight of each class, of which there are so many training images.
    pub fn of(self, counts: &[usize]) -> Vec<f64> {
        let mean = counts.iter().sum::<usize>() as f64 / counts.len() as f64;
        match self {
            Self::Balanced => counts.iter().map(|&count| mean / count as f64).collect(),
        }
    }
}

/// Binary cross-entropy of each class's sigmoid (Wightman et al., arXiv:2110.00476).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bce {
    /// Add the classes up instead of taking their mean.
    pub sum: bool,
    /// Targets above this become 1, the others 0. Absent: they stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_thresh: Option<f64>,
}

impl TrainRecipe {
    fn check(&self, faults: &mut Faults) {
        faults.within("train.epochs", self.epochs, 1..=100_000);
        faults.within("train.batch_size", self.batch_size, 1..=65_536);
        faults.fraction("train.label_smoothing", self.label_smoothing);
        if let Some(Bce { target_thresh: Some(threshold), .. }) = self.bce {
            faults.fraction("train.bce.target_thresh", threshold);
        }
        if let Some(parts) = self.accumulate {
            let holds = (1..=self.batch_size).contains(&parts);
            faults.check("train.accumulate", parts, holds, "1 to train.batch_size");
        }
        if let Some(norm) = self.clip_grad {
            faults.positive("train.clip_grad", norm);
        }
        if let Some(epochs) = self.patience {
            faults.check("train.patience", epochs, epochs > 0, "1 or more");
        }
        if let Some(epochs) = self.freeze_epochs {
            let holds = (1..=self.epochs).contains(&epochs);
            faults.check("train.freeze_epochs", epochs, holds, "1 to train.epochs");
        }
        if self.class_weights.is_some() {
            let remedy = "only goes with cross-entropy; leave out train.bce";
            faults.check("train.class_weights", "balanced", self.bce.is_none(), remedy);
        }
    }
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
            Self::Best => crate::layout::BEST,
            Self::Last => crate::layout::LAST,
        }
    }
}

/// Weights to start from. A head for other classes is drawn anew, and a position embedding for another size of image
/// resampled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitialWeights {
    /// A safetensors file or a PyTorch checkpoint; its path is UTF-8, or a recipe could not hold it. Or weights on the
    /// Hugging Face hub, `hf:ORG/NAME@COMMIT/FILE`.
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
    /// Validation top-1 after some epochs: pairs of an epoch, from 1, and an accuracy, 0 to 1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub milestones: Vec<(u32, f64)>,
}

/// How long a run takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Estimate {
    /// Minutes of training on two CPU cores with AVX-512.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_minutes: Option<f64>,
}

impl Recipe {
    /// Reads a recipe and checks its ranges.
    ///
    /// # Errors
    /// What is wrong, each with its line, key, value and remedy: the first thing that cannot be read, or all values out
    /// of their ranges.
    pub fn parse(text: &str) -> Result<Self, RecipeErrors> {
        let recipe: Self = toml::from_str(text).map_err(|error| RecipeErrors::of_text(&error, text))?;
        recipe.validate().map_err(|errors| errors.with_lines(text))?;
        Ok(recipe)
    }

    /// Checks every value that has a range. What depends on the data set's size or on the model
    /// is checked where those are known.
    ///
    /// # Errors
    /// All values out of range, with their ranges.
    pub fn validate(&self) -> Result<(), RecipeErrors> {
        let mut faults = Faults::default();
        let Self { data, train, schedule, .. } = self;
        data.check(self.dataset, self.folder.as_ref(), &mut faults);
        self.augment.check(data.image_size, &mut faults);
        train.check(&mut faults);
        self.optimizer.check(&mut faults);
        if train.epochs > 0 {
            schedule.check(train.epochs, &mut faults);
        }
        if let Some(ema) = self.ema {
            ema.check(&mut faults);
        }
        if let Some(rollback) = self.rollback {
            rollback.check(&mut faults);
        }
        if let Some(explain) = &self.explain {
            explain.check(&mut faults);
        }
        if let Some(InitialWeights { sha256, .. }) = &self.initial_weights {
            let digits = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            let holds = sha256.len() == 64 && sha256.bytes().all(digits);
            faults.check("initial_weights.sha256", sha256, holds, "64 hexadecimal digits in lower case");
        }
        if let Some(Reference { test_top1, test_top5, milestones, .. }) = &self.reference {
            let milestones = milestones.iter().map(|(_, share)| ("reference.milestones", Some(*share)));
            let tests = [("reference.test_top1", *test_top1), ("reference.test_top5", *test_top5)];
            for (field, share) in tests.into_iter().chain(milestones) {
                let holds = share.is_none_or(|share| (0.0..=1.0).contains(&share));
                let share = share.unwrap_or_default();
                faults.check(field, share, holds, "a share from 0 to 1, not a percentage");
            }
        }
        if let Some(Estimate { cpu_minutes: Some(minutes) }) = self.estimate {
            faults.non_negative("estimate.cpu_minutes", minutes);
        }
        faults.result()
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

    /// The same recipe over another number of epochs. What counts in epochs keeps its share of the run: warm-up, cooldown
    /// and the points of a schedule, the last epoch that mixes, patience. What is drawn on the way and what was published
    /// of the whole run is left out.
    pub fn lasting(&self, epochs: u32) -> Self {
        let mut recipe = Self { reference: None, estimate: None, explain: None, ..self.clone() };
        let factor = f64::from(epochs) / f64::from(self.train.epochs);
        let share = |count: u32| ((f64::from(count) * factor).round() as u32).max(1);
        recipe.train.epochs = epochs;
        recipe.train.patience = self.train.patience.map(share);
        recipe.train.freeze_epochs = self.train.freeze_epochs.map(share);
        if let Some(mix) = &mut recipe.augment.mix {
            mix.off_epoch = mix.off_epoch.map(share);
        }
        recipe.schedule = self.schedule.stretched(factor, epochs);
        recipe
    }
}

#[cfg(test)]
mod tests;
