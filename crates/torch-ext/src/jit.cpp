// What a pass through a network consists of, and networks as TorchScript files, for src/jit.rs.

#include "shared.h"

#include <ATen/core/Tensor.h>
#include <torch/csrc/jit/api/compilation_unit.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/ir/ir.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/csrc/jit/serialization/export.h>

#include <cstring>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

namespace {

using torch::jit::Node;
using torch::jit::Value;
using torch_ext::ArgumentError;
using torch_ext::guarded;

using Tensors = const at::Tensor *const *;

namespace tracer = torch::jit::tracer;

// Writes a traced graph as JSON. Tensors that are neither inputs nor results go to `constants`.
struct Writer {
  std::ostringstream out;
  std::vector<at::Tensor> constants;

  void text(const std::string &text) {
    out << '"';
    for (char letter : text) {
      if (letter == '"' || letter == '\\') {
        out << '\\';
      }
      out << letter;
    }
    out << '"';
  }

  template <typename Items, typename F>
  void list(const Items &items, F &&each) {
    out << '[';
    bool first = true;
    for (const auto &item : items) {
      if (!first) {
        out << ',';
      }
      first = false;
      each(item);
    }
    out << ']';
  }

  // Doubles as their bits: JSON has no infinity.
  void number(double value) {
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    out << bits;
  }

  void constant(const c10::IValue &value) {
    if (value.isNone()) {
      out << "\"None\"";
    } else if (value.isBool()) {
      out << "{\"Bool\":" << (value.toBool() ? "true" : "false") << '}';
    } else if (value.isInt()) {
      out << "{\"Int\":" << value.toInt() << '}';
    } else if (value.isDouble()) {
      out << "{\"Float\":";
      number(value.toDouble());
      out << '}';
    } else if (value.isString()) {
      out << "{\"Text\":";
      text(value.toStringRef());
      out << '}';
    } else if (value.isIntList()) {
      out << "{\"Ints\":";
      list(value.toIntVector(), [&](int64_t item) { out << item; });
      out << '}';
    } else if (value.isTensor()) {
      out << "{\"Constant\":" << constants.size() << '}';
      constants.push_back(value.toTensor());
    } else if (value.isDevice()) {
      out << "{\"Text\":";
      text(value.toDevice().str());
      out << '}';
    } else {
      throw ArgumentError("a traced operation has a " + value.tagKind() + " as an argument");
    }
  }

  void argument(const Value *value) {
    const Node *node = value->node();
    if (node->kind() == c10::prim::Constant) {
      constant(*torch::jit::toIValue(value));
    } else if (node->kind() == c10::prim::ListConstruct) {
      const bool ints = value->type()->isSubtypeOf(*c10::ListType::ofInts());
      out << (ints ? "{\"Ints\":" : "{\"Values\":");
      list(node->inputs(), [&](const Value *item) {
        if (!ints) {
          out << item->unique();
        } else if (const auto number = torch::jit::toIValue(item)) {
          out << number->toInt();
        } else {
          throw ArgumentError("a traced operation has a computed number as an argument");
        }
      });
      out << '}';
    } else {
      out << "{\"Value\":" << value->unique() << '}';
    }
  }

  void result(const Value *value) {
    out << "{\"id\":" << value->unique() << ",\"shape\":";
    const auto tensor = value->type()->cast<c10::TensorType>();
    const auto sizes = tensor ? tensor->sizes().concrete_sizes() : std::nullopt;
    list(sizes.value_or(std::vector<int64_t>()), [&](int64_t size) { out << size; });
    out << '}';
  }

  void node(const Node *node) {
    out << "{\"op\":";
    text(node->kind().toQualString());
    out << ",\"arguments\":";
    list(node->inputs(), [&](const Value *value) { argument(value); });
    // Arguments that can be given by name alone, and "" for the others.
    out << ",\"keywords\":";
    const auto *schema = node->maybeSchema();
    size_t position = 0;
    list(node->inputs(), [&](const Value *) {
      const bool named = schema != nullptr && schema->arguments().at(position).kwarg_only();
      text(named ? schema->arguments().at(position).name() : "");
      ++position;
    });
    out << ",\"results\":";
    list(node->outputs(), [&](const Value *value) { result(value); });
    out << '}';
  }

  void graph(const torch::jit::Graph &graph) {
    std::vector<const Node *> nodes;
    for (const Node *node : graph.nodes()) {
      if (node->kind() != c10::prim::Constant && node->kind() != c10::prim::ListConstruct) {
        nodes.push_back(node);
      }
    }
    out << "{\"inputs\":";
    list(graph.inputs(), [&](const Value *value) { out << value->unique(); });
    out << ",\"nodes\":";
    list(nodes, [&](const Node *item) { node(item); });
    out << ",\"output\":" << graph.outputs().at(0)->unique() << '}';
  }
};

// The module of this path below `root`, made if there is none. Each is a class of its own.
torch::jit::Module submodule(
    torch::jit::Module module, const std::vector<std::string> &path, const std::shared_ptr<torch::jit::CompilationUnit> &unit,
    size_t &classes) {
  for (const auto &name : path) {
    if (!module.hasattr(name)) {
      torch::jit::Module part(c10::QualifiedName("__torch__.Part" + std::to_string(classes++)), unit);
      part.register_attribute("training", c10::BoolType::get(), false);
      module.register_module(name, part);
    }
    module = module.attr(name).toModule();
  }
  return module;
}

} // namespace

extern "C" {

// From here to torch_ext_trace_end this thread notes what is computed from these tensors.
int torch_ext_trace_start(Tensors inputs, size_t count) {
  return guarded([&] {
    if (tracer::isTracing()) {
      throw ArgumentError("this thread is tracing already");
    }
    auto state = std::make_shared<tracer::TracingState>();
    for (size_t i = 0; i < count; ++i) {
      Value *value = state->graph->addInput();
      value->inferTypeFrom(*inputs[i]);
      state->setValue(*inputs[i], value);
    }
    tracer::setTracingState(state);
  });
}

// Hands the graph that ends in `output` to `take`, and gives out its constants to `add`.
int torch_ext_trace_end(
    const at::Tensor *output, void *into, void (*take)(void *, const char *, size_t), void (*add)(void *, at::Tensor *)) {
  return guarded([&] {
    auto state = tracer::getTracingState();
    if (!state) {
      throw ArgumentError("this thread is not tracing");
    }
    state->graph->registerOutput(state->getOutput(*output, 0));
    tracer::setTracingState(nullptr);
    torch::jit::EliminateDeadCode(state->graph);
    Writer writer;
    writer.graph(*state->graph);
    const std::string text = writer.out.str();
    take(into, text.data(), text.size());
    for (const auto &constant : writer.constants) {
      add(into, new at::Tensor(constant));
    }
  });
}

int torch_ext_trace_abandon() {
  return guarded([&] { tracer::abandon(); });
}

// Compiles `source`, a method, as that of a module with these parameters and buffers, and hands the file to `write`,
// which returns whether it could take the bytes.
int torch_ext_script(
    const char *source, const char *const *names, Tensors tensors, const bool *parameters, size_t count,
    const char *const *extra_names, const char *const *extra_texts, size_t extra_count, void *into,
    bool (*write)(void *, const void *, size_t)) {
  return guarded([&] {
    auto unit = std::make_shared<torch::jit::CompilationUnit>();
    torch::jit::Module root(c10::QualifiedName("__torch__.Network"), unit);
    root.register_attribute("training", c10::BoolType::get(), false);
    size_t classes = 0;
    for (size_t i = 0; i < count; ++i) {
      std::vector<std::string> path;
      std::istringstream parts{std::string(names[i])};
      for (std::string part; std::getline(parts, part, '.');) {
        path.push_back(part);
      }
      if (path.empty()) {
        throw ArgumentError("a tensor has no name");
      }
      const std::string last = path.back();
      path.pop_back();
      auto module = submodule(root, path, unit, classes);
      if (parameters[i]) {
        module.register_parameter(last, tensors[i]->detach().requires_grad_(true), false);
      } else {
        module.register_buffer(last, tensors[i]->detach());
      }
    }
    root.define(source);
    torch::jit::ExtraFilesMap extra;
    for (size_t i = 0; i < extra_count; ++i) {
      extra[extra_names[i]] = extra_texts[i];
    }
    bool taken = true;
    torch::jit::ExportModule(
        root,
        [&](const void *bytes, size_t size) {
          taken = taken && write(into, bytes, size);
          // The writer takes a short count for a failure, and fails once more when it is closed.
          return size;
        },
        extra);
    if (!taken) {
      throw ArgumentError("the file could not be written");
    }
  });
}

} // extern "C"
