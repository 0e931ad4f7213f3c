//! The learning rate as a pure function of the step.

use run_record::{Recipe, Schedule};

/// A run's schedule; see [`Schedule`].
#[derive(Debug, Clone, Copy)]
pub struct LearningRate {
    schedule: Schedule,
    base: f64,
    steps: u64,
}

impl LearningRate {
    /// The recipe's schedule for a run over `images` training images.
    pub fn new(recipe: &Recipe, images: usize) -> Self {
        // Counted with the fraction of a batch that ends an epoch, as the published schedule does.
        let batches = images as f64 / recipe.train.batch_size as f64;
        let steps = (batches * f64::from(recipe.train.epochs)).floor() as u64;
        Self { schedule: recipe.schedule, base: recipe.optimizer.lr, steps }
    }

    /// The rate of the step before which `step` updates were made.
    pub fn at(&self, step: u64) -> f64 {
        match self.schedule {
            Schedule::Constant {} => self.base,
            Schedule::WarmupCosine { warmup } => {
                let warm = (warmup * self.steps as f64).floor() as u64;
                if step < warm {
                    self.base * step as f64 / warm as f64
                } else if step <= self.steps {
                    let done = (step - warm) as f64 / (self.steps - warm).max(1) as f64;
                    0.5 * self.base * (1.0 + (std::f64::consts::PI * done).cos())
                } else {
                    0.0
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warmup_cosine_is_the_published_one() {
        // 40,000 images in batches of 128 for 50 epochs, 15 % warm-up.
        let lr = LearningRate {
            schedule: Schedule::WarmupCosine { warmup: 0.15 },
            base: 1e-3,
            steps: (40_000.0 / 128.0 * 50.0) as u64,
        };
        assert_eq!(lr.steps, 15_625);
        for (step, want) in [
            (0, 0.0),
            (1, 4.26803e-7),
            (2_342, 9.99573e-4),
            (2_343, 1e-3),
            (5_000, 9.044668e-4),
            (10_000, 3.809959e-4),
            (15_000, 5.453581e-6),
            (15_624, 1.3987e-11),
        ] {
            let got = lr.at(step);
            assert!((got - want).abs() <= 5e-5 * want, "{step}: {got} {want}");
        }
        // The batches that are not whole make 15,650 steps; the last 25 change nothing.
        assert!([15_625, 15_626, 15_649].iter().all(|&step| lr.at(step).abs() < 1e-18));
    }

    #[test]
    fn a_run_of_one_step_has_a_rate() {
        for warmup in [0.0, 0.9] {
            let lr = LearningRate { schedule: Schedule::WarmupCosine { warmup }, base: 0.5, steps: 1 };
            assert!((0..3).all(|step| lr.at(step).is_finite()));
            assert_eq!(lr.at(0), 0.5);
        }
        let constant = LearningRate { schedule: Schedule::Constant {}, base: 0.5, steps: 10 };
        assert_eq!([0, 9, 100].map(|step| constant.at(step)), [0.5; 3]);
    }
}
