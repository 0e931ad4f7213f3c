// Sums over the processes that compute together, for operations that need one in the middle of a pass.

#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cstdint>

namespace torch_ext {

// Processes that wait for each other. An autograd node holds them until its backward pass.
struct Together : torch::CustomClassHolder {
  // Makes a tensor the sum of those of all processes.
  virtual void sum(const at::Tensor &tensor) = 0;
};

// Whose images batch norm normalises together.
struct SharedBatch {
  // None: this process's own.
  c10::intrusive_ptr<Together> processes;
  // Whether this process's images count, or are there for nothing.
  bool counts = true;

  // Makes the sums over this process's images, [2, C] in f64, those over all images. Returns how many values of a channel
  // these have, if this process's have `values`.
  int64_t sum(at::Tensor &sums, int64_t values) const;
};

// For the passes in training that this thread begins.
extern thread_local SharedBatch shared_batch;

} // namespace torch_ext
