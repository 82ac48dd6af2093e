#include "worker/agent/store.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "tests/support/temp_dir.h"
#include "worker/agent/own_store.h"
#include "worker/agent/result_files.h"

namespace saesweep::agent {
namespace {

namespace fs = std::filesystem;

const std::string kFoundAt = "tcp://login.example.org:7077";
const std::string kFirst = "trials/0123456789ab/f1/step-1";

struct StoreTest : testing::Test {
  test::TempDir dir;
  protocol::Welcome welcome() const {
    protocol::Welcome made;
    made.set_store_directory((dir.path() / "store").string());
    made.set_store_token("token");
    made.set_data_endpoint("tcp://*:7079");
    return made;
  }
  void share() const { write("store/store-token", "token"); }
  void write(const std::string& name, const std::string& text) const {
    fs::create_directories((dir.path() / name).parent_path());
    std::ofstream(dir.path() / name) << text;
  }
};

TEST_F(StoreTest, WhereTheTokenLiesIsTheSchedulersStore) {
  share();
  const auto found = find_store(welcome(), {}, kFoundAt);
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_EQ(found->directory, dir.path() / "store");
  EXPECT_FALSE(found->travels);
}

TEST_F(StoreTest, OutOfSightObjectsTravelToTheHostWhereTheSchedulerIs) {
  auto found = find_store(welcome(), {}, kFoundAt);
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_TRUE(found->travels);
  EXPECT_TRUE(found->directory.empty());
  EXPECT_EQ(found->data_endpoint, "tcp://login.example.org:7079");
  protocol::Welcome exact = welcome();
  exact.set_data_endpoint("tcp://10.0.0.7:7079");
  found = find_store(exact, *found, kFoundAt);
  EXPECT_EQ(found->data_endpoint, "tcp://10.0.0.7:7079") << "announced anew";
}

TEST_F(StoreTest, AStoreThatComesIntoSightLaterIsNotTaken) {
  const auto before = find_store(welcome(), {}, kFoundAt);
  share();
  EXPECT_TRUE(find_store(welcome(), *before, kFoundAt)->travels);
}

TEST_F(StoreTest, AnotherStoreAndOneThatVanishedAreRefused) {
  share();
  const auto before = find_store(welcome(), {}, kFoundAt);
  fs::remove(dir.path() / "store/store-token");
  EXPECT_FALSE(find_store(welcome(), *before, kFoundAt));
  share();
  protocol::Welcome other = welcome();
  other.set_store_token("another");
  EXPECT_FALSE(find_store(other, *before, kFoundAt));
  protocol::Welcome portless = welcome();
  portless.clear_data_endpoint();
  portless.set_store_token("another");
  EXPECT_FALSE(find_store(portless, {}, kFoundAt));
}

TEST_F(StoreTest, AHeldCheckpointOutlivesItsRemoval) {
  const OwnStore own = OwnStore::open(dir.path(), "token").value();
  write(kFirst + "/state", "bytes");
  ASSERT_TRUE(own.hold(kFirst));
  ASSERT_TRUE(own.hold(kFirst)) << "twice is once";
  fs::remove_all(dir.path() / kFirst);
  EXPECT_EQ(own.outgoing().read(kFirst, "state", 0, 10).value(), "bytes");
  EXPECT_EQ(own.hold(kFirst).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(own.hold("../x").error().code, ErrorCode::kInvalidArgument);
  own.let_go(kFirst);
  EXPECT_TRUE(fs::is_empty(dir.path() / "outgoing/trials"));
}

TEST_F(StoreTest, WhatWasUsedLongestAgoGoesFirstAndWhatIsInUseStays) {
  const OwnStore own = OwnStore::open(dir.path(), "token").value();
  const auto now = fs::file_time_type::clock::now();
  for (int i = 0; i < 3; ++i) {
    const std::string trial = "trials/00000000000" + std::to_string(i);
    write(trial + "/f1/step-1/state", std::string(100, 'x'));
    fs::last_write_time(dir.path() / trial, now - std::chrono::hours(10 - i));
  }
  own.trim({"trials/000000000000"}, 100);
  EXPECT_TRUE(fs::exists(dir.path() / "trials/000000000000"));
  EXPECT_FALSE(fs::exists(dir.path() / "trials/000000000001"));
  EXPECT_TRUE(fs::exists(dir.path() / "trials/000000000002"));
}

TEST_F(StoreTest, ResultsAreKeptUntilTheyAreForgotten) {
  const ResultFiles files = ResultFiles::open(dir.path() / "outbox").value();
  protocol::TaskResult result;
  result.set_task("train:a");
  result.set_fence(3);
  result.set_summary("{}");
  ASSERT_TRUE(files.keep(result));
  ASSERT_TRUE(files.keep(result));
  ASSERT_EQ(files.all().size(), 1u);
  EXPECT_EQ(files.all()[0].summary(), "{}");
  files.forget("train:a", 4);
  EXPECT_EQ(files.all().size(), 1u);
  files.forget("train:a", 3);
  EXPECT_TRUE(files.all().empty());
}

TEST_F(StoreTest, AResultFileThatIsDamagedIsRemoved) {
  const ResultFiles files = ResultFiles::open(dir.path() / "outbox").value();
  protocol::TaskResult result;
  result.set_task("train:a");
  ASSERT_TRUE(files.keep(result));
  const fs::path file = fs::directory_iterator(dir.path() / "outbox")->path();
  std::ofstream(file, std::ios::binary | std::ios::app) << "x";
  EXPECT_TRUE(files.all().empty());
  EXPECT_FALSE(fs::exists(file));
}

}  // namespace
}  // namespace saesweep::agent
