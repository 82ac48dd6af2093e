// `activations.filters`: what is read, what is refused.
#include <gmock/gmock.h>

#include "tests/sweeps/sweep_words.h"

namespace saesweep::sweeps {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

class FiltersTest : public SweepTest {
 protected:
  static std::string with(std::string_view filters, std::string_view tokens = "100k") {
    std::string text = sweep();
    const std::string_view key = "tokens: 100k";
    return text.replace(text.find(key), key.size(),
                        fmt::format("tokens: {}, filters: {}", tokens, filters));
  }
};

TEST_F(FiltersTest, AreReadForEveryStream) {
  const RowFilters none = plan(sweep()).trials.at(0).spec.stream.filters;
  EXPECT_FALSE(none.any());
  const SweepPlan result = plan(
      with("{remove_bos: true, exclude_special_tokens: [7, 0, 7], max_activation_norm_multiple: "
           "10}"));
  const RowFilters& filters = result.trials.at(0).spec.stream.filters;
  EXPECT_TRUE(filters.remove_bos);
  EXPECT_THAT(filters.exclude_special_tokens, ElementsAre(0, 7)) << "their order means nothing";
  EXPECT_EQ(filters.max_activation_norm_multiple, 10);
  EXPECT_EQ(result.streams.at(0).spec.filters, filters);
  for (const char* nothing : {"{}", "{remove_bos: false}", "{exclude_special_tokens: []}"})
    EXPECT_EQ(plan(with(nothing)).trials.at(0).identity, plan(sweep()).trials.at(0).identity);
}

TEST_F(FiltersTest, WhatCannotBeIsRefused) {
  EXPECT_THAT(error(with("{remove_bso: true}")),
              AllOf(HasSubstr("activations.filters"), HasSubstr("remove_bos")));
  EXPECT_THAT(error(with("[remove_bos]")), HasSubstr("activations.filters"));
  EXPECT_THAT(error(with("{remove_bos: maybe}")), HasSubstr("activations.filters.remove_bos"));
  EXPECT_THAT(error(with("{exclude_special_tokens: 3}")),
              HasSubstr("a list of token ids like [0] would be right"));
  EXPECT_THAT(error(with("{exclude_special_tokens: [3, 33]}")),
              HasSubstr("activations.filters.exclude_special_tokens[1]"));
  EXPECT_THAT(error(with("{max_activation_norm_multiple: 1}")), HasSubstr("more than 1"));
  // 20k games of at most 31 tokens have 620k rows, of which 20k are first ones.
  EXPECT_TRUE(try_plan(with("{}", "610k")));
  EXPECT_THAT(error(with("{remove_bos: true}", "610k")),
              HasSubstr("20000 documents of at most 30 tokens are 600000"));
}

TEST_F(FiltersTest, EndToEndTrialsHaveThemToo) {
  const auto end_to_end = [](std::string text) {
    const std::string_view topk = "{arch: topk, d_sae: 64, k: 4}";
    return text.replace(text.find(topk), topk.size(), "{arch: end_to_end, d_sae: 8, l1: 1}");
  };
  EXPECT_TRUE(plan(end_to_end(with("{remove_bos: true, exclude_special_tokens: [7]}")))
                  .trials.at(0)
                  .spec.stream.filters.by_token());
  EXPECT_TRUE(plan(end_to_end(with("{max_activation_norm_multiple: 10}")))
                  .trials.at(0)
                  .spec.stream.filters.by_norm());
}

TEST_F(FiltersTest, RowsOfAFileHaveNoTokens) {
  write("acts.safetensors", safetensors_of({{"x", {4096, 8}}}));
  const auto text = [](std::string_view filters) {
    return fmt::format(R"(data: {{source: activations, path: acts.safetensors, tensor: x}}
activations: {{tokens: 3k, filters: {}}}
train: {{tokens: 1M, batch: 256}}
trials: [{{arch: topk, d_sae: 64, k: 4}}]
)",
                       filters);
  };
  EXPECT_EQ(plan(text("{max_activation_norm_multiple: 2.5}"))
                .trials.at(0)
                .spec.stream.filters.max_activation_norm_multiple,
            2.5);
  EXPECT_THAT(error(text("{remove_bos: true}")), HasSubstr("whose rows have no tokens"));
  EXPECT_THAT(error(text("{exclude_special_tokens: [1]}")), HasSubstr("whose rows have no tokens"));
}

}  // namespace
}  // namespace saesweep::sweeps
