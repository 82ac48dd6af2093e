#include "scheduler/service/views.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <map>

#include "scheduler/decisions/decide.h"
#include "scheduler/decisions/standings.h"
#include "scheduler/service/sweep_result.h"

namespace saesweep::scheduler {
namespace {

using journal::Subject;
using journal::Sweep;
using journal::Task;

constexpr int kSchema = 1;
constexpr std::size_t kIdDigits = 12;

// A session's id as people see it.
std::string short_session(const std::string& session) {
  std::string hex;
  for (std::size_t i = 0; i < std::min<std::size_t>(session.size(), 4); ++i)
    hex += fmt::format("{:02x}", static_cast<unsigned char>(session[i]));
  return hex;
}

Json worker_of(const SweepState& state, const Task& task) {
  const journal::Run* run = state.find_run(task.run());
  if (run == nullptr || run->worker().empty()) return nullptr;
  return run->worker_name();
}

// What a trial is doing: what became of it, or the phase of what is next for it.
struct Doing {
  std::string state, reason;
  const Task* task = nullptr;  // that it waits for; null when it is over
};

Doing doing(const SweepState& state, const Sweep& sweep, const Subject& subject) {
  if (auto outcome = settled_outcome_of(state, sweep, subject))
    return {std::move(outcome->state), std::move(outcome->reason)};
  const Task* train = state.find_task(subject.train_task());
  if (subject.paused()) return {"paused", "", train};
  if (train != nullptr && !is_finished(*train)) {
    if (is_leased(*train)) return {"training", "", train};
    if (const std::string text = wait_text(state, *train, sweep); !text.empty())
      return {"paused", text, train};
    return {"waiting", train->has_backoff() ? "it failed a moment ago and is tried again" : "",
            train};
  }
  const Task* waits = nullptr;
  for (const std::string& id : subject.evaluate_tasks()) {
    const Task* task = state.find_task(id);
    if (task == nullptr || is_finished(*task)) continue;
    if (is_leased(*task)) return {"scoring", "", task};
    waits = task;
  }
  return {train == nullptr ? "waiting" : "trained", "", waits};
}

std::uint64_t tokens_of(const Task* train) {
  if (train == nullptr) return 0;
  return train->has_succeeded() ? train->spec().tokens() : train->checkpoint().tokens();
}

std::string phase_of(const SweepState& state, const Sweep& sweep) {
  if (sweep.cancelled()) return "cancelled";
  if (sweep.ended() != 0) return "done";
  if (sweep.paused()) return "paused";
  if (!sweep.active()) return "inactive";
  const auto is_of_sweep = [&](const std::string& task) {
    return std::ranges::any_of(state.wants(task), [&](const SweepState::Want& want) {
      return &state.sweep_of(want) == &sweep;
    });
  };
  for (const auto& [id, run] : state.runs())
    if (!run.worker().empty() && std::ranges::any_of(run.tasks(), is_of_sweep)) return "running";
  return "waiting";
}

std::vector<const Sweep*> newest_first(const SweepState& state) {
  std::vector<const Sweep*> sweeps;
  for (const auto& [name, sweep] : state.sweeps()) sweeps.push_back(&sweep);
  std::ranges::sort(sweeps, std::greater{}, [](const Sweep* sweep) { return sweep->submission(); });
  return sweeps;
}

double seconds_since(TimePoint then, TimePoint now) {
  return std::max(0.0, std::chrono::duration<double>(now - then).count());
}

Json workers_of(const SweepState& state, TimePoint now) {
  const auto& draining = state.meta().draining();
  std::vector<Json> workers;
  for (const auto& [session, worker] : state.workers()) {
    Json each{{"name", worker.name},
              {"host", worker.host},
              {"session", short_session(session)},
              {"slots", worker.slots},
              {"gpus", worker.gpus},
              {"gpu_memory_bytes", worker.gpu_memory_bytes},
              {"memory_bytes", worker.memory_bytes},
              {"silent_s", seconds_since(worker.heard, now)},
              {"state", worker.lost                                              ? "lost"
                        : worker.awaited                                         ? "awaited"
                        : std::ranges::find(draining, session) != draining.end() ? "draining"
                                                                                 : "here"},
              {"runs", Json::array()}};
    for (const std::uint64_t id : worker.runs)
      if (const journal::Run* run = state.find_run(id); run != nullptr)
        each["runs"].push_back({{"run", id}, {"tasks", run->tasks_size()}});
    workers.push_back(std::move(each));
  }
  std::ranges::sort(workers, {}, [](const Json& worker) {
    return std::pair(worker["name"].get<std::string>(), worker["session"].get<std::string>());
  });
  return workers;
}

std::string_view kind_word(protocol::TaskKind kind) {
  if (kind == protocol::TASK_KIND_TRAIN) return "train";
  return kind == protocol::TASK_KIND_EVALUATE ? "evaluate" : "train_lm";
}

}  // namespace

Result<const Sweep*> find_sweep(const SweepState& state, const std::string& word) {
  const auto named = state.sweeps().find(word);
  if (named != state.sweeps().end()) return &named->second;
  const auto sweeps = newest_first(state);
  if (sweeps.empty()) return fail(ErrorCode::kNotFound, "no sweep was submitted");
  if (word.empty() || word == "last") return sweeps.front();
  return fail(ErrorCode::kNotFound, "no sweep {}; there is {}", word,
              fmt::join(names_of(state), ", "));
}

Json sweep_summary(const SweepState& state, const Sweep& sweep) {
  std::map<std::string, std::uint64_t> trials{
      {"total", 0},  {"waiting", 0},  {"training", 0}, {"trained", 0}, {"scoring", 0},  {"done", 0},
      {"failed", 0}, {"diverged", 0}, {"paused", 0},   {"stopped", 0}, {"cancelled", 0}};
  std::uint64_t baselines = 0, baselines_done = 0, tokens = 0, all_tokens = 0;
  for (const Subject& subject : sweep.subjects()) {
    const std::string word = doing(state, sweep, subject).state;
    if (subject.baseline()) {
      ++baselines;
      baselines_done += word == "done" ? 1 : 0;
      continue;
    }
    ++trials["total"];
    ++trials[word];
    const Task* train = state.find_task(subject.train_task());
    tokens += tokens_of(train);
    all_tokens += train == nullptr ? 0 : train->spec().tokens();
  }
  Json summary{{"name", sweep.name()},
               {"state", phase_of(state, sweep)},
               {"trials", trials},
               {"baselines", {{"total", baselines}, {"done", baselines_done}}},
               {"tokens", {{"total", all_tokens}, {"done", tokens}}},
               {"submission", sweep.submission()},
               {"priority", sweep.priority()},
               {"started", sweep.started()},
               {"ended", sweep.ended() == 0 ? Json(nullptr) : Json(sweep.ended())}};
  if (const Task* lm = state.find_task(sweep.lm_task()); lm != nullptr)
    summary["model"] = is_finished(*lm) ? lm->has_succeeded() ? "done" : "failed"
                       : is_leased(*lm) ? "training"
                                        : "waiting";
  return summary;
}

Json status_view(const SweepState& state) {
  Json view{{"schema", kSchema},
            {"epoch", state.meta().epoch()},
            {"workers", 0},
            {"sweeps", Json::array()}};
  std::size_t here = 0;
  for (const auto& [session, worker] : state.workers())
    here += worker.lost || worker.awaited ? 0 : 1;
  view["workers"] = here;
  for (const Sweep* sweep : newest_first(state))
    view["sweeps"].push_back(sweep_summary(state, *sweep));
  return view;
}

Json sweep_view(const SweepState& state, const Sweep& sweep) {
  Json view = status_view(state);
  view["sweeps"] = Json::array({sweep_summary(state, sweep)});
  Json& trials = view["sweeps"][0]["rows"] = Json::array();
  for (const Subject& subject : sweep.subjects()) {
    if (subject.baseline()) continue;
    const Doing now = doing(state, sweep, subject);
    const Task* train = state.find_task(subject.train_task());
    const Task* last = now.task != nullptr ? now.task : train;
    trials.push_back(
        {{"trial", subject.identity().substr(0, kIdDigits)},
         {"number", subject.number()},
         {"state", now.state},
         {"reason", now.reason},
         {"tokens", tokens_of(train)},
         {"tokens_total", train == nullptr ? 0 : train->spec().tokens()},
         {"attempt", last == nullptr ? 0 : last->attempt()},
         {"worker", now.task == nullptr ? Json(nullptr) : worker_of(state, *now.task)}});
  }
  return view;
}

Json workers_view(const SweepState& state, TimePoint now) {
  return {{"schema", kSchema}, {"workers", workers_of(state, now)}};
}

Json top_view(const SweepState& state, TimePoint now) {
  Json view{{"schema", kSchema},
            {"epoch", state.meta().epoch()},
            {"sweeps", Json::array()},
            {"workers", workers_of(state, now)},
            {"runs", Json::array()}};
  for (const Sweep* sweep : newest_first(state))
    if (sweep->ended() == 0) view["sweeps"].push_back(sweep_summary(state, *sweep));
  for (const auto& [id, run] : state.runs()) {
    const Task& first = *state.find_task(run.tasks(0));
    const Sweep* sweep = state.active_sweep_of(run.tasks(0));
    std::uint64_t tokens = 0, all_tokens = 0;
    for (const std::string& task : run.tasks()) {
      tokens += state.find_task(task)->checkpoint().tokens();
      all_tokens += state.find_task(task)->spec().tokens();
    }
    view["runs"].push_back({{"run", id},
                            {"kind", kind_word(first.spec().kind())},
                            {"sweep", sweep == nullptr ? Json(nullptr) : Json(sweep->name())},
                            {"worker", worker_of(state, first)},
                            {"state", run.worker().empty()  ? "waiting"
                                      : first.has_running() ? "running"
                                                            : "assigned"},
                            {"tasks", run.tasks_size()},
                            {"deaths", run.deaths()},
                            {"tokens", {{"done", tokens}, {"total", all_tokens}}}});
  }
  return view;
}

}  // namespace saesweep::scheduler
