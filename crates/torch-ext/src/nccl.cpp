// NCCL by way of torch::cuda::nccl. Its header needs CUDA's own; as in cuda_graph.cpp, functions are looked up by their
// names in the C++ ABI instead. Where one is missing, tensors of cards are summed in main memory.

#include "nccl.h"

#include "shared.h"

#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <dlfcn.h>

#include <thread>
#include <vector>

namespace torch_ext {

namespace {

// In place of std::optional<at::cuda::CUDAStream>: a list without one has no element to read.
struct NoStream {};

struct Functions {
  void (*get_unique_id)(char *id);
  void *(*comm_init_rank)(int size, const char *id, int rank);
  void (*comm_destroy)(void *communicator);
  void (*all_reduce)(
      const std::vector<at::Tensor> &inputs, std::vector<at::Tensor> &outputs, int32_t operation,
      const std::vector<NoStream> &streams, const std::vector<void *> &communicators);
};

template <class F>
bool find(F &function, const char *name) {
  function = reinterpret_cast<F>(dlsym(RTLD_DEFAULT, name));
  return function != nullptr;
}

const Functions *functions() {
  static Functions all{};
  static const bool found = find(all.get_unique_id, "_ZN5torch4cuda4nccl13get_unique_idERNS1_12ncclUniqueIdE") &&
      find(all.comm_init_rank, "_ZN5torch4cuda4nccl14comm_init_rankEiRKNS1_12ncclUniqueIdEi") &&
      find(all.comm_destroy, "_ZN5torch4cuda4nccl12comm_destroyEPv") &&
      find(all.all_reduce,
           "_ZN5torch4cuda4nccl10all_reduceERKSt6vectorIN2at6TensorESaIS4_EERS6_iRKS2_ISt8optionalIN3c104cuda10CUDAStream"
           "EESaISE_EERKS2_IPvSaISJ_EE");
  return found ? &all : nullptr;
}

const Functions &needed() {
  if (!functions())
    throw ArgumentError("this libtorch has no NCCL");
  return *functions();
}

constexpr int32_t SUM = 0; // ncclRedOp::Sum

} // namespace

bool Nccl::is_there() { return functions() != nullptr; }

Nccl::Id Nccl::make_id() {
  Id id{};
  needed().get_unique_id(id.data());
  return id;
}

Nccl::Nccl(const Id &id, int rank, int size, c10::Device device, std::chrono::milliseconds timeout)
    : device_(device), timeout_(timeout) {
  const c10::DeviceGuard guard(device_);
  communicator_ = needed().comm_init_rank(size, id.data(), rank);
}

Nccl::~Nccl() { needed().comm_destroy(communicator_); }

void Nccl::sum(const at::Tensor &flat) const {
  const c10::DeviceGuard guard(device_);
  std::vector<at::Tensor> tensors{flat};
  needed().all_reduce(tensors, tensors, SUM, {}, {communicator_});
  // The work of a process that is gone never ends, and nothing that waits for the card would.
  c10::Event done(c10::DeviceType::CUDA);
  done.record(c10::impl::getDeviceGuardImpl(c10::DeviceType::CUDA)->getStream(device_));
  const auto end = std::chrono::steady_clock::now() + timeout_;
  while (!done.query()) {
    if (std::chrono::steady_clock::now() > end)
      throw std::runtime_error("NCCL: no answer in time");
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}

} // namespace torch_ext
