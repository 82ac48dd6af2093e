// Where trials stand in sweeps with early stopping: what a task's standings, its sweeps and their
// rungs say together. Private to this folder and to scheduler/service.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "scheduler/decisions/sweep_state.h"

namespace saesweep::scheduler {

// Of a train task in a sweep; null: it is trained to its end there.
const journal::Standing* standing_of(const journal::Task& task, const std::string& sweep);
journal::Standing* standing_of(journal::Task& task, const std::string& sweep);

// Tokens of a rung in whole steps of the trial, rounded down; nothing from its own end on.
std::optional<std::uint64_t> tokens_at(const journal::Sweep& sweep, const journal::Task& task,
                                       const journal::Standing& standing, std::uint32_t rung);
// The rung that it goes to, from where its newest checkpoint stands: one that it has passed without
// a report (for another sweep) is left out. Nothing: to its end.
std::optional<std::uint32_t> next_rung(const journal::Sweep& sweep, const journal::Task& task,
                                       const journal::Standing& standing);

// How far a lease goes.
struct Leg {
  std::uint64_t until_tokens = 0;        // 0: to the end
  std::vector<std::string> evaluations;  // JSON of each, computed there
};
// The next rung of all sweeps that want the task worked on now; to the end if one of them has no
// early stopping.
Leg leg_of(const SweepState& state, const journal::Task& task);

ContestRules rules_of(const journal::EarlyStopping& settings);
// From nothing but the objects.
Contest contest_of(const SweepState& state, const journal::Sweep& sweep);

// Why it waits: "waits at rung 1 ... in sweep s; the best 4 go on". Empty: it does not.
std::string wait_text(const SweepState& state, const journal::Task& task,
                      const journal::Sweep& sweep);

}  // namespace saesweep::scheduler
