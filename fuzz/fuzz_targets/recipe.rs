//! The text of a recipe: what is accepted can be written, and then says the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use run_record::Recipe;

fuzz_target!(|text: &str| {
    if let Ok(recipe) = Recipe::parse(text) {
        let written = toml::to_string(&recipe).expect("a valid recipe can be written");
        let again = Recipe::parse(&written).expect("what was written can be read");
        // As text, because a number that is none differs from itself.
        assert_eq!(toml::to_string(&again).expect("it can be written again"), written);
    }
});
