#include "sweeps/parameter_axis.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "sweeps/nearest.h"

namespace saesweep::sweeps {
namespace {

constexpr std::uint64_t kMaxSamples = 1'000'000;

class AxisReader {
 public:
  AxisReader(const Parameter& parameter, const std::string& path, Problems& problems)
      : parameter_(parameter), path_(path), problems_(problems) {}

  std::optional<ParameterAxis> read(const YamlNode& node) {
    ParameterAxis axis;
    axis.id = parameter_.id;
    axis.node = &node;
    axis.path = path_;
    if (node.is_map()) {
      if (!read_draw(node, axis)) return std::nullopt;
    } else if (is_list(node)) {
      if (!read_list(node, path_, axis.values)) return std::nullopt;
    } else {
      const auto value = read_value(node, path_);
      if (!value) return std::nullopt;
      axis.values.push_back(*value);
    }
    return axis;
  }

 private:
  // Betas and fractions are themselves lists; a list of those is an axis.
  bool is_list(const YamlNode& node) const {
    if (!node.is_sequence()) return false;
    const bool value_is_list =
        parameter_.kind == ParameterKind::kBetas || parameter_.kind == ParameterKind::kFractions;
    return !value_is_list || node.items.empty() || node.items[0].is_sequence();
  }

  bool read_list(const YamlNode& node, const std::string& path, std::vector<ParameterValue>& out) {
    if (node.items.empty()) {
      problems_.add(node, path, "is an empty list; at least one value would be right");
      return false;
    }
    bool ok = true;
    for (std::size_t i = 0; i < node.items.size(); ++i) {
      const auto value = read_value(node.items[i], fmt::format("{}[{}]", path, i));
      if (value) out.push_back(*value);
      ok = ok && value.has_value();
    }
    return ok;
  }

  std::optional<ParameterValue> refuse(const YamlNode& node, const std::string& path,
                                       std::string message) {
    problems_.add(node, path, std::move(message));
    return std::nullopt;
  }

  std::optional<ParameterValue> read_value(const YamlNode& node, const std::string& path) {
    if (parameter_.kind == ParameterKind::kBetas) return read_betas(node, path);
    if (parameter_.kind == ParameterKind::kFractions) return read_fractions(node, path);
    const auto text =
        scalar_text(node, path, "a value, a list of values or a range would be right", problems_);
    if (!text) return std::nullopt;
    switch (parameter_.kind) {
      case ParameterKind::kCount: {
        const auto count = count_of(node, path, static_cast<std::uint64_t>(parameter_.low),
                                    static_cast<std::uint64_t>(parameter_.high), problems_);
        if (!count) return std::nullopt;
        return *count;
      }
      case ParameterKind::kClip:
        if (*text == "none") return std::monostate{};
        [[fallthrough]];
      case ParameterKind::kReal:
        return read_real(node, path, *text);
      case ParameterKind::kSteps: {
        const auto steps = parse_steps(*text);
        if (!steps) return refuse(node, path, steps.error().message);
        return *steps;
      }
      case ParameterKind::kWord:
        if (std::find(parameter_.words.begin(), parameter_.words.end(), *text) ==
            parameter_.words.end())
          return refuse(node, path,
                        fmt::format("{} is not one of its values; {}", describe(node),
                                    suggestion(*text, parameter_.words)));
        return *text;
      case ParameterKind::kPath:
        if (text->empty()) return refuse(node, path, "is empty; the path of an SAE would be right");
        return *text;
      case ParameterKind::kBetas:
      case ParameterKind::kFractions:
        break;
    }
    return std::nullopt;
  }

  std::optional<ParameterValue> read_real(const YamlNode& node, const std::string& path,
                                          const std::string& text) {
    const auto real = parse_real(text);
    if (!real) return refuse(node, path, real.error().message);
    if (*real < parameter_.low || *real > parameter_.high ||
        (parameter_.low_open && *real == parameter_.low))
      return refuse(node, path,
                    fmt::format("{} is out of range; {} would be right", text, range()));
    return *real;
  }

  std::string range() const {
    const std::string low =
        fmt::format("{} {}", parameter_.low_open ? "more than" : "at least", parameter_.low);
    return parameter_.high >= 1e9 ? low : fmt::format("{} and at most {}", low, parameter_.high);
  }

  std::optional<ParameterValue> read_betas(const YamlNode& node, const std::string& path) {
    std::array<double, 2> betas{};
    bool ok = node.is_sequence() && node.items.size() == 2;
    for (std::size_t i = 0; ok && i < 2; ++i) {
      const auto beta =
          node.items[i].is_scalar() ? parse_real(node.items[i].text) : Result<double>(-1.0);
      ok = beta && *beta >= 0 && *beta < 1;
      if (ok) betas[i] = *beta;
    }
    if (!ok)
      return refuse(node, path,
                    fmt::format("is {}; two numbers from 0 to below 1, like "
                                "[0.9, 0.999], would be right",
                                describe(node)));
    return betas;
  }

  // 0.25 or 1/4
  static Result<double> fraction(const std::string& text) {
    const auto slash = text.find('/');
    if (slash == std::string::npos) return parse_real(text);
    SAE_TRY(const double above, parse_real(text.substr(0, slash)));
    SAE_TRY(const double below, parse_real(text.substr(slash + 1)));
    return above / below;
  }

  std::optional<ParameterValue> read_fractions(const YamlNode& node, const std::string& path) {
    std::vector<double> fractions;
    double sum = 0;
    bool ok = node.is_sequence() && !node.items.empty();
    for (std::size_t i = 0; ok && i < node.items.size(); ++i) {
      const auto value =
          node.items[i].is_scalar() ? fraction(node.items[i].text) : Result<double>(-1.0);
      ok = value && *value > 0 && *value <= 1;  // not of a number that is none
      if (ok) fractions.push_back(*value);
      if (ok) sum += *value;
    }
    if (!ok)
      return refuse(node, path,
                    fmt::format("is {}; a list of shares of d_sae above 0, like [1/4, 1/4, 1/2], "
                                "would be right",
                                describe(node)));
    if (std::abs(sum - 1) > 1e-6)
      return refuse(node, path,
                    fmt::format("sums to {}; shares that sum to 1 would be right", shortest(sum)));
    return fractions;
  }

  // {log_uniform: [a, b], samples: n}
  bool read_draw(const YamlNode& node, ParameterAxis& axis) {
    static constexpr std::array<std::string_view, 5> kKeys{"uniform", "log_uniform", "int_uniform",
                                                           "choice", "samples"};
    const Section section(node, path_, kKeys, problems_);
    DrawnAxis draw;
    draw.name = parameter_.name;
    const YamlNode* range = nullptr;
    std::string_view word;
    for (const std::string_view key : std::span(kKeys).first(4)) {
      const YamlNode* found = section.find(key);
      if (found == nullptr) continue;
      if (range != nullptr) {
        section.add(key, fmt::format("stands beside {}; one of them would be right", word));
        return false;
      }
      range = found;
      word = key;
    }
    bool ok = true;
    if (range == nullptr) {
      problems_.add(node, path_,
                    "names no range; {log_uniform: [0.01, 0.3], samples: 6}, or uniform, "
                    "int_uniform or choice, would be right");
      ok = false;
    }
    const YamlNode* samples = section.require("samples", "a number of samples would be right");
    const auto count = samples == nullptr ? std::nullopt
                                          : count_of(*samples, section.path_of("samples"), 1,
                                                     kMaxSamples, problems_);
    if (count) axis.samples = *count;
    ok = ok && count.has_value();
    if (range == nullptr) return false;
    if (word == "choice") {
      draw.kind = DrawnAxis::Kind::kChoice;
      ok = read_choices(*range, section.path_of(word), axis) && ok;
      draw.choices = Json::array();
      for (const ParameterValue& value : axis.values) draw.choices.push_back(to_string(value));
    } else if (word == "int_uniform") {
      draw.kind = DrawnAxis::Kind::kIntUniform;
      ok = read_int_range(*range, section.path_of(word), draw) && ok;
    } else {
      draw.kind = word == "uniform" ? DrawnAxis::Kind::kUniform : DrawnAxis::Kind::kLogUniform;
      ok = read_real_range(*range, section.path_of(word), draw) && ok;
    }
    axis.draw = std::move(draw);
    return ok;
  }

  bool read_choices(const YamlNode& node, const std::string& path, ParameterAxis& axis) {
    if (!is_list(node)) {
      problems_.add(node, path, fmt::format("is {}; a list would be right", describe(node)));
      return false;
    }
    return read_list(node, path, axis.values);
  }

  bool is_pair(const YamlNode& node, const std::string& path) {
    if (node.is_sequence() && node.items.size() == 2) return true;
    problems_.add(node, path,
                  fmt::format("is {}; two numbers [low, high] would be right",
                              node.is_sequence() ? fmt::format("a list of {}", node.items.size())
                                                 : describe(node)));
    return false;
  }

  bool refuse_reversed(const YamlNode& node, const std::string& path, const std::string& low,
                       const std::string& high) {
    problems_.add(node, path,
                  fmt::format("[{}, {}] is {}; [low, high] with low < high would be "
                              "right",
                              low, high, low == high ? "empty" : "reversed"));
    return false;
  }

  bool read_int_range(const YamlNode& node, const std::string& path, DrawnAxis& draw) {
    if (parameter_.kind != ParameterKind::kCount && parameter_.kind != ParameterKind::kSteps &&
        parameter_.kind != ParameterKind::kReal) {
      problems_.add(
          node, path,
          fmt::format("{} cannot be drawn from a range; choice would be right", parameter_.name));
      return false;
    }
    if (!is_pair(node, path)) return false;
    const bool is_count = parameter_.kind == ParameterKind::kCount;
    const auto low = is_count ? static_cast<std::uint64_t>(parameter_.low) : 0;
    const auto high =
        is_count ? static_cast<std::uint64_t>(parameter_.high) : std::uint64_t{1} << 50;
    const auto a = count_of(node.items[0], path + "[0]", low, high, problems_);
    const auto b = count_of(node.items[1], path + "[1]", low, high, problems_);
    if (!a || !b) return false;
    if (*a >= *b) return refuse_reversed(node, path, std::to_string(*a), std::to_string(*b));
    draw.int_low = *a;
    draw.int_high = *b;
    return true;
  }

  bool read_real_range(const YamlNode& node, const std::string& path, DrawnAxis& draw) {
    if (parameter_.kind != ParameterKind::kReal && parameter_.kind != ParameterKind::kClip) {
      problems_.add(node, path,
                    fmt::format("{} takes no fractions; int_uniform or choice would be "
                                "right",
                                parameter_.name));
      return false;
    }
    if (!is_pair(node, path)) return false;
    std::array<double, 2> ends{};
    for (std::size_t i = 0; i < 2; ++i) {
      const std::string end_path = fmt::format("{}[{}]", path, i);
      const auto text = scalar_text(node.items[i], end_path, "a number would be right", problems_);
      if (!text) return false;
      const auto value = read_real(node.items[i], end_path, *text);
      if (!value) return false;
      ends[i] = std::get<double>(*value);
      if (draw.kind == DrawnAxis::Kind::kLogUniform && ends[i] <= 0) {
        problems_.add(node.items[i], end_path,
                      fmt::format("{} has no logarithm; a number above 0 would be right", *text));
        return false;
      }
    }
    if (ends[0] >= ends[1])
      return refuse_reversed(node, path, shortest(ends[0]), shortest(ends[1]));
    draw.low = ends[0];
    draw.high = ends[1];
    return true;
  }

  const Parameter& parameter_;
  const std::string& path_;
  Problems& problems_;
};

}  // namespace

std::string to_string(const ParameterValue& value) {
  struct Writer {
    std::string operator()(std::monostate) const { return "none"; }
    std::string operator()(std::uint64_t count) const { return std::to_string(count); }
    std::string operator()(double real) const { return shortest(real); }
    std::string operator()(const StepCount& steps) const { return steps.to_string(); }
    std::string operator()(const std::array<double, 2>& pair) const {
      return fmt::format("[{}, {}]", shortest(pair[0]), shortest(pair[1]));
    }
    std::string operator()(const std::vector<double>& list) const {
      std::string text;
      for (const double each : list) text += (text.empty() ? "[" : ", ") + shortest(each);
      return text + "]";
    }
    std::string operator()(const std::string& text) const { return text; }
  };
  return std::visit(Writer{}, value);
}

std::optional<ParameterAxis> read_axis(const Parameter& parameter, const YamlNode& node,
                                       const std::string& path, Problems& problems) {
  return AxisReader(parameter, path, problems).read(node);
}

std::optional<std::vector<std::uint64_t>> read_seeds(const YamlNode& node, const std::string& path,
                                                     Problems& problems) {
  constexpr std::uint64_t kMaxSeeds = 100'000;
  std::vector<std::uint64_t> seeds;
  if (node.is_map()) {
    static constexpr std::array<std::string_view, 1> kKeys{"range"};
    const Section section(node, path, kKeys, problems);
    const YamlNode* range = section.require("range", "{range: [0, 3]} would be right");
    if (range == nullptr) return std::nullopt;
    const std::string range_path = section.path_of("range");
    if (!range->is_sequence() || range->items.size() != 2) {
      problems.add(*range, range_path,
                   fmt::format("is {}; [first, past the last] would be right", describe(*range)));
      return std::nullopt;
    }
    const auto first = count_of(range->items[0], range_path + "[0]", 0, kNoLimit, problems);
    const auto past = count_of(range->items[1], range_path + "[1]", 0, kNoLimit, problems);
    if (!first || !past) return std::nullopt;
    if (*first >= *past || *past - *first > kMaxSeeds) {
      problems.add(
          *range, range_path,
          fmt::format("[{}, {}] {}", *first, *past,
                      *first >= *past ? "holds no seed; [first, past the last] would be right"
                                      : "holds too many seeds; at most 100000 would be right"));
      return std::nullopt;
    }
    for (std::uint64_t seed = *first; seed < *past; ++seed) seeds.push_back(seed);
    return seeds;
  }
  if (node.is_sequence()) {
    if (node.items.empty()) {
      problems.add(node, path, "is an empty list; at least one seed would be right");
      return std::nullopt;
    }
    bool ok = true;
    for (std::size_t i = 0; i < node.items.size(); ++i) {
      const auto seed =
          count_of(node.items[i], fmt::format("{}[{}]", path, i), 0, kNoLimit, problems);
      if (seed) seeds.push_back(*seed);
      ok = ok && seed;
    }
    if (!ok) return std::nullopt;
    return seeds;
  }
  const auto seed = count_of(node, path, 0, kNoLimit, problems);
  if (!seed) return std::nullopt;
  seeds.push_back(*seed);
  return seeds;
}

}  // namespace saesweep::sweeps
