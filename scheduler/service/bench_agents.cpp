#include "scheduler/service/bench_agents.h"

#include <chrono>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "scheduler/service/bench_cluster.h"
#include "scheduler/service/state_store.h"
#include "scheduler/service/submission.h"

namespace saesweep::scheduler {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr auto kPatience = 120s;
constexpr auto kLookEvery = 20ms;

template <class Done>
Result<void> wait_until(const Done& done, const char* what) {
  const auto begin = Clock::now();
  while (true) {
    SAE_TRY(const bool is_done, done());
    if (is_done) return {};
    if (Clock::now() - begin > kPatience)
      return fail(ErrorCode::kUnavailable, "{}: not within {} s", what,
                  std::chrono::seconds(kPatience).count());
    std::this_thread::sleep_for(kLookEvery);
  }
}

// Until the scheduler counts all of them as there.
Result<void> wait_for_agents(IdleCluster& cluster, std::uint32_t agents) {
  return wait_until(
      [&]() -> Result<bool> {
        SAE_TRY(const Json status, cluster.ask({.verb = "status"}));
        return status.value("workers", 0u) == agents;
      },
      "not all agents are there");
}

// The share, and how long questions took meanwhile.
Result<Json> look(IdleCluster& cluster, unsigned seconds) {
  auto share = std::async(std::launch::async,
                          [&] { return cluster.scheduler_share(std::chrono::seconds(seconds)); });
  std::vector<double> waits;
  const std::uint64_t before = cluster.manners.points_told;
  const auto begin = Clock::now();
  while (share.wait_for(kLookEvery) != std::future_status::ready) {
    const auto asked = Clock::now();
    SAE_TRY_VOID(cluster.ask({.verb = "status"}));
    waits.push_back(1e3 * seconds_since(asked));
  }
  const double told = static_cast<double>(cluster.manners.points_told - before);
  SAE_TRY(const double used, share.get());
  Json looked{{"points_per_s", told / seconds_since(begin)}, {"scheduler_cpu_share", used}};
  if (!waits.empty())
    looked["ask_ms"] = {{"p50", at_quantile(waits, 0.5)}, {"p99", at_quantile(waits, 0.99)}};
  return looked;
}

}  // namespace

Result<Json> bench_agents(const AgentsBench& bench) {
  if (bench.agents == 0 || bench.members == 0 || bench.seconds == 0)
    return fail(ErrorCode::kInvalidArgument,
                "agents, members and seconds: 1 or more would be right");
  if (bench.agents > bench.slots)
    return fail(ErrorCode::kInvalidArgument, "{} agents share {} slots: each needs one",
                bench.agents, bench.slots);
  IdleCluster cluster;
  SAE_TRY_VOID(cluster.start(bench.directory, bench.agents, bench.slots));
  SAE_TRY_VOID(wait_for_agents(cluster, bench.agents));
  SAE_TRY(const double idle, cluster.scheduler_share(std::chrono::seconds(bench.seconds)));

  cluster.manners.holds = true;
  const std::uint64_t tasks = std::uint64_t{bench.slots} * bench.members;
  cluster.answers.expect(tasks);
  SAE_TRY_VOID(cluster.submit(to_payload(idle_submission("held", tasks))));
  SAE_TRY_VOID(
      wait_until([&]() -> Result<bool> { return cluster.manners.runs_taken >= bench.slots; },
                 "not every slot has a run"));
  cluster.manners.tells = true;
  SAE_TRY(const Json progress, look(cluster, bench.seconds));
  cluster.manners.tells = false;

  SAE_TRY_VOID(cluster.restart());
  const auto begin = Clock::now();
  SAE_TRY_VOID(wait_for_agents(cluster, bench.agents));
  const double back_s = seconds_since(begin);
  cluster.manners.holds = false;
  if (!cluster.answers.wait(kPatience))
    return fail(ErrorCode::kUnavailable, "not all tasks were done within {} s",
                std::chrono::seconds(kPatience).count());
  cluster.stop();
  SAE_TRY(const StateStore store, StateStore::open(cluster.journal(), StateStore::Mode::kReadOnly));
  std::uint64_t anew = 0;
  for (const auto& [id, entry] : store.state().tasks())
    anew += entry.task.attempts_size() > 1 || !entry.task.has_succeeded() ? 1 : 0;
  return Json{{"agents", bench.agents},
              {"slots", bench.slots},
              {"idle", {{"scheduler_cpu_share", idle}}},
              {"progress", progress},
              {"reconnect", {{"seconds", back_s}, {"tasks", tasks}, {"tasks_begun_anew", anew}}}};
}

}  // namespace saesweep::scheduler
