// The words of a sweep file: which keys each of its maps may have, and what each parameter of
// training is. The JSON Schema is tested against these tables.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

#include "sweeps/spec.h"

namespace saesweep::sweeps {

enum class KeySet {
  kTop,
  kModel,
  kOthello,
  kActivationData,
  kActivations,
  kFilters,
  kTrain,
  kFamily,
  kSearch,
  kCore,
  kBoard,
  kResources,
  kTrainLm,
  kEarlyStopping,
};
std::span<const std::string_view> known_keys(KeySet set);

// Words of a later version. Such a source gets an error that says so.
std::span<const std::string_view> later_sources();

// "standard, standard_bricken, ...": what this version has.
std::span<const std::string_view> architecture_names();
std::span<const std::string_view> baseline_names();

// Parameters of training, in the order in which lists expand (the first varies slowest).
enum class ParameterId : std::uint8_t {
  kTokens,
  kBatch,
  kDSae,
  kK,
  kL1,
  kL0Target,
  kL0Coefficient,
  kLr,
  kAdamBetas,
  kGradClip,
  kWarmupSteps,
  kDecayStart,
  kLrSchedule,
  kSparsityWarmupSteps,
  kAuxK,
  kAuxKWeight,
  kDeadAfterTokens,
  kThresholdBeta,
  kThresholdStartStep,
  kSelectScope,
  kGroupFractions,
  kPStart,
  kPEnd,
  kAnnealStart,
  kAnnealEnd,
  kNSparsityUpdates,
  kSparsityFunction,
  kSparsityLoss,
  kBandwidth,
  kInitThreshold,
  kInToOrig,
  kOutToIn,
  kInit,
};
inline constexpr std::size_t kParameterCount = 33;

enum class ParameterKind : std::uint8_t {
  kCount,      // whole, in [low, high]
  kReal,       // in [low, high]; low_open: low itself is refused
  kSteps,      // a count or a share of the run
  kBetas,      // a pair
  kClip,       // a positive real or `none`
  kWord,       // one of `words`
  kFractions,  // a list of shares, as numbers or like 1/32, that sum to 1
  kPath,
};

struct Parameter {
  ParameterId id;
  std::string_view name;
  ParameterKind kind;
  bool (*applies)(Architecture);
  double low = 0, high = 0;
  bool low_open = false;
  std::span<const std::string_view> words = {};
};
std::span<const Parameter, kParameterCount> parameters();
const Parameter& parameter(ParameterId id);
const Parameter* find_parameter(std::string_view name);

}  // namespace saesweep::sweeps
