//! Scaled dot-product attention as the published vision transformers use it.

use tch::nn::Path;
use tch::{Kind, TchError, Tensor};
use torch_ext::{attention, has_kernels};

use crate::drop::dropout;
use crate::{Init, Linear, must, trace};

/// Attention of queries `[B, h, Q, d]` over keys and values `[B, h, K, d]`: the values mixed by the
/// probabilities after dropout, `[B, h, Q, d]`, and the probabilities before it, `[B, h, Q, K]`. They
/// are the softmax over keys of q·kᵀ/√d + `bias`, which broadcasts to that shape.
pub fn attend(
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    bias: Option<&Tensor>,
    drop: f64,
    train: bool,
) -> (Tensor, Tensor) {
    let (head_dim, keys) = (q.size()[3], k.size()[2]);
    let scores = (q * (head_dim as f64).powf(-0.5)).matmul(&k.transpose(-2, -1));
    let probabilities = match bias {
        Some(bias) => (scores + bias).softmax(-1, Kind::Float),
        None => scores.softmax(-1, Kind::Float),
    };
    let mixed = dropout(probabilities.shallow_clone(), drop, train).matmul(v);
    trace::step("Attention", &[], &mixed, &[2, keys]);
    (mixed, probabilities)
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
    /// Whether queries come from elsewhere, so that only keys and values are projected.
    pub external_query: bool,
    /// Dropout rate of the attention probabilities.
    pub attn_drop: f64,
    /// What the fused query, key and value weight `[3·h·d, dim]` (two parts without the queries)
    /// starts from.
    pub qkv_init: Init,
    /// What the output weight `[dim, h·d]` starts from.
    pub proj_init: Init,
    /// What the biases start from.
    pub bias_init: Init,
}

/// Self-attention over tokens (Vaswani et al., arXiv:1706.03762) with one fused projection: the
/// rows of `qkv.weight` are all queries (unless they come from elsewhere), then all keys, then all
/// values, head-major inside.
#[derive(Debug)]
pub struct MultiHeadAttention {
    qkv: Linear,
    proj: Linear,
    num_heads: i64,
    external_query: bool,
    attn_drop: f64,
}

impl MultiHeadAttention {
    /// Creates `qkv` and `proj` under `vs`.
    ///
    /// # Errors
    /// What libtorch says when a tensor cannot be made.
    pub fn new(vs: &Path, config: AttentionConfig) -> Result<Self, TchError> {
        let AttentionConfig { dim, num_heads, head_dim, qkv_bias, external_query, attn_drop, .. } = config;
        let inner = num_heads * head_dim;
        let parts = if external_query { 2 } else { 3 };
        let bias = qkv_bias.then_some(config.bias_init);
        Ok(Self {
            qkv: Linear::new(&(vs / "qkv"), dim, parts * inner, config.qkv_init, bias)?,
            proj: Linear::new(&(vs / "proj"), inner, dim, config.proj_init, Some(config.bias_init))?,
            num_heads,
            external_query,
            attn_drop,
        })
    }

    /// Tokens `[B, N, dim]` → the same shape. `query` is `[B, h, N, d]`, given if and only if the configuration says
    /// `external_query`; `bias` is added to the scores.
    pub fn forward_t(
        &self,
        tokens: &Tensor,
        query: Option<&Tensor>,
        bias: Option<&Tensor>,
        train: bool,
    ) -> Tensor {
        debug_assert_eq!(query.is_some(), self.external_query, "a query if and only if it is external");
        let packed = self.qkv.forward(tokens);
        if !has_kernels(&packed) {
            return self.explicit(&packed, query, bias, train).0;
        }
        let drop = if train { self.attn_drop } else { 0.0 };
        let query = query.map(|query| query.to_kind(packed.kind()));
        let mixed = must(attention(&packed, query.as_ref(), bias, self.num_heads, drop));
        trace::step("Attention", &[], &mixed, &[2, packed.size()[1]]);
        self.proj.forward(&mixed)
    }

    /// [`Self::forward_t`], with the probabilities `[B, h, N, N]` before dropout.
    pub fn with_probabilities(
        &self,
        tokens: &Tensor,
        query: Option<&Tensor>,
        bias: Option<&Tensor>,
        train: bool,
    ) -> (Tensor, Tensor) {
        self.explicit(&self.qkv.forward(tokens), query, bias, train)
    }

    /// What projected tokens `[B, N, parts of h·d]` come to, by products of whole matrices.
    fn explicit(
        &self,
        packed: &Tensor,
        query: Option<&Tensor>,
        bias: Option<&Tensor>,
        train: bool,
    ) -> (Tensor, Tensor) {
        let parts = if query.is_some() { 2 } else { 3 };
        let projected = packed.chunk(parts, -1); // parts x [B, N, h·d]
        let mut heads: Vec<Tensor> = projected.iter().map(|x| split_heads(x, self.num_heads)).collect();
        if let Some(query) = query {
            heads.insert(0, query.shallow_clone());
        }
        let (mixed, probabilities) = attend((&heads[0], &heads[1], &heads[2]), bias, self.attn_drop, train);
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
        let (mixed, p) = attend((&q, &k, &k), None, 0.0, true);
        let want = 1.0 / (1.0 + (2.0 / 2f64.sqrt()).exp());
        assert!((p.double_value(&[0, 0, 0, 0]) - want).abs() < 1e-6);
        // The values are the keys: their second channels are 0 and 2.
        assert!((mixed.double_value(&[0, 0, 0, 1]) - 2.0 * (1.0 - want)).abs() < 1e-6);
        // A bias that undoes the difference makes them equal.
        let bias = Tensor::from_slice(&[2f32 / 2f32.sqrt(), 0.]);
        let (_, p) = attend((&q, &k, &k), Some(&bias), 0.0, true);
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
            external_query: false,
            attn_drop: 0.0,
            qkv_init: init,
            proj_init: init,
            bias_init: Init::Zeros,
        };
        let attention = MultiHeadAttention::new(&vs.root(), config).unwrap();
        let x = test_support::tensor("x", &[2, 5, 8], test_support::Role::Gain);
        let (y, p) = attention.with_probabilities(&x, None, None, true);
        assert_eq!((y.size(), p.size()), (vec![2, 5, 8], vec![2, 2, 5, 5]));
        assert_eq!(vs.variables()["qkv.weight"].size(), [48, 8]);
        assert!(!vs.variables().contains_key("qkv.bias"));

        // With the queries it would have projected itself, attention by external queries is the same.
        let external = nn::VarStore::new(Device::Cpu);
        let config = AttentionConfig { external_query: true, ..config };
        let by_query = MultiHeadAttention::new(&external.root(), config).unwrap();
        tch::no_grad(|| {
            for (name, mut tensor) in external.variables() {
                let own = &vs.variables()[&name];
                let rows = tensor.size()[0];
                tensor.copy_(&own.narrow(0, own.size()[0] - rows, rows));
            }
        });
        let query = x.matmul(&vs.variables()["qkv.weight"].narrow(0, 0, 16).transpose(0, 1));
        let z = by_query.forward_t(&x, Some(&split_heads(&query, 2)), None, true);
        // Products of other shapes are summed in another order.
        let (difference, largest) = ((&z - &y).abs().max(), y.abs().max());
        let (difference, largest) = (difference.double_value(&[]), largest.double_value(&[]));
        assert!(difference < 1e-5 * largest.max(1.0), "{difference} {largest}");
    }

    #[test]
    fn tokens_are_projected_once_with_kernels_and_without() {
        for half in [false, true] {
            let vs = nn::VarStore::new(Device::Cpu);
            let config = AttentionConfig {
                dim: 8,
                num_heads: 2,
                head_dim: 4,
                qkv_bias: true,
                external_query: false,
                attn_drop: 0.0,
                qkv_init: Init::Ones,
                proj_init: Init::Ones,
                bias_init: Init::Zeros,
            };
            let attention = MultiHeadAttention::new(&vs.root(), config).unwrap();
            let x = Tensor::ones([1, 3, 8], (Kind::Float, Device::Cpu));
            // For f16 there are none.
            let _guard = half.then(|| torch_ext::Autocast::enter(Device::Cpu, Kind::Half).unwrap());
            let (_, steps) = trace::record(|| attention.forward_t(&x, None, None, false));
            let kinds: Vec<_> = steps.iter().map(|step| (step.kind, step.macs)).collect();
            assert_eq!(kinds, [("Linear", 576), ("Attention", 144), ("Linear", 192)], "half: {half}");
        }
    }
}
