#include "worker/executor/agent_link.h"

#include "core/log.h"

namespace saesweep::worker {

void AgentLink::send(const protocol::Envelope& envelope) {
  if (const auto sent = channel_.send(envelope); !sent) {
    log::warn("executor.agent_gone problem={}", sent.error().message);
    ::shutdown(channel_.socket(), SHUT_RDWR);
  }
}

void AgentLink::hand_over(protocol::ChunkOpened opened, ReceivedFd memory) {
  if (!opened_.try_push({std::move(opened), std::move(memory)}))
    log::warn("executor.unasked_answer kind=chunk_opened");
}

void AgentLink::hand_over(protocol::ChunkReply reply) {
  if (!replies_.try_push(std::move(reply))) log::warn("executor.unasked_answer kind=chunk_reply");
}

void AgentLink::close() {
  opened_.close();
  replies_.close();
}

Result<AgentLink::OpenedChunks> AgentLink::open_chunks(const protocol::ChunkOpen& request) {
  protocol::Envelope envelope;
  *envelope.mutable_chunk_open() = request;
  send(envelope);
  if (auto opened = opened_.pop_for(kAnswerPatience)) return std::move(*opened);
  return fail(ErrorCode::kUnavailable, "the agent did not open stream {}", request.stream());
}

Result<protocol::ChunkReply> AgentLink::ask(const protocol::ChunkRequest& request) {
  protocol::Envelope envelope;
  *envelope.mutable_chunk_request() = request;
  send(envelope);
  while (auto reply = replies_.pop_for(kAnswerPatience)) {
    if (reply->id() == request.id()) return std::move(*reply);  // else: of one given up
  }
  return fail(ErrorCode::kUnavailable, "the agent did not answer about chunk {}", request.index());
}

}  // namespace saesweep::worker
