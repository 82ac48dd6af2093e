#include "scheduler/cli/selectors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace saesweep::cli {
namespace {

using testing::HasSubstr;

std::vector<scheduler::SubjectResult> subjects() {
  std::vector<scheduler::SubjectResult> all(4);
  const char* ids[] = {"3fa91c0a77d2", "3fa9ffffffff", "123456789012", "3fa900000000"};
  for (std::size_t i = 0; i < all.size(); ++i) {
    all[i].identity = ids[i] + std::string(52, '0');
    all[i].number = static_cast<std::uint32_t>(10 * i);
  }
  all[3].baseline = true;
  return all;
}

TEST(SelectTrial, TakesANumberAnIdOrAPrefix) {
  EXPECT_EQ(select_trial("10", subjects()).value(), 1u);
  EXPECT_EQ(select_trial("0", subjects()).value(), 0u);
  EXPECT_EQ(select_trial("3fa9ffffffff", subjects()).value(), 1u);
  EXPECT_EQ(select_trial("id:3fa91", subjects()).value(), 0u);
}

TEST(SelectTrial, ReadsTwelveDecimalDigitsAsAnId) {
  EXPECT_EQ(select_trial("123456789012", subjects()).value(), 2u);
}

TEST(SelectTrial, ListsTheTrialsThatAPrefixFitsAndSkipsBaselines) {
  const auto several = select_trial("id:3fa9", subjects());
  ASSERT_FALSE(several);
  EXPECT_EQ(several.error().code, ErrorCode::kInvalidArgument);
  EXPECT_THAT(several.error().message, HasSubstr("3fa91c0a77d2 (0), 3fa9ffffffff (10)"));
  EXPECT_EQ(select_trial("id:3fa90", subjects()).error().code, ErrorCode::kNotFound);
}

TEST(SelectTrial, SaysWhatWouldBeRight) {
  for (const char* wrong : {"", "3fa9", "id:3fa", "id:3FA9", "-1", "first", "1.5"}) {
    const auto refused = select_trial(wrong, subjects());
    ASSERT_FALSE(refused) << wrong;
    EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument) << wrong;
    EXPECT_THAT(refused.error().message, HasSubstr("4")) << wrong;
  }
}

TEST(SelectTrials, TakesRangesAllAndTheLast) {
  using testing::ElementsAre;
  EXPECT_THAT(select_trials({"0-10"}, subjects()).value(), ElementsAre(0, 1));
  EXPECT_THAT(select_trials({"all"}, subjects()).value(), ElementsAre(0, 1, 2));
  EXPECT_THAT(select_trials({"last"}, subjects()).value(), ElementsAre(2));
  EXPECT_THAT(select_trials({"20", "0-10", "id:3fa91"}, subjects()).value(), ElementsAre(2, 0, 1))
      << "each once, in the order of first mention";
  EXPECT_EQ(select_trials({"10-30"}, subjects()).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(select_trials({"10-0"}, subjects()).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(select_trial("all", subjects()).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(select_trials({"last"}, {}).error().code, ErrorCode::kNotFound);
}

TEST(SelectTrial, OfANumberThatIsNotThereIsNotFound) {
  for (const char* absent : {"5", "30", "99999999999"}) {
    const auto none = select_trial(absent, subjects());
    ASSERT_FALSE(none) << absent;
    EXPECT_EQ(none.error().code, ErrorCode::kNotFound) << absent;
    EXPECT_THAT(none.error().message, HasSubstr("3 trials"));
  }
}

}  // namespace
}  // namespace saesweep::cli
