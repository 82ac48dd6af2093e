#include "scheduler/service/bench_cluster.h"

#include <pthread.h>

#include <algorithm>
#include <cmath>
#include <ctime>

#include "core/digest.h"
#include "core/files.h"
#include "core/thread.h"
#include "scheduler/protocol/key_files.h"
#include "scheduler/protocol/running_set.h"
#include "scheduler/service/submission.h"

namespace saesweep::scheduler {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using protocol::MessageType;
using Clock = std::chrono::steady_clock;

constexpr auto kHeartbeatEvery = 1s;
constexpr auto kProgressEvery = 500ms;

}  // namespace

double seconds_since(Clock::time_point from) {
  return std::chrono::duration<double>(Clock::now() - from).count();
}

double at_quantile(std::vector<double> values, double quantile) {
  std::ranges::sort(values);
  const auto last = static_cast<double>(values.size() - 1);
  return values[static_cast<std::size_t>(std::lround(quantile * last))];
}

Submission idle_submission(const std::string& name, std::uint64_t tasks, bool apart) {
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
    task.set_group(apart ? identity.hex() : group);
    task.set_directory("trials/" + identity.short_hex());
    journal::Subject& subject = *submission.sweep.add_subjects();
    subject.set_number(static_cast<std::uint32_t>(i));
    subject.set_identity(identity.hex());
    subject.set_spec(spec);
    subject.set_train_task(task.id());
  }
  return submission;
}

protocol::TaskResult idle_result(const protocol::Run& run, const protocol::Member& member) {
  protocol::TaskResult result;
  result.set_run_id(run.run_id());
  result.set_task(member.task());
  result.set_fence(member.fence());
  result.set_outcome(protocol::OUTCOME_DONE);
  result.set_summary("{}");
  return result;
}

protocol::AssignReply idle_acceptance(const protocol::Run& run) {
  protocol::AssignReply reply;
  reply.set_run_id(run.run_id());
  reply.set_accepted(true);
  return reply;
}

protocol::Heartbeat idle_heartbeat(std::uint32_t free_slots) {
  protocol::Heartbeat beat;
  beat.set_free_slots(free_slots);
  return beat;
}

// ---- answers ------------------------------------------------------------------------------------

void Answers::add(std::uint64_t count) {
  const std::scoped_lock lock(mutex_);
  count_ += count;
  last_ = Clock::now();
  if (count_ >= awaited_) reached_.notify_all();
}

void Answers::expect(std::uint64_t more) {
  const std::scoped_lock lock(mutex_);
  awaited_ = count_ + more;
}

bool Answers::wait(std::chrono::seconds patience) {
  std::unique_lock lock(mutex_);
  return reached_.wait_for(lock, patience, [this] { return count_ >= awaited_; });
}

Clock::time_point Answers::last() const {
  const std::scoped_lock lock(mutex_);
  return last_;
}

// ---- agents -------------------------------------------------------------------------------------

IdleAgent::IdleAgent(std::string name, protocol::WorkerLink link, std::uint32_t slots,
                     Answers& answers, Manners& manners)
    : name_(std::move(name)),
      slots_(slots),
      answers_(answers),
      manners_(manners),
      link_(std::move(link)) {
  thread_ = run_thread("agent", [this](const std::stop_token& stop) { serve(stop); });
}

void IdleAgent::serve(const std::stop_token& stop) {
  introduce();
  Time beat_at{}, progress_at{};
  while (!stop.stop_requested()) {
    auto wait = 50ms;
    // Without credit it is a message that wakes us.
    if (!owed_.empty() && !manners_.holds && has_credit_)
      wait =
          std::clamp(std::chrono::ceil<std::chrono::milliseconds>(owed_.front().due - Clock::now()),
                     0ms, wait);
    const auto polled = link_->poll(wait);
    if (polled.is_connected_anew && epoch_ != 0) introduce();
    std::uint64_t answered = 0;
    for (const auto& heard : polled.heard) {
      if (heard.type != MessageType::kResultAck) {
        hear(heard);
        continue;
      }
      protocol::ResultAck ack;
      if (protocol::parse_body(heard.body, ack))
        answered += 1 + static_cast<std::uint64_t>(ack.more_size());
    }
    const bool has_freed_slots = pay();
    if (answered > 0) answers_.add(answered);
    const Time now = Clock::now();
    if (manners_.tells && now >= progress_at) {
      progress_at = now + kProgressEvery;
      tell_progress();
    }
    if (!has_freed_slots && now < beat_at) continue;
    beat_at = now + kHeartbeatEvery;
    beat();
  }
  link_.reset();
}

void IdleAgent::introduce() {
  protocol::Hello hello;
  hello.set_worker_name(name_);
  hello.set_slots(slots_);
  hello.set_known_epoch(epoch_);
  hello.set_last_seq_received(link_->last_received());
  (void)link_->send(MessageType::kHello, hello, false);
}

void IdleAgent::hear(const protocol::HeardMessage& heard) {
  if (heard.type == MessageType::kAssign) {
    protocol::Assign assign;
    if (protocol::parse_body(heard.body, assign)) take(assign);
  } else if (heard.type == MessageType::kWelcome) {
    protocol::Welcome welcome;
    if (!protocol::parse_body(heard.body, welcome)) return;
    const bool is_another = epoch_ != 0 && welcome.epoch() != epoch_;
    epoch_ = welcome.epoch();
    if (is_another) tell_all_that_runs(epoch_);
  } else if (heard.type == MessageType::kHeartbeatAck) {
    protocol::HeartbeatAck ack;
    if (!protocol::parse_body(heard.body, ack)) return;
    if (ack.epoch() != epoch_ && epoch_ != 0) introduce();
    if (ack.epoch() == epoch_ && ack.want_full_list()) tell_all_that_runs(epoch_);
  }
}

void IdleAgent::tell_all_that_runs(std::uint64_t epoch) {
  protocol::Resync resync;
  resync.set_epoch(epoch);
  for (const Owed& owed : owed_)
    for (int i = 0; i < owed.run.members_size(); ++i) {
      auto& lease = i < owed.answered ? *resync.add_finished() : *resync.add_running();
      lease.set_run_id(owed.run.run_id());
      lease.set_task(owed.run.members(i).task());
      lease.set_fence(owed.run.members(i).fence());
    }
  (void)link_->send(MessageType::kResync, resync, true);
}

void IdleAgent::take(const protocol::Assign& assign) {
  const Time due = Clock::now() + std::chrono::milliseconds(manners_.takes_ms);
  for (const auto& run : assign.runs()) {
    replies_.push_back(idle_acceptance(run));
    for (const auto& member : run.members())
      running_hash_ ^= protocol::lease_hash(member.task(), member.fence());
    running_ += static_cast<std::uint32_t>(run.members_size());
    owed_.push_back({run, due});
    ++manners_.runs_taken;
  }
}

// As far as the scheduler's credit goes. Whether a run ended.
bool IdleAgent::pay() {
  has_credit_ = false;
  while (!replies_.empty()) {
    if (!link_->send(MessageType::kAssignReply, replies_.front(), true)) return false;
    replies_.pop_front();
  }
  const std::size_t before = owed_.size();
  const Time now = Clock::now();
  while (!owed_.empty() && !manners_.holds && owed_.front().due <= now) {
    Owed& owed = owed_.front();
    for (; owed.answered < owed.run.members_size(); ++owed.answered) {
      const protocol::Member& member = owed.run.members(owed.answered);
      if (!link_->send(MessageType::kResult, idle_result(owed.run, member), true))
        return owed_.size() < before;
      running_hash_ ^= protocol::lease_hash(member.task(), member.fence());
      --running_;
    }
    owed_.pop_front();
  }
  has_credit_ = true;
  return owed_.size() < before;
}

void IdleAgent::tell_progress() {
  for (const Owed& owed : owed_) {
    protocol::Progress progress;
    progress.set_run_id(owed.run.run_id());
    progress.set_stage("train");
    progress.set_unit("tokens");
    progress.set_rate(1e5);
    for (const auto& member : owed.run.members()) {
      auto& point = *progress.add_members();
      point.set_task(member.task());
      point.set_fence(member.fence());
      point.set_step(1);
      point.set_steps(2);
      point.set_tokens(4096);
      (*point.mutable_metrics())["fve"] = 0.5;
      (*point.mutable_metrics())["l0"] = 32;
    }
    if (link_->send(MessageType::kProgress, progress, false))
      manners_.points_told += static_cast<std::uint64_t>(progress.members_size());
  }
}

void IdleAgent::beat() {
  const auto taken = static_cast<std::uint32_t>(owed_.size());
  protocol::Heartbeat beat = idle_heartbeat(slots_ > taken ? slots_ - taken : 0);
  beat.set_running(running_);
  beat.set_running_hash(running_hash_);
  (void)link_->send(MessageType::kHeartbeat, beat, false);
}

// ---- the cluster --------------------------------------------------------------------------------

Result<void> IdleCluster::start(const fs::path& directory, std::uint32_t agents,
                                std::uint32_t slots) {
  directory_ = directory;
  const fs::path keys = directory / "keys";
  SAE_TRY_VOID(protocol::init_key_directory(keys, {}));
  SAE_TRY_VOID(begin("tcp://127.0.0.1:*"));
  for (std::uint32_t i = 0; i < agents; ++i) {
    SAE_TRY(protocol::Access access, protocol::read_access(keys / "worker.access"));
    SAE_TRY(protocol::WorkerLink link,
            protocol::WorkerLink::connect(service_->endpoint(),
                                          protocol::client_security(std::move(access))));
    agents_.emplace_back(fmt::format("idle-{}", i), std::move(link),
                         slots / agents + (i < slots % agents ? 1 : 0), answers, manners);
  }
  return {};
}

Result<void> IdleCluster::begin(const std::string& endpoint) {
  ServiceOptions options;
  options.state_directory = directory_ / "state";
  options.endpoint = endpoint;
  options.client_endpoint = "ipc://" + (directory_ / "ask").string();
  SAE_TRY(options.security, protocol::read_server_security(directory_ / "keys"));
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
  return {};
}

void IdleCluster::end() {
  client_.reset();
  if (thread_.joinable()) {
    thread_.request_stop();
    thread_.join();
  }
  service_.reset();
}

Result<void> IdleCluster::restart() {
  const std::string endpoint = service_->endpoint();
  end();
  return begin(endpoint);
}

void IdleCluster::stop() {
  agents_.clear();
  end();
}

Result<Json> IdleCluster::ask(const protocol::QueryClient::Question& question) {
  return client_->ask(question, std::chrono::minutes(2));
}

Result<void> IdleCluster::submit(const std::string& payload) {
  SAE_TRY_VOID(
      ask({.verb = "submit", .key = protocol::QueryClient::new_key(), .payload = payload}));
  return {};
}

Result<IdleCluster::Taken> IdleCluster::bring_through(Submission submission,
                                                      std::chrono::seconds patience) {
  answers.expect(submission.tasks.size());
  const std::string payload = to_payload(std::move(submission));
  const auto begin = Clock::now();
  SAE_TRY_VOID(submit(payload));
  const auto submitted = Clock::now();
  if (!answers.wait(patience))
    return fail(ErrorCode::kUnavailable, "not all tasks were done within {} s", patience.count());
  const auto end = answers.last();
  const auto between = [](Clock::time_point a, Clock::time_point b) {
    return std::max(1e-9, std::chrono::duration<double>(b - a).count());
  };
  return Taken{between(begin, submitted), between(submitted, end), between(begin, end)};
}

Result<double> IdleCluster::scheduler_share(std::chrono::seconds time) {
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

}  // namespace saesweep::scheduler
