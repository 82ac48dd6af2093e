#include "scheduler/leaderboard/filter.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <limits>
#include <optional>
#include <set>
#include <utility>

namespace saesweep::scheduler {
namespace {

constexpr std::size_t kMaxConditions = 64;

constexpr std::array<std::pair<std::string_view, std::string_view>, 6> kShortNames{{
    {"l0", "core.l0"},
    {"loss_recovered", "core.ce_loss_score"},
    {"fve", "recon.fve"},
    {"coverage", "board.cov_occurring"},
    {"reconstruction", "board.rec_micro"},
    {"dead", "recon.dead_fraction"},
}};
constexpr std::array<std::string_view, 12> kProperties{"number", "trial",  "baseline", "model",
                                                       "hook",   "arch",   "state",    "reason",
                                                       "seed",   "tokens", "front",    "tied"};

std::string spelled_out(std::string_view field) {
  for (const auto& [name, full] : kShortNames)
    if (field == name) return std::string(full);
  if (field.starts_with("params.")) field.remove_prefix(7);
  if (field == "id") return "trial";
  return std::string(field);
}

// Scores of which less is better. Source: the definitions in SAEBench's core evaluation.
bool less_is_better(std::string_view field) {
  static constexpr std::array<std::string_view, 13> kNames{"core.l0",
                                                           "core.l1",
                                                           "core.mse",
                                                           "core.ce_loss_with_sae",
                                                           "core.kl_div_with_sae",
                                                           "core.freq_over_1_percent",
                                                           "core.freq_over_10_percent",
                                                           "core.normalized_freq_over_1_percent",
                                                           "core.normalized_freq_over_10_percent",
                                                           "recon.mse_sum",
                                                           "recon.dead_fraction",
                                                           "recon.l0_train",
                                                           "core.average_max_decoder_cosine_sim"};
  // What is no score is sorted as people count.
  return std::ranges::find(kNames, field) != kNames.end() ||
         field.find('.') == std::string_view::npos ||
         (field.starts_with("recon.hook_") && field.ends_with(".mse_sum"));
}

// A row's field: a number where it is one, and its text.
struct Value {
  std::optional<double> number;
  std::string text;
};

Value number_value(double number) { return {number, fmt::format("{}", number)}; }
Value text_value(std::string text) { return {std::nullopt, std::move(text)}; }

std::optional<Value> non_empty(const std::string& text) {
  return text.empty() ? std::nullopt : std::optional(text_value(text));
}

std::optional<Value> value_of(const LeaderboardRow& row, std::string_view field) {
  if (field == "number")
    return row.number ? std::optional(number_value(*row.number)) : std::nullopt;
  if (field == "seed")
    return row.seed ? std::optional(number_value(static_cast<double>(*row.seed))) : std::nullopt;
  if (field == "tokens") return number_value(static_cast<double>(row.tokens));
  if (field == "trial") return non_empty(row.trial);
  if (field == "baseline") return non_empty(row.baseline);
  if (field == "model") return non_empty(row.model);
  if (field == "hook") return non_empty(row.hook);
  if (field == "arch") return non_empty(row.arch);
  if (field == "reason") return non_empty(row.reason);
  if (field == "state") return text_value(std::string(to_string(row.state)));
  if (field == "front") return text_value(row.front ? "true" : "false");
  if (field == "tied") return text_value(row.tied ? "true" : "false");
  if (const Score* score = find_score(row, field)) return number_value(score->value);
  const auto param = row.params.find(field);
  if (param == row.params.end() || param->is_null()) return std::nullopt;
  if (param->is_number()) return number_value(param->get<double>());
  return text_value(param->is_string() ? param->get<std::string>() : canonical_json(*param));
}

// "50", "1e-3", "4k", "1.5M".
std::optional<double> parse_number(std::string_view text) {
  double scale = 1;
  if (text.size() > 1) {
    const std::size_t suffix = std::string_view("kMG").find(text.back());
    if (suffix != std::string_view::npos) {
      scale = std::pow(1000.0, static_cast<double>(suffix + 1));
      text.remove_suffix(1);
    }
  }
  if (text.starts_with('+')) text.remove_prefix(1);
  double value = 0;
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (problem != std::errc() || end != text.data() + text.size() || !std::isfinite(value))
    return std::nullopt;
  return value * scale;
}

bool equals(const Value& value, const std::string& wanted) {
  if (value.number) {
    const auto number = parse_number(wanted);
    return number && *number == *value.number;
  }
  return value.text == wanted;
}

bool holds(const Condition& condition, const LeaderboardRow& row) {
  using Relation = Condition::Relation;
  const std::optional<Value> value = value_of(row, condition.field);
  if (!value) return condition.relation == Relation::kNotEqual;
  if (condition.relation == Relation::kIn || condition.relation == Relation::kEqual)
    return std::ranges::any_of(condition.values, [&](const auto& v) { return equals(*value, v); });
  if (condition.relation == Relation::kNotEqual) return !equals(*value, condition.values.front());
  const std::optional<double> bound = parse_number(condition.values.front());
  if (!value->number || !bound) return false;
  switch (condition.relation) {
    case Relation::kLess:
      return *value->number < *bound;
    case Relation::kLessEqual:
      return *value->number <= *bound;
    case Relation::kGreater:
      return *value->number > *bound;
    default:
      return *value->number >= *bound;
  }
}

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i);
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, replaced}));
    }
  }
  return row[b.size()];
}

class FilterParser {
 public:
  explicit FilterParser(std::string_view text) : text_(text) {}

  Result<Filter> parse() {
    Filter filter;
    skip_spaces();
    if (at_end()) return wrong("empty", "a condition like core.l0<50");
    while (true) {
      SAE_TRY(Condition condition, parse_condition());
      filter.conditions.push_back(std::move(condition));
      skip_spaces();
      if (at_end()) return filter;
      if (filter.conditions.size() == kMaxConditions)
        return wrong(fmt::format("more than {} conditions", kMaxConditions), "fewer");
      if (!take(",") && !take("&&") && !take_word("and"))
        return wrong("unexpected text", "\"and\" or the end");
    }
  }

 private:
  Result<Condition> parse_condition() {
    Condition condition;
    skip_spaces();
    const std::string_view field = word("<>=!(),&\"");
    if (field.empty()) return wrong("no field", "a name like core.l0 or arch");
    condition.field = spelled_out(field);
    skip_spaces();
    using Relation = Condition::Relation;
    if (take("<="))
      condition.relation = Relation::kLessEqual;
    else if (take(">="))
      condition.relation = Relation::kGreaterEqual;
    else if (take("!="))
      condition.relation = Relation::kNotEqual;
    else if (take("==") || take("="))
      condition.relation = Relation::kEqual;
    else if (take("<"))
      condition.relation = Relation::kLess;
    else if (take(">"))
      condition.relation = Relation::kGreater;
    else if (take_word("in"))
      condition.relation = Relation::kIn;
    else
      return wrong("no comparison", "one of = != < <= > >= in");

    if (condition.relation == Relation::kIn) {
      skip_spaces();
      if (!take("(")) return wrong("no list", "one like (topk, batchtopk)");
      do {
        SAE_TRY(std::string value, parse_value());
        condition.values.push_back(std::move(value));
        skip_spaces();
      } while (take(","));
      if (!take(")")) return wrong("the list does not end", "\")\"");
      return condition;
    }
    const std::size_t start = position_;
    SAE_TRY(std::string value, parse_value());
    const bool ordered =
        condition.relation != Relation::kEqual && condition.relation != Relation::kNotEqual;
    if (ordered && !parse_number(value)) {
      position_ = start;
      return wrong(fmt::format("\"{}\" is no number", value), "one like 50, 0.9 or 4k");
    }
    condition.values.push_back(std::move(value));
    return condition;
  }

  Result<std::string> parse_value() {
    skip_spaces();
    if (take("\"")) {
      const std::size_t end = text_.find('"', position_);
      if (end == std::string_view::npos) return wrong("the text does not end", "a closing \"");
      const std::string value(text_.substr(position_, end - position_));
      position_ = end + 1;
      return value;
    }
    const std::string_view value = word("<>=!(),&\"");
    if (value.empty()) return wrong("no value", "a number, a word or text in double quotes");
    return std::string(value);
  }

  tl::unexpected<Error> wrong(const std::string& what, std::string_view right) const {
    return fail(ErrorCode::kInvalidArgument, "--filter, character {}: {}; expected {}",
                position_ + 1, what, right);
  }
  bool at_end() const { return position_ == text_.size(); }
  void skip_spaces() {
    while (!at_end() && std::isspace(static_cast<unsigned char>(text_[position_]))) ++position_;
  }
  bool take(std::string_view token) {
    if (!text_.substr(position_).starts_with(token)) return false;
    position_ += token.size();
    return true;
  }
  // A word counts only as a whole: "android" does not begin with "and".
  bool take_word(std::string_view token) {
    const std::size_t before = position_;
    if (word("<>=!(),&\"") == token) return true;
    position_ = before;
    return false;
  }
  std::string_view word(std::string_view stops) {
    const std::size_t start = position_;
    while (!at_end() && !std::isspace(static_cast<unsigned char>(text_[position_])) &&
           stops.find(text_[position_]) == std::string_view::npos)
      ++position_;
    return text_.substr(start, position_ - start);
  }

  std::string_view text_;
  std::size_t position_ = 0;
};

}  // namespace

Result<Filter> parse_filter(std::string_view text) { return FilterParser(text).parse(); }

Result<SortKey> parse_sort(std::string_view text) {
  const bool reversed = text.starts_with('-');
  if (reversed) text.remove_prefix(1);
  const std::size_t colon = text.find(':');
  const std::string_view name = text.substr(0, colon);
  if (name.empty()) return fail(ErrorCode::kInvalidArgument, "--sort: no field; like core.l0");
  SortKey key{.field = spelled_out(name)};
  key.ascending = less_is_better(key.field) != reversed;
  if (colon == std::string_view::npos) return key;
  const std::string_view direction = text.substr(colon + 1);
  if (reversed || (direction != "asc" && direction != "desc"))
    return fail(ErrorCode::kInvalidArgument,
                "--sort: \"{}\" is no direction; {}:asc, {}:desc or -{}", direction, name, name,
                name);
  key.ascending = direction == "asc";
  return key;
}

Result<void> check_field(std::string_view field, const std::vector<LeaderboardRow>& rows) {
  std::set<std::string> known(kProperties.begin(), kProperties.end());
  for (const LeaderboardRow& row : rows) {
    for (const auto& [name, score] : row.scores) known.insert(name);
    for (const auto& [name, value] : row.params.items()) known.insert(name);
  }
  const std::string name(field);
  if (known.contains(name)) return {};
  // A short name is right even where no row has its score: nothing matches then.
  for (const auto& [short_name, full] : kShortNames)
    if (full == name) return {};
  std::string nearest;
  std::size_t least = std::numeric_limits<std::size_t>::max();
  for (const std::string& candidate : known) {
    const std::size_t distance = edit_distance(name.substr(0, 64), candidate);
    if (distance < least) {
      least = distance;
      nearest = candidate;
    }
  }
  return fail(ErrorCode::kInvalidArgument, "no row has \"{}\"; the nearest is \"{}\"",
              name.substr(0, 64), nearest);
}

Result<void> check_fields(const Filter& filter, const std::vector<LeaderboardRow>& rows) {
  for (const Condition& condition : filter.conditions)
    SAE_TRY_VOID(check_field(condition.field, rows));
  return {};
}

bool matches(const Filter& filter, const LeaderboardRow& row) {
  return std::ranges::all_of(filter.conditions, [&](const auto& c) { return holds(c, row); });
}

void sort_rows(std::vector<LeaderboardRow>& rows, const SortKey& key) {
  std::ranges::stable_sort(rows, [&](const LeaderboardRow& a, const LeaderboardRow& b) {
    const auto left = value_of(a, key.field);
    const auto right = value_of(b, key.field);
    if (!left || !right) return left.has_value() && !right.has_value();
    // Numbers before text, so that a parameter that is sometimes a word has an order.
    if (left->number.has_value() != right->number.has_value()) return left->number.has_value();
    if (left->number) {
      return key.ascending ? *left->number < *right->number : *right->number < *left->number;
    }
    return key.ascending ? left->text < right->text : right->text < left->text;
  });
  for (LeaderboardRow& row : rows) row.tied = false;
}

}  // namespace saesweep::scheduler
