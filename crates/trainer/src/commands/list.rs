//! `list`: the networks.

use trainer::Error;
use trainer::progress::show;
use trainer::registry::FAMILIES;
use trainer::summary::grouped;
use trainer::table::table;

use super::say_json;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Show only names that match, `*` and `?` as in a shell.
    pattern: Option<String>,
    /// Print a JSON array, configurations included.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Error> {
    let pattern = args.pattern.as_deref().unwrap_or("*");
    let matcher =
        glob::Pattern::new(pattern).map_err(|error| Error::Usage(format!("pattern {pattern:?}: {error}")))?;
    let mut variants: Vec<_> = FAMILIES.iter().flat_map(|family| family.variants()).collect();
    variants.retain(|variant| matcher.matches(&variant.model));
    if variants.is_empty() {
        return Err(Error::Usage(format!(
            "no model matches {pattern:?}; `list` without a pattern shows all"
        )));
    }
    if args.json {
        say_json(&variants)?;
        return Ok(());
    }
    let rows = variants.into_iter().map(|v| {
        let numbers =
            [grouped(v.params), grouped(v.macs), v.image_size.to_string(), v.num_classes.to_string()];
        let [params, macs, image, classes] = numbers;
        [v.model.clone(), v.family.to_owned(), params, macs, image, classes]
    });
    show(&table(["model", "family", "params", "MACs", "image", "classes"], 2, rows));
    Ok(())
}
