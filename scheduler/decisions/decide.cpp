#include "scheduler/decisions/decide.h"

#include <fmt/format.h>

#include <algorithm>

#include "scheduler/decisions/placement.h"

namespace saesweep::scheduler {
namespace {

constexpr std::uint32_t kRefusalsToStop = 20;

// Builds the answer to one message. Looks at the state as it was before it.
class Judge {
 public:
  explicit Judge(const SweepState& state) : state_(state) {}
  Decision take() { return std::move(decision_); }

  void operator()(const Recovered&) {
    for (const auto& [id, task] : state_.tasks())
      if (is_leased(task.phase())) give_back(id, "the scheduler was started again");
  }

  void operator()(const Submission& submission) {
    auto& submitted = *event().mutable_submitted();
    *submitted.mutable_sweep() = submission.sweep;
    for (journal::Task task : submission.tasks) {
      const auto* known = state_.task(task.id());
      if (known != nullptr) continue;
      // An input that an earlier sweep has made is there.
      const auto* input = task.needs().empty() ? nullptr : state_.task(task.needs());
      if (input != nullptr && input->phase() == journal::SUCCEEDED)
        task.set_phase(journal::READY);
      else if (input != nullptr && is_over(input->phase())) {
        task.set_phase(journal::SKIPPED);
        task.set_reason(input->reason());
      }
      *submitted.add_tasks() = std::move(task);
    }
  }

  void operator()(const WorkerLost& lost) {
    for (const auto& [id, run] : state_.runs)
      if (run.worker == lost.peer)
        for (const std::string& task : run.open) give_back(task, "its agent left");
  }

  void operator()(const AssignAnswer& answer) {
    if (answer.reply.accepted()) return;
    const auto run = state_.runs.find(answer.reply.run_id());
    if (run == state_.runs.end()) return;
    for (const std::string& task : run->second.open) give_back(task, answer.reply.reason());
    const auto worker = state_.workers.find(answer.peer);
    if (worker != state_.workers.end() && worker->second.refusals >= kRefusalsToStop)
      decision_.stop = Error{
          ErrorCode::kUnavailable,
          fmt::format("agent {} refuses work: {}", worker->second.name, answer.reply.reason())};
  }

  void operator()(const RunStarted& heard) {
    const auto run = state_.runs.find(heard.started.run_id());
    if (run == state_.runs.end()) return;
    for (const std::string& task : run->second.open) event().mutable_started()->set_task(task);
  }

  void operator()(const CheckpointHeard& heard) {
    const auto& checkpoint = heard.checkpointed;
    const auto* task = state_.task(checkpoint.task());
    if (task == nullptr || is_over(task->phase()) || checkpoint.fence() != task->fence()) return;
    auto& noted = *event().mutable_checkpointed();
    noted.set_task(checkpoint.task());
    *noted.mutable_checkpoint() = checkpoint.checkpoint();
  }

  void operator()(const ResultHeard& heard) {
    const protocol::TaskResult& result = heard.result;
    protocol::ResultAck ack;
    ack.set_task(result.task());
    ack.set_fence(result.fence());
    ack.set_verdict(judge(heard));
    decision_.replies.push_back({heard.peer, protocol::MessageType::kResultAck, ack});
  }

  void operator()(const ControlAnswer& answer) {
    const auto& done = answer.done;
    if (done.task().empty()) {
      // The whole run is unknown to the agent: whatever we thought it had is free again.
      const auto run = state_.runs.find(done.run_id());
      if (run == state_.runs.end()) return;
      for (const std::string& task : run->second.open) give_back(task, done.outcome());
      return;
    }
    const auto* task = state_.task(done.task());
    if (task == nullptr || !is_leased(task->phase()) || done.fence() != task->fence()) return;
    give_back(done.task(), done.outcome());
  }

  void operator()(const PlaceWork&) { place(state_, decision_); }

 private:
  journal::Event& event() { return decision_.events.emplace_back(); }

  void give_back(const std::string& task, const std::string& reason, bool retry = false,
                 bool fresh_group = false) {
    auto& returned = *event().mutable_returned();
    returned.set_task(task);
    returned.set_reason(reason);
    returned.set_counts_as_retry(retry);
    returned.set_fresh_group(fresh_group);
  }

  void end(const std::string& task, Phase phase, const std::string& reason,
           const protocol::TaskResult* result) {
    auto& ended = *event().mutable_ended();
    ended.set_task(task);
    ended.set_phase(phase);
    ended.set_reason(reason);
    if (result != nullptr) {
      ended.set_summary(result->summary());
      *ended.mutable_artifacts() = result->artifacts();
    }
    for (const std::string& next : state_.needed_by(task)) {
      const auto* waiting = state_.task(next);
      if (waiting->phase() != journal::BLOCKED) continue;
      if (phase == journal::SUCCEEDED)
        event().mutable_unblocked()->set_task(next);
      else
        end(next, journal::SKIPPED, reason, nullptr);
    }
  }

  std::string judge(const ResultHeard& heard) {
    const protocol::TaskResult& result = heard.result;
    const auto* task = state_.task(result.task());
    if (task == nullptr || result.fence() > task->fence()) return "invalid";
    if (result.fence() < task->fence()) return "stale";
    if (is_over(task->phase())) return task->phase() == journal::SUCCEEDED ? "duplicate" : "stale";
    if (!is_leased(task->phase()) && task->phase() != journal::READY) return "stale";
    switch (result.outcome()) {
      case protocol::OUTCOME_DONE:
        if (!heard.artifacts_there) {
          if (is_leased(task->phase())) retry(*task, "its artifacts are not there");
          return "invalid";
        }
        end(result.task(), journal::SUCCEEDED, "", &result);
        return "committed";
      case protocol::OUTCOME_DIVERGED:
        end(result.task(), journal::DIVERGED, result.reason(), &result);
        return "committed";
      case protocol::OUTCOME_FAILED:
        end(result.task(), journal::FAILED, result.reason(), &result);
        return "committed";
      case protocol::OUTCOME_RETRY:
        if (!is_leased(task->phase())) return "stale";
        if (result.reason().starts_with("disk full")) {
          give_back(result.task(), result.reason());
          decision_.stop = Error{ErrorCode::kResourceExhausted, result.reason()};
        } else if (result.out_of_memory() && members(*task).size() > 1) {
          // Less company, then it fits.
          split(*task);
          give_back(result.task(), result.reason());
        } else {
          retry(*task, result.reason());
        }
        return "committed";
      case protocol::OUTCOME_LOST:
        if (!is_leased(task->phase())) return "stale";
        lost(*task, result);
        return "committed";
      default:
        return "invalid";
    }
  }

  void retry(const journal::Task& task, const std::string& reason) {
    if (task.retries() + 1 >= kRetriesAlone)
      end(task.id(), journal::FAILED,
          fmt::format("tried {} times; last: {}", task.retries() + 1, reason), nullptr);
    else
      give_back(task.id(), reason, /*retry=*/true);
  }

  // Of the group of a task, those that are not over.
  std::vector<std::string> members(const journal::Task& task) const {
    std::vector<std::string> left;
    if (const auto* group = state_.group(task.group()))
      for (const std::string& id : group->tasks())
        if (const auto* member = state_.task(id);
            member != nullptr && !is_over(member->phase()) && member->group() == task.group())
          left.push_back(id);
    return left;
  }

  void split(const journal::Task& task) {
    const std::vector<std::string> left = members(task);
    auto& halves = *event().mutable_split();
    halves.set_group(task.group());
    for (std::size_t i = 0; i < left.size(); ++i)
      (i < (left.size() + 1) / 2 ? halves.add_first() : halves.add_second())->assign(left[i]);
  }

  // One executor's death is heard of once for each member: the first one judges the group, while
  // all members are still leased.
  void lost(const journal::Task& task, const protocol::TaskResult& result) {
    const auto* group = state_.group(task.group());
    const std::vector<std::string> left = members(task);
    const bool first =
        group != nullptr && std::all_of(left.begin(), left.end(), [&](const std::string& id) {
          return is_leased(state_.task(id)->phase());
        });
    if (group == nullptr || !first) {
      give_back(task.id(), result.reason());
      return;
    }
    const bool counts = result.executor_died_alone() && !group->progressed();
    const std::uint32_t deaths = group->deaths() + (counts ? 1 : 0);
    auto& died = *event().mutable_died();
    died.set_group(group->id());
    died.set_counts(counts);
    if (left.size() == 1 && counts && deaths >= kDeathsToGiveUp) {
      end(task.id(), journal::FAILED,
          fmt::format("its executor died {} times without progress; last: {}", deaths,
                      result.reason()),
          nullptr);
      return;
    }
    // The others' messages follow; they find this one returned.
    if (left.size() > 1 && ((counts && deaths >= kDeathsToSplit) || result.out_of_memory()))
      split(task);
    give_back(task.id(), result.reason());
  }

  const SweepState& state_;
  Decision decision_;
};

}  // namespace

Decision decide(const SweepState& state, const Message& heard, TimePoint) {
  Judge judge(state);
  std::visit(judge, heard);
  return judge.take();
}

}  // namespace saesweep::scheduler
