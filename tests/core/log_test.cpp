// The log: levels, who speaks, one line each on stderr.
#include "core/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace saesweep {
namespace {

using testing::HasSubstr;

struct LogTest : testing::Test {
  ~LogTest() override {
    log::set_level(log::Level::kWarn);
    log::set_name("saesweep");
  }
  template <class Act>
  static std::string written_by(Act act) {
    testing::internal::CaptureStderr();
    act();
    return testing::internal::GetCapturedStderr();
  }
};

TEST_F(LogTest, WritesTheEventWithItsFieldsOnOneLine) {
  const std::string text =
      written_by([] { log::warn("lease.expired trial={} worker={}", 7, "w2"); });
  EXPECT_THAT(text, HasSubstr("warning"));
  EXPECT_THAT(text, testing::EndsWith("lease.expired trial=7 worker=w2\n"));
}

TEST_F(LogTest, SaysNothingBelowItsLevel) {
  log::set_level(log::Level::kError);
  EXPECT_EQ(written_by([] { log::warn("quiet"); }), "");
  EXPECT_THAT(written_by([] { log::error("loud"); }), HasSubstr("loud"));
  log::set_level(log::Level::kOff);
  EXPECT_EQ(written_by([] { log::error("silent"); }), "");
}

TEST_F(LogTest, SpeaksOfWarningsAndErrorsUntilToldOtherwise) {
  EXPECT_TRUE(log::enabled(log::Level::kWarn));
  EXPECT_FALSE(log::enabled(log::Level::kInfo));
  log::set_level(log::Level::kDebug);
  EXPECT_TRUE(log::enabled(log::Level::kDebug));
}

TEST_F(LogTest, EveryLineNamesWhoSpeaks) {
  log::set_name("task 2");
  EXPECT_THAT(written_by([] { log::warn("x"); }), HasSubstr(" task 2 x"));
}

TEST_F(LogTest, ANameIsTextAndNotAPattern) {
  log::set_name("host-%v-100%");
  EXPECT_THAT(written_by([] { log::warn("x"); }), HasSubstr(" host-%v-100% x"));
}

TEST_F(LogTest, BracesInAValueAreText) {
  EXPECT_THAT(written_by([] { log::warn("path={}", "{0}/%v"); }), HasSubstr("path={0}/%v"));
}

}  // namespace
}  // namespace saesweep
