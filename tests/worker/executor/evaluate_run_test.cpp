// A run of evaluate tasks: scores of trained SAEs and baselines.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "metrics/scores/metric_version.h"
#include "tests/worker/executor/scene.h"

namespace saesweep::test {
namespace {

using sweeps::Architecture;
using testing::HasSubstr;

struct EvaluateRun : Scene {
  static protocol::Member member_of(const std::string& identity, const std::string& subject,
                                    const Json& spec, const sweeps::EvaluationSpec& evaluation) {
    protocol::Member member;
    member.set_task("eval:" + sha256(identity + evaluation.kind).hex());
    member.set_fence(4);
    member.set_kind(protocol::TASK_KIND_EVALUATE);
    member.set_spec(canonical_json({{"evaluation", evaluation.to_json()},
                                    {"subject", subject},
                                    {"spec", spec},
                                    {"trained", Json::object()}}));
    return member;
  }
  static sweeps::EvaluationSpec core() {
    sweeps::EvaluationSpec evaluation;
    evaluation.kind = "core";
    evaluation.tokens = 300;
    return evaluation;
  }
  sweeps::BaselineSpec baseline(const std::string& name) const {
    sweeps::BaselineSpec spec;
    spec.name = name;
    spec.stream = stream();
    spec.hook = spec.stream.hook;
    return spec;
  }
  protocol::Member baseline_member(const std::string& name) const {
    const auto spec = baseline(name);
    return member_of(spec.identity().hex(), "baseline", spec.to_json(), core());
  }
};

TEST_F(EvaluateRun, ScoresATrainedSaeFromItsArtifacts) {
  const auto spec = trial(Architecture::kTopK);
  FakeAgent agent(state());
  const auto trained = agent.run_to_end(run_of({train_member(spec)}, kNever));
  const auto& sae = trained.results.at(task_of(spec));
  auto member = member_of(spec.identity().hex(), "trial", spec.to_json(), core());
  for (const auto& artifact : sae.artifacts()) *member.add_inputs() = artifact;
  const auto left = agent.run_to_end(run_of({member}, kNever, 2));
  const auto& result = left.results.at(member.task());
  ASSERT_EQ(result.outcome(), protocol::OUTCOME_DONE) << result.reason();
  EXPECT_EQ(result.fence(), 4u);

  const Json summary = parse_json(result.summary()).value();
  EXPECT_LE(summary["scores"]["core.l0"]["value"], 4);
  EXPECT_EQ(summary["heldout"], true);
  EXPECT_FALSE(summary.contains("details"));
  EXPECT_FALSE(summary.contains("histogram"));
  const Json details = parse_json(bytes_of(result, "scores-details.json")).value();
  EXPECT_EQ(details["details"].size(), 32u);
  EXPECT_TRUE(details.contains("histogram"));
  EXPECT_EQ(details["heldout"], true);

  // Asked again, the same bytes.
  const auto again = agent.run_to_end(run_of({member}, kNever, 3));
  EXPECT_EQ(again.results.at(member.task()).summary(), result.summary());
  EXPECT_EQ(digest_of(again.results.at(member.task()), "scores-details.json"),
            digest_of(result, "scores-details.json"));
}

TEST_F(EvaluateRun, BaselinesNeedNoArtifacts) {
  FakeAgent agent(state());
  const auto identity = baseline_member("identity"), pca = baseline_member("pca");
  const auto left = agent.run_to_end(run_of({identity, pca}, kNever));
  const auto& result = left.results.at(identity.task());
  ASSERT_EQ(result.outcome(), protocol::OUTCOME_DONE) << result.reason();
  const Json scores = parse_json(result.summary()).value()["scores"];
  EXPECT_NEAR(scores["core.explained_variance"]["value"].get<double>(), 1, 1e-6);
  EXPECT_EQ(left.results.at(pca.task()).outcome(), protocol::OUTCOME_DONE)
      << left.results.at(pca.task()).reason();
}

TEST_F(EvaluateRun, WhatDoesNotApplyIsAnErrorOfItsMemberAlone) {
  FakeAgent agent(state());
  auto impossible = core();
  impossible.tokens = 10'000'000;
  const auto spec = baseline("identity");
  auto bad = member_of("bad", "baseline", spec.to_json(), impossible);
  const auto trial_spec = trial(Architecture::kTopK);
  const auto without = member_of("without", "trial", trial_spec.to_json(), core());
  auto missing = member_of("missing", "trial", trial_spec.to_json(), core());
  for (const char* name : {"sae.safetensors", "config.json"}) {
    auto* input = missing.add_inputs();
    input->set_name(name);
    input->set_sha256(std::string(64, 'a'));
  }
  const auto good = baseline_member("identity");
  const auto left = agent.run_to_end(run_of({bad, without, missing, good}, kNever));
  EXPECT_EQ(left.results.at(bad.task()).outcome(), protocol::OUTCOME_FAILED);
  EXPECT_EQ(left.results.at(without.task()).outcome(), protocol::OUTCOME_FAILED);
  EXPECT_THAT(left.results.at(without.task()).reason(), HasSubstr("no trained SAE"));
  EXPECT_EQ(left.results.at(missing.task()).outcome(), protocol::OUTCOME_FAILED);
  EXPECT_EQ(left.results.at(good.task()).outcome(), protocol::OUTCOME_DONE);
}

TEST_F(EvaluateRun, APauseAnswersForEveryMemberLeft) {
  FakeAgent agent(state());
  std::vector<protocol::Member> members;
  for (int i = 0; i < 30; ++i)
    members.push_back(member_of(std::to_string(i), "baseline", baseline("pca").to_json(), core()));
  agent.send_run(run_of(members, kNever));
  agent.wait_for([](const auto& envelope) { return envelope.has_result(); });
  agent.send_control(1, "pause");
  const auto left = agent.wait_for_end(1);
  EXPECT_EQ(left.results.size() + left.control.size(), members.size());
  EXPECT_GT(left.control.size(), 0u);
}

}  // namespace
}  // namespace saesweep::test
