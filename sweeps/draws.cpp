#include "sweeps/draws.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cmath>

#include "core/check.h"
#include "core/digest.h"
#include "core/philox.h"

namespace saesweep::sweeps {
namespace {

// Degree and coefficients of each dimension's primitive polynomial, and its initial numbers.
struct SobolDimension {
  unsigned degree, coefficients;
  std::array<std::uint32_t, 7> initial;
};
// Dimension 0 is the van der Corput sequence and has no polynomial.
constexpr std::array<SobolDimension, kMaxSobolAxes - 1> kSobol{{
    {1, 0, {1}},
    {2, 1, {1, 3}},
    {3, 1, {1, 3, 1}},
    {3, 2, {1, 1, 1}},
    {4, 1, {1, 1, 3, 3}},
    {4, 4, {1, 3, 5, 13}},
    {5, 2, {1, 1, 5, 5, 17}},
    {5, 4, {1, 1, 5, 5, 5}},
    {5, 7, {1, 1, 7, 11, 19}},
    {5, 11, {1, 1, 5, 1, 1}},
    {5, 13, {1, 1, 1, 3, 11}},
    {5, 14, {1, 3, 5, 5, 31}},
    {6, 1, {1, 3, 3, 9, 7, 49}},
    {6, 13, {1, 1, 1, 15, 21, 21}},
    {6, 16, {1, 3, 1, 13, 27, 49}},
    {6, 19, {1, 1, 1, 15, 7, 5}},
    {6, 22, {1, 3, 1, 15, 13, 25}},
    {6, 25, {1, 1, 5, 5, 19, 61}},
    {7, 1, {1, 3, 7, 11, 23, 15, 103}},
    {7, 4, {1, 3, 7, 13, 13, 15, 69}},
    {7, 7, {1, 1, 3, 13, 7, 35, 63}},
    {7, 8, {1, 3, 5, 9, 1, 25, 53}},
}};

// 12 significant digits: the last bits of log and exp differ between C libraries, and a drawn value
// is part of an identity.
double rounded(double value) {
  const std::string text = fmt::format("{:.12g}", value);
  double out = 0;
  std::from_chars(text.data(), text.data() + text.size(), out);
  return out;
}

double between(const DrawnAxis& axis, double position) {
  const bool logarithmic = axis.kind == DrawnAxis::Kind::kLogUniform;
  const double low = logarithmic ? std::log(axis.low) : axis.low;
  const double high = logarithmic ? std::log(axis.high) : axis.high;
  const double value = low * (1 - position) + high * position;
  return std::clamp(rounded(logarithmic ? std::exp(value) : value), axis.low, axis.high);
}

// `position` in [0, 1) to a value: every integer and every choice gets an equal part.
DrawnValue value_at(const DrawnAxis& axis, double position) {
  const auto part = [position](std::uint64_t count) {
    return std::min(static_cast<std::uint64_t>(position * static_cast<double>(count)), count - 1);
  };
  switch (axis.kind) {
    case DrawnAxis::Kind::kIntUniform:
      return axis.int_low + part(axis.int_high - axis.int_low + 1);
    case DrawnAxis::Kind::kChoice:
      return part(axis.choices.size());
    case DrawnAxis::Kind::kUniform:
    case DrawnAxis::Kind::kLogUniform:
      break;
  }
  return between(axis, position);
}

// The i-th of `samples` equally spaced values, both ends included.
DrawnValue grid_value(const DrawnAxis& axis, std::uint64_t index, std::uint64_t samples) {
  const double share =
      samples == 1 ? 0 : static_cast<double>(index) / static_cast<double>(samples - 1);
  const auto nearest = [share](std::uint64_t span) {
    return static_cast<std::uint64_t>(std::llround(share * static_cast<double>(span)));
  };
  switch (axis.kind) {
    case DrawnAxis::Kind::kIntUniform:
      return axis.int_low + nearest(axis.int_high - axis.int_low);
    case DrawnAxis::Kind::kChoice:
      return nearest(axis.choices.size() - 1);
    case DrawnAxis::Kind::kUniform:
    case DrawnAxis::Kind::kLogUniform:
      break;
  }
  if (index == 0) return axis.low;
  if (index + 1 == samples) return axis.high;
  return between(axis, share);
}

Json range_json(const DrawnAxis& axis) {
  switch (axis.kind) {
    case DrawnAxis::Kind::kUniform:
      return {{"uniform", {axis.low, axis.high}}};
    case DrawnAxis::Kind::kLogUniform:
      return {{"log_uniform", {axis.low, axis.high}}};
    case DrawnAxis::Kind::kIntUniform:
      return {{"int_uniform", {axis.int_low, axis.int_high}}};
    case DrawnAxis::Kind::kChoice:
      return {{"choice", axis.choices}};
  }
  return nullptr;
}

}  // namespace

std::string_view to_string(Strategy strategy) {
  switch (strategy) {
    case Strategy::kGrid:
      return "grid";
    case Strategy::kRandom:
      return "random";
    case Strategy::kLatinHypercube:
      return "lhs";
    case Strategy::kSobol:
      return "sobol";
  }
  return "?";
}

std::optional<Strategy> parse_strategy(std::string_view text) {
  for (const Strategy each :
       {Strategy::kGrid, Strategy::kRandom, Strategy::kLatinHypercube, Strategy::kSobol})
    if (to_string(each) == text) return each;
  return std::nullopt;
}

std::uint32_t sobol_bits(std::size_t dimension, std::uint32_t index) {
  SAE_CHECK(dimension < kMaxSobolAxes, "Sobol dimension {}", dimension);
  std::array<std::uint32_t, 32> direction;
  if (dimension == 0) {
    for (unsigned i = 0; i < 32; ++i) direction[i] = std::uint32_t{1} << (31 - i);
  } else {
    const SobolDimension& own = kSobol[dimension - 1];
    for (unsigned i = 0; i < own.degree; ++i) direction[i] = own.initial[i] << (31 - i);
    for (unsigned i = own.degree; i < 32; ++i) {
      direction[i] = direction[i - own.degree] ^ (direction[i - own.degree] >> own.degree);
      for (unsigned j = 1; j < own.degree; ++j)
        if (((own.coefficients >> (own.degree - 1 - j)) & 1u) != 0)
          direction[i] ^= direction[i - j];
    }
  }
  std::uint32_t bits = 0;
  for (std::uint32_t gray = index ^ (index >> 1); gray != 0; gray &= gray - 1)
    bits ^= direction[static_cast<unsigned>(std::countr_zero(gray))];
  return bits;
}

PointSource::PointSource(Strategy strategy, std::uint64_t seed, std::vector<DrawnAxis> axes,
                         std::uint64_t samples)
    : strategy_(strategy), seed_(seed), axes_(std::move(axes)), samples_(samples) {
  SAE_CHECK(samples_ > 0 && !axes_.empty(), "{} samples, {} axes", samples_, axes_.size());
  SAE_CHECK(strategy != Strategy::kSobol || axes_.size() <= kMaxSobolAxes, "{} axes", axes_.size());
  std::sort(axes_.begin(), axes_.end(),
            [](const DrawnAxis& a, const DrawnAxis& b) { return a.name < b.name; });
  Json space = Json::object();
  for (const DrawnAxis& axis : axes_) space[axis.name] = range_json(axis);
  purpose_ = fmt::format("search.{}.{}", to_string(strategy), sha256(canonical_json(space)).hex());
}

double PointSource::position(std::size_t axis, std::uint64_t index) const {
  if (strategy_ == Strategy::kRandom) {
    Rng rng(seed_, purpose_, index);
    for (std::size_t skipped = 0; skipped < axis; ++skipped) rng.uniform();
    return rng.uniform();
  }
  if (strategy_ == Strategy::kLatinHypercube) {
    const Permutation part(samples_, seed_, purpose_ + ".part", axis);
    Rng rng(seed_, purpose_ + "." + axes_[axis].name, index);
    return (static_cast<double>(part(index)) + rng.uniform()) / static_cast<double>(samples_);
  }
  // Sobol. XOR with one random word per axis (a digital shift) keeps the even spread and makes
  // seeds differ; half a unit in the last place keeps 0 out.
  Rng rng(seed_, purpose_, axis);
  const std::uint32_t bits = sobol_bits(axis, static_cast<std::uint32_t>(index)) ^ rng.next_u32();
  return std::ldexp(static_cast<double>(bits) + 0.5, -32);
}

std::vector<DrawnValue> PointSource::point(std::uint64_t index) const {
  SAE_CHECK(index < samples_, "point {} of {}", index, samples_);
  std::vector<DrawnValue> values;
  for (std::size_t axis = 0; axis < axes_.size(); ++axis)
    values.push_back(strategy_ == Strategy::kGrid ? grid_value(axes_[axis], index, samples_)
                                                  : value_at(axes_[axis], position(axis, index)));
  return values;
}

}  // namespace saesweep::sweeps
