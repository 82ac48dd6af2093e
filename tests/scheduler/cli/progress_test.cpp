#include "scheduler/cli/progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "scheduler/cli/people.h"

namespace saesweep::cli {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

Json started(int trials, int done = 0) {
  return {{"event", "sweep.started"}, {"trials", trials}, {"done", done}};
}
Json stage(const char* name, double done, double total) {
  return {{"event", "stage.progress"},
          {"stage", name},
          {"done", done},
          {"total", total},
          {"unit", "tokens"}};
}
Json with_rate(Json event, double rate) {
  event["rate"] = rate;
  return event;
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (std::size_t from = 0; from < text.size();) {
    const std::size_t end = text.find('\n', from);
    lines.push_back(text.substr(from, end - from));
    from = end + 1;
  }
  return lines;
}

TEST(TerminalProgress, ShowsBarRateAndTimeLeftOfEachStage) {
  Progress progress(ProgressStyle::kTerminal);
  progress.hear(started(16), 0);
  progress.hear(with_rate(stage("train", 2.12e6, 4e6), 61'200), 1);
  progress.hear({{"event", "trial.finished"}, {"trial", "3fa91c0a77d2"}}, 2);
  const auto lines = lines_of(progress.tick(65, 80));
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_THAT(lines[0], AllOf(StartsWith("train  [==="), HasSubstr(" 53%  2.12M/4.00M tokens"),
                              HasSubstr("61.2k/s  ETA 31s")));
  EXPECT_EQ(lines[1], "trials 1/16 done  1m05s");
}

TEST(TerminalProgress, SaysHowMuchOfItsTimeAStageWaits) {
  Progress progress(ProgressStyle::kTerminal), log(ProgressStyle::kLog);
  Json event = with_rate(stage("train", 1e6, 4e6), 50'000);
  event["waiting"] = 0.043;
  for (Progress* each : {&progress, &log}) {
    each->hear(started(16), 0);
    each->hear(event, 1);
  }
  EXPECT_THAT(progress.tick(2, 100), HasSubstr("50.0k/s  ETA 1m00s  4% waiting"));
  EXPECT_THAT(log.tick(2, 100), HasSubstr("at 50.0k/s, ETA 1m00s, 4% waiting"));
  progress.hear(stage("train", 2e6, 4e6), 3);
  EXPECT_THAT(progress.tick(4, 100), Not(HasSubstr("waiting")));
}

TEST(TerminalProgress, NeverIsWiderThanTheTerminal) {
  for (const std::size_t width : {20u, 31u, 40u, 57u, 80u, 300u}) {
    Progress progress(ProgressStyle::kTerminal);
    progress.hear(started(100'000), 0);
    for (const char* name : {"harvest", "a stage with a very long name indeed"})
      progress.hear(with_rate(stage(name, 123'456'789, 987'654'321), 12'345), 1);
    for (const std::string& line : lines_of(progress.tick(2, width)))
      EXPECT_LT(line.size(), std::max<std::size_t>(width, 21)) << width << ": " << line;
  }
}

TEST(TerminalProgress, RedrawsInPlace) {
  Progress progress(ProgressStyle::kTerminal);
  progress.hear(started(4), 0);
  progress.hear(stage("train", 10, 100), 0);
  EXPECT_THAT(progress.tick(1, 80), Not(HasSubstr("\x1b[")));
  progress.hear(stage("evaluate", 1, 100), 1);
  EXPECT_THAT(progress.tick(2, 80), StartsWith("\x1b[2A\r\x1b[J"));
  EXPECT_THAT(progress.tick(3, 80), StartsWith("\x1b[3A\r\x1b[J"));
  EXPECT_EQ(progress.finish(), "\x1b[3A\r\x1b[J");
  EXPECT_EQ(progress.finish(), "");
}

TEST(TerminalProgress, IsNotRedrawnMoreThanFiveTimesASecond) {
  Progress progress(ProgressStyle::kTerminal);
  progress.hear(started(4), 0);
  EXPECT_NE(progress.tick(1, 80), "");
  EXPECT_EQ(progress.tick(1.1, 80), "");
  EXPECT_NE(progress.tick(1.25, 80), "");
}

TEST(TerminalProgress, PutsWhatIsSaidAboveTheBars) {
  Progress progress(ProgressStyle::kTerminal);
  progress.hear(started(4), 0);
  progress.tick(1, 80);
  EXPECT_EQ(progress.say("trial 3 failed: why"), "\x1b[1A\r\x1b[Jtrial 3 failed: why\n");
  EXPECT_EQ(progress.tick(1.01, 80), "trials 0/4 done  1s\n");
}

TEST(TerminalProgress, MeasuresARateThatNobodyReports) {
  Progress progress(ProgressStyle::kTerminal);
  progress.hear(started(4), 0);
  for (int second = 0; second <= 10; ++second)
    progress.hear(stage("train", 1000.0 * second, 20'000), second);
  EXPECT_THAT(progress.tick(10, 80), HasSubstr("1.00k/s  ETA 10s"));
}

TEST(TerminalProgress, LetsNoControlCharacterThrough) {
  Progress progress(ProgressStyle::kTerminal);
  progress.hear(started(4), 0);
  progress.hear(stage("tr\x1b[2Jain", 1, 2), 0);
  EXPECT_THAT(progress.tick(1, 80), Not(HasSubstr("\x1b[2J")));
}

TEST(LogProgress, IsAPlainLineAtMostEveryTenSeconds) {
  Progress progress(ProgressStyle::kLog);
  progress.hear(started(16, 3), 0);
  EXPECT_EQ(progress.tick(0.1, 80), "");  // nothing has moved yet
  std::string log;
  for (int second = 1; second <= 60; ++second) {
    progress.hear(with_rate(stage("train", 1000.0 * second, 100'000), 1000), second);
    log += progress.tick(second, 80);
  }
  const auto lines = lines_of(log);
  EXPECT_EQ(lines.size(), 6u);
  EXPECT_EQ(lines[1], "train 11.0k/100k tokens at 1.00k/s, ETA 1m29s; trials 3/16 done  11s");
  EXPECT_THAT(log, Not(HasSubstr("\x1b")));
}

TEST(LogProgress, SaysNothingWhileNothingMoves) {
  Progress progress(ProgressStyle::kLog);
  progress.hear(started(16), 0);
  progress.hear(stage("train", 5, 100), 1);
  EXPECT_NE(progress.tick(1, 80), "");
  EXPECT_EQ(progress.tick(30, 80), "");
}

TEST(NoProgress, WritesOnlyWhatIsSaid) {
  Progress progress(ProgressStyle::kNone);
  progress.hear(started(16), 0);
  progress.hear(stage("train", 5, 100), 1);
  EXPECT_EQ(progress.tick(100, 80), "");
  EXPECT_EQ(progress.say("hello"), "hello\n");
}

TEST(Progress, CountsTrialsThatEndAndThoseThatFail) {
  Progress progress(ProgressStyle::kTerminal);
  progress.hear(started(8, 2), 0);
  progress.hear({{"event", "trial.finished"}}, 1);
  progress.hear({{"event", "trial.failed"}}, 1);
  EXPECT_THAT(progress.tick(1, 80), HasSubstr("trials 3/8 done, 1 failed"));
}

TEST(People, ReadNumbersSizesAndTimes) {
  EXPECT_EQ(count_text(0), "0");
  EXPECT_EQ(count_text(12.34), "12.3");
  EXPECT_EQ(count_text(999.4), "999");
  EXPECT_EQ(count_text(12'345), "12.3k");
  EXPECT_EQ(count_text(999'600), "1.00M");
  EXPECT_EQ(count_text(4e6), "4.00M");
  EXPECT_EQ(bytes_text(512), "512 B");
  EXPECT_EQ(bytes_text(3.25 * 1024 * 1024), "3.2 MiB");
  EXPECT_EQ(bytes_text(41.0 * 1024 * 1024 * 1024), "41 GiB");
  EXPECT_EQ(duration_text(8), "8s");
  EXPECT_EQ(duration_text(65), "1m05s");
  EXPECT_EQ(duration_text(7380), "2h03m");
  EXPECT_EQ(duration_text(3 * 86'400 + 4 * 3600), "3d04h");
  EXPECT_EQ(duration_text(-1), "?");
  EXPECT_EQ(rfc3339(0), "1970-01-01T00:00:00Z");
  EXPECT_EQ(rfc3339(1'772'000'000.9), "2026-02-25T06:13:20Z");
}

}  // namespace
}  // namespace saesweep::cli
