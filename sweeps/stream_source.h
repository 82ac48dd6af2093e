// `model`, `data` and `activations` of a sweep file: which activation streams there are.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "sweeps/model_shapes.h"
#include "sweeps/section.h"
#include "sweeps/spec.h"

namespace saesweep::sweeps {

struct StreamSource {
  std::optional<ModelSpec> model;
  std::optional<ModelShape> shape;  // of the model; none if it could not be read
  DataSpec data;
  bool has_data = false;           // `data` was read without a problem
  StreamSpec stream;               // of every hook: all but the hook itself
  std::vector<std::string> hooks;  // of `activations`; one empty name for `source: activations`
  std::uint64_t cache_bytes = std::uint64_t{4} << 30;
  // What is known without generating or reading data; 0: nothing.
  std::uint64_t documents = 0, rows_per_document = 0;
  std::uint64_t width = 0;  // of `source: activations`

  bool is_board_game() const { return has_data && data.source == "othello"; }
  bool is_activations() const { return has_data && data.source == "activations"; }
  StreamSpec stream_of(const std::string& hook) const;
  // 0 if the model is not known.
  std::uint64_t d_in(const std::string& hook) const;
};

// Where relative paths begin: the sweep file's folder.
std::filesystem::path absolute_path(const std::filesystem::path& directory,
                                    const std::string& written);

DataSpec read_data(const Section& top, const std::filesystem::path& directory, StreamSource& source,
                   Problems& problems);

// `activations.holdout`, 5 % if absent. A share below 1.
double read_holdout(const Section& activations, Problems& problems);

StreamSource read_stream_source(const Section& top, const std::filesystem::path& directory,
                                Problems& problems);

// Complains at `node` if the model has no such hook, with the nearest it has.
bool check_hook(const StreamSource& source, const std::string& hook, const YamlNode& node,
                const std::string& path, Problems& problems);

}  // namespace saesweep::sweeps
