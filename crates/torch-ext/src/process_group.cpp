// Several processes that compute together: libtorch's c10d with Gloo, and sums of gradients that are made while the rest
// of the backward pass still runs.

#define USE_C10D_GLOO

#include "nccl.h"
#include "shared.h"
#include "together.h"

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

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

using namespace torch_ext;
using at::Tensor;

namespace {

using Gloo = c10d::ProcessGroupGloo;
using WorkPointer = c10::intrusive_ptr<c10d::Work>;

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

// Does `work` with the tensors of each kind, one after the other in one piece of a device's memory, and copies them back.
template <class F>
void with_flat(const Tensor *const *tensors, size_t count, c10::Device device, const F &work) {
  const c10::NoGradGuard no_grad;
  std::vector<at::ScalarType> kinds;
  for (size_t i = 0; i < count; ++i)
    if (std::find(kinds.begin(), kinds.end(), tensors[i]->scalar_type()) == kinds.end())
      kinds.push_back(tensors[i]->scalar_type());
  for (const auto kind : kinds) {
    int64_t length = 0;
    for (size_t i = 0; i < count; ++i)
      length += tensors[i]->scalar_type() == kind ? tensors[i]->numel() : 0;
    const auto flat = at::empty({length}, at::TensorOptions(kind).device(device));
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

struct Group : Together {
  c10::intrusive_ptr<Gloo> gloo;
  // Where every process has a card of its own.
  std::unique_ptr<Nccl> nccl;
  // What became of a sum inside a pass that failed.
  std::string failure;

  void sum_all(const Tensor *const *tensors, size_t count) {
    const auto on_card = [](const Tensor *tensor) { return tensor->is_cuda(); };
    if (nccl && count > 0 && std::all_of(tensors, tensors + count, on_card))
      return with_flat(tensors, count, tensors[0]->device(), [&](const Tensor &flat) { nccl->sum(flat); });
    with_flat(tensors, count, at::kCPU, [&](const Tensor &flat) { ::sum(*gloo, flat)->wait(); });
  }

  void sum(const Tensor &tensor) override {
    const Tensor *const one = &tensor;
    try {
      sum_all(&one, 1);
    } catch (const c10::Error &error) {
      failure = error.what_without_backtrace();
      throw;
    } catch (const std::exception &error) {
      failure = error.what();
      throw;
    }
  }

  // Gives every process's numbers, in the order of their ranks.
  std::vector<Tensor> gather(const Tensor &own) {
    std::vector<std::vector<Tensor>> all(1);
    for (int rank = 0; rank < gloo->getSize(); ++rank)
      all[0].push_back(at::zeros_like(own));
    std::vector<Tensor> tensors{own};
    gloo->allgather(all, tensors)->wait();
    return all[0];
  }
};

// A number for this process's card among those of all machines, or 0 without a card that NCCL reaches.
int64_t number_of_card(c10::Device device) {
  if (!is_cuda_here(device) || !Nccl::is_there())
    return 0;
  char host[256] = {};
  gethostname(host, sizeof(host) - 1);
  const char *const visible = std::getenv("CUDA_VISIBLE_DEVICES");
  const auto name = std::string(host) + "/" + (visible ? visible : "") + "/" + std::to_string(device.index());
  return static_cast<int64_t>(std::hash<std::string>()(name) | 1);
}

// Begins NCCL if every process has a card of its own.
void open_nccl(Group &group, c10d::Store &store, c10::Device device, std::chrono::milliseconds timeout) {
  const auto own = at::zeros({1}, at::TensorOptions(at::kLong)).fill_(number_of_card(device));
  std::set<int64_t> cards;
  for (const auto &card : group.gather(own))
    cards.insert(card.item<int64_t>());
  const int size = group.gloo->getSize(), rank = group.gloo->getRank();
  if (cards.count(0) || cards.size() != static_cast<size_t>(size))
    return;
  Nccl::Id id{};
  if (rank == 0) {
    id = Nccl::make_id();
    store.set("nccl", std::vector<uint8_t>(id.begin(), id.end()));
  } else {
    const auto told = store.get("nccl");
    if (told.size() != id.size())
      throw std::runtime_error("the first process's NCCL has another length");
    std::copy(told.begin(), told.end(), id.begin());
  }
  group.nccl = std::make_unique<Nccl>(id, rank, size, device, timeout);
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

  // Bytes of each bucket, in the order in which they are sent.
  std::vector<int64_t> bucket_bytes() const {
    std::vector<int64_t> all;
    for (const auto &bucket : buckets_)
      all.push_back(bucket.length * static_cast<int64_t>(sizeof(float)));
    return all;
  }

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
    const char *host, uint16_t port, bool serves, int rank, int size, const char *prefix, int device,
    int64_t timeout_ms, Group **result) noexcept {
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
    auto group = c10::make_intrusive<Group>();
    group->gloo = c10::make_intrusive<Gloo>(store, rank, size, wanted);
    open_nccl(*group, *store, device_of(device), timeout);
    *result = group.release();
  });
}

void torch_ext_group_free(Group *group) noexcept { c10::intrusive_ptr<Group>::reclaim(group); }

bool torch_ext_group_has_nccl(const Group *group) noexcept { return group->nccl != nullptr; }

// What became of a sum inside a pass that failed; null if none did.
const char *torch_ext_group_failure(const Group *group) noexcept {
  return group->failure.empty() ? nullptr : group->failure.c_str();
}

// In training passes that this thread begins from now on, batch norm normalises by the images of all processes: with
// null, by those of this one again.
void torch_ext_group_share_batch(Group *group, bool counts) noexcept {
  shared_batch.processes = group ? c10::intrusive_ptr<Group>::reclaim_copy(group) : nullptr;
  shared_batch.counts = counts;
}

int torch_ext_group_sum(Group *group, const Tensor *const *tensors, size_t count) noexcept {
  return guarded([&] { group->sum_all(tensors, count); });
}

int torch_ext_group_broadcast(Group *group, const Tensor *const *tensors, size_t count, int root) noexcept {
  return guarded([&] {
    with_flat(tensors, count, at::kCPU, [&](const Tensor &flat) { broadcast(*group->gloo, flat, root)->wait(); });
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
    const auto number = at::zeros({1}, at::TensorOptions(at::kLong)).fill_(static_cast<int64_t>(length));
    const auto lengths = group->gather(number);
    int64_t longest = 1;
    for (const auto &each : lengths)
      longest = std::max(longest, each.item<int64_t>());
    const auto own = at::zeros({longest}, at::TensorOptions(at::kByte));
    if (length > 0)
      std::memcpy(own.mutable_data_ptr<uint8_t>(), bytes, length);
    const auto gathered = group->gather(own);
    for (size_t rank = 0; rank < gathered.size(); ++rank)
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

void torch_ext_reducer_buckets(const Reducer *reducer, void *into, void (*add)(void *into, int64_t bytes)) noexcept {
  for (const auto bytes : reducer->bucket_bytes())
    add(into, bytes);
}

void torch_ext_reducer_free(Reducer *reducer) noexcept { delete reducer; }

} // extern "C"
