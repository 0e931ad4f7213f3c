//! Scaled dot-product attention as the published vision transformers use it.

use tch::nn::Path;
use tch::{Kind, TchError, Tensor};

use crate::{Init, Linear};

/// Attention probabilities `[B, h, Q, K]` of queries `[B, h, Q, d]` over keys `[B, h, K, d]`: the
/// softmax over keys of q·kᵀ/√d + `bias`, which broadcasts to that shape.
pub fn attention_probabilities(q: &Tensor, k: &Tensor, bias: Option<&Tensor>) -> Tensor {
    let head_dim = q.size()[3];
    let scores = (q * (head_dim as f64).powf(-0.5)).matmul(&k.transpose(-2, -1));
    match bias {
        Some(bias) => (scores + bias).softmax(-1, Kind::Float),
        None => scores.softmax(-1, Kind::Float),
    }
}

/// `[B, N, h·d]` with head-major features → `[B, h, N, d]`.
pub fn split_heads(x: &Tensor, num_heads: i64) -> Tensor {
    let size = x.size();
    x.reshape([size[0], size[1], num_heads, -1]).transpose(1, 2)
}

/// `[B, h, N, d]` → `[B, N, h·d]`.
pub fn merge_heads(x: &Tensor) -> Tensor {
    x.transpose(1, 2).flatten(2, 3)
}

/// What decides a [`MultiHeadAttention`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionConfig {
    /// Channels of the tokens.
    pub dim: i64,
    /// Number of heads.
    pub num_heads: i64,
    /// Channels of each head; need not be `dim / num_heads`.
    pub head_dim: i64,
    /// Biases on queries, keys and values; the output projection always has one.
    pub qkv_bias: bool,
    /// Dropout rate of the attention probabilities.
    pub attn_drop: f64,
    /// What the fused query, key and value weight `[3·h·d, dim]` starts from.
    pub qkv_init: Init,
    /// What the output weight `[dim, h·d]` starts from.
    pub proj_init: Init,
    /// What the biases start from.
    pub bias_init: Init,
}

/// Self-attention over tokens (Vaswani et al., arXiv:1706.03762) with one fused projection: the
/// rows of `qkv.weight` are all queries, then all keys, then all values, head-major inside.
#[derive(Debug)]
pub struct MultiHeadAttention {
    qkv: Linear,
    proj: Linear,
    num_heads: i64,
    attn_drop: f64,
}

impl MultiHeadAttention {
    /// Creates `qkv` and `proj` under `vs`.
    ///
    /// # Errors
    /// What libtorch says when a tensor cannot be made.
    pub fn new(vs: &Path, config: AttentionConfig) -> Result<Self, TchError> {
        let AttentionConfig { dim, num_heads, head_dim, qkv_bias, attn_drop, .. } = config;
        let inner = num_heads * head_dim;
        let bias = qkv_bias.then_some(config.bias_init);
        Ok(Self {
            qkv: Linear::new(&(vs / "qkv"), dim, 3 * inner, config.qkv_init, bias)?,
            proj: Linear::new(&(vs / "proj"), inner, dim, config.proj_init, Some(config.bias_init))?,
            num_heads,
            attn_drop,
        })
    }

    /// Tokens `[B, N, dim]` → the same shape, and the probabilities `[B, h, N, N]` before dropout.
    pub fn with_probabilities(&self, tokens: &Tensor, train: bool) -> (Tensor, Tensor) {
        let qkv = self.qkv.forward(tokens).chunk(3, -1); // [B, N, 3·h·d] -> 3 x [B, N, h·d]
        let heads = |x: &Tensor| split_heads(x, self.num_heads);
        let probabilities = attention_probabilities(&heads(&qkv[0]), &heads(&qkv[1]), None);
        let mixed = probabilities.dropout(self.attn_drop, train).matmul(&heads(&qkv[2]));
        (self.proj.forward(&merge_heads(&mixed)), probabilities)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, nn};

    #[test]
    fn probabilities_are_the_scaled_softmax_over_keys() {
        // One head of two channels, one query, two keys: scores 1/√2·(1, 3).
        let q = Tensor::from_slice(&[1f32, 1.]).reshape([1, 1, 1, 2]);
        let k = Tensor::from_slice(&[1f32, 0., 1., 2.]).reshape([1, 1, 2, 2]);
        let p = attention_probabilities(&q, &k, None);
        let want = 1.0 / (1.0 + (2.0 / 2f64.sqrt()).exp());
        assert!((p.double_value(&[0, 0, 0, 0]) - want).abs() < 1e-6);
        // A bias that undoes the difference makes them equal.
        let bias = Tensor::from_slice(&[2f32 / 2f32.sqrt(), 0.]);
        let p = attention_probabilities(&q, &k, Some(&bias));
        assert!((p.double_value(&[0, 0, 0, 0]) - 0.5).abs() < 1e-6);
    }

    #[test]
    fn heads_split_head_major_and_merge_back() {
        let x = Tensor::arange(12, (Kind::Float, Device::Cpu)).reshape([1, 2, 6]);
        let heads = split_heads(&x, 3);
        assert_eq!(heads.size(), [1, 3, 2, 2]);
        // Head 1 of token 1 holds features 2 and 3 of that token: 8 and 9.
        let head = Vec::<f32>::try_from(heads.select(1, 1).select(1, 1).flatten(0, -1)).unwrap();
        assert_eq!(head, [8., 9.]);
        assert_eq!(merge_heads(&heads), x);
    }

    #[test]
    fn head_dim_is_independent_of_dim() {
        let vs = nn::VarStore::new(Device::Cpu);
        let init = Init::GlorotUniform { fan_in: 4, fan_out: 4 };
        let config = AttentionConfig {
            dim: 8,
            num_heads: 2,
            head_dim: 8,
            qkv_bias: false,
            attn_drop: 0.0,
            qkv_init: init,
            proj_init: init,
            bias_init: Init::Zeros,
        };
        let attention = MultiHeadAttention::new(&vs.root(), config).unwrap();
        let x = Tensor::randn([2, 5, 8], (Kind::Float, Device::Cpu));
        let (y, p) = attention.with_probabilities(&x, true);
        assert_eq!((y.size(), p.size()), (vec![2, 5, 8], vec![2, 2, 5, 5]));
        assert_eq!(vs.variables()["qkv.weight"].size(), [48, 8]);
        assert!(!vs.variables().contains_key("qkv.bias"));
    }
}
