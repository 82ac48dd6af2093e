// Files that are whole or absent, and errors that say what to do next.
#include "core/files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/temp_dir.h"

namespace saesweep {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::StartsWith;

std::vector<std::string> names_in(const fs::path& directory) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory))
    names.push_back(entry.path().filename().string());
  return names;
}

struct FilesTest : testing::Test {
  test::TempDir dir;
  fs::path file = dir.path() / "file";
};

TEST_F(FilesTest, WhatIsWrittenIsRead) {
  const std::string bytes("a\0b\xff", 4);
  ASSERT_TRUE(write_file_atomically(file, bytes));
  EXPECT_EQ(read_file(file).value(), bytes);
}

TEST_F(FilesTest, WritingReplacesTheFileAndLeavesNothingElse) {
  ASSERT_TRUE(write_file_atomically(file, std::string(1000, 'a')));
  ASSERT_TRUE(write_file_atomically(file, std::string_view("b")));
  EXPECT_EQ(read_file(file).value(), "b");
  EXPECT_THAT(names_in(dir.path()), testing::ElementsAre("file"));
}

TEST_F(FilesTest, AnEmptyFileIsAFile) {
  ASSERT_TRUE(write_file_atomically(file, std::string_view()));
  EXPECT_EQ(read_file(file).value(), "");
}

TEST_F(FilesTest, AReaderSeesTheOldBytesOrTheNewOnesAndNothingBetween) {
  const std::string old_bytes(1 << 16, 'o');
  const std::string new_bytes(1 << 17, 'n');
  ASSERT_TRUE(write_file_atomically(file, old_bytes));
  std::atomic<bool> done = false;
  std::atomic<int> torn = 0;
  {
    const std::jthread reader([&] {
      do {
        const auto bytes = read_file(file);
        if (!bytes || (*bytes != old_bytes && *bytes != new_bytes)) ++torn;
      } while (!done);
    });
    for (int i = 0; i < 50; ++i)
      EXPECT_TRUE(write_file_atomically(file, i % 2 == 0 ? new_bytes : old_bytes));
    done = true;
  }
  EXPECT_EQ(torn, 0);
}

TEST_F(FilesTest, AWriterKilledAtAnyMomentLeavesTheOldFileOrTheNewOne) {
  const std::string old_bytes(1 << 20, 'o');
  const std::string new_bytes(1 << 20, 'n');
  ASSERT_TRUE(write_file_atomically(file, old_bytes));
  for (int round = 0; round < 20; ++round) {
    int started[2];
    ASSERT_EQ(::pipe(started), 0);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      for (;;) {
        (void)!::write(started[1], "x", 1);
        if (!write_file_atomically(file, new_bytes) || !write_file_atomically(file, old_bytes))
          ::_exit(1);
      }
    }
    char byte = 0;
    ASSERT_EQ(::read(started[0], &byte, 1), 1);
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status));
    ::close(started[0]);
    ::close(started[1]);
    const auto bytes = read_file(file);
    ASSERT_TRUE(bytes);
    EXPECT_TRUE(*bytes == old_bytes || *bytes == new_bytes);
  }
}

TEST_F(FilesTest, AnAbsentFileIsNotFoundByName) {
  const auto bytes = read_file(file);
  ASSERT_FALSE(bytes);
  EXPECT_EQ(bytes.error().code, ErrorCode::kNotFound);
  EXPECT_THAT(bytes.error().message, HasSubstr(file.string()));
}

TEST_F(FilesTest, AFileLongerThanTheLimitIsRefused) {
  ASSERT_TRUE(write_file_atomically(file, std::string_view("12345")));
  EXPECT_EQ(read_file(file, 5).value(), "12345");
  const auto bytes = read_file(file, 4);
  ASSERT_FALSE(bytes);
  EXPECT_EQ(bytes.error().code, ErrorCode::kInvalidArgument);
  EXPECT_THAT(bytes.error().message, HasSubstr("5 bytes, more than 4"));
}

TEST_F(FilesTest, ADirectoryIsNotAFile) {
  EXPECT_EQ(read_file(dir.path()).error().code, ErrorCode::kInvalidArgument);
}

// Opening a pipe would wait for a writer that never comes.
TEST_F(FilesTest, APipeIsRefusedWithoutWaiting) {
  ASSERT_EQ(::mkfifo(file.c_str(), 0600), 0);
  EXPECT_EQ(read_file(file).error().code, ErrorCode::kInvalidArgument);
}

TEST_F(FilesTest, WritingIntoAnAbsentDirectoryIsNotFound) {
  const auto written = write_file_atomically(dir.path() / "absent" / "file", std::string_view("x"));
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().code, ErrorCode::kNotFound);
}

TEST_F(FilesTest, WritingOverADirectoryFailsAndLeavesNoTemporaryFile) {
  ASSERT_TRUE(make_directories(file / "inside"));
  EXPECT_FALSE(write_file_atomically(file, std::string_view("x")));
  EXPECT_THAT(names_in(dir.path()), testing::ElementsAre("file"));
}

TEST_F(FilesTest, DirectoriesAreMadeWithTheirParentsAndTwiceIsFine) {
  const fs::path deep = dir.path() / "a" / "b" / "c";
  ASSERT_TRUE(make_directories(deep));
  ASSERT_TRUE(make_directories(deep));
  EXPECT_TRUE(fs::is_directory(deep));
}

TEST_F(FilesTest, ADirectoryIsNotMadeWhereAFileIs) {
  ASSERT_TRUE(write_file_atomically(file, std::string_view("x")));
  EXPECT_FALSE(make_directories(file / "sub"));
}

TEST_F(FilesTest, APrivateDirectoryIsFreshAndOnlyOurs) {
  const fs::path first = make_private_directory(dir.path(), "run-").value();
  const fs::path second = make_private_directory(dir.path(), "run-").value();
  EXPECT_NE(first, second);
  EXPECT_THAT(first.filename().string(), StartsWith("run-"));
  struct stat info {};
  ASSERT_EQ(::stat(first.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0700u);
}

TEST_F(FilesTest, APrivateDirectoryNeedsAParent) {
  EXPECT_EQ(make_private_directory(dir.path() / "absent", "run-").error().code,
            ErrorCode::kNotFound);
}

TEST(SystemErrorTest, SaysWhatTheCallerDoesNext) {
  EXPECT_EQ(system_error(ENOENT, "x").code, ErrorCode::kNotFound);
  EXPECT_EQ(system_error(ENOSPC, "x").code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(system_error(EDQUOT, "x").code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(system_error(EACCES, "x").code, ErrorCode::kUnavailable);
  EXPECT_EQ(system_error(EROFS, "x").code, ErrorCode::kUnavailable);
  EXPECT_EQ(system_error(EACCES, "open a").message, "open a: Permission denied");
}

// Root passes permission bits, so each of the two ways to be read-only has its own test.
TEST_F(FilesTest, ADirectoryWithoutWritePermissionIsUnavailable) {
  if (::geteuid() == 0) GTEST_SKIP() << "root passes permission bits";
  fs::permissions(dir.path(), fs::perms::owner_read | fs::perms::owner_exec);
  const auto written = write_file_atomically(file, std::string_view("x"));
  fs::permissions(dir.path(), fs::perms::owner_all);
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().code, ErrorCode::kUnavailable);
}

// A tmpfs of our own, unmounted at the end; needs root.
struct SmallDiskTest : testing::Test {
  void SetUp() override {
    if (::mount("none", dir.path().c_str(), "tmpfs", 0, "size=64k") != 0)
      GTEST_SKIP() << "cannot mount a tmpfs: " << std::strerror(errno);
  }
  void TearDown() override { ::umount(dir.path().c_str()); }
  test::TempDir dir;
};

TEST_F(SmallDiskTest, AFullDiskKeepsTheOldFileAndLeavesNoTemporaryOne) {
  const fs::path file = dir.path() / "file";
  ASSERT_TRUE(write_file_atomically(file, std::string_view("old")));
  const auto written = write_file_atomically(file, std::string(1 << 20, 'x'));
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().code, ErrorCode::kResourceExhausted);
  EXPECT_THAT(written.error().message, HasSubstr("No space left"));
  EXPECT_EQ(read_file(file).value(), "old");
  EXPECT_THAT(names_in(dir.path()), testing::ElementsAre("file"));
}

TEST_F(SmallDiskTest, ADiskMountedReadOnlyIsUnavailable) {
  ASSERT_EQ(::mount("none", dir.path().c_str(), "tmpfs", MS_REMOUNT | MS_RDONLY, "size=64k"), 0);
  const auto written = write_file_atomically(dir.path() / "file", std::string_view("x"));
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(make_directories(dir.path() / "sub").error().code, ErrorCode::kUnavailable);
}

}  // namespace
}  // namespace saesweep
