//! `list`: the networks.

use trainer::Error;
use trainer::progress::say;
use trainer::registry::FAMILIES;

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
    say(&format!(
        "{:<28} {:<14} {:>12} {:>16} {:>6} {:>8}",
        "model", "family", "params", "MACs", "image", "classes"
    ));
    for v in variants {
        say(&format!(
            "{:<28} {:<14} {:>12} {:>16} {:>6} {:>8}",
            v.model, v.family, v.params, v.macs, v.image_size, v.num_classes
        ));
    }
    Ok(())
}
