//! The processes that train one network together: what they share, and what all of them know.

use std::cell::Cell;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use data_cifar::Share;
use serde::{Serialize, de::DeserializeOwned};
use tch::nn::VarStore;
use tch::{Device, Tensor};
use torch_ext::{ProcessGroup, Reducer, TorchExtError};

use crate::Error;
use crate::process::lines::note;
use crate::process::meeting::Placement;
use crate::process::signals::{STOPPING, Stop, Stopped};

/// Bytes of gradients that are sent together.
const BUCKET_BYTES: i64 = 1 << 20;

/// The processes of a run. All but the first write nothing and say nothing but what went wrong with themselves.
#[derive(Debug, Default)]
pub struct Peers {
    /// `None` where there is but one.
    group: Option<ProcessGroup>,
}

/// What all processes know after a step.
#[derive(Debug)]
pub struct Known {
    /// Sums over the batch's images, f64 `[3]`.
    pub sums: Tensor,
    /// Whether any process was asked to stop.
    pub stopped: Option<Stopped>,
    /// Whether the first process wants a checkpoint.
    pub save: bool,
}

impl Peers {
    /// Meets the others, who have so much time to come, and for every answer from then on. All compute on such devices.
    ///
    /// # Errors
    /// They do not come, or cannot be reached.
    pub fn meet(placement: &Placement, device: Device, timeout: Duration) -> Result<Self, Error> {
        let meeting = &placement.meeting;
        let place = format!("{}:{}", meeting.host, meeting.port);
        let (rank, processes) = (meeting.rank, meeting.size);
        let failed = move |problem| Error::Meeting { rank, processes, place, problem };
        // c10d waits for one thing after the other, for each so long, and cannot be told to stop.
        let (met, meets) = mpsc::channel::<()>();
        let late = failed.clone();
        thread::spawn(move || {
            if meets.recv_timeout(timeout) == Err(RecvTimeoutError::Timeout) {
                let error = late(format!("they did not all meet within {} s", timeout.as_secs()));
                note(&format!("error: {error}"));
                // Nothing is written before they meet, and whoever waits inside c10d could not be asked to end.
                signal_hook::low_level::exit(error.exit_code().into());
            }
        });
        let group = ProcessGroup::open(meeting, device, timeout);
        drop(met);
        Ok(Self { group: Some(group.map_err(|error| failed(one_line(&error)))?) })
    }

    /// How many there are.
    pub fn processes(&self) -> usize {
        self.group.as_ref().map_or(1, ProcessGroup::size)
    }

    /// Which of them this is, from 0.
    pub fn rank(&self) -> usize {
        self.group.as_ref().map_or(0, ProcessGroup::rank)
    }

    /// Whether this process is the one that writes.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Whether there are others.
    pub fn are_several(&self) -> bool {
        self.group.is_some()
    }

    /// What of a batch is this process's, where batches pass through the network in so many parts.
    pub fn share(&self, parts: usize) -> Share {
        Share { rank: self.rank(), processes: self.processes(), parts }
    }

    /// Of images in batches of a size those of every batch that is this process's turn.
    pub fn turns(&self, order: &[i64], batch_size: usize) -> Vec<i64> {
        let batches = order.chunks(batch_size.max(1)).skip(self.rank()).step_by(self.processes());
        batches.flatten().copied().collect()
    }

    /// Makes each tensor the sum over all processes.
    ///
    /// # Errors
    /// A process that is gone.
    pub fn sum(&self, tensors: &[Tensor]) -> Result<(), Error> {
        self.ask(|group| group.sum(tensors)).map(drop)
    }

    /// What the first process says, whether or not this is the one.
    ///
    /// # Errors
    /// A process that is gone.
    pub fn hear<T: Serialize + DeserializeOwned>(&self, said: Option<&T>) -> Result<Option<T>, Error> {
        let wrong = |error: serde_json::Error| Error::Training(format!("another process's words: {error}"));
        let words = said.map(serde_json::to_vec).transpose().map_err(wrong)?.unwrap_or_default();
        let Some(mut all) = self.ask(|group| group.gather(&words))? else { return Ok(None) };
        serde_json::from_slice(&all.swap_remove(0)).map(Some).map_err(wrong)
    }

    /// Whether everybody got here. Where another process did not, the error says so, and is told by that one.
    ///
    /// # Errors
    /// Its own, another's, or a process that is gone.
    pub fn agree<T>(&self, outcome: Result<T, Error>) -> Result<T, Error> {
        let code = outcome.as_ref().map_or_else(Error::exit_code, |_| 0);
        let all = match self.ask(|group| group.gather(&[code])) {
            Ok(all) => all.unwrap_or_default(),
            Err(gone) => return outcome.and(Err(gone)),
        };
        let value = outcome?;
        match all.into_iter().flatten().find(|&code| code != 0) {
            Some(code) => Err(Error::Elsewhere { code }),
            None => Ok(value),
        }
    }

    /// Gives all processes the sums over the images that each computed, and what asks for their attention.
    ///
    /// # Errors
    /// A process that is gone.
    pub fn after_step(&self, sums: Tensor, stop: &Stop, save: bool) -> Result<Known, Error> {
        if self.group.is_none() {
            return Ok(Known { sums, stopped: None, save });
        }
        let asked = stop.check().err().map(|stopped| stopped.signal);
        let flags = STOPPING.map(|signal| f64::from(u8::from(asked == Some(signal))));
        let flags = [&flags[..], &[f64::from(u8::from(save))]].concat();
        let all = Tensor::f_cat(&[sums.f_to_device(Device::Cpu)?, Tensor::f_from_slice(&flags)?], 0)?;
        self.sum(std::slice::from_ref(&all))?;
        let count = sums.size()[0];
        let told: Vec<f64> = Vec::try_from(all.f_narrow(0, count, flags.len() as i64)?)?;
        let stopped = STOPPING.into_iter().zip(&told).find(|(_, told)| **told > 0.0);
        Ok(Known {
            sums: all.f_narrow(0, 0, count)?.f_to_device(sums.device())?,
            stopped: stopped.map(|(signal, _)| Stopped { signal }),
            save: told[STOPPING.len()] > 0.0,
        })
    }

    /// Makes each tensor that of the first process.
    ///
    /// # Errors
    /// A process that is gone.
    pub fn copy_first(&self, tensors: &[Tensor]) -> Result<(), Error> {
        self.ask(|group| tch::no_grad(|| group.broadcast(tensors, 0))).map(drop)
    }

    /// What the group answers, if there is one.
    fn ask<T>(
        &self,
        question: impl FnOnce(&ProcessGroup) -> Result<T, TorchExtError>,
    ) -> Result<Option<T>, Error> {
        self.group.as_ref().map(question).transpose().map_err(|error| self.gone(&error))
    }

    /// That another process is gone, if that is why something else failed.
    pub fn or_gone(&self, error: Error) -> Error {
        let failure = self.group.as_ref().and_then(ProcessGroup::failure);
        failure.map_or(error, |failure| self.gone(&failure))
    }

    fn gone(&self, error: &TorchExtError) -> Error {
        if let Some(group) = &self.group {
            group.abandon();
        }
        Error::Gone { rank: self.rank(), processes: self.processes(), problem: one_line(error) }
    }
}

/// The first sentence of what c10d and gloo say, which name their own source files first.
fn one_line(error: &TorchExtError) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    let line = line.rsplit("] ").next().filter(|rest| !rest.is_empty()).unwrap_or(line);
    line.strip_prefix("libtorch: ").unwrap_or(line).trim_end_matches('.').to_owned()
}

/// What makes one step of several.
#[derive(Debug)]
pub struct Together<'a> {
    peers: &'a Peers,
    /// Where gradients are summed during the backward pass.
    reducer: Option<Reducer>,
    /// The running statistics of batch norm, which differ unless it normalises by the images of all.
    statistics: Vec<Tensor>,
    /// Whether it does that.
    sync_batch_norm: bool,
    /// Between the beginning and the end of the last backward pass, and from there until the sums were there.
    took: Cell<[Duration; 2]>,
    began: Cell<Instant>,
}

impl<'a> Together<'a> {
    /// For a network's tensors, if there are several processes.
    ///
    /// # Errors
    /// Tensors whose gradients cannot be summed.
    pub fn new(peers: &'a Peers, vs: &VarStore, sync_batch_norm: bool) -> Result<Option<Self>, Error> {
        let Some(group) = &peers.group else { return Ok(None) };
        // As they were made, which is about the order of the forward pass.
        let weights: Vec<Tensor> =
            vs.trainable_variables().into_iter().filter(Tensor::requires_grad).collect();
        let reducer = match vs.device() {
            Device::Cpu => Some(Reducer::new(group, &weights, BUCKET_BYTES)?),
            _ => None,
        };
        let mut statistics: Vec<(String, Tensor)> = vs.variables().into_iter().collect();
        statistics.retain(|(name, _)| name.ends_with("running_mean") || name.ends_with("running_var"));
        statistics.sort_by(|(one, _), (other, _)| one.cmp(other));
        let statistics = statistics.into_iter().map(|(_, tensor)| tensor).collect();
        let took = Cell::new([Duration::ZERO; 2]);
        Ok(Some(Self { peers, reducer, statistics, sync_batch_norm, took, began: Cell::new(Instant::now()) }))
    }

    /// A forward pass in training of images that count, or of some that are there for nothing.
    pub fn forward<T>(&self, counts: bool, pass: impl FnOnce() -> T) -> T {
        match &self.peers.group {
            Some(group) if self.sync_batch_norm => group.sharing_batch_norm(counts, pass),
            _ => pass(),
        }
    }

    /// Whether passes wait for other processes.
    pub fn waits_inside(&self) -> bool {
        self.sync_batch_norm
    }

    /// Before the last backward pass of a step.
    ///
    /// # Errors
    /// libtorch's refusal.
    pub fn begin(&self) -> Result<(), Error> {
        self.began.set(Instant::now());
        Ok(self.reducer.as_ref().map_or(Ok(()), Reducer::arm)?)
    }

    /// Waits for the gradients that were summed during the backward pass.
    ///
    /// # Errors
    /// A process that is gone.
    pub fn finish(&self) -> Result<(), Error> {
        let passed = Instant::now();
        let finished = self.reducer.as_ref().map_or(Ok(()), Reducer::finish);
        self.took.set([passed - self.began.get(), passed.elapsed()]);
        finished.map_err(|error| self.peers.gone(&error))
    }

    /// Of the last update on the CPU: how long its last backward pass took, and how long it then waited for its sums.
    pub fn took(&self) -> [Duration; 2] {
        self.took.get()
    }

    /// Bytes of gradients that are sent together, in their order.
    pub fn bucket_bytes(&self) -> Vec<i64> {
        self.reducer.as_ref().map_or_else(Vec::new, Reducer::bucket_bytes)
    }

    /// How many small sums follow those of the gradients: of what is counted, and of the running statistics.
    pub fn small_sums(&self) -> usize {
        1 + usize::from(self.averages_statistics())
    }

    fn averages_statistics(&self) -> bool {
        !self.sync_batch_norm && !self.statistics.is_empty()
    }

    /// Sums gradients that were not summed during the backward pass.
    ///
    /// # Errors
    /// A process that is gone.
    pub fn sum_rest(&self, grads: &[Tensor]) -> Result<(), Error> {
        if self.reducer.is_some() {
            return Ok(());
        }
        let defined = grads.iter().filter(|grad| grad.defined()).map(Tensor::shallow_clone);
        self.peers.sum(&defined.collect::<Vec<_>>())
    }

    /// Makes the running statistics of batch norm the means over all processes, if they differ.
    ///
    /// # Errors
    /// A process that is gone.
    pub fn average_statistics(&self) -> Result<(), Error> {
        if !self.averages_statistics() {
            return Ok(());
        }
        self.peers.ask(|group| group.mean(&self.statistics)).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alone_everything_is_as_it_is() {
        let peers = Peers::default();
        assert_eq!(
            (peers.rank(), peers.processes(), peers.is_first(), peers.are_several()),
            (0, 1, true, false)
        );
        assert_eq!(peers.turns(&[5, 3, 1, 2], 2), [5, 3, 1, 2]);
        let sums = Tensor::from_slice(&[1.0, 2.0, 3.0]);
        let known = peers.after_step(sums.shallow_clone(), &Stop::default(), true).unwrap();
        assert!(known.save && known.stopped.is_none() && known.sums == sums);
        assert_eq!(peers.hear(Some(&7)).unwrap(), None);
        assert_eq!(peers.agree(Ok(7)).unwrap(), 7);
        assert!(peers.agree::<()>(Err(Error::Usage("no".to_owned()))).is_err());
    }

    #[test]
    fn what_gloo_says_is_told_without_its_files() {
        let error = TorchExtError::Torch(
            "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Connection closed by peer [127.0.0.1]:9"
                .to_owned(),
        );
        let text = one_line(&error);
        assert!(text.contains("Connection closed by peer"), "{text}");
    }
}
