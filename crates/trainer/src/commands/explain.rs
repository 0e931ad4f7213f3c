//! `explain`: what a network's answers rest on.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use run_record::{ExplainMethod, visible, write_atomically};
use trainer::Error;
use trainer::look::explain::{
    Explained, Verdict, kernel_grid, maps, offered, position_tiles, strip, verdict,
};
use trainer::look::figure::{self, Figure};
use trainer::look::pictures::{Found, Picture, Unread, Upright};
use trainer::look::trained::Trained;
use trainer::process::lines::{note, say};
use trainer::process::paths::check_output;

use super::listen;
use super::predict::open;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Pictures of any size, folders of pictures, patterns, or - for standard input; none draws only what needs none.
    #[arg(value_name = "PICTURE")]
    pictures: Vec<PathBuf>,
    /// Weights of a run: its directory, a file, a network in weights/, or hf:ORG/NAME[@REVISION][/FILE] [default: those of
    /// the newest finished run, or without one the best in weights/].
    #[arg(long, value_name = "WEIGHTS")]
    weights: Option<PathBuf>,
    /// attention, rollout, gradcam, positions or kernels; repeatable [default: all that the network has].
    #[arg(long = "method", value_name = "METHOD")]
    methods: Vec<ExplainMethod>,
    /// The class that Grad-CAM is to find evidence for [default: the likeliest].
    #[arg(long)]
    class: Option<String>,
    /// Directory to write PNG and SVG files to.
    #[arg(long, value_name = "DIR", default_value = "explained")]
    out: PathBuf,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: String,
}

/// Side of a picture in a figure, in pixels.
const SIDE: u32 = 320;

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Error> {
    let stop = listen()?;
    let trained = open(args.weights.as_ref(), &args.device)?;
    let methods = methods(args, &trained)?;
    let class = args.class.as_ref().map(|name| class_number(&trained, name)).transpose()?;
    let about_pictures =
        methods.iter().any(|method| !matches!(method, ExplainMethod::Positions | ExplainMethod::Kernels));
    if args.pictures.is_empty() && about_pictures && !args.methods.is_empty() {
        return Err(Error::Usage("these methods explain pictures; name one".to_owned()));
    }
    let found = Found::new(&args.pictures, io::stdin().lock());
    found.notes.iter().for_each(|text| note(text));
    fs::create_dir_all(&args.out).map_err(Error::io(&args.out))?;
    let mut files = Files { directory: &args.out, inputs: inputs(&trained, &found), names: BTreeSet::new() };

    learned(&trained, &methods, &mut files)?;
    let total = found.pictures.len();
    let mut unread = 0;
    for picture in found.pictures {
        stop.check()?;
        let explained = picture.and_then(|picture| picture.read().map(|upright| (picture, upright)));
        let outcome = match explained {
            Ok((picture, upright)) => explain(&trained, &methods, class, &picture, upright, &mut files)?,
            Err(unread) => Err(unread),
        };
        if let Err(Unread { name, problem }) = outcome {
            note(&format!("{name}: {problem}"));
            unread += 1;
        }
    }
    if unread > 0 { Err(Error::Unread { unread, total }) } else { Ok(()) }
}

/// The methods to use; those that were asked for must be the network's.
fn methods(args: &Args, trained: &Trained) -> Result<Vec<ExplainMethod>, Error> {
    let offered = offered(trained.network.as_ref(), trained.card.recipe.data.image_size, trained.device)?;
    if let Some(missing) = args.methods.iter().find(|method| !offered.contains(method)) {
        let names: Vec<&str> = offered.iter().map(|method| method.as_str()).collect();
        return Err(Error::Usage(format!(
            "--method {}: {} has none; it has {}",
            missing.as_str(),
            trained.card.model,
            names.join(", ")
        )));
    }
    Ok(if args.methods.is_empty() { offered } else { args.methods.clone() })
}

fn class_number(trained: &Trained, name: &str) -> Result<i64, Error> {
    let classes = &trained.card.class_names;
    let found = classes.iter().position(|class| class == name);
    found.map(|number| number as i64).ok_or_else(|| {
        Error::Usage(format!("--class {name}: the network knows {}", run_record::first_few(classes)))
    })
}

/// What is learned and needs no picture.
fn learned(trained: &Trained, methods: &[ExplainMethod], files: &mut Files) -> Result<(), Error> {
    let (network, model) = (trained.network.as_ref(), trained.card.model.as_str());
    if methods.contains(&ExplainMethod::Kernels) {
        for (name, kernels) in network.kernels() {
            files.write(
                &format!("kernels-{}", name.replace(' ', "-")),
                &kernel_grid(model, name, &kernels)?,
            )?;
        }
    }
    if let (true, Some(similarity)) =
        (methods.contains(&ExplainMethod::Positions), network.position_similarity())
    {
        files.write("positions", &position_tiles(model, &similarity)?)?;
    }
    Ok(())
}

/// A figure of one picture.
fn explain(
    trained: &Trained,
    methods: &[ExplainMethod],
    class: Option<i64>,
    picture: &Picture,
    upright: Upright,
    files: &mut Files,
) -> Result<Result<(), Unread>, Error> {
    let name = picture.name();
    let Upright { image, remarks } = upright;
    remarks.iter().for_each(|remark| note(&format!("{name}: {remark}")));
    let network = trained.network.as_ref();
    let seen = trained.see(&[trained.frame.stored(image.clone())?])?;
    let Verdict { classes, shares } = verdict(network, &seen)?;
    let about = vec![class.unwrap_or(classes[0])];
    let class_names = &trained.card.class_names;
    let maps = maps(network, &seen, methods, &about, class_names)?.pop().unwrap_or_default();
    if maps.is_empty() {
        return Ok(Ok(()));
    }
    let said = class_names.get(classes[0] as usize).map_or("?", String::as_str);
    let caption = vec![format!("{} ({:.1} %)", visible(said), 100.0 * shares[0])];
    let (stem, title) = match picture {
        Picture::File(path) => {
            let part =
                |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
            (part(path.file_stem()), part(path.file_name()))
        }
        Picture::Bytes(_) => ("picture".to_owned(), "standard input".to_owned()),
    };
    let title = format!("{}: {}", trained.card.model, visible(&title));
    let row = Explained { picture: trained.frame.shown(image, SIDE)?, caption, maps };
    let titles: Vec<&str> = row.maps.iter().map(|map| map.title.as_str()).collect();
    let what = format!("{title}, called {said}: {}", titles.join(", "));
    let figure = strip(&title, what, std::slice::from_ref(&row))?;
    files.write(&format!("{stem}.explained"), &figure)?;
    Ok(Ok(()))
}

/// Where figures go: no two to one name, and none over what is read.
struct Files<'a> {
    directory: &'a Path,
    inputs: Vec<PathBuf>,
    names: BTreeSet<String>,
}

impl Files<'_> {
    fn write(&mut self, name: &str, figure: &Figure) -> Result<(), Error> {
        let numbered = |n: u32| if n == 1 { name.to_owned() } else { format!("{name}-{n}") };
        let name = (1..).map(numbered).find(|name| !self.names.contains(name)).unwrap_or_default();
        let inputs: Vec<&Path> = self.inputs.iter().map(PathBuf::as_path).collect();
        for (extension, bytes) in
            [("png", figure::png(&figure.sheet())?), ("svg", figure.svg()?.into_bytes())]
        {
            let path = self.directory.join(format!("{name}.{extension}"));
            check_output(&path, &inputs)?;
            write_atomically(&path, &bytes).map_err(Error::io(&path))?;
        }
        say(&self.directory.join(format!("{name}.png")).display().to_string());
        self.names.insert(name);
        Ok(())
    }
}

fn inputs(trained: &Trained, found: &Found) -> Vec<PathBuf> {
    let files = found.pictures.iter().flatten().filter_map(|picture| match picture {
        Picture::File(path) => Some(path.clone()),
        Picture::Bytes(_) => None,
    });
    files.chain([trained.path.clone()]).collect()
}
