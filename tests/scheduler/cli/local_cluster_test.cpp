#include "scheduler/cli/local_cluster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <chrono>
#include <filesystem>
#include <optional>

#include "tests/support/temp_dir.h"

namespace saesweep::cli {
namespace {

namespace fs = std::filesystem;

fs::path folder_of(const SocketFolder& sockets) {
  return fs::path(sockets.endpoint().substr(std::string("ipc://").size())).parent_path();
}

void make_old(const fs::path& path) {
  fs::last_write_time(path, fs::file_time_type::clock::now() - std::chrono::hours(1));
}

TEST(SocketFolder, IsPrivateShortAndGoneAtTheEnd) {
  fs::path path;
  {
    const SocketFolder sockets = SocketFolder::make().value();
    path = folder_of(sockets);
    struct stat info {};
    ASSERT_EQ(::stat(path.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0700u);
    EXPECT_LE(sockets.endpoint().size(), std::string("ipc://").size() + 107);
  }
  EXPECT_FALSE(fs::exists(path));
}

TEST(SocketFolder, RemovesWhatAKilledProcessLeftAndNothingElse) {
  test::TempDir dir;
  const SocketFolder living = SocketFolder::make(dir.path()).value();
  make_old(folder_of(living));
  const fs::path left = dir.path() / "saesweep-run-left";
  const fs::path young = dir.path() / "saesweep-run-young";
  const fs::path strange = dir.path() / "something";
  for (const fs::path& path : {left, young, strange}) fs::create_directory(path);
  make_old(left);
  make_old(strange);
  const SocketFolder next = SocketFolder::make(dir.path()).value();
  EXPECT_FALSE(fs::exists(left));
  EXPECT_TRUE(fs::exists(young));
  EXPECT_TRUE(fs::exists(strange));
  EXPECT_TRUE(fs::exists(folder_of(living)));
  EXPECT_NE(folder_of(living), folder_of(next));
}

TEST(SocketFolder, ThatCannotBeMadeIsAnError) {
  test::TempDir dir;
  EXPECT_FALSE(SocketFolder::make(dir.path() / "absent"));
}

}  // namespace
}  // namespace saesweep::cli
