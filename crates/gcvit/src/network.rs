//! The network: stem, four levels of local and global attention, head.

use core_layers::{
    Activation, AttentionConfig, ClassEvidence, ConfigError, Conv2d, Init, LayerNorm, LayerScale, Linear,
    Mlp, MlpConfig, Model, MultiHeadAttention, Padding, RelativePositionBias, drop_path, drop_path_mask,
    drop_path_rates, map_to_tokens, repeat_per_window, split_heads, window_partition, window_reverse,
};
use tch::nn::Path;
use tch::{Kind, TchError, Tensor};

use crate::config::{GcVitConfig, LevelShape};
use crate::conv::{Downsample, NORM_EPS, QueryGenerator};

/// A Global Context Vision Transformer; see [`GcVitConfig`].
///
/// Features are the `[B, 8·embed_dim]` mean over the last level's normalised map. Attention maps are
/// those of the last block, `[B, heads, h, w]`: how much attention each position receives from the
/// queries of its window on average, so that each window sums to one.
#[derive(Debug)]
pub struct GcVit {
    patches: Conv2d,
    stem: Downsample,
    levels: Vec<Level>,
    norm: LayerNorm,
    head: Linear,
}

/// Attention probabilities in a level, `[B·windows, heads, N, N]`.
#[derive(Debug, Default)]
struct Attention {
    /// Of its last block.
    last: Option<Tensor>,
    /// Of the last block with global queries, if it has any.
    global: Option<Tensor>,
}

/// Blocks on maps of one size, with one query map for all that attend globally, and what halves the
/// maps for the next level.
#[derive(Debug)]
struct Level {
    query_generator: QueryGenerator,
    blocks: Vec<Block>,
    downsample: Option<Downsample>,
    num_heads: i64,
    window: i64,
}

/// A pre-norm block that attends within windows: by its own queries, or by the level's global ones.
#[derive(Debug)]
struct Block {
    first_norm: LayerNorm,
    attention: MultiHeadAttention,
    position: RelativePositionBias,
    attention_scale: Option<LayerScale>,
    second_norm: LayerNorm,
    mlp: Mlp,
    mlp_scale: Option<LayerScale>,
    window: i64,
    global: bool,
    drop_path_rate: f64,
}

impl GcVitConfig {
    /// Builds the network with freshly drawn parameters under `vs`.
    ///
    /// # Errors
    /// A field out of its range, or what libtorch says when a tensor cannot be made.
    pub fn init(&self, vs: &Path) -> Result<GcVit, ConfigError> {
        self.validate()?;
        Ok(GcVit::new(vs, self)?)
    }
}

impl GcVit {
    fn new(vs: &Path, config: &GcVitConfig) -> Result<Self, TchError> {
        let &GcVitConfig { embed_dim, num_classes, init, .. } = config;
        let shapes = config.levels();
        let mut rates = drop_path_rates(config.drop_path_rate, config.depths.iter().sum()).into_iter();
        let mut levels = Vec::new();
        for (l, shape) in shapes.iter().enumerate() {
            let rates: Vec<f64> = rates.by_ref().take(shape.depth as usize).collect();
            let outputs = shapes.get(l + 1).map(|next| next.dim);
            levels.push(Level::new(&(vs / "levels" / l), config, shape, &rates, outputs)?);
        }
        let features = shapes[3].dim;
        let stem = vs / "patch_embed";
        Ok(Self {
            patches: Conv2d::new(
                &(&stem / "proj"),
                3,
                embed_dim,
                3,
                init.convolution().weight(27, 9 * embed_dim),
                Some(init.convolution().bias(27)),
            )?
            .stride(2)
            .padding(Padding::Symmetric(1)),
            stem: Downsample::new(&(&stem / "conv_down"), embed_dim, embed_dim, init)?,
            levels,
            norm: LayerNorm::new(&(vs / "norm"), features, NORM_EPS)?,
            head: Linear::new(
                &(vs / "head"),
                features,
                num_classes,
                init.linear().weight(features, num_classes),
                Some(init.linear().bias(features)),
            )?,
        })
    }

    /// Images `[B, 3, H, W]` to the last level's maps `[B, C, h, w]` before the norm. `see`, if there is anybody to, is
    /// given each level's number from 0, the size of its maps, and the attention in its blocks.
    fn encode(
        &self,
        images: &Tensor,
        train: bool,
        mut see: Option<&mut dyn FnMut(usize, [i64; 2], Attention)>,
    ) -> Tensor {
        let mut maps = self.stem.forward(&self.patches.forward(images)); // [B, C, H/4, W/4]
        for (l, level) in self.levels.iter().enumerate() {
            let size = [maps.size()[2], maps.size()[3]];
            let mut attention = see.is_some().then(Attention::default);
            maps = level.forward_t(&maps, train, attention.as_mut());
            if let (Some(see), Some(attention)) = (see.as_mut(), attention) {
                see(l, size, attention);
            }
        }
        maps
    }

    /// The features of maps as [`GcVit::encode`] leaves them, `[B, C]`.
    fn pool(&self, maps: &Tensor) -> Tensor {
        self.norm.forward_map(maps).mean_dim([2i64, 3].as_slice(), false, Kind::Float)
    }
}

/// How much attention each position of maps of a size receives from the queries of its window on average:
/// probabilities `[B·windows, heads, N, N]` → `[B, heads, h, w]`.
fn received(probabilities: &Tensor, window: i64, [height, width]: [i64; 2]) -> Tensor {
    let received = probabilities.mean_dim([2i64].as_slice(), false, Kind::Float); // [B·windows, heads, N]
    window_reverse(&received.transpose(1, 2), window, height, width).permute([0, 3, 1, 2])
}

impl Level {
    /// A level of as many blocks as there are drop-path rates; if there is a next level, it has
    /// `outputs` channels.
    fn new(
        vs: &Path,
        config: &GcVitConfig,
        shape: &LevelShape,
        drop_path_rates: &[f64],
        outputs: Option<i64>,
    ) -> Result<Self, TchError> {
        let &LevelShape { dim, num_heads, window, .. } = shape;
        let queries = vs / "q_global_gen";
        let block =
            |(b, &rate): (usize, &f64)| Block::new(&(vs / "blocks" / b), config, shape, b % 2 == 1, rate);
        let downsample = |outputs| Downsample::new(&(vs / "downsample"), dim, outputs, config.init);
        Ok(Self {
            query_generator: QueryGenerator::new(
                &queries,
                dim,
                shape.halvings(),
                config.query_pool,
                config.init,
            )?,
            blocks: drop_path_rates.iter().enumerate().map(block).collect::<Result<_, _>>()?,
            downsample: outputs.map(downsample).transpose()?,
            num_heads,
            window,
        })
    }

    /// Maps `[B, C, H, W]` → the next level's, `[B, C', H/2, W/2]`, or of the same shape if there is
    /// none. The attention in its blocks is noted if it is wanted.
    fn forward_t(&self, maps: &Tensor, train: bool, mut attention: Option<&mut Attention>) -> Tensor {
        let size = maps.size();
        let windows = (size[2] / self.window) * (size[3] / self.window);
        // All windows of an image ask the same: [B, C, w, w] -> [B, heads, N, d] -> [B·windows, ..].
        let query = split_heads(&map_to_tokens(&self.query_generator.forward(maps)), self.num_heads);
        let query = repeat_per_window(&query, windows);
        // A view that is contiguous wherever maps are kept channels-last, as the norms leave them.
        let mut x = maps.permute([0, 2, 3, 1]);
        for block in &self.blocks {
            x = block.forward_t(&x, &query, train, attention.as_deref_mut());
        }
        let maps = x.permute([0, 3, 1, 2]);
        match &self.downsample {
            Some(downsample) => downsample.forward(&maps),
            None => maps,
        }
    }
}

impl Block {
    fn new(
        vs: &Path,
        config: &GcVitConfig,
        shape: &LevelShape,
        global: bool,
        drop_path_rate: f64,
    ) -> Result<Self, TchError> {
        let &LevelShape { dim, num_heads, window, .. } = shape;
        let scheme = config.init.linear();
        let parts = if global { 2 } else { 3 };
        let attention = AttentionConfig {
            dim,
            num_heads,
            head_dim: dim / num_heads,
            qkv_bias: true,
            external_query: global,
            attn_drop: 0.0,
            // In the tutorial too these are one dense layer.
            qkv_init: scheme.weight(dim, parts * dim),
            proj_init: scheme.weight(dim, dim),
            bias_init: Init::Zeros,
        };
        let mlp = MlpConfig {
            dim,
            hidden: config.mlp_ratio * dim,
            activation: Activation::Gelu,
            act_on_output: false,
            hidden_drop: 0.0,
            output_drop: 0.0,
            init: scheme,
        };
        let scale = |name| config.layer_scale.map(|value| LayerScale::new(vs, name, dim, value)).transpose();
        let attn = vs / "attn";
        Ok(Self {
            first_norm: LayerNorm::new(&(vs / "norm1"), dim, NORM_EPS)?,
            attention: MultiHeadAttention::new(&attn, attention)?,
            position: RelativePositionBias::new(&attn, window, num_heads, config.init.table())?,
            attention_scale: scale("gamma1")?,
            second_norm: LayerNorm::new(&(vs / "norm2"), dim, NORM_EPS)?,
            mlp: Mlp::new(&(vs / "mlp" / "fc1"), &(vs / "mlp" / "fc2"), mlp)?,
            mlp_scale: scale("gamma2")?,
            window,
            global,
            drop_path_rate,
        })
    }

    /// `[B, H, W, C]` → the same shape. The global `query` is `[B·windows, heads, N, d]`. The attention is noted if it
    /// is wanted.
    fn forward_t(
        &self,
        x: &Tensor,
        query: &Tensor,
        train: bool,
        attention: Option<&mut Attention>,
    ) -> Tensor {
        let size = x.size();
        let scaled = |y: Tensor, scale: Option<&LayerScale>| match scale {
            Some(scale) => scale.forward(&y),
            None => y,
        };
        let windows = window_partition(&self.first_norm.forward(x), self.window); // [B·windows, N, C]
        let query = self.global.then_some(query);
        let bias = self.position.forward();
        let mixed = match attention {
            None => self.attention.forward_t(&windows, query, Some(&bias), train),
            Some(noted) => {
                let (mixed, probabilities) =
                    self.attention.with_probabilities(&windows, query, Some(&bias), train);
                if self.global {
                    noted.global = Some(probabilities.shallow_clone());
                }
                noted.last = Some(probabilities);
                mixed
            }
        };
        let mixed = window_reverse(&mixed, self.window, size[1], size[2]);
        let mixed = scaled(mixed, self.attention_scale.as_ref());
        let mask = drop_path_mask(&mixed, self.drop_path_rate, train);
        let (x, normed) = self.second_norm.forward_added(x, mixed, mask.as_ref());
        let mixed = scaled(self.mlp.forward_t(&normed, train), self.mlp_scale.as_ref());
        x + drop_path(mixed, self.drop_path_rate, train)
    }
}

impl Model for GcVit {
    fn forward_features(&self, images: &Tensor, train: bool) -> Tensor {
        self.pool(&self.encode(images, train, None))
    }

    fn forward_head(&self, features: &Tensor, _train: bool) -> Tensor {
        self.head.forward(features)
    }

    fn attention_maps(&self, images: &Tensor) -> Option<Tensor> {
        let mut last = None;
        let mut see = |l: usize, size, attention: Attention| {
            last = attention.last.map(|last| received(&last, self.levels[l].window, size));
        };
        let _ = self.encode(images, false, Some(&mut see));
        last
    }

    /// Where the global queries of each level look, in its last block that has them.
    fn attention_layers(&self, images: &Tensor) -> Vec<(String, Tensor)> {
        let mut levels = Vec::new();
        let mut see = |l: usize, size, attention: Attention| {
            let global = attention.global.map(|global| received(&global, self.levels[l].window, size));
            levels.extend(global.map(|maps| (format!("global queries, level {}", l + 1), maps)));
        };
        let _ = self.encode(images, false, Some(&mut see));
        levels
    }

    /// The last level's map before the norm.
    fn class_evidence(&self, images: &Tensor) -> ClassEvidence {
        let features = self.encode(images, false, None);
        let grid = [features.size()[2], features.size()[3]];
        ClassEvidence { logits: self.head.forward(&self.pool(&features)), features, grid }
    }

    fn kernels(&self) -> Vec<(&'static str, Tensor)> {
        vec![("stem", self.patches.weight().detach())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, nn};

    #[test]
    fn stochastic_depth_rises_through_all_levels_and_every_second_block_is_global() {
        let vs = nn::VarStore::new(Device::Cpu);
        let narrow = GcVitConfig { embed_dim: 16, ..GcVitConfig::xxtiny_64() };
        let network = narrow.init(&vs.root()).unwrap();
        let blocks: Vec<&Block> = network.levels.iter().flat_map(|level| &level.blocks).collect();
        assert_eq!(blocks.len(), 12);
        for (i, block) in (0..).zip(&blocks) {
            assert!((block.drop_path_rate - 0.2 * f64::from(i) / 11.0).abs() < 1e-12, "{i}");
            // All levels of this variant have an even number of blocks.
            assert_eq!(block.global, i % 2 == 1, "{i}");
        }
    }
}
