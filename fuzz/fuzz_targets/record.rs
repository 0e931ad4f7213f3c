//! `record.json`: what is accepted can be written, and then says the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use run_record::RunRecord;

fuzz_target!(|text: &str| {
    if let Ok(record) = RunRecord::parse(text) {
        let written = serde_json::to_string(&record).expect("a record can be written");
        let again = RunRecord::parse(&written).expect("what was written can be read");
        assert_eq!(serde_json::to_string(&again).expect("it can be written again"), written);
    }
});
