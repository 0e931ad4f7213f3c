//! `bench`: how fast networks are on this machine, by themselves and beside PyTorch and ONNX Runtime.
//!
//! Every number is of a process of its own, and the contestants take turns, so that what slows the machine down for a
//! while slows all of them down.

mod peers;
mod scaling;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use run_record::{machine, to_csv};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::machine::libtorch::{self, FlavorChoice};
use crate::process::{Place, Usage, cannot_start, note, show};
use crate::table::markdown;
use crate::trainer::build_trainer;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Bench {
    /// Networks: cct, convmixer, gcvit, patchconvnet, vit
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = NETWORKS.map(|network| network.name.to_owned()))]
    models: Vec<String>,
    /// Training steps, logits, or training steps of 1, 2 and 4 processes beside a model of them
    #[arg(long, value_enum, default_value = "train")]
    work: Work,
    /// Arithmetic
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["f32", "bf16"])]
    precision: Vec<Precision>,
    /// Images of a step, in each process [default: the recipe's batch, for scaling 64; 8 for gcvit at 224 pixels]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Threads, in each process [default: PyTorch's and libtorch's own choice, for scaling 1]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Processes of each contestant, in turns
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
    rounds: u8,
    /// Seconds that each process measures
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    seconds: f64,
    /// Measure these too, in an environment of their own that pip fills
    #[arg(long, value_enum)]
    against: Option<Against>,
    /// Print where the time goes, operation by operation
    #[arg(long)]
    profile: bool,
    /// Where bench.csv and bench.json, or scaling.csv and scaling-model.csv, go [default: results/bench in the workspace]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Work {
    Train,
    Infer,
    Scaling,
}

impl Work {
    fn name(self) -> &'static str {
        match self {
            Self::Train | Self::Scaling => "train",
            Self::Infer => "infer",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Precision {
    F32,
    Tf32,
    Bf16,
}

impl Precision {
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        }
    }
}

/// What is measured beside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Against {
    /// PyTorch: eager and compiled, both orders of memory, both kinds of attention, three allocators
    Pytorch,
    /// ONNX Runtime, for logits
    Onnxruntime,
}

/// A network as it is measured.
#[derive(Debug)]
struct Network {
    name: &'static str,
    model: &'static str,
    preset: &'static str,
    sets: &'static [&'static str],
    batch: usize,
    label_smoothing: &'static str,
}

const NETWORKS: [Network; 5] = [
    network("cct", "cct_reference", 128, "0.1"),
    network("convmixer", "convmixer_reference", 128, "0"),
    Network {
        preset: "folder",
        sets: &["data.image_size=224"],
        ..network("gcvit", "gcvit_xxtiny", 8, "0.1")
    },
    network("patchconvnet", "patchconvnet_reference", 128, "0"),
    network("vit", "vit_reference", 256, "0"),
];

const fn network(
    name: &'static str,
    model: &'static str,
    batch: usize,
    label_smoothing: &'static str,
) -> Network {
    Network { name, model, preset: "reference", sets: &[], batch, label_smoothing }
}

/// A contestant's numbers for one kind of work.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
struct Row {
    model: String,
    work: &'static str,
    /// That of the contestant: where bf16 is asked for, a peer may be faster in f32.
    precision: &'static str,
    batch_size: usize,
    contestant: String,
    /// Median, least and largest over the processes.
    images_per_second: f64,
    slowest: f64,
    fastest: f64,
    processes: usize,
    peak_memory_mb: Option<f64>,
    /// Ours: median over the rounds of our speed by that of the fastest peer, and the least and largest.
    ratio_to_best_peer: Option<f64>,
    smallest_ratio: Option<f64>,
    largest_ratio: Option<f64>,
    /// Ours, in the last process: percentiles of a step's time in milliseconds, share of the time for pictures, and of
    /// the speed of a large matrix product.
    step_ms_p10: Option<f64>,
    step_ms_p50: Option<f64>,
    step_ms_p90: Option<f64>,
    data_share: Option<f64>,
    peak_share: Option<f64>,
}

/// What a process prints.
#[derive(Debug, Deserialize)]
struct Printed {
    images_per_second: f64,
    peak_memory_mb: Option<f64>,
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

/// One that takes part.
struct Contestant {
    name: String,
    precision: Precision,
    program: PathBuf,
    words: Vec<String>,
    /// A library with another allocator.
    preload: Option<PathBuf>,
    speeds: Vec<f64>,
    printed: Option<Printed>,
}

/// How many of the peers are measured again with other allocators, and how many in further rounds: the fastest of them.
const ALLOCATED: usize = 2;
const KEPT: usize = 3;

/// Measures and writes the tables.
pub(crate) fn bench(place: &Place, args: &Bench) -> Result<u8> {
    let networks: Vec<&'static Network> = args.models.iter().map(|name| find(name)).collect::<Result<_>>()?;
    if args.against == Some(Against::Onnxruntime) && args.work == Work::Train {
        return Err(Usage("ONNX Runtime does not train: add --work infer".to_owned()).into());
    }
    libtorch::ensure(place, FlavorChoice::Auto, None)?;
    let code = build_trainer(place)?;
    if code != 0 {
        return Ok(code);
    }
    if args.work == Work::Scaling {
        return scaling::scaling(place, args, &networks).map(|()| 0);
    }
    let python = args.against.map(|_| peers::environment(place)).transpose()?;
    let (mut rows, mut printed) = (Vec::new(), Vec::new());
    for network in networks {
        for &precision in &args.precision {
            let mut all = vec![ours(place, args, network, precision)];
            if let (Some(against), Some(python)) = (args.against, &python) {
                all.extend(peers::contestants(place, args, python, against, network, precision));
            }
            take_turns(place, network, args.rounds.into(), &mut all)?;
            if args.profile
                && let Some(ours) = &all[0].printed
            {
                show(profile(network.model, precision, ours));
            }
            rows.extend(rows_of(args, network, &all));
            printed.extend(
                all.iter().filter_map(|one| one.printed.as_ref().map(|p| (one.name.clone(), p.rest.clone()))),
            );
        }
    }
    show(table(&rows));
    let out = args.out.clone().unwrap_or_else(|| place.root.join("results/bench"));
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let write = |name: &str, bytes: &[u8]| {
        let path = out.join(name);
        run_record::write_atomically(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
    };
    write("bench.csv", &to_csv(&rows)?)?;
    let all = serde_json::json!({ "cpu": machine::cpu(), "rows": rows, "details": printed });
    write("bench.json", serde_json::to_string_pretty(&all)?.as_bytes())?;
    note(format!("in {}: bench.csv, bench.json", out.display()));
    Ok(0)
}

fn find(name: &str) -> Result<&'static Network> {
    let named = |network: &&Network| network.name == name || network.model == name;
    NETWORKS.iter().find(named).ok_or_else(|| {
        let all = NETWORKS.map(|network| network.name).join(", ");
        Usage(format!("--models {name}: expected some of {all}")).into()
    })
}

/// The trainer.
fn ours(place: &Place, args: &Bench, network: &'static Network, precision: Precision) -> Contestant {
    let mut words = vec![
        "measure".to_owned(),
        format!("--model={}", network.model),
        format!("--preset={}", network.preset),
        format!("--work={}", args.work.name()),
        format!("--precision={}", precision.name()),
        format!("--batch={}", args.batch.unwrap_or(network.batch)),
        format!("--seconds={}", args.seconds),
        format!("--device={}", args.device),
        "--json".to_owned(),
    ];
    words.extend(network.sets.iter().map(|set| format!("--set={set}")));
    words.extend(args.threads.map(|threads| format!("--threads={threads}")));
    words.extend(args.profile.then(|| "--profile".to_owned()));
    Contestant::new("ours".to_owned(), precision, place.trainer(), words)
}

impl Contestant {
    fn new(name: String, precision: Precision, program: PathBuf, words: Vec<String>) -> Self {
        Self { name, precision, program, words, preload: None, speeds: Vec::new(), printed: None }
    }

    /// Measures once.
    fn measure(&mut self, place: &Place) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.current_dir(&place.root).args(&self.words);
        command.envs(self.preload.iter().map(|library| ("LD_PRELOAD", library)));
        if self.program == place.trainer() {
            place.find_libraries(&mut command);
        }
        let output = command.stdin(Stdio::null()).output().with_context(|| cannot_start(&command))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let printed = text.find('{').and_then(|start| serde_json::from_str::<Printed>(&text[start..]).ok());
        let Some(printed) = printed.filter(|_| output.status.success()) else {
            let message = String::from_utf8_lossy(&output.stderr);
            let last =
                message.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no message").to_owned();
            bail!("{}: {last}", self.name);
        };
        self.speeds.push(printed.images_per_second);
        self.printed = Some(printed);
        Ok(())
    }

    fn median(&self) -> f64 {
        median(&self.speeds)
    }
}

/// Measures all once, the fastest peers with other allocators too; and in more rounds the first of all, which is ours,
/// and the peers that are fastest then.
fn take_turns(place: &Place, network: &Network, rounds: usize, all: &mut Vec<Contestant>) -> Result<()> {
    measure_each(place, network, all)?;
    fastest_first(all);
    let mut again: Vec<Contestant> =
        all[1..].iter().take(ALLOCATED).flat_map(peers::with_allocators).collect();
    measure_each(place, network, &mut again)?;
    all.append(&mut again);
    fastest_first(all);
    for _ in 1..rounds {
        all.truncate(1 + KEPT);
        measure_each(place, network, all)?;
    }
    Ok(())
}

/// Sorts the peers, which are all but the first.
fn fastest_first(all: &mut [Contestant]) {
    all[1..].sort_by(|a, b| b.median().total_cmp(&a.median()));
}

/// Measures each once more. What this machine cannot run is left out.
fn measure_each(place: &Place, network: &Network, all: &mut Vec<Contestant>) -> Result<()> {
    let mut broken = Vec::new();
    for (n, one) in all.iter_mut().enumerate() {
        match one.measure(place) {
            Ok(()) => note(format!(
                "{}, {} in {}: {:.1} images/s",
                network.model,
                one.name,
                one.precision.name(),
                one.speeds.last().copied().unwrap_or(f64::NAN)
            )),
            Err(error) if one.program == place.trainer() => return Err(error),
            Err(error) => {
                note(format!("{}: left out: {error:#}", network.model));
                broken.push(n);
            }
        }
    }
    for n in broken.into_iter().rev() {
        all.remove(n);
    }
    Ok(())
}

fn rows_of(args: &Bench, network: &Network, all: &[Contestant]) -> Vec<Row> {
    let best = all[1..].iter().max_by(|a, b| a.median().total_cmp(&b.median()));
    let ratios: Vec<f64> =
        best.map_or(Vec::new(), |best| all[0].speeds.iter().zip(&best.speeds).map(|(a, b)| a / b).collect());
    let row = |(n, one): (usize, &Contestant)| {
        let ours = n == 0;
        let of = |values: &[f64], f: fn(f64, f64) -> f64| values.iter().copied().reduce(f);
        let ratio = |f: &dyn Fn(&[f64]) -> Option<f64>| if ours { f(&ratios) } else { None };
        let printed = one.printed.as_ref();
        let number = |name: &str| printed?.rest.get(name)?.as_f64();
        let step = |n: usize| printed?.rest.get("step_ms")?.get(n)?.as_f64();
        Row {
            model: network.model.to_owned(),
            work: args.work.name(),
            precision: one.precision.name(),
            batch_size: args.batch.unwrap_or(network.batch),
            contestant: one.name.clone(),
            images_per_second: one.median(),
            slowest: of(&one.speeds, f64::min).unwrap_or(f64::NAN),
            fastest: of(&one.speeds, f64::max).unwrap_or(f64::NAN),
            processes: one.speeds.len(),
            peak_memory_mb: printed.and_then(|printed| printed.peak_memory_mb),
            ratio_to_best_peer: ratio(&|ratios| (!ratios.is_empty()).then(|| median(ratios))),
            smallest_ratio: ratio(&|ratios| of(ratios, f64::min)),
            largest_ratio: ratio(&|ratios| of(ratios, f64::max)),
            step_ms_p10: step(1),
            step_ms_p50: step(2),
            step_ms_p90: step(3),
            data_share: number("data_share"),
            peak_share: number("gflops").zip(number("peak_gflops")).map(|(reached, peak)| reached / peak),
        }
    };
    all.iter().enumerate().map(row).collect()
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => f64::NAN,
        (n, half) if n % 2 == 0 => (sorted[half - 1] + sorted[half]) / 2.0,
        (_, half) => sorted[half],
    }
}

fn table(rows: &[Row]) -> String {
    let header = "model|contestant|precision|batch|images/s|from|to|÷ best peer|of matmul's peak|memory MiB";
    let number = |value: Option<f64>, digits: usize| value.map_or(String::new(), |v| format!("{v:.digits$}"));
    let cells = rows.iter().map(|row| {
        vec![
            row.model.clone(),
            row.contestant.clone(),
            row.precision.to_owned(),
            row.batch_size.to_string(),
            format!("{:.1}", row.images_per_second),
            format!("{:.1}", row.slowest),
            format!("{:.1}", row.fastest),
            number(row.ratio_to_best_peer, 2),
            row.peak_share.map_or(String::new(), |share| format!("{:.0} %", 100.0 * share)),
            number(row.peak_memory_mb, 0),
        ]
    });
    markdown(header, 3..10, cells).to_string()
}

/// Operations that take two thousandths of a step or more.
fn profile(model: &str, precision: Precision, printed: &Printed) -> String {
    let mut text = format!("{model} in {}, milliseconds of a step:", precision.name());
    for op in printed.rest.get("profile").and_then(Value::as_array).into_iter().flatten() {
        let number = |name: &str| op.get(name).and_then(Value::as_f64).unwrap_or(f64::NAN);
        if number("share") > 0.002 {
            let name = op.get("name").and_then(Value::as_str).unwrap_or_default();
            text += &format!(
                "\n{:9.3} {:5.1} % {:7.1} x {name}",
                number("ms"),
                100.0 * number("share"),
                number("calls")
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contestant(name: &str, speeds: &[f64]) -> Contestant {
        let printed =
            Printed { images_per_second: speeds[0], peak_memory_mb: Some(1.0), rest: serde_json::Map::new() };
        Contestant {
            speeds: speeds.to_vec(),
            printed: Some(printed),
            ..Contestant::new(name.to_owned(), Precision::F32, "true".into(), Vec::new())
        }
    }

    fn args() -> Bench {
        use clap::Parser;
        #[derive(Parser)]
        struct Cli {
            #[command(flatten)]
            bench: Bench,
        }
        Cli::parse_from(["bench"]).bench
    }

    #[test]
    fn ratios_are_of_rounds_and_to_the_best_peer() {
        let all = [
            contestant("ours", &[30.0, 20.0, 40.0]),
            contestant("a", &[9.0, 9.0, 9.0]),
            contestant("b", &[10.0, 10.0, 20.0]),
        ];
        let rows = rows_of(&args(), &NETWORKS[0], &all);
        assert_eq!(rows.len(), 3);
        assert_eq!((rows[0].images_per_second, rows[0].slowest, rows[0].fastest), (30.0, 20.0, 40.0));
        // 3, 2 and 2 of b, whose median is the largest.
        let ratios = (rows[0].ratio_to_best_peer, rows[0].smallest_ratio, rows[0].largest_ratio);
        assert_eq!(ratios, (Some(2.0), Some(2.0), Some(3.0)));
        assert_eq!(rows[1].ratio_to_best_peer, None);
        assert!(table(&rows).contains("2.00"));
        let alone = rows_of(&args(), &NETWORKS[0], &all[..1]);
        assert_eq!((alone[0].ratio_to_best_peer, alone[0].smallest_ratio), (None, None));
    }

    #[test]
    fn medians_of_even_counts_lie_between() {
        assert_eq!((median(&[3.0, 1.0]), median(&[5.0, 1.0, 2.0])), (2.0, 2.0));
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_network_has_a_name_and_a_variant() {
        assert_eq!(find("gcvit").unwrap().batch, 8);
        assert_eq!(find("vit_reference").unwrap().name, "vit");
        assert!(find("resnet").unwrap_err().is::<Usage>());
    }
}
