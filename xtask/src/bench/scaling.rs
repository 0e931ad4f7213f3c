//! `bench --work scaling`: steps of 1, 2 and 4 processes beside a model of them, and what the model says of other networks.

use std::fs;

use anyhow::{Context, Result};
use run_record::to_csv;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Bench, Contestant, Network, Precision, median};
use crate::process::{Place, Usage, note, show};
use crate::table::markdown;

/// Numbers of processes that are measured.
const MEASURED: [usize; 3] = [1, 2, 4];

/// Images of each process's step, unless asked for otherwise.
const BATCH: usize = 64;

/// What connects processes, each on a machine of its own, and how many of them the model is asked about. Latencies are
/// those of a message of Gloo over TCP; a fabric of 100 Gbit/s is taken with that of its TCP as well.
const LINKS: [(&str, Link); 3] = [
    ("1 Gbit/s, 100 µs", Link { latency: 100e-6, bandwidth: 0.125e9 }),
    ("10 Gbit/s, 30 µs", Link { latency: 30e-6, bandwidth: 1.25e9 }),
    ("100 Gbit/s, 15 µs", Link { latency: 15e-6, bandwidth: 12.5e9 }),
];
const EXTRAPOLATED: [usize; 6] = [2, 4, 8, 16, 32, 64];

/// A step of one process by itself, in seconds, and what it would have to sum with others.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Work {
    /// Pictures made ready.
    data: f64,
    /// Forward, backward and update.
    compute: f64,
    /// The backward pass in that.
    backward: f64,
    /// Bytes of gradients.
    bytes: f64,
    /// Sums they are sent in.
    buckets: f64,
    /// Small sums after them.
    small_sums: f64,
}

/// A connection: seconds of a message, bytes in a second.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Link {
    latency: f64,
    bandwidth: f64,
}

impl Link {
    /// That over which sums among so many processes took such times, in seconds: all gradients, and one number.
    fn of(processes: usize, bytes: f64, buckets: f64, alone: f64, small: f64) -> Self {
        let steps = 2.0 * (processes as f64 - 1.0);
        // What is left for bytes cannot be nothing, however the clock was rounded.
        let sending = (alone - buckets * small).max(0.05 * alone);
        Self { latency: small / steps, bandwidth: steps / processes as f64 * bytes / sending }
    }
}

/// The model, in seconds: pictures, passes and update as of one process, times the processes that share a core; then
/// what the backward pass does not hide of a ring's sums, of which the last bucket never is; then the small sums.
///
/// A ring takes 2(N − 1) messages for a sum, each of an N-th of its bytes (Patarasuk & Yuan 2009). The first of k buckets is
/// full after about 1/k of the backward pass, which hides sums from then on.
fn step_seconds(work: &Work, link: &Link, processes: usize, per_core: f64) -> f64 {
    let messages = 2.0 * (processes as f64 - 1.0);
    let reduce =
        messages / processes as f64 * work.bytes / link.bandwidth + messages * link.latency * work.buckets;
    let hidden = work.backward * per_core * (1.0 - 1.0 / work.buckets);
    let exposed = (reduce - hidden).max(reduce / work.buckets);
    (work.data + work.compute) * per_core + exposed + messages * link.latency * work.small_sums
}

/// What the trainer prints, as far as it is needed.
#[derive(Debug, Clone, Deserialize)]
struct Printed {
    step_ms: [f64; 5],
    data_share: f64,
    threads: usize,
    reduction: Option<Reduction>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Reduction {
    bytes: f64,
    buckets: f64,
    small_sums: f64,
    backward_ms: f64,
    waited_ms: f64,
    alone_ms: f64,
    small_ms: f64,
}

/// A number of processes of one machine. Times are medians over the rounds, in milliseconds.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
struct Row {
    model: String,
    precision: &'static str,
    batch_per_process: usize,
    processes: usize,
    threads_each: usize,
    cores: usize,
    rounds: usize,
    step_ms: f64,
    /// Of the rounds' medians.
    step_ms_least: f64,
    step_ms_most: f64,
    data_ms: f64,
    backward_ms: Option<f64>,
    waited_ms: Option<f64>,
    gradient_bytes: Option<f64>,
    buckets: Option<f64>,
    /// All sums of gradients, with nothing beside them, and that of one number.
    alone_ms: Option<f64>,
    small_ms: Option<f64>,
    /// Of a ring, from the sums alone.
    bandwidth_mb_per_second: Option<f64>,
    latency_us: Option<f64>,
    model_ms: f64,
    model_error: f64,
    efficiency: f64,
    model_efficiency: f64,
}

/// What the model says of processes on machines of their own.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
struct Extrapolated {
    model: String,
    precision: &'static str,
    batch_per_process: usize,
    link: &'static str,
    processes: usize,
    model_ms: f64,
    model_efficiency: f64,
}

/// Measures and writes the tables.
pub(super) fn scaling(place: &Place, args: &Bench, networks: &[&'static Network]) -> Result<()> {
    if args.device != "cpu" || args.against.is_some() || args.profile {
        return Err(Usage("--work scaling: on the CPU, without --against and --profile".to_owned()).into());
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (mut rows, mut further) = (Vec::new(), Vec::new());
    for network in networks {
        for &precision in &args.precision {
            let printed = take_turns(place, args, network, precision)?;
            let batch = args.batch.unwrap_or(network.batch.min(BATCH));
            let (measured, extrapolated) = judge(network.model, precision, batch, cores, &printed)?;
            rows.extend(measured);
            further.extend(extrapolated);
        }
    }
    show(table(&rows));
    show(further_table(&further));
    let out = args.out.clone().unwrap_or_else(|| place.root.join("results/bench"));
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    for (name, bytes) in [("scaling.csv", to_csv(&rows)?), ("scaling-model.csv", to_csv(&further)?)] {
        let path = out.join(name);
        run_record::write_atomically(&path, &bytes)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    note(format!("in {}: scaling.csv, scaling-model.csv", out.display()));
    Ok(())
}

/// What every number of processes prints in every round, the numbers one after the other in each.
fn take_turns(
    place: &Place,
    args: &Bench,
    network: &'static Network,
    precision: Precision,
) -> Result<Vec<Vec<Printed>>> {
    let batch = args.batch.unwrap_or(network.batch.min(BATCH));
    let threads = args.threads.unwrap_or(1);
    let mut all: Vec<(Contestant, Vec<Printed>)> = MEASURED
        .into_iter()
        .map(|processes| {
            let mut words = vec![
                "measure".to_owned(),
                format!("--model={}", network.model),
                format!("--preset={}", network.preset),
                format!("--precision={}", precision.name()),
                format!("--batch={}", batch * processes),
                format!("--threads={threads}"),
                format!("--processes={processes}"),
                format!("--seconds={}", args.seconds),
                "--device=cpu".to_owned(),
                "--json".to_owned(),
            ];
            words.extend(network.sets.iter().map(|set| format!("--set={set}")));
            let name = format!("{processes} processes");
            (Contestant::new(name, precision, place.trainer(), words), Vec::new())
        })
        .collect();
    for _ in 0..args.rounds {
        for (contestant, printed) in &mut all {
            contestant.measure(place)?;
            let told = contestant.printed.take().map_or(Value::Null, |printed| Value::Object(printed.rest));
            let told: Printed = serde_json::from_value(told).context("the trainer's answer")?;
            note(format!("{}, {}: {:.1} ms a step", network.model, contestant.name, told.step_ms[2]));
            printed.push(told);
        }
    }
    Ok(all.into_iter().map(|(_, printed)| printed).collect())
}

/// The rows of what was measured, and of what follows. The connection is that of the first number of processes above one,
/// so that the others are a check.
fn judge(
    model: &str,
    precision: Precision,
    batch: usize,
    cores: usize,
    printed: &[Vec<Printed>],
) -> Result<(Vec<Row>, Vec<Extrapolated>)> {
    let of =
        |round: &[Printed], f: &dyn Fn(&Printed) -> f64| median(&round.iter().map(f).collect::<Vec<_>>());
    let reduced = |round: &[Printed], f: fn(&Reduction) -> f64| -> Option<f64> {
        let values: Option<Vec<f64>> = round.iter().map(|one| one.reduction.as_ref().map(f)).collect();
        values.map(|values| median(&values))
    };
    let step = |round: &[Printed]| of(round, &|one| one.step_ms[2]);
    let data = |round: &[Printed]| of(round, &|one| one.step_ms[2] * one.data_share);
    let (Some(one), Some(two)) = (printed.first(), printed.get(1)) else {
        return Err(anyhow::anyhow!("nothing was measured"));
    };
    let second = |f: fn(&Reduction) -> f64| reduced(two, f).context("the trainer told of no sums");
    let ms = 1e-3;
    let (bytes, buckets) = (second(|r| r.bytes)?, second(|r| r.buckets)?);
    let work = Work {
        data: ms * data(one),
        compute: ms * (step(one) - data(one)),
        // As long as it takes beside the sums, whatever these take of it.
        backward: ms * second(|r| r.backward_ms)?,
        bytes,
        buckets,
        small_sums: second(|r| r.small_sums)?,
    };
    let link = |processes: usize, alone: f64, small: f64| {
        Link::of(processes, bytes, buckets, ms * alone, ms * small)
    };
    let near = link(MEASURED[1], second(|r| r.alone_ms)?, second(|r| r.small_ms)?);
    let threads = one.first().map_or(1, |one| one.threads);
    let rows = MEASURED.iter().zip(printed).map(|(&processes, round)| {
        let per_core = ((processes * threads) as f64 / cores as f64).max(1.0);
        let model_ms = match processes {
            1 => step(one),
            _ => step_seconds(&work, &near, processes, per_core) / ms,
        };
        let here = reduced(round, |r| r.alone_ms).zip(reduced(round, |r| r.small_ms));
        let here = here.map(|(alone, small)| link(processes, alone, small));
        let extreme =
            |f: fn(f64, f64) -> f64| round.iter().map(|one| one.step_ms[2]).reduce(f).unwrap_or(f64::NAN);
        Row {
            model: model.to_owned(),
            precision: precision.name(),
            batch_per_process: batch,
            processes,
            threads_each: threads,
            cores,
            rounds: round.len(),
            step_ms: step(round),
            step_ms_least: extreme(f64::min),
            step_ms_most: extreme(f64::max),
            data_ms: data(round),
            backward_ms: reduced(round, |r| r.backward_ms),
            waited_ms: reduced(round, |r| r.waited_ms),
            gradient_bytes: reduced(round, |r| r.bytes),
            buckets: reduced(round, |r| r.buckets),
            alone_ms: reduced(round, |r| r.alone_ms),
            small_ms: reduced(round, |r| r.small_ms),
            bandwidth_mb_per_second: here.map(|link| 1e-6 * link.bandwidth),
            latency_us: here.map(|link| 1e6 * link.latency),
            model_ms,
            model_error: model_ms / step(round) - 1.0,
            efficiency: step(one) / step(round),
            model_efficiency: step(one) / model_ms,
        }
    });
    let further = LINKS.iter().flat_map(|(name, link)| {
        EXTRAPOLATED.map(|processes| {
            let model_ms = step_seconds(&work, link, processes, 1.0) / ms;
            Extrapolated {
                model: model.to_owned(),
                precision: precision.name(),
                batch_per_process: batch,
                link: name,
                processes,
                model_ms,
                model_efficiency: step(one) / model_ms,
            }
        })
    });
    Ok((rows.collect(), further.collect()))
}

fn table(rows: &[Row]) -> String {
    let header = "model|precision|batch each|processes × threads|cores|step ms|from|to|data ms|backward ms|waits ms|KiB summed|\
                  sums|alone ms|MB/s|µs|model ms|model off|efficiency|model's";
    let number = |value: Option<f64>, digits: usize| value.map_or(String::new(), |v| format!("{v:.digits$}"));
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let cells = rows.iter().map(|row| {
        vec![
            row.model.clone(),
            row.precision.to_owned(),
            row.batch_per_process.to_string(),
            format!("{} × {}", row.processes, row.threads_each),
            row.cores.to_string(),
            format!("{:.1}", row.step_ms),
            format!("{:.1}", row.step_ms_least),
            format!("{:.1}", row.step_ms_most),
            format!("{:.1}", row.data_ms),
            number(row.backward_ms, 1),
            number(row.waited_ms, 2),
            number(row.gradient_bytes.map(|bytes| bytes / 1024.0), 0),
            number(row.buckets, 0),
            number(row.alone_ms, 2),
            number(row.bandwidth_mb_per_second, 0),
            number(row.latency_us, 0),
            format!("{:.1}", row.model_ms),
            format!("{:+.1} %", 100.0 * row.model_error),
            percent(row.efficiency),
            percent(row.model_efficiency),
        ]
    });
    markdown(header, 2..20, cells).to_string()
}

/// Efficiencies by connection and number of processes, as the model has them.
fn further_table(further: &[Extrapolated]) -> String {
    let header = ["model|precision|link".to_owned()].into_iter();
    let header = header.chain(EXTRAPOLATED.map(|processes| format!("{processes} machines")));
    let cells = further.chunks(EXTRAPOLATED.len()).filter_map(|chunk| {
        let Extrapolated { model, precision, link, .. } = chunk.first()?;
        let first = [model.clone(), (*precision).to_owned(), (*link).to_owned()];
        let shares = chunk.iter().map(|one| format!("{:.1} %", 100.0 * one.model_efficiency));
        Some(first.into_iter().chain(shares).collect::<Vec<_>>())
    });
    markdown(&header.collect::<Vec<_>>().join("|"), 3..9, cells).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORK: Work =
        Work { data: 0.01, compute: 0.09, backward: 0.06, bytes: 4e6, buckets: 4.0, small_sums: 1.0 };

    fn near(got: f64, want: f64) {
        assert!((got - want).abs() < 1e-12, "{got} {want}");
    }

    #[test]
    fn a_step_is_its_work_and_the_sums_that_nothing_hides() {
        // Two processes: 2 messages of half the bytes. 4 MB at 1 GB/s are 4 ms, and 4 × 2 messages of 1 ms are 8; a quarter of
        // the 12 is the last bucket's, and 45 ms hide the rest. A small sum takes 2 ms.
        let link = Link { latency: 1e-3, bandwidth: 1e9 };
        near(step_seconds(&WORK, &link, 2, 1.0), 0.1 + 0.003 + 0.002);
        // Four: 6 messages of a quarter: 6 ms and 24; 7.5 ms are the last bucket's.
        near(step_seconds(&WORK, &link, 4, 1.0), 0.1 + 0.0075 + 0.006);
        // On two cores everything but the sums takes twice as long.
        near(step_seconds(&WORK, &link, 4, 2.0), 0.2 + 0.0075 + 0.006);
        // At 40 MB/s they take 100 ms and 8, of which 45 are hidden.
        let slow = Link { latency: 1e-3, bandwidth: 4e7 };
        near(step_seconds(&WORK, &slow, 2, 1.0), 0.1 + (0.108 - 0.045) + 0.002);
        // Of one bucket nothing is hidden.
        near(step_seconds(&Work { buckets: 1.0, ..WORK }, &slow, 2, 1.0), 0.1 + 0.102 + 0.002);
        // Nothing is summed alone.
        near(step_seconds(&WORK, &link, 1, 1.0), 0.1);
    }

    #[test]
    fn a_link_is_found_again_in_the_times_of_its_sums() {
        let link = Link { latency: 2e-4, bandwidth: 5e8 };
        for processes in [2, 4] {
            let messages = 2.0 * (processes as f64 - 1.0);
            let small = messages * link.latency;
            let alone = messages / processes as f64 * 4e6 / link.bandwidth + 4.0 * small;
            let found = Link::of(processes, 4e6, 4.0, alone, small);
            near(found.latency, link.latency);
            assert!((found.bandwidth / link.bandwidth - 1.0).abs() < 1e-9, "{found:?}");
        }
    }

    fn printed(step: f64, reduction: Option<Reduction>) -> Printed {
        Printed { step_ms: [step; 5], data_share: 0.1, threads: 1, reduction }
    }

    #[test]
    fn rows_have_the_medians_and_the_model_beside_them() {
        let sums = |processes: f64| {
            let messages = 2.0 * (processes - 1.0);
            Some(Reduction {
                bytes: 4e6,
                buckets: 4.0,
                small_sums: 1.0,
                backward_ms: 60.0,
                waited_ms: 3.0,
                alone_ms: messages / processes * 4.0 + 4.0 * messages,
                small_ms: messages,
            })
        };
        let all = [
            vec![printed(90.0, None), printed(100.0, None), printed(300.0, None)],
            vec![printed(105.0, sums(2.0)); 3],
            vec![printed(227.0, sums(4.0)); 3],
        ];
        let (rows, further) = judge("a", Precision::F32, 64, 2, &all).unwrap();
        assert_eq!(rows.iter().map(|row| row.processes).collect::<Vec<_>>(), MEASURED);
        assert_eq!((rows[0].step_ms, rows[0].step_ms_most, rows[0].model_error), (100.0, 300.0, 0.0));
        near(rows[1].model_ms, 105.0);
        near(rows[1].efficiency, 100.0 / 105.0);
        // Four processes on two cores.
        near(rows[2].model_ms, 213.5);
        assert!((rows[2].bandwidth_mb_per_second.unwrap() - 1000.0).abs() < 1e-6);
        assert!((rows[2].latency_us.unwrap() - 1000.0).abs() < 1e-6);
        assert_eq!(further.len(), LINKS.len() * EXTRAPOLATED.len());
        // More processes and slower links are never better.
        assert!(further.chunks(6).all(|link| link.is_sorted_by(|a, b| a.model_ms <= b.model_ms)));
        assert!(further[0].model_efficiency < further[6].model_efficiency);
        let text = table(&rows) + &further_table(&further);
        assert!(text.contains("4 × 1") && text.contains("64 machines"), "{text}");
        assert!(judge("a", Precision::F32, 64, 2, &all[..1]).is_err());
    }
}
