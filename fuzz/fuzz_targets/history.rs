//! `history.csv`: rows that are accepted can be written, and then say the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use run_record::EpochStats;

fn rows(text: &[u8]) -> Option<Vec<EpochStats>> {
    csv::Reader::from_reader(text).into_deserialize().collect::<Result<_, _>>().ok()
}

fn written(rows: &[EpochStats]) -> Vec<u8> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    rows.iter().for_each(|row| writer.serialize(row).expect("a row can be written"));
    writer.into_inner().expect("memory can be written")
}

fuzz_target!(|text: &[u8]| {
    if let Some(rows_read) = rows(text) {
        let once = written(&rows_read);
        let again = rows(&once).expect("what was written can be read");
        assert_eq!(written(&again), once);
    }
});
