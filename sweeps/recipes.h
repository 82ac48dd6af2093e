// Named, immutable sets of defaults. A recipe states everything its numbers depend on, reductions
// included, as JSON blobs, each for some architectures; the hash of an architecture's blob is
// stored with every result, so that two results made under the same name can be told apart if the
// blob should ever have been touched. An architecture that comes later brings a blob of its own and
// changes no hash.
//
// `normalize` and `precision` never come from a recipe.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "core/digest.h"
#include "core/json.h"
#include "sweeps/spec.h"

namespace saesweep::sweeps {

std::span<const std::string_view> recipe_names();

// The blob that states an architecture; nullptr if there is no such recipe.
const Json* find_recipe(std::string_view name, Architecture architecture);

// SHA-256 of the blob's canonical JSON, as hex; empty for an unknown recipe.
std::string recipe_hash(std::string_view name, Architecture architecture);

// Batch of a recipe that exists; the budget divided by it is the run's length.
std::uint64_t recipe_batch(std::string_view name);

// Where a line begins to fall, of a run of `steps` steps.
std::uint64_t recipe_decay_start(std::string_view name, Architecture architecture,
                                 std::uint64_t steps);

// The recipe's defaults for a run of `steps` steps: everything but the required parameters, tokens,
// batch, seed, precision, device. Values that do not apply to the architecture stay at the
// struct's. `loss` is the penalty of a jumprelu.
TrainingSpec recipe_training(std::string_view name, Architecture architecture, std::uint64_t steps,
                             SparsityLoss loss = SparsityLoss::kL0Target);

}  // namespace saesweep::sweeps
