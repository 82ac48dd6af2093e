#include "worker/agent/outbox.h"

#include <fmt/core.h>

#include "core/log.h"

namespace saesweep::agent {

void Outbox::say(protocol::MessageType type, const google::protobuf::MessageLite& message) {
  std::unique_ptr<google::protobuf::MessageLite> copy(message.New());
  copy->CheckTypeAndMergeFrom(message);
  waiting_.emplace_back(type, std::move(copy));
  flush();
}

void Outbox::flush() {
  while (!waiting_.empty() &&
         link_.send(waiting_.front().first, *waiting_.front().second, /*reliable=*/true))
    waiting_.pop_front();
}

void Outbox::mention(protocol::MessageType type, const google::protobuf::MessageLite& message) {
  if (const auto sent = link_.send(type, message, /*reliable=*/false); !sent)
    log::debug("agent.mention error={}", sent.error().message);
}

void Outbox::say_result(protocol::TaskResult result) {
  if (const std::size_t bytes = result.ByteSizeLong(); bytes > protocol::kMaxBodyBytes) {
    result.set_outcome(protocol::OUTCOME_FAILED);
    result.set_reason(
        fmt::format("a result of {} bytes; at most {} travel", bytes, protocol::kMaxBodyBytes));
    result.clear_summary();
    result.clear_artifacts();
  }
  say(protocol::MessageType::kResult, result);
  Grant grant(result.task(), result.fence());
  results_.insert_or_assign(std::move(grant), std::move(result));
}

void Outbox::acknowledge(const protocol::ResultAck& ack) {
  results_.erase({ack.task(), ack.fence()});
}

std::optional<protocol::TaskResult> Outbox::take_back(const protocol::ResultAck& ack) {
  const auto found = results_.find({ack.task(), ack.fence()});
  if (found == results_.end()) return std::nullopt;
  protocol::TaskResult result = std::move(found->second);
  results_.erase(found);
  return result;
}

void Outbox::repeat_results() {
  for (const auto& [grant, result] : results_) say(protocol::MessageType::kResult, result);
}

}  // namespace saesweep::agent
