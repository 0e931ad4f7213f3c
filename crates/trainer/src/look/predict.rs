//! What a network says of pictures: the likeliest classes of each, with their probabilities.

use data_cifar::RgbImage;
use rayon::prelude::*;
use tch::{Device, Kind};
use torch_ext::Frozen;

use crate::Error;
use crate::look::pictures::{Found, Picture, Unread, Upright};
use crate::look::trained::{Frame, Trained};
use crate::optim::precision::Precision;
use crate::process::signals::Stop;

/// Pictures that pass the network together.
const BATCH: usize = 32;

/// The answer for one picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// What the picture is called.
    pub name: String,
    /// The likeliest classes with their probabilities, best first.
    pub top: Vec<(String, f64)>,
    /// What was done to the picture that its owner may want to know.
    pub remarks: Vec<&'static str>,
}

/// Asks the network about every picture in order, computing in `precision`. `tell` is given each answer, or why there is none, and says whether
/// to go on. No more than a batch of pictures is in memory, small, besides one as large as it is for each processor.
/// Returned is how many pictures could not be read.
///
/// # Errors
/// libtorch's refusal, somebody who wants to stop, or what `tell` says.
pub fn predict(
    trained: &Trained,
    precision: Precision,
    found: Found,
    top: usize,
    stop: &Stop,
    mut tell: impl FnMut(Result<Prediction, Unread>) -> Result<bool, Error>,
) -> Result<usize, Error> {
    let (mut unread, frame) = (0, trained.frame);
    let _frozen = Frozen::new()?;
    for chunk in found.pictures.chunks(BATCH) {
        stop.check()?;
        let read: Vec<_> = chunk.par_iter().map(|picture| stored(frame, picture)).collect();
        let pictures: Vec<RgbImage> = read.iter().flatten().map(|(_, seen)| seen.image.clone()).collect();
        let mut tops =
            if pictures.is_empty() { Vec::new() } else { top_classes(trained, precision, &pictures, top)? }
                .into_iter();
        for picture in read {
            let answer = picture.map(|(name, Upright { remarks, .. })| {
                let top = tops.next().unwrap_or_default();
                Prediction { name, top, remarks }
            });
            unread += usize::from(answer.is_err());
            if !tell(answer)? {
                return Ok(unread);
            }
        }
    }
    Ok(unread)
}

/// A picture's name, and the picture as a data set keeps it.
fn stored(frame: Frame, picture: &Result<Picture, Unread>) -> Result<(String, Upright), Unread> {
    let picture = picture.as_ref().map_err(Unread::clone)?;
    let Upright { image, remarks } = picture.read()?;
    let image = frame.stored(image);
    let image = image.map_err(|error| Unread { name: picture.name(), problem: error.to_string() })?;
    Ok((picture.name(), Upright { image, remarks }))
}

fn top_classes(
    trained: &Trained,
    precision: Precision,
    pictures: &[RgbImage],
    top: usize,
) -> Result<Vec<Vec<(String, f64)>>, Error> {
    let classes = &trained.card.class_names;
    let logits = tch::no_grad(|| -> Result<_, Error> {
        let images = trained.see(pictures)?;
        let _rounding = precision.tf32()?;
        let _narrow = precision.autocast(trained.device)?;
        Ok(trained.network.forward_t(&images, false))
    })?;
    let probabilities = logits.f_softmax(1, Kind::Double)?.f_to_device(Device::Cpu)?;
    let (shares, numbers) = probabilities.f_topk(top.min(classes.len()) as i64, 1, true, true)?;
    let shares: Vec<Vec<f64>> = Vec::try_from(&shares)?;
    let numbers: Vec<Vec<i64>> = Vec::try_from(&numbers)?;
    let name = |number: i64| classes.get(number as usize).cloned().unwrap_or_default();
    let rows = numbers.into_iter().zip(shares);
    Ok(rows.map(|(numbers, shares)| numbers.into_iter().map(name).zip(shares).collect()).collect())
}
