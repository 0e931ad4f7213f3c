//! The strict loader as a program uses it that has this crate alone.

use std::collections::BTreeMap;
use std::path::Path;

use convmixer::ConvMixerConfig;
use convmixer::tch::{Device, Kind, Tensor, nn};
use convmixer::weights::{
    Fit, Head, Mismatch, Misshapen, Problem, WeightsError, WeightsFile, shapes, write_safetensors,
};

type Tensors = BTreeMap<String, Tensor>;

fn network(num_classes: i64) -> (nn::VarStore, ConvMixerConfig) {
    let config = ConvMixerConfig { embed_dim: 8, depth: 1, num_classes, ..ConvMixerConfig::reference() };
    let vs = nn::VarStore::new(Device::Cpu);
    config.init(&vs.root()).expect("the configuration is valid");
    (vs, config)
}

fn tensors(vs: &nn::VarStore) -> Tensors {
    vs.variables().into_iter().collect()
}

fn file(tensors: &Tensors) -> WeightsFile {
    let mut bytes = Vec::new();
    write_safetensors(&mut bytes, tensors, &BTreeMap::new()).expect("memory takes it");
    WeightsFile::from_bytes(Path::new("in memory"), bytes).expect("it was just written")
}

/// Fits the tensors to the network and loads them.
fn load(tensors: &Tensors, (vs, config): &(nn::VarStore, ConvMixerConfig)) -> Result<Fit, WeightsError> {
    let file = file(tensors);
    let fit = file.fit(config, &shapes(vs), Head::Same)?;
    file.load(&fit, config, vs)?;
    Ok(fit)
}

#[test]
fn what_is_in_memory_is_loaded_from_every_floating_type() {
    let own = tensors(&network(10).0);
    for kind in [Kind::Float, Kind::Double, Kind::Half, Kind::BFloat16] {
        let theirs: Tensors = own.iter().map(|(name, tensor)| (name.clone(), tensor.to_kind(kind))).collect();
        let target = network(10);
        load(&theirs, &target).expect("they are the network's");
        for (name, tensor) in tensors(&target.0) {
            assert_eq!(tensor.kind(), Kind::Float);
            assert_eq!(tensor, theirs[&name].to_kind(Kind::Float), "{name} from {kind:?}");
        }
    }
    // Of an empty file: eight bytes of length, braces and padding.
    let digest = "9bbcbf73561f6bc5d0a17ea6a2081feed2d1304e87602d8c502d9a5c4bd85576";
    assert_eq!(file(&Tensors::new()).sha256().expect("it is in memory"), digest);
}

#[test]
fn every_difference_is_named_and_nothing_is_changed() {
    let mut theirs = tensors(&network(7).0);
    theirs.remove("stem.0.bias");
    theirs.insert("extra".to_owned(), Tensor::from(1f32));
    theirs.insert("stem.2.weight".to_owned(), Tensor::ones([8], (Kind::Int64, Device::Cpu)));
    let target = network(10);
    let before: Tensors =
        tensors(&target.0).into_iter().map(|(name, tensor)| (name, tensor.copy())).collect();
    let error = load(&theirs, &target).expect_err("they are not the network's");
    assert_eq!(error.path, Path::new("in memory"));
    let Problem::Mismatch(found) = &error.problem else { panic!("{error}") };
    let misshapen = |name: &str, file: &[i64], network: &[i64]| Misshapen {
        name: name.to_owned(),
        file: file.to_vec(),
        network: network.to_vec(),
    };
    let want = Mismatch {
        missing: vec!["stem.0.bias".to_owned()],
        unexpected: vec!["extra".to_owned()],
        misshapen: vec![misshapen("head.bias", &[7], &[10]), misshapen("head.weight", &[7, 8], &[10, 8])],
        mistyped: vec![("stem.2.weight".to_owned(), "I64".to_owned())],
        prefix: None,
    };
    assert_eq!(**found, want);
    assert_eq!(
        error.to_string(),
        "in memory: the tensors are not the network's; missing: stem.0.bias; unexpected: extra; of another shape: head.bias is \
         [7], the network has [10], head.weight is [7, 8], the network has [10, 8]; not of a floating type: stem.2.weight holds \
         I64"
    );
    assert_eq!(tensors(&target.0), before);
}

#[test]
fn what_is_not_finite_or_no_weights_at_all_is_refused() {
    let mut theirs = tensors(&network(10).0);
    theirs.insert("head.bias".to_owned(), Tensor::full([10], f64::NAN, (Kind::Float, Device::Cpu)));
    let error = load(&theirs, &network(10)).expect_err("nothing can start from it");
    let Problem::NotFinite { tensors, of: 20 } = &error.problem else { panic!("{error}") };
    assert_eq!(tensors, &["head.bias"]);
    let page = WeightsFile::from_bytes(Path::new("a.safetensors"), b"<!DOCTYPE html>".to_vec());
    let error = page.expect_err("a page is no file of weights").to_string();
    assert!(error.starts_with("a.safetensors: a web page, not weights"), "{error}");
}
