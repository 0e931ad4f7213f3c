// Several processes that compute together: libtorch's c10d with Gloo, and sums of gradients that are made while the rest
// of the backward pass still runs.

#define USE_C10D_GLOO

#include "shared.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

using namespace torch_ext;
using at::Tensor;

namespace {

using Gloo = c10d::ProcessGroupGloo;
using WorkPointer = c10::intrusive_ptr<c10d::Work>;

struct Group {
  c10::intrusive_ptr<Gloo> gloo;
};

WorkPointer sum(Gloo &gloo, const Tensor &flat) {
  std::vector<Tensor> tensors{flat};
  return gloo.allreduce(tensors);
}

WorkPointer broadcast(Gloo &gloo, const Tensor &flat, int root) {
  std::vector<Tensor> tensors{flat};
  c10d::BroadcastOptions options;
  options.rootRank = root;
  return gloo.broadcast(tensors, options);
}

// Does `work` with the tensors of each kind, one after the other in one piece of main memory, and copies them back.
template <class F>
void with_flat(const Tensor *const *tensors, size_t count, const F &work) {
  const c10::NoGradGuard no_grad;
  std::vector<at::ScalarType> kinds;
  for (size_t i = 0; i < count; ++i)
    if (std::find(kinds.begin(), kinds.end(), tensors[i]->scalar_type()) == kinds.end())
      kinds.push_back(tensors[i]->scalar_type());
  for (const auto kind : kinds) {
    int64_t length = 0;
    for (size_t i = 0; i < count; ++i)
      length += tensors[i]->scalar_type() == kind ? tensors[i]->numel() : 0;
    const auto flat = at::empty({length}, at::TensorOptions(kind));
    const auto each = [&](const auto &move) {
      int64_t place = 0;
      for (size_t i = 0; i < count; ++i) {
        if (tensors[i]->scalar_type() != kind)
          continue;
        move(flat.narrow(0, place, tensors[i]->numel()).view(tensors[i]->sizes()), *tensors[i]);
        place += tensors[i]->numel();
      }
    };
    each([](const Tensor &place, const Tensor &tensor) { place.copy_(tensor); });
    work(flat);
    each([](const Tensor &place, const Tensor &tensor) { tensor.copy_(place); });
  }
}

// Sums the gradients of tensors over all processes. They are put into buckets in the reverse of their order, which is
// about that of the backward pass; a bucket is sent when all of its gradients are there and the one before it is sent, so
// that all processes send them in one order.
class Reducer {
 public:
  Reducer(c10::intrusive_ptr<Gloo> gloo, std::vector<Tensor> tensors, int64_t bucket_bytes)
      : gloo_(std::move(gloo)), tensors_(std::move(tensors)) {
    for (size_t n = tensors_.size(); n-- > 0;) {
      const auto &tensor = tensors_[n];
      if (!tensor.is_cpu() || !tensor.requires_grad() || tensor.scalar_type() != at::kFloat)
        throw ArgumentError("gradients are summed during the backward pass for f32 tensors on the CPU that have one");
      const int64_t bytes = tensor.numel() * static_cast<int64_t>(sizeof(float));
      if (buckets_.empty() || (buckets_.back().length > 0 &&
                               buckets_.back().length * static_cast<int64_t>(sizeof(float)) + bytes > bucket_bytes))
        buckets_.emplace_back();
      auto &bucket = buckets_.back();
      bucket.places.push_back({n, bucket.length});
      bucket.length += tensor.numel();
    }
    for (size_t b = 0; b < buckets_.size(); ++b) {
      buckets_[b].flat = at::zeros({buckets_[b].length}, at::TensorOptions(at::kFloat));
      for (const auto &place : buckets_[b].places) {
        // A tensor's accumulator lives as long as somebody holds it.
        auto accumulator = torch::autograd::impl::grad_accumulator(tensors_[place.tensor]);
        const auto key = accumulator->add_post_hook(std::make_unique<Hook>(this, b));
        hooks_.push_back({std::move(accumulator), key});
      }
    }
  }

  ~Reducer() {
    for (auto &[accumulator, key] : hooks_)
      accumulator->del_post_hook(key);
  }

  Reducer(const Reducer &) = delete;
  Reducer &operator=(const Reducer &) = delete;

  // The next backward pass is the last one whose gradients are to be summed.
  void arm() {
    for (auto &bucket : buckets_) {
      bucket.missing = bucket.places.size();
      bucket.work.reset();
    }
    sent_ = 0;
    armed_ = true;
  }

  // Sends what was not sent, waits for all sums, and makes them the gradients. A tensor without a gradient has none.
  void finish() {
    if (!armed_)
      throw ArgumentError("no backward pass was announced whose gradients are to be summed");
    armed_ = false;
    const c10::NoGradGuard no_grad;
    while (sent_ < buckets_.size())
      send();
    for (auto &bucket : buckets_) {
      bucket.work->wait();
      for (const auto &place : bucket.places) {
        auto &grad = tensors_[place.tensor].mutable_grad();
        if (grad.defined())
          grad.copy_(bucket.flat.narrow(0, place.start, grad.numel()).view(grad.sizes()));
      }
    }
  }

 private:
  struct Place {
    size_t tensor;
    int64_t start;
  };

  struct Bucket {
    std::vector<Place> places;
    int64_t length = 0;
    Tensor flat;
    size_t missing = 0;
    WorkPointer work;
  };

  struct Hook : torch::autograd::FunctionPostHook {
    Hook(Reducer *reducer_, size_t bucket_) : reducer(reducer_), bucket(bucket_) {}
    torch::autograd::variable_list operator()(
        const torch::autograd::variable_list &outputs, const torch::autograd::variable_list &) override {
      reducer->is_there(bucket);
      return outputs;
    }
    Reducer *reducer;
    size_t bucket;
  };

  void is_there(size_t number) {
    if (!armed_)
      return;
    buckets_[number].missing -= buckets_[number].missing > 0;
    while (sent_ < buckets_.size() && buckets_[sent_].missing == 0)
      send();
  }

  void send() {
    const c10::NoGradGuard no_grad;
    auto &bucket = buckets_[sent_];
    for (const auto &place : bucket.places) {
      const auto &tensor = tensors_[place.tensor];
      const auto room = bucket.flat.narrow(0, place.start, tensor.numel());
      if (tensor.grad().defined())
        room.view(tensor.sizes()).copy_(tensor.grad());
      else
        room.zero_();
    }
    bucket.work = sum(*gloo_, bucket.flat);
    ++sent_;
  }

  c10::intrusive_ptr<Gloo> gloo_;
  std::vector<Tensor> tensors_;
  std::vector<Bucket> buckets_;
  std::vector<std::pair<std::shared_ptr<torch::autograd::Node>, uintptr_t>> hooks_;
  size_t sent_ = 0;
  bool armed_ = false;
};

} // namespace

extern "C" {

// Meets the other processes at an address: the process that serves it, and the others, each within the time-out.
int torch_ext_group_open(
    const char *host, uint16_t port, bool serves, int rank, int size, const char *prefix, int64_t timeout_ms,
    Group **result) noexcept {
  return guarded([&] {
    // Of what c10d warns, the call that fails says more.
    FLAGS_caffe2_log_level = 3;
    const std::chrono::milliseconds timeout(timeout_ms);
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = serves;
    options.timeout = timeout;
    options.waitWorkers = false;
    const c10::intrusive_ptr<c10d::Store> server = c10::make_intrusive<c10d::TCPStore>(host, options);
    const c10::intrusive_ptr<c10d::Store> store = c10::make_intrusive<c10d::PrefixStore>(prefix, server);
    const std::string address = host;
    auto wanted = Gloo::Options::create_default(timeout);
    // All of them are on this machine; its name may lead elsewhere, or nowhere.
    if ((address == "localhost" || address.rfind("127.", 0) == 0) && !std::getenv("GLOO_SOCKET_IFNAME"))
      wanted->devices = {Gloo::createDeviceForHostname("127.0.0.1")};
    auto group = std::make_unique<Group>();
    group->gloo = c10::make_intrusive<Gloo>(store, rank, size, wanted);
    *result = group.release();
  });
}

void torch_ext_group_free(Group *group) noexcept { delete group; }

int torch_ext_group_sum(Group *group, const Tensor *const *tensors, size_t count) noexcept {
  return guarded([&] {
    with_flat(tensors, count, [&](const Tensor &flat) { sum(*group->gloo, flat)->wait(); });
  });
}

int torch_ext_group_broadcast(Group *group, const Tensor *const *tensors, size_t count, int root) noexcept {
  return guarded([&] {
    with_flat(tensors, count, [&](const Tensor &flat) { broadcast(*group->gloo, flat, root)->wait(); });
  });
}

int torch_ext_group_barrier(Group *group) noexcept {
  return guarded([&] { group->gloo->barrier()->wait(); });
}

// Gives `add` the bytes of every process, in the order of their ranks.
int torch_ext_group_gather(
    Group *group, const uint8_t *bytes, size_t length, void *into,
    void (*add)(void *into, const uint8_t *bytes, size_t length)) noexcept {
  return guarded([&] {
    auto &gloo = *group->gloo;
    const int size = gloo.getSize();
    const auto all = [&](const Tensor &own) {
      std::vector<std::vector<Tensor>> others(1);
      for (int rank = 0; rank < size; ++rank)
        others[0].push_back(at::zeros_like(own));
      std::vector<Tensor> tensors{own};
      gloo.allgather(others, tensors)->wait();
      return others[0];
    };
    const auto lengths = all(at::zeros({1}, at::TensorOptions(at::kLong)).fill_(static_cast<int64_t>(length)));
    int64_t longest = 1;
    for (const auto &each : lengths)
      longest = std::max(longest, each.item<int64_t>());
    const auto own = at::zeros({longest}, at::TensorOptions(at::kByte));
    if (length > 0)
      std::memcpy(own.mutable_data_ptr<uint8_t>(), bytes, length);
    const auto gathered = all(own);
    for (int rank = 0; rank < size; ++rank)
      add(into, gathered[rank].const_data_ptr<uint8_t>(), static_cast<size_t>(lengths[rank].item<int64_t>()));
  });
}

int torch_ext_reducer_new(
    const Group *group, const Tensor *const *tensors, size_t count, int64_t bucket_bytes, Reducer **result) noexcept {
  return guarded([&] {
    std::vector<Tensor> all;
    for (size_t i = 0; i < count; ++i)
      all.push_back(*tensors[i]);
    *result = new Reducer(group->gloo, std::move(all), bucket_bytes);
  });
}

int torch_ext_reducer_arm(Reducer *reducer) noexcept {
  return guarded([&] { reducer->arm(); });
}

int torch_ext_reducer_finish(Reducer *reducer) noexcept {
  return guarded([&] { reducer->finish(); });
}

void torch_ext_reducer_free(Reducer *reducer) noexcept { delete reducer; }

} // extern "C"
