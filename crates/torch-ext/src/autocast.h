// What of libtorch's autocast the C++ files of this crate call.
//
// Declared here because ATen/autocast_mode.h includes all of ATen and doubles the time a file takes.

#pragma once

#include <c10/core/DeviceType.h>
#include <c10/core/ScalarType.h>
#include <c10/macros/Export.h>

#include <optional>

namespace at::autocast {
TORCH_API bool is_autocast_enabled(at::DeviceType);
TORCH_API void set_autocast_enabled(at::DeviceType, bool);
TORCH_API at::ScalarType get_autocast_dtype(at::DeviceType);
TORCH_API void set_autocast_dtype(at::DeviceType, at::ScalarType);
TORCH_API void clear_cache();
TORCH_API int increment_nesting();
TORCH_API int decrement_nesting();
} // namespace at::autocast

namespace torch_ext {

// The kind that autocast computes in on the CPU, if it is on.
inline std::optional<at::ScalarType> autocast_kind() {
  return at::autocast::is_autocast_enabled(at::kCPU) ? std::optional(at::autocast::get_autocast_dtype(at::kCPU))
                                                     : std::nullopt;
}

} // namespace torch_ext
