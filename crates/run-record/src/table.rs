//! Tables as CSV. The columns are the fields of a row, by their names and in their order.

use serde::Serialize;

/// The columns of a table of such rows.
///
/// # Errors
/// A row that CSV cannot hold.
pub fn columns<T: Serialize + Default>() -> csv::Result<csv::StringRecord> {
    // A header is written with a row only.
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.serialize(T::default())?;
    let text = writer.into_inner().map_err(csv::IntoInnerError::into_error)?;
    csv::Reader::from_reader(text.as_slice()).headers().cloned()
}

/// Rows under a header, which is there without any row too.
///
/// # Errors
/// A row that CSV cannot hold.
pub fn to_csv<T: Serialize + Default>(rows: &[T]) -> csv::Result<Vec<u8>> {
    let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
    writer.write_record(&columns::<T>()?)?;
    rows.iter().try_for_each(|row| writer.serialize(row))?;
    Ok(writer.into_inner().map_err(csv::IntoInnerError::into_error)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EpochStats, ResultRow, SummaryRow};

    /// The columns that a section of the documentation lists, in its order.
    fn documented(section: &str) -> Vec<&'static str> {
        let text = include_str!("../../../docs/results-schema.md");
        let (_, text) = text.split_once(&format!("## {section}\n")).unwrap();
        let text = text.split("\n## ").next().unwrap();
        let rows = text.lines().filter(|line| line.starts_with("| `"));
        let names = rows.flat_map(|row| row.split(" | ").next().unwrap().split('`').skip(1).step_by(2));
        names.collect()
    }

    #[test]
    fn the_columns_are_the_documented_ones() {
        assert_eq!(columns::<ResultRow>().unwrap(), documented("results.csv"));
        assert_eq!(columns::<SummaryRow>().unwrap(), documented("summary.csv"));
    }

    #[test]
    fn a_header_needs_no_rows_and_rows_survive_a_round_trip() {
        let header = "epoch,lr,train_loss,train_top1,train_top5,val_loss,val_top1,val_top5,ema_val_loss,ema_val_top1,\
                      ema_val_top5,images_per_second,train_seconds,val_seconds\n";
        assert_eq!(to_csv::<EpochStats>(&[]).unwrap(), header.as_bytes());
        let rows = [
            EpochStats { epoch: 1, lr: 0.1 + 0.2, val_loss: 1.0 / 3.0, ..EpochStats::default() },
            EpochStats { epoch: 2, ema_val_top1: Some(2.0 / 7.0), ..EpochStats::default() },
        ];
        let text = to_csv(&rows).unwrap();
        let read =
            csv::Reader::from_reader(text.as_slice()).deserialize().collect::<csv::Result<Vec<EpochStats>>>();
        assert_eq!(read.unwrap(), rows);
    }
}
