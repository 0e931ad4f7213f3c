//! What answers rest on, drawn: attention and Grad-CAM over pictures, and what a network has learned to look for.

use core_layers::{Model, grad_cam};
use image::RgbImage;
use image::imageops::{self, FilterType};
use run_record::{ExplainMethod, visible};
use tch::{Device, Kind, Tensor};

use crate::Error;
use crate::look::colours::{Scheme, over, painted, range};
use crate::look::figure::{Figure, LINE, MARGIN, Style, TITLE, cut};

/// The methods that show something of a network.
pub fn offered(network: &dyn Model, image_size: i64, device: Device) -> Result<Vec<ExplainMethod>, Error> {
    let image = Tensor::f_zeros([1, 3, image_size, image_size], (Kind::Float, device))?;
    let has = |method: &ExplainMethod| match method {
        ExplainMethod::Attention => !network.attention_layers(&image).is_empty(),
        ExplainMethod::Rollout => network.attention_rollout(&image).is_some(),
        ExplainMethod::GradCam => true,
        ExplainMethod::Positions => network.position_similarity().is_some(),
        ExplainMethod::Kernels => !network.kernels().is_empty(),
    };
    Ok(tch::no_grad(|| ExplainMethod::ALL.into_iter().filter(has).collect()))
}

/// A picture and what is laid over it.
#[derive(Debug)]
pub struct Explained {
    /// As it is looked at: a square.
    pub picture: RgbImage,
    /// Lines beneath it.
    pub caption: Vec<String>,
    /// What each method says.
    pub maps: Vec<Map>,
}

/// Numbers for places in a picture.
#[derive(Debug)]
pub struct Map {
    /// What it shows.
    pub title: String,
    /// f32 `[h, w]` on the CPU.
    pub values: Tensor,
    /// What the ends of the colours mean.
    pub ends: [String; 2],
}

/// What a network says of images.
#[derive(Debug)]
pub struct Verdict {
    /// The likeliest class of each image.
    pub classes: Vec<i64>,
    /// Its probability.
    pub shares: Vec<f64>,
}

/// The likeliest classes of images as the network sees them, `[B, 3, S, S]`.
///
/// # Errors
/// libtorch's refusal.
pub fn verdict(network: &dyn Model, images: &Tensor) -> Result<Verdict, Error> {
    let logits = tch::no_grad(|| network.forward_t(images, false));
    let (shares, classes) = logits.f_softmax(1, Kind::Double)?.f_max_dim(1, false)?;
    Ok(Verdict { classes: Vec::try_from(&classes)?, shares: Vec::try_from(&shares)? })
}

/// The maps of each image `[B, 3, S, S]` by each of `methods` that is about pictures. Grad-CAM is of `classes`, one for
/// each image, named in `class_names`.
///
/// # Errors
/// libtorch's refusal.
pub fn maps(
    network: &dyn Model,
    images: &Tensor,
    methods: &[ExplainMethod],
    classes: &[i64],
    class_names: &[String],
) -> Result<Vec<Vec<Map>>, Error> {
    let mut all: Vec<Vec<Map>> = classes.iter().map(|_| Vec::new()).collect();
    let mut add = |title: &dyn Fn(usize) -> String, maps: &Tensor, ends: fn(f32, f32, f32) -> [String; 2]| {
        for (n, of_image) in all.iter_mut().enumerate() {
            let values = maps.f_get(n as i64)?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
            let (low, high) = range(&Vec::<f32>::try_from(values.f_flatten(0, -1)?)?);
            let mean = values.f_mean(Kind::Float)?.f_double_value(&[])? as f32;
            let ends = ends(low, high, mean);
            of_image.push(Map { title: title(n), values, ends });
        }
        Ok::<(), Error>(())
    };
    let heads = |maps: &Tensor| maps.f_mean_dim([1i64].as_slice(), false, Kind::Float);
    for method in methods {
        match method {
            ExplainMethod::Attention => {
                for (name, layer) in tch::no_grad(|| network.attention_layers(images)) {
                    add(&|_| name.clone(), &heads(&layer)?, beside_mean)?;
                }
            }
            ExplainMethod::Rollout => {
                if let Some(rolled) = tch::no_grad(|| network.attention_rollout(images)) {
                    add(&|_| "attention rollout".to_owned(), &heads(&rolled)?, beside_mean)?;
                }
            }
            ExplainMethod::GradCam => {
                let cam =
                    grad_cam(network, images, &Tensor::from_slice(classes).f_to_device(images.device())?)?;
                let name = |n: usize| class_names.get(classes[n] as usize).map_or("?", String::as_str);
                add(&|n| format!("Grad-CAM: {}", visible(name(n))), &cam, evidence)?;
            }
            ExplainMethod::Positions | ExplainMethod::Kernels => {}
        }
    }
    Ok(all)
}

/// Shares of attention beside their mean: in some networks they sum to one in every window, in others a class token
/// keeps a part for itself.
fn beside_mean(low: f32, high: f32, mean: f32) -> [String; 2] {
    let times = |share: f32| format!("{:.1}", share / mean.max(f32::MIN_POSITIVE));
    [times(low), format!("{} × mean", times(high))]
}

fn evidence(_low: f32, high: f32, _mean: f32) -> [String; 2] {
    let most = if high > 0.0 { "most evidence" } else { "no evidence anywhere" };
    ["0".to_owned(), most.to_owned()]
}

/// Pixels between panels.
const GAP: u32 = 16;
/// Pixels of a colour bar from top to bottom.
const BAR: u32 = 10;

/// Pictures beneath each other, each beside itself with a map over it, and the map's scale beneath.
///
/// # Errors
/// libtorch's refusal.
pub fn strip(title: &str, description: String, rows: &[Explained]) -> Result<Figure, Error> {
    let mut figure = Figure::new(title, description);
    let mut y = MARGIN + TITLE;
    for Explained { picture, caption, maps } in rows {
        let (width, height) = picture.dimensions();
        let lines = caption.len().max(1) as u32;
        figure.picture(MARGIN, y + LINE, picture.clone());
        for (line, text) in (0..).zip(caption) {
            figure.text(
                MARGIN,
                y + LINE + height + 4 + line * LINE,
                Style::Left,
                cut(text, width, Style::Left),
            );
        }
        for (number, map) in (1..).zip(maps) {
            let x = MARGIN + number * (width + GAP);
            figure.text(x, y, Style::Left, cut(&map.title, width, Style::Left));
            figure.picture(x, y + LINE, laid_over(picture, &map.values)?);
            let below = y + LINE + height + 4;
            figure.picture(x, below, Scheme::Inferno.bar(width, BAR));
            let [low, high] = &map.ends;
            figure.text(x, below + BAR + 2, Style::Left, low.clone());
            figure.text(x + width, below + BAR + 2, Style::Right, high.clone());
        }
        y += LINE + height + 4 + (lines * LINE).max(BAR + 2 + LINE) + GAP;
    }
    Ok(figure)
}

/// Pictures in a row of a gallery.
const GALLERY: u32 = 4;

/// Pictures of one size with lines of text beneath, in rows.
pub fn gallery(title: &str, pictures: &[(RgbImage, Vec<String>)]) -> Figure {
    let mut figure = Figure::new(title, title);
    let lines = pictures.iter().map(|(_, caption)| caption.len()).max().unwrap_or(0) as u32;
    for (n, (picture, caption)) in (0..).zip(pictures) {
        let (width, height) = picture.dimensions();
        let x = MARGIN + n % GALLERY * (width + GAP);
        let y = MARGIN + TITLE + n / GALLERY * (height + lines * LINE + GAP);
        figure.picture(x, y, picture.clone());
        for (line, text) in (0..).zip(caption) {
            figure.text(x, y + height + 4 + line * LINE, Style::Left, cut(text, width, Style::Left));
        }
    }
    figure
}

/// The map's colours over the picture, the map enlarged smoothly.
fn laid_over(picture: &RgbImage, values: &Tensor) -> Result<RgbImage, Error> {
    let (width, height) = picture.dimensions();
    let size = [i64::from(height), i64::from(width)];
    let large = values.f_unsqueeze(0)?.f_unsqueeze(0)?.f_upsample_bilinear2d(size, false, None, None)?;
    // The scale is the map's own; enlarging adds nothing beyond it.
    let ends = range(&Vec::<f32>::try_from(values.f_flatten(0, -1)?)?);
    let large = Vec::<f32>::try_from(large.f_flatten(0, -1)?)?;
    Ok(over(picture, &painted(&large, width, ends, Scheme::Inferno)))
}

/// Kernels in a picture, at most; the first are shown.
const MOST_KERNELS: usize = 256;
/// Kernels in a row.
const COLUMNS: u32 = 16;
/// Pixels that a kernel's side is enlarged to, as far as whole factors go.
const KERNEL: u32 = 40;
/// Pixels between kernels.
const KERNEL_GAP: u32 = 2;

/// Kernels `[N, 3, k, k]` in their colours, or `[N, 1, k, k]` by a colour map, side by side; dark is the least weight of
/// all, light the largest.
///
/// # Errors
/// libtorch's refusal.
pub fn kernel_grid(model: &str, name: &str, kernels: &Tensor) -> Result<Figure, Error> {
    let size = kernels.size();
    let (count, channels, side) = (size[0] as usize, size[1], size[2] as u32);
    let shown = count.min(MOST_KERNELS);
    let values = kernels.f_narrow(0, 0, shown as i64)?.f_to_device(Device::Cpu)?.f_permute([0, 2, 3, 1])?;
    let values = Vec::<f32>::try_from(values.f_contiguous()?.f_flatten(0, -1)?)?;
    let (low, high) = range(&values);
    let pixels = (side * side) as usize * channels as usize;
    let span = f64::from(high - low).max(f64::MIN_POSITIVE);
    let byte = |value: f32| (255.0 * f64::from(value - low) / span).round() as u8;
    let cells = values.chunks(pixels).map(|kernel| match channels {
        3 => RgbImage::from_fn(side, side, |x, y| {
            let at = 3 * (y * side + x) as usize;
            image::Rgb([0, 1, 2].map(|c| byte(kernel[at + c])))
        }),
        _ => painted(kernel, side, (low, high), Scheme::Viridis),
    });
    let mut figure = Figure::new(&format!("{model}: {name}"), format!("{name} of {model}"));
    let factor = (KERNEL / side).max(2);
    let step = side * factor + KERNEL_GAP;
    let top = MARGIN + TITLE;
    figure.picture(MARGIN, top, mosaic(cells, COLUMNS.min(shown as u32), factor, KERNEL_GAP));
    let (rows, columns) = ((shown as u32).div_ceil(COLUMNS), COLUMNS.min(shown as u32));
    let (width, mut y) = (columns * step - KERNEL_GAP, top + rows * step + 4);
    if channels == 3 {
        figure.text(MARGIN, y, Style::Left, format!("red, green, blue: dark {low:.3}, light {high:.3}"));
    } else {
        figure.picture(MARGIN, y, Scheme::Viridis.bar(width, BAR));
        y += BAR + 2;
        figure.text(MARGIN, y, Style::Left, format!("{low:.3}"));
        figure.text(MARGIN + width, y, Style::Right, format!("{high:.3}"));
    }
    if shown < count {
        figure.text(MARGIN, y + LINE, Style::Left, format!("the first {shown} of {count}"));
    }
    Ok(figure)
}

/// Pictures of one size, each enlarged by a whole factor, side by side in rows on white.
fn mosaic(cells: impl Iterator<Item = RgbImage>, columns: u32, factor: u32, gap: u32) -> RgbImage {
    let cells: Vec<RgbImage> = cells.collect();
    let (width, height) = cells.first().map_or((1, 1), RgbImage::dimensions);
    let (across, down) = (width * factor + gap, height * factor + gap);
    let rows = (cells.len() as u32).div_ceil(columns.max(1)).max(1);
    let mut all = RgbImage::from_pixel(columns * across - gap, rows * down - gap, image::Rgb([255; 3]));
    for (n, cell) in (0..).zip(cells) {
        let large = imageops::resize(&cell, width * factor, height * factor, FilterType::Nearest);
        imageops::replace(&mut all, &large, (n % columns * across).into(), (n / columns * down).into());
    }
    all
}

/// Pixels that the tiles of all positions take together, about.
const TILES: u32 = 640;

/// Similarities `[h, w, h, w]` as a tile per position, in its place, of the similarity to every other.
///
/// # Errors
/// libtorch's refusal.
pub fn position_tiles(model: &str, similarity: &Tensor) -> Result<Figure, Error> {
    let size = similarity.size();
    let (height, width) = (size[0] as u32, size[1] as u32);
    let values = similarity.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
    let values = Vec::<f32>::try_from(values.f_flatten(0, -1)?)?;
    let ends = range(&values);
    let factor = (TILES / (width * width).max(1)).max(1);
    let (tile_width, tile_height) = (width * factor, height * factor);
    let gap = 4;
    let description = format!("similarity of position embeddings of {model}");
    let mut figure = Figure::new(&format!("{model}: position embeddings"), description);
    let top = MARGIN + TITLE;
    let tiles =
        values.chunks((width * height) as usize).map(|tile| painted(tile, width, ends, Scheme::Viridis));
    figure.picture(MARGIN, top, mosaic(tiles, width, factor, gap));
    let (across, y) = (width * (tile_width + gap) - gap, top + height * (tile_height + gap) + 4);
    figure.picture(MARGIN, y, Scheme::Viridis.bar(across, BAR));
    figure.text(MARGIN, y + BAR + 2, Style::Left, format!("{:.2}", ends.0));
    figure.text(MARGIN + across, y + BAR + 2, Style::Right, format!("cosine {:.2}", ends.1));
    Ok(figure)
}
