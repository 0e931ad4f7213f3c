//! What other programs call a network's tensors: prefixes that training scripts add, and other checkpoints' names.

use std::collections::BTreeMap;

use super::Shapes;
use crate::ModelConfig;

/// What training scripts wrap a network's tensors in, the one to prefer first: an average of the weights
/// is what their authors publish numbers for.
pub(super) const WRAPPERS: [&str; 6] =
    ["state_dict_ema.", "model_ema.", "state_dict.", "model_state_dict.", "model.", "module."];

/// What `torch.compile` adds before the names of a module's tensors, which may be one inside the network.
const COMPILED: &str = "_orig_mod.";

/// The names of a file's tensors.
#[derive(Debug)]
pub(super) struct Names {
    /// By the network's name, the file's; those that say nothing about the weights are left out.
    pub(super) found: BTreeMap<String, String>,
    /// What was left out or taken off that somebody may want to know.
    pub(super) notes: Vec<String>,
    /// What all of the file's names begin with, if they are not the network's.
    pub(super) prefix: Option<String>,
}

/// Finds the network's names of the tensors a file calls `theirs`. A prefix that is not certain to be one is taken off if
/// the names are then the network's and were not before.
///
/// # Errors
/// Two tensors for one of the network's.
pub(super) fn match_names(
    theirs: Vec<String>,
    config: &dyn ModelConfig,
    network: &Shapes,
) -> Result<Names, String> {
    let mut notes = Vec::new();
    let found = unwrap(theirs, &mut notes)?;
    let mut before = rename(&found, "", config)?;
    let all_known = |names: &Names| names.found.keys().all(|name| network.contains_key(name));
    let common = common_prefix(found.keys());
    if !all_known(&before) && !common.is_empty() {
        // The shorter the better: what the names share may end with parts of the network's own.
        for (end, _) in common.match_indices('.') {
            let prefix = &common[..=end];
            let mut names = rename(&found, prefix, config)?;
            if all_known(&names) {
                notes.push(format!("the prefix {prefix:?} of all names was taken off"));
                notes.append(&mut names.notes);
                return Ok(Names { notes, ..names });
            }
        }
        before.prefix = Some(common);
    }
    notes.append(&mut before.notes);
    Ok(Names { notes, ..before })
}

/// The names without what is certain to be no part of them, each with the file's own.
fn unwrap(theirs: Vec<String>, notes: &mut Vec<String>) -> Result<BTreeMap<String, String>, String> {
    let twice = |name: &str, what: &str| format!("it has {name} both with and without {what:?}");
    let mut found = BTreeMap::new();
    if theirs.iter().any(|name| name.contains(COMPILED)) {
        notes.push(format!("{COMPILED:?}, which torch.compile adds to names, was taken off"));
    }
    for name in theirs {
        let plain = name.replace(COMPILED, "");
        if found.insert(plain.clone(), name).is_some() {
            return Err(twice(&plain, COMPILED));
        }
    }
    let wrapper = |name: &str| WRAPPERS.iter().position(|wrapper| name.starts_with(wrapper));
    while let Some(best) = found.keys().filter_map(|name| wrapper(name)).min() {
        let (mut inner, mut others) = (BTreeMap::new(), 0);
        for (name, theirs) in found {
            if wrapper(&name).is_some_and(|this| this != best) {
                others += 1;
                continue;
            }
            let name = name.strip_prefix(WRAPPERS[best]).map_or(name.clone(), str::to_owned);
            if inner.insert(name.clone(), theirs).is_some() {
                return Err(twice(&name, WRAPPERS[best]));
            }
        }
        let wrapper = WRAPPERS[best];
        notes.push(match others {
            0 => format!("the wrapper {wrapper:?} of the names was taken off"),
            _ => format!("read were the tensors under {wrapper:?}; {others} under another prefix were not"),
        });
        found = inner;
    }
    Ok(found)
}

/// The names that stand after `prefix` as the network's, without those of tensors that say nothing about its weights.
fn rename(found: &BTreeMap<String, String>, prefix: &str, config: &dyn ModelConfig) -> Result<Names, String> {
    let stripped = |name: &String| name.strip_prefix(prefix).unwrap_or(name).to_owned();
    let pre_logits = |name: &String| name.starts_with("pre_logits.");
    let says_nothing = |name: &String| {
        name.ends_with(".num_batches_tracked")
            || name.ends_with(".relative_position_index")
            || pre_logits(name)
    };
    let (names, theirs): (Vec<String>, Vec<&String>) = found
        .iter()
        .map(|(name, theirs)| (stripped(name), theirs))
        .filter(|(name, _)| !says_nothing(name))
        .unzip();
    let mut renamed = BTreeMap::new();
    for (name, theirs) in names.iter().zip(theirs) {
        let ours = config.tensor_name(name);
        if renamed.insert(ours.clone(), theirs.clone()).is_some() {
            return Err(format!("it has {ours} twice, once as {theirs}"));
        }
    }
    let left_out = found.keys().map(stripped).any(|name| pre_logits(&name));
    let note = "the layer before the head of pre-training, \"pre_logits\", was left out".to_owned();
    Ok(Names { found: renamed, notes: left_out.then_some(note).into_iter().collect(), prefix: None })
}

/// The parts, up to a full stop, that all names begin with; none if there is one name only.
fn common_prefix<'a>(mut names: impl Iterator<Item = &'a String>) -> String {
    let Some(first) = names.next() else { return String::new() };
    let mut common: Option<&str> = None;
    for name in names {
        let common_so_far = common.unwrap_or(first);
        let same = common_so_far.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
        let end = common_so_far.as_bytes()[..same].iter().rposition(|byte| *byte == b'.');
        common = Some(end.map_or("", |end| &common_so_far[..=end]));
    }
    common.unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_common_prefix_ends_with_a_full_stop() {
        let common = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            common_prefix(names.iter())
        };
        assert_eq!(common(&["net.body.a", "net.body.b", "net.bo"]), "net.");
        assert_eq!(common(&["net.é.a", "net.è.b"]), "net.");
        assert_eq!(common(&["a.b.c", "a.b.d", "a.b.e"]), "a.b.");
        for none in [&[][..], &["a.b"], &["a.b", "c.b"], &["ab", "ac"], &["", "a."]] {
            assert_eq!(common(none), "");
        }
    }
}
