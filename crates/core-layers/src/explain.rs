//! What made a network say a class: Grad-CAM over the features that it names.

use tch::{Kind, TchError, Tensor};

use crate::{ClassEvidence, Model};

/// Grad-CAM (Selvaraju et al., arXiv:1610.02391, eqs. 1 and 2): where the features raise the logit of a class,
/// `[B, h, w]`, 0 or more, for images `[B, 3, H, W]` and one of `classes`, i64 `[B]`, each. Neither parameters nor their
/// gradients change, and nothing is drawn at random.
///
/// # Errors
/// libtorch's refusal: a class that there is not, for one.
pub fn grad_cam(network: &dyn Model, images: &Tensor, classes: &Tensor) -> Result<Tensor, TchError> {
    tch::with_grad(|| {
        // So that there is a graph even where no parameter is trained.
        let images = images.f_detach_copy()?.set_requires_grad(true);
        let ClassEvidence { features, grid: [height, width], logits } = network.class_evidence(&images);
        let scores = logits.f_gather(1, &classes.f_unsqueeze(1)?, false)?.f_sum(Kind::Float)?;
        let gradients = Tensor::f_run_backward(&[scores], &[&features], false, false)?;
        let on_grid = |x: &Tensor| match x.size()[..] {
            [_, tokens, _] => {
                let places = x.f_narrow(1, tokens - height * width, height * width)?;
                let size = places.size();
                places.f_transpose(1, 2)?.f_reshape([size[0], size[2], height, width])
            }
            _ => Ok(x.shallow_clone()),
        };
        let (features, gradients) = (on_grid(&features.f_detach()?)?, on_grid(&gradients[0])?);
        let weights = gradients.f_mean_dim([2i64, 3].as_slice(), true, Kind::Float)?; // [B, C, 1, 1]
        (weights * features).f_sum_dim_intlist([1i64].as_slice(), false, Kind::Float)?.f_relu()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logits that are weighted means of the image's channels, by place or by token.
    #[derive(Debug)]
    struct Linear {
        tokens: bool,
    }

    impl Model for Linear {
        fn forward_features(&self, images: &Tensor, _train: bool) -> Tensor {
            images.shallow_clone()
        }

        fn forward_head(&self, features: &Tensor, _train: bool) -> Tensor {
            let means = features.mean_dim([2i64, 3].as_slice(), false, Kind::Float); // [B, 3]
            means.matmul(&Tensor::from_slice(&[2f32, 0., -1., 1., 0., 0.]).reshape([3, 2]))
        }

        fn class_evidence(&self, images: &Tensor) -> ClassEvidence {
            let maps = images * 1.0;
            let grid = [images.size()[2], images.size()[3]];
            if !self.tokens {
                return ClassEvidence { logits: self.forward_head(&maps, false), features: maps, grid };
            }
            // A token without a place in front.
            let places = maps.flatten(2, 3).transpose(1, 2);
            let tokens = Tensor::cat(&[&places.narrow(1, 0, 1) * 100.0, places], 1);
            let seen = tokens.narrow(1, 1, grid[0] * grid[1]).transpose(1, 2).reshape(images.size());
            ClassEvidence { logits: self.forward_head(&seen, false), features: tokens, grid }
        }
    }

    #[test]
    fn channels_are_weighed_by_the_mean_gradient_of_the_class() {
        // d logit 0 / d pixel = (2, -1, 0) / 4 in each place; of logit 1, (0, 1, 0) / 4.
        let red = [4f32, 0., 8., 0.];
        let green = [4f32, 4., 0., 16.];
        let blue = [9f32; 4];
        let images =
            Tensor::from_slice(&[red, green, blue].concat()).reshape([1, 3, 2, 2]).repeat([2, 1, 1, 1]);
        for tokens in [false, true] {
            let maps =
                tch::no_grad(|| grad_cam(&Linear { tokens }, &images, &Tensor::from_slice(&[0i64, 1])));
            let maps = maps.unwrap();
            assert_eq!(maps.size(), [2, 2, 2]);
            let values = Vec::<f32>::try_from(maps.flatten(0, -1)).unwrap();
            // Rows of the weights: red (2, 0), green (-1, 1), blue (0, 0).
            assert_eq!(values, [1., 0., 4., 0., 1., 1., 0., 4.]);
            assert!(!images.requires_grad() && !maps.requires_grad());
        }
        let absent = Tensor::from_slice(&[0i64, 2]);
        assert!(grad_cam(&Linear { tokens: false }, &images, &absent).is_err());
    }
}
