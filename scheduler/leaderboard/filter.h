// `--filter` and `--sort` of the leaderboard: which rows, in which order.
//
//   core.l0<50                     a score, a parameter or a property of the row, and a value
//   arch=topk and d_sae>=1k        all must hold; "," and "&&" mean the same as "and"
//   arch in (topk, batchtopk)      one of several
//   state!=done                    = (or ==), !=, <, <=, >, >=
//
// Values are numbers (k, M, G for thousands, millions, billions), true, false, words, or text in
// double quotes. Properties: number, trial, baseline, model, hook, arch, state, reason, seed,
// tokens, front, tied. Short names: l0, loss_recovered, fve, coverage, reconstruction, dead.
// A row that lacks the field fails every comparison but !=.
//
// Parsing is pure: any bytes give a filter or an error that says what would be right.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "scheduler/leaderboard/leaderboard.h"

namespace saesweep::scheduler {

struct Condition {
  enum class Relation : std::uint8_t {
    kEqual,
    kNotEqual,
    kLess,
    kLessEqual,
    kGreater,
    kGreaterEqual,
    kIn
  };
  std::string field;  // short names are spelled out: "core.l0"
  Relation relation = Relation::kEqual;
  std::vector<std::string> values;  // one, or several for kIn
  bool operator==(const Condition&) const = default;
};

struct Filter {
  std::vector<Condition> conditions;  // all must hold
};

struct SortKey {
  std::string field;
  bool ascending = true;
};

// Errors: kInvalidArgument with the position.
Result<Filter> parse_filter(std::string_view text);

// "core.l0", "-core.l0" (the other way round), "core.l0:asc", "core.l0:desc". Without a direction
// the best comes first: small for L0, errors and dead features, large for other scores.
Result<SortKey> parse_sort(std::string_view text);

// Errors: kInvalidArgument for a field that no row has, naming the nearest one.
Result<void> check_fields(const Filter& filter, const std::vector<LeaderboardRow>& rows);
Result<void> check_field(std::string_view field, const std::vector<LeaderboardRow>& rows);

bool matches(const Filter& filter, const LeaderboardRow& row);

// Stable; rows without the field come last. Marks of rank() stay as they are, except `tied`, which
// speaks of the row before and is dropped.
void sort_rows(std::vector<LeaderboardRow>& rows, const SortKey& key);

}  // namespace saesweep::scheduler
