#include "scheduler/service/bench_tasks.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <ctime>
#include <deque>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/digest.h"
#include "core/files.h"
#include "core/thread.h"
#include "scheduler/decisions/decide.h"
#include "scheduler/protocol/key_files.h"
#include "scheduler/protocol/link.h"
#include "scheduler/protocol/query.h"
#include "scheduler/service/scheduler_service.h"
#include "scheduler/service/state_store.h"
#include "scheduler/service/submission.h"

namespace saesweep::scheduler {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using protocol::MessageType;
using Clock = std::chrono::steady_clock;

constexpr std::uint32_t kSlotsOfAnAgent = 125;
constexpr auto kHeartbeatEvery = 1s;
constexpr auto kPatience = 120s;

double seconds_since(Clock::time_point from) {
  return std::chrono::duration<double>(Clock::now() - from).count();
}

double at_quantile(std::vector<double> values, double quantile) {
  std::ranges::sort(values);
  const auto last = static_cast<double>(values.size() - 1);
  return values[static_cast<std::size_t>(std::lround(quantile * last))];
}

// A sweep of trials that are to be trained and not scored.
Submission submission_of(const std::string& name, std::uint64_t tasks) {
  Submission submission;
  submission.sweep.set_name(name);
  submission.sweep.set_effective_yaml("name: " + name + "\n");
  const std::string group = sha256(std::string("group")).hex();
  for (std::uint64_t i = 0; i < tasks; ++i) {
    const Sha256 identity = sha256(fmt::format("{} {}", name, i));
    const std::string spec = fmt::format(R"({{"n":{}}})", i);
    journal::TaskSpec& task = submission.tasks.emplace_back();
    task.set_id("train:" + identity.hex());
    task.set_kind(protocol::TASK_KIND_TRAIN);
    task.set_spec(spec);
    task.set_group(group);
    task.set_directory("trials/" + identity.short_hex());
    journal::Subject& subject = *submission.sweep.add_subjects();
    subject.set_number(static_cast<std::uint32_t>(i));
    subject.set_identity(identity.hex());
    subject.set_spec(spec);
    subject.set_train_task(task.id());
  }
  return submission;
}

protocol::TaskResult result_of(const protocol::Run& run, const protocol::Member& member) {
  protocol::TaskResult result;
  result.set_run_id(run.run_id());
  result.set_task(member.task());
  result.set_fence(member.fence());
  result.set_outcome(protocol::OUTCOME_DONE);
  result.set_summary("{}");
  return result;
}

protocol::AssignReply accepted(const protocol::Run& run) {
  protocol::AssignReply reply;
  reply.set_run_id(run.run_id());
  reply.set_accepted(true);
  return reply;
}

protocol::Heartbeat with_free_slots(std::uint32_t free) {
  protocol::Heartbeat beat;
  beat.set_free_slots(free);
  return beat;
}

// ---- what is measured ---------------------------------------------------------------------------

// Answers to results, of all agents together.
class Answers {
 public:
  void add(std::uint64_t count) {
    const std::scoped_lock lock(mutex_);
    if (!first_) first_ = Clock::now();
    count_ += count;
    last_ = Clock::now();
    if (count_ >= awaited_) reached_.notify_all();
  }
  void expect(std::uint64_t more) {
    const std::scoped_lock lock(mutex_);
    first_.reset();
    awaited_ = count_ + more;
  }
  bool wait() {
    std::unique_lock lock(mutex_);
    return reached_.wait_for(lock, kPatience, [this] { return count_ >= awaited_; });
  }
  Clock::time_point last() const {
    const std::scoped_lock lock(mutex_);
    return last_;
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable reached_;
  std::uint64_t count_ = 0, awaited_ = 0;
  std::optional<Clock::time_point> first_;
  Clock::time_point last_;
};

class IdleAgent {
 public:
  IdleAgent(std::string name, protocol::WorkerLink link, std::uint32_t slots, Answers& answers)
      : name_(std::move(name)), slots_(slots), answers_(answers), link_(std::move(link)) {
    thread_ = run_thread("agent", [this](const std::stop_token& stop) { serve(stop); });
  }

 private:
  void serve(const std::stop_token& stop) {
    protocol::Hello hello;
    hello.set_worker_name(name_);
    hello.set_slots(slots_);
    (void)link_->send(MessageType::kHello, hello, false);
    Clock::time_point beat_at{};
    while (!stop.stop_requested()) {
      std::uint64_t answered = 0;
      for (const auto& heard : link_->poll(50ms).heard) {
        if (heard.type == MessageType::kResultAck) answered += count_answers(heard.body);
        if (heard.type == MessageType::kAssign) take(heard.body);
      }
      const bool has_freed_slots = pay();
      if (answered > 0) answers_.add(answered);
      if (!has_freed_slots && Clock::now() < beat_at) continue;
      beat_at = Clock::now() + kHeartbeatEvery;
      (void)link_->send(MessageType::kHeartbeat, with_free_slots(slots_ - running_), false);
    }
    link_.reset();
  }
  static std::uint64_t count_answers(const std::string& body) {
    protocol::ResultAck ack;
    return protocol::parse_body(body, ack) ? 1 + static_cast<std::uint64_t>(ack.more_size()) : 0;
  }
  void take(const std::string& body) {
    protocol::Assign assign;
    if (!protocol::parse_body(body, assign)) return;
    for (const auto& run : assign.runs()) {
      owed_.push_back({.reply = accepted(run)});
      for (const auto& member : run.members()) owed_.push_back({.result = result_of(run, member)});
      owed_.back().is_last_of_run = true;
      ++running_;
    }
  }
  // As far as the scheduler's credit goes. Whether a run ended.
  bool pay() {
    const std::uint32_t before = running_;
    while (!owed_.empty()) {
      const Owed& next = owed_.front();
      const auto sent = next.reply ? link_->send(MessageType::kAssignReply, *next.reply, true)
                                   : link_->send(MessageType::kResult, *next.result, true);
      if (!sent) break;
      running_ -= next.is_last_of_run;
      owed_.pop_front();
    }
    return running_ < before;
  }

  std::string name_;
  std::uint32_t slots_;
  Answers& answers_;
  std::optional<protocol::WorkerLink> link_;
  struct Owed {
    std::optional<protocol::AssignReply> reply = {};
    std::optional<protocol::TaskResult> result = {};
    bool is_last_of_run = false;
  };
  std::deque<Owed> owed_;
  std::uint32_t running_ = 0;  // runs whose results are owed
  std::jthread thread_;        // last: it uses all of the above
};

// A scheduler with its agents, over encrypted sockets.
class Cluster {
 public:
  Result<void> start(const TasksBench& bench) {
    const fs::path keys = bench.directory / "keys";
    SAE_TRY_VOID(protocol::init_key_directory(keys, {}));
    ServiceOptions options;
    options.state_directory = bench.directory / "state";
    options.endpoint = "tcp://127.0.0.1:*";
    options.client_endpoint = "ipc://" + (bench.directory / "ask").string();
    SAE_TRY(options.security, protocol::read_server_security(keys));
    options.stays = true;
    options.build = "bench";
    SAE_TRY(SchedulerService service, SchedulerService::open(std::move(options)));
    service_.emplace(std::move(service));
    SAE_TRY(protocol::QueryClient client,
            protocol::QueryClient::connect(service_->client_endpoint()));
    client_.emplace(std::move(client));
    thread_ = run_thread("scheduler", [this](const std::stop_token& stop) {
      if (auto served = service_->run(stop); !served) log::error("{}", served.error().message);
    });
    for (std::uint32_t i = 0; i < bench.agents; ++i) {
      SAE_TRY(protocol::Access access, protocol::read_access(keys / "worker.access"));
      SAE_TRY(protocol::WorkerLink link,
              protocol::WorkerLink::connect(service_->endpoint(),
                                            protocol::client_security(std::move(access))));
      const std::uint32_t slots = bench.slots / bench.agents + (i < bench.slots % bench.agents);
      agents_.emplace_back(fmt::format("idle-{}", i), std::move(link), slots, answers_);
    }
    return {};
  }
  // Processor time that the scheduler's thread takes a second while nobody has anything to do but
  // to say that it lives, beats and answers included.
  Result<double> idle_share(std::chrono::seconds time) {
    clockid_t clock{};
    if (const int problem = ::pthread_getcpuclockid(thread_.native_handle(), &clock); problem != 0)
      return fail(system_error(problem, "the clock of the scheduler's thread"));
    const auto used = [&] {
      timespec spent{};
      ::clock_gettime(clock, &spent);
      return static_cast<double>(spent.tv_sec) + 1e-9 * static_cast<double>(spent.tv_nsec);
    };
    const double before = used();
    const auto begin = Clock::now();
    std::this_thread::sleep_for(time);
    return (used() - before) / seconds_since(begin);
  }

  void stop() {
    agents_.clear();
    client_.reset();
    if (thread_.joinable()) {
      thread_.request_stop();
      thread_.join();
    }
    service_.reset();
  }
  ~Cluster() { stop(); }

  struct Taken {
    double submit_s = 0;  // until the scheduler has it for good
    double all_s = 0;     // from then until the last answer
    double whole_s = 0;
  };
  Result<Taken> bring_through(const Submission& submission) {
    const std::string payload = to_payload(submission);
    answers_.expect(submission.tasks.size());
    const auto begin = Clock::now();
    SAE_TRY_VOID(client_->ask(
        {.verb = "submit", .key = protocol::QueryClient::new_key(), .payload = payload},
        kPatience));
    const auto submitted = Clock::now();
    if (!answers_.wait())
      return fail(ErrorCode::kUnavailable, "not all tasks were done within {} s",
                  std::chrono::seconds(kPatience).count());
    const auto end = answers_.last();
    const auto between = [](Clock::time_point a, Clock::time_point b) {
      return std::max(1e-9, std::chrono::duration<double>(b - a).count());
    };
    return Taken{between(begin, submitted), between(submitted, end), between(begin, end)};
  }

 private:
  Answers answers_;
  std::optional<SchedulerService> service_;
  std::optional<protocol::QueryClient> client_;
  std::jthread thread_;
  std::list<IdleAgent> agents_;  // addresses stay
};

// The same decisions and commits by one thread, without sockets.
Result<double> tasks_per_second_of_the_core(const TasksBench& bench, const fs::path& directory) {
  SAE_TRY(StateStore store, StateStore::open(directory, StateStore::Mode::kWrite));
  const SystemClock clock;
  std::vector<Reply> replies;
  const auto hear = [&](const std::string& peer, Heard heard) {
    Decision decision = decide(store.state(), {peer, std::move(heard)}, clock.now());
    store.apply(std::move(decision.events), 0);
    for (Reply& reply : decision.replies) replies.push_back(std::move(reply));
  };
  hear("", ProcessBegins{.adopt = true});
  hear("", submission_of("core", bench.tasks));
  std::map<std::string, std::uint32_t> slots;  // by session
  for (std::uint32_t i = 0; i < bench.agents; ++i) {
    protocol::Hello hello;
    hello.set_worker_name(fmt::format("idle-{}", i));
    hello.set_slots(bench.slots / bench.agents + (i < bench.slots % bench.agents));
    const std::string session = fmt::format("session{}", i);
    slots[session] = hello.slots();
    hear(session, std::move(hello));
  }
  SAE_TRY_VOID(store.commit());
  replies.clear();
  const auto begin = Clock::now();
  std::uint64_t done = 0;
  while (done < bench.tasks) {
    hear("", Tick{});
    SAE_TRY_VOID(store.commit());
    const std::vector<Reply> out = std::exchange(replies, {});
    const std::uint64_t before = done;
    for (const Reply& reply : out) {
      const auto* assign = std::get_if<protocol::Assign>(&reply.body);
      if (assign == nullptr) continue;
      for (const auto& run : assign->runs()) {
        hear(reply.peer, accepted(run));
        for (const auto& member : run.members()) {
          hear(reply.peer, ResultHeard{result_of(run, member), true});
          ++done;
        }
      }
      hear(reply.peer, with_free_slots(slots.at(reply.peer)));
    }
    SAE_TRY_VOID(store.commit());
    replies.clear();
    if (done == before)
      return fail(
          ErrorCode::kUnavailable, "after {} of {} tasks the core places nothing more: {}", done,
          bench.tasks,
          explain(store.state(), submission_of("core", done + 1).tasks.back().id(), clock.now())
              .dump());
  }
  return static_cast<double>(bench.tasks) / seconds_since(begin);
}

// As a scheduler that begins anew: from the journal's files to a state that decides.
Result<Json> recover(const fs::path& journal) {
  std::uint64_t bytes = 0;
  for (const auto& file : fs::directory_iterator(journal))
    if (file.is_regular_file()) bytes += file.file_size();
  const auto begin = Clock::now();
  SAE_TRY(const StateStore store, StateStore::open(journal, StateStore::Mode::kWrite));
  const double seconds = seconds_since(begin);
  const std::size_t tasks = store.state().tasks().size();
  return Json{{"tasks", tasks},
              {"seconds", seconds},
              {"journal_bytes_per_task",
               static_cast<double>(bytes) / static_cast<double>(std::max<std::size_t>(1, tasks))}};
}

Result<Json> measure(const TasksBench& bench) {
  Cluster cluster;
  SAE_TRY_VOID(cluster.start(bench));
  // Until agents and scheduler know each other.
  SAE_TRY_VOID(cluster.bring_through(submission_of("warm-up", bench.slots)));
  std::vector<double> rates, submits, latencies, cores;
  for (unsigned round = 0; round < bench.rounds; ++round) {
    SAE_TRY(const auto taken,
            cluster.bring_through(submission_of(fmt::format("round-{}", round), bench.tasks)));
    rates.push_back(static_cast<double>(bench.tasks) / taken.all_s);
    submits.push_back(taken.submit_s);
  }
  for (unsigned i = 0; i < bench.latencies; ++i) {
    SAE_TRY(const auto taken, cluster.bring_through(submission_of(fmt::format("single-{}", i), 1)));
    latencies.push_back(1e3 * taken.whole_s);
  }
  double idle = 0;
  if (bench.idle_s > 0) {
    SAE_TRY(idle, cluster.idle_share(std::chrono::seconds(bench.idle_s)));
  }
  cluster.stop();
  SAE_TRY(const Json recovery, recover(bench.directory / "state" / "journal"));
  for (unsigned round = 0; round < bench.rounds; ++round) {
    SAE_TRY(const double rate,
            tasks_per_second_of_the_core(bench, bench.directory / fmt::format("core-{}", round)));
    cores.push_back(rate);
  }
  const double rate = at_quantile(rates, 0.5), core = at_quantile(cores, 0.5);
  Json measured{{"tasks_per_s", rate},
                {"tasks_per_s_all", rates},
                {"slots", bench.slots},
                {"agents", bench.agents},
                {"tasks", bench.tasks},
                {"rounds", bench.rounds},
                {"submit_s", at_quantile(submits, 0.5)},
                {"baseline", {{"name", "core"}, {"tasks_per_s", core}}},
                {"ratio", rate / core}};
  measured["recovery"] = recovery;
  if (bench.idle_s > 0)
    measured["idle"] = {{"seconds", bench.idle_s}, {"scheduler_cpu_share", idle}};
  if (!latencies.empty())
    measured["latency_ms"] = {{"p50", at_quantile(latencies, 0.5)},
                              {"p99", at_quantile(latencies, 0.99)}};
  return measured;
}

}  // namespace

Result<Json> bench_tasks(const TasksBench& given) {
  TasksBench bench = given;
  if (bench.slots == 0 || bench.tasks == 0 || bench.rounds == 0)
    return fail(ErrorCode::kInvalidArgument, "slots, tasks and rounds: 1 or more would be right");
  if (bench.agents == 0)
    bench.agents =
        std::max<std::uint32_t>(1, (bench.slots + kSlotsOfAnAgent - 1) / kSlotsOfAnAgent);
  if (bench.agents > bench.slots)
    return fail(ErrorCode::kInvalidArgument, "{} agents share {} slots: each needs one",
                bench.agents, bench.slots);
  return measure(bench);
}

}  // namespace saesweep::scheduler
