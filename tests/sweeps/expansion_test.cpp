#include "sweeps/expansion.h"

#include <gmock/gmock.h>

#include <string>
#include <vector>

namespace saesweep::sweeps {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

struct ExpansionTest : testing::Test {
  // The nodes that a family points at.
  YamlNode root;
  Problems problems{"f.yaml"};

  std::optional<Family> family(const std::string& yaml, const Search& search = {}) {
    problems = Problems("f.yaml");
    root = parse_yaml(yaml).value();
    return read_family(root, "trials[0]", {}, search, problems);
  }
  // "k=4 seed=0" of each trial.
  std::vector<std::string> expand(const std::string& yaml, const Search& search = {}) {
    const auto read = family(yaml, search);
    std::vector<std::string> trials;
    for (std::uint64_t i = 0; read && i < read->count(); ++i) {
      const Assignment assignment = read->at(i);
      std::string text;
      for (const Parameter& each : parameters())
        if (const auto& value = assignment[each.id])
          text += std::string(each.name) + "=" + to_string(*value) + " ";
      trials.push_back(text + "seed=" + std::to_string(assignment.seed));
    }
    return trials;
  }
  std::string problem(const std::string& yaml, const Search& search = {}) {
    EXPECT_FALSE(family(yaml, search));
    const auto errors = problems.take();
    return errors.empty() ? "" : errors[0].to_string();
  }
};

TEST_F(ExpansionTest, ListsMultiplyInAFixedOrderWhateverOrderTheyAreWrittenIn) {
  const std::vector<std::string> expected{
      "d_sae=8 k=1 lr=0.1 seed=0",  "d_sae=8 k=1 lr=0.1 seed=1",  "d_sae=8 k=2 lr=0.1 seed=0",
      "d_sae=8 k=2 lr=0.1 seed=1",  "d_sae=16 k=1 lr=0.1 seed=0", "d_sae=16 k=1 lr=0.1 seed=1",
      "d_sae=16 k=2 lr=0.1 seed=0", "d_sae=16 k=2 lr=0.1 seed=1"};
  EXPECT_EQ(expand("{arch: topk, d_sae: [8, 16], k: [1, 2], lr: 0.1, seed: {range: [0, 2]}}"),
            expected);
  EXPECT_EQ(expand("{seed: [0, 1], lr: [0.1], k: [1, 2], arch: topk, d_sae: [8, 16]}"), expected);
}

TEST_F(ExpansionTest, DrawnAxesAreDrawnJointlyAndVarySlowest) {
  const auto trials = expand(
      "{arch: standard, d_sae: [8, 16], l1: {uniform: [0, 1], samples: 3}, lr: "
      "{log_uniform: [1e-4, 1e-2], samples: 3}}");
  ASSERT_EQ(trials.size(), 6u);
  const auto drawn = [](const std::string& trial) { return trial.substr(trial.find(" l1=")); };
  EXPECT_EQ(drawn(trials[0]), drawn(trials[1]));
  EXPECT_NE(drawn(trials[1]), drawn(trials[2]));
  EXPECT_THAT(trials[0], HasSubstr("d_sae=8"));
  EXPECT_THAT(trials[1], HasSubstr("d_sae=16"));
}

TEST_F(ExpansionTest, MoreSamplesKeepTheEarlierTrials) {
  const auto with = [](int samples) {
    return "{arch: standard, d_sae: 8, l1: {log_uniform: [0.01, 1], samples: " +
           std::to_string(samples) + "}}";
  };
  const auto few = expand(with(5)), many = expand(with(9));
  EXPECT_TRUE(std::equal(few.begin(), few.end(), many.begin()));
}

TEST_F(ExpansionTest, EveryKindOfValueIsRead) {
  EXPECT_THAT(
      expand("{arch: p_anneal, d_sae: 1k, l1: 0, lr: 3e-4, adam_betas: [0.9, 0.99], grad_clip: "
             "none, warmup_steps: 5%, decay_start: 900, p_start: 0.9, sparsity_function: lp, init: "
             "a/b}"),
      ElementsAre("d_sae=1000 l1=0 lr=3e-04 adam_betas=[0.9, 0.99] grad_clip=none "
                  "warmup_steps=5% decay_start=900 p_start=0.9 sparsity_function=lp "
                  "init=a/b seed=0"));
  EXPECT_THAT(expand("{arch: topk, d_sae: 8, k: 2, adam_betas: [[0.9, 0.99], [0.5, 0.9]], "
                     "grad_clip: [none, 1]}"),
              ElementsAre("d_sae=8 k=2 adam_betas=[0.9, 0.99] grad_clip=none seed=0",
                          "d_sae=8 k=2 adam_betas=[0.9, 0.99] grad_clip=1 seed=0",
                          "d_sae=8 k=2 adam_betas=[0.5, 0.9] grad_clip=none seed=0",
                          "d_sae=8 k=2 adam_betas=[0.5, 0.9] grad_clip=1 seed=0"));
}

TEST_F(ExpansionTest, AGridStrategySpacesOneDrawnAxisEvenly) {
  EXPECT_THAT(expand("{arch: topk, d_sae: 8, k: {int_uniform: [1, 5], samples: 3}}",
                     {.strategy = Strategy::kGrid}),
              ElementsAre("d_sae=8 k=1 seed=0", "d_sae=8 k=3 seed=0", "d_sae=8 k=5 seed=0"));
  EXPECT_THAT(problem("{arch: standard, d_sae: {int_uniform: [8, 16], samples: 3}, l1: {uniform: "
                      "[0, 1], samples: 3}}",
                      {.strategy = Strategy::kGrid}),
              HasSubstr("under 'strategy: grid' one drawn axis"));
}

TEST_F(ExpansionTest, ChoicesAreDrawnFromTheirValues) {
  for (const std::string& trial :
       expand("{arch: topk, k: 2, d_sae: {choice: [8, 16, 32], samples: 20}}"))
    EXPECT_THAT(trial, testing::ContainsRegex("d_sae=(8|16|32) "));
}

TEST_F(ExpansionTest, RangesOfTheWrongSortAreRefused) {
  EXPECT_THAT(problem("{arch: topk, d_sae: {uniform: [8, 16], samples: 2}, k: 1}"),
              HasSubstr("d_sae takes no fractions; int_uniform or choice would be right"));
  EXPECT_THAT(problem("{arch: standard, d_sae: 8, l1: {log_uniform: [0, 1], samples: 2}}"),
              HasSubstr("0 has no logarithm"));
  EXPECT_THAT(problem("{arch: standard, d_sae: 8, l1: {uniform: [0, 1, 2], samples: 2}}"),
              HasSubstr("is a list of 3; two numbers [low, high]"));
  EXPECT_THAT(problem("{arch: standard, d_sae: 8, l1: {uniform: [0, 1], choice: [1], samples: 2}}"),
              HasSubstr("stands beside uniform"));
  EXPECT_THAT(problem("{arch: standard, d_sae: 8, l1: {samples: 2}}"), HasSubstr("names no range"));
  EXPECT_THAT(problem("{arch: standard, d_sae: 8, l1: {uniform: [0, 1]}}"),
              HasSubstr("l1.samples: is missing"));
  EXPECT_THAT(problem("{arch: standard, d_sae: 8, l1: -1}"),
              HasSubstr("-1 is out of range; at least 0 would be right"));
  EXPECT_THAT(problem("{arch: topk, d_sae: 8, k: 2, adam_betas: [0.9, 1]}"),
              HasSubstr("two numbers from 0 to below 1"));
  EXPECT_THAT(problem("{arch: topk, d_sae: [8, x], k: 2}"),
              HasSubstr("f.yaml:1:25: trials[0].d_sae[1]: 'x' is not a number"));
  EXPECT_THAT(problem("{arch: p_anneal, d_sae: 8, l1: 1, sparsity_function: lpp}"),
              HasSubstr("did you mean 'lp'?"));
}

TEST_F(ExpansionTest, HugeProductsAreCountedWithoutOverflow) {
  const auto read = family(
      "{arch: topk, d_sae: 8, k: {int_uniform: [1, 8], samples: 1M}, seed: "
      "{range: [0, 100000]}}");
  ASSERT_TRUE(read);
  EXPECT_EQ(read->count(), kMaxTrials + 1);
}

}  // namespace
}  // namespace saesweep::sweeps
