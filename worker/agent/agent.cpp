#include "worker/agent/agent.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "core/clock.h"
#include "core/files.h"
#include "core/log.h"
#include "scheduler/protocol/link.h"
#include "storage/activation_cache.h"
#include "worker/agent/chunk_board.h"
#include "worker/agent/chunk_fetching.h"
#include "worker/agent/chunk_server.h"
#include "worker/agent/chunk_service.h"
#include "worker/agent/crew.h"
#include "worker/agent/outbox.h"
#include "worker/agent/shipping.h"
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

}  // namespace

struct Agent::State {
  State(AgentOptions given, protocol::WorkerLink connected,
        std::optional<storage::ActivationCache> opened)
      : options(std::move(given)),
        link(std::move(connected)),
        cache(std::move(opened)),
        wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (cache) chunks.join_others(board, fetching);
  }

  AgentOptions options;
  protocol::WorkerLink link;
  Outbox outbox{link};
  SystemClock clock;
  std::optional<storage::ActivationCache> cache;
  ChunkBoard board;
  ChunkFetching fetching{board};
  ChunkService chunks{cache ? &*cache : nullptr};
  std::optional<ChunkServer> chunk_server;
  Shipping shipping{outbox, clock};
  Crew crew{{options, clock, outbox, shipping, chunks}};
  OwnedFd wake;  // readable when we are asked to stop

  // Of the scheduler.
  bool welcomed = false;
  std::uint64_t epoch = 0;
  milliseconds heartbeat = 1s;
  TimePoint next_hello{}, last_heartbeat{}, last_word{}, last_resend{}, last_told{}, last_busy{};
  std::uint64_t told_epoch = 0;  // that of the last RESYNC
  StoreInUse store;
  std::minstd_rand random{std::random_device{}()};  // spreads agents over time; decides nothing

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
    if (chunk_server) {
      hello.set_chunks_endpoint(chunk_server->announced());
      hello.set_chunks_key(chunk_server->public_key());
    }
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
    outbox.say(MessageType::kResync, crew.resync(epoch));
  }

  void say_heartbeat() {
    last_heartbeat = clock.now();
    outbox.mention(MessageType::kHeartbeat, crew.heartbeat());
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
        for (const auto& run : assign.runs()) crew.take(run);
        break;
      }
      case MessageType::kControl: {
        protocol::Control wanted;
        understood = protocol::parse_body(heard.body, wanted);
        if (understood) crew.control(wanted);
        break;
      }
      case MessageType::kResultAck: {
        protocol::ResultAck ack;
        understood = protocol::parse_body(heard.body, ack);
        if (understood) crew.hear(ack);
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

  // False if the scheduler's store is out of reach: nothing that is made here would arrive.
  bool take_store(const protocol::Welcome& welcome) {
    auto found = find_store(welcome, store, options.endpoint);
    if (found) {
      store = std::move(*found);
      const auto ready = crew.work_in(store);
      if (ready) return true;
      found = fail(ready.error());
    }
    has_listener = false;
    begin_stop(AgentEnd::kMisplaced, std::move(found.error()));
    return false;
  }

  // Whoever holds these keys was welcomed by our scheduler.
  void take_chunk_keys(const protocol::Welcome& welcome) {
    auto keys = chunk_keys_of(welcome);
    if (keys && chunk_server) chunk_server->admit(keys->public_key);
    if (keys) fetching.use(std::move(keys));
    if (chunk_server) fetching.introduce(welcome.chunks_endpoint(), chunk_server->public_key());
  }

  void hear(const protocol::Welcome& welcome) {
    if (welcome.epoch() < epoch) {
      // A copy of an old state, started by mistake: what it grants was granted before.
      log::warn("agent.old_scheduler epoch={} known={}", welcome.epoch(), epoch);
      return;
    }
    if (!take_store(welcome)) return;
    take_chunk_keys(welcome);
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

  // ---- the way out -----------------------------------------------------------------------------

  // What runs checkpoints within the patience that there is.
  void begin_stop(AgentEnd because, std::optional<Error> why) {
    if (why && !failure) failure = std::move(why);
    if (phase != Phase::kServing) return;
    end = because;
    phase = Phase::kPausing;
    deadline = clock.now() + options.stop_patience;
    crew.pause_all();
  }

  // True at the end of the way.
  bool is_done(TimePoint now) {
    if (phase == Phase::kPausing) {
      if (crew.is_busy() && has_listener && now < deadline) return false;
      if (crew.is_running() && now < deadline) return false;
      crew.abandon();
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
    if (crew.is_busy()) last_busy = now;
    if (options.idle_timeout > 0ms && now - last_busy > options.idle_timeout)
      begin_stop(AgentEnd::kIdle, std::nullopt);
    if ((!welcomed || is_lonely(now)) && now >= next_hello) say_hello();
    const milliseconds beat = phase == Phase::kFlushing ? kFlushBeat : heartbeat;
    if (welcomed && now - last_heartbeat >= beat) say_heartbeat();
    crew.kill_the_silent(now);
    const auto next = welcomed ? last_heartbeat + beat : next_hello;
    return std::clamp(std::chrono::ceil<milliseconds>(next - now), 1ms, kLongestWait);
  }

  void go_round(milliseconds patience) {
    std::vector<int> descriptors{wake.get()};
    if (phase != Phase::kServing) descriptors.clear();  // it stays readable
    crew.add_descriptors(descriptors);
    if (crew.has_more()) patience = 0ms;
    const auto polled = link.poll(patience, descriptors);
    if (polled.refused) begin_stop(AgentEnd::kNotAuthorised, polled.refused);
    // First of all: what dies after we were asked to stop dies while we stop.
    if (std::find(polled.readable.begin(), polled.readable.end(), wake.get()) !=
        polled.readable.end())
      begin_stop(AgentEnd::kStopped, std::nullopt);
    // Executors before the scheduler: an answer that is here already frees a slot for what the
    // scheduler sends.
    crew.serve(polled.readable);
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
  auto opened = storage::ActivationCache::open(options.state_directory / "cache");
  std::optional<storage::ActivationCache> cache;
  if (opened)
    cache.emplace(std::move(*opened));
  else
    log::warn("cache.absent error={}", opened.error().message);
  auto state = std::make_unique<State>(std::move(options), std::move(link), std::move(cache));
  if (state->wake.get() < 0) return fail(system_error(errno, "eventfd"));
  if (state->cache && !state->options.chunks_endpoint.empty()) {
    SAE_TRY(ChunkServer server, ChunkServer::start(state->options.chunks_endpoint,
                                                   state->options.security.keys != nullptr,
                                                   *state->cache, state->board));
    log::info("chunks.serving endpoint={}", server.announced());
    state->chunk_server.emplace(std::move(server));
  }
  return Agent(std::move(state));
}

Result<void> Agent::run(const std::stop_token& stop) { return state_->loop(stop); }
AgentEnd Agent::end() const { return state_->end; }

}  // namespace saesweep::agent
