//! Weights come from outside: whatever the bytes of a file, reading it gives tensors or an error, and a file
//! that does not fit changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::sync::LazyLock;

use proptest::prelude::*;
use run_record::FieldValue;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};
use trainer::network::registry::{self, Architecture};
use trainer::network::weights::{self, Card, Head, WeightsFile};

/// A small network of each family whose checkpoints have names or shapes of their own.
const SMALL: [(&str, &[(&str, i64)]); 4] = [
    ("convmixer_reference", &[("embed_dim", 8), ("depth", 1)]),
    (
        "vit_reference",
        &[("embed_dim", 8), ("num_heads", 2), ("mlp_hidden", 8), ("depth", 1), ("image_size", 12)],
    ),
    ("cct_2_3x2_32", &[("depth", 1), ("embed_dim", 16), ("num_heads", 2), ("mlp_hidden", 8)]),
    ("patchconvnet_s60_multi", &[("depth", 1), ("image_size", 16), ("embed_dim", 8), ("num_classes", 3)]),
];

fn small(index: usize) -> (VarStore, Architecture) {
    tch::set_num_threads(1); // the tensors are tiny, and the tests run side by side
    let (name, fields) = SMALL[index];
    let fields: BTreeMap<_, _> =
        fields.iter().map(|&(field, value)| (field.to_owned(), FieldValue::Integer(value))).collect();
    let found = registry::find(name).and_then(|found| found.with_fields(&fields));
    let architecture = found.unwrap_or_else(|error| panic!("{name}: {error}"));
    let vs = VarStore::new(Device::Cpu);
    architecture.init(&vs.root()).unwrap_or_else(|error| panic!("{name}: {error}"));
    (vs, architecture)
}

/// What the network's file holds: names, shapes and values.
type Contents = Vec<(String, Vec<i64>)>;

fn contents(vs: &VarStore) -> Contents {
    let mut contents: Contents =
        vs.variables().into_iter().map(|(name, tensor)| (name, tensor.size())).collect();
    contents.sort();
    contents
}

/// A safetensors file, written without regard to what the library that reads it would allow.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn whole_file(contents: &[(String, Vec<i64>, &str)]) -> Vec<u8> {
    let (mut entries, mut end) = (Vec::new(), 0);
    for (name, shape, dtype) in contents {
        let width = match *dtype {
            "F64" | "I64" => 8,
            "F32" => 4,
            "F16" | "BF16" => 2,
            _ => 1,
        };
        let start = end;
        end += shape.iter().product::<i64>() * width;
        let name = serde_json::Value::from(name.as_str());
        entries.push(format!(
            r#"{name}:{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#
        ));
    }
    file(&format!("{{{}}}", entries.join(",")), &vec![0; end as usize])
}

static VALID: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let files = (0..SMALL.len()).map(|index| {
        let (vs, _) = small(index);
        let contents: Vec<_> = contents(&vs).into_iter().map(|(name, shape)| (name, shape, "F32")).collect();
        whole_file(&contents)
    });
    files.collect()
});

/// Reads the bytes in every way there is. Whether the network took them.
fn read(bytes: &[u8], index: usize, name: &str, head: Head) -> Result<bool, TestCaseError> {
    let io = |error: std::io::Error| TestCaseError::fail(error.to_string());
    let directory = tempfile::tempdir().map_err(io)?;
    let path = directory.path().join("weights.safetensors");
    fs::write(&path, bytes).map_err(io)?;
    if let Ok(file) = WeightsFile::open(&path) {
        let _ = Card::of(&file);
        if let Ok(tensor) = file.tensor(name) {
            prop_assert_eq!(tensor.kind(), Kind::Float);
        }
    }
    let (vs, architecture) = small(index);
    let before: Vec<(String, Tensor)> =
        vs.variables().into_iter().map(|(name, tensor)| (name, tensor.copy())).collect();
    let loaded = weights::load(&vs, &architecture, &path, head);
    let after = vs.variables();
    for (name, tensor) in &before {
        prop_assert_eq!(tensor.size(), after[name].size());
        prop_assert!(loaded.is_ok() || *tensor == after[name], "{} has changed", name);
    }
    Ok(loaded.is_ok())
}

#[test]
fn the_unchanged_files_are_read() {
    for (index, bytes) in VALID.iter().enumerate() {
        assert!(read(bytes, index, "head.weight", Head::Same).unwrap_or(false), "{}", SMALL[index].0);
    }
}

/// Shapes whose product, or number of bytes, is more than a machine can count.
#[test]
fn sizes_that_overflow_are_errors() {
    let most = u64::MAX;
    for shape in [
        format!("[{most}]"),
        format!("[{most},0]"),
        format!("[0,{most}]"),
        format!("[0,{most},{most}]"),
        format!("[{},2,0]", 1u64 << 62),
        format!("[0,{},4]", 1u64 << 62),
        format!("[{},{}]", 1u64 << 32, 1u64 << 32),
        format!("[{},0]", 1u64 << 63),
        format!("[{}0]", "0,".repeat(100_000)),
        format!("[{}1]", "1,".repeat(70)),
    ] {
        for name in ["head.weight", "pos_embed", "classifier.positional_emb"] {
            for end in [0, 4] {
                let header =
                    format!(r#"{{"{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{end}]}}}}"#);
                for index in 0..SMALL.len() {
                    let took = read(&file(&header, &vec![0; end]), index, name, Head::OfSize);
                    assert!(!took.unwrap_or_else(|error| panic!("{error}")), "{header}");
                }
            }
        }
    }
}

#[test]
fn deep_metadata_is_an_error() {
    for header in ["[".repeat(100_000), "{\"a\":".repeat(100_000)] {
        assert!(!read(&file(&header, &[]), 0, "a", Head::Same).unwrap_or_else(|error| panic!("{error}")));
    }
}

fn head() -> impl Strategy<Value = Head<'static>> {
    prop::sample::select(vec![Head::Same, Head::OfSize, Head::For(&[])])
}

#[derive(Debug, Clone)]
enum Change {
    Set(Vec<u8>),
    Insert(Vec<u8>),
    Delete(usize),
    Cut,
}

fn change() -> impl Strategy<Value = (f64, Change)> {
    let pieces: [&[u8]; 14] = [
        b"\"",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"-1",
        b"0",
        b"99999999999999999999",
        b"F16",
        b"BOOL",
        b"null",
        b"\0",
    ];
    let piece = prop_oneof![
        prop::sample::select(pieces.to_vec()).prop_map(<[u8]>::to_vec),
        prop::collection::vec(any::<u8>(), 1..9),
    ];
    let change = prop_oneof![
        3 => piece.clone().prop_map(Change::Set),
        1 => piece.prop_map(Change::Insert),
        1 => (1..40usize).prop_map(Change::Delete),
        1 => Just(Change::Cut),
    ];
    // Most of the places are in the header, the first part of these files.
    (prop_oneof![0.0..0.01, 0.0..0.3, 0.0..1.0], change)
}

fn changed(bytes: &[u8], changes: &[(f64, Change)]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (share, change) in changes {
        let start = (share * bytes.len() as f64) as usize;
        let end = |length: usize| (start + length).min(bytes.len());
        match change {
            Change::Set(piece) => drop(bytes.splice(start..end(piece.len()), piece.iter().copied())),
            Change::Insert(piece) => drop(bytes.splice(start..start, piece.iter().copied())),
            Change::Delete(length) => drop(bytes.drain(start..end(*length))),
            Change::Cut => bytes.truncate(start),
        }
    }
    bytes
}

/// One tensor of a file made another: its name, shape or type.
#[derive(Debug, Clone)]
enum Edit {
    Rename(String),
    Wrap(&'static str),
    Reshape(Vec<i64>),
    SetSize(usize, i64),
    Retype(&'static str),
    Drop,
    Copy(String),
}

fn name() -> impl Strategy<Value = String> {
    let parts = [
        "head",
        "stem",
        "blocks",
        "0",
        "1",
        "-1",
        "99999999999999999999",
        "",
        "weight",
        "bias",
        "pos_embed",
        "cls_token",
        "classifier",
        "positional_emb",
        "model",
        "module",
        "state_dict",
        "norm",
        "attn",
        "qkv",
        "6",
        "é",
        "num_batches_tracked",
        "relative_position_index",
        "pre_logits",
        "patch_embed",
        "levels",
    ];
    prop_oneof![
        3 => prop::collection::vec(prop::sample::select(parts.to_vec()), 0..6).prop_map(|parts| parts.join(".")),
        1 => "\\PC{0,20}",
    ]
}

fn edit() -> impl Strategy<Value = (usize, Edit)> {
    let prefixes = ["state_dict_ema.", "model_ema.", "state_dict.", "model.", "module.", "backbone."];
    let types = ["F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3"];
    let edit = prop_oneof![
        name().prop_map(Edit::Rename),
        prop::sample::select(prefixes.to_vec()).prop_map(Edit::Wrap),
        prop::collection::vec(0..20i64, 0..6).prop_map(Edit::Reshape),
        (0..5usize, 0..70i64).prop_map(|(axis, size)| Edit::SetSize(axis, size)),
        prop::sample::select(types.to_vec()).prop_map(Edit::Retype),
        Just(Edit::Drop),
        name().prop_map(Edit::Copy),
    ];
    (any::<usize>(), edit)
}

fn edited(contents: &Contents, edits: &[(usize, Edit)]) -> Vec<u8> {
    let mut tensors: Vec<_> =
        contents.iter().map(|(name, shape)| (name.clone(), shape.clone(), "F32")).collect();
    for (place, edit) in edits {
        if tensors.is_empty() {
            break;
        }
        let place = place % tensors.len();
        let tensor = &mut tensors[place];
        match edit {
            Edit::Rename(name) => tensor.0.clone_from(name),
            Edit::Wrap(prefix) => tensors.iter_mut().for_each(|tensor| tensor.0.insert_str(0, prefix)),
            Edit::Reshape(shape) => tensor.1.clone_from(shape),
            Edit::SetSize(axis, size) => {
                if let Some(entry) = tensor.1.get_mut(*axis) {
                    *entry = *size;
                }
            }
            Edit::Retype(dtype) => tensor.2 = dtype,
            Edit::Drop => drop(tensors.remove(place)),
            Edit::Copy(name) => {
                let copy = (name.clone(), tensor.1.clone(), tensor.2);
                tensors.push(copy);
            }
        }
    }
    whole_file(&tensors)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_tensors_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300), head in head()) {
        read(&bytes, 0, "head.weight", head)?;
    }

    #[test]
    fn any_header_is_tensors_or_an_error(
        header in "[\\[{]?(\"\\PC{0,5}\":|\"(dtype|shape|data_offsets|__metadata__|compact-vision)\":|\"F32\"|[0-9]{1,20}|[\\[\\]{},]){0,20}[\\]}]?",
        data in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        read(&file(&header, &data), 0, "head.weight", Head::Same)?;
    }

    #[test]
    fn changed_bytes_are_tensors_or_an_error(
        index in 0..SMALL.len(), changes in prop::collection::vec(change(), 1..4), head in head(),
    ) {
        read(&changed(&VALID[index], &changes), index, "head.weight", head)?;
    }

    #[test]
    fn other_tensors_are_taken_or_an_error(
        index in 0..SMALL.len(), edits in prop::collection::vec(edit(), 1..4), head in head(),
    ) {
        let names = contents(&small(index).0);
        let name = &names[edits[0].0 % names.len()].0;
        read(&edited(&names, &edits), index, name, head)?;
    }

    /// A checkpoint may call its tensors anything.
    #[test]
    fn any_tensor_may_have_any_name(names in prop::collection::vec(name(), 0..10)) {
        for variant in registry::names() {
            let found = registry::find(variant).map_err(|error| TestCaseError::fail(error.to_string()))?;
            names.iter().for_each(|name| drop(found.config.tensor_name(name)));
        }
    }
}
