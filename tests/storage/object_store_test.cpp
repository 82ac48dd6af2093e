#include "storage/object_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <string>
#include <vector>

#include "core/files.h"
#include "tests/support/temp_dir.h"

namespace saesweep::storage {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::IsEmpty;

const std::string kCheckpoint = "trials/0123456789ab/f3/step-200";

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}
ObjectFile file_of(std::string name, std::string_view text) {
  return {std::move(name), text.size(), sha256(text)};
}
std::string artifact_of(std::string_view text) { return "artifacts/" + sha256(text).hex(); }

struct ObjectStoreTest : testing::Test {
  test::TempDir dir;
  ObjectStore store = ObjectStore::open(dir.path()).value();

  bool keeps(const std::string& name, const std::vector<ObjectFile>& files) {
    return store.keep("up", name, files).has_value();
  }
  ErrorCode refusal(const std::string& name, const std::vector<ObjectFile>& files) {
    const auto kept = store.keep("up", name, files);
    return kept ? ErrorCode{} : kept.error().code;
  }
  void put(const std::string& file, std::string_view text, std::uint64_t offset = 0) {
    ASSERT_TRUE(store.write("up", file, offset, bytes_of(text)));
  }
  std::size_t parts() const {
    return static_cast<std::size_t>(
        std::distance(fs::directory_iterator(dir.path() / "incoming"), fs::directory_iterator()));
  }
};

TEST_F(ObjectStoreTest, AnArtifactComesBackAsItWasSentInAnyOrder) {
  put("content", "world", 6);
  put("content", "hello ");
  const std::string name = artifact_of("hello world");
  EXPECT_FALSE(store.contains(name));
  ASSERT_TRUE(keeps(name, {file_of("content", "hello world")}));
  EXPECT_TRUE(store.contains(name));
  EXPECT_THAT(store.list(name).value(), ElementsAre(file_of("content", "hello world")));
  EXPECT_EQ(store.read(name, "content", 6, 3).value(), "wor");
  EXPECT_EQ(store.read(name, "content", 6, 300).value(), "world");
  EXPECT_EQ(store.read(name, "content", 99, 3).value(), "");
  EXPECT_EQ(parts(), 0u);
}

TEST_F(ObjectStoreTest, ACheckpointIsAFolderOfTheFilesThatWereNamed) {
  put("state.safetensors", "tensors");
  put("state.json", "{}");
  put("other", "not asked for");
  put("empty", "");
  ASSERT_TRUE(keeps(kCheckpoint, {file_of("state.safetensors", "tensors"),
                                  file_of("state.json", "{}"), file_of("empty", "")}));
  EXPECT_THAT(store.list(kCheckpoint).value(),
              ElementsAre(file_of("empty", ""), file_of("state.json", "{}"),
                          file_of("state.safetensors", "tensors")));
  EXPECT_EQ(read_file(dir.path() / kCheckpoint / "state.json").value(), "{}");
}

TEST_F(ObjectStoreTest, KeepingTwiceIsKeepingOnceAndTheFirstStays) {
  put("state.json", "first");
  ASSERT_TRUE(keeps(kCheckpoint, {file_of("state.json", "first")}));
  ASSERT_TRUE(keeps(kCheckpoint, {file_of("state.json", "first")})) << "the reply was lost";
  put("state.json", "second");
  ASSERT_TRUE(keeps(kCheckpoint, {file_of("state.json", "second")}));
  EXPECT_EQ(store.read(kCheckpoint, "state.json", 0, 99).value(), "first");
  EXPECT_EQ(parts(), 0u);
}

TEST_F(ObjectStoreTest, WhatDidNotArriveWholeIsNotKept) {
  put("content", "hell");
  EXPECT_EQ(refusal(artifact_of("hello"), {file_of("content", "hello")}), ErrorCode::kCorrupted);
  EXPECT_EQ(parts(), 0u) << "it is sent again from the start";
  EXPECT_EQ(refusal(artifact_of("hello"), {file_of("content", "hello")}), ErrorCode::kNotFound);
  put("a", "1");
  EXPECT_EQ(refusal(kCheckpoint, {file_of("a", "1"), file_of("b", "2")}), ErrorCode::kNotFound);
  EXPECT_FALSE(store.contains(kCheckpoint));
  put("content", "other");
  EXPECT_EQ(refusal(artifact_of("hello"), {file_of("content", "other")}),
            ErrorCode::kInvalidArgument)
      << "an artifact is what its name says";
  EXPECT_EQ(refusal(kCheckpoint, {}), ErrorCode::kInvalidArgument);
}

TEST_F(ObjectStoreTest, AnArtifactThatChangedOnDiskIsCorrupted) {
  put("content", "hello");
  const std::string name = artifact_of("hello");
  ASSERT_TRUE(keeps(name, {file_of("content", "hello")}));
  ASSERT_TRUE(write_file_atomically(dir.path() / name, std::string_view("hullo")));
  EXPECT_EQ(store.list(name).error().code, ErrorCode::kCorrupted);
}

TEST_F(ObjectStoreTest, NamesThatLeadElsewhereAreRefused) {
  const std::string digest(64, 'a');
  for (const std::string& name :
       {std::string(), std::string("artifacts/"), "artifacts/../" + digest,
        "artifacts/" + digest + "/", "artifacts/" + std::string(64, 'A'),
        std::string("trials/0123456789ab"), std::string("trials/0123456789ab/f3"),
        std::string("trials/0123456789ab/f3/step-"), std::string("trials/0123456789ab/f03/step-1"),
        std::string("trials/../f3/step-1"), std::string("trials/0123456789ab/../step-1"),
        std::string("/trials/0123456789ab/f3/step-1"),
        std::string("trials/0123456789ab/f3/step-1/x"), std::string("journal/CURRENT")}) {
    EXPECT_FALSE(is_object_name(name)) << name;
    EXPECT_EQ(store.list(name).error().code, ErrorCode::kInvalidArgument) << name;
    EXPECT_EQ(refusal(name, {file_of("content", "")}), ErrorCode::kInvalidArgument) << name;
  }
  for (const char* file : {"", ".", "..", "../x", "a/b", ".hidden", "a\nb"}) {
    EXPECT_FALSE(is_object_file_name(file)) << file;
    EXPECT_EQ(store.write("up", file, 0, {}).error().code, ErrorCode::kInvalidArgument) << file;
    EXPECT_EQ(store.read(kCheckpoint, file, 0, 1).error().code, ErrorCode::kInvalidArgument);
  }
  for (const char* upload : {"", "..", "a.b", "a/b"})
    EXPECT_EQ(store.write(upload, "x", 0, {}).error().code, ErrorCode::kInvalidArgument) << upload;
  EXPECT_EQ(store.write("up", "x", ~std::uint64_t{0}, bytes_of("y")).error().code,
            ErrorCode::kInvalidArgument);
}

TEST_F(ObjectStoreTest, ALinkIsNotFollowed) {
  ASSERT_TRUE(write_file_atomically(dir.path() / "secret", std::string_view("mine")));
  fs::create_directories(dir.path() / kCheckpoint);
  fs::create_symlink(dir.path() / "secret", dir.path() / kCheckpoint / "link");
  EXPECT_FALSE(store.read(kCheckpoint, "link", 0, 9));
}

TEST_F(ObjectStoreTest, PartsThatNobodyFinishedAreRemovedAfterADay) {
  put("content", "hello");
  EXPECT_EQ(parts(), 1u);
  ASSERT_TRUE(ObjectStore::open(dir.path()));
  EXPECT_EQ(parts(), 1u);
  fs::last_write_time(dir.path() / "incoming" / "up",
                      fs::file_time_type::clock::now() - std::chrono::hours(25));
  ASSERT_TRUE(ObjectStore::open(dir.path()));
  EXPECT_EQ(parts(), 0u);
}

}  // namespace
}  // namespace saesweep::storage
