#include "scheduler/service/bench_tasks.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "scheduler/service/bench_cluster.h"
#include "scheduler/service/state_store.h"

namespace saesweep::scheduler {
namespace {

namespace fs = std::filesystem;

constexpr std::uint32_t kSlotsOfAnAgent = 125;
constexpr std::chrono::seconds kPatience{120};

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
  hear("", idle_submission("core", bench.tasks));
  SAE_TRY_VOID(store.commit());
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
  const auto begin = std::chrono::steady_clock::now();
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
        hear(reply.peer, idle_acceptance(run));
        for (const auto& member : run.members()) {
          hear(reply.peer, ResultHeard{idle_result(run, member), true});
          ++done;
        }
      }
      hear(reply.peer, idle_heartbeat(slots.at(reply.peer)));
    }
    SAE_TRY_VOID(store.commit());
    replies.clear();
    if (done == before)
      return fail(
          ErrorCode::kUnavailable, "after {} of {} tasks the core places nothing more: {}", done,
          bench.tasks,
          explain(store.state(), idle_submission("core", done + 1).tasks.back().id(), clock.now())
              .dump());
  }
  return static_cast<double>(bench.tasks) / seconds_since(begin);
}

// As a scheduler that begins anew: from the journal's files to a state that decides.
Result<Json> recover(const fs::path& journal) {
  std::uint64_t bytes = 0;
  for (const auto& file : fs::directory_iterator(journal))
    if (file.is_regular_file()) bytes += file.file_size();
  const auto begin = std::chrono::steady_clock::now();
  SAE_TRY(const StateStore store, StateStore::open(journal, StateStore::Mode::kWrite));
  const double seconds = seconds_since(begin);
  const std::size_t tasks = store.state().tasks().size();
  return Json{{"tasks", tasks},
              {"seconds", seconds},
              {"journal_bytes_per_task",
               static_cast<double>(bytes) / static_cast<double>(std::max<std::size_t>(1, tasks))}};
}

// From submitting a sweep of tasks that take a while to the last answer, over what the slots need.
Result<Json> measure_sleepers(const TasksBench& bench) {
  IdleCluster cluster;
  SAE_TRY_VOID(cluster.start(bench.directory, bench.agents, bench.slots));
  SAE_TRY_VOID(cluster.bring_through(idle_submission("warm-up", bench.slots), kPatience));
  cluster.manners.takes_ms = std::llround(1e3 * bench.task_s);
  const double waves = std::ceil(static_cast<double>(bench.tasks) / bench.slots);
  const double ideal = waves * bench.task_s;
  const auto patience = std::chrono::seconds(60 + std::llround(2 * ideal));
  SAE_TRY(const auto taken,
          cluster.bring_through(idle_submission("sleepers", bench.tasks, true), patience));
  return Json{{"slots", bench.slots},
              {"agents", bench.agents},
              {"tasks", bench.tasks},
              {"task_s", bench.task_s},
              {"submit_s", taken.submit_s},
              {"seconds", taken.whole_s},
              {"over_ideal", taken.whole_s / ideal - 1},
              {"baseline", {{"name", "ideal"}, {"seconds", ideal}}},
              {"ratio", ideal / taken.whole_s}};
}

Result<Json> measure(const TasksBench& bench) {
  IdleCluster cluster;
  SAE_TRY_VOID(cluster.start(bench.directory, bench.agents, bench.slots));
  // Until agents and scheduler know each other.
  SAE_TRY_VOID(cluster.bring_through(idle_submission("warm-up", bench.slots), kPatience));
  std::vector<double> rates, submits, latencies, cores;
  for (unsigned round = 0; round < bench.rounds; ++round) {
    SAE_TRY(const auto taken,
            cluster.bring_through(idle_submission(fmt::format("round-{}", round), bench.tasks),
                                  kPatience));
    rates.push_back(static_cast<double>(bench.tasks) / taken.all_s);
    submits.push_back(taken.submit_s);
  }
  for (unsigned i = 0; i < bench.latencies; ++i) {
    SAE_TRY(const auto taken,
            cluster.bring_through(idle_submission(fmt::format("single-{}", i), 1), kPatience));
    latencies.push_back(1e3 * taken.whole_s);
  }
  cluster.stop();
  SAE_TRY(const Json recovery, recover(cluster.journal()));
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
  return bench.task_s > 0 ? measure_sleepers(bench) : measure(bench);
}

}  // namespace saesweep::scheduler
