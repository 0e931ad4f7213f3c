//! Checkpoints that are cut, flipped, replaced, interrupted and out of space.

use super::manifest::ending;
use super::*;
use proptest::prelude::*;
use proptest::sample::Index;
use std::fs::File;
use std::io::{BufRead, Write};
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

const FILES: [&str; 4] = [MANIFEST, "ema.safetensors", "model.safetensors", "state.json"];

fn epoch(epoch: u32) -> Position {
    Position { epoch, step: None }
}

fn inside(epoch: u32, step: u64) -> Position {
    Position { epoch, step: Some(step) }
}

fn checkpoint(position: Position, word: &str) -> Checkpoint {
    let files = [
        ("ema.safetensors", Vec::new()),
        ("model.safetensors", format!("weights of {position}, {word}").into_bytes()),
        ("state.json", format!("{{\"word\":\"{word}\"}}").into_bytes()),
    ];
    Checkpoint { position, files: files.map(|(name, bytes)| (name.to_owned(), bytes)).into() }
}

fn save(directory: &Path, checkpoint: &Checkpoint) -> Result<PathBuf, CheckpointError> {
    let mut draft = Draft::begin(directory, checkpoint.position)?;
    for (name, bytes) in &checkpoint.files {
        draft.file(name, |out| Ok(out.write_all(bytes)?))?;
    }
    draft.finish()
}

/// Without the moment of length 0 that has file systems flush the file when it is closed.
fn overwrite(path: &Path, bytes: &[u8]) {
    let mut file = File::options().write(true).open(path).unwrap();
    file.write_all(bytes).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
}

/// A run with whole checkpoints at the ends of three epochs.
fn three() -> (TempDir, PathBuf) {
    let run = TempDir::new().unwrap();
    let directory = run.path().join("checkpoints");
    for number in 1..=3 {
        let path = save(&directory, &checkpoint(epoch(number), "first")).unwrap();
        assert_eq!(path, directory.join(format!("epoch-000{number}")));
    }
    (run, directory)
}

fn found(directory: &Path) -> (Option<Checkpoint>, Vec<String>) {
    let Newest { checkpoint, passed_over } = find(directory, &[]).unwrap();
    (checkpoint, passed_over.iter().map(ToString::to_string).collect())
}

/// The last of the three is not loaded but named, and the one before is used.
fn assert_last_is_passed_over(directory: &Path, damage: &str) {
    let (checkpoint, passed_over) = found(directory);
    assert_eq!(checkpoint, Some(super::tests::checkpoint(epoch(2), "first")), "{damage}");
    assert_eq!(passed_over.len(), 1, "{damage}: {passed_over:?}");
    assert!(passed_over[0].contains("epoch-0003: "), "{damage}: {passed_over:?}");
}

#[test]
fn positions_are_ordered_as_training_goes_and_have_one_name_each() {
    let order = [epoch(0), inside(1, 0), inside(1, 120), epoch(1), inside(2, 1), inside(10_000, u64::MAX)];
    assert!(order.is_sorted());
    assert!(order[5] < epoch(10_000));
    let names = order.map(|position| position.to_string());
    assert_eq!(names[1..4], ["epoch-0001-step-000000", "epoch-0001-step-000120", "epoch-0001"]);
    assert_eq!(names.map(|name| parse_name(&name)), order.map(Some));
    for name in ["epoch-1", "epoch-00001", "epoch-+001", "epoch-0001-step-1", "epoch-", "epoch-4294967296"] {
        assert_eq!(parse_name(name), None, "{name}");
    }
    assert_eq!(parse_unfinished(".epoch-0001-step-000120.77.partial"), Some((order[2], PARTIAL)));
    for name in ["epoch-0001.77.partial", ".epoch-0001.partial", ".epoch-0001.x.partial", ".epoch-0001.7.swp"]
    {
        assert_eq!(parse_unfinished(name), None, "{name}");
    }
}

#[test]
fn what_was_saved_is_found() {
    let (run, directory) = three();
    assert_eq!(found(&directory), (Some(checkpoint(epoch(3), "first")), vec![]));
    save(&directory, &checkpoint(inside(3, 7), "first")).unwrap();
    assert_eq!(found(&directory).0, Some(checkpoint(epoch(3), "first")));
    save(&directory, &checkpoint(inside(4, 7), "first")).unwrap();
    assert_eq!(found(&directory).0, Some(checkpoint(inside(4, 7), "first")));
    assert_eq!(load(&directory, epoch(1), &[]).unwrap(), checkpoint(epoch(1), "first"));
    // Saved again, as after a resume, over one that is whole and over one that is not.
    save(&directory, &checkpoint(inside(4, 7), "second")).unwrap();
    fs::remove_file(directory.join("epoch-0004-step-000007/state.json")).unwrap();
    save(&directory, &checkpoint(inside(4, 7), "third")).unwrap();
    assert_eq!(found(&directory), (Some(checkpoint(inside(4, 7), "third")), vec![]));
    fs::write(directory.join("epoch-0005"), "a file").unwrap();
    save(&directory, &checkpoint(epoch(5), "first")).unwrap();
    let names = ["epoch-0001", "epoch-0002", "epoch-0003", "epoch-0003-step-000007"];
    assert_eq!(super::names(&directory).unwrap()[..4], names);
    assert_eq!(super::names(&directory).unwrap().len(), 6, "nothing is left behind");

    let nowhere = run.path().join("nowhere");
    assert_eq!(found(&nowhere), (None, vec![]));
    assert!(retain(&nowhere, epoch(1), 1, &[]).unwrap().is_empty());
    tidy(&nowhere).unwrap();
    let message = load(&directory, epoch(9), &[]).unwrap_err().to_string();
    assert!(message.contains("epoch-0009: not a whole checkpoint (there is no such directory)"), "{message}");
}

#[test]
fn a_manifest_reads_as_documented() {
    let (_run, directory) = three();
    let text = fs::read_to_string(directory.join("epoch-0002").join(MANIFEST)).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["format"], 1);
    assert_eq!(value["position"], serde_json::json!({"epoch": 2, "step": null}));
    // SHA-256 of nothing.
    let nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert_eq!(value["files"]["ema.safetensors"], serde_json::json!({"bytes": 0, "sha256": nothing}));
    assert!(text.ends_with("\"\n}\n") && value["sha256"].as_str().unwrap().len() == 64);
}

#[test]
fn any_bit_flipped_and_any_cut_is_seen() {
    let (_run, directory) = three();
    let last = directory.join("epoch-0003");
    for name in FILES {
        let path = last.join(name);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            overwrite(&path, &flipped);
            assert_last_is_passed_over(&directory, &format!("{name}, byte {at} flipped"));
            overwrite(&path, &whole[..at]);
            assert_last_is_passed_over(&directory, &format!("{name}, cut at {at}"));
        }
        overwrite(&path, &whole);
    }
    assert_eq!(found(&directory), (Some(checkpoint(epoch(3), "first")), vec![]));
}

#[derive(Debug, Clone)]
enum Damage {
    FlipBit(Index, Index, u32),
    Truncate(Index, Index),
    Extend(Index, Vec<u8>),
    SwapBytes(Index, Index, Index),
    Overwrite(Index, Vec<u8>),
    Remove(Index),
    SwapFiles(Index, Index),
    TakeFromBefore(Index),
    MakeDirectory(Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let index = any::<Index>;
    let bytes = || prop::collection::vec(any::<u8>(), 1..900);
    prop_oneof![
        (index(), index(), 0_u32..8).prop_map(|(file, at, bit)| Damage::FlipBit(file, at, bit)),
        (index(), index()).prop_map(|(file, at)| Damage::Truncate(file, at)),
        (index(), bytes()).prop_map(|(file, more)| Damage::Extend(file, more)),
        (index(), index(), index()).prop_map(|(file, a, b)| Damage::SwapBytes(file, a, b)),
        (index(), bytes()).prop_map(|(file, other)| Damage::Overwrite(file, other)),
        index().prop_map(Damage::Remove),
        (index(), index()).prop_map(|(a, b)| Damage::SwapFiles(a, b)),
        index().prop_map(Damage::TakeFromBefore),
        index().prop_map(Damage::MakeDirectory),
    ]
}

fn inflict(damage: &Damage, directory: &Path) {
    let path = |file: &Index| directory.join("epoch-0003").join(file.get(&FILES));
    let change = |file: &Index, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = fs::read(path(file)).unwrap();
        change(&mut bytes);
        overwrite(&path(file), &bytes);
    };
    match damage {
        Damage::FlipBit(file, at, bit) => change(file, &|bytes| {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
        }),
        Damage::Truncate(file, at) => change(file, &|bytes| bytes.truncate(at.index(bytes.len() + 1))),
        Damage::Extend(file, more) => change(file, &|bytes| bytes.extend(more)),
        Damage::SwapBytes(file, a, b) => change(file, &|bytes| {
            if !bytes.is_empty() {
                let length = bytes.len();
                bytes.swap(a.index(length), b.index(length));
            }
        }),
        Damage::Overwrite(file, other) => overwrite(&path(file), other),
        Damage::Remove(file) => fs::remove_file(path(file)).unwrap(),
        Damage::SwapFiles(a, b) => {
            let (first, second) = (fs::read(path(a)).unwrap(), fs::read(path(b)).unwrap());
            overwrite(&path(a), &second);
            overwrite(&path(b), &first);
        }
        Damage::TakeFromBefore(file) => {
            fs::copy(directory.join("epoch-0002").join(file.get(&FILES)), path(file)).unwrap();
        }
        Damage::MakeDirectory(file) => {
            fs::remove_file(path(file)).unwrap();
            fs::create_dir(path(file)).unwrap();
        }
    }
}

#[test]
fn a_damaged_checkpoint_is_never_loaded() {
    let (_run, directory) = three();
    let last = directory.join("epoch-0003");
    let contents = || FILES.map(|name| fs::read(last.join(name)).map_err(|error| error.kind().to_string()));
    let whole = contents();
    proptest!(ProptestConfig::with_cases(500), |(damages in prop::collection::vec(damage(), 1..3))| {
        fs::remove_dir_all(&last).unwrap();
        fs::create_dir(&last).unwrap();
        for (name, bytes) in FILES.iter().zip(&whole) {
            fs::write(last.join(name), bytes.as_ref().unwrap()).unwrap();
        }
        // A second damage may need what the first one took.
        inflict(&damages[0], &directory);
        if let [Damage::FlipBit(..) | Damage::Overwrite(..) | Damage::Extend(..), second] = &damages[..] {
            inflict(second, &directory);
        }
        if contents() == whole {
            prop_assert_eq!(found(&directory).0, Some(checkpoint(epoch(3), "first")));
        } else {
            assert_last_is_passed_over(&directory, &format!("{damages:?}"));
        }
    });
}

#[test]
fn arbitrary_manifests_are_refused() {
    let (_run, directory) = three();
    let manifest = directory.join("epoch-0003").join(MANIFEST);
    let digest = "0".repeat(64);
    let jsons = [
        "{}",
        "[]",
        "null",
        "\"\"",
        "{\"format\":1}",
        "{\"format\":0}",
        "{\"format\":-1}",
        "{\"format\":1e99}",
        "{\"format\":1,\"position\":{\"epoch\":3,\"step\":null},\"files\":{}}",
        "{\"format\":1,\"position\":{\"epoch\":3,\"step\":null},\"files\":{},\"sha256\":\"\"}",
    ];
    for text in jsons.map(str::to_owned).into_iter().chain(["[".repeat(100_000)]) {
        overwrite(&manifest, text.as_bytes());
        assert_last_is_passed_over(&directory, &text);
    }
    // Sealed rightly, wrong inside: none of these was written by a program like this.
    let file = format!("{{ \"bytes\": 0, \"sha256\": \"{digest}\" }}");
    let huge = file.replace(": 0,", ": 18446744073709551615,");
    for (format, position, files) in [
        (0, "\"epoch\": 3", String::new()),
        (1, "\"epoch\": 4294967296", String::new()),
        (1, "\"epoch\": 2", String::new()),
        (1, "\"epoch\": 3, \"step\": 1", String::new()),
        (1, "\"epoch\": 3, \"steps\": 1", String::new()),
        (1, "\"epoch\": 3", format!("\"../epoch-0002/state.json\": {file}")),
        (1, "\"epoch\": 3", format!("\"/etc/hostname\": {file}")),
        (1, "\"epoch\": 3", format!("\"\": {file}")),
        (1, "\"epoch\": 3", format!("\"..\": {file}")),
        (1, "\"epoch\": 3", format!("\"absent\": {file}")),
        (1, "\"epoch\": 3", format!("\"state.json\": {file}")),
        (1, "\"epoch\": 3", format!("\"state.json\": {huge}")),
        (1, "\"epoch\": 3", "\"state.json\": 7".to_owned()),
    ] {
        let body = format!(
            "{{\n  \"format\": {format},\n  \"position\": {{ {position} }},\n  \"files\": {{ {files} }}"
        );
        let text = format!("{body}{}", ending(body.as_bytes()));
        assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{text}");
        overwrite(&manifest, text.as_bytes());
        assert_last_is_passed_over(&directory, &text);
    }
    proptest!(ProptestConfig::with_cases(500), |(bytes in prop::collection::vec(any::<u8>(), 0..2_000))| {
        overwrite(&manifest, &bytes);
        assert_last_is_passed_over(&directory, "arbitrary bytes");
        let sealed = [&bytes[..], ending(&bytes).as_bytes()].concat();
        overwrite(&manifest, &sealed);
        assert_last_is_passed_over(&directory, "arbitrary bytes, sealed");
    });
}

#[test]
fn a_later_format_is_said_to_be_one() {
    let (_run, directory) = three();
    let manifest = directory.join("epoch-0003").join(MANIFEST);
    fs::write(&manifest, "{\"format\": 2, \"compression\": \"zstd\"}").unwrap();
    assert_last_is_passed_over(&directory, "format 2");
    let message = load(&directory, epoch(3), &[]).unwrap_err().to_string();
    assert!(message.contains("written in format 2, this program reads up to 1"), "{message}");
}

#[test]
fn every_message_names_the_place_and_the_trouble() {
    let (_run, directory) = three();
    let last = directory.join("epoch-0003");
    fs::write(last.join("state.json"), "").unwrap();
    fs::remove_file(directory.join("epoch-0002/model.safetensors")).unwrap();
    fs::rename(directory.join("epoch-0001"), directory.join("epoch-0004")).unwrap();
    fs::create_dir(directory.join("notes")).unwrap();
    fs::create_dir(directory.join(".epoch-0005.1.partial")).unwrap();
    fs::write(directory.join(".DS_Store"), "").unwrap();
    let (checkpoint, passed_over) = found(&directory);
    assert_eq!(checkpoint, None);
    for (message, (name, problem)) in passed_over.iter().zip([
        (".epoch-0005.1.partial", "whoever wrote, replaced or removed it was stopped"),
        ("notes", "no checkpoint has such a name"),
        ("epoch-0004", "its manifest.json is that of epoch-0001"),
        ("epoch-0003", "its state.json is 0 bytes long, not 16"),
        ("epoch-0002", "its model.safetensors is missing"),
    ]) {
        let path = directory.join(name);
        let want = format!(
            "{}: not a whole checkpoint ({problem}); use an older one, this can be deleted",
            path.display()
        );
        assert_eq!(message, &want);
    }
    assert_eq!(passed_over.len(), 5);
}

#[test]
fn names_that_leave_the_directory_are_refused() {
    let (_run, directory) = three();
    for name in ["", ".", "..", "../x", "a/b", "/x", ".hidden", "a b", "ä", "manifest.json", "x\0"] {
        let mut bad = checkpoint(epoch(4), "first");
        bad.files.insert(name.to_owned(), vec![1]);
        assert!(matches!(save(&directory, &bad), Err(CheckpointError::Name { .. })), "{name:?}");
    }
    assert_eq!(positions(&directory).unwrap(), [1, 2, 3].map(epoch));
}

#[test]
fn a_directory_that_cannot_be_is_named() {
    let run = TempDir::new().unwrap();
    let directory = run.path().join("checkpoints");
    fs::write(&directory, "a file").unwrap();
    for message in [
        save(&directory, &checkpoint(epoch(1), "first")).unwrap_err().to_string(),
        find(&directory, &[]).unwrap_err().to_string(),
        tidy(&directory).unwrap_err().to_string(),
    ] {
        assert!(message.starts_with(&format!("{}: ", directory.display())), "{message}");
    }
}

#[test]
fn the_last_and_the_best_are_kept() {
    let (_run, directory) = three();
    for position in [epoch(4), inside(5, 10), inside(5, 20), epoch(5)] {
        save(&directory, &checkpoint(position, "first")).unwrap();
    }
    let newest = epoch(5);
    assert_eq!(retain(&directory, newest, 7, &[]).unwrap(), []);
    let removed = retain(&directory, newest, 2, &[epoch(2), epoch(9)]).unwrap();
    assert_eq!(removed, [epoch(1), epoch(3), epoch(4), inside(5, 10)]);
    assert_eq!(names(&directory).unwrap(), ["epoch-0002", "epoch-0005", "epoch-0005-step-000020"]);
    // Even if none is asked for, the newest stays.
    assert_eq!(retain(&directory, newest, 0, &[]).unwrap(), [epoch(2), inside(5, 20)]);
    assert_eq!(found(&directory), (Some(checkpoint(epoch(5), "first")), vec![]));
}

#[test]
fn a_file_that_is_only_compared_is_not_kept_but_must_be_whole() {
    let (_run, directory) = three();
    let without = |mut checkpoint: Checkpoint| {
        checkpoint.files.remove("model.safetensors");
        checkpoint
    };
    let last = load(&directory, epoch(3), &["model.safetensors"]).unwrap();
    assert_eq!(last, without(checkpoint(epoch(3), "first")));
    let path = directory.join("epoch-0003/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    bytes[5] ^= 1;
    overwrite(&path, &bytes);
    let found = find(&directory, &["model.safetensors"]).unwrap();
    assert_eq!(found.checkpoint, Some(without(checkpoint(epoch(2), "first"))));
    let problem = "its model.safetensors is not the one that was written: the SHA-256 differs";
    assert!(found.passed_over[0].to_string().contains(problem), "{:?}", found.passed_over);
}

#[test]
fn a_file_is_copied_from_the_first_place_that_has_it() {
    let (run, directory) = three();
    let [damaged, whole] = ["damaged", "whole"].map(|name| run.path().join(name));
    fs::write(&damaged, "weights of another day").unwrap();
    fs::write(&whole, "weights").unwrap();
    let digest = run_record::sha256("weights");
    let mut draft = Draft::begin(&directory, epoch(4)).unwrap();
    let lost = draft.copy("kept", &[run.path().join("none"), damaged.clone()], &digest);
    assert!(matches!(lost, Err(CheckpointError::Lost { .. })), "{lost:?}");
    draft.copy("kept", &[damaged, whole], &digest).unwrap();
    draft.finish().unwrap();
    let files = load(&directory, epoch(4), &[]).unwrap().files;
    assert_eq!(files, [("kept".to_owned(), b"weights".to_vec())].into());
}

#[test]
fn of_a_draft_that_was_given_up_nothing_stays() {
    let (_run, directory) = three();
    let mut draft = Draft::begin(&directory, epoch(3)).unwrap();
    draft.file("model.safetensors", |out| Ok(out.write_all(b"half")?)).unwrap();
    let name = "wave";
    let tensors = [(name.to_owned(), tch::Tensor::zeros([2], (tch::Kind::ComplexDouble, tch::Device::Cpu)))];
    let refused = draft.file("ema.safetensors", |out| {
        core_layers::weights::write_safetensors(out, &tensors.into(), &BTreeMap::new())
    });
    let message = refused.unwrap_err().to_string();
    let path = directory.join("epoch-0003/ema.safetensors");
    assert!(message.starts_with(&format!("{}: wave holds ComplexDouble", path.display())), "{message}");
    assert_eq!(names(&directory).unwrap().len(), 4);
    drop(draft);
    assert_eq!(found(&directory), (Some(checkpoint(epoch(3), "first")), vec![]));
    assert_eq!(names(&directory).unwrap(), ["epoch-0001", "epoch-0002", "epoch-0003"]);
}

#[test]
fn what_comes_after_a_position_can_be_discarded() {
    let directory = tempfile::tempdir().unwrap();
    let at = |epoch, step| Position { epoch, step };
    let all = [at(1, None), at(2, Some(3)), at(2, Some(9)), at(2, None), at(3, Some(3))];
    for position in all {
        save(directory.path(), &Checkpoint { position, files: BTreeMap::new() }).unwrap();
    }
    fs::remove_file(directory.path().join("epoch-0002").join(MANIFEST)).unwrap();
    discard_after(directory.path(), at(2, Some(3))).unwrap();
    assert_eq!(positions(directory.path()).unwrap(), all[..2]);
    discard_after(directory.path(), at(7, None)).unwrap();
    assert_eq!(positions(directory.path()).unwrap(), all[..2]);
}

#[test]
fn clearing_takes_checkpoints_and_leaves_other_peoples_files() {
    let directory = tempfile::tempdir().unwrap();
    let checkpoints = directory.path().join("checkpoints");
    clear(&checkpoints).unwrap();
    for epoch in [1, 2] {
        let position = Position { epoch, step: None };
        save(&checkpoints, &Checkpoint { position, files: BTreeMap::new() }).unwrap();
    }
    fs::create_dir(checkpoints.join("somebodys")).unwrap();
    clear(&checkpoints).unwrap();
    assert_eq!(fs::read_dir(&checkpoints).unwrap().count(), 1);
    fs::remove_dir(checkpoints.join("somebodys")).unwrap();
    clear(&checkpoints).unwrap();
    assert!(!checkpoints.exists());
}

#[test]
fn the_newest_whole_one_is_never_removed() {
    let (_run, directory) = three();
    for number in 4..=5 {
        save(&directory, &checkpoint(epoch(number), "first")).unwrap();
    }
    for name in ["epoch-0004", "epoch-0005"] {
        fs::write(directory.join(name).join("state.json"), "damage").unwrap();
    }
    assert_eq!(retain(&directory, epoch(3), 1, &[]).unwrap(), [epoch(1), epoch(2)]);
    assert_eq!(found(&directory).0, Some(checkpoint(epoch(3), "first")));
    assert_eq!(positions(&directory).unwrap(), [3, 4, 5].map(epoch));
    // Where the one that was whole is gone, each may be worth a look.
    fs::remove_dir_all(directory.join("epoch-0003")).unwrap();
    assert_eq!(retain(&directory, epoch(3), 1, &[]).unwrap(), []);
    assert_eq!(positions(&directory).unwrap(), [4, 5].map(epoch));
}

#[test]
fn what_a_killed_process_left_is_settled() {
    let (_run, directory) = three();
    let at = |name: &str| directory.join(name);
    // Killed while writing, in whatever state; while removing; before and after replacing.
    fs::create_dir(at(".epoch-0004.1.partial")).unwrap();
    fs::write(at(".epoch-0004.1.partial/model.safetensors"), "half").unwrap();
    fs::rename(at("epoch-0001"), at(".epoch-0001.1.partial")).unwrap();
    fs::rename(at("epoch-0003"), at(".epoch-0003.1.replaced")).unwrap();
    fs::create_dir(at(".epoch-0003.1.partial")).unwrap();
    fs::create_dir(at(".epoch-0002.1.replaced")).unwrap();
    fs::write(at(".mine.partial"), "").unwrap();
    let (checkpoint, passed_over) = found(&directory);
    assert_eq!((checkpoint.unwrap().position, passed_over.len()), (epoch(2), 5));
    tidy(&directory).unwrap();
    assert_eq!(names(&directory).unwrap(), [".mine.partial", "epoch-0002", "epoch-0003"]);
    assert_eq!(found(&directory), (Some(super::tests::checkpoint(epoch(3), "first")), vec![]));
}

/// Where the process that is killed saves.
const KILLED: &str = "CHECKPOINT_TEST_DIRECTORY";

#[test]
#[ignore = "the process that the next test kills"]
fn saves_until_killed() {
    let Some(directory) = std::env::var_os(KILLED) else { return };
    for number in 1_u32.. {
        // Each position twice, so that half of the saves replace one.
        let mut checkpoint = checkpoint(epoch(number.div_ceil(2)), "first");
        checkpoint.files.insert("number".to_owned(), number.to_string().into_bytes());
        checkpoint.files.insert("large".to_owned(), vec![number as u8; 200_000]);
        save(Path::new(&directory), &checkpoint).unwrap();
        println!("saved {number}.");
        if number.is_multiple_of(4) {
            retain(Path::new(&directory), checkpoint.position, 1, &[]).unwrap();
        }
    }
}

#[test]
fn a_killed_process_costs_no_checkpoint_that_was_saved() {
    let this = module_path!().split_once("::").unwrap().1;
    for milliseconds in (0..8).map(|number| 7 * number) {
        let run = TempDir::new().unwrap();
        let directory = run.path().join("checkpoints");
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([&format!("{this}::saves_until_killed"), "--exact", "--ignored", "--nocapture"])
            .env(KILLED, &directory)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = io::BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let number = |line: String| line.strip_suffix('.')?.rsplit_once("saved ")?.1.parse::<u32>().ok();
        let mut told = lines.filter_map(number);
        // Programs start in their own time; what matters is what happens after the first save.
        let first = told.next().unwrap();
        std::thread::sleep(Duration::from_millis(milliseconds));
        child.kill().unwrap();
        child.wait().unwrap();
        let told = told.last().unwrap_or(first);
        tidy(&directory).unwrap();
        let (checkpoint, passed_over) = found(&directory);
        assert_eq!(passed_over, Vec::<String>::new());
        let newest = checkpoint.map_or(0, |checkpoint| {
            String::from_utf8_lossy(&checkpoint.files["number"]).parse::<u32>().unwrap()
        });
        assert!(newest >= told && newest <= told + 1, "told of {told}, found {newest}");
    }
}

/// A mounted file system of one megabyte, gone with this value.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount() -> Self {
        let directory = TempDir::new().unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(directory.path())
            .status();
        assert!(mount.unwrap().success(), "a small file system can be mounted as root on Linux only");
        Self(directory)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
#[ignore = "mounts a small file system, which takes root on Linux"]
fn a_full_disk_costs_no_older_checkpoint() {
    let disk = SmallDisk::mount();
    let directory = disk.0.path().join("checkpoints");
    let first = checkpoint(epoch(1), "first");
    save(&directory, &first).unwrap();
    let mut failures = Vec::new();
    // The disk is full at a large file, at a small one, at the manifest, and not at all.
    for pages in (200..260).rev() {
        let mut second = checkpoint(epoch(2), "first");
        second.files.insert("large".to_owned(), vec![7; pages * 4096]);
        match save(&directory, &second) {
            Ok(_) => {
                assert_eq!(found(&directory), (Some(second.clone()), vec![]));
                // There is no room for a second one, not even in place of the first.
                save(&directory, &second).unwrap_err();
                assert_eq!(found(&directory), (Some(second), vec![]));
                fs::remove_dir_all(directory.join("epoch-0002")).unwrap();
                break;
            }
            Err(error) => failures.push(error.to_string()),
        }
        assert_eq!(found(&directory), (Some(first.clone()), vec![]));
        assert_eq!(names(&directory).unwrap(), ["epoch-0001"]);
    }
    for name in ["large", "model.safetensors", "state.json", MANIFEST] {
        let path = directory.join("epoch-0002").join(name);
        let start = format!("{}: No space left on device", path.display());
        assert!(failures.iter().any(|failure| failure.starts_with(&start)), "{name}: {failures:#?}");
    }
    assert!(failures[0].ends_with(
        "; make room on that disk or keep fewer checkpoints, the older checkpoints are as they were"
    ));

    let read_only = Command::new("mount").args(["-o", "remount,ro"]).arg(disk.0.path()).status();
    assert!(read_only.unwrap().success());
    let message = save(&directory, &checkpoint(epoch(2), "first")).unwrap_err().to_string();
    assert!(message.contains("epoch-0002: Read-only file system"), "{message}");
    assert_eq!(found(&directory), (Some(first), vec![]));
}
