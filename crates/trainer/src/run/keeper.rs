//! What a run has on the disk at every moment: checkpoints, the weights to keep, the history.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use run_record::{EpochStats, Select};
use tch::nn::VarStore;

use crate::Error;
use crate::network::weights::Card;
use crate::run::checkpoint::{self, Draft, Position};
use crate::run::directory::RunDir;
use crate::run::state::{Identity, KEPT, Keep, Machine, State};
use crate::tensorboard::board::Board;

/// When to save, besides after every epoch, and what to leave.
#[derive(Debug, Clone, Copy, Default)]
pub struct Saving {
    /// After every so many steps.
    pub steps: Option<u64>,
    /// When so much time has passed.
    pub time: Option<Duration>,
    /// Newest checkpoints to leave.
    pub last: usize,
    /// Checkpoints of the best epochs to leave.
    pub best: usize,
}

/// Writes down what must last, or nothing, in a process that is not the first of several.
#[derive(Debug)]
pub struct Keeper<'a> {
    /// The run's directory, where this process writes.
    pub run: Option<&'a RunDir>,
    /// Whether a step was made, in this process or before.
    pub has_begun: bool,
    /// Whether training starts from weights in this directory, which are set aside with the run they are of.
    pub starts_from_itself: bool,
    /// What the kept weights say of themselves, but for their epoch and accuracy.
    pub card: Card,
    /// Which epoch's weights to keep.
    pub select: Select,
    /// What a checkpoint belongs to.
    pub identity: Identity,
    /// What computes it.
    pub machine: Machine,
    /// When to save, and what to leave.
    pub saving: Saving,
    /// TensorBoard's events, if they are asked for.
    pub board: Option<Board>,
    /// When this process saved last, or began.
    pub saved_at: Instant,
    /// The checkpoint that the state was last saved as, or read from.
    pub saved: Option<Position>,
}

impl Keeper<'_> {
    /// Whether a checkpoint is due after a step.
    pub fn is_due(&self, step: u64) -> bool {
        self.saving.steps.is_some_and(|steps| step.is_multiple_of(steps))
            || self.saving.time.is_some_and(|time| self.saved_at.elapsed() >= time)
    }

    /// A step was made: from the first on, the run that was set aside is replaced for good.
    ///
    /// # Errors
    /// What the file system says.
    pub fn stepped(&mut self, vs: &VarStore, state: &mut State) -> Result<(), Error> {
        let Some(run) = self.run.filter(|_| !self.has_begun) else { return Ok(()) };
        if self.starts_from_itself {
            self.save(vs, state)?; // after a kill, there would be nothing to start from
        }
        run.discard()?;
        self.has_begun = true;
        Ok(())
    }

    /// Saves a checkpoint, unless this moment is saved already.
    ///
    /// # Errors
    /// A disk that cannot take it.
    pub fn save(&mut self, vs: &VarStore, state: &mut State) -> Result<(), Error> {
        if self.saved != Some(state.counters.position()) {
            self.write(vs, state, None)?;
        }
        self.board.as_mut().map_or(Ok(()), Board::flush)
    }

    /// Saves the end of an epoch, and with `keep` the weights as those to keep, in the checkpoint and where people look
    /// for them.
    ///
    /// # Errors
    /// A disk that cannot take it.
    pub fn save_epoch(
        &mut self,
        vs: &VarStore,
        state: &mut State,
        stats: &EpochStats,
        keep: bool,
    ) -> Result<(), Error> {
        // The checkpoint first: what is published without it would be of an epoch that never was.
        self.write(vs, state, keep.then_some(stats))?;
        self.board.as_mut().map_or(Ok(()), Board::flush)?;
        if keep { self.publish_weights(state) } else { Ok(()) }
    }

    /// Writes a checkpoint, in the place of one at the same position. The weights to keep are the current ones if those
    /// are of an epoch, else those that are kept.
    fn write(&mut self, vs: &VarStore, state: &mut State, current: Option<&EpochStats>) -> Result<(), Error> {
        let Some(run) = self.run else { return Ok(()) };
        let card = Card { epoch: state.counters.history.len() as u32, ..self.card.clone() };
        let of_kept = current.map(|stats| Card {
            val_top1: Some(stats.kept_top1()),
            epoch: stats.epoch,
            ..card.clone()
        });
        let kept = self.kept_files(run);
        let keep = of_kept.as_ref().map_or(Keep::Same(&kept), Keep::Current);
        let position = state.counters.position();
        let mut draft = Draft::begin(&run.checkpoints(), position)?;
        state.write(&mut draft, vs, (&self.identity, &self.machine), &card, keep)?;
        draft.finish()?;
        (self.saved, self.saved_at) = (Some(position), Instant::now());
        Ok(())
    }

    /// Where the kept weights are.
    fn kept_files(&self, run: &RunDir) -> Vec<PathBuf> {
        let newest = self.newest().map(|checkpoint| checkpoint.join(KEPT));
        newest.into_iter().chain([run.file(self.select.weights_file())]).collect()
    }

    /// Removes the checkpoints there is no more need for.
    ///
    /// # Errors
    /// What the file system says.
    pub fn retain(&self, state: &State) -> Result<(), Error> {
        let (Some(saved), Some(run)) = (self.saved, self.run) else { return Ok(()) };
        let at_end = |epoch| Position { epoch, step: None };
        let best = state.counters.best_epochs().into_iter().take(self.saving.best);
        // A rollback goes to the end of an epoch, wherever a killed run went on from.
        let last = state.counters.epoch() - 1;
        let spared: Vec<Position> = best.chain([last]).map(at_end).collect();
        checkpoint::retain(&run.checkpoints(), saved, self.saving.last, &spared)?;
        Ok(())
    }

    /// Has the kept weights where people look for them. A checkpoint has them already.
    ///
    /// # Errors
    /// Weights that are no longer in the checkpoint, or a disk that cannot take them.
    pub fn publish_weights(&self, state: &State) -> Result<(), Error> {
        let (Some(kept), Some(run)) = (&state.kept, self.run) else { return Ok(()) };
        let Some(checkpoint) = self.newest() else { return Ok(()) };
        run.publish(&checkpoint.join(KEPT), self.select.weights_file(), &kept.sha256)
    }

    /// Makes the state that of the newest whole checkpoint at the end of an epoch, but for the number of times this was
    /// done, and has that on the disk. Those after it are discarded. `None` is answered by who does
    /// not write.
    ///
    /// # Errors
    /// No such checkpoint, or a disk that cannot be written.
    pub fn go_back(
        &mut self,
        vs: &VarStore,
        state: &mut State,
        rollbacks: u32,
    ) -> Result<Option<Position>, Error> {
        let Some(run) = self.run else { return Ok(None) };
        let directory = run.checkpoints();
        let positions = checkpoint::positions(&directory)?;
        let ends = positions.into_iter().rev().filter(|position| position.step.is_none());
        let found = ends.filter_map(|position| checkpoint::load(&directory, position, &[KEPT]).ok()).next();
        let found =
            found.ok_or_else(|| Error::Training("there is no checkpoint to go back to".to_owned()))?;
        let position = found.position;
        state.restore(vs, found, &self.identity)?;
        checkpoint::discard_after(&directory, position)?;
        state.counters.rollbacks = rollbacks;
        self.saved = Some(position);
        self.write(vs, state, None)?;
        self.publish_weights(state)?;
        self.board.as_mut().map_or(Ok(()), |board| board.rewind(state.counters.updates))?;
        Ok(Some(position))
    }

    /// The checkpoint that the state was last saved as, or read from.
    pub fn newest(&self) -> Option<PathBuf> {
        Some(self.run?.checkpoints().join(self.saved?.to_string()))
    }
}
