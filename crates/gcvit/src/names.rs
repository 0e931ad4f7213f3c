//! The official implementation's names of tensors, which are ours, and timm's names of the same.

/// (official, timm) beginnings of names; the first that fits is exchanged and the rest kept. `#` is a
/// number, the same on both sides; `+` is that number and one: timm halves maps at the start of a
/// level where the official implementation does at the end of the one before, and counts the parts
/// of a query generator from one.
const RULES: &[(&str, &str)] = &[
    ("patch_embed.proj.", "stem.conv1."),
    ("patch_embed.conv_down.conv.0.", "stem.down.conv_block.conv_dw."),
    ("patch_embed.conv_down.conv.2.fc.0.", "stem.down.conv_block.se.fc1."),
    ("patch_embed.conv_down.conv.2.fc.2.", "stem.down.conv_block.se.fc2."),
    ("patch_embed.conv_down.conv.3.", "stem.down.conv_block.conv_pw."),
    ("patch_embed.conv_down.", "stem.down."),
    ("levels.#.downsample.conv.0.", "stages.+.downsample.conv_block.conv_dw."),
    ("levels.#.downsample.conv.2.fc.0.", "stages.+.downsample.conv_block.se.fc1."),
    ("levels.#.downsample.conv.2.fc.2.", "stages.+.downsample.conv_block.se.fc2."),
    ("levels.#.downsample.conv.3.", "stages.+.downsample.conv_block.conv_pw."),
    ("levels.#.downsample.", "stages.+.downsample."),
    ("levels.#.q_global_gen.to_q_global.#.conv.0.", "stages.#.global_block.blocks.conv+.conv_dw."),
    ("levels.#.q_global_gen.to_q_global.#.conv.2.fc.0.", "stages.#.global_block.blocks.conv+.se.fc1."),
    ("levels.#.q_global_gen.to_q_global.#.conv.2.fc.2.", "stages.#.global_block.blocks.conv+.se.fc2."),
    ("levels.#.q_global_gen.to_q_global.#.conv.3.", "stages.#.global_block.blocks.conv+.conv_pw."),
    ("levels.#.blocks.#.attn.relative_", "stages.#.blocks.#.attn.rel_pos.relative_"),
    ("levels.#.blocks.#.gamma1", "stages.#.blocks.#.ls1.gamma"),
    ("levels.#.blocks.#.gamma2", "stages.#.blocks.#.ls2.gamma"),
    ("levels.#.blocks.", "stages.#.blocks."),
    ("norm.", "stages.3.norm."),
    ("head.", "head.fc."),
];

/// timm's name of the tensor that we and the official implementation call `name`; a name that is
/// not ours is returned as it is.
///
/// The tensors are equal, except that the two of a squeeze-and-excitation are `[out, in]` here and
/// `[out, in, 1, 1]` there.
pub fn timm_name(name: &str) -> String {
    RULES.iter().find_map(|(official, timm)| rewrite(name, official, timm)).unwrap_or(name.to_owned())
}

/// The inverse of [`timm_name`]; a name that is not timm's is returned as it is.
pub(crate) fn official_name(name: &str) -> String {
    RULES.iter().find_map(|(official, timm)| rewrite(name, timm, official)).unwrap_or(name.to_owned())
}

/// `name` with the beginning that fits the pattern `from` written as `to` says, or `None`.
fn rewrite(name: &str, from: &str, to: &str) -> Option<String> {
    // What a number is more on the side of the pattern than it is without offset.
    let offset = |c| match c {
        '#' => Some(0),
        '+' => Some(1),
        _ => None,
    };
    let mut rest = name;
    let mut numbers = Vec::new();
    for c in from.chars() {
        rest = match offset(c) {
            None => rest.strip_prefix(c)?,
            Some(offset) => {
                let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
                let (digits, after) = rest.split_at(end);
                numbers.push(digits.parse::<u32>().ok()?.checked_sub(offset)?);
                after
            }
        };
    }
    let mut numbers = numbers.into_iter();
    let mut renamed = String::new();
    for c in to.chars() {
        match offset(c) {
            None => renamed.push(c),
            Some(offset) => renamed += &numbers.next()?.checked_add(offset)?.to_string(),
        }
    }
    Some(renamed + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_to_timms_and_back() {
        for (official, timm) in [
            ("patch_embed.proj.bias", "stem.conv1.bias"),
            ("patch_embed.conv_down.conv.2.fc.2.weight", "stem.down.conv_block.se.fc2.weight"),
            ("patch_embed.conv_down.norm2.bias", "stem.down.norm2.bias"),
            ("levels.0.downsample.reduction.weight", "stages.1.downsample.reduction.weight"),
            ("levels.0.downsample.conv.3.weight", "stages.1.downsample.conv_block.conv_pw.weight"),
            (
                "levels.0.q_global_gen.to_q_global.0.conv.2.fc.0.weight",
                "stages.0.global_block.blocks.conv1.se.fc1.weight",
            ),
            (
                "levels.1.q_global_gen.to_q_global.1.conv.0.weight",
                "stages.1.global_block.blocks.conv2.conv_dw.weight",
            ),
            (
                "levels.2.blocks.18.attn.relative_position_bias_table",
                "stages.2.blocks.18.attn.rel_pos.relative_position_bias_table",
            ),
            ("levels.3.blocks.0.attn.qkv.weight", "stages.3.blocks.0.attn.qkv.weight"),
            ("levels.3.blocks.4.gamma1", "stages.3.blocks.4.ls1.gamma"),
            ("levels.3.blocks.4.gamma2", "stages.3.blocks.4.ls2.gamma"),
            ("norm.weight", "stages.3.norm.weight"),
            ("head.weight", "head.fc.weight"),
        ] {
            assert_eq!(timm_name(official), timm);
            assert_eq!(official_name(timm), official);
            assert_eq!(official_name(official), official);
        }
    }

    #[test]
    fn other_names_stay() {
        // timm's first stage halves nothing, so no level of ours ends with what that would be.
        for name in
            ["stages.0.downsample.norm1.weight", "stages.99999999999.blocks.0.norm1.bias", "stages", ""]
        {
            assert_eq!(official_name(name), name);
        }
        for name in ["levels.4294967295.downsample.norm1.weight", "levels.x.blocks.0", "fc.weight", ""] {
            assert_eq!(timm_name(name), name);
        }
    }
}
