#include "sweeps/values.h"

#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <optional>
#include <span>
#include <utility>

namespace saesweep::sweeps {
namespace {

constexpr std::uint64_t kMaxCount = std::uint64_t{std::numeric_limits<std::int64_t>::max()};

__extension__ using Wide = unsigned __int128;

struct Unit {
  std::string_view suffix;
  std::uint64_t factor;
};

enum class NumberProblem { kNoNumber, kNotWhole, kTooLarge, kNegative };

// digits[.digits][e[+]digits] times factor, exactly, in integers: 1.5M is 1500000, 1.0000001k is
// refused.
std::optional<NumberProblem> parse_decimal(std::string_view text, std::uint64_t factor,
                                           std::uint64_t& out) {
  if (!text.empty() && text[0] == '-') return NumberProblem::kNegative;
  if (!text.empty() && text[0] == '+') text.remove_prefix(1);
  std::string digits;
  int point = -1, exponent = 0;
  std::size_t i = 0;
  for (; i < text.size(); ++i) {
    if (text[i] == '.' && point < 0) {
      point = static_cast<int>(digits.size());
    } else if (text[i] >= '0' && text[i] <= '9') {
      digits += text[i];
    } else {
      break;
    }
  }
  if (digits.empty() || digits.size() > 400) return NumberProblem::kNoNumber;
  if (i < text.size()) {
    if (text[i] != 'e' && text[i] != 'E') return NumberProblem::kNoNumber;
    std::string_view rest = text.substr(i + 1);
    if (!rest.empty() && rest[0] == '+') rest.remove_prefix(1);
    const auto [end, code] = std::from_chars(rest.data(), rest.data() + rest.size(), exponent);
    if (rest.empty() || code != std::errc{} || end != rest.data() + rest.size() ||
        std::abs(exponent) > 400)
      return NumberProblem::kNoNumber;
  }
  int decimals = (point < 0 ? 0 : static_cast<int>(digits.size()) - point) - exponent;
  while (decimals > 0 && digits.size() > 1 && digits.back() == '0') {
    digits.pop_back();
    --decimals;
  }
  for (; decimals < 0 && digits.find_first_not_of('0') != std::string::npos; ++decimals)
    digits += '0';
  Wide value = 0;
  for (const char digit : digits) {
    value = value * 10 + static_cast<unsigned>(digit - '0');
    if (value > (static_cast<Wide>(1) << 80)) return NumberProblem::kTooLarge;
  }
  // What is left of the decimals must divide value * factor.
  value *= factor;
  for (; decimals > 0 && value != 0; --decimals) {
    if (value % 10 != 0) return NumberProblem::kNotWhole;
    value /= 10;
  }
  if (value > kMaxCount) return NumberProblem::kTooLarge;
  out = static_cast<std::uint64_t>(value);
  return std::nullopt;
}

std::pair<std::string_view, std::uint64_t> split_unit(std::string_view text,
                                                      std::span<const Unit> units) {
  for (const Unit& unit : units)
    if (text.size() > unit.suffix.size() && text.ends_with(unit.suffix))
      return {text.substr(0, text.size() - unit.suffix.size()), unit.factor};
  return {text, 1};
}

Result<std::uint64_t> parse_whole(std::string_view text, std::span<const Unit> units,
                                  std::string_view right) {
  const auto [number, factor] = split_unit(text, units);
  std::uint64_t value = 0;
  const auto problem = parse_decimal(number, factor, value);
  if (!problem) return value;
  switch (*problem) {
    case NumberProblem::kNegative:
      return fail(ErrorCode::kInvalidArgument, "'{}' is negative; {}", text, right);
    case NumberProblem::kNotWhole:
      return fail(ErrorCode::kInvalidArgument, "'{}' is not a whole number; {}", text, right);
    case NumberProblem::kTooLarge:
      return fail(ErrorCode::kInvalidArgument, "'{}' is larger than {} (64 bits); {}", text,
                  kMaxCount, right);
    case NumberProblem::kNoNumber:
      break;
  }
  return fail(ErrorCode::kInvalidArgument, "'{}' is not a number; {}", text, right);
}

}  // namespace

Result<std::uint64_t> parse_count(std::string_view text) {
  static constexpr std::array<Unit, 3> kUnits{Unit{"k", 1'000}, Unit{"M", 1'000'000},
                                              Unit{"G", 1'000'000'000}};
  return parse_whole(text, kUnits, "a count like 200, 200k, 2M or 1G would be right");
}

Result<std::uint64_t> parse_size(std::string_view text) {
  static constexpr std::array<Unit, 4> kUnits{
      Unit{"KiB", std::uint64_t{1} << 10}, Unit{"MiB", std::uint64_t{1} << 20},
      Unit{"GiB", std::uint64_t{1} << 30}, Unit{"TiB", std::uint64_t{1} << 40}};
  return parse_whole(text, kUnits, "a size like 512MiB or 4GiB would be right");
}

Result<double> parse_real(std::string_view text) {
  const std::string_view digits = text.starts_with('+') ? text.substr(1) : text;
  double value = 0;
  const auto [end, code] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (digits.empty() || (text[0] == '+' && digits[0] == '-') ||
      code == std::errc::invalid_argument || end != digits.data() + digits.size())
    return fail(ErrorCode::kInvalidArgument,
                "'{}' is not a number; one like 0.03 or 3e-4 would be "
                "right",
                text);
  if (code != std::errc{} || !std::isfinite(value))
    return fail(ErrorCode::kInvalidArgument,
                "'{}' is not finite; a number like 0.03 or 3e-4 would "
                "be right",
                text);
  return value;
}

Result<double> parse_seconds(std::string_view text) {
  static constexpr std::array<Unit, 3> kUnits{Unit{"s", 1}, Unit{"m", 60}, Unit{"h", 3600}};
  const auto [number, factor] = split_unit(text, kUnits);
  const auto value = parse_real(number);
  if (!value || *value < 0)
    return fail(ErrorCode::kInvalidArgument,
                "'{}' is no time; one like 60s, 5m or 2h would be "
                "right",
                text);
  return *value * static_cast<double>(factor);
}

Result<double> parse_share_percent(std::string_view text) {
  const bool percent = text.ends_with('%');
  const auto value = parse_real(percent ? text.substr(0, text.size() - 1) : text);
  if (!value || *value < 0)
    return fail(ErrorCode::kInvalidArgument, "'{}' is no share; one like 5% would be right", text);
  return percent ? *value : *value * 100;
}

std::uint64_t StepCount::of(std::uint64_t run_steps) const {
  if (!is_share) return steps;
  // Multiplying before dividing keeps whole per cents of whole steps exact.
  return static_cast<std::uint64_t>(percent * static_cast<double>(run_steps) / 100);
}

std::string StepCount::to_string() const {
  return is_share ? shortest(percent) + "%" : std::to_string(steps);
}

Result<StepCount> parse_steps(std::string_view text) {
  if (text.ends_with('%')) {
    const auto percent = parse_share_percent(text);
    if (!percent || *percent > 100)
      return fail(ErrorCode::kInvalidArgument,
                  "'{}' is no share of the run; 0% to 100%, or a "
                  "number of steps, would be right",
                  text);
    return StepCount{.is_share = true, .percent = *percent};
  }
  const auto steps = parse_count(text);
  if (!steps)
    return fail(ErrorCode::kInvalidArgument,
                "'{}' is neither a number of steps nor a share of the "
                "run; 1000 or 5% would be right",
                text);
  return StepCount{.steps = *steps};
}

std::string shortest(double value) {
  std::array<char, 32> text;
  const auto [end, code] = std::to_chars(text.data(), text.data() + text.size(), value);
  return code == std::errc{} ? std::string(text.data(), end) : "?";
}

}  // namespace saesweep::sweeps
