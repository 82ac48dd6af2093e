#include "storage/artifacts.h"

#include <gtest/gtest.h>

#include <fstream>
#include <thread>
#include <vector>

#include "core/files.h"
#include "tests/storage/storage_words.h"
#include "tests/support/temp_dir.h"

namespace saesweep::storage {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

std::size_t files_in(const std::filesystem::path& directory) {
  const std::filesystem::directory_iterator files(directory);
  return static_cast<std::size_t>(std::distance(begin(files), end(files)));
}

struct ArtifactsTest : testing::Test {
  test::TempDir dir;
  std::filesystem::path home = dir.path() / "artifacts";
  Artifacts artifacts = Artifacts::open(home).value();

  std::filesystem::path file_with(std::string_view text) {
    std::ofstream(dir.path() / "file") << text;
    return dir.path() / "file";
  }
};

TEST_F(ArtifactsTest, AnArtifactIsNamedByItsSha256) {
  const auto digest = artifacts.put(bytes_of("abc"));
  ASSERT_TRUE(digest);
  // The test vector of FIPS 180-4.
  EXPECT_EQ(artifacts.path_of(*digest),
            home / "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(read_file(artifacts.path_of(*digest)), "abc");
  EXPECT_TRUE(artifacts.verify(*digest));
}

TEST_F(ArtifactsTest, PuttingTheSameTwiceKeepsTheFirstFile) {
  const auto digest = artifacts.put(bytes_of("abc"));
  const auto written = std::filesystem::last_write_time(artifacts.path_of(*digest));
  EXPECT_EQ(artifacts.put(bytes_of("abc")), *digest);
  EXPECT_EQ(artifacts.move_in(file_with("abc")), *digest);
  EXPECT_EQ(std::filesystem::last_write_time(artifacts.path_of(*digest)), written);
  EXPECT_EQ(files_in(home), 1u);
  EXPECT_FALSE(std::filesystem::exists(dir.path() / "file"));
}

TEST_F(ArtifactsTest, AFileIsMovedIn) {
  const std::string text(3'000'000, 'x');
  const auto digest = artifacts.move_in(file_with(text));
  ASSERT_TRUE(digest);
  EXPECT_EQ(*digest, sha256(text));
  EXPECT_EQ(read_file(artifacts.path_of(*digest)), text);
  EXPECT_FALSE(std::filesystem::exists(dir.path() / "file"));
}

TEST_F(ArtifactsTest, AFileOfAnotherFileSystemIsCopiedIn) {
  const SmallDisk disk(dir.path() / "disk", "size=4m");
  if (!disk.mounted) GTEST_SKIP() << "mounting a tmpfs is not permitted here";
  std::ofstream(disk.path / "file") << "abc";
  const auto digest = artifacts.move_in(disk.path / "file");
  ASSERT_TRUE(digest) << digest.error().message;
  EXPECT_TRUE(artifacts.verify(*digest));
  EXPECT_FALSE(std::filesystem::exists(disk.path / "file"));
  EXPECT_EQ(files_in(home), 1u);
}

TEST_F(ArtifactsTest, AnAbsentFileIsNotFound) {
  EXPECT_EQ(artifacts.move_in(dir.path() / "nothing").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(artifacts.verify(sha256("nothing")).error().code, ErrorCode::kNotFound);
  EXPECT_FALSE(artifacts.contains(sha256("nothing")));
}

TEST_F(ArtifactsTest, ChangedBytesAreCorrupted) {
  const auto digest = artifacts.put(bytes_of("abc"));
  std::ofstream(artifacts.path_of(*digest)) << "abd";
  EXPECT_EQ(artifacts.verify(*digest).error().code, ErrorCode::kCorrupted);
}

TEST_F(ArtifactsTest, AFullDiskLeavesNothingBehind) {
  const SmallDisk disk(dir.path() / "disk", "size=1m");
  if (!disk.mounted) GTEST_SKIP() << "mounting a tmpfs is not permitted here";
  auto small = Artifacts::open(disk.path / "artifacts").value();
  const std::string text(2 << 20, 'x');
  EXPECT_EQ(small.put(bytes_of(text)).error().code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(small.move_in(file_with(text)).error().code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(files_in(disk.path / "artifacts"), 0u);
  EXPECT_TRUE(std::filesystem::exists(dir.path() / "file")) << "the file was lost";
}

TEST_F(ArtifactsTest, WritersOfTheSameArtifactDoNotDisturbEachOther) {
  const std::string text(1 << 20, 'x');
  {
    std::vector<std::jthread> writers;
    for (int i = 0; i < 4; ++i) {
      writers.emplace_back([&] { EXPECT_TRUE(artifacts.put(bytes_of(text))); });
    }
  }
  EXPECT_TRUE(artifacts.verify(sha256(text)));
  EXPECT_EQ(files_in(home), 1u);
}

TEST_F(ArtifactsTest, OldTemporaryFilesAreRemovedAndYoungOnesKept) {
  std::ofstream(home / ".new-1-0") << "old";
  std::ofstream(home / ".new-2-0") << "young";
  std::filesystem::last_write_time(
      home / ".new-1-0", std::filesystem::file_time_type::clock::now() - std::chrono::hours(25));
  ASSERT_TRUE(Artifacts::open(home));
  EXPECT_FALSE(std::filesystem::exists(home / ".new-1-0"));
  EXPECT_TRUE(std::filesystem::exists(home / ".new-2-0"));
}

TEST_F(ArtifactsTest, DigestsAreReadFromTheirHexDigits) {
  EXPECT_EQ(parse_sha256(sha256("abc").hex()), sha256("abc"));
  for (const std::string& wrong : {std::string(), std::string(63, 'a'), std::string(64, 'g'),
                                   std::string(64, 'A'), std::string(65, 'a')}) {
    EXPECT_EQ(parse_sha256(wrong).error().code, ErrorCode::kInvalidArgument) << wrong;
  }
}

}  // namespace
}  // namespace saesweep::storage
