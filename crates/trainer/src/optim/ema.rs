//! A running average of a network's weights and buffers.

use std::collections::BTreeMap;

use run_record::EmaRecipe;
use tch::nn::VarStore;
use tch::{TchError, Tensor};
use torch_ext::foreach_lerp_;

use crate::Error;

/// The averages of all tensors of a network, those that are not trained (running statistics) included.
#[derive(Debug)]
pub struct Ema {
    recipe: EmaRecipe,
    names: Vec<String>,
    /// The network's tensors, in the order of the names.
    tensors: Vec<Tensor>,
    averages: Vec<Tensor>,
}

impl Ema {
    /// Starts with the network's tensors as they are.
    ///
    /// # Errors
    /// libtorch's refusal to copy them.
    pub fn new(vs: &VarStore, recipe: EmaRecipe) -> Result<Self, Error> {
        let sorted: BTreeMap<String, Tensor> = vs.variables().into_iter().collect();
        let (names, tensors): (Vec<_>, Vec<_>) =
            sorted.into_iter().map(|(name, tensor)| (name, tensor.detach())).unzip();
        let averages = tensors.iter().map(copy).collect::<Result<_, _>>()?;
        Ok(Self { recipe, names, tensors, averages })
    }

    /// Moves the averages towards the network, before which `updates` were made. The first move goes all the way,
    /// as in timm's `ModelEmaV3`.
    ///
    /// # Errors
    /// libtorch's refusal.
    pub fn update(&mut self, updates: u64) -> Result<(), Error> {
        let EmaRecipe { decay, warmup } = self.recipe;
        let decay = match updates {
            0 => 0.0,
            _ if warmup => decay.min(1.0 - (1.0 + updates as f64).powf(-2.0 / 3.0)),
            _ => decay,
        };
        Ok(foreach_lerp_(&mut self.averages, &self.tensors, 1.0 - decay)?)
    }

    /// Does something with the averages in the network's place, and puts everything back, also after an error.
    ///
    /// # Errors
    /// libtorch's refusal, or what `job` answers.
    pub fn in_place<T>(&mut self, job: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        self.swap()?;
        let answer = job();
        self.swap()?;
        answer
    }

    fn swap(&mut self) -> Result<(), Error> {
        tch::no_grad(|| {
            for (tensor, average) in self.tensors.iter_mut().zip(&mut self.averages) {
                let kept = copy(tensor)?;
                tensor.f_copy_(average)?;
                average.f_copy_(&kept)?;
            }
            Ok(())
        })
    }

    /// The averages by the names of the tensors.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        self.names.iter().cloned().zip(self.averages.iter().map(Tensor::shallow_clone)).collect()
    }
}

fn copy(tensor: &Tensor) -> Result<Tensor, TchError> {
    let mut copy = tensor.f_empty_like()?;
    copy.f_copy_(tensor)?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor).unwrap()
    }

    #[test]
    fn averages_follow_weights_and_buffers_and_change_places_with_them() {
        let vs = VarStore::new(Device::Cpu);
        let mut weight = vs.root().add("w", Tensor::from_slice(&[1f32, 2.0]), true);
        let mut buffer = vs.root().add("b", Tensor::from_slice(&[8f32]), false);
        let mut set = |w: f32, b: f32| {
            tch::no_grad(|| {
                let _ = weight.fill_(f64::from(w));
                let _ = buffer.fill_(f64::from(b));
            });
        };
        let mut ema = Ema::new(&vs, EmaRecipe { decay: 0.75, warmup: false }).unwrap();
        assert_eq!(values(&ema.state()["w"]), [1.0, 2.0]);
        set(4.0, 0.0);
        ema.update(0).unwrap();
        assert_eq!((values(&ema.state()["w"]), values(&ema.state()["b"])), (vec![4.0; 2], vec![0.0]));
        set(8.0, 4.0);
        ema.update(1).unwrap();
        assert_eq!((values(&ema.state()["w"]), values(&ema.state()["b"])), (vec![5.0; 2], vec![1.0]));

        let seen = ema.in_place(|| Ok(values(&vs.variables()["w"].detach()))).unwrap();
        assert_eq!(seen, [5.0; 2]);
        let failed = ema.in_place(|| Err::<(), _>(Error::Training("no".into())));
        assert_eq!(failed.unwrap_err().to_string(), "no");
        assert_eq!(
            (values(&vs.variables()["w"].detach()), values(&ema.state()["w"])),
            (vec![8.0; 2], vec![5.0; 2])
        );
    }

    #[test]
    fn a_warm_average_starts_fast() {
        let vs = VarStore::new(Device::Cpu);
        let mut weight = vs.root().add("w", Tensor::from_slice(&[0f32]), true);
        let mut ema = Ema::new(&vs, EmaRecipe { decay: 0.9, warmup: true }).unwrap();
        let _ = tch::no_grad(|| weight.fill_(1.0));
        // 1 − 8^(−2/3) = 0.75 of the average is kept after seven updates, 0.9 after a thousand.
        ema.update(7).unwrap();
        assert!((values(&ema.state()["w"])[0] - 0.25).abs() < 1e-6);
        ema.update(1_000).unwrap();
        assert!((values(&ema.state()["w"])[0] - 0.325).abs() < 1e-6);
    }
}
