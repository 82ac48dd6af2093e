#include "storage/bench_cache.h"

#include <gtest/gtest.h>

#include "tests/support/temp_dir.h"

namespace saesweep::storage {
namespace {

TEST(BenchCache, ReportsBothSidesAndLeavesNothingBehind) {
  const test::TempDir dir;
  const auto report = bench_cache({.directory = dir.path() / "bench",
                                   .bytes = 8 << 20,
                                   .chunk_bytes = 256 << 10,
                                   .rounds = 2,
                                   .options = {.min_free_bytes = 0}});
  ASSERT_TRUE(report) << report.error().message;
  for (const char* key : {"write_ratio", "read_ratio", "ratio", "write_MBps", "read_MBps"}) {
    EXPECT_GT(report->at(key).get<double>(), 0) << key;
  }
  const Json& baseline = report->at("baseline");
  EXPECT_TRUE(baseline.at("name").get<std::string>().starts_with("raw file"));
  EXPECT_GT(baseline.at("write_MBps").get<double>(), 0);
  EXPECT_GT(baseline.at("read_MBps").get<double>(), 0);
  EXPECT_EQ(report->at("bytes"), 8 << 20);
  EXPECT_EQ(report->at("chunk_bytes"), 256 << 10);
  EXPECT_TRUE(std::filesystem::is_empty(dir.path() / "bench"));
}

TEST(BenchCache, SizesThatDirectIoCannotDoAreRefused) {
  const test::TempDir dir;
  for (const std::uint32_t chunk_bytes : {0u, 1000u, 1u << 24}) {
    const auto report =
        bench_cache({.directory = dir.path(), .bytes = 1 << 20, .chunk_bytes = chunk_bytes});
    EXPECT_EQ(report.error().code, ErrorCode::kInvalidArgument) << chunk_bytes;
  }
}

}  // namespace
}  // namespace saesweep::storage
