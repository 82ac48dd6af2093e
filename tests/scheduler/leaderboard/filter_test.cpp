#include "scheduler/leaderboard/filter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/scheduler/leaderboard/example_board.h"

namespace saesweep::scheduler {
namespace {

using testing::HasSubstr;

struct LeaderboardFilter : testing::Test {
  const std::vector<LeaderboardRow> rows = test::example_board().rows;

  std::size_t count(const std::string& text) const {
    const auto filter = parse_filter(text);
    if (!filter) ADD_FAILURE() << filter.error().message;
    return static_cast<std::size_t>(
        std::ranges::count_if(rows, [&](const auto& row) { return matches(*filter, row); }));
  }
  template <class Predicate>
  std::size_t count_if(Predicate predicate) const {
    return static_cast<std::size_t>(std::ranges::count_if(rows, predicate));
  }
  static std::string problem(const std::string& text) {
    const auto filter = parse_filter(text);
    return filter ? "" : filter.error().message;
  }
};

TEST_F(LeaderboardFilter, ComparesScoresParametersAndProperties) {
  EXPECT_EQ(count("core.l0<50"), count_if([](const auto& row) {
              const Score* l0 = find_score(row, "core.l0");
              return l0 != nullptr && l0->value < 50;
            }));
  EXPECT_EQ(count("arch=topk"), count_if([](const auto& row) { return row.arch == "topk"; }));
  EXPECT_EQ(count("d_sae>=1k"), count_if([](const auto& row) {
              return row.params.contains("d_sae") && row.params["d_sae"] >= 1000;
            }));
  EXPECT_EQ(count("front=true"), count_if([](const auto& row) { return row.front; }));
  EXPECT_EQ(count("state != done"), 2u);
  EXPECT_EQ(count("number == 9"), 1u);
  EXPECT_EQ(count("baseline = \"linear_probe\""), 1u);
  EXPECT_EQ(count("tokens > 3.9M"), 46u);
}

TEST_F(LeaderboardFilter, ConditionsAddUp) {
  const std::size_t expected = count_if([](const auto& row) {
    return (row.arch == "topk" || row.arch == "batchtopk") && row.is_trial() &&
           row.state == RowState::kDone && row.params["k"] == 16;
  });
  ASSERT_GT(expected, 0u);
  EXPECT_EQ(count("arch in (topk, batchtopk) and k=16 and state=done and number>=0"), expected);
  EXPECT_EQ(count(" params.k=16,arch in(batchtopk,topk)&&state=done , number >= 0 "), expected);
}

TEST_F(LeaderboardFilter, AShortNameIsTheLongOne) {
  EXPECT_EQ(parse_filter("l0<50")->conditions, parse_filter("core.l0<50")->conditions);
  EXPECT_EQ(parse_sort("coverage")->field, "board.cov_occurring");
}

TEST_F(LeaderboardFilter, ARowWithoutTheFieldFailsAllButNotEqual) {
  EXPECT_EQ(count("k=16") + count("k!=16"), rows.size());
  EXPECT_EQ(count("k<=32") + count("k>32"),
            count_if([](const auto& row) { return row.params.contains("k"); }));
}

TEST_F(LeaderboardFilter, ErrorsSayWhereAndWhatWouldBeRight) {
  EXPECT_EQ(problem(""), "--filter, character 1: empty; expected a condition like core.l0<50");
  EXPECT_EQ(problem("core.l0"),
            "--filter, character 8: no comparison; expected one of = != < <= > >= in");
  EXPECT_EQ(problem("core.l0<"),
            "--filter, character 9: no value; expected a number, a word or text in double quotes");
  EXPECT_EQ(problem("l0<low"),
            "--filter, character 4: \"low\" is no number; expected one like 50, 0.9 or 4k");
  EXPECT_THAT(problem("arch=topk k=3"), HasSubstr("expected \"and\" or the end"));
  EXPECT_THAT(problem("arch in topk"), HasSubstr("expected one like (topk, batchtopk)"));
  EXPECT_THAT(problem("arch in (topk"), HasSubstr("the list does not end"));
  EXPECT_THAT(problem("model=\"x"), HasSubstr("closing"));
  EXPECT_THAT(problem("=3"), HasSubstr("no field"));
}

TEST_F(LeaderboardFilter, AnUnknownFieldNamesTheNearest) {
  const auto wrong = check_fields(*parse_filter("core.lo<50"), rows);
  ASSERT_FALSE(wrong);
  EXPECT_EQ(wrong.error().message, "no row has \"core.lo\"; the nearest is \"core.l0\"");
  EXPECT_TRUE(check_fields(*parse_filter("l0<50 and d_sae=512 and arch=x"), rows));
}

TEST_F(LeaderboardFilter, AnyBytesGiveAFilterOrAnError) {
  const std::string alphabet = "ab.<>=!()\",& \n\xff\x00kin1-and";
  for (std::uint64_t seed = 0; seed < 5000; ++seed) {
    Rng rng(seed, "test.filter");
    std::string text(rng.below(24), ' ');
    for (char& c : text) c = alphabet[rng.below(static_cast<std::uint32_t>(alphabet.size()))];
    if (const auto filter = parse_filter(text)) {
      EXPECT_FALSE(filter->conditions.empty()) << text;
      matches(*filter, rows.front());
    } else {
      EXPECT_EQ(filter.error().code, ErrorCode::kInvalidArgument);
    }
    (void)parse_sort(text);
  }
  std::string many = "a=1";
  for (int i = 0; i < 100; ++i) many += ",a=1";
  EXPECT_THAT(problem(many), HasSubstr("more than 64 conditions"));
}

TEST_F(LeaderboardFilter, SortingPutsTheBestFirstAndTheAbsentLast) {
  auto sorted = rows;
  sort_rows(sorted, parse_sort("core.l0").value());
  EXPECT_LE(find_score(sorted[0], "core.l0")->value, find_score(sorted[1], "core.l0")->value);
  EXPECT_EQ(find_score(sorted.back(), "core.l0"), nullptr);
  sort_rows(sorted, parse_sort("core.ce_loss_score").value());
  EXPECT_EQ(sorted.front().baseline, "identity");
  sort_rows(sorted, parse_sort("-core.ce_loss_score").value());
  EXPECT_LT(find_score(sorted[0], "core.ce_loss_score")->value, .61);
  sort_rows(sorted, parse_sort("core.l0:desc").value());
  EXPECT_GT(find_score(sorted.front(), "core.l0")->value, 100);
  sort_rows(sorted, parse_sort("arch").value());
  EXPECT_EQ(sorted.front().arch, "batchtopk");
  for (const auto& row : sorted) EXPECT_FALSE(row.tied);
}

TEST_F(LeaderboardFilter, ASortWithAWrongDirectionIsAnError) {
  EXPECT_THAT(parse_sort("core.l0:up").error().message, HasSubstr("core.l0:asc"));
  EXPECT_FALSE(parse_sort(""));
  EXPECT_FALSE(parse_sort("-"));
  EXPECT_FALSE(parse_sort("-core.l0:asc"));
}

}  // namespace
}  // namespace saesweep::scheduler
