// CUDA graphs: at::cuda::CUDAGraph of whichever libtorch_cuda the process has loaded.
//
// Its header needs CUDA's own, which a machine that only compiles does not have. The members are looked up by their names
// in the C++ ABI instead; where one is missing, there are no graphs. Streams are reached through libtorch's interface for
// every kind of device.

#include "shared.h"

#include <ATen/Context.h>
#include <c10/core/Allocator.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <dlfcn.h>

#include <cstddef>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>

using namespace torch_ext;

namespace {

struct Members {
  void (*construct)(void *graph, bool keep_graph);
  void (*destroy)(void *graph);
  void (*capture_begin)(void *graph, c10::MempoolId_t pool, int mode);
  void (*capture_end)(void *graph);
  void (*replay)(void *graph);
};

template <class F>
bool find(F &member, const char *name) {
  member = reinterpret_cast<F>(dlsym(RTLD_DEFAULT, name));
  return member != nullptr;
}

std::optional<Members> find_members() {
  Members all{};
  const bool found = find(all.construct, "_ZN2at4cuda9CUDAGraphC1Eb") &&
      find(all.destroy, "_ZN2at4cuda9CUDAGraphD1Ev") &&
      find(all.capture_begin, "_ZN2at4cuda9CUDAGraph13capture_beginESt4pairIyyE21cudaStreamCaptureMode") &&
      find(all.capture_end, "_ZN2at4cuda9CUDAGraph11capture_endEv") &&
      find(all.replay, "_ZN2at4cuda9CUDAGraph6replayEv");
  return found ? std::optional(all) : std::nullopt;
}

const std::optional<Members> &members() {
  static const auto found = find_members();
  return found;
}

// cudaStreamCaptureModeThreadLocal: other threads may go on allocating and copying, as those that prepare pictures do.
constexpr int THREAD_LOCAL = 1;

const c10::impl::DeviceGuardImplInterface &cuda() { return *c10::impl::getDeviceGuardImpl(at::kCUDA); }

// The stream that a card's graphs are captured on: always the same, because cuBLAS keeps a workspace for every stream.
c10::Stream capture_stream(c10::Device device) {
  static std::mutex mutex;
  static std::unordered_map<c10::DeviceIndex, c10::Stream> streams;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto known = streams.find(device.index());
  if (known != streams.end())
    return known->second;
  return streams.emplace(device.index(), cuda().getStreamFromGlobalPool(device, /*isHighPriority=*/false)).first->second;
}

struct Graph {
  // Room for a CUDAGraph of libtorch 2.11, which takes less than half of it.
  alignas(std::max_align_t) std::byte graph[1024];
  // A capture needs a stream of its own.
  c10::Stream stream;
  std::unique_ptr<c10::StreamGuard> capturing;

  explicit Graph(c10::Stream stream_) : stream(stream_) { members()->construct(graph, /*keep_graph=*/false); }
  ~Graph() { members()->destroy(graph); }
  Graph(const Graph &) = delete;
  Graph &operator=(const Graph &) = delete;
};

} // namespace

extern "C" {

int torch_ext_graph_supported(int device, bool *supported) noexcept {
  return guarded([&] {
    const auto of = device_of(device);
    *supported = is_cuda_here(of) && members().has_value();
  });
}

// From here to torch_ext_graph_end the thread's work on the device is noted and not done.
int torch_ext_graph_begin(int device, Graph **result) noexcept {
  return guarded([&] {
    const auto of = device_of(device);
    if (!is_cuda_here(of) || !members())
      throw ArgumentError("there are no CUDA graphs for this device");
    auto graph = std::make_unique<Graph>(capture_stream(of));
    cuda().synchronizeDevice(of.index());
    graph->capturing = std::make_unique<c10::StreamGuard>(graph->stream);
    members()->capture_begin(graph->graph, c10::MempoolId_t{0, 0}, THREAD_LOCAL);
    *result = graph.release();
  });
}

// Ends the capture, and gives the thread its stream back, also where it fails.
int torch_ext_graph_end(Graph *graph) noexcept {
  return guarded([&] {
    const auto capturing = std::move(graph->capturing);
    members()->capture_end(graph->graph);
  });
}

// Queues the work on the thread's current stream.
int torch_ext_graph_replay(Graph *graph) noexcept {
  return guarded([&] { members()->replay(graph->graph); });
}

void torch_ext_graph_free(Graph *graph) noexcept { delete graph; }

} // extern "C"
