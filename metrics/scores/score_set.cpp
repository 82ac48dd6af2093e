#include "metrics/scores/score_set.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "core/check.h"

namespace saesweep::metrics {

std::size_t block_count(std::size_t documents) { return std::min(documents, kMostBlocks); }

std::size_t block_of(std::size_t index, std::size_t documents) {
  SAE_CHECK(index < documents, "document {} of {}", index, documents);
  // The block b with b * documents / blocks <= index < (b + 1) * documents / blocks.
  const std::size_t blocks = block_count(documents);
  return ((index + 1) * blocks - 1) / documents;
}

double student_t_975(std::size_t degrees_of_freedom) {
  static constexpr std::array<double, 25> kQuantiles = {
      2.364624251593, 2.306004135204, 2.262157162798, 2.228138851986, 2.200985160092,
      2.178812829667, 2.160368656463, 2.144786687918, 2.131449545560, 2.119905299221,
      2.109815577833, 2.100922040241, 2.093024054408, 2.085963447266, 2.079613844728,
      2.073873067904, 2.068657610419, 2.063898561628, 2.059538552753, 2.055529438643,
      2.051830516480, 2.048407141795, 2.045229642133, 2.042272456301, 2.039513446396};
  SAE_CHECK(degrees_of_freedom >= kFewestBlocks - 1 && degrees_of_freedom < kMostBlocks,
            "{} degrees of freedom", degrees_of_freedom);
  return kQuantiles[degrees_of_freedom - (kFewestBlocks - 1)];
}

double jackknife_error(std::span<const double> without_block) {
  if (without_block.empty()) return 0;
  const auto blocks = static_cast<double>(without_block.size());
  double mean = 0;
  for (const double value : without_block) mean += value;
  mean /= blocks;
  double squares = 0;
  for (const double value : without_block) squares += (value - mean) * (value - mean);
  return std::sqrt((blocks - 1) / blocks * squares);
}

Score with_interval(double value, std::span<const double> without_block, std::uint64_t n,
                    int version) {
  Score score{value, std::nullopt, std::nullopt, n, version};
  const bool finite = std::isfinite(value) && std::ranges::all_of(without_block, [](double each) {
                        return std::isfinite(each);
                      });
  if (!finite || without_block.size() < kFewestBlocks) return score;
  const double half = student_t_975(without_block.size() - 1) * jackknife_error(without_block);
  score.low = value - half;
  score.high = value + half;
  return score;
}

Json to_json(const Scores& scores) {
  const auto number = [](double value) { return std::isfinite(value) ? Json(value) : Json(); };
  Json json = Json::object();
  for (const auto& [name, score] : scores)
    json[name] = {{"value", number(score.value)},
                  {"low", score.low ? number(*score.low) : Json()},
                  {"high", score.high ? number(*score.high) : Json()},
                  {"n", score.n},
                  {"version", score.version}};
  return json;
}

}  // namespace saesweep::metrics
