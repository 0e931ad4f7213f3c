//! The numbers that make a GCViT, and the variants that have a name.

use core_layers::{ConfigError, Init, InitScheme, Variant, count, field_error, require_rates, require_sizes};
use serde::{Deserialize, Serialize};

/// What surrounds the maps that the query generators max-pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueryPool {
    /// −∞, which never wins: the official implementation and timm, and all published weights.
    NegativeInfinity,
    /// Zeros, which win where a border is negative: the Keras tutorial.
    Zero,
}

/// What parameters start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GcVitInit {
    /// The Keras tutorial: Glorot uniform weights, zero biases, bias tables truncated normal with 0.02 before
    /// truncation.
    Keras,
    /// The official implementation: linear weights and bias tables normal with standard deviation 0.02,
    /// zero biases, and convolutions as PyTorch draws them.
    Official,
}

/// Everything that decides a GCViT. Its four levels work on maps of 1/4, 1/8, 1/16 and 1/32 of the
/// image's side, with `embed_dim` channels in the first and twice as many in each next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GcVitConfig {
    /// Side of the images, in pixels.
    pub image_size: i64,
    /// Number of logits.
    pub num_classes: i64,
    /// Channels of the first level.
    pub embed_dim: i64,
    /// Blocks of each level, the first attending within windows, the second by global queries, and
    /// so on in turn; at least one of each.
    pub depths: [i64; 4],
    /// Attention heads of each level; they divide its channels.
    pub num_heads: [i64; 4],
    /// Side of each level's windows, in pixels of its map, whose side is a power of two times it.
    pub window_sizes: [i64; 4],
    /// Channels between the layers of an MLP, as a multiple of the level's.
    pub mlp_ratio: i64,
    /// Stochastic depth of the last block; it rises evenly from 0 in the first, through all levels.
    pub drop_path_rate: f64,
    /// What the factors per channel on both branches of a block start from, where there are any.
    pub layer_scale: Option<f64>,
    /// What surrounds the maps that the query generators max-pool.
    pub query_pool: QueryPool,
    /// What parameters start from.
    pub init: GcVitInit,
}

impl GcVitConfig {
    /// The network of the Keras tutorial: XXTiny with zeros around the pooled maps and Keras's
    /// initialisation. 11,995,428 parameters.
    pub fn reference() -> Self {
        Self { query_pool: QueryPool::Zero, init: GcVitInit::Keras, ..Self::xxtiny() }
    }

    /// GCViT-XXTiny.
    pub fn xxtiny() -> Self {
        Self {
            image_size: 224,
            num_classes: 1000,
            embed_dim: 64,
            depths: [2, 2, 6, 2],
            num_heads: [2, 4, 8, 16],
            window_sizes: [7, 7, 14, 7],
            mlp_ratio: 3,
            drop_path_rate: 0.2,
            layer_scale: None,
            query_pool: QueryPool::NegativeInfinity,
            init: GcVitInit::Official,
        }
    }

    /// XXTiny adapted to 64×64 images and ten classes, which nobody published: maps of 16, 8, 4 and 2 pixels.
    pub fn xxtiny_64() -> Self {
        Self { image_size: 64, num_classes: 10, window_sizes: [4, 4, 4, 2], ..Self::xxtiny() }
    }

    /// GCViT-XTiny.
    pub fn xtiny() -> Self {
        Self { depths: [3, 4, 6, 5], ..Self::xxtiny() }
    }

    /// GCViT-Tiny.
    pub fn tiny() -> Self {
        Self { depths: [3, 4, 19, 5], ..Self::xxtiny() }
    }

    /// GCViT-Tiny2.
    pub fn tiny2() -> Self {
        Self { depths: [3, 4, 29, 5], drop_path_rate: 0.25, ..Self::xxtiny() }
    }

    /// GCViT-Small.
    pub fn small() -> Self {
        Self {
            embed_dim: 96,
            num_heads: [3, 6, 12, 24],
            mlp_ratio: 2,
            drop_path_rate: 0.3,
            layer_scale: Some(1e-5),
            ..Self::tiny()
        }
    }

    /// GCViT-Small2.
    pub fn small2() -> Self {
        Self { depths: [3, 4, 23, 5], mlp_ratio: 3, drop_path_rate: 0.35, ..Self::small() }
    }

    /// GCViT-Base.
    pub fn base() -> Self {
        Self { embed_dim: 128, num_heads: [4, 8, 16, 32], drop_path_rate: 0.5, ..Self::small() }
    }

    /// GCViT-Large.
    pub fn large() -> Self {
        Self { embed_dim: 192, num_heads: [6, 12, 24, 48], ..Self::base() }
    }

    /// GCViT-Large for 384×384 images.
    pub fn large_384() -> Self {
        Self { image_size: 384, window_sizes: [12, 12, 24, 12], drop_path_rate: 0.1, ..Self::large() }
    }

    /// GCViT-Large for 512×512 images.
    pub fn large_512() -> Self {
        Self { image_size: 512, window_sizes: [16, 16, 32, 16], drop_path_rate: 0.1, ..Self::large() }
    }

    /// The four levels' own numbers.
    pub(crate) fn levels(&self) -> [LevelShape; 4] {
        [0, 1, 2, 3].map(|level| {
            let stride = 4 << level;
            LevelShape {
                dim: self.embed_dim << level,
                depth: self.depths[level],
                num_heads: self.num_heads[level],
                window: self.window_sizes[level],
                // Each of the strided convolutions rounds up.
                side: (self.image_size + stride - 1) / stride,
            }
        })
    }
}

/// The numbers of one level.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LevelShape {
    /// Channels.
    pub dim: i64,
    /// Blocks.
    pub depth: i64,
    /// Attention heads.
    pub num_heads: i64,
    /// Side of a window, in pixels of the map.
    pub window: i64,
    /// Side of the map, in pixels.
    pub side: i64,
}

impl LevelShape {
    /// How often a query generator halves the map until it is as large as a window.
    pub fn halvings(&self) -> i64 {
        i64::from((self.side / self.window).max(1).ilog2())
    }

    /// Sides of the windows that the map can be halved to.
    fn possible_windows(&self) -> Vec<i64> {
        let halve = |side: &i64| (side % 2 == 0).then_some(side / 2);
        std::iter::successors(Some(self.side), halve).collect()
    }
}

/// Channels between the two layers of a squeeze-and-excitation over `dim`.
pub(crate) fn squeezed(dim: i64) -> i64 {
    dim / 4
}

/// Parameters of an MBConv: the depthwise kernels, squeeze-and-excitation, the 1×1 convolution.
fn mb_conv_params(dim: i64) -> u64 {
    count(&[9, dim]) + count(&[2, dim, squeezed(dim)]) + count(&[dim, dim])
}

/// Multiply-accumulates of an MBConv on a map of this side.
fn mb_conv_macs(dim: i64, side: i64) -> u64 {
    count(&[side, side, 9 + dim, dim]) + count(&[2, dim, squeezed(dim)])
}

/// Parameters of what halves a map: an MBConv, a strided convolution, a norm before and one after.
fn downsample_params(dim: i64, outputs: i64) -> u64 {
    count(&[2, dim]) + mb_conv_params(dim) + count(&[9, dim, outputs]) + count(&[2, outputs])
}

/// Multiply-accumulates of halving a map of this side.
fn downsample_macs(dim: i64, outputs: i64, side: i64) -> u64 {
    let half = (side + 1) / 2;
    mb_conv_macs(dim, side) + count(&[half, half, 9, dim, outputs])
}

/// Blocks of a level as (how many, parts their fused projection has): queries, keys and values
/// within windows, keys and values where the query is global.
fn block_kinds(depth: i64) -> [(i64, i64); 2] {
    [((depth + 1) / 2, 3), (depth / 2, 2)]
}

impl GcVitInit {
    /// Of linear layers.
    pub(crate) fn linear(self) -> InitScheme {
        match self {
            Self::Keras => InitScheme::Glorot,
            Self::Official => InitScheme::Normal02,
        }
    }

    /// Of convolutions.
    pub(crate) fn convolution(self) -> InitScheme {
        match self {
            Self::Keras => InitScheme::Glorot,
            Self::Official => InitScheme::Torch,
        }
    }

    /// Of relative-position bias tables.
    pub(crate) fn table(self) -> Init {
        match self {
            Self::Keras => Init::TruncatedNormal { std: 0.02 },
            Self::Official => Init::Normal { std: 0.02 },
        }
    }
}

impl GcVitConfig {
    /// Every variant with a name.
    pub const VARIANTS: &'static [Variant<Self>] = &[
        Variant { name: "gcvit_reference", config: Self::reference },
        Variant { name: "gcvit_xxtiny", config: Self::xxtiny },
        Variant { name: "gcvit_xtiny", config: Self::xtiny },
        Variant { name: "gcvit_tiny", config: Self::tiny },
        Variant { name: "gcvit_tiny2", config: Self::tiny2 },
        Variant { name: "gcvit_small", config: Self::small },
        Variant { name: "gcvit_small2", config: Self::small2 },
        Variant { name: "gcvit_base", config: Self::base },
        Variant { name: "gcvit_large", config: Self::large },
        Variant { name: "gcvit_large_384", config: Self::large_384 },
        Variant { name: "gcvit_large_512", config: Self::large_512 },
        Variant { name: "gcvit_xxtiny_64", config: Self::xxtiny_64 },
    ];

    /// Checks every field.
    ///
    /// # Errors
    /// The first field out of its range, with the range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        require_sizes(&[
            ("image_size", self.image_size, 4_096),
            ("num_classes", self.num_classes, 1_000_000),
            ("mlp_ratio", self.mlp_ratio, 64),
        ])?;
        require_rates(&[("drop_path_rate", self.drop_path_rate)])?;
        // Fewer channels would leave the squeeze-and-excitation none.
        if !(4..=4_096).contains(&self.embed_dim) {
            return Err(field_error("embed_dim", self.embed_dim, "4 to 4096"));
        }
        for (field, values, range) in [
            ("depths", &self.depths, 2..=1_024),
            ("num_heads", &self.num_heads, 1..=1_024),
            ("window_sizes", &self.window_sizes, 1..=64),
        ] {
            if values.iter().any(|value| !range.contains(value)) {
                let expected = format!("each {} to {}", range.start(), range.end());
                return Err(field_error(field, format!("{values:?}"), expected));
            }
        }
        if let Some(value) = self.layer_scale
            && !(value > 0.0 && value <= 1.0)
        {
            return Err(field_error("layer_scale", value, "above 0, at most 1, or none"));
        }
        for (index, level) in self.levels().iter().enumerate() {
            if level.dim % level.num_heads != 0 {
                let expected =
                    format!("level {index} has {} channels, which its heads must divide", level.dim);
                return Err(field_error("num_heads", format!("{:?}", self.num_heads), expected));
            }
            let windows = level.possible_windows();
            if !windows.contains(&level.window) {
                let expected = format!(
                    "level {index} has a map {} pixels wide at image_size {}, so its window must be one of \
                     {windows:?}",
                    level.side, self.image_size
                );
                return Err(field_error("window_sizes", format!("{:?}", self.window_sizes), expected));
            }
        }
        Ok(())
    }

    /// Trainable parameters of a valid configuration, counted without building the network.
    pub fn param_count(&self) -> u64 {
        let d = self.embed_dim;
        let stem = count(&[28, d]) + downsample_params(d, d);
        let levels: u64 = self.levels().iter().map(|level| self.level_params(level)).sum();
        let downsamples: u64 = (0..3).map(|level| downsample_params(d << level, d << (level + 1))).sum();
        let features = 8 * d;
        stem + levels + downsamples + count(&[2, features]) + count(&[self.num_classes, features + 1])
    }

    /// Multiply-accumulates of convolutions and matrix products in one forward pass on one image of
    /// `image_size`, attention products included, for a valid configuration.
    pub fn macs(&self) -> u64 {
        let d = self.embed_dim;
        let levels = self.levels();
        // The stem halves the image, then the map of that.
        let half = (self.image_size + 1) / 2;
        let stem = count(&[half, half, 27, d]) + downsample_macs(d, d, half);
        let downsamples: u64 =
            levels[..3].iter().map(|level| downsample_macs(level.dim, 2 * level.dim, level.side)).sum();
        let levels: u64 = levels.iter().map(|level| self.level_macs(level)).sum();
        stem + levels + downsamples + count(&[8, d, self.num_classes])
    }
}

impl GcVitConfig {
    /// Parameters of a level's query generator and blocks.
    fn level_params(&self, level: &LevelShape) -> u64 {
        let &LevelShape { dim, depth, num_heads, window, .. } = level;
        let hidden = self.mlp_ratio * dim;
        let table = count(&[2 * window - 1, 2 * window - 1, num_heads]);
        let proj = count(&[dim, dim + 1]);
        let mlp = count(&[2, dim, hidden]) + count(&[hidden + dim]);
        let scales = if self.layer_scale.is_some() { count(&[2, dim]) } else { 0 };
        let alike = count(&[4, dim]) + table + proj + mlp + scales;
        let blocks = block_kinds(depth)
            .map(|(blocks, parts)| count(&[blocks]) * (alike + count(&[parts, dim, dim + 1])))
            .iter()
            .sum::<u64>();
        count(&[level.halvings().max(1)]) * mb_conv_params(dim) + blocks
    }

    /// Multiply-accumulates of a level's query generator and blocks.
    fn level_macs(&self, level: &LevelShape) -> u64 {
        let &LevelShape { dim, depth, window, side, .. } = level;
        let queries: u64 = (0..level.halvings().max(1)).map(|halved| mb_conv_macs(dim, side >> halved)).sum();
        let per_pixel = |parts| {
            count(&[parts + 1, dim, dim])
                + count(&[2, window, window, dim])
                + count(&[2, dim, self.mlp_ratio * dim])
        };
        let blocks = block_kinds(depth)
            .map(|(blocks, parts)| count(&[blocks, side, side]) * per_pixel(parts))
            .iter()
            .sum::<u64>();
        queries + blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parameters with 1000 and with 10 classes and MACs (in billions), from the official
    /// implementation with torch's FLOP counter halved. No number: not published.
    const TABLE: [(&str, u64, u64, f64); 9] = [
        ("gcvit_reference", 11_995_428, 11_487_558, 2.1208),
        ("gcvit_xxtiny", 11_995_428, 11_487_558, 2.1208),
        ("gcvit_xtiny", 19_981_294, 19_473_424, 2.9125),
        ("gcvit_tiny", 28_221_974, 27_714_104, 4.7610),
        ("gcvit_tiny2", 34_535_654, 34_027_784, 6.1780),
        ("gcvit_small", 51_092_173, 50_330_863, 8.5295),
        ("gcvit_small2", 68_615_197, 67_853_887, 11.5377),
        ("gcvit_base", 90_320_836, 89_306_086, 14.8162),
        ("gcvit_large", 202_075_570, 200_553_940, 32.5549),
    ];

    #[test]
    fn parameters_and_macs_are_those_of_the_published_table() {
        for (variant, (name, params, ten_classes, giga_macs)) in GcVitConfig::VARIANTS.iter().zip(TABLE) {
            let config = (variant.config)();
            assert_eq!(variant.name, name);
            config.validate().unwrap();
            assert_eq!(config.param_count(), params, "{name}");
            let got = config.macs() as f64 / 1e9;
            assert!((got / giga_macs - 1.0).abs() < 1e-3, "{name}: {got} {giga_macs}");
            assert_eq!(GcVitConfig { num_classes: 10, ..config }.param_count(), ten_classes, "{name}");
        }
        let reference = GcVitConfig::reference();
        assert_eq!(reference.macs(), 2_120_792_320);
        let flowers = GcVitConfig { num_classes: 104, ..reference };
        assert_eq!((flowers.param_count(), flowers.macs()), (11_535_780, 2_120_333_568));
    }

    #[test]
    fn other_image_sizes_change_the_windows_only() {
        for variant in &GcVitConfig::VARIANTS[TABLE.len()..] {
            (variant.config)().validate().unwrap();
        }
        // Per block and head a table of (2·window − 1)² instead of 13² or 27².
        let tables = |windows: [i64; 4]| {
            let large = GcVitConfig::large();
            let row =
                |i: usize| count(&[2 * windows[i] - 1; 2]) * count(&[large.depths[i], large.num_heads[i]]);
            (0..4).map(row).sum::<u64>()
        };
        let without = 202_075_570 - tables([7, 7, 14, 7]);
        for config in [GcVitConfig::large_384(), GcVitConfig::large_512()] {
            assert_eq!(config.param_count(), without + tables(config.window_sizes));
        }
        // 64×64 images need one MBConv less in the query generators of levels 0 and 1.
        let at_224 = GcVitConfig { num_classes: 10, ..GcVitConfig::xxtiny() };
        let tables = 2 * (120 * 2 + 120 * 4 + 3 * 680 * 8 + 160 * 16);
        let mb_convs = mb_conv_params(64) + mb_conv_params(128);
        assert_eq!(GcVitConfig::xxtiny_64().param_count(), at_224.param_count() - tables - mb_convs);
    }

    #[test]
    fn fields_out_of_range_are_named_with_what_would_fit() {
        let base = GcVitConfig::xxtiny;
        for (config, words) in [
            (
                GcVitConfig { image_size: 32, ..base() },
                "model.window_sizes = [7, 7, 14, 7]: level 0 has a map 8 pixels wide at image_size 32, so its \
                 window must be one of [8, 4, 2, 1]",
            ),
            // Divides the map, 28 pixels wide, but seven times.
            (
                GcVitConfig { window_sizes: [7, 4, 14, 7], ..base() },
                "model.window_sizes = [7, 4, 14, 7]: level 1",
            ),
            (
                GcVitConfig { window_sizes: [7, 7, 65, 7], ..base() },
                "model.window_sizes = [7, 7, 65, 7]: each 1 to 64",
            ),
            (
                GcVitConfig { window_sizes: [7, 7, 0, 7], ..base() },
                "model.window_sizes = [7, 7, 0, 7]: each 1 to 64",
            ),
            (
                GcVitConfig { num_heads: [2, 4, 8, 24], ..base() },
                "model.num_heads = [2, 4, 8, 24]: level 3 has 512",
            ),
            (GcVitConfig { depths: [2, 1, 2, 2], ..base() }, "model.depths = [2, 1, 2, 2]: each 2 to 1024"),
            (GcVitConfig { embed_dim: 3, ..base() }, "model.embed_dim = 3: 4 to"),
            (GcVitConfig { mlp_ratio: 0, ..base() }, "model.mlp_ratio = 0: 1 to"),
            (GcVitConfig { image_size: i64::MAX, ..base() }, "model.image_size = 9223372036854775807: 1 to"),
            (GcVitConfig { drop_path_rate: 1.0, ..base() }, "model.drop_path_rate = 1"),
            (GcVitConfig { layer_scale: Some(0.0), ..base() }, "model.layer_scale = 0: above 0"),
            (GcVitConfig { layer_scale: Some(f64::NAN), ..base() }, "model.layer_scale = NaN: above 0"),
        ] {
            let message = config.validate().unwrap_err().to_string();
            assert!(message.starts_with(words), "{message}");
        }
        let tiny_images = GcVitConfig { image_size: 32, window_sizes: [4, 4, 2, 1], ..base() };
        tiny_images.validate().unwrap();
        assert_eq!(tiny_images.levels().map(|level| level.halvings()), [1, 0, 0, 0]);
        assert_eq!(base().levels().map(|level| level.halvings()), [3, 2, 0, 0]);
        assert_eq!(GcVitConfig::large_512().levels().map(|level| level.side), [128, 64, 32, 16]);
    }
}
