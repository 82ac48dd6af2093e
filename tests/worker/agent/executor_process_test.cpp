#include "worker/agent/executor_process.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <optional>
#include <string>

#include "core/files.h"
#include "core/json.h"
#include "tests/support/temp_dir.h"

namespace saesweep::agent {
namespace {

using namespace std::chrono_literals;
using testing::ElementsAre;
using testing::EndsWith;
using testing::HasSubstr;
using testing::IsSubsetOf;
using testing::Not;

class ExecutorProcessTest : public testing::Test {
 protected:
  ExecutorOptions options() const {
    ExecutorOptions options;
    options.program = SAESWEEP_FAKE_TASK;
    options.state_directory = folder_.path();
    options.slot = 3;
    options.memory_events = folder_.path() / "memory.events";
    return options;
  }
  static void send_run(ExecutorProcess& process, const Json& spec) {
    protocol::Envelope envelope;
    envelope.mutable_run()->set_run_id(1);
    auto& member = *envelope.mutable_run()->add_members();
    member.set_task("train:a");
    member.set_fence(1);
    member.set_spec(spec.dump());
    ASSERT_TRUE(process.channel().send(envelope));
  }
  // What it says until its end.
  static ExecutorDeath death_of(ExecutorProcess& process) {
    while (process.channel().receive(1ms)) process.read_output();
    return process.bury();
  }
  ExecutorDeath death_by(const Json& spec) {
    auto process = ExecutorProcess::start(options()).value();
    send_run(process, spec);
    return death_of(process);
  }
  // The summary of a run that only tells of the process.
  static Json about(ExecutorProcess& process) {
    send_run(process, {{"do", "finish"}});
    while (true) {
      const auto heard = process.channel().receive(10s);
      if (!heard || !*heard) break;
      if ((*heard)->envelope.has_result())
        return Json::parse((*heard)->envelope.result().summary());
    }
    ADD_FAILURE() << "no result";
    return {};
  }
  std::string log() const {
    return read_file(folder_.path() / "logs" / "executor-3.log").value_or("no log");
  }

  test::TempDir folder_;
};

TEST_F(ExecutorProcessTest, KnowsWhoAndWhereItIs) {
  auto process = ExecutorProcess::start(options()).value();
  const Json me = about(process);
  EXPECT_EQ(me["pid"], process.pid());
  EXPECT_EQ(me["slot"], 3);
  EXPECT_EQ(me["state"], folder_.path().string());
}

TEST_F(ExecutorProcessTest, HasAGroupOfItsOwnSoThatCtrlCDoesNotReachIt) {
  auto process = ExecutorProcess::start(options()).value();
  EXPECT_EQ(about(process)["group"], process.pid());
}

TEST_F(ExecutorProcessTest, InheritsNoSecretsAndNoFiles) {
  ::setenv("SECRET_TOKEN", "hunter2", 1);
  const int leaky = ::open("/dev/null", O_RDONLY);  // not close-on-exec, as a library might
  auto process = ExecutorProcess::start(options()).value();
  const Json me = about(process);
  ::unsetenv("SECRET_TOKEN");
  ::close(leaky);
  EXPECT_THAT(me["environment"].get<std::vector<std::string>>(),
              IsSubsetOf({"PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "ASAN_OPTIONS",
                          "TSAN_OPTIONS", "UBSAN_OPTIONS", "LSAN_OPTIONS"}));
  EXPECT_THAT(me["descriptors"].get<std::vector<int>>(), ElementsAre(0, 1, 2, 3));
}

TEST_F(ExecutorProcessTest, ACrashIsNamedWithItsLastWords) {
  const auto death =
      death_by({{"do", "signal"}, {"number", SIGABRT}, {"say", "loading\nbad \x01 pointer\n\n"}});
  EXPECT_EQ(death.reason, "killed by SIGABRT; last words: bad   pointer");
  EXPECT_FALSE(death.by_kill);
  EXPECT_FALSE(death.out_of_memory);
}

TEST_F(ExecutorProcessTest, AnExitIsNamed) {
  const auto death = death_by({{"do", "exit"}, {"code", 9}});
  EXPECT_EQ(death.reason, "exit code 9");
  EXPECT_FALSE(death.by_kill);
}

TEST_F(ExecutorProcessTest, AKillFromOutsideIsNobodysFault) {
  const auto death = death_by({{"do", "signal"}, {"number", SIGKILL}});
  EXPECT_EQ(death.reason, "killed by SIGKILL");
  EXPECT_TRUE(death.by_kill);
  EXPECT_FALSE(death.out_of_memory);
}

TEST_F(ExecutorProcessTest, AKillThatTheKernelCountedIsForMemory) {
  std::ofstream(options().memory_events) << "oom 0\noom_kill 0\n";
  const auto death = death_by({{"do", "vanish"}, {"kills", options().memory_events.string()}});
  EXPECT_TRUE(death.out_of_memory);
  EXPECT_FALSE(death.by_kill);
  EXPECT_THAT(death.reason, HasSubstr("out of memory"));
}

TEST_F(ExecutorProcessTest, AKillOfOursSaysWhy) {
  auto process = ExecutorProcess::start(options()).value();
  send_run(process, {{"do", "deaf"}});
  process.kill("it said nothing for 600 s");
  const auto death = death_of(process);
  EXPECT_EQ(death.reason, "killed by its agent: it said nothing for 600 s");
  EXPECT_FALSE(death.by_kill) << "that one is the run's fault";
}

TEST_F(ExecutorProcessTest, EndsWhenItsSocketCloses) {
  auto process = ExecutorProcess::start(options()).value();
  process.hang_up();
  EXPECT_EQ(process.bury().reason, "exit code 0");
}

TEST_F(ExecutorProcessTest, LeavesNoProcessAndNoDescriptorBehind) {
  const auto open_descriptors = [] {
    int count = 0;
    for (int i = 0; i < 1024; ++i) count += ::fcntl(i, F_GETFD) >= 0 ? 1 : 0;
    return count;
  };
  const int before = open_descriptors();
  pid_t pid = -1;
  {
    auto process = ExecutorProcess::start(options()).value();
    pid = process.pid();
    send_run(process, {{"do", "deaf"}});
  }
  EXPECT_EQ(::waitpid(pid, nullptr, WNOHANG), -1);
  EXPECT_EQ(errno, ECHILD);
  EXPECT_EQ(open_descriptors(), before);
}

TEST_F(ExecutorProcessTest, WhatItPrintsIsKeptAcrossProcesses) {
  EXPECT_THAT(death_by({{"do", "exit"}, {"code", 1}, {"say", "first\n"}}).reason,
              EndsWith("first"));
  const auto second = death_by({{"do", "exit"}, {"code", 1}});
  EXPECT_THAT(second.reason, Not(HasSubstr("first"))) << "last words of another";
  death_by({{"do", "exit"}, {"code", 1}, {"say", "third\n"}});
  EXPECT_EQ(log(), "first\nthird\n");
}

TEST_F(ExecutorProcessTest, ALogThatGrowsIsCutInTwo) {
  const std::string line = std::string(99, 'x') + "\n";
  std::string much;
  while (much.size() < ExecutorProcess::kMaxLogBytes * 9 / 10) much += line;
  for (int i = 0; i < 3; ++i) death_by({{"do", "exit"}, {"code", 1}, {"say", much}});
  const auto old = read_file(folder_.path() / "logs" / "executor-3.log.old");
  ASSERT_TRUE(old);
  EXPECT_LE(old->size(), ExecutorProcess::kMaxLogBytes);
  EXPECT_LE(log().size(), ExecutorProcess::kMaxLogBytes);
  EXPECT_THAT(log(), EndsWith(line));
}

TEST_F(ExecutorProcessTest, AProgramThatIsNotThereIsSaidSo) {
  ExecutorOptions wrong = options();
  wrong.program = folder_.path() / "nothing";
  const auto started = ExecutorProcess::start(wrong);
  ASSERT_FALSE(started);
  EXPECT_EQ(started.error().code, ErrorCode::kNotFound);
}

TEST_F(ExecutorProcessTest, AFileThatIsNoProgramDiesWithThatReason) {
  ExecutorOptions wrong = options();
  wrong.program = folder_.path() / "junk";
  std::ofstream(wrong.program) << "\x7f"
                                  "ELF?";
  ::chmod(wrong.program.c_str(), 0700);
  auto process = ExecutorProcess::start(wrong);
  ASSERT_TRUE(process);
  EXPECT_EQ(death_of(*process).reason, "exit code 127; last words: cannot be started: exec failed");
}

}  // namespace
}  // namespace saesweep::agent
