#include "scheduler/service/sweep_results.h"

#include <fmt/format.h>

#include <algorithm>

#include "scheduler/service/state_store.h"

namespace saesweep::scheduler {
namespace {

void add_files(const journal::Task& task, const std::filesystem::path& artifacts,
               std::map<std::string, std::filesystem::path>& files) {
  for (const auto& artifact : task.artifacts())
    files[artifact.name()] = artifacts / artifact.sha256();
}

Result<Json> summary_of(const journal::Task& task) {
  if (task.summary().empty()) return Json::object();
  return parse_json(task.summary());
}

std::string evaluation_name(const journal::Task& task) {
  const auto spec = parse_json(task.spec());
  if (!spec || !spec->contains("evaluation")) return "evaluation";
  return (*spec)["evaluation"].value("kind", std::string("evaluation"));
}

std::string names_of(const SweepState& state) {
  std::string names;
  for (const auto& [name, sweep] : state.sweeps()) names += (names.empty() ? "" : ", ") + name;
  return names.empty() ? "none" : names;
}

// The newest sweep, or the one of that name.
const journal::Sweep* find_sweep(const SweepState& state, const std::string& name) {
  const journal::Sweep* found = nullptr;
  for (const auto& [key, sweep] : state.sweeps()) {
    if (!name.empty() && key == name) return &sweep;
    if (name.empty() && (found == nullptr || sweep.order() > found->order())) found = &sweep;
  }
  return found;
}

}  // namespace

std::pair<std::string, std::string> state_of(const SweepState& state,
                                             const journal::Subject& subject) {
  if (const auto* train = state.task(subject.train_task())) {
    if (train->phase() == journal::DIVERGED) return {"diverged", train->reason()};
    if (train->phase() == journal::FAILED) return {"failed", train->reason()};
    if (train->phase() == journal::CANCELLED) return {"cancelled", train->reason()};
    if (train->phase() != journal::SUCCEEDED)
      return {"unfinished", std::string(to_string(train->phase()))};
  }
  std::string reason;
  for (const std::string& id : subject.evaluate_tasks()) {
    const auto* task = state.task(id);
    if (task == nullptr || !is_over(task->phase())) return {"unfinished", "not scored yet"};
    if (task->phase() == journal::SUCCEEDED) continue;
    if (!reason.empty()) reason += "; ";
    reason += fmt::format("evaluation {}: {}", evaluation_name(*task), task->reason());
  }
  if (!reason.empty()) return {"failed", reason};
  return {"done", ""};
}

Result<SweepResult> result_of(const SweepState& state, const std::string& name,
                              const std::filesystem::path& state_directory) {
  const journal::Sweep* sweep = find_sweep(state, name);
  if (sweep == nullptr)
    return fail(ErrorCode::kNotFound, "no sweep{} in {}; there are: {}",
                name.empty() ? "" : " " + name, state_directory.string(), names_of(state));
  const auto artifacts = state_directory / "artifacts";
  SweepResult result;
  result.name = sweep->name();
  result.finished = state.all_over(*sweep);
  result.started = sweep->started();
  if (sweep->ended() > 0) result.ended = sweep->ended();
  result.effective_yaml = sweep->effective_yaml();
  for (const auto& subject : sweep->subjects()) {
    SubjectResult out;
    out.baseline = subject.baseline();
    out.number = subject.number();
    out.identity = subject.identity();
    SAE_TRY(out.spec, parse_json(subject.spec()));
    std::tie(out.state, out.reason) = state_of(state, subject);
    if (const auto* train = state.task(subject.train_task())) {
      SAE_TRY(out.train_summary, summary_of(*train));
      if (out.train_summary.contains("tokens") && out.train_summary["tokens"].is_number_unsigned())
        out.tokens = out.train_summary["tokens"].get<std::uint64_t>();
      add_files(*train, artifacts, out.files);
    }
    for (const std::string& id : subject.evaluate_tasks()) {
      const auto* task = state.task(id);
      if (task == nullptr || task->phase() != journal::SUCCEEDED) continue;
      SAE_TRY(Json summary, summary_of(*task));
      out.evaluations.push_back(std::move(summary));
      add_files(*task, artifacts, out.files);
    }
    result.subjects.push_back(std::move(out));
  }
  if (const auto* model = state.task(sweep->model_task())) {
    SAE_TRY(result.model_summary, summary_of(*model));
    add_files(*model, artifacts, result.model_files);
    // A model that failed is shown like a trial that did.
    if (is_over(model->phase()) && model->phase() != journal::SUCCEEDED) {
      SubjectResult out;
      out.identity = model->id().substr(model->id().find(':') + 1);
      SAE_TRY(const Json spec, parse_json(model->spec()));
      out.spec = {{"train_lm", spec}};
      out.state = model->phase() == journal::DIVERGED ? "diverged" : "failed";
      out.reason = model->reason();
      result.subjects.push_back(std::move(out));
    }
  }
  return result;
}

Result<SweepResult> read_sweep(const std::filesystem::path& state_directory,
                               const std::string& sweep) {
  SAE_TRY(const StateStore store, StateStore::open(state_directory, /*read_only=*/true));
  SAE_TRY(const SweepState state, store.load());
  return result_of(state, sweep, state_directory);
}

Result<std::vector<std::string>> list_sweeps(const std::filesystem::path& state_directory) {
  SAE_TRY(const StateStore store, StateStore::open(state_directory, /*read_only=*/true));
  SAE_TRY(const SweepState state, store.load());
  std::vector<const journal::Sweep*> sweeps;
  for (const auto& [name, sweep] : state.sweeps()) sweeps.push_back(&sweep);
  std::sort(sweeps.begin(), sweeps.end(),
            [](const auto* a, const auto* b) { return a->order() > b->order(); });
  std::vector<std::string> names;
  for (const auto* sweep : sweeps) names.push_back(sweep->name());
  return names;
}

}  // namespace saesweep::scheduler
