#include "worker/agent/agent.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "core/clock.h"
#include "core/files.h"
#include "core/log.h"
#include "scheduler/protocol/link.h"
#include "storage/activation_cache.h"
#include "worker/agent/chunk_service.h"
#include "worker/agent/executor_process.h"
#include "worker/agent/outbox.h"
#include "worker/agent/slot.h"
#include "worker/agent/store.h"

namespace saesweep::agent {
namespace {

using namespace std::chrono_literals;
using protocol::MessageType;
using std::chrono::milliseconds;

constexpr milliseconds kHelloEvery = 500ms;     // until the scheduler answers
constexpr milliseconds kHelloAgainAfter = 10s;  // of silence; the scheduler may be a new one
constexpr milliseconds kHelloWhileLonely = 2s;  // then this often
constexpr milliseconds kRepeatAfter = 5s;       // what is reliable arrives by itself
constexpr milliseconds kLongestWait = 1s;       // between two looks at the clock
constexpr milliseconds kFlushPatience = 5s;     // for the last words to be acknowledged
constexpr milliseconds kFlushBeat = 50ms;       // acknowledgements ride on the answers
constexpr int kMessagesAtOnce = 64;             // of one executor, then the others have a turn

}  // namespace

struct Agent::State {
  State(AgentOptions given, protocol::WorkerLink connected)
      : options(std::move(given)),
        link(std::move(connected)),
        slots(options.slots),
        wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
  ~State() {
    for (Slot& slot : slots)
      if (slot.executor) slot.executor->hang_up();
    for (Slot& slot : slots)
      if (slot.executor) slot.executor->bury();
  }

  AgentOptions options;
  protocol::WorkerLink link;
  Outbox outbox{link};
  SystemClock clock;
  std::optional<storage::ActivationCache> cache;
  std::unique_ptr<ChunkService> chunks;
  std::vector<Slot> slots;
  OwnedFd wake;  // readable when we are asked to stop

  // Of the scheduler.
  bool welcomed = false;
  std::uint64_t epoch = 0;
  milliseconds heartbeat = 1s;
  TimePoint next_hello{}, last_heartbeat{}, last_word{}, last_resend{}, last_told{}, last_busy{};
  std::uint64_t told_epoch = 0;                     // that of the last RESYNC
  std::filesystem::path store;                      // empty until the scheduler has named it
  std::minstd_rand random{std::random_device{}()};  // spreads agents over time; decides nothing
  std::map<std::string, std::uint64_t> fences;      // the highest accepted, by task

  ConnectionId next_connection = 1;
  std::uint64_t deaths = 0, restarts = 0, trained = 0, harvested = 0;

  // The way out: runs pause, then what is left to say is said.
  enum class Phase { kServing, kPausing, kFlushing };
  Phase phase = Phase::kServing;
  TimePoint deadline{};  // of the phase
  AgentEnd end = AgentEnd::kStopped;
  bool has_listener = true;      // the scheduler still listens
  std::optional<Error> failure;  // that ended us

  // ---- to the scheduler ------------------------------------------------------------------------

  void say_hello() {
    protocol::Hello hello = hello_of(options);
    hello.set_known_epoch(epoch);
    hello.set_last_seq_received(link.last_received());
    outbox.mention(MessageType::kHello, hello);
    const TimePoint now = clock.now();
    next_hello = now + (is_lonely(now) ? kHelloWhileLonely + spread() : kHelloEvery);
  }
  bool is_lonely(TimePoint now) const { return now - last_word > kHelloAgainAfter; }
  milliseconds spread() {
    return milliseconds(std::uniform_int_distribution<milliseconds::rep>(
        0, options.reconnect_spread.count())(random));
  }

  // Behind all that was said before: what is not in it is not here. Asked again and again over a
  // slow line, it is said once in a while.
  void say_all_that_runs() {
    if (told_epoch == epoch && clock.now() - last_told < kRepeatAfter) return;
    told_epoch = epoch;
    last_told = clock.now();
    outbox.say(MessageType::kResync, resync_of(slots, outbox, epoch));
  }

  void say_heartbeat() {
    last_heartbeat = clock.now();
    protocol::Heartbeat beat = heartbeat_of(slots, phase == Phase::kServing, *chunks);
    beat.set_sent_ns(static_cast<std::uint64_t>(
        std::chrono::nanoseconds(last_heartbeat.time_since_epoch()).count()));
    beat.mutable_counters()->set_executor_restarts(restarts);
    beat.mutable_counters()->set_tokens_trained(trained);
    beat.mutable_counters()->set_tokens_harvested(harvested);
    outbox.mention(MessageType::kHeartbeat, beat);
  }

  // Whoever waits for a member of this slot's run waits no longer.
  void say_lost(Slot& slot, const ExecutorDeath& death) {
    for (const auto& [task, fence] : slot.unfinished)
      say_lost(slot.run->run_id(), task, fence, death);
    slot.run.reset();
    slot.unfinished.clear();
    slot.progress.reset();
  }
  void say_lost(std::uint64_t run, const std::string& task, std::uint64_t fence,
                const ExecutorDeath& death) {
    outbox.say_result(lost_result(run, task, fence, death, phase == Phase::kServing));
  }
  // No executor has seen it.
  void say_not_begun(const protocol::Run& run, const std::string& why) {
    for (const auto& member : run.members())
      say_lost(run.run_id(), member.task(), member.fence(),
               {.by_kill = true, .out_of_memory = false, .reason = why});
  }

  void pass_on_progress(Slot& slot) {
    if (slot.progress) outbox.mention(MessageType::kProgress, *slot.progress);
    slot.progress.reset();
  }

  // ---- runs ------------------------------------------------------------------------------------

  Result<void> start_executor(Slot& slot) {
    const auto number = static_cast<std::uint32_t>(&slot - slots.data());
    const ExecutorOptions wanted = executor_of(options, store, number);
    auto started = ExecutorProcess::start(wanted);
    if (!started) {
      log::error("executor.start slot={} error={}", wanted.slot, started.error().message);
      return fail(std::move(started.error()));
    }
    slot.executor.emplace(std::move(*started));
    slot.connection = next_connection++;
    slot.more = false;
    if (restarts < deaths) ++restarts;
    log::info("executor.started slot={} pid={}", wanted.slot, slot.executor->pid());
    return {};
  }

  void take(const protocol::Run& run) {
    protocol::AssignReply reply;
    reply.set_run_id(run.run_id());
    if (std::any_of(slots.begin(), slots.end(),
                    [&](const Slot& slot) { return slot.has(run.run_id()); })) {  // said twice
      reply.set_accepted(true);
      outbox.say(MessageType::kAssignReply, reply);
      return;
    }
    Slot* best = best_free(slots);
    if (phase != Phase::kServing) {
      reply.set_reason("the agent stops");
    } else if (best == nullptr) {
      reply.set_reason("no free slot");
    } else if (is_stale(run)) {
      reply.set_reason("stale fence");
    } else if (!best->executor) {
      if (const auto started = start_executor(*best); !started)
        reply.set_reason(started.error().message);
    }
    reply.set_accepted(reply.reason().empty());
    outbox.say(MessageType::kAssignReply, reply);
    if (!reply.accepted()) return;
    for (const auto& member : run.members()) fences[member.task()] = member.fence();
    if (best->run)
      best->next = run;
    else
      begin(*best, run);
  }

  bool is_stale(const protocol::Run& run) const {
    return std::any_of(run.members().begin(), run.members().end(), [&](const auto& member) {
      const auto known = fences.find(member.task());
      return known != fences.end() && member.fence() <= known->second;
    });
  }

  void begin(Slot& slot, protocol::Run run) {
    if (!slot.executor) {
      if (const auto started = start_executor(slot); !started)
        return say_not_begun(run, started.error().message);
    }
    protocol::Started begun;
    begun.set_run_id(run.run_id());
    begun.set_pid(slot.executor->pid());
    begun.set_slot(static_cast<std::uint32_t>(&slot - slots.data()));
    outbox.say(MessageType::kStarted, begun);
    run.set_threads(threads_of_slot(options));
    slot.heard = clock.now();
    slot.executor->log_to(store_or_state() / "logs" / fmt::format("run-{}.log", run.run_id()));
    for (const auto& member : run.members()) slot.unfinished[member.task()] = member.fence();
    protocol::Envelope envelope;
    *envelope.mutable_run() = run;
    slot.run = std::move(run);
    tell(slot, envelope);
  }

  // The run in the slot is over; the one that waited for it begins.
  void begin_next(Slot& slot) {
    if (!slot.next) return;
    protocol::Run next = *std::exchange(slot.next, std::nullopt);
    begin(slot, std::move(next));
  }

  // To the executor. One that does not take it is killed; its end is read like any other's.
  void tell(Slot& slot, const protocol::Envelope& envelope, int descriptor = -1) {
    if (const auto sent = slot.executor->channel().send(envelope, descriptor); !sent)
      slot.executor->kill(sent.error().message);
  }

  void died(Slot& slot) {
    ExecutorDeath death = slot.executor->bury();
    const auto number = &slot - slots.data();
    log::warn("executor.died slot={} pid={} reason={}", number, slot.executor->pid(), death.reason);
    death.reason = "its executor died: " + death.reason;
    slot.executor.reset();
    slot.more = false;
    chunks->close(slot.connection);
    ++deaths;
    say_lost(slot, death);
    begin_next(slot);
  }

  void control(const protocol::Control& wanted) {
    for (Slot& slot : slots) {
      if (!slot.run || slot.run->run_id() != wanted.run_id()) continue;
      protocol::Envelope envelope;
      *envelope.mutable_control() = wanted;
      return tell(slot, envelope);
    }
    for (Slot& slot : slots)
      if (slot.next && slot.next->run_id() == wanted.run_id()) {
        // Nothing of it has begun: all of it is as it was.
        say_not_begun(*slot.next, "it had not begun");
        slot.next.reset();
        return;
      }
    // The run is over: there is nothing to wait for.
    outbox.say(MessageType::kControlDone, not_running(wanted));
  }

  // ---- what is heard ---------------------------------------------------------------------------

  void hear(const protocol::HeardMessage& heard) {
    last_word = clock.now();
    bool understood = true;
    switch (heard.type) {
      case MessageType::kWelcome: {
        protocol::Welcome welcome;
        understood = protocol::parse_body(heard.body, welcome);
        if (understood) hear(welcome);
        break;
      }
      case MessageType::kReject: {
        protocol::Reject reject;
        understood = protocol::parse_body(heard.body, reject);
        if (!understood) break;
        if (reject.code() == "drained") {
          begin_stop(AgentEnd::kDrained, std::nullopt);
          break;
        }
        has_listener = false;
        begin_stop(
            reject.code() == "not_authorised" ? AgentEnd::kNotAuthorised : AgentEnd::kDismissed,
            Error{ErrorCode::kUnavailable, "the scheduler refused this agent: " + reject.text()});
        break;
      }
      case MessageType::kAssign: {
        protocol::Assign assign;
        understood = protocol::parse_body(heard.body, assign);
        if (!understood) break;
        for (const auto& run : assign.runs()) take(run);
        break;
      }
      case MessageType::kControl: {
        protocol::Control wanted;
        understood = protocol::parse_body(heard.body, wanted);
        if (understood) control(wanted);
        break;
      }
      case MessageType::kResultAck: {
        protocol::ResultAck ack;
        understood = protocol::parse_body(heard.body, ack);
        if (understood) outbox.acknowledge(ack);
        break;
      }
      case MessageType::kBye:
        if (options.outlives_scheduler) {
          log::warn("scheduler.left");
          welcomed = false;  // until another one is there
          next_hello = clock.now() + spread();
          break;
        }
        has_listener = false;
        begin_stop(AgentEnd::kDismissed, std::nullopt);
        break;
      case MessageType::kHeartbeatAck: {
        protocol::HeartbeatAck ack;
        understood = protocol::parse_body(heard.body, ack);
        if (understood) hear(ack);
        break;
      }
      default:
        understood = false;
    }
    if (!understood) log::warn("agent.garbage type={}", protocol::to_string(heard.type));
  }

  void hear(const protocol::HeartbeatAck& ack) {
    if (ack.epoch() > epoch) {  // the scheduler began anew and does not know us
      if (welcomed) next_hello = clock.now() + spread();
      welcomed = false;
    } else if (welcomed && ack.epoch() == epoch && ack.want_full_list()) {
      say_all_that_runs();
    }
  }

  std::filesystem::path store_or_state() const {
    return store.empty() ? options.state_directory : store;
  }

  // False if the scheduler's store is out of reach: nothing that is made here would arrive.
  bool take_store(const protocol::Welcome& welcome) {
    auto found = find_store(welcome, store);
    if (found) {
      store = std::move(*found);
      return true;
    }
    has_listener = false;
    begin_stop(AgentEnd::kMisplaced, std::move(found.error()));
    return false;
  }

  void hear(const protocol::Welcome& welcome) {
    if (welcome.epoch() < epoch) {
      // A copy of an old state, started by mistake: what it grants was granted before.
      log::warn("agent.old_scheduler epoch={} known={}", welcome.epoch(), epoch);
      return;
    }
    if (!take_store(welcome)) return;
    const bool other_scheduler = epoch != 0 && welcome.epoch() != epoch;
    welcomed = true;
    epoch = welcome.epoch();
    if (welcome.heartbeat_ms() > 0)
      heartbeat = std::clamp(milliseconds(welcome.heartbeat_ms()), 20ms, milliseconds(30s));
    const TimePoint now = clock.now();
    if (welcome.resume() && now - last_resend >= kRepeatAfter) {
      link.resend_after(welcome.last_seq_received());
      last_resend = now;
    }
    if (other_scheduler) outbox.repeat_results();  // it may not know what its predecessor heard
    say_all_that_runs();
  }

  void hear(Slot& slot, protocol::ExecutorChannel::Heard heard) {
    const OwnedFd unasked(heard.descriptor);
    slot.heard = clock.now();
    protocol::Envelope& envelope = heard.envelope;
    protocol::Envelope answer;
    switch (envelope.body_case()) {
      case protocol::Envelope::kProgress:
        slot.progress = std::move(*envelope.mutable_progress());
        break;
      case protocol::Envelope::kCheckpointed:
        pass_on_progress(slot);
        outbox.say(MessageType::kCheckpointed, envelope.checkpointed());
        break;
      case protocol::Envelope::kResult:
        pass_on_progress(slot);
        slot.unfinished.erase(envelope.result().task());
        outbox.say_result(std::move(*envelope.mutable_result()));
        break;
      case protocol::Envelope::kControlDone:
        if (const auto& done = envelope.control_done();
            done.outcome() == "paused" || done.outcome() == "cancelled")
          slot.unfinished.erase(done.task());
        outbox.say(MessageType::kControlDone, envelope.control_done());
        break;
      case protocol::Envelope::kTokensDone:
        trained += envelope.tokens_done().trained();
        harvested += envelope.tokens_done().harvested();
        break;
      case protocol::Envelope::kChunkOpen: {
        const ChunkService::Opened opened = chunks->open(slot.connection, envelope.chunk_open());
        *answer.mutable_chunk_opened() = opened.message;
        tell(slot, answer, opened.memory.get());
        break;
      }
      case protocol::Envelope::kChunkRequest:
        *answer.mutable_chunk_reply() =
            chunks->handle(slot.connection, envelope.chunk_request(), clock.now());
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

  void finished(Slot& slot, std::uint64_t run_id) {
    if (!slot.run || slot.run->run_id() != run_id) return;
    pass_on_progress(slot);
    slot.executor->log_to({});
    say_lost(slot, {.by_kill = false,
                    .out_of_memory = false,
                    .reason = "its executor ended the run without a word about it"});
    begin_next(slot);
    say_heartbeat();  // a free slot is news
  }

  // What the executor said, a turn's worth of it.
  void read(Slot& slot) {
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

  // ---- the way out -----------------------------------------------------------------------------

  // What runs checkpoints within the patience that there is.
  void begin_stop(AgentEnd because, std::optional<Error> why) {
    if (why && !failure) failure = std::move(why);
    if (phase != Phase::kServing) return;
    end = because;
    phase = Phase::kPausing;
    deadline = clock.now() + options.stop_patience;
    for (Slot& slot : slots) {
      if (slot.next) say_not_begun(*slot.next, "the agent stops");
      slot.next.reset();
      if (!slot.run) continue;
      protocol::Envelope envelope;
      envelope.mutable_control()->set_run_id(slot.run->run_id());
      envelope.mutable_control()->set_verb("pause");
      tell(slot, envelope);
    }
  }

  // True at the end of the way.
  bool is_done(TimePoint now) {
    if (phase == Phase::kPausing) {
      const bool idle = std::none_of(slots.begin(), slots.end(),
                                     [](const Slot& slot) { return slot.run.has_value(); });
      if (!idle && now < deadline) return false;
      for (Slot& slot : slots)
        if (slot.run)
          say_lost(slot, {.by_kill = true,
                          .out_of_memory = false,
                          .reason = "the agent stopped before it had checkpointed"});
      phase = Phase::kFlushing;
      deadline = now + kFlushPatience;
    }
    if (phase != Phase::kFlushing) return false;
    return !has_listener || now >= deadline || outbox.is_heard();
  }

  // ---- the loop --------------------------------------------------------------------------------

  // Hello, heartbeats, and those who are silent for too long. How long until the next.
  milliseconds look_at_clock(TimePoint now) {
    if (now - last_word > options.scheduler_patience && phase == Phase::kServing) {
      has_listener = false;
      begin_stop(AgentEnd::kAlone,
                 Error{ErrorCode::kUnavailable,
                       fmt::format("nothing heard from the scheduler for {:.0f} s",
                                   std::chrono::duration<double>(now - last_word).count())});
    }
    if (is_any_busy(slots)) last_busy = now;
    if (options.idle_timeout > 0ms && now - last_busy > options.idle_timeout)
      begin_stop(AgentEnd::kIdle, std::nullopt);
    if ((!welcomed || is_lonely(now)) && now >= next_hello) say_hello();
    const milliseconds beat = phase == Phase::kFlushing ? kFlushBeat : heartbeat;
    if (welcomed && now - last_heartbeat >= beat) say_heartbeat();
    for (Slot& slot : slots)
      if (slot.executor && slot.run && now - slot.heard > options.executor_patience)
        slot.executor->kill(fmt::format("it said nothing for {:.0f} s",
                                        std::chrono::duration<double>(now - slot.heard).count()));
    const auto next = welcomed ? last_heartbeat + beat : next_hello;
    return std::clamp(std::chrono::ceil<milliseconds>(next - now), 1ms, kLongestWait);
  }

  void go_round(milliseconds patience) {
    std::vector<int> descriptors{wake.get()};
    if (phase != Phase::kServing) descriptors.clear();  // it stays readable
    for (Slot& slot : slots) {
      if (!slot.executor) continue;
      descriptors.push_back(slot.executor->channel().socket());
      if (slot.executor->output() >= 0) descriptors.push_back(slot.executor->output());
      if (slot.more) patience = 0ms;
    }
    const auto polled = link.poll(patience, descriptors);
    if (polled.refused) begin_stop(AgentEnd::kNotAuthorised, polled.refused);
    const auto is_readable = [&](int descriptor) {
      return std::find(polled.readable.begin(), polled.readable.end(), descriptor) !=
             polled.readable.end();
    };
    // First of all: what dies after we were asked to stop dies while we stop.
    if (is_readable(wake.get())) begin_stop(AgentEnd::kStopped, std::nullopt);
    // Executors before the scheduler: an answer that is here already frees a slot for what the
    // scheduler sends.
    for (Slot& slot : slots) {
      if (slot.executor && is_readable(slot.executor->output())) slot.executor->read_output();
      if (slot.executor && (slot.more || is_readable(slot.executor->channel().socket())))
        read(slot);
      pass_on_progress(slot);
    }
    for (const auto& heard : polled.heard) hear(heard);
    outbox.flush();
  }

  Result<void> loop(const std::stop_token& stop) {
    const std::stop_callback wake_up(stop, [descriptor = wake.get()] {
      const std::uint64_t one = 1;
      if (::write(descriptor, &one, sizeof one) < 0) return;  // it is readable already
    });
    last_word = last_busy = clock.now();
    while (true) {
      const TimePoint now = clock.now();
      if (is_done(now)) break;
      go_round(look_at_clock(now));
    }
    if (has_listener) {
      protocol::Bye bye;
      bye.set_reason(failure ? failure->message : "stopping");
      outbox.mention(MessageType::kBye, bye);
    }
    if (failure) return fail(*failure);
    return {};
  }
};

Agent::Agent(std::unique_ptr<State> state) : state_(std::move(state)) {}
Agent::Agent(Agent&&) noexcept = default;
Agent::~Agent() = default;

Result<Agent> Agent::create(AgentOptions options) {
  std::error_code ignored;
  if (!std::filesystem::exists(options.task_program, ignored))
    return fail(ErrorCode::kNotFound, "the executor {} is not there",
                options.task_program.string());
  if (options.slots < 1)
    return fail(ErrorCode::kInvalidArgument, "slots 0; at least 1 would be right");
  SAE_TRY_VOID(make_directories(options.state_directory));
  SAE_TRY(protocol::WorkerLink link,
          protocol::WorkerLink::connect(options.endpoint, options.security));
  auto state = std::make_unique<State>(std::move(options), std::move(link));
  if (state->wake.get() < 0) return fail(system_error(errno, "eventfd"));
  auto cache = storage::ActivationCache::open(state->options.state_directory / "cache");
  if (cache)
    state->cache.emplace(std::move(*cache));
  else
    log::warn("cache.absent error={}", cache.error().message);
  state->chunks = std::make_unique<ChunkService>(state->cache ? &*state->cache : nullptr);
  return Agent(std::move(state));
}

Result<void> Agent::run(std::stop_token stop) { return state_->loop(stop); }
AgentEnd Agent::end() const { return state_->end; }

}  // namespace saesweep::agent
