//! A square-kernel convolution with explicit initialisers and either framework's padding.

use tch::nn::Path;
use tch::{TchError, Tensor};
use torch_ext::{
    LARGEST_DEPTHWISE, channels_last, depthwise, frozen_convolution, has_kernels, has_winograd, is_frozen,
    winograd,
};

use crate::{Init, must, pad_same, parameter, same_padding, trace};

/// How a convolution treats the border.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// This many zeros on each side, as PyTorch does.
    Symmetric(i64),
    /// Output of ⌈size / stride⌉; an odd pixel of padding goes to the bottom and the right, as
    /// Keras does.
    Same,
}

/// 2-D convolution of `[B, in, H, W]` maps.
#[derive(Debug)]
pub struct Conv2d {
    weight: Tensor,
    bias: Option<Tensor>,
    stride: i64,
    padding: Padding,
    groups: i64,
}

impl Conv2d {
    /// Creates `weight` `[outputs, inputs, kernel, kernel]` and, if it has an initialiser, `bias`
    /// `[outputs]`. Stride 1, no padding, unless set with the methods below.
    ///
    /// # Errors
    /// What libtorch says when a tensor cannot be made.
    pub fn new(
        vs: &Path,
        inputs: i64,
        outputs: i64,
        kernel: i64,
        weight: Init,
        bias: Option<Init>,
    ) -> Result<Self, TchError> {
        Self::grouped(vs, [outputs, inputs, kernel, kernel], 1, weight, bias)
    }

    /// A depthwise convolution: one kernel per channel, `weight` `[channels, 1, kernel, kernel]`.
    ///
    /// # Errors
    /// What libtorch says when a tensor cannot be made.
    pub fn depthwise(
        vs: &Path,
        channels: i64,
        kernel: i64,
        weight: Init,
        bias: Option<Init>,
    ) -> Result<Self, TchError> {
        Self::grouped(vs, [channels, 1, kernel, kernel], channels, weight, bias)
    }

    fn grouped(
        vs: &Path,
        shape: [i64; 4],
        groups: i64,
        weight: Init,
        bias: Option<Init>,
    ) -> Result<Self, TchError> {
        // In the order of the images that it meets, so that no call has to change it.
        let weight = channels_last(&weight.draw(&shape)?.f_to_device(vs.device())?);
        let weight = weight.map_err(|error| TchError::Torch(error.to_string()))?;
        Ok(Self {
            weight: vs.add("weight", weight, true),
            bias: bias.map(|init| parameter(vs, "bias", &[shape[0]], init)).transpose()?,
            stride: 1,
            padding: Padding::Symmetric(0),
            groups,
        })
    }

    /// Sets the stride, in pixels.
    pub fn stride(self, stride: i64) -> Self {
        Self { stride, ..self }
    }

    /// Sets the padding.
    pub fn padding(self, padding: Padding) -> Self {
        Self { padding, ..self }
    }

    /// The kernels, `[out, in / groups, kernel, kernel]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// `[B, in, H, W]` → `[B, out, H', W']`.
    pub fn forward(&self, images: &Tensor) -> Tensor {
        let kernel = self.weight.size()[2];
        match self.padding {
            Padding::Symmetric(pad) if self.has_kernel(images) && 2 * pad == kernel - 1 => {
                self.depthwise_kernel(images, [pad, pad])
            }
            Padding::Symmetric(pad) => self.convolve(images, [pad, pad]),
            Padding::Same => {
                let size = images.size();
                let (height, width) = (size[2], size[3]);
                let (top, bottom) = same_padding(height, kernel, self.stride);
                let (left, right) = same_padding(width, kernel, self.stride);
                if self.has_kernel(images) {
                    self.depthwise_kernel(images, [top, left])
                } else if top == bottom && left == right {
                    self.convolve(images, [top, left])
                } else {
                    self.convolve(&pad_same(images, kernel, self.stride, 0.0), [0, 0])
                }
            }
        }
    }

    /// Whether a depthwise convolution of these images that keeps their size has a kernel.
    fn has_kernel(&self, images: &Tensor) -> bool {
        let size = self.weight.size();
        let depthwise = self.groups == size[0] && size[1] == 1 && self.stride == 1;
        depthwise && size[2] <= LARGEST_DEPTHWISE && has_kernels(images) && has_kernels(&self.weight)
    }

    /// The convolution with so many rows and columns of zeros before the images.
    fn depthwise_kernel(&self, images: &Tensor, before: [i64; 2]) -> Tensor {
        self.noted(must(depthwise(images, &self.weight, self.bias.as_ref(), before)))
    }

    fn convolve(&self, images: &Tensor, padding: [i64; 2]) -> Tensor {
        let stride = [self.stride, self.stride];
        if is_frozen(images) {
            let bias = self.bias.as_ref();
            let y = frozen_convolution(images, &self.weight, bias, self.stride, padding, self.groups);
            return self.noted(must(y));
        }
        let [pad, across] = padding;
        if self.stride == 1
            && self.groups == 1
            && pad == across
            && pad <= 1
            && has_winograd(images, &self.weight, pad)
        {
            return self.noted(must(winograd(images, &self.weight, self.bias.as_ref(), pad)));
        }
        self.noted(images.conv2d(&self.weight, self.bias.as_ref(), stride, padding, [1, 1], self.groups))
    }

    /// What it puts out, as a step.
    fn noted(&self, y: Tensor) -> Tensor {
        trace::step("Conv2d", &[Some(&self.weight), self.bias.as_ref()], &y, &self.weight.size()[1..]);
        y
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, nn};

    /// A kernel of ones over an image of ones counts the pixels under the kernel, so each output
    /// shows how much padding it saw.
    fn coverage(size: i64, kernel: i64, stride: i64) -> Vec<f32> {
        let vs = nn::VarStore::new(Device::Cpu);
        let conv = Conv2d::new(&vs.root(), 1, 1, kernel, Init::Ones, None)
            .unwrap()
            .stride(stride)
            .padding(Padding::Same);
        let image = Tensor::ones([1, 1, size, size], (Kind::Float, Device::Cpu));
        Vec::try_from(conv.forward(&image).select(2, 0).flatten(0, -1)).unwrap()
    }

    #[test]
    fn same_padding_puts_the_odd_pixel_at_the_bottom_and_right() {
        // Stride 2 on 4 pixels: windows start at 0 and 2; the second reaches one pixel past the
        // end. Symmetric padding would start at −1 and give 4, 6.
        assert_eq!(coverage(4, 3, 2), [9., 6.]);
        // Even kernel, stride 1: one pixel before (2 before and after for k=5 on the other hand).
        assert_eq!(coverage(3, 2, 1), [4., 4., 2.]);
        assert_eq!(coverage(5, 5, 1), [9., 12., 15., 12., 9.]);
    }

    #[test]
    fn even_kernels_pad_three_before_and_four_after() {
        let row = coverage(16, 8, 1);
        // First output sees columns 0..=4 of 8 (three padded), the last 12..=15 (four padded);
        // rows are cut alike: the first row sees 5 of 8.
        assert_eq!(row[0], 5. * 5.);
        assert_eq!(row[15], 5. * 4.);
    }

    #[test]
    fn depthwise_keeps_channels_apart() {
        let vs = nn::VarStore::new(Device::Cpu);
        let conv = Conv2d::depthwise(&vs.root(), 2, 3, Init::Ones, Some(Init::Ones))
            .unwrap()
            .padding(Padding::Symmetric(1));
        let image = Tensor::zeros([1, 2, 3, 3], (Kind::Float, Device::Cpu));
        let _ = image.narrow(1, 1, 1).fill_(2.0);
        let y = conv.forward(&image);
        assert_eq!(y.double_value(&[0, 0, 1, 1]), 1.0);
        assert_eq!(y.double_value(&[0, 1, 1, 1]), 19.0);
    }
}
