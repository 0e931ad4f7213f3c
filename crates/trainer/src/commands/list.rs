//! `list`: the networks.

use core_layers::{Facts, PublicWeights};
use run_record::grouped;
use serde::Serialize;
use serde_json::Value;
use trainer::Error;
use trainer::network::registry::{self, Architecture};
use trainer::process::lines::show;
use trainer::process::table::table;

use super::say_json;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Show only matching names; * and ? are wildcards.
    pattern: Option<String>,
    /// Print JSON, with configurations.
    #[arg(long)]
    json: bool,
}

/// A network as JSON.
#[derive(Serialize)]
struct Entry<'a> {
    model: &'a str,
    #[serde(flatten)]
    facts: &'a Facts,
    config: Value,
    /// null where there are none.
    public_weights: Option<&'static PublicWeights>,
}

impl<'a> Entry<'a> {
    fn of(network: &'a Architecture) -> Self {
        let public_weights = registry::public_weights(&network.model);
        Self {
            model: &network.model,
            facts: &network.facts,
            config: network.config.to_json(),
            public_weights,
        }
    }
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Error> {
    let pattern = args.pattern.as_deref().unwrap_or("*");
    let matcher =
        glob::Pattern::new(pattern).map_err(|error| Error::Usage(format!("pattern {pattern:?}: {error}")))?;
    let names = registry::names().into_iter().filter(|name| matcher.matches(name));
    let variants = names.map(registry::find).collect::<Result<Vec<_>, _>>()?;
    if variants.is_empty() {
        return Err(Error::Usage(format!(
            "no model matches {pattern:?}; `list` without a pattern shows all"
        )));
    }
    if args.json {
        let entries: Vec<Entry> = variants.iter().map(Entry::of).collect();
        return say_json(&entries);
    }
    let rows = variants.into_iter().map(|Architecture { model, facts, .. }| {
        let numbers = [
            grouped(facts.params),
            grouped(facts.macs),
            facts.image_size.to_string(),
            facts.num_classes.to_string(),
        ];
        let [params, macs, image, classes] = numbers;
        let published = registry::public_weights(&model);
        // Of a web address the file's name: --json has all of it.
        let published = published.map_or_else(String::new, |weights| {
            let source =
                weights.source.strip_prefix("https://").and_then(|address| address.rsplit('/').next());
            format!("{} ({})", source.unwrap_or(weights.source), weights.license)
        });
        [model, facts.family.to_owned(), params, macs, image, classes, published]
    });
    show(&table(["model", "family", "params", "MACs", "image", "classes", "public weights"], 2..6, rows));
    Ok(())
}
