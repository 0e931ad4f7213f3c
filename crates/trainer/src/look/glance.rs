//! Explanations of a few validation pictures while a network trains, as its recipe asks for.

use core_layers::Model;
use data_cifar::ImageSet;
use image::RgbImage;
use run_record::{ExplainMethod, ExplainRecipe, Recipe, visible};
use tch::{Device, Kind, Tensor};

use crate::Error;
use crate::data::presentation::Presentation;
use crate::data::source::Subset;
use crate::look::explain::{Explained, Verdict, kernel_grid, maps, position_tiles, strip, verdict};
use crate::look::figure::{Figure, png};
use crate::look::trained::Frame;
use crate::run::directory::RunDir;

/// Side of a picture in pixels; several stand side by side, over and over.
const SIDE: u32 = 224;

/// Pictures to look at again and again. Looking draws nothing at random and changes nothing of the network.
#[derive(Debug)]
pub struct Glance {
    recipe: ExplainRecipe,
    epochs: u32,
    class_names: Vec<String>,
    model: String,
    /// As the network sees them, `[B, 3, S, S]`.
    images: Tensor,
    pictures: Vec<RgbImage>,
    labels: Vec<i64>,
}

impl Glance {
    /// The pictures that a recipe has looked at, spread evenly over a part; `None` if it has none.
    ///
    /// # Errors
    /// A picture that can no longer be read.
    pub fn new(
        recipe: &Recipe,
        class_names: &[String],
        part: &Subset,
        presentation: &Presentation,
    ) -> Result<Option<Self>, Error> {
        let Some(explain) = recipe.explain.clone() else { return Ok(None) };
        let all = part.indices();
        let count = explain.pictures.min(all.len());
        let order: Vec<i64> = (0..count).map(|n| all[n * all.len() / count]).collect();
        let Some(batch) = part.set.batches(&order, count.max(1))?.next().transpose()? else {
            return Ok(None);
        };
        Ok(Some(Self {
            recipe: explain,
            epochs: recipe.train.epochs,
            class_names: class_names.to_vec(),
            model: recipe.model.name.clone(),
            images: presentation.plain(&batch.images)?,
            pictures: shown_pictures(part.set, &order, &Frame::of(recipe), SIDE)?,
            labels: Vec::try_from(&batch.labels)?,
        }))
    }

    /// Draws what the network looks at after an epoch into the run's `figures/`, if the recipe wants that of this epoch:
    /// `explain-0010.png` over the pictures, and `kernels-…`, `positions-0010.png`, each as SVG too. Returned is the
    /// first.
    ///
    /// # Errors
    /// libtorch's refusal, or a disk that is full.
    pub fn draw(&self, network: &dyn Model, epoch: u32, run: &RunDir) -> Result<Option<RgbImage>, Error> {
        if !self.recipe.is_due(epoch, self.epochs) {
            return Ok(None);
        }
        let write = |name: &str, figure: &Figure| {
            let sheet = figure.sheet();
            run.write_figure(&format!("{name}-{epoch:04}.png"), &png(&sheet)?)?;
            run.write_figure(&format!("{name}-{epoch:04}.svg"), figure.svg()?.as_bytes())?;
            Ok::<_, Error>(sheet)
        };
        let title = format!("{}, epoch {epoch}", self.model);
        let over_pictures = self.explained(network)?;
        let drawn = match over_pictures.first().is_some_and(|first| !first.maps.is_empty()) {
            true => {
                let names: Vec<&str> = self.recipe.methods.iter().map(|method| method.as_str()).collect();
                let what = format!("{title}: {} over validation pictures", names.join(", "));
                Some(write("explain", &strip(&title, what, &over_pictures)?)?)
            }
            false => None,
        };
        if self.recipe.methods.contains(&ExplainMethod::Kernels) {
            for (name, kernels) in network.kernels() {
                write(&format!("kernels-{}", name.replace(' ', "-")), &kernel_grid(&title, name, &kernels)?)?;
            }
        }
        if let (true, Some(similarity)) =
            (self.recipe.methods.contains(&ExplainMethod::Positions), network.position_similarity())
        {
            write("positions", &position_tiles(&title, &similarity)?)?;
        }
        Ok(drawn)
    }

    fn explained(&self, network: &dyn Model) -> Result<Vec<Explained>, Error> {
        let Verdict { classes, shares } = verdict(network, &self.images)?;
        // Of the true class, so that pictures of one epoch can be compared with those of another.
        let maps = maps(network, &self.images, &self.recipe.methods, &self.labels, &self.class_names)?;
        let name = |class: i64| visible(self.class_names.get(class as usize).map_or("?", String::as_str));
        let rows = self.pictures.iter().zip(maps).enumerate();
        Ok(rows
            .map(|(n, (picture, maps))| {
                let share = 100.0 * shares[n];
                let caption = vec![
                    format!("is {}", name(self.labels[n])),
                    format!("called {} ({share:.1} %)", name(classes[n])),
                ];
                Explained { picture: picture.clone(), caption, maps }
            })
            .collect())
    }
}

/// Images of a set as they are looked at.
///
/// # Errors
/// A picture that can no longer be read.
pub fn shown_pictures(
    set: &ImageSet,
    positions: &[i64],
    frame: &Frame,
    side: u32,
) -> Result<Vec<RgbImage>, Error> {
    let mut pictures = Vec::new();
    for batch in set.batches(positions, positions.len().max(1))? {
        let bytes = batch?.images.f_to_device(Device::Cpu)?;
        for n in 0..bytes.size()[0] {
            pictures.push(frame.shown(picture(&bytes.f_get(n)?)?, side)?);
        }
    }
    Ok(pictures)
}

/// Bytes `[3, H, W]` as a picture.
fn picture(image: &Tensor) -> Result<data_cifar::RgbImage, Error> {
    let (height, width) = (image.size()[1] as u32, image.size()[2] as u32);
    let pixels = image.f_to_kind(Kind::Uint8)?.f_permute([1, 2, 0])?.f_contiguous()?.f_flatten(0, -1)?;
    Ok(data_cifar::RgbImage { width, height, pixels: Vec::try_from(pixels)? })
}
