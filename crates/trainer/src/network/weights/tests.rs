//! Weights files written and read: what fits, what does not, and what is said about it.

use std::collections::BTreeMap;
use std::fs;

use run_record::FieldValue;
use tch::{Device, Tensor, nn};

use super::*;
use crate::network::registry;

fn network(classes: i64) -> (VarStore, Architecture) {
    let fields = [("embed_dim", 8), ("depth", 1), ("num_classes", classes)];
    let fields = fields.map(|(name, value)| (name.to_owned(), FieldValue::Integer(value)));
    let architecture = registry::find("convmixer_reference").unwrap().with_fields(&fields.into()).unwrap();
    let vs = nn::VarStore::new(Device::Cpu);
    architecture.init(&vs.root()).unwrap();
    (vs, architecture)
}

fn card(architecture: &Architecture) -> Card {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let recipe = crate::run::recipes::from_preset(&root, "quick", "convmixer_reference", &[]).unwrap().recipe;
    Card {
        model: architecture.model.clone(),
        family: architecture.facts.family.to_owned(),
        config: architecture.config.to_json(),
        recipe,
        data_sha256: "ab".into(),
        channel_mean: [0.0; 3],
        channel_std: [255.0; 3],
        class_names: vec!["0".into(), "1".into()],
        epoch: 3,
        val_top1: Some(0.5),
    }
}

fn bytes(vs: &VarStore, metadata: BTreeMap<String, String>) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_safetensors(&mut bytes, &vs.variables().into_iter().collect(), &metadata).unwrap();
    bytes
}

fn described(vs: &VarStore, card: &Card) -> Vec<u8> {
    bytes(vs, card.metadata().unwrap())
}

#[test]
fn a_round_trip_keeps_every_value_and_the_card() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("best.safetensors");
    let (vs, architecture) = network(10);
    fs::write(&path, described(&vs, &card(&architecture))).unwrap();
    let file = WeightsFile::open(&path).unwrap();
    assert_eq!(Card::of(&file).unwrap(), card(&architecture));

    let again = Card::of(&file).unwrap().architecture(&path).unwrap();
    let other = nn::VarStore::new(Device::Cpu);
    again.init(&other.root()).unwrap();
    assert_eq!(load(&other, &again, &path, Head::Same).unwrap(), [""; 0]);
    let other = other.variables();
    for (name, tensor) in vs.variables() {
        assert_eq!(tensor, other[&name], "{name}");
    }
}

#[test]
fn every_mismatch_is_reported_and_nothing_is_changed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("best.safetensors");
    let (vs, architecture) = network(10);
    fs::write(&path, described(&vs, &card(&architecture))).unwrap();

    let (target, seven) = network(7);
    let _ = target.root().var("extra", &[1], nn::Init::Const(0.0));
    let before = target.variables()["stem.0.weight"].copy();
    let message = load(&target, &seven, &path, Head::Same).unwrap_err().to_string();
    assert!(message.contains("missing: extra;"), "{message}");
    assert!(message.contains("head.bias is [10], the network has [7]"), "{message}");
    assert_eq!(before, target.variables()["stem.0.weight"]);
}

#[test]
fn damaged_files_are_errors_before_their_tensors_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("best.safetensors");
    let (vs, architecture) = network(10);
    let bytes = described(&vs, &card(&architecture));
    let opened = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        WeightsFile::open(&path).map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(opened(&bytes), Ok(()));
    let (length, whole) = (bytes[..8].to_vec(), bytes.len());
    let header = 8 + u64::from_le_bytes(length.try_into().unwrap()) as usize;
    for (cut, words) in [
        (0, "an empty file; copy or download it again".to_owned()),
        (7, "neither a safetensors file nor a PyTorch checkpoint; expected one, as safetensors.torch.save_file".to_owned()),
        (9, format!("cut short: 9 bytes, and its header alone takes {header};")),
        (header - 1, format!("cut short: {} bytes, and its header alone takes {header};", header - 1)),
        (header, format!("cut short: {header} of {whole} bytes; copy or download it again")),
        (whole - 1, format!("cut short: {} of {whole} bytes;", whole - 1)),
    ] {
        let message = opened(&bytes[..cut]).unwrap_err();
        assert!(message.contains(&words), "{cut}: {message}");
    }
    let message = opened(&[&bytes[..], b"xx"].concat()).unwrap_err();
    assert!(message.contains("2 bytes too many: by its header"), "{message}");
    let mut broken = bytes.clone();
    broken[10] = b'!';
    let message = opened(&broken).unwrap_err();
    assert!(message.contains("the header of this safetensors file is damaged ("), "{message}");
    // Nothing is reserved for what a header only claims to be there.
    let huge = br#"{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}"#;
    let message = opened(&[&(huge.len() as u64).to_le_bytes()[..], huge].concat()).unwrap_err();
    assert!(message.contains(" of 4000000000086 bytes"), "{message}");

    let none = directory.path().join("none");
    assert!(WeightsFile::open(&none).unwrap_err().to_string().contains("none: "));
    let message = WeightsFile::open(directory.path()).unwrap_err().to_string();
    assert!(
        message.ends_with("a directory; give a safetensors file in it, such as best.safetensors"),
        "{message}"
    );
}

/// A file of a terabyte, all of it a hole, is refused for what its header says.
#[test]
fn a_file_larger_than_memory_is_compared_without_reading_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("large.safetensors");
    let header = br#"{"a":{"dtype":"F32","shape":[250000000000],"data_offsets":[0,1000000000000]}}"#;
    fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header].concat()).unwrap();
    let whole = 8 + header.len() as u64 + 1_000_000_000_000;
    fs::File::options().write(true).open(&path).unwrap().set_len(whole).unwrap();
    let (vs, architecture) = network(10);
    let message = load(&vs, &architecture, &path, Head::Same).unwrap_err().to_string();
    assert!(message.contains("unexpected: a") && message.contains("missing: "), "{message}");
}

#[test]
fn what_is_hashed_is_what_is_loaded() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("best.safetensors");
    let (vs, architecture) = network(10);
    let bytes = described(&vs, &card(&architecture));
    fs::write(&path, &bytes).unwrap();
    let (target, _) = network(10);
    let file = WeightsFile::open(&path).unwrap();
    let config = architecture.config.as_ref();
    let fit = file.fit(config, &shapes(&target), Head::Same).unwrap();
    let digest = file.sha256().unwrap();
    assert_eq!(digest, run_record::sha256(&bytes));
    // Whatever becomes of the file.
    fs::write(&path, "something else").unwrap();
    file.load(&fit, config, &target).unwrap();
    assert_eq!(target.variables()["head.weight"], vs.variables()["head.weight"]);
    assert_eq!(file.sha256().unwrap(), digest);

    // One that is cut between its header and its tensors is an error.
    fs::write(&path, &bytes).unwrap();
    let file = WeightsFile::open(&path).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(bytes.len() as u64 - 1).unwrap();
    assert!(
        file.load(&fit, config, &target)
            .unwrap_err()
            .to_string()
            .contains("became shorter while it was read")
    );
}

#[test]
fn values_that_are_not_finite_are_found_by_tensor() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("broken.safetensors");
    let (vs, architecture) = network(10);
    let before = vs.variables()["stem.0.weight"].copy();
    for (value, kind) in [(f64::NAN, "NaN"), (f64::NEG_INFINITY, "infinity")] {
        let mut tensors: BTreeMap<String, Tensor> = vs
            .variables()
            .into_iter()
            .map(|(name, tensor)| (format!("module.{name}"), tensor.copy()))
            .collect();
        let _ = tensors["module.head.bias"].get(3).fill_(value);
        let _ = tensors["module.stem.2.running_var"].get(0).fill_(value);
        // A tensor that is not loaded may be anything.
        tensors.insert("module.stem.2.num_batches_tracked".into(), Tensor::from(f32::NAN));
        save(&path, &tensors).unwrap();
        let message = load(&vs, &architecture, &path, Head::Same).unwrap_err().to_string();
        let names = "NaN or infinity in 2 of 20 tensors: module.head.bias, module.stem.2.running_var;";
        assert!(message.contains(names), "{kind}: {message}");
        assert_eq!(vs.variables()["stem.0.weight"], before);
    }
}

#[test]
fn many_names_are_shown_by_their_first_and_other_types_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("other.safetensors");
    let (vs, architecture) = network(10);
    let other = |name: &str| match name {
        "head.bias" => vec![name.to_owned()],
        _ => vec![format!("{name}_")],
    };
    let message = reload(other, Head::Same, 7).unwrap_err().to_string();
    let first = "missing: blocks.0.0.fn.0.bias, blocks.0.0.fn.0.weight, blocks.0.0.fn.2.bias, \
                 blocks.0.0.fn.2.running_mean, blocks.0.0.fn.2.running_var and 14 more; \
                 unexpected: blocks.0.0.fn.0.bias_, ";
    assert!(message.contains(first), "{message}");
    assert!(
        message.ends_with(" and 14 more; of another shape: head.bias is [10], the network has [7]"),
        "{message}"
    );

    // A tensor of integers is no weight, however it is named and shaped.
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in shapes(&vs) {
        let (start, dtype) = (end, if name == "head.bias" { "I32" } else { "F32" });
        end += 4 * shape.iter().product::<i64>();
        let entry = serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] });
        header.insert(name, entry);
    }
    let header = Value::from(header).to_string();
    let bytes =
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; end as usize]].concat();
    fs::write(&path, bytes).unwrap();
    let message = load(&vs, &architecture, &path, Head::Same).unwrap_err().to_string();
    assert!(
        message.ends_with("convmixer_reference; not of a floating type: head.bias holds I32"),
        "{message}"
    );
}

#[test]
fn a_file_that_says_what_it_is_of_is_believed_in_the_message() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("best.safetensors");
    let (vs, architecture) = network(10);
    fs::write(&path, described(&vs, &card(&architecture))).unwrap();
    let (deep, deep_architecture) = {
        let fields = BTreeMap::from([("depth".to_owned(), FieldValue::Integer(2))]);
        let architecture = architecture.with_fields(&fields).unwrap();
        let vs = nn::VarStore::new(Device::Cpu);
        architecture.init(&vs.root()).unwrap();
        (vs, architecture)
    };
    let message = load(&deep, &deep_architecture, &path, Head::Same).unwrap_err().to_string();
    assert!(message.ends_with("; the file is of convmixer_reference with model.depth = 1"), "{message}");
    let vit = registry::find("vit_reference").unwrap();
    let other = nn::VarStore::new(Device::Cpu);
    vit.init(&other.root()).unwrap();
    let message = load(&other, &vit, &path, Head::Same).unwrap_err().to_string();
    assert!(message.ends_with("; the file is of convmixer_reference"), "{message}");
}

/// Saves the network's tensors under other names and loads them into a new network.
fn reload(rename: impl Fn(&str) -> Vec<String>, head: Head<'_>, classes: i64) -> Result<Vec<String>, Error> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("theirs.safetensors");
    let (vs, _) = network(10);
    let mut tensors = BTreeMap::new();
    for (name, tensor) in vs.variables() {
        for (copies, new) in (0..).zip(rename(&name)) {
            tensors.insert(new, &tensor + f64::from(copies));
        }
    }
    save(&path, &tensors).unwrap();
    let (target, architecture) = network(classes);
    let before = target.variables()["head.weight"].copy();
    let notes = load(&target, &architecture, &path, head)?;
    let own = vs.variables();
    for (name, tensor) in target.variables() {
        if classes != 10 && name.starts_with("head.") {
            continue;
        }
        assert_eq!(tensor, own[&name], "{name}");
    }
    if classes != 10 {
        assert_eq!(before, target.variables()["head.weight"]);
    }
    Ok(notes)
}

#[test]
fn wrapped_weights_are_unwrapped_and_the_averaged_ones_preferred() {
    let taken = |wrapper: &str| format!("the wrapper {wrapper:?} of the names was taken off");
    let compiled = "\"_orig_mod.\", which torch.compile adds to names, was taken off".to_owned();
    for (prefix, notes) in [
        ("module.", vec![taken("module.")]),
        ("model.", vec![taken("model.")]),
        ("model_state_dict.", vec![taken("model_state_dict.")]),
        ("state_dict.module.", vec![taken("state_dict."), taken("module.")]),
        ("model_ema.module.", vec![taken("model_ema."), taken("module.")]),
        ("_orig_mod.", vec![compiled.clone()]),
        ("_orig_mod.module.", vec![compiled.clone(), taken("module.")]),
        ("state_dict._orig_mod.", vec![compiled.clone(), taken("state_dict.")]),
    ] {
        assert_eq!(
            reload(|name| vec![format!("{prefix}{name}")], Head::Same, 10).unwrap(),
            notes,
            "{prefix}"
        );
    }
    let both = |name: &str| vec![format!("state_dict_ema.{name}"), format!("state_dict.{name}")];
    let notes = reload(both, Head::Same, 10).unwrap();
    assert!(notes.len() == 1 && notes[0].contains("under \"state_dict_ema.\""), "{notes:?}");
    // Compiled may be a part of the network only.
    let inside = |name: &str| vec![name.replace("blocks.0.", "blocks.0._orig_mod.")];
    assert_eq!(reload(inside, Head::Same, 10).unwrap(), [compiled]);
    // A tensor outside the wrapper is still one too many.
    let stray =
        |name: &str| vec![if name == "head.bias" { "bias".to_owned() } else { format!("model.{name}") }];
    let message = reload(stray, Head::Same, 10).unwrap_err().to_string();
    assert!(message.contains("missing: head.bias; unexpected: bias"), "{message}");
    // So is one that is there with and without it.
    let twice = |name: &str| vec![format!("model.{name}"), name.to_owned()];
    let message = reload(twice, Head::Same, 10).unwrap_err().to_string();
    assert!(message.contains("both with and without \"model.\""), "{message}");
}

#[test]
fn a_prefix_of_all_names_is_taken_off_if_the_rest_fits() {
    for prefix in ["backbone.", "net.", "student.encoder.", "blocks.0.", "0."] {
        let mine =
            |name: &str| vec![format!("{prefix}{name}"), format!("{prefix}{name}.num_batches_tracked")];
        let notes = reload(mine, Head::Same, 10).unwrap();
        assert_eq!(notes, [format!("the prefix {prefix:?} of all names was taken off")]);
    }
    // Without a head as well, and around a wrapper.
    let headless = |name: &str| match name {
        "head.weight" | "head.bias" => vec![],
        _ => vec![format!("model.backbone.{name}")],
    };
    let notes = reload(headless, Head::OfSize, 7).unwrap();
    let expected = [
        "the wrapper \"model.\" of the names was taken off",
        "the prefix \"backbone.\" of all names was taken off",
        "the file has no head; drawn anew: head.bias, head.weight",
    ];
    assert_eq!(notes, expected);
    // Around another checkpoint's names.
    let authors = |name: &str| {
        let name = name.replace("stem.", "").replace("blocks.0.", "3.").replace("head.", "6.");
        vec![format!("net.{name}")]
    };
    assert_eq!(reload(authors, Head::Same, 10).unwrap(), ["the prefix \"net.\" of all names was taken off"]);
    // Where it does not help it is named, and where there is none nothing is.
    let longer = |name: &str| vec![format!("net.body.{name}_")];
    let message = reload(longer, Head::Same, 10).unwrap_err().to_string();
    assert!(message.ends_with("and 15 more; all names begin with \"net.body.\""), "{message}");
    let stray = |name: &str| match name {
        "head.bias" => vec!["bias".to_owned()],
        _ => vec![format!("net.{name}")],
    };
    let message = reload(stray, Head::Same, 10).unwrap_err().to_string();
    assert!(!message.contains("begin with"), "{message}");
}

#[test]
fn other_checkpoints_names_are_known_and_counters_left_out() {
    let authors = |name: &str| {
        let name = name.replace("stem.", "").replace("blocks.0.", "3.").replace("head.", "6.");
        vec![name.clone(), format!("{name}.num_batches_tracked")]
    };
    assert_eq!(reload(authors, Head::Same, 10).unwrap(), [""; 0]);
}

#[test]
fn a_head_for_other_classes_is_replaced_only_if_asked() {
    let same = |name: &str| vec![name.to_owned()];
    let message = reload(same, Head::Same, 7).unwrap_err().to_string();
    assert!(message.contains("head.weight is [10, 8], the network has [7, 8]"), "{message}");
    let notes = reload(same, Head::OfSize, 7).unwrap();
    assert_eq!(notes, ["the file's head is for other classes; drawn anew: head.bias, head.weight"]);
    // So is a head that is not there.
    let headless = |name: &str| if name.starts_with("head.") { vec![] } else { vec![name.to_owned()] };
    let notes = reload(headless, Head::OfSize, 7).unwrap();
    assert_eq!(notes, ["the file has no head; drawn anew: head.bias, head.weight"]);
    assert_eq!(reload(same, Head::OfSize, 10).unwrap(), [""; 0]);
    assert!(reload(headless, Head::Same, 10).is_err());
    // The body is still strict.
    let bodiless = |name: &str| if name.starts_with("stem.") { vec![] } else { vec![name.to_owned()] };
    assert!(reload(bodiless, Head::OfSize, 7).unwrap_err().to_string().contains("missing: stem.0.bias"));
}

/// A head with the right number of rows is not one for the right classes.
#[test]
fn a_head_is_kept_for_the_same_classes_in_the_same_order() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("best.safetensors");
    let names = |names: &str| names.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let (vs, architecture) = network(7);
    let write = |card: Option<&str>| {
        let metadata = card.map(|card| (CARD_KEY.to_owned(), card.to_owned()));
        fs::write(&path, bytes(&vs, metadata.into_iter().collect())).unwrap();
    };
    // The notes, and whether the head is the file's.
    let started = |classes: &[String]| {
        let (target, architecture) = network(classes.len() as i64);
        let drawn = target.variables()["head.weight"].copy();
        let notes = load(&target, &architecture, &path, Head::For(classes)).unwrap();
        let head = &target.variables()["head.weight"];
        assert_eq!(target.variables()["stem.0.weight"], vs.variables()["stem.0.weight"]);
        let (kept, anew) = (*head == vs.variables()["head.weight"], *head == drawn);
        assert_ne!(kept, anew);
        (notes.join(" | "), kept)
    };
    let own = Card { class_names: names("a b c d e f g"), ..card(&architecture) };
    write(Some(&serde_json::to_string(&own).unwrap()));
    let anew = "drawn anew: head.bias, head.weight";
    for (classes, note, kept) in [
        ("a b c d e f g", String::new(), true),
        (
            "b a c d e f g",
            format!("the file's head has the classes in another order (a, b, c, d, e and 2 more); {anew}"),
            false,
        ),
        (
            "a b c d e f h",
            format!("the file's head is for 7 other classes (a, b, c, d, e and 2 more); {anew}"),
            false,
        ),
        ("a b", format!("the file's head is for 7 other classes (a, b, c, d, e and 2 more); {anew}"), false),
    ] {
        assert_eq!(started(&names(classes)), (note, kept), "{classes}");
    }
    // A card of a later version still names its classes.
    write(Some(r#"{"class_names": ["a", "b", "c", "d", "e", "f", "g"], "later": 1}"#));
    assert_eq!(started(&own.class_names), (String::new(), true));
    assert!(!started(&names("1 2 3 4 5 6 7")).1);
    // Weights from elsewhere do not.
    for card in [None, Some("{}"), Some("no JSON")] {
        write(card);
        let note = "the file does not name its classes; its head is kept".to_owned();
        assert_eq!(started(&names("1 2 3 4 5 6 7")), (note, true));
        let note = format!("the file's head is for other classes; {anew}");
        assert_eq!(started(&names("1 2")), (note, false));
    }
}

/// Two thirds of a per-class head have the right shapes in a file for more classes, and none of them is
/// of the right class.
#[test]
fn a_head_of_many_tensors_is_replaced_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("seven.safetensors");
    let multi = |classes: i64| {
        let fields = [("depth", 1), ("image_size", 16), ("embed_dim", 8), ("num_classes", classes)];
        let fields = fields.map(|(name, value)| (name.to_owned(), FieldValue::Integer(value)));
        registry::find("patchconvnet_s60_multi").unwrap().with_fields(&fields.into()).unwrap()
    };
    let (seven, three) = (nn::VarStore::new(Device::Cpu), nn::VarStore::new(Device::Cpu));
    multi(7).init(&seven.root()).unwrap();
    multi(3).init(&three.root()).unwrap();
    save(&path, &seven.variables().into_iter().collect()).unwrap();
    let value = |vs: &VarStore, name: &str| vs.variables()[name].copy();
    let before = value(&three, "head.0.weight");
    let notes = load(&three, &multi(3), &path, Head::OfSize).unwrap();
    assert_eq!(notes, ["the file's head is for other classes; drawn anew: cls_token to head.2.weight"]);
    assert_eq!(value(&three, "head.0.weight"), before);
    assert_eq!(value(&three, "norm.weight"), value(&seven, "norm.weight"));
    let body = "blocks.0.attn.qkv_pos.0.weight";
    assert_eq!(value(&three, body), value(&seven, body));
    assert!(load(&three, &multi(3), &path, Head::Same).is_err());
}

#[test]
fn a_position_embedding_is_resampled_with_a_note() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("small.safetensors");
    let vit = |image_size: i64| {
        let fields = [("depth", 1), ("image_size", image_size)];
        let fields = fields.map(|(name, value)| (name.to_owned(), FieldValue::Integer(value)));
        registry::find("vit_reference").unwrap().with_fields(&fields.into()).unwrap()
    };
    let (small, large) = (nn::VarStore::new(Device::Cpu), nn::VarStore::new(Device::Cpu));
    vit(24).init(&small.root()).unwrap();
    vit(36).init(&large.root()).unwrap();
    let tensors = small.variables().into_iter().collect();
    save(&path, &tensors).unwrap();
    let notes = load(&large, &vit(36), &path, Head::Same).unwrap();
    assert_eq!(notes, ["pos_embed was resampled from [1, 17, 64] to [1, 37, 64]"]);
    let class = |vs: &VarStore| vs.variables()["pos_embed"].select(1, 0);
    assert_eq!(class(&small), class(&large));
}
