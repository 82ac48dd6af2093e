#include "scheduler/service/commands.h"

#include <utility>
#include <vector>

#include "scheduler/service/selection.h"
#include "scheduler/service/views.h"

namespace saesweep::scheduler {
namespace {

constexpr std::size_t kMostSelectors = 10'000;

struct Trials {
  std::vector<Selectable> words;
  std::vector<const journal::Subject*> subjects;
};
Trials trials_of(const journal::Sweep& sweep) {
  Trials trials;
  for (const journal::Subject& subject : sweep.subjects()) {
    if (subject.baseline()) continue;
    trials.words.push_back({subject.number(), subject.identity()});
    trials.subjects.push_back(&subject);
  }
  return trials;
}

Result<std::vector<std::string>> selectors_of(const Json& body) {
  std::vector<std::string> selectors;
  const auto found = body.find("trials");
  if (found == body.end()) return selectors;
  if (!found->is_array() || found->size() > kMostSelectors)
    return fail(ErrorCode::kInvalidArgument, "trials: a list of selectors would be right");
  for (const Json& each : *found) {
    if (!each.is_string())
      return fail(ErrorCode::kInvalidArgument, "trials: a list of selectors would be right");
    selectors.push_back(each.get<std::string>());
  }
  return selectors;
}

Result<Heard> sweep_command(const SweepState& state, const Json& body) {
  SweepCommand command;
  SAE_TRY(const std::string word, text_of(body, "sweep"));
  SAE_TRY(command.verb, text_of(body, "verb"));
  SAE_TRY(const auto selectors, selectors_of(body));
  SAE_TRY(const journal::Sweep* sweep, find_sweep(state, word));
  command.sweep = sweep->name();
  if (!selectors.empty()) {
    const Trials trials = trials_of(*sweep);
    SAE_TRY(const auto chosen, select_trials(selectors, trials.words));
    for (const std::size_t index : chosen)
      command.trials.push_back(trials.subjects[index]->identity());
  }
  const auto only_failed = body.find("failed");
  if (only_failed == body.end() || !only_failed->is_boolean() || !only_failed->get<bool>())
    return command;
  // Of those that were named, or of all rows.
  const std::set<std::string> named(command.trials.begin(), command.trials.end());
  command.trials.clear();
  for (const journal::Subject& subject : sweep->subjects())
    if ((named.empty() || named.contains(subject.identity())) &&
        outcome_of(state, *sweep, subject).state == "failed")
      command.trials.push_back(subject.identity());
  if (command.trials.empty())
    return fail(ErrorCode::kNotFound, "nothing of {} has failed", sweep->name());
  return command;
}

Result<Heard> priority_command(const SweepState& state, const Json& body) {
  SAE_TRY(const std::string word, text_of(body, "sweep"));
  SAE_TRY(const journal::Sweep* sweep, find_sweep(state, word));
  SweepPriority priority{sweep->name(), sweep->priority(), weight_of(*sweep)};
  const auto number = body.find("priority");
  if (number != body.end()) {
    if (!number->is_number_integer() || number->get<double>() < -kMostPriority ||
        number->get<double>() > kMostPriority)
      return fail(ErrorCode::kInvalidArgument, "priority: -{0} to {0} would be right",
                  kMostPriority);
    priority.priority = number->get<int>();
  }
  const auto weight = body.find("weight");
  if (weight != body.end()) {
    if (!weight->is_number() || !(weight->get<double>() > 0))
      return fail(ErrorCode::kInvalidArgument, "weight: a positive number would be right");
    priority.weight = weight->get<double>();
  }
  return priority;
}

}  // namespace

Result<std::string> text_of(const Json& body, const char* name) {
  const auto found = body.find(name);
  if (found == body.end()) return std::string();
  if (!found->is_string())
    return fail(ErrorCode::kInvalidArgument, "{}: a text would be right", name);
  return found->get<std::string>();
}

Result<std::uint64_t> number_of(const Json& body, const char* name, std::uint64_t otherwise) {
  const auto found = body.find(name);
  if (found == body.end()) return otherwise;
  if (!found->is_number_unsigned())
    return fail(ErrorCode::kInvalidArgument, "{}: a whole number from 0 would be right", name);
  return found->get<std::uint64_t>();
}

Result<ChosenTrial> one_trial(const SweepState& state, const Json& body) {
  SAE_TRY(const std::string word, text_of(body, "sweep"));
  SAE_TRY(const std::string selector, text_of(body, "trial"));
  SAE_TRY(const journal::Sweep* sweep, find_sweep(state, word));
  const Trials trials = trials_of(*sweep);
  SAE_TRY(const auto found, select_trials(selector, trials.words));
  if (found.size() != 1)
    return fail(ErrorCode::kInvalidArgument, "'{}' means {} trials; one is wanted here", selector,
                found.size());
  return ChosenTrial{sweep, trials.subjects[found.front()]};
}

Result<Heard> to_command(const SweepState& state, const std::string& verb, const Json& body) {
  if (verb == "sweep") return sweep_command(state, body);
  if (verb == "priority") return priority_command(state, body);
  if (verb != "worker")
    return fail(ErrorCode::kInvalidArgument, "the scheduler cannot do '{}'", verb);
  WorkerCommand command;
  SAE_TRY(command.worker, text_of(body, "worker"));
  SAE_TRY(command.verb, text_of(body, "verb"));
  return command;
}

}  // namespace saesweep::scheduler
