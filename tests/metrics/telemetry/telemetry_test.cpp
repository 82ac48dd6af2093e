#include "metrics/telemetry/telemetry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "core/files.h"
#include "core/result.h"

namespace saesweep::metrics {
namespace {

using testing::HasSubstr;
using testing::Not;

const ProcessIdentity kProcess{
    .component = "run", .version = "0.1.0", .commit = "abc1234", .start_time_s = 1750000000.5};

std::vector<std::string> lines_of(const std::string& page) {
  std::istringstream stream(page);
  std::vector<std::string> lines;
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

TEST(Telemetry, PageIsTheGoldenPage) {
  Telemetry telemetry(kProcess);
  telemetry.set_sweeps(SweepPhase::kRunning, 1);
  telemetry.set_tasks(TaskKind::kTrain, TaskPhase::kRunning, 2);
  telemetry.set_tasks(TaskKind::kEvaluate, TaskPhase::kReady, 7);
  telemetry.count_attempt(TaskKind::kTrain, AttemptOutcome::kDone);
  telemetry.count_attempt(TaskKind::kTrain, AttemptOutcome::kDone);
  telemetry.count_attempt(TaskKind::kTrain, AttemptOutcome::kDiverged);
  telemetry.set_trained_tokens_per_second(12345.5);
  telemetry.observe_agent("w1", {.cache_hits = 10,
                                 .cache_misses = 3,
                                 .cache_bytes = 1 << 20,
                                 .cache_evicted_bytes = 4096,
                                 .cache_corrupt_chunks = 1,
                                 .cache_refused_writes = 2,
                                 .chunks_fetched = 6,
                                 .chunk_bytes_fetched = 6144,
                                 .chunks_served = 5,
                                 .chunk_bytes_served = 5120,
                                 .chunk_fetches_failed = 1,
                                 .executor_restarts = 1,
                                 .trained_tokens = 3'999'744,
                                 .harvested_tokens = 2'000'000,
                                 .training_us = 12'500'000,
                                 .waiting_us = 250'000});
  const auto golden =
      read_file(SAESWEEP_SOURCE_DIR "/tests/metrics/telemetry/golden_metrics_page.txt");
  ASSERT_TRUE(golden) << golden.error().message;
  EXPECT_EQ(telemetry.expose(), *golden);
}

TEST(Telemetry, EverySeriesExistsBeforeAnythingHappens) {
  Telemetry busy(kProcess);
  for (std::size_t i = 0; i < kTaskPhases; ++i)
    busy.set_tasks(TaskKind::kTrainLm, static_cast<TaskPhase>(i), 1);
  busy.count_attempt(TaskKind::kTrainLm, AttemptOutcome::kLost);
  busy.observe_agent("w1", {.cache_hits = 1});
  EXPECT_EQ(lines_of(Telemetry(kProcess).expose()).size(), lines_of(busy.expose()).size());
}

TEST(Telemetry, NamesFollowTheRulesOfThePrometheusLinter) {
  // Source: Prometheus naming practices as `promtool check metrics` applies them.
  std::istringstream page(Telemetry(kProcess).expose());
  std::set<std::string> helped;
  const std::regex name_rule("[a-z][a-z0-9_]*");
  const std::regex not_base_units("(milliseconds|minutes|hours|kilobytes|megabytes|percent)");
  std::size_t families = 0;
  for (std::string hash, keyword, name, rest; page >> hash;) {
    if (hash != "#") {
      std::getline(page, rest);
      continue;
    }
    page >> keyword >> name;
    std::getline(page, rest);
    if (keyword == "HELP") {
      EXPECT_TRUE(helped.insert(name).second) << name << " is there twice";
      EXPECT_GT(rest.size(), 5u) << name;
      continue;
    }
    ++families;
    const bool counter = rest == " counter";
    EXPECT_TRUE(helped.contains(name)) << name << " has no help";
    EXPECT_TRUE(std::regex_match(name, name_rule)) << name;
    EXPECT_FALSE(std::regex_search(name, not_base_units)) << name;
    EXPECT_EQ(name.ends_with("_total"), counter) << name;
    EXPECT_TRUE(name.starts_with("saesweep_") || name == "process_start_time_seconds") << name;
    EXPECT_THAT(name, Not(HasSubstr("counter")));
    EXPECT_THAT(name, Not(HasSubstr("gauge")));
  }
  EXPECT_EQ(families, 23u);
}

TEST(Telemetry, AnAgentThatStartedAgainDoesNotLowerACounter) {
  Telemetry telemetry(kProcess);
  telemetry.observe_agent("w1", {.trained_tokens = 100});
  telemetry.observe_agent("w1", {.trained_tokens = 150});
  telemetry.observe_agent("w1", {.trained_tokens = 30});  // a new process counts from 0
  EXPECT_THAT(telemetry.expose(), HasSubstr("\nsaesweep_trained_tokens_total 180\n"));
}

TEST(Telemetry, HearingTheSameTotalsTwiceCountsThemOnce) {
  Telemetry telemetry(kProcess);
  telemetry.observe_agent("w1", {.cache_hits = 5});
  telemetry.observe_agent("w1", {.cache_hits = 5});
  EXPECT_THAT(telemetry.expose(), HasSubstr("\nsaesweep_cache_hits_total 5\n"));
}

TEST(Telemetry, AForgottenAgentLeavesTheGaugesButNotTheCounters) {
  Telemetry telemetry(kProcess);
  telemetry.observe_agent("w1", {.cache_hits = 5, .cache_bytes = 1000});
  telemetry.observe_agent("w2", {.cache_hits = 7, .cache_bytes = 500});
  EXPECT_THAT(telemetry.expose(), HasSubstr("\nsaesweep_cache_bytes 1500\n"));
  telemetry.forget_agent("w1");
  EXPECT_THAT(telemetry.expose(), HasSubstr("\nsaesweep_cache_bytes 500\n"));
  EXPECT_THAT(telemetry.expose(), HasSubstr("\nsaesweep_workers 1\n"));
  EXPECT_THAT(telemetry.expose(), HasSubstr("\nsaesweep_cache_hits_total 12\n"));
  telemetry.observe_agent("w1", {.cache_hits = 6, .cache_bytes = 1000});  // it was only silent
  EXPECT_THAT(telemetry.expose(), HasSubstr("\nsaesweep_cache_hits_total 13\n"));
}

TEST(Telemetry, ManyThreadsMayCountAndReadAtOnce) {
  Telemetry telemetry(kProcess);
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 4; ++t)
      threads.emplace_back([&telemetry, t] {
        const std::string worker = fmt::format("w{}", t);
        for (std::uint64_t i = 1; i <= 500; ++i) {
          telemetry.count_attempt(TaskKind::kTrain, AttemptOutcome::kRetry);
          telemetry.observe_agent(worker, {.trained_tokens = i});
          if (i % 100 == 0) {
            EXPECT_FALSE(telemetry.expose().empty());
          }
        }
      });
  }
  EXPECT_THAT(telemetry.expose(), HasSubstr("\nsaesweep_trained_tokens_total 2000\n"));
  EXPECT_THAT(telemetry.expose(),
              HasSubstr("saesweep_task_attempts_total{kind=\"train\",outcome=\"retry\"} 2000\n"));
}

}  // namespace
}  // namespace saesweep::metrics
