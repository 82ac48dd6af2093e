#include "scheduler/service/scheduler_service.h"

#include <unistd.h>

#include <chrono>
#include <string_view>

#include "core/check.h"
#include "core/files.h"
#include "core/log.h"
#include "scheduler/decisions/decide.h"
#include "scheduler/protocol/link.h"
#include "scheduler/service/checkpoints.h"
#include "scheduler/service/chunk_desk.h"
#include "scheduler/service/commands.h"
#include "scheduler/service/data_desk.h"
#include "scheduler/service/event_log.h"
#include "scheduler/service/executor_logs.h"
#include "scheduler/service/journal_tools.h"
#include "scheduler/service/query_desk.h"
#include "scheduler/service/reply_batch.h"
#include "scheduler/service/row_feed.h"
#include "scheduler/service/state_directory.h"
#include "scheduler/service/state_store.h"
#include "scheduler/service/submission.h"
#include "scheduler/service/sweep_result.h"
#include "scheduler/service/telemetry_feed.h"
#include "scheduler/service/views.h"
#include "storage/artifacts.h"

namespace saesweep::scheduler {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using journal::Event;
using protocol::MessageType;

constexpr auto kLongestPoll = 200ms;
constexpr auto kStall = 1s;            // of our own loop: others are forgiven that much silence
constexpr auto kStopPatience = 40s;    // for agents to make checkpoints
constexpr auto kTryDiskAgain = 1s;     // while it fails
constexpr auto kWorkerDiskRest = 10s;  // without new runs, after a worker's disk was full
constexpr std::size_t kIdDigits = 12;

double unix_seconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

Error about(const fs::path& path, const Error& error) {
  return {error.code, fmt::format("{}: {}", path.string(), error.message)};
}

}  // namespace

struct SchedulerService::State {
  State(ServiceOptions given, StateStore opened, Store place, storage::Artifacts files,
        protocol::SchedulerLink bound)
      : options(std::move(given)),
        store(std::move(opened)),
        files_at(std::move(place)),
        artifacts(std::move(files)),
        link(std::move(bound)),
        telemetry(options.telemetry) {}
  ~State() { remove_endpoint(options.state_directory); }

  ServiceOptions options;
  StateStore store;
  Store files_at;
  storage::Artifacts artifacts;
  std::optional<protocol::SchedulerLink> link;
  std::optional<QueryDesk> desk;
  std::optional<DataDesk> data;
  ChunkDesk chunk_desk;
  TelemetryFeed telemetry;
  ProgressFeed progress;
  SystemClock clock;

  std::optional<Answer> answer;                    // of the last command
  bool look_again = false;                         // the last look made others ready
  std::vector<Reply> replies;                      // held until what they follow from is durable
  std::vector<Json> said;                          // the same for what observers hear
  std::vector<std::string> finished;               // tasks, since the last commit
  std::map<std::string, std::uint64_t> overtaken;  // the same: by task, a step before its newest
  std::string trouble;                             // why nothing can be made durable; empty: it can
  RowFeed rows;
  std::set<std::string> let_go_;  // sessions that were told to leave
  TimePoint last_look{};

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
      else if (event.has_tasks_cancelled())
        for (const std::string& id : event.tasks_cancelled().tasks()) finished.push_back(id);
      else if (event.has_task_checkpointed())
        note_checkpoint(event.task_checkpointed().task());
      else if (event.has_trial_stopped())
        finished.push_back(event.trial_stopped().task());
      else if (event.has_tasks_again())
        for (const std::string& id : event.tasks_again().tasks()) rows.reopen(state(), id);
      log_event(event);
    }
    store.apply(std::move(decision.events), unix_seconds());
    answer = std::move(decision.answer);
    look_again = decision.again;
    for (Reply& reply : decision.replies) replies.push_back(std::move(reply));
    return decision.halt;
  }

  // The one that was the newest stays, the ones before it may go.
  void note_checkpoint(const std::string& id) {
    const journal::Task* task = state().find_task(id);
    if (task != nullptr && task->has_checkpoint()) overtaken[id] = task->checkpoint().step();
  }
  // At the clock and who has room, until nothing more follows from it.
  void look(Tick tick) {
    do {
      (void)hear("", tick);
      tick.stalled = Duration::zero();
    } while (look_again);
  }

  // Makes durable what was decided, then lets the world see it.
  Result<void> commit() {
    SAE_TRY_VOID(store.commit());
    if (link) {
      link->confirm();
      for (Reply& reply : put_together(std::move(replies))) send(reply);
    }
    replies.clear();
    const std::vector<std::string> now_finished = std::move(finished);
    finished.clear();
    for (const auto& [task, step] : std::exchange(overtaken, {}))
      forget_checkpoints_before(files_at.directory, *state().find_task(task), step);
    for (const std::string& task : now_finished) {
      forget_checkpoints(files_at.directory, *state().find_task(task));
      rows.finished(state(), task, [this](const Json& event) { tell(event); });
    }
    for (const Json& event : said) tell(event);
    said.clear();
    if (desk) desk->settle();
    let_go();
    return {};
  }

  // Of workers that were drained and have nothing left to do.
  void let_go() {
    if (!link || !options.stays) return;
    protocol::Reject drained;
    drained.set_code("drained");
    drained.set_text("it was drained");
    for (const std::string& session : state().meta().draining()) {
      const auto worker = state().workers().find(session);
      if (worker == state().workers().end() || worker->second.lost || worker->second.awaited ||
          !worker->second.runs.empty() || !let_go_.insert(session).second)
        continue;
      (void)link->send(session, MessageType::kReject, drained, false);
    }
  }

  // What the decision does not know.
  void complete(const std::string& peer, protocol::Welcome& welcome) {
    welcome.set_last_seq_received(link->last_received(peer));
    welcome.set_store_directory(files_at.directory.string());
    welcome.set_store_token(files_at.token);
    if (data) welcome.set_data_endpoint(data->announced());
    chunk_desk.complete(welcome, state(), peer);
  }
  void send(Reply& reply) {
    if (auto* welcome = std::get_if<protocol::Welcome>(&reply.body)) complete(reply.peer, *welcome);
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

  void tell(const Json& event) {
    if (desk) desk->note(event);
    if (options.observer) options.observer(event);
  }

  // ---- files -----------------------------------------------------------------------------------

  bool are_there(const protocol::TaskResult& result) const {
    if (result.outcome() == protocol::OUTCOME_AT_RUNG &&
        !is_there(files_at.directory, result.checkpoint()))
      return false;
    for (const auto& artifact : result.artifacts()) {
      const auto digest = storage::parse_sha256(artifact.sha256());
      if (!digest || !artifacts.contains(*digest)) return false;
    }
    return true;
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
        return hear_checkpointed(heard);
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
    scheduler::complete(hello, heard.address);
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

  // The one before stands while the store does not hold what is named.
  std::optional<Error> hear_checkpointed(const protocol::HeardMessage& heard) {
    protocol::Checkpointed body;
    if (!protocol::parse_body(heard.body, body)) return std::nullopt;
    if (is_there(files_at.directory, body)) return hear(heard.peer, std::move(body));
    log::warn("checkpoint.not_there task={} path={}", body.task(), body.checkpoint().path());
    return std::nullopt;
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

  // ---- beginning and end -----------------------------------------------------------------------

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
    bye.set_reason(options.stays ? "the scheduler stops; another will come" : "the scheduler ends");
    for (const auto& [session, worker] : state().workers())
      (void)link->send(session, MessageType::kBye, bye, false);
    link.reset();  // in the thread that used it; the last words have a moment to leave
    desk.reset();
  }

  // ---- those who ask ---------------------------------------------------------------------------

  Result<Json> grant(const protocol::HeardQuery& query) {
    if (query.verb == "submit") return grant_submission(query.payload);
    if (query.verb == "backup") {
      SAE_TRY(const fs::path to, next_backup(options.state_directory));
      SAE_TRY_VOID(store.backup(to));
      return Json{{"schema", 1}, {"backup", to.string()}};
    }
    SAE_TRY(Heard wanted, to_command(state(), query.verb, query.body));
    (void)hear("", std::move(wanted));
    SAE_CHECK(answer.has_value(), "no answer to {}", query.verb);
    if (answer->error) return fail(*answer->error);
    answer->details["schema"] = 1;
    return std::move(answer->details);
  }

  Result<Json> grant_submission(const std::string& payload) {
    SAE_TRY(Submission submission, parse_submission(payload));
    const std::string name = submission.sweep.name();
    const std::size_t tasks = submission.tasks.size();
    const std::size_t known = submit(std::move(submission));
    return Json{{"schema", 1},
                {"sweep", name},
                {"tasks", tasks},
                {"known_tasks", known},
                {"summary", sweep_summary(state(), state().sweeps().at(name))}};
  }

  // How many of its tasks were there before.
  std::size_t submit(Submission submission) {
    std::size_t known = 0;
    for (const journal::TaskSpec& spec : submission.tasks) {
      const journal::Task* task = state().find_task(spec.id());
      if (task == nullptr) continue;
      ++known;
      if (task->has_succeeded() && !are_there(task->result())) submission.lost.insert(spec.id());
    }
    if (data)
      for (const journal::TaskSpec& spec : submission.tasks) data->add(spec);
    const std::string name = submission.sweep.name();
    (void)hear("", std::move(submission));
    rows.index(state(), name);
    // A sweep of which everything is there already has ended.
    (void)hear("", Tick{.may_place = false});
    return known;
  }

  void answer_questions() {
    if (desk)
      desk->answer({state(), options.state_directory, files_at.directory, clock.now(), trouble});
  }

  // ---- the loop --------------------------------------------------------------------------------

  void hear_everybody(std::optional<Error>& halt) {
    const auto grant_it = [this](const protocol::HeardQuery& query) -> Result<Json> {
      SAE_TRY(Json details, grant(query));
      (void)hear("", WishGranted{query.key, details});
      return details;
    };
    const std::vector<void*> others = desk ? desk->handles() : std::vector<void*>();
    for (const protocol::HeardMessage& heard : link->poll(kLongestPoll, others)) {
      if (desk && heard.type == MessageType::kQuery)
        desk->hear(heard, state(), trouble, grant_it);
      else if (auto problem = hear_worker(heard))
        halt = std::move(problem);
    }
    if (desk) desk->hear(state(), trouble, grant_it);
  }

  // How late we were to look.
  Duration stall_until(TimePoint now) {
    const Duration late = now - last_look - kLongestPoll;
    last_look = now;
    return late > kStall ? late : Duration::zero();
  }

  // One that stays: a failing disk is waited for, and so is a worker's.
  Result<bool> serve_on(const std::stop_token& stop) {
    TimePoint try_again{}, place_again{};
    last_look = clock.now();
    while (!stop.stop_requested()) {
      std::optional<Error> halt;
      hear_everybody(halt);
      const TimePoint now = clock.now();
      if (halt) {
        log::error("worker.halted error={}", halt->message);
        place_again = now + kWorkerDiskRest;
      }
      look({.stalled = stall_until(now), .may_place = trouble.empty() && now >= place_again});
      if (trouble.empty() || now >= try_again) {
        const auto committed = commit();
        if (committed && !trouble.empty()) log::warn("journal.written_again");
        if (!committed && trouble.empty())
          log::error("journal.read_only error={}", committed.error().message);
        trouble = committed ? "" : committed.error().message;
        try_again = clock.now() + kTryDiskAgain;
      }
      if (!trouble.empty()) send_what_may_leave();
      answer_questions();
      telemetry.show_if_due(state(), now);
    }
    return is_all_done();
  }

  // Until every sweep is finished; a failing disk ends it.
  Result<bool> serve(const std::stop_token& stop) {
    std::optional<TimePoint> stop_deadline;
    std::optional<Error> halt;
    last_look = clock.now();
    while (true) {
      const auto begin_to_stop = [&] {
        if (stop_deadline) return;
        stop_deadline = clock.now() + kStopPatience;
        hear("", StopAsked{});
      };
      if (stop.stop_requested()) begin_to_stop();
      hear_everybody(halt);
      if (halt) begin_to_stop();

      const TimePoint now = clock.now();
      look({.stalled = stall_until(now), .may_place = !stop_deadline.has_value()});
      if (auto committed = commit(); !committed) {
        if (!halt || halt->code != committed.error().code)
          log::error("journal.not_written error={}", committed.error().message);
        halt = committed.error();
        begin_to_stop();
        send_what_may_leave();
      }
      trouble = halt ? halt->message : "";
      answer_questions();
      telemetry.show_if_due(state(), now);

      if (!halt && is_all_done()) return true;
      if (stop_deadline && (!is_anything_leased() || now >= *stop_deadline)) break;
    }
    if (halt) return fail(*halt);
    return false;
  }

  // While nothing can be made durable, only these may leave: who ends asks for checkpoints, who
  // waits for the disk tells workers that it is there.
  bool may_leave_now(const Reply& reply) const {
    if (!options.stays) return std::holds_alternative<protocol::Control>(reply.body);
    return std::holds_alternative<protocol::HeartbeatAck>(reply.body) ||
           std::holds_alternative<protocol::Welcome>(reply.body);
  }
  void send_what_may_leave() {
    std::vector<Reply> others;
    for (Reply& reply : replies) {
      if (may_leave_now(reply))
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
  SAE_TRY(Store files, open_store(directory, options.store_directory));
  SAE_TRY(storage::Artifacts artifacts, storage::Artifacts::open(files.directory / "artifacts"));
  SAE_TRY(protocol::SchedulerLink link,
          protocol::SchedulerLink::bind(options.endpoint, options.security));
  std::optional<QueryDesk> desk;
  if (!options.client_endpoint.empty()) {
    SAE_TRY(protocol::QueryServer server, protocol::QueryServer::bind(options.client_endpoint));
    desk.emplace(std::move(server));
  }
  std::optional<DataDesk> data;
  if (!options.data_endpoint.empty()) {
    SAE_TRY(DataDesk opened,
            DataDesk::open(options.data_endpoint, options.security, files.directory));
    data.emplace(std::move(opened));
  }
  if (desk && !options.remote_client_endpoint.empty()) {
    SAE_TRY(protocol::QueryServer server,
            protocol::QueryServer::bind(options.remote_client_endpoint, options.security));
    desk->also_at(std::move(server));
  }
  SAE_TRY(ChunkDesk chunk_desk, ChunkDesk::open(options.security));
  auto state = std::make_unique<State>(std::move(options), std::move(*store), std::move(files),
                                       std::move(artifacts), std::move(link));
  state->desk = std::move(desk);
  state->chunk_desk = std::move(chunk_desk);
  if (data) state->data.emplace(std::move(*data));
  if (state->desk)
    state->desk->answer_at_link(
        [&link = *state->link](const std::string& peer, const protocol::QueryReply& piece) {
          (void)link.send(peer, MessageType::kQueryReply, piece, false);
          // Who asks again is another peer.
          if (piece.offset() + piece.piece().size() >= piece.body_bytes()) link.forget(peer);
        });
  (void)state->hear("", ProcessBegins{.adopt = state->options.stays});
  if (auto committed = state->commit(); !committed)
    return fail(about(state->options.state_directory, committed.error()));
  for (const auto& [id, entry] : state->state().tasks()) {
    forget_checkpoints(state->files_at.directory, entry.task);
    if (state->data && !is_finished(entry.task)) state->data->add(entry.task.spec());
  }
  prune_logs(state->files_at.directory);
  // One that stays goes on with every sweep there is; else only what is submitted counts.
  if (state->options.stays)
    for (const auto& [name, sweep] : state->state().sweeps())
      state->rows.index(state->state(), name);
  SchedulerService service(std::move(state));
  SAE_TRY_VOID(write_endpoint(service.state_->options.state_directory,
                              {.workers = service.endpoint(),
                               .clients = service.client_endpoint(),
                               .data = service.data_endpoint(),
                               .pid = ::getpid(),
                               .host = this_host(),
                               .build = service.state_->options.build,
                               .epoch = service.state_->state().meta().epoch()}));
  return service;
}

std::string SchedulerService::endpoint() const { return plain(state_->link->endpoint()); }
std::string SchedulerService::client_endpoint() const {
  return state_->desk ? plain(state_->desk->endpoint()) : "";
}
std::string SchedulerService::data_endpoint() const {
  return state_->data ? plain(state_->data->announced()) : "";
}

Result<void> SchedulerService::submit(const sweeps::SweepPlan& plan) {
  state_->submit(to_submission(plan));
  return state_->commit();
}

Result<bool> SchedulerService::run(const std::stop_token& stop) {
  auto served = state_->options.stays ? state_->serve_on(stop) : state_->serve(stop);
  // What could not be written may be writable now.
  if (state_->store.has_pending())
    if (auto committed = state_->store.commit(); !committed)
      log::error("journal.not_written error={}", committed.error().message);
  state_->telemetry.show(state_->state());
  state_->dismiss_workers();
  return served;
}

Result<SweepResult> SchedulerService::result(const std::string& sweep) const {
  return to_result(state_->state(), sweep, state_->files_at.directory);
}

}  // namespace saesweep::scheduler
