// Looks at held-out rows while a run trains: every kind of trial has them, they disturb nobody, and
// a curve is the same however its run was cut up.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "tests/worker/executor/scene.h"

namespace saesweep::test {
namespace {

using sweeps::Architecture;
using testing::HasSubstr;
using testing::Not;

struct HeldOutRun : Scene {
  sweeps::TrialSpec looked_at(Architecture architecture, std::uint64_t steps = 60,
                              std::uint64_t seed = 0) const {
    auto spec = trial(architecture, steps, seed);
    spec.training.eval_every = 640;  // ten steps
    return spec;
  }

  // Cells of a column, "" where there is none.
  static std::vector<std::string> column(const std::string& csv, const std::string& name) {
    std::istringstream lines(csv);
    std::vector<std::string> cells;
    std::size_t wanted = std::string::npos;
    for (std::string line; std::getline(lines, line);) {
      std::vector<std::string> row(1);
      for (const char c : line)
        if (c == ',')
          row.emplace_back();
        else
          row.back() += c;
      if (wanted == std::string::npos)
        wanted = static_cast<std::size_t>(std::ranges::find(row, name) - row.begin());
      else
        cells.push_back(row.at(wanted));
    }
    return cells;
  }
  static std::vector<double> values(const std::string& csv, const std::string& name) {
    std::vector<double> values;
    for (const std::string& cell : column(csv, name))
      if (!cell.empty()) values.push_back(std::stod(cell));
    return values;
  }
};

TEST_F(HeldOutRun, EveryArchitectureHasThemSideBySide) {
  std::vector<sweeps::TrialSpec> specs;
  std::vector<protocol::Member> members;
  for (const auto name : sweeps::architecture_names()) {
    specs.push_back(looked_at(*sweeps::parse_architecture(name), 600));
    members.push_back(train_member(specs.back()));
  }
  FakeAgent agent(state());
  const auto left = agent.run_to_end(run_of(members, kNever));
  for (const auto& spec : specs) {
    SCOPED_TRACE(to_string(spec.training.architecture));
    const auto& result = left.results.at(task_of(spec));
    ASSERT_EQ(result.outcome(), protocol::OUTCOME_DONE) << result.reason();
    const std::string csv = bytes_of(result, "curve.csv");
    const auto fve = values(csv, "heldout_fve"), trained = values(csv, "fve");
    ASSERT_EQ(fve.size(), 60u);
    // Rows of the same games: an SAE of 32 latents does not learn them by heart.
    // End to end nothing keeps it near 0, and far below it is a wide number.
    EXPECT_NEAR(fve.back(), trained.back(), 0.15 * std::max(1.0, std::abs(trained.back())));
    // End to end it is the loss that is learned.
    const auto learned = values(
        csv, sweeps::is_end_to_end(spec.training.architecture) ? "heldout_loss" : "heldout_fve");
    if (sweeps::is_end_to_end(spec.training.architecture))
      EXPECT_LT(learned.back(), learned.front());
    else
      EXPECT_GT(learned.back(), learned.front());
    const auto l0 = values(csv, "heldout_l0"), dead = values(csv, "heldout_dead_fraction");
    EXPECT_NEAR(l0.back(), values(csv, "l0").back(), 0.3 * l0.back() + 1);
    EXPECT_GE(dead.back(), 0);
    EXPECT_LT(dead.back(), 1);
    EXPECT_EQ(parse_json(result.summary()).value()["fve_heldout"], fve.back());
  }
}

TEST_F(HeldOutRun, WithAndWithoutThemTheResultIsTheSame) {
  for (const auto architecture :
       {Architecture::kBatchTopK, Architecture::kSkipTranscoder, Architecture::kEndToEnd}) {
    const auto with = looked_at(architecture), without = trial(architecture);
    ASSERT_EQ(task_of(with), task_of(without)) << "one identity: another cadence trains nothing";
    FakeAgent agent(state());
    const auto result =
        agent.run_to_end(run_of({train_member(with)}, kNever)).results.at(task_of(with));
    const auto plain = undisturbed(without);
    EXPECT_EQ(digest_of(result, "sae.safetensors"), digest_of(plain, "sae.safetensors"));
    EXPECT_EQ(digest_of(result, "config.json"), digest_of(plain, "config.json"));
    EXPECT_THAT(bytes_of(plain, "curve.csv", "undisturbed"), Not(HasSubstr("heldout")));
  }
}

TEST_F(HeldOutRun, KilledAndResumedItEndsWithTheSameCurve) {
  for (const auto architecture :
       {Architecture::kPAnneal, Architecture::kCrosscoder, Architecture::kEndToEnd}) {
    auto spec = looked_at(architecture, 300);
    if (sweeps::is_end_to_end(architecture)) spec.training.in_to_orig = 0.5;
    protocol::CheckpointRef checkpoint;
    {
      FakeAgent agent(state());
      agent.send_run(run_of({train_member(spec)}));
      checkpoint = agent.wait_for(checkpoint_number(25))->checkpointed().checkpoint();
      agent.kill();
    }
    FakeAgent agent(state());
    auto member = train_member(spec, 2);
    *member.mutable_resume() = checkpoint;
    const auto result = agent.run_to_end(run_of({member}, kNever)).results.at(task_of(spec));
    EXPECT_EQ(digest_of(result, "curve.csv"), digest_of(undisturbed(spec), "curve.csv"));
    EXPECT_EQ(values(bytes_of(result, "curve.csv"), "heldout_loss").size(), 30u);
  }
}

TEST_F(HeldOutRun, ANeighbourThatDivergesLeavesTheCurveOfOthersAlone) {
  auto wild = looked_at(Architecture::kStandard);
  wild.training.lr = 1e30;
  const auto tame = looked_at(Architecture::kTopK), other = looked_at(Architecture::kTopK, 60, 1);
  FakeAgent agent(state());
  const auto left = agent.run_to_end(
      run_of({train_member(wild), train_member(tame), train_member(other)}, kNever));
  EXPECT_EQ(left.results.at(task_of(wild)).outcome(), protocol::OUTCOME_DIVERGED);
  for (const auto& spec : {tame, other})
    for (const char* name : {"sae.safetensors", "curve.csv"})
      EXPECT_EQ(digest_of(left.results.at(task_of(spec)), name), digest_of(undisturbed(spec), name))
          << name;
}

TEST_F(HeldOutRun, TheRowsAreThoseOfHeldOutDocumentsWhateverElseDiffers) {
  // The same SAE on streams of another order and length: after the first step of nothing learned
  // (lr 0) a look says the same.
  std::vector<double> looks;
  for (const std::uint64_t order : {0, 1, 2}) {
    auto spec = looked_at(Architecture::kStandard, 10);
    spec.stream.seed = order;
    spec.stream.tokens = 1024 * (1 + order % 2);
    spec.training.lr = 0;
    FakeAgent agent(state());
    const auto result =
        agent.run_to_end(run_of({train_member(spec)}, kNever)).results.at(task_of(spec));
    ASSERT_EQ(result.outcome(), protocol::OUTCOME_DONE) << result.reason();
    looks.push_back(values(bytes_of(result, "curve.csv"), "heldout_mse").at(0));
  }
  EXPECT_EQ(looks[0], looks[1]);
  EXPECT_EQ(looks[0], looks[2]);
}

TEST_F(HeldOutRun, WhereNothingIsHeldOutThereIsNoLook) {
  auto spec = looked_at(Architecture::kTopK);
  spec.stream.holdout = 0;
  FakeAgent agent(state());
  const auto result =
      agent.run_to_end(run_of({train_member(spec)}, kNever)).results.at(task_of(spec));
  ASSERT_EQ(result.outcome(), protocol::OUTCOME_DONE) << result.reason();
  EXPECT_THAT(bytes_of(result, "curve.csv"), Not(HasSubstr("heldout")));
}

}  // namespace
}  // namespace saesweep::test
