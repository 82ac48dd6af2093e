// `--set key.path=value`: one key of a sweep file, changed from the command line.
#pragma once

#include <string_view>

#include "sweeps/section.h"

namespace saesweep::sweeps {

// "train.tokens=1M", "trials.0.k=[8, 16]" or "trials[0].k=8" changes the tree: the value is YAML,
// maps on the way that are missing are made, an index must exist. What stands there afterwards
// carries "--set train.tokens" as its origin, so that later complaints name it.
void apply_override(YamlNode& root, std::string_view assignment, Problems& problems);

}  // namespace saesweep::sweeps
