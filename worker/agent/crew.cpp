#include "worker/agent/crew.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/log.h"
#include "worker/agent/input_files.h"

namespace saesweep::agent {
namespace {

using namespace std::chrono_literals;
using protocol::MessageType;

constexpr int kMessagesAtOnce = 64;   // of one executor, then the others have a turn
constexpr Duration kTrimEvery = 60s;  // of our own store
constexpr std::uint64_t kMostIdleBytes = std::uint64_t{4} << 30;  // of trials, and of artifacts

bool is_final(const protocol::TaskResult& result) {
  return result.outcome() == protocol::OUTCOME_DONE ||
         result.outcome() == protocol::OUTCOME_DIVERGED ||
         result.outcome() == protocol::OUTCOME_FAILED;
}

}  // namespace

Crew::Crew(Tools tools)
    : tools_(tools), slots_(tools.options.slots), fetching_(tools.clock), logs_(tools.clock) {}

Crew::~Crew() {
  for (Slot& slot : slots_)
    if (slot.executor) slot.executor->hang_up();
  for (Slot& slot : slots_)
    if (slot.executor) slot.executor->bury();
}

Result<void> Crew::work_in(const StoreInUse& store) {
  const bool is_first = !store_.is_known;
  store_ = store;
  if (is_first && tools_.options.outlives_scheduler) {
    SAE_TRY(results_, ResultFiles::open(tools_.options.state_directory / "outbox"));
  }
  if (store.travels && !tools_.shipping.travels()) {
    const AgentOptions& options = tools_.options;
    SAE_TRY(OwnStore own, OwnStore::open(options.state_directory, store.token));
    tools_.shipping.travel(std::move(own), options.security, options.data_patience);
    fetching_.travel(tools_.shipping.store(), options.security, options.data_patience);
    logs_.travel(options.state_directory / "logs", options.security, options.data_patience);
  }
  tools_.shipping.go_to(store.data_endpoint);
  fetching_.go_to(store.data_endpoint);
  logs_.go_to(store.data_endpoint);
  if (is_first && results_)
    for (protocol::TaskResult& result : results_->all())
      tools_.shipping.say(std::move(result), /*is_old=*/true);
  return {};
}

// ---- runs ---------------------------------------------------------------------------------------

Result<void> Crew::start_executor(Slot& slot) {
  const auto number = static_cast<std::uint32_t>(&slot - slots_.data());
  const ExecutorOptions wanted = executor_of(tools_.options, store_.directory, number);
  auto started = ExecutorProcess::start(wanted);
  if (!started) {
    log::error("executor.start slot={} error={}", wanted.slot, started.error().message);
    return fail(std::move(started.error()));
  }
  slot.executor.emplace(std::move(*started));
  slot.connection = next_connection_++;
  slot.more = false;
  if (restarts_ < deaths_) ++restarts_;
  log::info("executor.started slot={} pid={}", wanted.slot, slot.executor->pid());
  return {};
}

bool Crew::is_stale(const protocol::Run& run) const {
  return std::any_of(run.members().begin(), run.members().end(), [&](const auto& member) {
    const auto known = fences_.find(member.task());
    return known != fences_.end() && member.fence() <= known->second;
  });
}

// Why a run is not taken; empty: it is.
std::string Crew::refusal_of(const protocol::Run& run, Slot* best) {
  if (!is_serving_) return "the agent stops";
  if (!store_.is_known || best == nullptr) return "no free slot";
  if (is_stale(run)) return "stale fence";
  if (best->executor) return "";
  const auto started = start_executor(*best);
  return started ? "" : started.error().message;
}

void Crew::take(const protocol::Run& run) {
  protocol::AssignReply reply;
  reply.set_run_id(run.run_id());
  if (std::any_of(slots_.begin(), slots_.end(),
                  [&](const Slot& slot) { return slot.has(run.run_id()); })) {  // said twice
    reply.set_accepted(true);
    tools_.outbox.say(MessageType::kAssignReply, reply);
    return;
  }
  Slot* best = best_free(slots_);
  reply.set_reason(refusal_of(run, best));
  reply.set_accepted(reply.reason().empty());
  tools_.outbox.say(MessageType::kAssignReply, reply);
  if (!reply.accepted()) return;
  for (const auto& member : run.members()) fences_[member.task()] = member.fence();
  if (run.has_chunk_source()) tools_.chunks.learn(run.chunk_source());
  if (best->run)
    best->next = run;
  else
    begin(*best, run);
}

void Crew::begin(Slot& slot, protocol::Run run) {
  for (const auto& member : run.members()) slot.unfinished[member.task()] = member.fence();
  slot.run = std::move(run);
  slot.is_fetching = fetching_.begin(*slot.run);
  if (!slot.is_fetching) hand_over(slot);
}

// To an executor: all that the run begins with is here.
void Crew::hand_over(Slot& slot) {
  if (!slot.executor) {
    if (const auto started = start_executor(slot); !started)
      return say_lost(slot,
                      {.by_kill = true, .out_of_memory = false, .reason = started.error().message});
  }
  protocol::Run& run = *slot.run;
  if (tools_.shipping.travels())
    if (const auto absent = use_copies(run, tools_.options.state_directory); !absent.empty())
      return give_back(
          slot, fmt::format("{}, which the sweep names, is neither on this machine nor on the "
                            "scheduler's; it has to be on either",
                            absent.front()));
  protocol::Started begun;
  begun.set_run_id(run.run_id());
  begun.set_pid(slot.executor->pid());
  begun.set_slot(static_cast<std::uint32_t>(&slot - slots_.data()));
  tools_.outbox.say(MessageType::kStarted, begun);
  run.set_threads(threads_of_slot(tools_.options));
  slot.heard = tools_.clock.now();
  const std::filesystem::path& logs =
      store_.directory.empty() ? tools_.options.state_directory : store_.directory;
  slot.executor->log_to(logs / "logs" / fmt::format("run-{}.log", run.run_id()));
  logs_.follow(run.run_id());
  protocol::Envelope envelope;
  *envelope.mutable_run() = run;
  tell(slot, envelope);
}

void Crew::fetched(const Fetching::Fetched& one) {
  const auto slot = std::find_if(slots_.begin(), slots_.end(), [&](const Slot& other) {
    return other.is_fetching && other.run->run_id() == one.run;
  });
  if (slot == slots_.end()) return;
  slot->is_fetching = false;
  if (one.outcome) return hand_over(*slot);
  give_back(*slot, "disk full: " + one.outcome.error().message);
}

// It cannot begin here now: passing trouble.
void Crew::give_back(Slot& slot, const std::string& why) {
  const std::uint64_t run = slot.run->run_id();
  for (const auto& [task, fence] : slot.unfinished) {
    protocol::TaskResult again;
    again.set_run_id(run);
    again.set_task(task);
    again.set_fence(fence);
    again.set_outcome(protocol::OUTCOME_RETRY);
    again.set_reason(why);
    tools_.shipping.say(std::move(again));
  }
  slot.run.reset();
  slot.unfinished.clear();
  begin_next(slot);
}

// The run in the slot is over; the one that waited for it begins.
void Crew::begin_next(Slot& slot) {
  if (!slot.next) return;
  protocol::Run next = *std::exchange(slot.next, std::nullopt);
  begin(slot, std::move(next));
}

// To the executor. One that does not take it is killed; its end is read like any other's.
void Crew::tell(Slot& slot, const protocol::Envelope& envelope, int descriptor) {
  if (const auto sent = slot.executor->channel().send(envelope, descriptor); !sent)
    slot.executor->kill(sent.error().message);
}

void Crew::died(Slot& slot) {
  ExecutorDeath death = slot.executor->bury();
  const auto number = &slot - slots_.data();
  log::warn("executor.died slot={} pid={} reason={}", number, slot.executor->pid(), death.reason);
  death.reason = "its executor died: " + death.reason;
  slot.executor.reset();
  slot.more = false;
  tools_.chunks.close(slot.connection);
  ++deaths_;
  if (slot.is_fetching) return;  // it has seen nothing of the run, which gets another one
  say_lost(slot, death);
  begin_next(slot);
}

void Crew::control(const protocol::Control& wanted) {
  for (Slot& slot : slots_) {
    if (!slot.run || slot.run->run_id() != wanted.run_id()) continue;
    if (slot.is_fetching) {  // nothing of it has begun: all of it is as it was
      fetching_.forget(wanted.run_id());
      slot.is_fetching = false;
      say_lost(slot, {.by_kill = true, .out_of_memory = false, .reason = "it had not begun"});
      return begin_next(slot);
    }
    protocol::Envelope envelope;
    *envelope.mutable_control() = wanted;
    return tell(slot, envelope);
  }
  for (Slot& slot : slots_)
    if (slot.next && slot.next->run_id() == wanted.run_id()) {
      say_not_begun(*slot.next, "it had not begun");
      slot.next.reset();
      return;
    }
  // The run is over. What of it still waits to be handed over is wanted, unless it is cancelled.
  if (tools_.shipping.has(wanted.run_id(), wanted.task(), wanted.fence())) {
    if (wanted.verb() != "cancel") return;
    tools_.shipping.drop(wanted.run_id(), wanted.task(), wanted.fence());
    if (results_) results_->forget(wanted.task(), wanted.fence());
  }
  tools_.outbox.say(MessageType::kControlDone, not_running(wanted));
}

void Crew::hear(const protocol::ResultAck& ack) {
  for (const protocol::ResultAck& other : ack.more()) hear(other);
  if (ack.verdict() == "missing") {
    if (auto result = tools_.outbox.take_back(ack)) tools_.shipping.say_again(std::move(*result));
    return;
  }
  tools_.outbox.acknowledge(ack);
  tools_.shipping.acknowledged(ack.task(), ack.fence());
  if (results_) results_->forget(ack.task(), ack.fence());
}

// ---- what executors say -------------------------------------------------------------------------

void Crew::add_descriptors(std::vector<int>& descriptors) {
  for (const int signal :
       {tools_.shipping.signal(), fetching_.signal(), logs_.signal(), tools_.chunks.signal()})
    if (signal >= 0) descriptors.push_back(signal);
  for (Slot& slot : slots_) {
    if (!slot.executor) continue;
    descriptors.push_back(slot.executor->channel().socket());
    if (slot.executor->output() >= 0) descriptors.push_back(slot.executor->output());
  }
}

bool Crew::has_more() const {
  return std::any_of(slots_.begin(), slots_.end(),
                     [](const Slot& slot) { return slot.executor && slot.more; });
}

void Crew::serve(std::span<const int> readable) {
  const auto is_readable = [&](int descriptor) {
    return std::find(readable.begin(), readable.end(), descriptor) != readable.end();
  };
  tools_.chunks.step(tools_.clock.now());
  for (Slot& slot : slots_) {
    if (slot.executor && is_readable(slot.executor->output())) slot.executor->read_output();
    if (slot.executor && (slot.more || is_readable(slot.executor->channel().socket()))) read(slot);
    pass_on_progress(slot);
  }
  tools_.shipping.step();
  for (const Fetching::Fetched& one : fetching_.step()) fetched(one);
  logs_.step();
  trim_if_due();
}

void Crew::kill_the_silent(TimePoint now) {
  for (Slot& slot : slots_)
    if (slot.executor && slot.run && !slot.is_fetching &&
        now - slot.heard > tools_.options.executor_patience)
      slot.executor->kill(fmt::format("it said nothing for {:.0f} s",
                                      std::chrono::duration<double>(now - slot.heard).count()));
}

// What the executor said, a turn's worth of it.
void Crew::read(Slot& slot) {
  slot.more = true;
  for (int i = 0; i < kMessagesAtOnce; ++i) {
    auto heard = slot.executor->channel().receive(0ms);
    if (!heard) {
      if (heard.error().code == ErrorCode::kCorrupted)
        slot.executor->kill("it sent " + heard.error().message);
      return died(slot);
    }
    if (!*heard) {
      slot.more = false;
      return;
    }
    hear(slot, std::move(**heard));
    if (!slot.executor) return;
  }
}

void Crew::hear(Slot& slot, protocol::ExecutorChannel::Heard heard) {
  const OwnedFd unasked(heard.descriptor);
  slot.heard = tools_.clock.now();
  protocol::Envelope& envelope = heard.envelope;
  protocol::Envelope answer;
  switch (envelope.body_case()) {
    case protocol::Envelope::kProgress:
      slot.progress = std::move(*envelope.mutable_progress());
      break;
    case protocol::Envelope::kCheckpointed:
      pass_on_progress(slot);
      tools_.shipping.say(std::move(*envelope.mutable_checkpointed()));
      break;
    case protocol::Envelope::kResult:
      pass_on_progress(slot);
      hear_result(slot, std::move(*envelope.mutable_result()));
      break;
    case protocol::Envelope::kControlDone:
      if (const auto& done = envelope.control_done();
          done.outcome() == "paused" || done.outcome() == "cancelled")
        slot.unfinished.erase(done.task());
      tools_.shipping.say(std::move(*envelope.mutable_control_done()));
      break;
    case protocol::Envelope::kTokensDone:
      trained_ += envelope.tokens_done().trained();
      harvested_ += envelope.tokens_done().harvested();
      training_us_ += envelope.tokens_done().training_us();
      waiting_us_ += envelope.tokens_done().waiting_us();
      break;
    case protocol::Envelope::kChunkOpen: {
      const ChunkService::Opened opened =
          tools_.chunks.open(slot.connection, envelope.chunk_open());
      *answer.mutable_chunk_opened() = opened.message;
      tell(slot, answer, opened.memory.get());
      break;
    }
    case protocol::Envelope::kChunkRequest:
      *answer.mutable_chunk_reply() =
          tools_.chunks.handle(slot.connection, envelope.chunk_request(), tools_.clock.now());
      tell(slot, answer);
      break;
    case protocol::Envelope::kRunFinished:
      finished(slot, envelope.run_finished().run_id());
      break;
    case protocol::Envelope::kExecutorHello:
      log::debug("executor.hello pid={} build={}", envelope.executor_hello().pid(),
                 envelope.executor_hello().build());
      break;
    default:
      log::warn("executor.garbage pid={} kind={}", slot.executor->pid(),
                static_cast<int>(envelope.body_case()));
  }
}

// What is final outlives us.
void Crew::hear_result(Slot& slot, protocol::TaskResult result) {
  slot.unfinished.erase(result.task());
  if (results_ && is_final(result))
    if (const auto kept = results_->keep(result); !kept)
      log::warn("outbox.not_kept task={} error={}", result.task(), kept.error().message);
  tools_.shipping.say(std::move(result));
}

void Crew::finished(Slot& slot, std::uint64_t run_id) {
  if (!slot.run || slot.run->run_id() != run_id) return;
  pass_on_progress(slot);
  slot.executor->log_to({});
  say_lost(slot, {.by_kill = false,
                  .out_of_memory = false,
                  .reason = "its executor ended the run without a word about it"});
  begin_next(slot);
  tools_.outbox.mention(MessageType::kHeartbeat, heartbeat());  // a free slot is news
}

// ---- what is said of runs -----------------------------------------------------------------------

// Whoever waits for a member of this slot's run waits no longer.
void Crew::say_lost(Slot& slot, const ExecutorDeath& death) {
  for (const auto& [task, fence] : slot.unfinished)
    say_lost(slot.run->run_id(), task, fence, death);
  if (slot.run) logs_.end(slot.run->run_id());
  slot.run.reset();
  slot.unfinished.clear();
  slot.progress.reset();
}
void Crew::say_lost(std::uint64_t run, const std::string& task, std::uint64_t fence,
                    const ExecutorDeath& death) {
  tools_.shipping.say(lost_result(run, task, fence, death, is_serving_));
}
// No executor has seen it.
void Crew::say_not_begun(const protocol::Run& run, const std::string& why) {
  for (const auto& member : run.members())
    say_lost(run.run_id(), member.task(), member.fence(),
             {.by_kill = true, .out_of_memory = false, .reason = why});
}

void Crew::pass_on_progress(Slot& slot) {
  if (slot.progress) tools_.outbox.mention(MessageType::kProgress, *slot.progress);
  slot.progress.reset();
}

// ---- all together -------------------------------------------------------------------------------

bool Crew::is_running() const { return is_any_busy(slots_); }
bool Crew::is_busy() const { return is_any_busy(slots_) || !tools_.shipping.is_empty(); }

protocol::Heartbeat Crew::heartbeat() const {
  protocol::Heartbeat beat =
      heartbeat_of(slots_, tools_.shipping.waiting(), is_serving_, tools_.chunks);
  beat.set_sent_ns(static_cast<std::uint64_t>(
      std::chrono::nanoseconds(tools_.clock.now().time_since_epoch()).count()));
  beat.mutable_counters()->set_executor_restarts(restarts_);
  beat.mutable_counters()->set_tokens_trained(trained_);
  beat.mutable_counters()->set_tokens_harvested(harvested_);
  beat.mutable_counters()->set_training_us(training_us_);
  beat.mutable_counters()->set_waiting_us(waiting_us_);
  return beat;
}

protocol::Resync Crew::resync(std::uint64_t epoch) const {
  return resync_of(slots_, tools_.shipping.waiting(), tools_.outbox, epoch);
}

// Keeps our own store within bounds.
void Crew::trim_if_due() {
  const TimePoint now = tools_.clock.now();
  if (!tools_.shipping.travels() || now < next_trim_) return;
  next_trim_ = now + kTrimEvery;
  std::set<std::string> in_use;
  tools_.shipping.add_in_use(in_use);
  fetching_.add_in_use(in_use);
  const auto add = [&](const protocol::Run& run) {
    for (const auto& member : run.members()) in_use.insert(member.trial_directory());
    for (const std::string& object : objects_of(run)) in_use.insert(object);
  };
  for (const Slot& slot : slots_) {
    if (slot.run) add(*slot.run);
    if (slot.next) add(*slot.next);
  }
  tools_.shipping.store().trim(in_use, kMostIdleBytes);
}

// ---- the way out --------------------------------------------------------------------------------

void Crew::pause_all() {
  is_serving_ = false;
  for (Slot& slot : slots_) {
    if (slot.next) say_not_begun(*slot.next, "the agent stops");
    slot.next.reset();
    if (!slot.run) continue;
    if (slot.is_fetching) {
      fetching_.forget(slot.run->run_id());
      slot.is_fetching = false;
      say_lost(slot, {.by_kill = true, .out_of_memory = false, .reason = "the agent stops"});
      continue;
    }
    protocol::Envelope envelope;
    envelope.mutable_control()->set_run_id(slot.run->run_id());
    envelope.mutable_control()->set_verb("pause");
    tell(slot, envelope);
  }
}

void Crew::abandon() {
  for (Slot& slot : slots_)
    if (slot.run)
      say_lost(slot, {.by_kill = true,
                      .out_of_memory = false,
                      .reason = "the agent stopped before it had checkpointed"});
  tools_.shipping.abandon();
}

}  // namespace saesweep::agent
