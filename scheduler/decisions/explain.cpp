// Why a task is where it is, from what placement itself goes by.
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "scheduler/decisions/attempts.h"
#include "scheduler/decisions/decide.h"
#include "scheduler/decisions/placement.h"
#include "scheduler/decisions/standings.h"

namespace saesweep::scheduler {
namespace {

using journal::Task;

std::string gib(std::uint64_t bytes) {
  return fmt::format("{:.1f} GiB", static_cast<double>(bytes) / (1u << 30));
}

double seconds(Duration duration) { return std::chrono::duration<double>(duration).count(); }

class Explainer {
 public:
  Explainer(const SweepState& state, const Task& task, TimePoint now)
      : state_(state), task_(task), id_(task.spec().id()), now_(now) {}

  Json explain() {
    const std::string_view state = state_of(state_, task_);
    if (is_finished(task_))
      say_end();
    else if (is_leased(task_))
      say_lease();
    else if (task_.has_blocked())
      say_input();
    else
      say_waiting();
    Json sweeps = Json::array();
    for (const SweepState::Want& want : state_.wants(id_)) sweeps.push_back(sweep_json(want));
    Json attempts = Json::array();
    for (const journal::Attempt& attempt : task_.attempts()) attempts.push_back(to_json(attempt));
    Json checkpoint;
    if (task_.has_checkpoint())
      checkpoint = {{"step", task_.checkpoint().step()}, {"tokens", task_.checkpoint().tokens()}};
    return {{"task", id_},
            {"state", state},
            {"reasons", std::move(reasons_)},
            {"sweeps", std::move(sweeps)},
            {"fence", task_.fence()},
            {"attempt", task_.attempt()},
            {"attempts", std::move(attempts)},
            {"checkpoint", std::move(checkpoint)},
            {"memory_bytes", memory_of(task_)},
            {"shared_memory_bytes", task_.spec().shared_memory_bytes()}};
  }

 private:
  void say(const char* code, std::string text, Json more = Json::object()) {
    more["code"] = code;
    more["text"] = std::move(text);
    reasons_.push_back(std::move(more));
  }

  Json sweep_json(const SweepState::Want& want) const {
    const journal::Sweep& sweep = state_.sweep_of(want);
    return {{"sweep", sweep.name()},
            {"wanted", state_.is_wanted(want)},
            {"working", state_.is_working(want)},
            {"priority", sweep.priority()},
            {"weight", weight_of(sweep)},
            {"charge", state_.desks()[want.sweep].charge}};
  }
  static Json to_json(const journal::Attempt& attempt) {
    Json json{{"fence", attempt.fence()},
              {"run", attempt.run()},
              {"worker", attempt.worker()},
              {"host", attempt.host()},
              {"began", attempt.began()},
              {"ended", attempt.ended()},
              {"outcome", to_string(attempt.ending())},
              {"reason", attempt.reason()}};
    if (attempt.ended() == 0) json["ended"] = nullptr;
    return json;
  }

  // ---- what is over, leased or blocked

  std::string deaths() const {
    std::vector<std::string> words;
    for (const journal::Attempt& attempt : task_.attempts())
      if (attempt.ending() == journal::ENDING_CRASHED || attempt.ending() == journal::ENDING_DEADLY)
        words.push_back(fmt::format("on {}: {}", attempt.worker(), attempt.reason()));
    return fmt::format("{}", fmt::join(words, "; "));
  }
  void say_end() {
    switch (task_.phase_case()) {
      case Task::kSucceeded:
        return say("done", "it succeeded");
      case Task::kDiverged:
        return say("diverged", task_.diverged().reason());
      case Task::kFailed: {
        const bool is_deadly =
            task_.attempts_size() > 0 &&
            task_.attempts(task_.attempts_size() - 1).ending() == journal::ENDING_DEADLY;
        if (is_deadly)
          return say("deaths", fmt::format("{} ({})", task_.failed().reason(), deaths()));
        return say("failed", task_.failed().reason(), {{"passing", task_.failed().passing()}});
      }
      case Task::kSkipped:
        return say("skipped",
                   fmt::format("what it needs, {}, will not succeed", task_.spec().needs()),
                   {{"needs", task_.spec().needs()}});
      case Task::kCancelled:
        return say("cancelled", task_.cancelled().reason());
      default:
        return say("stopped", task_.stopped().reason());
    }
  }
  void say_lease() {
    const journal::Run& run = *state_.find_run(task_.run());
    say("on_worker",
        fmt::format("run {} of {} on {}{}", run.id(),
                    run.tasks_size() == 1 ? std::string("one task")
                                          : fmt::format("{} tasks", run.tasks_size()),
                    run.worker_name(), task_.has_assigned() ? ", not begun yet" : ""),
        {{"run", run.id()}, {"worker", run.worker_name()}});
    const Worker& worker = state_.workers().at(run.worker());
    if (worker.awaited)
      say("worker_awaited",
          fmt::format("{} has not come back since the scheduler began anew; its lease is held for "
                      "{:.0f} s more",
                      worker.name, std::max(0.0, seconds(kReadoption - (now_ - worker.heard)))));
    else if (state_.payer_of(id_) == nullptr)
      say("pausing", "it was asked to make a checkpoint and stop");
    else if (state_.is_draining(run.worker()))
      say("draining", fmt::format("{} is draining: it makes a checkpoint and stops", worker.name));
  }
  void say_input() {
    const Task& needed = *state_.find_task(task_.spec().needs());
    say("needs_input",
        fmt::format("waits for {}, which is {}", task_.spec().needs(), state_of(state_, needed)),
        {{"needs", task_.spec().needs()}});
  }

  // ---- what waits

  void say_waiting() {
    if (task_.has_backoff() && !is_due(task_, now_)) {
      const double left = seconds(from_ns(task_.backoff().until_ns()) - now_);
      std::string why;
      if (task_.attempts_size() > 0) {
        const auto& last = task_.attempts(task_.attempts_size() - 1);
        why = fmt::format(" after {}: {}", to_string(last.ending()), last.reason());
      }
      say("backoff", fmt::format("is tried again in {:.1f} s{}", left, why), {{"seconds", left}});
    }
    const journal::Sweep* payer = state_.payer_of(id_);
    if (payer == nullptr) return say_nobody();
    if (task_.run() != 0) say_run();
    if (is_due(task_, now_)) say_workers(*payer);
  }

  void say_nobody() {
    for (const SweepState::Want& want : state_.wants(id_)) {
      const journal::Sweep& sweep = state_.sweep_of(want);
      const journal::Standing* standing = standing_of(task_, sweep.name());
      if (standing != nullptr && !standing->stopped().empty())
        say("stopped", fmt::format("stopped in sweep {}: {}", sweep.name(), standing->stopped()));
      else if (std::string text = wait_text(state_, task_, sweep);
               !text.empty() && is_working(sweep))
        say("at_rung", std::move(text));
      else if (!state_.is_wanted(want))
        say("cancelled", fmt::format("was cancelled in sweep {}", sweep.name()));
      else if (!sweep.active())
        say("sweep_inactive",
            fmt::format("sweep {} is of an earlier process; resume or submit it", sweep.name()));
      else if (sweep.paused())
        say("sweep_paused", fmt::format("sweep {} is paused", sweep.name()));
      else
        say("trial_paused", fmt::format("is paused in sweep {}", sweep.name()));
    }
    if (reasons_.empty()) say("unwanted", "no sweep names it any more");
  }

  // A run that died waits to be leased as one.
  void say_run() {
    const journal::Run& run = *state_.find_run(task_.run());
    std::vector<std::string> others;
    for (const std::string& id : run.tasks())
      if (id != id_ && !is_due(*state_.find_task(id), now_)) others.push_back(id);
    say("run_waits",
        fmt::format("waits with {} companions as run {}{}", run.tasks_size() - 1, run.id(),
                    run.deaths() == 0 ? std::string()
                                      : fmt::format(", whose executor died {} times: {}",
                                                    run.deaths(), deaths())),
        {{"run", run.id()}, {"deaths", run.deaths()}, {"not_due", others.size()}});
  }

  void say_workers(const journal::Sweep& payer) {
    const std::vector<Room> rooms = survey(state_, now_);
    if (rooms.empty()) return say("no_worker", "no worker is connected");
    std::map<Availability, std::vector<std::string>> names;
    for (const Room& room : rooms) names[room.availability].push_back(room.worker->name);
    const auto tell = [&](Availability what, const char* code, const char* text) {
      if (const auto found = names.find(what); found != names.end())
        say(code, fmt::format("{} {}", fmt::join(found->second, ", "), text),
            {{"workers", found->second}});
    };
    tell(Availability::kDraining, "workers_draining", "takes nothing new: draining");
    tell(Availability::kSuspect, "workers_suspect", "was not heard for a while");
    tell(Availability::kLost, "workers_lost", "is lost");
    tell(Availability::kAwaited, "workers_resyncing", "has not come back since a restart");
    tell(Availability::kResyncing, "workers_resyncing", "is being asked what it runs");
    const std::uint64_t bytes = memory_of(task_), largest = largest_memory(rooms, task_);
    const Task* first = overtaken(state_, now_);
    const Room* reserved = first == nullptr ? nullptr : reserved_for(rooms, *first);
    bool can_begin = false;
    std::vector<std::string> too_small;
    for (const Room& room : rooms) {
      if (room.availability != Availability::kFree) continue;
      if (reserved != nullptr && room.session == reserved->session && first != &task_)
        say("worker_reserved",
            fmt::format("{} is kept free for {}", room.worker->name, first->spec().id()));
      else if (has_device_for(room, task_) && has_memory_for(room, bytes, largest))
        can_begin = true;
      else if (has_device_for(room, task_))
        too_small.push_back(fmt::format("{} has {} free of {}", room.worker->name,
                                        gib(room.free_bytes), gib(room.memory_bytes)));
    }
    if (std::ranges::none_of(rooms, [&](const Room& room) { return has_device_for(room, task_); }))
      say("needs_gpu",
          fmt::format("needs a GPU with about {} of memory for a slot; no worker has one",
                      gib(task_.spec().gpu_memory_bytes())));
    if (!can_begin && !too_small.empty())
      say("needs_memory",
          fmt::format("needs {} of memory; {}", gib(bytes), fmt::join(too_small, ", ")),
          {{"bytes", bytes}});
    if (!can_begin) say_busy(rooms);
    say_turn(payer, can_begin);
  }

  void say_busy(const std::vector<Room>& rooms) {
    std::vector<std::string> words, names;
    for (const Room& room : rooms) {
      if (room.availability != Availability::kBusy) continue;
      std::vector<std::string> runs;
      for (const std::uint64_t id : room.worker->runs) {
        const journal::Run& run = *state_.find_run(id);
        const journal::Sweep* sweep = state_.payer_of(run.tasks(0));
        runs.push_back(fmt::format("run {} of {} tasks{}", id, run.tasks_size(),
                                   sweep == nullptr ? "" : " of sweep " + sweep->name()));
      }
      names.push_back(room.worker->name);
      words.push_back(runs.empty()
                          ? room.worker->name + " is winding down"
                          : fmt::format("{}: {}", room.worker->name, fmt::join(runs, ", ")));
    }
    if (!names.empty())
      say("workers_busy", fmt::format("all slots are taken ({})", fmt::join(words, "; ")),
          {{"workers", names}});
  }

  void say_turn(const journal::Sweep& payer, bool can_begin) {
    const std::vector<double> taken = slots_taken(state_);
    const auto& desks = state_.desks();
    Turn own;
    for (std::size_t i = 0; i < desks.size(); ++i)
      if (desks[i].sweep == payer.name()) own = turn_of(state_, desks[i], taken[i]);
    std::vector<std::string> before;
    for (std::size_t i = 0; i < desks.size(); ++i)
      if (!desks[i].ready.empty() && turn_of(state_, desks[i], taken[i]) < own)
        before.push_back(desks[i].sweep);
    std::uint64_t older = 0;
    for (const auto& [key, ready] : state_.desk(payer.name()).ready)
      older += static_cast<std::uint64_t>(
          std::distance(ready.begin(), ready.lower_bound(task_.order())));
    if (before.empty() && older == 0 && can_begin)
      return say("next", "is next: it begins at the next look");
    if (before.empty() && older == 0) return;
    std::string text;
    if (!before.empty())
      text =
          fmt::format("sweeps {} have their turn before {}", fmt::join(before, ", "), payer.name());
    if (older > 0)
      text += fmt::format("{}{} older tasks of {} go first", text.empty() ? "" : "; ", older,
                          payer.name());
    say("behind_others", std::move(text), {{"sweeps_before", before}, {"tasks_before", older}});
  }

  const SweepState& state_;
  const Task& task_;
  const std::string& id_;
  const TimePoint now_;
  Json reasons_ = Json::array();
};

}  // namespace

std::string_view state_of(const SweepState& state, const Task& task) {
  switch (task.phase_case()) {
    case Task::kBlocked:
      return "blocked";
    case Task::kReady:
    case Task::kBackoff: {
      const bool is_paused =
          state.payer_of(task.spec().id()) == nullptr &&
          std::ranges::any_of(state.wants(task.spec().id()), [&](const SweepState::Want& want) {
            return state.is_wanted(want) && state.sweep_of(want).active();
          });
      if (is_paused) return "paused";
      return task.has_ready() ? "ready" : "backoff";
    }
    case Task::kAssigned:
      return "assigned";
    case Task::kRunning:
      return "running";
    case Task::kSucceeded:
      return "succeeded";
    case Task::kDiverged:
      return "diverged";
    case Task::kFailed:
      return "failed";
    case Task::kSkipped:
      return "skipped";
    case Task::kCancelled:
      return "cancelled";
    case Task::kStopped:
      return "stopped";
    case Task::PHASE_NOT_SET:
      break;
  }
  return "unknown";
}

Json explain(const SweepState& state, const std::string& task, TimePoint now) {
  const Task* found = state.find_task(task);
  return found == nullptr ? Json() : Explainer(state, *found, now).explain();
}

}  // namespace saesweep::scheduler
