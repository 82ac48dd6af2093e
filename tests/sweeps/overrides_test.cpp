#include "sweeps/overrides.h"

#include <gmock/gmock.h>

#include "tests/sweeps/sweep_words.h"

namespace saesweep::sweeps {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

std::string changed(const std::string& yaml, const std::string& assignment) {
  YamlNode root = parse_yaml(yaml).value();
  Problems problems("f.yaml");
  apply_override(root, assignment, problems);
  if (!problems.empty()) return problems.take()[0].to_string();
  return emit_yaml(root);
}

TEST(OverridesTest, AKeyIsReplacedOrAdded) {
  EXPECT_EQ(changed("a: {b: 1}", "a.b=2"), emit_yaml(parse_yaml("a: {b: 2}").value()));
  EXPECT_EQ(changed("a: {b: 1}", "a.c=x"), emit_yaml(parse_yaml("a: {b: 1, c: x}").value()));
  EXPECT_EQ(changed("a: 1", "b.c.d=[1, 2]"),
            emit_yaml(parse_yaml("a: 1\nb: {c: {d: [1, 2]}}").value()));
  EXPECT_EQ(changed("a: 1", "b={c: 3}"), emit_yaml(parse_yaml("a: 1\nb: {c: 3}").value()));
  EXPECT_EQ(changed("a:", "a.b=1"), emit_yaml(parse_yaml("a: {b: 1}").value()));
  EXPECT_EQ(changed("a: 1", "a=b=c"), emit_yaml(parse_yaml("a: b=c").value()));
}

TEST(OverridesTest, ListsAreIndexedInBothSpellings) {
  const std::string expected = emit_yaml(parse_yaml("t: [{k: 1}, {k: 9}]").value());
  EXPECT_EQ(changed("t: [{k: 1}, {k: 2}]", "t.1.k=9"), expected);
  EXPECT_EQ(changed("t: [{k: 1}, {k: 2}]", "t[1].k=9"), expected);
}

TEST(OverridesTest, AssignmentsThatFindNoPlaceAreRefused) {
  EXPECT_EQ(changed("t: [1, 2]", "t.2=5"),
            "f.yaml: --set t.2: '2' is no entry of a list of 2; 0 to 1 would be right");
  EXPECT_THAT(changed("t: [1]", "t.x=5"), HasSubstr("'x' is no entry"));
  EXPECT_THAT(changed("t: [1]", "t.-1=5"), HasSubstr("'-1' is no entry"));
  EXPECT_THAT(changed("a: 5", "a.b=1"), HasSubstr("'b' lies inside '5', which is no map"));
  EXPECT_THAT(changed("a: 5", "a"), HasSubstr("has no '='"));
  EXPECT_THAT(changed("a: 5", "a="), HasSubstr("has no value"));
  EXPECT_THAT(changed("a: 5", "=1"), HasSubstr("names no key"));
  EXPECT_THAT(changed("a: 5", "a..b=1"), HasSubstr("names no key"));
  EXPECT_THAT(changed("a: 5", "a=[1"), HasSubstr("its value is not valid YAML"));
  EXPECT_THAT(changed("a: 5", "a={b: 1, b: 2}"), HasSubstr("stands twice"));
}

class OverriddenSweepTest : public SweepTest {};

TEST_F(OverriddenSweepTest, ComplaintsNameTheOption) {
  EXPECT_THAT(error(sweep(), {.overrides = {"train.tokens=many"}}),
              StartsWith("sweep.yaml: --set train.tokens: 'many' is not a number"));
  EXPECT_THAT(error(sweep(), {.overrides = {"train.tokns=1M"}}),
              AllOf(StartsWith("sweep.yaml: --set train.tokns: unknown key 'tokns'"),
                    HasSubstr("did you mean 'tokens'?")));
  EXPECT_THAT(error(sweep(), {.overrides = {"trials.0.k=1k"}}),
              StartsWith("sweep.yaml: --set trials.0.k: 1000 is larger than d_sae 64"));
}

TEST_F(OverriddenSweepTest, LaterOverridesWinAndAllAreApplied) {
  const SweepPlan result = plan(sweep(), {.overrides = {"train.tokens=2M", "train.tokens=3M",
                                                        "trials[0].k=[2, 3]", "name=renamed"}});
  ASSERT_EQ(result.trials.size(), 2u);
  EXPECT_EQ(result.trials[0].spec.training.tokens, 3'000'000u);
  EXPECT_EQ(result.name, "renamed");
}

}  // namespace
}  // namespace saesweep::sweeps
