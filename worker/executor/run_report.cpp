#include "worker/executor/run_report.h"

#include <algorithm>
#include <utility>

#include "core/log.h"

namespace saesweep::worker {
namespace {

// Long enough for any of our messages; an error text from outside may be longer.
constexpr std::size_t kReasonBytes = 8192;

std::uint64_t microseconds(Duration duration) {
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(duration).count());
}

protocol::TaskResult result_of(const Error& error, RunReport::During during) {
  protocol::TaskResult result;
  std::string reason = error.message.substr(0, kReasonBytes);
  switch (error.code) {
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kNotFound:
    case ErrorCode::kCorrupted:
      result.set_outcome(protocol::OUTCOME_FAILED);
      break;
    case ErrorCode::kDiverged:
      result.set_outcome(protocol::OUTCOME_DIVERGED);
      break;
    case ErrorCode::kResourceExhausted:
      result.set_outcome(protocol::OUTCOME_RETRY);
      if (during == RunReport::During::kDisk)
        reason = "disk full: " + reason;
      else
        result.set_out_of_memory(true);
      break;
    case ErrorCode::kUnavailable:
    case ErrorCode::kStaleLease:
      result.set_outcome(protocol::OUTCOME_RETRY);
      break;
  }
  // What could not be written may be writable again; the work was not at fault.
  if (during == RunReport::During::kDisk) result.set_outcome(protocol::OUTCOME_RETRY);
  result.set_reason(std::move(reason));
  return result;
}

}  // namespace

double RunReport::waiting_share() const {
  if (stepping_ <= Duration{}) return 0;
  return std::chrono::duration<double>(waiting_) / std::chrono::duration<double>(stepping_);
}

RunReport::RunReport(const protocol::Run& run, AgentLink& link, Requests& requests,
                     const Clock& clock)
    : run_(run), link_(link), requests_(requests), clock_(clock) {
  for (const auto& member : run.members()) answered_[member.task()] = false;
  last_time_ = clock_.now();
}

std::vector<const protocol::Member*> RunReport::open_members() const {
  std::vector<const protocol::Member*> open;
  for (const auto& member : run_.members())
    if (is_open(member)) open.push_back(&member);
  return open;
}

bool RunReport::is_open(const protocol::Member& member) const {
  return !answered_.at(member.task());
}

void RunReport::finish(const protocol::Member& member, protocol::TaskResult result) {
  if (!is_open(member)) return;
  answered_[member.task()] = true;
  ran_out_of_memory_ |= result.out_of_memory();
  result.set_run_id(run_.run_id());
  result.set_task(member.task());
  result.set_fence(member.fence());
  if (result.outcome() == protocol::OUTCOME_DONE)
    log::info("task.done task={}", member.task());
  else if (result.outcome() == protocol::OUTCOME_AT_RUNG)
    log::info("task.at_rung task={} tokens={}", member.task(), result.checkpoint().tokens());
  else
    log::warn("task.ended task={} outcome={} reason={}", member.task(),
              protocol::Outcome_Name(result.outcome()), result.reason());
  send_counts();
  protocol::Envelope envelope;
  *envelope.mutable_result() = std::move(result);
  link_.send(envelope);
}

void RunReport::give_up(const protocol::Member& member, const Error& error, During during) {
  finish(member, result_of(error, during));
}

void RunReport::give_up_all(const Error& error) {
  for (const protocol::Member* member : open_members()) give_up(*member, error);
}

void RunReport::checkpointed(const protocol::Member& member,
                             const protocol::CheckpointRef& checkpoint, const std::string& reason) {
  protocol::Envelope envelope;
  auto& message = *envelope.mutable_checkpointed();
  message.set_run_id(run_.run_id());
  message.set_task(member.task());
  message.set_fence(member.fence());
  *message.mutable_checkpoint() = checkpoint;
  message.set_reason(reason);
  link_.send(envelope);
}

void RunReport::answered(const protocol::Control& control, const std::string& task,
                         std::uint64_t fence, const std::string& outcome) {
  protocol::Envelope envelope;
  auto& message = *envelope.mutable_control_done();
  message.set_run_id(run_.run_id());
  message.set_task(task);
  message.set_fence(fence);
  message.set_verb(control.verb());
  message.set_outcome(outcome);
  link_.send(envelope);
}

void RunReport::answer_requests(const Leave& leave) {
  for (const protocol::Control& control : requests_.take(run_.run_id())) {
    const bool pause = control.verb() == "pause";
    if (!pause && control.verb() != "cancel") {
      answered(control, control.task(), control.fence(), "unknown verb");
      continue;
    }
    bool found = false;
    for (const protocol::Member* member : open_members()) {
      if (!control.task().empty() && (control.task() != member->task() ||
                                      (control.fence() != 0 && control.fence() != member->fence())))
        continue;
      found = true;
      leave(*member, pause);
      if (!is_open(*member)) continue;  // it gave a result instead
      answered_[member->task()] = true;
      send_counts();
      log::info("task.{} task={}", pause ? "paused" : "cancelled", member->task());
      answered(control, member->task(), member->fence(), pause ? "paused" : "cancelled");
    }
    if (!found) answered(control, control.task(), control.fence(), "finished");
  }
}

void RunReport::progress(const std::string& stage, std::uint64_t done, std::uint64_t total,
                         std::vector<protocol::MemberProgress> members) {
  const TimePoint now = clock_.now();
  if (now < next_progress_) return;
  next_progress_ = now + kProgressEvery;
  if (stage != last_stage_ || done < last_done_) {
    last_stage_ = stage;
    rate_ = 0;
  } else {
    const std::chrono::duration<double> elapsed = now - last_time_;
    const double lately = static_cast<double>(done - last_done_) / std::max(elapsed.count(), 1e-3);
    rate_ = rate_ == 0 ? lately : 0.7 * rate_ + 0.3 * lately;
  }
  last_done_ = done;
  last_time_ = now;

  protocol::Envelope envelope;
  auto& message = *envelope.mutable_progress();
  message.set_run_id(run_.run_id());
  message.set_stage(stage);
  message.set_done(done);
  message.set_total(total);
  message.set_unit("tokens");
  message.set_rate(rate_);
  if (stage == "train") message.set_waiting(waiting_share());
  for (auto& member : members) *message.add_members() = std::move(member);
  link_.send(envelope);
  send_counts();
}

void RunReport::count_time(Duration training, Duration waiting) {
  stepping_ += training;
  waiting_ += waiting;
}

void RunReport::send_counts() {
  const std::uint64_t us = microseconds(stepping_), waiting_us = microseconds(waiting_);
  if (trained_ == 0 && harvested_ == 0 && us == told_us_) return;
  protocol::Envelope envelope;
  auto& done = *envelope.mutable_tokens_done();
  done.set_trained(std::exchange(trained_, 0));
  done.set_harvested(std::exchange(harvested_, 0));
  done.set_training_us(us - std::exchange(told_us_, us));
  done.set_waiting_us(waiting_us - std::exchange(told_waiting_us_, waiting_us));
  link_.send(envelope);
}

void RunReport::finished() {
  send_counts();
  if (stepping_ > Duration{})
    log::info("run.time run={} training_s={:.3f} waiting_s={:.3f} share={:.4f}", run_.run_id(),
              static_cast<double>(told_us_) * 1e-6, static_cast<double>(told_waiting_us_) * 1e-6,
              waiting_share());
  for (const protocol::Control& control : requests_.forget(run_.run_id()))
    answered(control, control.task(), control.fence(), "finished");
  protocol::Envelope envelope;
  envelope.mutable_run_finished()->set_run_id(run_.run_id());
  link_.send(envelope);
}

}  // namespace saesweep::worker
