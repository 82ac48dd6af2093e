#include "worker/agent/agent.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "core/clock.h"
#include "core/digest.h"
#include "core/files.h"
#include "core/log.h"
#include "scheduler/protocol/link.h"
#include "storage/activation_cache.h"
#include "worker/agent/chunk_service.h"
#include "worker/agent/executor_process.h"

namespace saesweep::agent {
namespace {

using namespace std::chrono_literals;
using protocol::MessageType;

constexpr auto kHelloEvery = 500ms;        // until the scheduler answers
constexpr auto kSchedulerPatience = 60s;   // silence after which it is gone
constexpr auto kExecutorPatience = 10min;  // silence of a busy executor: it hangs
constexpr auto kLoop = 200ms;              // at most between two looks at the clock

struct Slot {
  std::optional<ExecutorProcess> executor;
  ConnectionId connection = 0;  // of its chunks; new for each process
  std::optional<protocol::Run> run;
  std::map<std::string, std::uint64_t> unfinished;  // task -> fence
  TimePoint heard;
};

}  // namespace

struct Agent::State {
  State(AgentOptions given, protocol::WorkerLink connected)
      : options(std::move(given)), link(std::move(connected)), slots(options.slots) {}

  AgentOptions options;
  protocol::WorkerLink link;
  SystemClock clock;
  std::optional<storage::ActivationCache> cache;
  std::unique_ptr<ChunkService> chunks;
  std::vector<Slot> slots;

  bool welcomed = false;
  std::uint64_t epoch = 0;
  std::chrono::milliseconds heartbeat{1000};
  TimePoint last_hello{}, last_heartbeat{}, last_word{};
  ConnectionId next_connection = 1;
  std::uint64_t restarts = 0, trained = 0, harvested = 0;
  bool stopping = false;
  TimePoint stop_deadline{};
  bool dismissed = false;  // the scheduler said BYE
  std::optional<Error> refused;
  std::deque<std::pair<MessageType, std::unique_ptr<google::protobuf::Message>>> outbox;

  // ---- to the scheduler
  // --------------------------------------------------------------------------

  // Reliable; kept until the link takes it.
  template <class Message>
  void say(MessageType type, const Message& message) {
    outbox.emplace_back(type, std::make_unique<Message>(message));
    flush();
  }
  void flush() {
    while (!outbox.empty()) {
      if (!link.send(outbox.front().first, *outbox.front().second, /*reliable=*/true)) return;
      outbox.pop_front();
    }
  }
  void say_hello() {
    protocol::Hello hello;
    hello.set_worker_name(options.name);
    std::array<char, 256> host{};
    ::gethostname(host.data(), host.size() - 1);
    hello.set_host(host.data());
    hello.set_build(options.build);
    hello.set_slots(options.slots);
    hello.set_memory_bytes(options.memory_bytes);
    hello.set_known_epoch(epoch);
    hello.set_last_seq_received(link.last_received());
    (void)link.send(MessageType::kHello, hello, /*reliable=*/false);
  }
  void say_heartbeat(TimePoint now) {
    protocol::Heartbeat beat;
    beat.set_sent_ns(static_cast<std::uint64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(now.time_since_epoch()).count()));
    std::uint32_t running = 0, free = 0;
    std::uint64_t hash = 0;
    for (const Slot& slot : slots) {
      free += slot.run ? 0 : 1;
      for (const auto& [task, fence] : slot.unfinished) {
        ++running;
        const std::string key = task + "/" + std::to_string(fence);
        hash ^= xxh3_64(std::as_bytes(std::span(key)));
      }
    }
    beat.set_running(running);
    beat.set_running_hash(hash);
    beat.set_free_slots(free);
    const ChunkCounters counters = chunks->counters();
    auto& totals = *beat.mutable_counters();
    totals.set_cache_hits(counters.hits);
    totals.set_cache_misses(counters.misses);
    totals.set_cache_bytes(counters.bytes);
    totals.set_cache_evicted_bytes(counters.evicted_bytes);
    totals.set_cache_corrupt_chunks(counters.corrupt);
    totals.set_cache_refused_writes(counters.refused_writes);
    totals.set_executor_restarts(restarts);
    totals.set_tokens_trained(trained);
    totals.set_tokens_harvested(harvested);
    (void)link.send(MessageType::kHeartbeat, beat, /*reliable=*/false);
  }

  // ---- runs ------------------------------------------------------------------------------------

  std::uint32_t threads_of_slot() const {
    return std::max<std::uint32_t>(1, options.threads / std::max<std::uint32_t>(1, options.slots));
  }

  void take(const protocol::Run& run) {
    protocol::AssignReply reply;
    reply.set_run_id(run.run_id());
    const auto free =
        std::find_if(slots.begin(), slots.end(), [](const Slot& s) { return !s.run; });
    if (stopping || free == slots.end()) {
      reply.set_reason(stopping ? "draining" : "no room");
      say(MessageType::kAssignReply, reply);
      return;
    }
    const auto number = static_cast<std::uint32_t>(free - slots.begin());
    if (!free->executor) {
      ExecutorOptions wanted;
      wanted.program = options.task_program;
      wanted.state_directory = options.state_directory;
      wanted.slot = number;
      wanted.threads = threads_of_slot();
      wanted.log_level = options.log_level;
      auto started = ExecutorProcess::start(wanted);
      if (!started) {
        log::error("executor.start slot={} error={}", number, started.error().message);
        reply.set_reason(started.error().message);
        say(MessageType::kAssignReply, reply);
        return;
      }
      free->executor.emplace(std::move(*started));
      free->connection = next_connection++;
    }
    reply.set_accepted(true);
    say(MessageType::kAssignReply, reply);
    free->run = run;
    free->heard = clock.now();
    free->unfinished.clear();
    for (const auto& member : run.members()) free->unfinished[member.task()] = member.fence();
    protocol::Started begun;
    begun.set_run_id(run.run_id());
    begun.set_pid(free->executor->pid());
    begun.set_slot(number);
    say(MessageType::kStarted, begun);
    protocol::Envelope envelope;
    *envelope.mutable_run() = run;
    envelope.mutable_run()->set_threads(threads_of_slot());
    if (!free->executor->channel().send(envelope)) died(*free);
  }

  void died(Slot& slot) {
    const ExecutorDeath death = slot.executor->bury();
    const auto number = static_cast<std::size_t>(&slot - slots.data());
    log::warn("executor.died slot={} reason={}", number, death.reason);
    slot.executor.reset();
    chunks->close(slot.connection);
    ++restarts;
    if (!slot.run) return;
    for (const auto& [task, fence] : slot.unfinished) {
      protocol::TaskResult lost;
      lost.set_run_id(slot.run->run_id());
      lost.set_task(task);
      lost.set_fence(fence);
      lost.set_outcome(protocol::OUTCOME_LOST);
      lost.set_reason("its executor died: " + death.reason);
      lost.set_executor_died_alone(!stopping && !death.by_kill);
      lost.set_out_of_memory(death.out_of_memory);
      say(MessageType::kResult, lost);
    }
    slot.run.reset();
    slot.unfinished.clear();
  }

  void control(const protocol::Control& wanted) {
    for (Slot& slot : slots) {
      if (!slot.run || slot.run->run_id() != wanted.run_id()) continue;
      protocol::Envelope envelope;
      *envelope.mutable_control() = wanted;
      if (!slot.executor->channel().send(envelope)) died(slot);
      return;
    }
    // The run is over: there is nothing to wait for.
    protocol::ControlDone done;
    done.set_run_id(wanted.run_id());
    done.set_task(wanted.task());
    done.set_fence(wanted.fence());
    done.set_verb(wanted.verb());
    done.set_outcome("not running");
    say(MessageType::kControlDone, done);
  }

  void begin_stop(TimePoint now) {
    stopping = true;
    stop_deadline = now + options.stop_patience;
    for (Slot& slot : slots) {
      if (!slot.run) continue;
      protocol::Envelope envelope;
      envelope.mutable_control()->set_run_id(slot.run->run_id());
      envelope.mutable_control()->set_verb("pause");
      if (!slot.executor->channel().send(envelope)) died(slot);
    }
  }

  // ---- what is heard ---------------------------------------------------------------------------

  void hear(const protocol::HeardMessage& heard) {
    last_word = clock.now();
    bool understood = true;
    switch (heard.type) {
      case MessageType::kWelcome: {
        protocol::Welcome welcome;
        if (!(understood = protocol::parse_body(heard.body, welcome))) break;
        welcomed = true;
        epoch = welcome.epoch();
        if (welcome.heartbeat_ms() > 0)
          heartbeat = std::chrono::milliseconds(welcome.heartbeat_ms());
        if (welcome.resume()) link.resend_after(welcome.last_seq_received());
        break;
      }
      case MessageType::kReject: {
        protocol::Reject reject;
        if (!(understood = protocol::parse_body(heard.body, reject))) break;
        refused =
            Error{ErrorCode::kUnavailable, "the scheduler refused this agent: " + reject.text()};
        break;
      }
      case MessageType::kAssign: {
        protocol::Assign assign;
        if (!(understood = protocol::parse_body(heard.body, assign))) break;
        for (const auto& run : assign.runs()) take(run);
        break;
      }
      case MessageType::kControl: {
        protocol::Control wanted;
        if ((understood = protocol::parse_body(heard.body, wanted))) control(wanted);
        break;
      }
      case MessageType::kBye:
        dismissed = true;
        break;
      case MessageType::kHeartbeatAck:
      case MessageType::kResultAck:
        break;
      default:
        understood = false;
    }
    if (!understood) log::warn("agent.garbage type={}", protocol::to_string(heard.type));
  }

  void hear(Slot& slot, protocol::ExecutorChannel::Heard heard) {
    slot.heard = clock.now();
    if (heard.descriptor >= 0) ::close(heard.descriptor);  // executors send none
    protocol::Envelope& envelope = heard.envelope;
    switch (envelope.body_case()) {
      case protocol::Envelope::kProgress:
        (void)link.send(MessageType::kProgress, envelope.progress(), /*reliable=*/false);
        break;
      case protocol::Envelope::kCheckpointed:
        say(MessageType::kCheckpointed, envelope.checkpointed());
        break;
      case protocol::Envelope::kResult:
        slot.unfinished.erase(envelope.result().task());
        say(MessageType::kResult, envelope.result());
        break;
      case protocol::Envelope::kControlDone:
        slot.unfinished.erase(envelope.control_done().task());
        say(MessageType::kControlDone, envelope.control_done());
        break;
      case protocol::Envelope::kTokensDone:
        trained += envelope.tokens_done().trained();
        harvested += envelope.tokens_done().harvested();
        break;
      case protocol::Envelope::kChunkOpen: {
        ChunkService::Opened opened = chunks->open(slot.connection, envelope.chunk_open());
        protocol::Envelope answer;
        *answer.mutable_chunk_opened() = opened.message;
        if (!slot.executor->channel().send(answer, opened.memory.get())) died(slot);
        break;
      }
      case protocol::Envelope::kChunkRequest: {
        protocol::Envelope answer;
        *answer.mutable_chunk_reply() =
            chunks->handle(slot.connection, envelope.chunk_request(), clock.now());
        if (!slot.executor->channel().send(answer)) died(slot);
        break;
      }
      case protocol::Envelope::kRunFinished:
        if (slot.run && slot.run->run_id() == envelope.run_finished().run_id()) {
          // Members it said nothing about are lost, so that nobody waits for them.
          for (const auto& [task, fence] : slot.unfinished) {
            protocol::TaskResult lost;
            lost.set_run_id(slot.run->run_id());
            lost.set_task(task);
            lost.set_fence(fence);
            lost.set_outcome(protocol::OUTCOME_LOST);
            lost.set_reason("its executor ended the run without a word about it");
            lost.set_executor_died_alone(true);
            say(MessageType::kResult, lost);
          }
          slot.run.reset();
          slot.unfinished.clear();
          // A freed slot is news.
          say_heartbeat(clock.now());
        }
        break;
      case protocol::Envelope::kExecutorHello:
        break;
      default:
        log::warn("executor.garbage pid={}", slot.executor->pid());
    }
  }

  void read(Slot& slot) {
    // Everything that is there, but not for ever: others wait too.
    for (int i = 0; i < 256 && slot.executor; ++i) {
      auto heard = slot.executor->channel().receive(0ms);
      if (!heard) {
        died(slot);
        return;
      }
      if (!*heard) return;
      hear(slot, std::move(**heard));
    }
  }

  bool idle() const {
    return std::none_of(slots.begin(), slots.end(),
                        [](const Slot& slot) { return slot.run.has_value(); });
  }

  Result<void> loop(const std::stop_token& stop) {
    last_word = clock.now();
    while (true) {
      const TimePoint now = clock.now();
      if (stop.stop_requested() && !stopping) begin_stop(now);
      if (dismissed || refused) break;
      if (stopping &&
          ((idle() && outbox.empty() && link.unacknowledged() == 0) || now >= stop_deadline))
        break;
      if (now - last_word > kSchedulerPatience)
        return fail(ErrorCode::kUnavailable, "nothing heard from the scheduler for {} s",
                    kSchedulerPatience.count());
      if (!welcomed && now - last_hello >= kHelloEvery) {
        say_hello();
        last_hello = now;
      }
      if (welcomed && now - last_heartbeat >= heartbeat) {
        say_heartbeat(now);
        last_heartbeat = now;
      }
      std::vector<int> sockets;
      for (Slot& slot : slots) {
        if (!slot.executor) continue;
        if (slot.run && now - slot.heard > kExecutorPatience) {
          log::warn("executor.hangs pid={}", slot.executor->pid());
          died(slot);
          continue;
        }
        sockets.push_back(slot.executor->channel().socket());
      }
      flush();
      const auto patience = std::min<std::chrono::milliseconds>(kLoop, heartbeat);
      const auto polled = link.poll(patience, sockets);
      for (const auto& heard : polled.heard) hear(heard);
      for (const int socket : polled.readable)
        for (Slot& slot : slots)
          if (slot.executor && slot.executor->channel().socket() == socket) {
            read(slot);
            break;
          }
    }
    protocol::Bye bye;
    bye.set_reason(stopping ? "stopping" : "dismissed");
    (void)link.send(MessageType::kBye, bye, /*reliable=*/false);
    if (refused) return fail(*refused);
    return {};
  }
};

Agent::Agent(std::unique_ptr<State> state) : state_(std::move(state)) {}
Agent::Agent(Agent&&) noexcept = default;
Agent::~Agent() {
  if (!state_) return;
  for (Slot& slot : state_->slots)
    if (slot.executor) {
      slot.executor->dismiss();
      state_->chunks->close(slot.connection);
    }
}

Result<Agent> Agent::create(AgentOptions options) {
  std::error_code ignored;
  if (!std::filesystem::exists(options.task_program, ignored))
    return fail(ErrorCode::kNotFound, "the executor {} is not there",
                options.task_program.string());
  if (options.slots < 1)
    return fail(ErrorCode::kInvalidArgument, "slots 0; at least 1 would be right");
  SAE_TRY_VOID(make_directories(options.state_directory));
  SAE_TRY(protocol::WorkerLink link, protocol::WorkerLink::connect(options.endpoint));
  auto state = std::make_unique<State>(std::move(options), std::move(link));
  auto cache = storage::ActivationCache::open(state->options.state_directory / "cache");
  if (cache)
    state->cache.emplace(std::move(*cache));
  else
    log::warn("cache.absent error={}", cache.error().message);
  state->chunks = std::make_unique<ChunkService>(state->cache ? &*state->cache : nullptr);
  return Agent(std::move(state));
}

Result<void> Agent::run(std::stop_token stop) { return state_->loop(stop); }

}  // namespace saesweep::agent
