//! A model card: what a network is, what it learned from, how good it is and how to load it.

use std::fmt::Write as _;
use std::fs;

use core_layers::Timm;
use core_layers::weights::CARD_KEY;
use run_record::layout::{PREDICTIONS, RECORD};
use run_record::{
    DatasetName, Prediction, RunRecord, calibration, calibration_error, grouped, predictions_from_csv,
    sha256, sha256_file, wilson,
};

use crate::Error;
use crate::export::source::Source;
use crate::network::weights::Card;
use crate::run::recipes;

/// What a model card is called where models are shared.
pub const FILE: &str = "README.md";

/// The card, in Markdown with the fields that model hubs read at its top.
///
/// # Errors
/// A recipe that cannot be written.
pub fn text(source: &Source, timm: Option<&Timm>) -> Result<String, Error> {
    let facts = &source.architecture.facts;
    let model = &source.architecture.model;
    let (side, classes) = (facts.image_size, facts.num_classes);
    let library = timm.map_or("", |_| "library_name: timm\n");
    let known = timm.map_or_else(String::new, |timm| format!(" (timm: `{}`)", timm.architecture));
    let mut text = format!(
        "---\n{library}pipeline_tag: image-classification\ntags:\n- image-classification\n- {}\n---\n\n\
         # {model}\n\nAn image classifier of {side}×{side} pixels and {classes} classes, made with compact-vision {}.\n\n\
         | | |\n|---|---|\n| Architecture | {}{known} |\n| Parameters | {} |\n\
         | Multiply-accumulates per image | {} |\n",
        facts.family,
        env!("CARGO_PKG_VERSION"),
        facts.family,
        grouped(facts.params),
        grouped(facts.macs),
    );
    match &source.card {
        Some(card) => trained(&mut text, source, card)?,
        None => text.push_str(
            "\n## Data\n\nThe weights do not say what they were trained on, if they were, nor how images are normalised.\n",
        ),
    }
    // To a string, writing cannot fail.
    let _ = write!(text, "{}", loading(source, timm));
    Ok(text)
}

/// Data, recipe, numbers and licence of a network that a run made.
fn trained(text: &mut String, source: &Source, card: &Card) -> Result<(), Error> {
    let Card { recipe, class_names, epoch, channel_mean, channel_std, data_sha256, .. } = card;
    // To a string, writing cannot fail.
    let _ = write!(
        text,
        "\n## Data\n\n{} classes of the data set `{}` (SHA-256 `{data_sha256}`): {}.\n\nImages are scaled to 0 to 1, then \
         normalised with mean {} and standard deviation {} per channel.\n",
        class_names.len(),
        recipe.dataset,
        names(class_names),
        unit(channel_mean),
        unit(channel_std),
    );
    let _ = write!(
        text,
        "\n## Recipe\n\nWeights of epoch {epoch}.\n\n```toml\n{}```\n\n## Results\n\n{}\n## Licence\n\n{}\n",
        recipes::to_toml(recipe)?,
        results(source, card),
        licence(recipe.dataset),
    );
    Ok(())
}

/// The first names of classes, and how many more there are.
fn names(classes: &[String]) -> String {
    const SHOWN: usize = 20;
    let shown = classes.iter().take(SHOWN).map(|name| format!("`{}`", name.replace('`', "'")));
    let shown = shown.collect::<Vec<_>>().join(", ");
    match classes.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Values on the scale 0 to 255 on that of 0 to 1.
fn unit(values: &[f64; 3]) -> String {
    values.map(|value| format!("{:.4}", value / 255.0)).join(", ")
}

/// What the run's record says of these very weights.
fn results(source: &Source, card: &Card) -> String {
    let validation = card.val_top1.map_or_else(String::new, |top1| {
        format!("Top-1 on the validation images at that epoch: {:.2} %.\n", 100.0 * top1)
    });
    let Some((record, predictions)) = run_of(source) else {
        return format!("{validation}The weights were exported without the record of their run.\n");
    };
    let percent = |share: f64| format!("{:.2} %", 100.0 * share);
    let right: Vec<bool> = predictions.iter().map(Prediction::is_right).collect();
    let (images, hits) = (right.len(), right.iter().filter(|right| **right).count());
    let interval = wilson(hits, images).map_or_else(String::new, |(low, high)| {
        format!(", 95 % interval {} to {}", percent(low), percent(high))
    });
    let in_top5 = predictions.iter().filter(|row| row.is_in_top5()).count();
    let error = |confidence: fn(&Prediction) -> f64| {
        let confidences: Vec<f64> = predictions.iter().map(confidence).collect();
        percent(calibration_error(&calibration(&confidences, &right)))
    };
    let mut text = format!(
        "On {images} test images:\n\n| | |\n|---|---|\n| Top-1 | {}{interval} |\n| Top-5 | {} |\n",
        percent(hits as f64 / images.max(1) as f64),
        percent(in_top5 as f64 / images.max(1) as f64),
    );
    // To a string, writing cannot fail.
    if let Some(loss) = record.result.test_loss {
        let _ = writeln!(text, "| Loss | {loss:.4} |");
    }
    let _ = writeln!(text, "| Calibration error | {} |", error(|row| row.top1_probability));
    if let Some(temperature) = record.temperature {
        let _ = writeln!(
            text,
            "| With logits divided by {temperature:.4} | {} |",
            error(|row| row.top1_calibrated)
        );
    }
    format!(
        "{text}\n{validation}Seed {}, {}, {} on {}, libtorch {}. The calibration error is that of 15 bins of equal width; the \
         temperature was fitted on the validation images.\n",
        record.result.seed,
        record.result.precision,
        record.trainer_version,
        record.cpu,
        record.result.libtorch
    )
}

/// The record and the predictions of the run that the weights are from, if they lie beside them and are of these weights.
fn run_of(source: &Source) -> Option<(RunRecord, Vec<Prediction>)> {
    let run = source.path.parent()?;
    let record = RunRecord::parse(&fs::read_to_string(run.join(RECORD)).ok()?).ok()?;
    let predictions = fs::read(run.join(PREDICTIONS)).ok()?;
    let same = record.weights_sha256 == sha256_file(&source.path).ok()
        && record.predictions_sha256.as_ref() == Some(&sha256(&predictions));
    let predictions = predictions_from_csv(&predictions).ok()?;
    (same && !predictions.is_empty()).then_some((record, predictions))
}

fn licence(dataset: DatasetName) -> String {
    let data = match dataset {
        DatasetName::Digits => {
            "The images are the UCI data set \"Optical Recognition of Handwritten Digits\", CC BY 4.0."
        }
        DatasetName::Cifar10 | DatasetName::Cifar100 | DatasetName::Cifar100Coarse => {
            "The page of CIFAR-10 and CIFAR-100 states no licence and asks to cite Alex Krizhevsky, *Learning Multiple Layers \
             of Features from Tiny Images*, 2009."
        }
        DatasetName::Folder => "Whoever shares the weights says here what the licence of the images allows.",
    };
    format!("The program that made the weights is MIT or Apache 2.0, at your choice. {data}")
}

/// How to load it elsewhere: from a directory that timm reads, or one with an ONNX file.
fn loading(source: &Source, timm: Option<&Timm>) -> String {
    let family = source.architecture.facts.family;
    let side = source.architecture.facts.image_size;
    // The name of its type, as a derived `Debug` has it.
    let config = format!("{:?}", source.architecture.config);
    let config = config.split(' ').next().unwrap_or_default();
    let python = match timm {
        Some(_) => {
            "\n## Use\n\nPython, with timm 1.0:\n\n\
             ```python\nimport timm\n\nnetwork = timm.create_model(\"local-dir:PATH_OF_THIS_DIRECTORY\", pretrained=True).eval()\n\
             transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=network))\n\
             logits = network(transform(image).unsqueeze(0))\n```\n\n\
             ONNX Runtime, from `trainer export model.safetensors --format onnx --normalize-inside --out network.onnx`:\n\n"
        }
        None => "\n## Use\n\nPython, with ONNX Runtime, from this directory:\n\n",
    };
    format!(
        "{python}\
         ```python\nimport json\n\nimport numpy\nimport onnxruntime\nfrom PIL import Image\n\n\
         session = onnxruntime.InferenceSession(\"network.onnx\")\n\
         about = json.loads(session.get_modelmeta().custom_metadata_map[\"{CARD_KEY}\"])\n\
         picture = Image.open(\"picture.png\").convert(\"RGB\").resize(({side}, {side}), Image.Resampling.BICUBIC)\n\
         pixels = numpy.asarray(picture, dtype=numpy.float32).transpose(2, 0, 1)[None] / 255  # [1, 3, {side}, {side}], 0 to 1\n\
         logits = session.run([\"logits\"], {{\"images\": pixels}})[0]\n\
         print(about[\"class_names\"][logits[0].argmax()])\n```\n\n\
         Rust, with the crate `{family}` alone:\n\n\
         ```rust\nlet path = Path::new(\"model.safetensors\");\n\
         let config = {family}::weights::WeightsFile::open(path)?.config::<{config}>()?;\n\
         let vs = nn::VarStore::new(Device::Cpu);\n\
         let network = config.init(&vs.root())?;\n\
         {family}::weights::load(&vs, &config, path, Head::Same)?;\n\
         let logits = network.forward_t(&images, false); // [B, 3, {side}, {side}], normalised\n```\n"
    )
}
