//! `inspect`: what a recipe's data holds.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use image::ImageFormat;
use trainer::data::inspect::{Shown, sheet, summarize};
use trainer::data::source::{self, Purpose, Subset};
use trainer::process::lines::{note, show};
use trainer::process::memory::Budget;
use trainer::process::paths::check_output;
use trainer::run::recipes::{self, Resolved};
use trainer::{Error, process::environment};

use super::{DataArgs, RecipeArgs, listen, say_json};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Write a PNG of augmented images beside the originals.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Number of images, from the first batch.
    #[arg(long, default_value_t = 16, value_parser = parse_count)]
    count: usize,
    /// Epoch whose augmentation is shown.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    epoch: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// More would be a picture that nobody can open.
const MOST: usize = 1024;

fn parse_count(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| (1..=MOST).contains(count));
    count.ok_or_else(|| format!("expected 1 to {MOST}"))
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Error> {
    let root = recipes::workspace_root()?;
    let stop = listen()?;
    let RecipeArgs { recipe: file, data: DataArgs { data_dir, stream }, seed, device, .. } = &args.recipe;
    if let Some(output) = &args.output {
        let (recipes, datasets) = (root.join("recipes"), root.join("datasets"));
        let given = file.iter().chain(data_dir).chain([&recipes, &datasets]);
        check_output(output, &given.map(PathBuf::as_path).collect::<Vec<&Path>>())?;
    }
    let Resolved { recipe, .. } = args.recipe.resolve(&root)?;
    let device = environment::device(device)?;
    let listing = source::list(&recipe, &root, data_dir.as_deref(), Purpose::Training)?;
    listing.notes.iter().for_each(|text| note(text));
    let short = Budget::new(listing.bytes(), 0, device)?.short_of().is_some();
    let stream = listing.can_stream() && (*stream || short);
    let source = listing.read(&recipe, stream, &stop, &mut note)?;
    let (faults, remarks) = source.parts.judge(&source.class_names, &recipe);
    faults.iter().for_each(|fault| note(&format!("not to be trained on: {fault}")));
    remarks.iter().for_each(|text| note(text));

    let summary = summarize(&source)?;
    if let Some(output) = &args.output {
        let (set, _) = source.sets(device)?;
        let train = Subset { set: &set, range: source.parts.train.clone() };
        let stats = source.normalization(&recipe.data)?;
        let shown = Shown { recipe: &recipe, class_names: &source.class_names, stats: &stats };
        let sheet = sheet(&shown, &train, (*seed, args.epoch), args.count)?;
        run_record::write_atomically_with(output, |file| {
            let mut file = BufWriter::new(file);
            sheet.write_to(&mut file, ImageFormat::Png).map_err(io::Error::other)?;
            file.flush()
        })
        .map_err(Error::io(output))?;
    }
    if args.json {
        say_json(&summary)?;
    } else {
        show(&summary.to_text());
    }
    Ok(())
}
