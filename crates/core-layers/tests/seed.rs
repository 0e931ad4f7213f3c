//! Draws follow the seed. Alone in this file: libtorch has one generator per process, which tests
//! running beside it would move.

use core_layers::Init;
use tch::Tensor;

#[test]
fn one_seed_is_one_draw() {
    let kinds = [
        Init::Normal { std: 1.0 },
        Init::TruncatedNormal { std: 1.0 },
        Init::GlorotUniform { fan_in: 3, fan_out: 3 },
        Init::KaimingNormal { fan_in: 2 },
    ];
    let draw = |seed| -> Vec<Tensor> {
        tch::manual_seed(seed);
        kinds.iter().map(|init| init.draw(&[64]).expect("it fits in memory")).collect()
    };
    assert_eq!(draw(5), draw(5));
    assert!(draw(5).iter().zip(draw(6)).all(|(five, six)| *five != six));
}
