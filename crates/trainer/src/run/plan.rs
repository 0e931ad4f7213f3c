//! A run before it begins: all that can be known of it without decoding a picture, and all that is wrong with it.

use std::fs;
use std::path::PathBuf;

use core_layers::Model;
use data_cifar::ChannelStats;
use run_record::{InitialWeights, Recipe};
use tch::Device;
use tch::nn::VarStore;

use crate::Error;
use crate::data::presentation::Presentation;
use crate::data::source::{self, Listing, Purpose, Source};
use crate::network::build::{architecture, check_batch_norm, network_bytes, seed_initial_weights};
use crate::network::hub::Reference;
use crate::network::located;
use crate::network::registry::Architecture;
use crate::network::weights::{self, Head, WeightsFile};
use crate::optim::schedule::LearningRate;
use crate::process::memory::{Budget, Limit, in_words};
use crate::process::signals::Stop;
use crate::run::checkpoint::{self, Checkpoint, CheckpointError};
use crate::run::directory::{self, Earlier, RunDir};
use crate::run::recipes::Resolved;
use crate::run::request::Request;
use crate::run::state::KEPT;

/// A run that can begin, as far as can be known.
#[derive(Debug)]
pub struct Plan {
    /// The recipe, with the weights it starts from.
    pub resolved: Resolved,
    /// The network's description.
    pub architecture: Architecture,
    /// The network, with the weights it starts from.
    pub network: Box<dyn Model>,
    /// Its tensors.
    pub vs: VarStore,
    /// The data, not decoded.
    pub listing: Listing,
    /// Decode pictures as they are needed.
    pub stream: bool,
    /// The run's directory.
    pub path: PathBuf,
    /// The same, locked, if it exists.
    pub run: Option<RunDir>,
    /// What it holds.
    pub earlier: Earlier,
    /// The checkpoint to go on from.
    pub checkpoint: Option<Checkpoint>,
    /// What memory it takes.
    pub memory: Budget,
    /// What is worth saying before it begins.
    pub notes: Vec<String>,
}

impl Plan {
    /// Reads and checks everything but the pictures. Nothing is written. What is worth saying is said, whatever comes of
    /// it.
    ///
    /// # Errors
    /// All that is wrong, at once.
    pub fn resolve(request: &Request) -> Result<Self, Error> {
        Self::of(request, request.resolved.clone())
    }

    /// The same of this recipe, and not the request's.
    ///
    /// # Errors
    /// All that is wrong, at once.
    pub fn of(request: &Request, resolved: Resolved) -> Result<Self, Error> {
        let mut notes = Vec::new();
        let plan = Self::with_notes(request, resolved, &mut notes);
        let model = &request.resolved.recipe.model.name;
        notes.iter().for_each(|note| request.output.say(&format!("{model}: {note}")));
        plan.map(|plan| Self { notes, ..plan })
    }

    fn with_notes(request: &Request, mut resolved: Resolved, notes: &mut Vec<String>) -> Result<Self, Error> {
        let mut problems = Problems::default();
        if request.deterministic && request.device.is_cuda() {
            notes.push(
                "deterministic algorithms only: slower, by how much depends on network and card".to_owned(),
            );
        }
        let (writes, processes) = (request.peers.is_first(), request.peers.processes());
        if request.weights.is_some() {
            resolved.make_custom();
        }
        let path = request.run_path(&resolved.preset);
        // The first of several processes alone has to do with the directory and the weights to start from.
        let run = if writes { problems.take(RunDir::existing(&path)).flatten() } else { None };
        if writes && run.is_none() && problems.0.is_empty() {
            problems.take(directory::check_place(&path));
        }
        // What a run began with need not be there any more.
        let earlier = run.as_ref().filter(|_| !request.fresh);
        let weights = match writes {
            true => problems.take(initial_weights(request, &mut resolved.recipe, earlier)),
            false => Some(None),
        };
        problems.take(check_shares(&resolved.recipe, processes));
        if writes && weights.is_some() {
            problems.take(check_freezing(&resolved.recipe));
        }
        let recipe = &resolved.recipe;
        let found = match (earlier, &weights) {
            (Some(run), Some(_)) => {
                problems.take(run.find(recipe, request.seed, request.precision, request.tests))
            }
            _ => Some(Earlier::Nothing),
        };
        let checkpoint = match (earlier, &found) {
            (Some(run), Some(Earlier::Unfinished(_))) => {
                problems.take(run.tidy().and_then(|()| newest_checkpoint(run, notes))).flatten()
            }
            _ => None,
        };

        let listing = listed(request, recipe, &mut problems, notes);
        let classes = listing.as_ref().map(|listing| listing.class_names.len() as i64);
        let classes = classes.or(source::class_count(recipe.dataset));
        problems.take(Presentation::new(recipe, &ChannelStats::UNIT, classes.unwrap_or(2), Device::Cpu));
        let architecture = problems.take(architecture(recipe, classes));

        let memory = problems.take(Budget::new(
            listing.as_ref().map_or(0, Listing::bytes),
            architecture.as_ref().map_or(0, |architecture| network_bytes(recipe, architecture)),
            request.device,
        ));
        problems.take(memory.as_ref().map_or(Ok(()), Budget::check));
        // The weights fit a network or not whatever else is wrong, but large networks take seconds to be drawn.
        let wanted = problems.0.is_empty() || recipe.initial_weights.is_some();
        let network = architecture.filter(|_| wanted).and_then(|architecture| {
            let starts_elsewhere = checkpoint.is_some() || matches!(found, Some(Earlier::Finished(_)));
            let initial = recipe.initial_weights.as_ref().filter(|_| !starts_elsewhere);
            let class_names = listing.as_ref().map(|listing| listing.class_names.as_slice());
            let initial = initial.map(|initial| (initial, weights.flatten(), class_names));
            problems
                .take(build(request, &architecture, initial, notes))
                .map(|(vs, network)| (architecture, vs, network))
        });
        if let (Some((architecture, vs, network)), Some(listing)) = (&network, &listing) {
            let images = listing.parts.train.len();
            problems.take(check_batch_norm(recipe, architecture, vs, network.as_ref(), images, processes));
            let has_one = vs.variables().keys().any(|name| name.ends_with("running_var"));
            if recipe.train.sync_batch_norm && !has_one {
                let without = "train.sync_batch_norm is without effect: this network has no batch norm";
                notes.push(without.to_owned());
            }
        }
        match (network, listing, found, memory) {
            (Some((architecture, vs, network)), Some(listing), Some(found), Some(memory))
                if problems.0.is_empty() =>
            {
                let stream = streams(request, &memory, &listing, notes);
                Ok(Self {
                    resolved,
                    architecture,
                    network,
                    vs,
                    listing,
                    stream,
                    path,
                    run,
                    earlier: found,
                    checkpoint,
                    memory,
                    notes: Vec::new(),
                })
            }
            _ => Err(Error::several(problems.0)),
        }
    }
}

impl Plan {
    /// Reads the data, and checks again what depends on how many pictures could be decoded.
    ///
    /// # Errors
    /// Those of [`Listing::read`], or of pictures that are too few now.
    pub fn read_data(&mut self, request: &Request, stop: &Stop) -> Result<Source, Error> {
        let (recipe, output) = (&self.resolved.recipe, request.output);
        let source = self.listing.read(recipe, self.stream, stop, &mut |text| output.say(text))?;
        let images = source.parts.train.len();
        let mut problems = Problems(source.parts.judge(&source.class_names, recipe).0);
        if images != self.listing.parts.train.len() {
            problems.take(LearningRate::new(recipe, images).check());
            problems.take(self.check_batch_norm(images, request.peers.processes()));
        }
        if problems.0.is_empty() { Ok(source) } else { Err(Error::several(problems.0)) }
    }

    fn check_batch_norm(&self, images: usize, processes: usize) -> Result<(), Error> {
        let Self { resolved: Resolved { recipe, .. }, architecture, vs, network, .. } = self;
        check_batch_norm(recipe, architecture, vs, network.as_ref(), images, processes)
    }

    /// The run's directory, locked, and made if it was not there.
    ///
    /// # Errors
    /// Those of [`RunDir::open`], or another run that began in it meanwhile.
    pub fn open_run(&mut self, request: &Request) -> Result<RunDir, Error> {
        if let Some(run) = self.run.take() {
            return Ok(run);
        }
        let run = RunDir::open(&self.path)?;
        match run.find(&self.resolved.recipe, request.seed, request.precision, request.tests)? {
            Earlier::Nothing => Ok(run),
            // This plan would take its place.
            Earlier::Unfinished(_) | Earlier::Finished(_) => Err(Error::RunDir {
                path: self.path.clone(),
                problem: "another trainer began this run meanwhile; the same command goes on from there"
                    .to_owned(),
            }),
        }
    }
}

/// Refuses batches of which not every process has an image in each part.
fn check_shares(recipe: &Recipe, processes: usize) -> Result<(), Error> {
    let (batch, parts) = (recipe.train.batch_size, recipe.train.accumulate.unwrap_or(1));
    if processes == 1 || batch >= processes * parts {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "train.batch_size = {batch}: {processes} processes, in {parts} parts of a batch each, need at least {}; start \
         fewer processes, or set a larger batch size",
        processes * parts
    )))
}

/// Refuses to keep weights as they are that were just drawn.
fn check_freezing(recipe: &Recipe) -> Result<(), Error> {
    match (recipe.train.freeze_epochs, &recipe.initial_weights) {
        (Some(epochs), None) => Err(Error::Usage(format!(
            "train.freeze_epochs = {epochs}: all but the head stays as it is, which needs weights to start from; give \
             --weights, or take the key out (--set train.freeze_epochs=)"
        ))),
        _ => Ok(()),
    }
}

/// The data of the recipe, if it can be found and divided.
fn listed(
    request: &Request,
    recipe: &Recipe,
    problems: &mut Problems,
    notes: &mut Vec<String>,
) -> Option<Listing> {
    let data_dir = request.data_dir.as_deref();
    let listing = problems.take(source::list(recipe, &request.root, data_dir, Purpose::Training))?;
    notes.extend(listing.notes.iter().cloned());
    let (faults, remarks) = listing.parts.judge(&listing.class_names, recipe);
    problems.0.extend(faults);
    notes.extend(remarks);
    problems.take(LearningRate::new(recipe, listing.parts.train.len()).check());
    Some(listing)
}

/// Whether pictures are decoded as they are needed: on request, or where there is too little memory for all of them.
fn streams(request: &Request, memory: &Budget, listing: &Listing, notes: &mut Vec<String>) -> bool {
    let short_of = memory.short_of().filter(|_| listing.can_stream());
    if let (Some(Limit { bytes, by }), false) = (short_of, request.stream) {
        notes.push(format!(
            "the pictures would take {} of {}, {by}; they are decoded as they are needed (--stream)",
            in_words(memory.pictures),
            in_words(bytes)
        ));
    }
    short_of.is_some() || (request.stream && listing.can_stream())
}

/// What is wrong so far.
#[derive(Debug, Default)]
struct Problems(Vec<Error>);

impl Problems {
    fn take<T>(&mut self, result: Result<T, Error>) -> Option<T> {
        result.map_err(|error| self.0.push(error.or_device())).ok()
    }
}

/// Sets the recipe's initial weights to those of the request, and opens them, unless the run that is there began
/// with them: then they may be gone, or replaced by its own.
fn initial_weights(
    request: &Request,
    recipe: &mut Recipe,
    run: Option<&RunDir>,
) -> Result<Option<WeightsFile>, Error> {
    let Some(asked) = &request.weights else { return Ok(None) };
    let began = run.and_then(|run| run.recipe().ok().flatten()).and_then(|recipe| recipe.initial_weights);
    let located = match (located::locate(asked), &began) {
        (Ok(located), _) => located,
        (Err(error), Some(began)) => {
            let same = match (Reference::of(asked)?, Reference::of(&began.file)?) {
                (Some(asked), Some(began)) => asked.may_be(&began),
                _ => false,
            };
            if !same {
                return Err(error);
            }
            recipe.initial_weights = Some(began.clone());
            return Ok(None);
        }
        (Err(error), None) => return Err(error),
    };
    let (path, on_hub) = (located.path, located.hub.is_some());
    // The recipe is to be repeatable from anywhere.
    let file = match located.hub {
        Some(exact) => exact.to_string().into(),
        None => fs::canonicalize(&path).or_else(|_| std::path::absolute(&path)).map_err(Error::io(&path))?,
    };
    if let (Some(run), Some(began)) = (run, began)
        && began.file == file
        && (!path.exists() || run.holds(&file))
    {
        recipe.initial_weights = Some(began);
        return Ok(None);
    }
    if file.to_str().is_none() {
        return Err(Error::Usage(format!(
            "{}: this path is not UTF-8, and a recipe names the weights it starts from as text; rename the file, or copy it \
             to a path that is",
            file.display()
        )));
    }
    let weights = WeightsFile::open(if on_hub { &path } else { &file })?;
    let sha256 = weights.sha256()?;
    recipe.initial_weights = Some(InitialWeights { file, sha256 });
    Ok(Some(weights))
}

type Initial<'a> = (&'a InitialWeights, Option<WeightsFile>, Option<&'a [String]>);

/// The network, with its weights drawn or read. Without class names the head is any that fits.
fn build(
    request: &Request,
    architecture: &Architecture,
    initial: Option<Initial>,
    notes: &mut Vec<String>,
) -> Result<(VarStore, Box<dyn Model>), Error> {
    let vs = VarStore::new(request.device);
    seed_initial_weights(request.seed);
    let network = architecture.init(&vs.root())?;
    let Some((InitialWeights { file, sha256 }, opened, class_names)) = initial else {
        return Ok((vs, network));
    };
    let weights =
        opened.map_or_else(|| Ok::<_, Error>(WeightsFile::open(&located::locate(file)?.path)?), Ok)?;
    let found = weights.sha256()?;
    if found != *sha256 {
        let problem = format!("its SHA-256 is {found}, the recipe's initial weights have {sha256}");
        return Err(Error::Weights { path: file.clone(), problem });
    }
    let head = class_names.map_or(Head::OfSize, Head::For);
    let said = weights::load_opened(&vs, architecture, &weights, head)?;
    notes.extend(said.iter().map(|note| format!("{}: {note}", file.display())));
    Ok((vs, network))
}

/// The checkpoint to go on from, if there is one. Those that cannot be used are noted.
fn newest_checkpoint(run: &RunDir, notes: &mut Vec<String>) -> Result<Option<Checkpoint>, Error> {
    let found = checkpoint::find(&run.checkpoints(), &[KEPT])?;
    for error in found.passed_over {
        if matches!(error, CheckpointError::Newer { .. }) {
            return Err(error.into());
        }
        notes.push(error.to_string());
    }
    notes.push(match &found.checkpoint {
        Some(checkpoint) => format!("goes on from checkpoint {}", checkpoint.position),
        None => "there is no whole checkpoint of this run; training starts over".to_owned(),
    });
    Ok(found.checkpoint)
}
