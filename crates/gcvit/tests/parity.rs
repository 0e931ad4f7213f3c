//! Logits of deterministically filled networks against those of the published implementations.
//!
//! The expected numbers were made in f32 with the official implementation on PyTorch 2.11; those
//! with zeros around the pooled query maps are also the Keras tutorial's.

use core_layers::Model;
use gcvit::{GcVitConfig, QueryPool};
use tch::{Device, Tensor, nn};
use test_support::{Role, largest_difference};

/// First ten logits of two images.
const OFFICIAL: [[f64; 10]; 2] = [
    [
        -0.457023, 1.789072, -0.850372, 1.016336, -2.282133, 1.805364, 0.204431, -1.126881, -0.804873,
        -0.704092,
    ],
    [
        -0.513337, 1.820650, -0.835312, 1.020878, -2.266282, 1.790976, 0.251451, -1.155403, -0.782769,
        -0.818026,
    ],
];
const TUTORIAL: [[f64; 10]; 2] = [
    [
        -0.453450, 1.785988, -0.851773, 1.017194, -2.280504, 1.807014, 0.206352, -1.121852, -0.803064,
        -0.697096,
    ],
    [
        -0.510180, 1.816484, -0.835970, 1.020775, -2.262724, 1.789840, 0.252894, -1.150353, -0.781353,
        -0.811140,
    ],
];

/// Fills every tensor by its own name.
fn fill(vs: &nn::VarStore) {
    for (name, mut tensor) in vs.variables() {
        let role = match name.as_str() {
            _ if name.ends_with("relative_position_bias_table") => Role::Embedding,
            _ if name.contains("norm") && name.ends_with("weight") => Role::Gain,
            _ if name.ends_with("weight") => Role::Weight,
            _ => Role::Shift,
        };
        let values = test_support::tensor(&name, &tensor.size(), role);
        tch::no_grad(|| tensor.copy_(&values));
    }
}

/// The largest difference over both images' first ten logits.
fn difference(logits: &Tensor, want: &[[f64; 10]; 2]) -> f64 {
    largest_difference(&logits.narrow(1, 0, 10), want.as_flattened())
}

#[test]
fn both_pools_give_their_implementations_logits_and_not_the_others() {
    let images = test_support::images(2, 224) / 255.0;
    let tutorial = GcVitConfig::reference();
    assert_eq!(tutorial.query_pool, QueryPool::Zero);
    for (config, want, other) in [(GcVitConfig::xxtiny(), OFFICIAL, TUTORIAL), (tutorial, TUTORIAL, OFFICIAL)]
    {
        let vs = nn::VarStore::new(Device::Cpu);
        let network = config.init(&vs.root()).expect("the configuration is valid");
        fill(&vs);
        let logits = tch::no_grad(|| network.forward_t(&images, false));
        let (right, wrong) = (difference(&logits, &want), difference(&logits, &other));
        let dependence = test_support::batch_dependence(&network, &images);
        println!("{:?}: {right:e}, from the other pool {wrong:e}; alone {dependence:e}", config.query_pool);
        assert!(right < 5e-4, "{right}");
        assert!(wrong > 5e-3, "{wrong}");
        // Queries handed to the windows of another image would show here.
        assert!(dependence < 1e-4, "{dependence}");
    }
}
