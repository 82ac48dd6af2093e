#include "scheduler/service/scheduler_service.h"

#include <unistd.h>

#include <array>
#include <chrono>

#include "core/files.h"
#include "core/log.h"
#include "scheduler/decisions/decide.h"
#include "scheduler/protocol/link.h"
#include "scheduler/service/state_store.h"
#include "scheduler/service/submission.h"
#include "scheduler/service/sweep_result.h"
#include "scheduler/service/telemetry_feed.h"
#include "storage/artifacts.h"

namespace saesweep::scheduler {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using journal::Event;
using protocol::MessageType;

constexpr auto kLongestPoll = 200ms;
constexpr auto kStall = 1s;          // of our own loop: others are forgiven that much silence
constexpr auto kStopPatience = 40s;  // for agents to make checkpoints
constexpr std::size_t kIdDigits = 12;

double unix_seconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string host_name() {
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  return name.data();
}

Error about(const fs::path& path, const Error& error) {
  return {error.code, fmt::format("{}: {}", path.string(), error.message)};
}

}  // namespace

struct SchedulerService::State {
  State(ServiceOptions given, StateStore opened, storage::Artifacts files,
        protocol::SchedulerLink bound)
      : options(std::move(given)),
        store(std::move(opened)),
        artifacts(std::move(files)),
        link(std::move(bound)),
        telemetry(options.telemetry) {}
  ~State() {
    std::error_code ignored;
    fs::remove(options.state_directory / "endpoint.json", ignored);
  }

  ServiceOptions options;
  StateStore store;
  storage::Artifacts artifacts;
  std::optional<protocol::SchedulerLink> link;
  TelemetryFeed telemetry;
  ProgressFeed progress;
  SystemClock clock;

  std::vector<Reply> replies;         // held until what they follow from is durable
  std::vector<Json> said;             // the same for what observers hear
  std::vector<std::string> finished;  // tasks, since the last commit
  // Rows that a task belongs to, as (sweep, position), and those that observers know to be settled.
  using Row = std::pair<std::string, int>;
  std::map<std::string, std::vector<Row>> rows_of;
  std::set<Row> settled;

  const SweepState& state() const { return store.state(); }

  // ---- deciding --------------------------------------------------------------------------------

  std::optional<Error> hear(const std::string& peer, Heard heard) {
    Decision decision = decide(state(), {peer, std::move(heard)}, clock.now());
    for (const Event& event : decision.events) {
      if (event.has_task_finished())
        finished.push_back(event.task_finished().result().task());
      else if (event.has_task_given_up())
        finished.push_back(event.task_given_up().task());
      else if (event.has_run_lost() && event.run_lost().quarantined())
        for (const std::string& id : state().find_run(event.run_lost().run())->tasks())
          finished.push_back(id);
      log_event(event);
    }
    store.apply(std::move(decision.events), unix_seconds());
    for (Reply& reply : decision.replies) replies.push_back(std::move(reply));
    return decision.halt;
  }

  static void log_event(const Event& event) {
    if (event.has_run_granted())
      log::info("run.granted run={} tasks={}", event.run_granted().run(),
                event.run_granted().grants_size());
    else if (event.has_run_lost())
      log::warn("run.lost run={} counted={} reason={}", event.run_lost().run(),
                event.run_lost().counted(), event.run_lost().reason());
    else if (event.has_run_refused())
      log::info("run.refused run={} reason={}", event.run_refused().run(),
                event.run_refused().reason());
    else if (event.has_task_returned() && event.task_returned().retry())
      log::warn("task.retry task={} reason={}", event.task_returned().task(),
                event.task_returned().reason());
    else if (event.has_task_given_up())
      log::error("task.given_up task={} reason={}", event.task_given_up().task(),
                 event.task_given_up().reason());
    else if (event.has_worker_lost())
      log::warn("worker.lost");
  }

  // Makes durable what was decided, then lets the world see it.
  Result<void> commit() {
    SAE_TRY_VOID(store.commit());
    if (link) {
      link->confirm();
      for (Reply& reply : replies) send(reply);
    }
    replies.clear();
    const std::vector<std::string> now_finished = std::move(finished);
    finished.clear();
    for (const std::string& task : now_finished) {
      forget_checkpoints(*state().find_task(task));
      tell_rows(task);
    }
    for (Json& event : said) tell(std::move(event));
    said.clear();
    return {};
  }

  void send(Reply& reply) {
    if (auto* welcome = std::get_if<protocol::Welcome>(&reply.body))
      welcome->set_last_seq_received(link->last_received(reply.peer));
    const auto send_as = [&](MessageType type, const auto& body, bool reliable) {
      if (auto sent = link->send(reply.peer, type, body, reliable); !sent)
        log::warn("link.not_sent type={} error={}", protocol::to_string(type),
                  sent.error().message);
    };
    std::visit(
        [&](const auto& body) {
          using Body = std::decay_t<decltype(body)>;
          if constexpr (std::is_same_v<Body, protocol::Welcome>)
            send_as(MessageType::kWelcome, body, false);
          else if constexpr (std::is_same_v<Body, protocol::Reject>)
            send_as(MessageType::kReject, body, false);
          else if constexpr (std::is_same_v<Body, protocol::HeartbeatAck>)
            send_as(MessageType::kHeartbeatAck, body, false);
          else if constexpr (std::is_same_v<Body, protocol::Assign>)
            send_as(MessageType::kAssign, body, true);
          else if constexpr (std::is_same_v<Body, protocol::ResultAck>)
            send_as(MessageType::kResultAck, body, true);
          else
            send_as(MessageType::kControl, body, true);
        },
        reply.body);
  }

  // ---- what people hear ------------------------------------------------------------------------

  void tell(Json event) {
    if (options.observer) options.observer(event);
  }

  void tell_rows(const std::string& task) {
    const auto rows = rows_of.find(task);
    if (rows == rows_of.end()) return;
    for (const Row& row : rows->second) {
      const auto sweep = state().sweeps().find(row.first);
      if (sweep == state().sweeps().end()) continue;
      if (row.second < 0) {
        tell_model(sweep->second);
        continue;
      }
      const journal::Subject& subject = sweep->second.subjects(row.second);
      const SubjectOutcome outcome = outcome_of(state(), subject);
      if (outcome.state == "unfinished" || !settled.insert(row).second) continue;
      if (subject.baseline()) {
        if (outcome.state != "done")
          log::warn("baseline.failed sweep={} baseline={} reason={}", row.first,
                    subject.identity().substr(0, kIdDigits), outcome.reason);
        continue;
      }
      tell_end(row.first, subject.identity().substr(0, kIdDigits), subject.number(), outcome);
    }
  }

  void tell_model(const journal::Sweep& sweep) {
    const journal::Task& task = *state().find_task(sweep.lm_task());
    SubjectOutcome outcome{"done", ""};
    if (task.has_diverged()) outcome = {"diverged", task.diverged().reason()};
    if (task.has_failed()) outcome = {"failed", task.failed().reason()};
    tell_end(sweep.name(), fs::path(task.spec().directory()).filename(), 0, outcome);
  }

  void tell_end(const std::string& sweep, const std::string& trial, std::uint32_t number,
                const SubjectOutcome& outcome) {
    Json event{{"event", outcome.state == "done" ? "trial.finished" : "trial.failed"},
               {"sweep", sweep},
               {"trial", trial},
               {"number", number},
               {"state", outcome.state}};
    if (outcome.state != "done") event["reason"] = outcome.reason;
    tell(std::move(event));
  }

  void index_rows(const std::string& name) {
    std::erase_if(settled, [&](const Row& row) { return row.first == name; });
    for (auto& [task, rows] : rows_of)
      std::erase_if(rows, [&](const Row& row) { return row.first == name; });
    const journal::Sweep& sweep = state().sweeps().at(name);
    if (!sweep.lm_task().empty()) rows_of[sweep.lm_task()].push_back({name, -1});
    for (int i = 0; i < sweep.subjects_size(); ++i) {
      const journal::Subject& subject = sweep.subjects(i);
      if (!subject.train_task().empty()) rows_of[subject.train_task()].push_back({name, i});
      for (const std::string& task : subject.evaluate_tasks()) rows_of[task].push_back({name, i});
      if (outcome_of(state(), subject).state != "unfinished") settled.insert({name, i});
    }
  }

  // ---- files -----------------------------------------------------------------------------------

  bool are_there(const protocol::TaskResult& result) const {
    for (const auto& artifact : result.artifacts()) {
      const auto digest = storage::parse_sha256(artifact.sha256());
      if (!digest || !artifacts.contains(*digest)) return false;
    }
    return true;
  }

  // What is finished for good goes on from nowhere.
  void forget_checkpoints(const journal::Task& task) const {
    const bool for_good = is_finished(task) && !(task.has_failed() && task.failed().passing());
    if (!for_good || task.spec().directory().empty()) return;
    std::error_code problem;
    fs::remove_all(options.state_directory / task.spec().directory(), problem);
    if (problem)
      log::warn("checkpoints.not_removed directory={} problem={}", task.spec().directory(),
                problem.message());
  }

  // ---- messages --------------------------------------------------------------------------------

  template <class Body>
  std::optional<Error> parse_and_hear(const protocol::HeardMessage& heard) {
    Body body;
    if (!protocol::parse_body(heard.body, body)) {
      log::warn("link.garbage type={}", protocol::to_string(heard.type));
      return std::nullopt;
    }
    return hear(heard.peer, std::move(body));
  }

  std::optional<Error> hear_worker(const protocol::HeardMessage& heard) {
    switch (heard.type) {
      case MessageType::kHello:
        return hear_hello(heard);
      case MessageType::kHeartbeat:
        return hear_heartbeat(heard);
      case MessageType::kAssignReply:
        return parse_and_hear<protocol::AssignReply>(heard);
      case MessageType::kStarted:
        return parse_and_hear<protocol::Started>(heard);
      case MessageType::kProgress:
        return hear_progress(heard);
      case MessageType::kCheckpointed:
        return parse_and_hear<protocol::Checkpointed>(heard);
      case MessageType::kResult:
        return hear_result(heard);
      case MessageType::kControlDone:
        return parse_and_hear<protocol::ControlDone>(heard);
      case MessageType::kResync:
        return parse_and_hear<protocol::Resync>(heard);
      case MessageType::kBye: {
        auto halt = parse_and_hear<protocol::Bye>(heard);
        telemetry.forget(heard.peer);
        link->forget(heard.peer);
        return halt;
      }
      default:
        log::warn("link.unexpected type={}", protocol::to_string(heard.type));
        return std::nullopt;
    }
  }

  std::optional<Error> hear_hello(const protocol::HeardMessage& heard) {
    protocol::Hello hello;
    if (!protocol::parse_body(heard.body, hello)) return std::nullopt;
    log::info("worker.hello name={} host={} slots={}", hello.worker_name(), hello.host(),
              hello.slots());
    const bool is_known = state().workers().contains(heard.peer);
    auto halt = hear(heard.peer, hello);
    // What it received of another incarnation says nothing about ours.
    if (is_known && hello.known_epoch() == state().meta().epoch())
      link->resend_after(heard.peer, hello.last_seq_received());
    return halt;
  }

  std::optional<Error> hear_heartbeat(const protocol::HeardMessage& heard) {
    protocol::Heartbeat beat;
    if (!protocol::parse_body(heard.body, beat)) return std::nullopt;
    if (beat.has_counters() && state().workers().contains(heard.peer))
      telemetry.observe(heard.peer, beat.counters(), clock.now());
    return hear(heard.peer, std::move(beat));
  }

  std::optional<Error> hear_progress(const protocol::HeardMessage& heard) {
    protocol::Progress body;
    if (!protocol::parse_body(heard.body, body)) return std::nullopt;
    if (auto event = progress.hear(state(), body, clock.now())) said.push_back(std::move(*event));
    return hear(heard.peer, std::move(body));
  }

  std::optional<Error> hear_result(const protocol::HeardMessage& heard) {
    ResultHeard result;
    if (!protocol::parse_body(heard.body, result.result)) return std::nullopt;
    result.artifacts_are_there = are_there(result.result);
    const auto outcome = result.result.outcome();
    const journal::Task* task = state().find_task(result.result.task());
    const std::size_t before = replies.size();
    auto halt = hear(heard.peer, std::move(result));
    if (task == nullptr || replies.size() == before) return halt;
    const auto* ack = std::get_if<protocol::ResultAck>(&replies.back().body);
    if (ack != nullptr && ack->verdict() == "committed")
      telemetry.count(task->spec().kind(), outcome);
    return halt;
  }

  // ---- the loop --------------------------------------------------------------------------------

  bool is_all_done() const {
    for (const auto& [name, sweep] : state().sweeps())
      if (sweep.active() && sweep.ended() == 0) return false;
    return true;
  }
  bool is_anything_leased() const {
    for (const auto& [id, run] : state().runs())
      if (!run.worker().empty()) return true;
    return false;
  }
  void dismiss_workers() {
    protocol::Bye bye;
    bye.set_reason("the scheduler ends");
    for (const auto& [session, worker] : state().workers())
      (void)link->send(session, MessageType::kBye, bye, false);
    link.reset();  // in the thread that used it; the last words have a moment to leave
  }

  Result<bool> serve(const std::stop_token& stop) {
    std::optional<TimePoint> stop_deadline;
    std::optional<Error> halt;
    TimePoint last_look = clock.now();
    while (true) {
      const auto begin_to_stop = [&] {
        if (stop_deadline) return;
        stop_deadline = clock.now() + kStopPatience;
        hear("", StopAsked{});
      };
      if (stop.stop_requested()) begin_to_stop();
      for (const protocol::HeardMessage& heard : link->poll(kLongestPoll))
        if (auto problem = hear_worker(heard)) halt = std::move(problem);
      if (halt) begin_to_stop();

      const TimePoint now = clock.now();
      const Duration late = now - last_look - kLongestPoll;
      last_look = now;
      hear("", Tick{.stalled = late > kStall ? late : Duration::zero(),
                    .may_place = !stop_deadline.has_value()});
      if (auto committed = commit(); !committed) {
        if (!halt || halt->code != committed.error().code)
          log::error("journal.not_written error={}", committed.error().message);
        halt = committed.error();
        begin_to_stop();
        send_controls();
      }
      telemetry.show_if_due(state(), now);

      if (!halt && is_all_done()) return true;
      if (stop_deadline && (!is_anything_leased() || now >= *stop_deadline)) break;
    }
    if (halt) return fail(*halt);
    return false;
  }

  // While nothing can be made durable, only these may leave: they ask for checkpoints.
  void send_controls() {
    std::vector<Reply> others;
    for (Reply& reply : replies) {
      if (std::holds_alternative<protocol::Control>(reply.body))
        send(reply);
      else
        others.push_back(std::move(reply));
    }
    replies = std::move(others);
  }
};

SchedulerService::SchedulerService(std::unique_ptr<State> state) : state_(std::move(state)) {}
SchedulerService::SchedulerService(SchedulerService&&) noexcept = default;
SchedulerService::~SchedulerService() = default;

Result<SchedulerService> SchedulerService::open(ServiceOptions options) {
  const fs::path& directory = options.state_directory;
  SAE_TRY_VOID(make_directories(directory));
  auto store = StateStore::open(directory / "journal", StateStore::Mode::kWrite);
  if (!store) return fail(about(directory, store.error()));
  SAE_TRY(storage::Artifacts artifacts, storage::Artifacts::open(directory / "artifacts"));
  SAE_TRY(protocol::SchedulerLink link, protocol::SchedulerLink::bind(options.endpoint));
  auto state = std::make_unique<State>(std::move(options), std::move(*store), std::move(artifacts),
                                       std::move(link));
  (void)state->hear("", ProcessBegins{});
  if (auto committed = state->commit(); !committed)
    return fail(about(state->options.state_directory, committed.error()));
  for (const auto& [id, task] : state->state().tasks()) state->forget_checkpoints(task);
  const Json endpoint{{"endpoint", state->options.endpoint},
                      {"pid", ::getpid()},
                      {"host", host_name()},
                      {"build", state->options.build},
                      {"epoch", state->state().meta().epoch()}};
  SAE_TRY_VOID(write_file_atomically(state->options.state_directory / "endpoint.json",
                                     pretty_json(endpoint)));
  return SchedulerService(std::move(state));
}

Result<void> SchedulerService::submit(const sweeps::SweepPlan& plan) {
  Submission submission = to_submission(plan);
  for (const journal::TaskSpec& spec : submission.tasks) {
    const journal::Task* known = state_->state().find_task(spec.id());
    if (known != nullptr && known->has_succeeded() && !state_->are_there(known->result()))
      submission.lost.insert(spec.id());
  }
  (void)state_->hear("", std::move(submission));
  state_->index_rows(plan.name);
  // A sweep of which everything is there already has ended.
  (void)state_->hear("", Tick{.may_place = false});
  return state_->commit();
}

Result<bool> SchedulerService::run(std::stop_token stop) {
  auto served = state_->serve(stop);
  // What could not be written may be writable now.
  if (state_->store.has_pending())
    if (auto committed = state_->store.commit(); !committed)
      log::error("journal.not_written error={}", committed.error().message);
  state_->telemetry.show(state_->state());
  state_->dismiss_workers();
  return served;
}

Result<SweepResult> SchedulerService::result(const std::string& sweep) const {
  return to_result(state_->state(), sweep, state_->options.state_directory);
}

}  // namespace saesweep::scheduler
