// A model of a few thousand weights that reads 4x4 games, and the runs of tests.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "core/files.h"
#include "core/json.h"
#include "sweeps/known_keys.h"
#include "sweeps/model_shapes.h"
#include "sweeps/recipes.h"
#include "sweeps/spec.h"
#include "tests/support/temp_dir.h"
#include "tests/worker/executor/fake_agent.h"
#include "worker/models/transformer.h"

namespace saesweep::test {

class Scene : public testing::Test {
 protected:
  Scene() : model_(dir_.path() / "model") {
    worker::TransformerConfig config;
    config.layers = 2;
    config.d_model = 16;
    config.heads = 2;
    config.d_mlp = 32;
    config.context = 11;
    config.vocabulary = 13;
    EXPECT_TRUE(worker::Transformer::random(config, 3)->save(model_));
  }

  std::filesystem::path state(const std::string& name = "state") const {
    return dir_.path() / name;
  }

  sweeps::StreamSpec stream() const {
    sweeps::StreamSpec spec;
    spec.model.emplace();
    spec.model->name = "tiny";
    spec.model->path = model_.string();
    const auto shape = sweeps::read_model_shape(model_);
    if (shape) spec.model->digest = sweeps::model_digest(model_, *shape, false, 0).value_or("");
    spec.data.source = "othello";
    spec.data.board = 4;
    spec.data.games = 400;
    spec.hook = "blocks.0.hook_resid_post";
    spec.tokens = 2048;
    spec.holdout = 0.1;
    return spec;
  }

  sweeps::TrialSpec trial(sweeps::Architecture architecture, std::uint64_t steps = 60,
                          std::uint64_t seed = 0) const {
    sweeps::TrialSpec spec;
    spec.stream = stream();
    if (sweeps::is_joint(architecture)) spec.stream.joined = {"blocks.1.hook_resid_pre"};
    if (sweeps::is_transcoder(architecture)) {
      spec.stream.hook = "blocks.1.hook_resid_mid";
      spec.stream.joined = {"blocks.1.mlp.hook_post"};
    }
    spec.training = sweeps::recipe_training("saebench-v1", architecture, steps);
    spec.training.d_sae = 32;
    const auto has = [architecture](sweeps::ParameterId id) {
      return sweeps::parameter(id).applies(architecture);
    };
    if (has(sweeps::ParameterId::kK)) spec.training.k = 4;
    if (has(sweeps::ParameterId::kL1)) spec.training.l1 = 0.05;
    if (has(sweeps::ParameterId::kL0Target)) spec.training.l0_target = 4;
    spec.training.batch = 64;
    spec.training.tokens = 64 * steps;
    spec.training.seed = seed;
    return spec;
  }

  static std::string task_of(const sweeps::TrialSpec& spec) {
    return "train:" + spec.identity().hex();
  }

  static protocol::Member train_member(const sweeps::TrialSpec& spec, std::uint64_t fence = 1) {
    protocol::Member member;
    member.set_task(task_of(spec));
    member.set_fence(fence);
    member.set_kind(protocol::TASK_KIND_TRAIN);
    member.set_spec(canonical_json(spec.to_json()));
    member.set_trial_directory("trials/" + spec.identity().short_hex());
    return member;
  }

  // A checkpoint after every step unless `checkpoint_every_s` says otherwise.
  static protocol::Run run_of(const std::vector<protocol::Member>& members,
                              double checkpoint_every_s = 1e-9, std::uint64_t run_id = 1) {
    protocol::Run run;
    run.set_run_id(run_id);
    for (const auto& member : members) *run.add_members() = member;
    run.set_threads(2);
    run.set_checkpoint_every_s(checkpoint_every_s);
    return run;
  }
  static constexpr double kNever = 1e6;  // seconds between checkpoints

  // What an undisturbed run gives.
  protocol::TaskResult undisturbed(const sweeps::TrialSpec& spec) const {
    FakeAgent agent(state("undisturbed"));
    auto left = agent.run_to_end(run_of({train_member(spec)}, kNever));
    return left.results[task_of(spec)];
  }

  static std::string digest_of(const protocol::TaskResult& result, const std::string& name) {
    for (const auto& artifact : result.artifacts())
      if (artifact.name() == name) return artifact.sha256();
    ADD_FAILURE() << "no artifact " << name << "; reason: " << result.reason();
    return "none of " + result.task();
  }
  std::string bytes_of(const protocol::TaskResult& result, const std::string& name,
                       const std::string& state_name = "state") const {
    const auto bytes = read_file(state(state_name) / "artifacts" / digest_of(result, name));
    EXPECT_TRUE(bytes) << bytes.error().message;
    return bytes.value_or("");
  }

  static FakeAgent::Wanted checkpoint_number(int number) {
    return [seen = 0, number](const protocol::Envelope& envelope) mutable {
      return envelope.has_checkpointed() && ++seen == number;
    };
  }

  TempDir dir_;
  std::filesystem::path model_;
};

}  // namespace saesweep::test
