use super::*;
use crate::report::tests::record;
use run_record::{STATUS_COMPLETE, STATUS_RUNNING};

/// What the trainer that [`plays_the_trainer`] is does wrong.
const FAULT: &str = "SOAK_FAULT";
const ARGUMENTS: &str = "SOAK_ARGUMENTS";

/// This program in the trainer's place. One process, as the trainer is: nothing it started outlives a kill.
fn trainer(fault: &str) -> impl Fn() -> Command {
    let fault = fault.to_owned();
    move || {
        let mut command = shell("exec \"$0\" --ignored --exact sweeps::soak::tests::plays_the_trainer");
        command.arg(std::env::current_exe().unwrap()).env(FAULT, &fault);
        command
    }
}

/// A shell that leaves its arguments in the environment and then runs `script`.
fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{ARGUMENTS}=\"$*\"; export {ARGUMENTS}; {script}")]);
    command
}

/// Three epochs of two steps, with a checkpoint after each epoch and, if asked for, each first step.
#[test]
#[ignore = "no test, but the program that the tests start"]
fn plays_the_trainer() {
    let Ok(arguments) = std::env::var(ARGUMENTS) else { return };
    let fault = std::env::var(FAULT).unwrap();
    let words: Vec<&str> = arguments.split(' ').collect();
    let after = |flag| words.iter().position(|word| *word == flag).map(|at| words[at + 1]);
    let (run, stepwise) = (PathBuf::from(after("--out").unwrap()), after("--checkpoint-steps").is_some());
    let checkpoints = run.join("checkpoints");
    fs::create_dir_all(&checkpoints).unwrap();
    let mut found = Between::look(&run).unwrap();
    if found.is_complete() {
        return;
    }
    if fault == "forgets" {
        found = Between::look(Path::new("/nowhere")).unwrap();
    }
    let write = |status| {
        let mut record = record("a", "quick", 0, status);
        record.resumed_from = found.newest_name().into_iter().map(str::to_owned).collect();
        fs::write(run.join(".record"), serde_json::to_vec(&record).unwrap()).unwrap();
        fs::rename(run.join(".record"), run.join("record.json")).unwrap();
    };
    write(STATUS_RUNNING);
    let names: Vec<String> = (1..=3)
        .flat_map(|epoch| [format!("epoch-000{epoch}-step-000001"), format!("epoch-000{epoch}")])
        .collect();
    let done = names.iter().position(|name| Some(&name[..]) == found.newest_name()).map_or(0, |at| at + 1);
    for name in &names[done..] {
        std::thread::sleep(Duration::from_millis(15));
        if stepwise || !name.contains("step") {
            fs::create_dir_all(checkpoints.join(name)).unwrap();
        }
    }
    let drawn = if fault == "draws" { std::process::id() } else { 0 };
    let time = std::process::id();
    let rows: String = (1..=3).map(|epoch| format!("{epoch},0.{epoch},{time},{time},{time}\n")).collect();
    let header = "epoch,val_loss,images_per_second,train_seconds,val_seconds";
    fs::write(run.join("history.csv"), format!("{header}\n{rows}")).unwrap();
    fs::write(run.join("last.safetensors"), format!("weights {drawn}")).unwrap();
    write(STATUS_COMPLETE);
}

fn arguments(kills: u32) -> Soak {
    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        soak: Soak,
    }
    let kills = kills.to_string();
    <Cli as clap::Parser>::parse_from(["soak", "--kills", &kills, "--seed", "3"]).soak
}

fn bench<'a>(
    trainers: &'a Trainers,
    trainer: &'a dyn Fn() -> Command,
    args: &'a Soak,
    dir: &'a Path,
) -> Bench<'a> {
    Bench { trainers, trainer, args, dir, draw: Draw(args.seed), tally: Tally::default() }
}

/// A bench with this trainer, and what a run that is left alone comes to with one that has no fault.
fn rounds(trainer_here: &dyn Fn() -> Command, test: impl FnOnce(&mut Bench<'_>, &mut Subject<'_>)) {
    let (dir, args, trainers, honest) =
        (tempfile::tempdir().unwrap(), arguments(4), Trainers::default(), trainer(""));
    let mut bench = bench(&trainers, &honest, &args, dir.path());
    let Ok(mut subject) = bench.alone("a").unwrap() else { panic!("the run left alone failed") };
    bench.trainer = trainer_here;
    test(&mut bench, &mut subject);
}

#[test]
fn moments_are_those_of_the_published_generator() {
    // The first outputs for seed 1234567, as in Vigna's splitmix64.c.
    let mut draw = Draw(1_234_567);
    let drawn = [draw.bits(), draw.bits(), draw.bits()];
    assert_eq!(drawn, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    let mut draw = Draw(0);
    let shares: Vec<f64> = (0..1000).map(|_| draw.share()).collect();
    assert!(shares.iter().all(|share| (0.0..1.0).contains(share)));
    let mean = shares.iter().sum::<f64>() / 1000.0;
    assert!((mean - 0.5).abs() < 0.03, "{mean}");
}

#[test]
fn a_trainer_that_loses_nothing_passes() {
    rounds(&trainer(""), |bench, subject| {
        while bench.tally.kills < 4 {
            assert_eq!(bench.one_round(subject).unwrap(), None);
        }
        let tally = &bench.tally;
        assert_eq!((tally.bad, tally.kills), (0, subject.kills));
        // Every round has one start more than kills.
        assert_eq!(tally.began.len() as u32, tally.kills + tally.rounds);
        let said = summary(tally, 1, 3);
        assert!(said.starts_with(&format!("{} kills in {} rounds", tally.kills, tally.rounds)), "{said}");
        assert!(
            said.ends_with("all equal: weights and histories are those of the runs that were left alone")
        );
        // Nothing of an equal round is left, and the run that was left alone is.
        let mut left: Vec<_> =
            fs::read_dir(bench.dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["a--alone", "a--alone.stderr"]);
    });
}

#[test]
fn starts_go_on_from_both_kinds_of_checkpoints() {
    rounds(&trainer(""), |bench, subject| {
        for (name, began) in [
            ("epoch-0002-step-000001", Began::Inside("epoch-0002-step-000001".into())),
            ("epoch-0002", Began::AtAnEnd("epoch-0002".into())),
        ] {
            let run = bench.dir.join(name);
            fs::create_dir_all(run.join("checkpoints").join(name)).unwrap();
            subject.time = Duration::from_secs(3600);
            let mut round = Round::default();
            assert!(bench.start_until_finished(subject, &run, &mut round).unwrap().is_none());
            assert_eq!((round.began, round.kills, round.problems), (vec![began], vec![], vec![]));
        }
    });
}

#[test]
fn a_trainer_that_is_not_deterministic_is_found_out() {
    rounds(&trainer("draws"), |bench, subject| {
        let run = bench.dir.join("a--round-9");
        let mut round = Round::default();
        assert!(bench.start_until_finished(subject, &run, &mut round).unwrap().is_none());
        let found = differences(&subject.alone, &left(&run).unwrap());
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("last.safetensors: SHA-256 "), "{found:?}");
        bench.one_round(subject).unwrap();
        assert_eq!(bench.tally.bad, 1);
        assert!(bench.dir.join("a--round-1").is_dir(), "what differs is kept");
    });
}

#[test]
fn a_trainer_that_forgets_its_checkpoints_is_found_out() {
    rounds(&trainer("forgets"), |bench, subject| {
        fs::create_dir_all(bench.dir.join("a--round-1/checkpoints/epoch-0002")).unwrap();
        subject.time = Duration::from_secs(3600);
        bench.one_round(subject).unwrap();
        assert_eq!((bench.tally.bad, bench.tally.kills), (1, 0));
    });
}

/// Why a round came to no end, and the round.
fn failure(bench: &mut Bench<'_>, subject: &mut Subject<'_>) -> (String, Round) {
    let mut round = Round::default();
    let run = bench.dir.join("run");
    match bench.start_until_finished(subject, &run, &mut round).unwrap() {
        Some(Cut::Failed(problem)) => (problem, round),
        _ => panic!("it cannot have finished"),
    }
}

#[test]
fn a_trainer_that_cannot_start_ends_its_model() {
    rounds(&|| shell("echo 'error: no room' >&2; exit 3"), |bench, subject| {
        subject.time = Duration::from_secs(3600);
        let (problem, _) = failure(bench, subject);
        assert_eq!(problem, "the trainer ended with exit code 3: error: no room");
        bench.one_round(subject).unwrap();
        assert_eq!((bench.tally.bad, subject.kills), (1, u32::MAX));
    });
}

#[test]
fn a_trainer_that_gets_nowhere_is_given_up() {
    rounds(&|| shell("exec sleep 60"), |bench, subject| {
        subject.time = Duration::from_micros(10);
        let (problem, round) = failure(bench, subject);
        assert_eq!(problem, "30 starts in a row left no newer checkpoint");
        assert_eq!(round.kills.len(), 30);
    });
}

#[test]
fn kills_are_shared_among_the_models() {
    let (dir, args, trainers, honest) =
        (tempfile::tempdir().unwrap(), arguments(3), Trainers::default(), trainer(""));
    // Two of three for each.
    assert_eq!(bench(&trainers, &honest, &args, dir.path()).run(&["a", "b"]).unwrap(), 0);
}

#[test]
fn rounds_are_told_in_a_line_and_differences_in_lines_of_their_own() {
    let mut round = Round { kills: vec![1.234, 0.5], ..Round::default() };
    round.began = vec![Began::AtTheStart, Began::NotYet, Began::Inside("epoch-0002-step-000040".into())];
    assert_eq!(
        line(&round, 7, "vit"),
        "[round 7, vit] 2 kills, at 1.23, 0.50 s; went on from epoch-0002-step-000040; equal"
    );
    round = Round { problems: vec!["one".into(), "two".into()], ..Round::default() };
    assert_eq!(line(&round, 8, "vit"), "[round 8, vit] no kill\n  DIFFERENT: one\n  DIFFERENT: two");
}

#[test]
fn epochs_are_cut_to_three_unless_set() {
    let (dir, trainers) = (tempfile::tempdir().unwrap(), Trainers::default());
    let mut args = arguments(1);
    let told = |args: &Soak| {
        let trainer = || Command::new("trainer");
        let bench = bench(&trainers, &trainer, args, dir.path());
        let command = bench.command("a", Path::new("/nowhere/run"));
        assert!(command.is_err(), "errors have nowhere to go");
        let command = bench.command("a", &dir.path().join("run")).unwrap();
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        words.join(" ")
    };
    let plain = told(&args);
    assert!(
        plain.contains(
            "train --model a --preset quick --seed 3 --device cpu --set train.epochs=3 --quiet --out"
        ),
        "{plain}"
    );
    args.sets = vec!["train.epochs=2".into(), "optimizer.lr=0.1".into()];
    let set = told(&args);
    assert!(set.contains("--device cpu --set train.epochs=2 --set optimizer.lr=0.1 --quiet"), "{set}");
}
