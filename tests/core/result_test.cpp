// Result, SAE_TRY and SAE_CHECK: an error reaches the caller as it was made.
#include "core/result.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "core/check.h"

namespace saesweep {
namespace {

Result<int> half(int value) {
  if (value % 2 != 0) return fail(ErrorCode::kInvalidArgument, "{} is odd", value);
  return value / 2;
}

Result<void> must_be_even(int value) {
  SAE_TRY([[maybe_unused]] const int ignored, half(value));
  return {};
}

Result<std::string> quarter(int value) {
  SAE_TRY_VOID(must_be_even(value));
  SAE_TRY(const int first, half(value));
  SAE_TRY(const int second, half(first));
  return std::to_string(second);
}

Result<std::unique_ptr<int>> boxed(int value) {
  SAE_TRY(int halved, half(value));
  SAE_TRY(auto box, Result<std::unique_ptr<int>>(std::make_unique<int>(halved)));
  return box;
}

TEST(ResultTest, TryPassesTheValueOn) {
  EXPECT_EQ(quarter(12).value(), "3");
  EXPECT_EQ(*boxed(4).value(), 2);
}

TEST(ResultTest, TryReturnsTheErrorWithItsCodeAndValues) {
  const auto error = quarter(6).error();
  EXPECT_EQ(error.code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(error.message, "3 is odd");
  EXPECT_EQ(quarter(7).error().message, "7 is odd");
}

TEST(ErrorTest, EveryCodeHasAName) {
  EXPECT_EQ(to_string(ErrorCode::kInvalidArgument), "invalid argument");
  EXPECT_EQ(to_string(ErrorCode::kNotFound), "not found");
  EXPECT_EQ(to_string(ErrorCode::kUnavailable), "unavailable");
  EXPECT_EQ(to_string(ErrorCode::kResourceExhausted), "resource exhausted");
  EXPECT_EQ(to_string(ErrorCode::kStaleLease), "stale lease");
  EXPECT_EQ(to_string(ErrorCode::kCorrupted), "corrupted");
  EXPECT_EQ(to_string(ErrorCode::kDiverged), "diverged");
}

TEST(CheckDeathTest, AFailedCheckNamesConditionPlaceAndValues) {
  const int rows = 3;
  EXPECT_DEATH(SAE_CHECK(rows == 4, "{} rows", rows),
               "result_test.cpp:[0-9]+: check failed: rows == 4: 3 rows");
}

TEST(CheckTest, AMetCheckEvaluatesItsConditionOnceAndNotItsValues) {
  int evaluated = 0;
  SAE_CHECK(++evaluated > 0, "{}", ++evaluated);
  EXPECT_EQ(evaluated, 1);
}

}  // namespace
}  // namespace saesweep
