// What the command line asks of the operating system: other programs, signals, the machine.
#include "scheduler/cli/machine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scheduler/cli/child_process.h"
#include "scheduler/cli/interrupts.h"
#include "tests/support/temp_dir.h"

namespace saesweep::cli {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

TEST(RunChild, GivesItsOutputAndHowItEnded) {
  const auto done = run_child("/bin/sh", {"-c", "echo \"$1\"; exit 3", "sh", "a b"});
  ASSERT_TRUE(done) << done.error().message;
  EXPECT_EQ(done->output, "a b\n");
  EXPECT_EQ(done->exit_code, 3);
}

TEST(RunChild, TellsASignalFromAnExit) {
  EXPECT_EQ(run_child("/bin/sh", {"-c", "kill -ABRT $$"})->exit_code, 128 + SIGABRT);
}

TEST(RunChild, TakesMoreOutputThanAPipeHolds) {
  const auto done = run_child("/bin/sh", {"-c", "head -c 1000000 /dev/zero"});
  EXPECT_EQ(done->output.size(), 1'000'000u);
}

TEST(RunChild, ThatIsNotThereIsNotFound) {
  EXPECT_EQ(run_child("/nowhere/program", {}).error().code, ErrorCode::kNotFound);
}

TEST(RunChild, IsKilledWhenPatienceRunsOut) {
  const auto killed = run_child("/bin/sh", {"-c", "exec sleep 1000"}, {.patience = 20ms});
  ASSERT_FALSE(killed);
  EXPECT_EQ(killed.error().code, ErrorCode::kUnavailable);
}

TEST(FindTaskProgram, SaysHowToGetOneThatIsMissing) {
  test::TempDir dir;
  const std::string path = (dir.path() / "task").string();
  EXPECT_THAT(find_task_program(path).error().message, HasSubstr(path));
  EXPECT_FALSE(find_task_program(dir.path().string()));  // a folder is no program
  EXPECT_EQ(find_task_program("/bin/sh").value(), "/bin/sh");
  EXPECT_EQ(default_task_program().filename(), "saesweep-task");
}

TEST(Interrupts, AreHeardByTheOneThatAsksAndNotInheritedByChildren) {
  sigset_t before;
  ::pthread_sigmask(SIG_SETMASK, nullptr, &before);
  {
    Interrupts interrupts = Interrupts::take().value();
    EXPECT_EQ(interrupts.wait(0ms), 0);
    ::kill(::getpid(), SIGTERM);
    EXPECT_EQ(interrupts.wait(1s), SIGTERM);
    EXPECT_EQ(interrupts.wait(0ms), 0);
    ::kill(::getpid(), SIGINT);
    EXPECT_EQ(interrupts.wait(1s), SIGINT);
    EXPECT_EQ(run_child("/bin/sh", {"-c", "kill -TERM $$"})->exit_code, 128 + SIGTERM);
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  ::signal(SIGPIPE, SIG_DFL);
}

TEST(Machine, HasCoresMemoryAndADisk) {
  test::TempDir dir;
  EXPECT_GE(usable_cores(), 1u);
  EXPECT_GT(usable_memory_bytes(), std::uint64_t{1} << 20);
  EXPECT_GT(measure_disk_rate(dir.path(), 1 << 20).value(), 0);
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
  EXPECT_FALSE(measure_disk_rate(dir.path() / "absent", 1 << 20));
  EXPECT_EQ(describe_host()["cores"], usable_cores());
}

TEST(FindProgram, LooksThroughTheDirectoriesInOrder) {
  test::TempDir dir;
  EXPECT_EQ(find_program("sh", "/nowhere:/bin:/usr/bin"), "/bin/sh");
  EXPECT_EQ(find_program("sh", dir.path().string()), std::nullopt);
  EXPECT_EQ(find_program("sh", ""), std::nullopt);
}

}  // namespace
}  // namespace saesweep::cli
