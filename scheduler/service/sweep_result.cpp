#include "scheduler/service/sweep_result.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "scheduler/decisions/decide.h"
#include "scheduler/decisions/standings.h"
#include "scheduler/service/state_directory.h"
#include "scheduler/service/state_store.h"

namespace saesweep::scheduler {
namespace {

namespace fs = std::filesystem;

void add_files(const protocol::TaskResult& result, const fs::path& store,
               std::map<std::string, fs::path>& files) {
  for (const auto& artifact : result.artifacts())
    // Of two files of one name the first stays: details of core come before those of others.
    files.emplace(artifact.name(), store / "artifacts" / artifact.sha256());
}

Result<Json> summary_of(const journal::Task& task) {
  if (task.result().summary().empty()) return Json::object();
  auto json = parse_json(task.result().summary());
  if (!json || !json->is_object())
    return fail(ErrorCode::kCorrupted, "the result of {} is no JSON object", task.spec().id());
  return json;
}

// What was stopped early has the scores of the last rung that it reached.
Result<void> add_last_report(const journal::Task& train, const journal::Sweep& sweep,
                             SubjectResult& result) {
  const journal::Standing* standing = standing_of(train, sweep.name());
  if (standing == nullptr || standing->reports().empty()) return {};
  result.tokens = standing->reports(standing->reports_size() - 1).tokens();
  SAE_TRY(const Json scores, parse_json(standing->scores()));
  if (!scores.is_array())
    return fail(ErrorCode::kCorrupted, "the report of {} is no list", train.spec().id());
  for (const Json& each : scores) result.evaluations.push_back(each);
  return {};
}

Result<SubjectResult> to_subject(const SweepState& state, const journal::Sweep& sweep,
                                 const journal::Subject& subject, const fs::path& store) {
  SubjectResult result;
  result.baseline = subject.baseline();
  result.number = subject.number();
  result.identity = subject.identity();
  SAE_TRY(result.spec, parse_json(subject.spec()));
  SubjectOutcome outcome = outcome_of(state, sweep, subject);
  result.state = std::move(outcome.state);
  result.reason = std::move(outcome.reason);
  const journal::Task* train = state.find_task(subject.train_task());
  if (train != nullptr && train->has_result()) {
    SAE_TRY(result.train_summary, summary_of(*train));
    if (const auto tokens = result.train_summary.find("tokens");
        tokens != result.train_summary.end() && tokens->is_number_unsigned())
      result.tokens = tokens->get<std::uint64_t>();
    add_files(train->result(), store, result.files);
  } else if (train != nullptr && train->has_checkpoint()) {
    result.tokens = train->checkpoint().tokens();
  }
  if (result.state == "stopped" && train != nullptr) {
    SAE_TRY_VOID(add_last_report(*train, sweep, result));
    return result;
  }
  for (const std::string& id : subject.evaluate_tasks()) {
    const journal::Task* task = state.find_task(id);
    if (task == nullptr || !task->has_succeeded()) continue;
    SAE_TRY(Json summary, summary_of(*task));
    result.evaluations.push_back(std::move(summary));
    add_files(task->result(), store, result.files);
  }
  return result;
}

// Opening races with the process that writes: files may vanish in between.
Result<StateStore> open_to_read(const fs::path& state_directory) {
  constexpr int kTries = 5;
  for (int i = 1;; ++i) {
    auto store = StateStore::open(state_directory / "journal", StateStore::Mode::kReadOnly);
    if (store || i == kTries || store.error().code == ErrorCode::kInvalidArgument ||
        store.error().code == ErrorCode::kNotFound) {
      if (!store)
        return fail(store.error().code, "{}: {}", state_directory.string(), store.error().message);
      return store;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20 * i));
  }
}

}  // namespace

std::vector<std::string> names_of(const SweepState& state) {
  std::vector<const journal::Sweep*> sweeps;
  for (const auto& [name, sweep] : state.sweeps()) sweeps.push_back(&sweep);
  std::ranges::sort(sweeps, std::greater{}, [](const auto* sweep) { return sweep->submission(); });
  std::vector<std::string> names;
  names.reserve(sweeps.size());
  for (const auto* sweep : sweeps) names.push_back(sweep->name());
  return names;
}

Result<SweepResult> to_result(const SweepState& state, const std::string& name,
                              const fs::path& store) {
  const std::vector<std::string> names = names_of(state);
  if (names.empty()) return fail(ErrorCode::kNotFound, "no sweep was submitted");
  const auto found = state.sweeps().find(name.empty() ? names.front() : name);
  if (found == state.sweeps().end())
    return fail(ErrorCode::kNotFound, "no sweep {}; there is {}", name, fmt::join(names, ", "));
  const journal::Sweep& sweep = found->second;
  SweepResult result;
  result.name = sweep.name();
  result.finished = sweep.ended() != 0;
  result.started = sweep.started();
  if (result.finished) result.ended = sweep.ended();
  result.effective_yaml = sweep.effective_yaml();
  for (const journal::Subject& subject : sweep.subjects()) {
    SAE_TRY(SubjectResult each, to_subject(state, sweep, subject, store));
    result.subjects.push_back(std::move(each));
  }
  if (const journal::Task* lm = state.find_task(sweep.lm_task()); lm != nullptr) {
    SAE_TRY(result.model_summary, summary_of(*lm));
    if (lm->has_succeeded()) add_files(lm->result(), store, result.model_files);
  }
  return result;
}

Result<SweepResult> read_sweep(const fs::path& state_directory, const std::string& sweep) {
  SAE_TRY(const StateStore store, open_to_read(state_directory));
  SAE_TRY(const fs::path files, recorded_store(state_directory));
  auto result = to_result(store.state(), sweep, files);
  if (!result)
    return fail(result.error().code, "{}: {}", state_directory.string(), result.error().message);
  return result;
}

Result<std::vector<std::string>> list_sweeps(const fs::path& state_directory) {
  SAE_TRY(const StateStore store, open_to_read(state_directory));
  return names_of(store.state());
}

}  // namespace saesweep::scheduler
