// A run of train tasks: results, and that neither pause, death, damage nor neighbours change a
// byte.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "core/digest.h"
#include "core/philox.h"
#include "storage/formats/safetensors.h"
#include "tests/support/json_schema_check.h"
#include "tests/worker/executor/scene.h"

namespace saesweep::test {
namespace {

using sweeps::Architecture;
using testing::HasSubstr;
using testing::StartsWith;

using TrainRun = Scene;

TEST_F(TrainRun, TrialsOfOneRunLeaveResultsAndArtifacts) {
  const auto topk = trial(Architecture::kTopK), standard = trial(Architecture::kStandard);
  FakeAgent agent(state());
  const auto left =
      agent.run_to_end(run_of({train_member(topk, 7), train_member(standard, 8)}, kNever));
  ASSERT_EQ(left.results.size(), 2u);
  for (const auto* spec : {&topk, &standard}) {
    const auto& result = left.results.at(task_of(*spec));
    EXPECT_EQ(result.outcome(), protocol::OUTCOME_DONE) << result.reason();
    EXPECT_EQ(result.fence(), spec == &topk ? 7u : 8u);
    EXPECT_EQ(parse_json(result.summary()).value()["tokens"], 60 * 64);
    for (const auto& artifact : result.artifacts()) {
      const std::string bytes = bytes_of(result, artifact.name());
      EXPECT_EQ(sha256(bytes).hex(), artifact.sha256());
      EXPECT_EQ(bytes.size(), artifact.bytes());
    }
    const Json config = parse_json(bytes_of(result, "config.json")).value();
    EXPECT_THAT(JsonSchemaCheck::problems(config, JsonSchemaCheck::schema("config")),
                testing::IsEmpty());
    EXPECT_EQ(config["hook"], "blocks.0.hook_resid_post");
    EXPECT_EQ(config["model_digest"], spec->stream.model->digest);
    EXPECT_EQ(config["trial"], spec->identity().hex());
    EXPECT_THAT(bytes_of(result, "curve.csv"), StartsWith("step,tokens,loss"));
    const auto tensors = storage::Safetensors::parse(bytes_of(result, "sae.safetensors"));
    ASSERT_TRUE(tensors);
    EXPECT_NE(tensors->find("W_dec"), nullptr);
  }
  EXPECT_EQ(left.trained, 2u * 60 * 64);
  EXPECT_GE(left.harvested, 2048u);
}

TEST_F(TrainRun, EveryArchitectureLeavesTheTensorsOfItsKind) {
  std::vector<sweeps::TrialSpec> specs;
  std::vector<protocol::Member> members;
  for (const auto name : sweeps::architecture_names()) {
    specs.push_back(trial(*sweeps::parse_architecture(name)));
    members.push_back(train_member(specs.back()));
  }
  FakeAgent agent(state());
  const auto left = agent.run_to_end(run_of(members, kNever));
  for (const auto& spec : specs) {
    const std::string name(to_string(spec.training.architecture));
    SCOPED_TRACE(name);
    const auto& result = left.results.at(task_of(spec));
    ASSERT_EQ(result.outcome(), protocol::OUTCOME_DONE) << result.reason();
    const Json config = parse_json(bytes_of(result, "config.json")).value();
    EXPECT_THAT(JsonSchemaCheck::problems(config, JsonSchemaCheck::schema("config")),
                testing::IsEmpty());
    const bool joint = sweeps::is_joint(spec.training.architecture);
    EXPECT_EQ(config["apply_b_dec_to_input"], name != "jumprelu" && name != "end_to_end" && !joint);
    const bool crosses = name.ends_with("crosscoder");
    EXPECT_EQ(config.contains("hook"), !crosses);
    EXPECT_EQ(config.contains("hook_out"), name.ends_with("transcoder"));
    EXPECT_EQ(config.contains("hooks"), crosses);
    EXPECT_EQ(config.contains("group_sizes"), name == "matryoshka");
    // What was never updated in so few steps is calibrated.
    const bool over_batch = name.starts_with("batchtopk") || name == "matryoshka";
    EXPECT_EQ(config["threshold_calibrated"], over_batch);
    std::map<std::string, std::vector<std::int64_t>> want = {
        {"W_enc", {32, 16}}, {"W_dec", {32, 16}}, {"b_dec", {16}}};
    if (name.starts_with("gated"))
      for (const char* own : {"b_gate", "b_mag", "r_mag"}) want[own] = {32};
    else
      want["b_enc"] = {32};
    if (over_batch || name.starts_with("jumprelu")) want["threshold"] = {32};
    if (name.ends_with("transcoder")) {
      want["W_dec"] = {32, 32};
      want["b_dec"] = {32};
    }
    if (name == "skip_transcoder") want["W_skip"] = {32, 16};
    if (crosses) {
      want["W_enc"] = want["W_dec"] = {2, 32, 16};
      want["b_dec"] = {2, 16};
    }
    const auto file = storage::Safetensors::parse(bytes_of(result, "sae.safetensors"));
    ASSERT_TRUE(file) << file.error().message;
    EXPECT_EQ(file->tensors().size(), want.size());
    for (const auto& [tensor, shape] : want) {
      const auto* view = file->find(tensor);
      ASSERT_NE(view, nullptr) << tensor;
      EXPECT_EQ(view->shape, shape) << tensor;
      EXPECT_EQ(view->dtype, "F32") << tensor;
    }
  }
}

TEST_F(TrainRun, AloneAndSideBySideTheBytesAreTheSame) {
  const auto topk = trial(Architecture::kTopK), standard = trial(Architecture::kStandard);
  FakeAgent agent(state());
  const auto left = agent.run_to_end(run_of({train_member(standard), train_member(topk)}, kNever));
  EXPECT_EQ(digest_of(left.results.at(task_of(topk)), "sae.safetensors"),
            digest_of(undisturbed(topk), "sae.safetensors"));
}

TEST_F(TrainRun, EndToEndBesideOthersTheBytesAreThoseOfEachAlone) {
  const auto rows = trial(Architecture::kTopK), documents = trial(Architecture::kEndToEnd);
  FakeAgent agent(state());
  const auto left = agent.run_to_end(run_of({train_member(rows), train_member(documents)}, kNever));
  for (const auto& spec : {rows, documents})
    EXPECT_EQ(digest_of(left.results.at(task_of(spec)), "sae.safetensors"),
              digest_of(undisturbed(spec), "sae.safetensors"));
}

TEST_F(TrainRun, EndToEndLeavesRowsOutByTokenAndComparesWhatFollows) {
  auto spec = trial(Architecture::kEndToEnd);
  const auto plain = undisturbed(spec);
  spec.training.in_to_orig = 2;
  spec.stream.filters = {.remove_bos = true, .exclude_special_tokens = {3}};
  FakeAgent agent(state());
  const auto result =
      agent.run_to_end(run_of({train_member(spec)}, kNever)).results.at(task_of(spec));
  ASSERT_EQ(result.outcome(), protocol::OUTCOME_DONE) << result.reason();
  const Json config = parse_json(bytes_of(result, "config.json")).value();
  EXPECT_THAT(JsonSchemaCheck::problems(config, JsonSchemaCheck::schema("config")),
              testing::IsEmpty());
  EXPECT_EQ(config["parameters"]["in_to_orig"], 2);
  EXPECT_EQ(config["parameters"]["lr_schedule"], "cosine");
  EXPECT_GT(config["filters"]["dropped_rows"], 1.0 / 12);
  EXPECT_LT(config["filters"]["dropped_rows"], 0.3);
  EXPECT_NE(digest_of(result, "sae.safetensors"), digest_of(plain, "sae.safetensors"));
}

TEST_F(TrainRun, ABatchThatDocumentsCannotFillEndsItsOwnTrialAlone) {
  const auto fits = trial(Architecture::kEndToEnd);
  auto too_large = fits;
  too_large.training.batch = 100'000;
  too_large.training.tokens = 200'000;
  FakeAgent agent(state());
  const auto left = agent.run_to_end(run_of({train_member(too_large), train_member(fits)}, kNever));
  const auto& failed = left.results.at(task_of(too_large));
  EXPECT_EQ(failed.outcome(), protocol::OUTCOME_FAILED);
  EXPECT_THAT(failed.reason(), testing::HasSubstr("a batch of 100000"));
  EXPECT_EQ(digest_of(left.results.at(task_of(fits)), "sae.safetensors"),
            digest_of(undisturbed(fits), "sae.safetensors"));
}

TEST_F(TrainRun, KeepsTheLastTwoCheckpointsOfATrial) {
  const auto spec = trial(Architecture::kTopK, 8);
  FakeAgent agent(state());
  const auto left = agent.run_to_end(run_of({train_member(spec, 3)}));
  const auto lease = state() / "trials" / spec.identity().short_hex() / "f3";
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(lease))
    names.push_back(entry.path().filename());
  EXPECT_THAT(names, testing::UnorderedElementsAre("step-6", "step-7"));
  EXPECT_EQ(left.checkpoints.at(task_of(spec)).step(), 7u);
  EXPECT_EQ(left.checkpoints.at(task_of(spec)).tokens(), 7u * 64);
  EXPECT_EQ(state() / left.checkpoints.at(task_of(spec)).path(), lease / "step-7");
}

class ResumedTrainRun : public TrainRun, public testing::WithParamInterface<Architecture> {};
// One that reads rows, one that reads documents.
INSTANTIATE_TEST_SUITE_P(Kinds, ResumedTrainRun,
                         testing::Values(Architecture::kTopK, Architecture::kEndToEnd));

TEST_P(ResumedTrainRun, PausedAndResumedItEndsWithTheSameBytes) {
  const auto spec = trial(GetParam(), 300);
  FakeAgent agent(state());
  agent.send_run(run_of({train_member(spec)}));
  agent.wait_for(checkpoint_number(3));
  agent.send_control(1, "pause");
  const auto paused = agent.wait_for_end(1);
  EXPECT_TRUE(paused.results.empty());
  EXPECT_EQ(paused.control.at(task_of(spec)), "paused");
  const auto& checkpoint = paused.checkpoints.at(task_of(spec));
  EXPECT_LT(checkpoint.step(), 300u);

  auto member = train_member(spec, 2);
  *member.mutable_resume() = checkpoint;
  const auto left = agent.run_to_end(run_of({member}, kNever, 2));  // the same executor, warm
  EXPECT_EQ(left.trained, (300 - checkpoint.step()) * 64);
  EXPECT_EQ(digest_of(left.results.at(task_of(spec)), "sae.safetensors"),
            digest_of(undisturbed(spec), "sae.safetensors"));
}

TEST_F(TrainRun, KilledAndResumedItEndsWithTheSameBytes) {
  const auto spec = trial(Architecture::kBatchTopK, 300);
  protocol::CheckpointRef checkpoint;
  {
    FakeAgent agent(state());
    agent.send_run(run_of({train_member(spec)}));
    checkpoint = agent.wait_for(checkpoint_number(5))->checkpointed().checkpoint();
    agent.kill();
  }
  FakeAgent agent(state());
  auto member = train_member(spec, 2);
  *member.mutable_resume() = checkpoint;
  const auto left = agent.run_to_end(run_of({member}, kNever));
  const auto& result = left.results.at(task_of(spec));
  const auto whole = undisturbed(spec);
  EXPECT_EQ(digest_of(result, "sae.safetensors"), digest_of(whole, "sae.safetensors"));
  EXPECT_EQ(digest_of(result, "curve.csv"), digest_of(whole, "curve.csv"));
  EXPECT_EQ(digest_of(result, "config.json"), digest_of(whole, "config.json"));
}

TEST_F(TrainRun, AMemberThatResumesCatchesUpWithOneThatBegins) {
  const auto early = trial(Architecture::kTopK, 200), late = trial(Architecture::kTopK, 200, 1);
  FakeAgent agent(state());
  agent.send_run(run_of({train_member(early)}));
  agent.wait_for(checkpoint_number(2));
  agent.send_control(1, "pause");
  auto member = train_member(early, 2);
  *member.mutable_resume() = agent.wait_for_end(1).checkpoints.at(task_of(early));
  const auto left = agent.run_to_end(run_of({train_member(late), member}, kNever, 2));
  for (const auto& spec : {early, late})
    EXPECT_EQ(digest_of(left.results.at(task_of(spec)), "sae.safetensors"),
              digest_of(undisturbed(spec), "sae.safetensors"));
}

void flip_a_byte(const std::filesystem::path& path) {
  std::string bytes = read_file(path).value();
  bytes[bytes.size() - 5] ^= 0x10;
  std::ofstream(path, std::ios::binary) << bytes;
}

struct Damage : Scene {
  sweeps::TrialSpec spec = trial(Architecture::kTopK, 100);
  protocol::CheckpointRef checkpoint;

  void interrupt() {
    FakeAgent agent(state());
    agent.send_run(run_of({train_member(spec)}));
    agent.wait_for(checkpoint_number(4));
    agent.send_control(1, "pause");
    checkpoint = agent.wait_for_end(1).checkpoints.at(task_of(spec));
  }
  void expect_the_same_bytes(bool from_the_beginning) {
    FakeAgent agent(state());
    auto member = train_member(spec, 2);
    *member.mutable_resume() = checkpoint;
    const auto left = agent.run_to_end(run_of({member}, kNever));
    EXPECT_EQ(left.trained == spec.training.tokens, from_the_beginning);
    EXPECT_EQ(digest_of(left.results.at(task_of(spec)), "sae.safetensors"),
              digest_of(undisturbed(spec), "sae.safetensors"));
  }
};

TEST_F(Damage, OfTheNewestCheckpointFallsBackToTheOneBefore) {
  interrupt();
  flip_a_byte(state() / checkpoint.path() / "weights.safetensors");
  expect_the_same_bytes(false);
}

TEST_F(Damage, OfAllCheckpointsBeginsAnew) {
  interrupt();
  for (const auto& entry :
       std::filesystem::directory_iterator((state() / checkpoint.path()).parent_path()))
    flip_a_byte(entry.path() / "optim.safetensors");
  expect_the_same_bytes(true);
}

TEST_F(Damage, ACheckpointThatIsGoneIsNoError) {
  interrupt();
  std::filesystem::remove_all(state() / "trials");
  expect_the_same_bytes(true);
}

TEST_F(TrainRun, ACancelledMemberLeavesTheOthersBytesAlone) {
  const auto stays = trial(Architecture::kTopK, 400), goes = trial(Architecture::kTopK, 400, 1);
  FakeAgent agent(state());
  agent.send_run(run_of({train_member(goes), train_member(stays)}, 0.01));
  agent.wait_for(checkpoint_number(1));
  agent.send_control(1, "cancel", task_of(goes));
  const auto left = agent.wait_for_end(1);
  EXPECT_EQ(left.control.at(task_of(goes)), "cancelled");
  EXPECT_FALSE(left.results.contains(task_of(goes)));
  EXPECT_EQ(digest_of(left.results.at(task_of(stays)), "sae.safetensors"),
            digest_of(undisturbed(stays), "sae.safetensors"));
}

TEST_F(TrainRun, ARequestForARunThatIsOverIsAnswered) {
  const auto spec = trial(Architecture::kTopK, 5);
  FakeAgent agent(state());
  agent.run_to_end(run_of({train_member(spec)}, kNever));
  agent.send_control(1, "pause");
  const auto answer =
      agent.wait_for([](const auto& envelope) { return envelope.has_control_done(); });
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->control_done().outcome(), "finished");
}

TEST_F(TrainRun, WithAndWithoutACacheTheBytesAreTheSame) {
  auto spec = trial(Architecture::kTopK, 60);  // two passes
  spec.stream.normalize = sweeps::Normalize::kUnitMeanSquare;
  const auto digest = digest_of(undisturbed(spec), "sae.safetensors");

  FakeAgent agent(state(), dir_.path() / "cache");
  auto run = run_of({train_member(spec)}, kNever);
  run.set_cache_bytes(std::uint64_t{1} << 30);
  const auto first = agent.run_to_end(run);
  EXPECT_EQ(digest_of(first.results.at(task_of(spec)), "sae.safetensors"), digest);
  EXPECT_GT(agent.chunk_counters().misses, 0u);
  run.set_run_id(2);
  const auto second = agent.run_to_end(run);
  EXPECT_EQ(digest_of(second.results.at(task_of(spec)), "sae.safetensors"), digest);
  EXPECT_EQ(second.harvested, 0u);
  EXPECT_GT(agent.chunk_counters().hits, 0u);
}

TEST_F(TrainRun, TellsHowMuchOfItsTimeItWaitedForRows) {
  const auto spec = trial(Architecture::kTopK, 10'000'000);  // until it has told
  FakeAgent agent(state());
  agent.send_run(run_of({train_member(spec)}, kNever));
  double share = -1;
  std::uint64_t training_us = 0, waiting_us = 0;
  ASSERT_TRUE(agent.wait_for([&](const protocol::Envelope& envelope) {
    if (envelope.has_progress() && envelope.progress().stage() == "train")
      share = envelope.progress().waiting();
    training_us += envelope.tokens_done().training_us();
    waiting_us += envelope.tokens_done().waiting_us();
    return share >= 0 && envelope.has_tokens_done();  // which follows what was told
  }));
  EXPECT_GT(share, 0);
  EXPECT_LT(share, 1);
  EXPECT_NEAR(static_cast<double>(waiting_us) / static_cast<double>(training_us), share, 1e-3);
}

// A group in memory beside the next, one after the other, or all of the stream: never another byte.
TEST_F(TrainRun, GroupsThatAreBroughtAheadChangeNoByte) {
  auto spec = trial(Architecture::kTopK, 80);  // two passes and a half
  spec.stream.shuffle_rows = 300;
  FakeAgent roomy(state()), narrow(state("narrow"));
  auto run = run_of({train_member(spec)}, kNever);
  const auto ahead = roomy.run_to_end(run);
  run.set_memory_bytes(1 << 20);  // the estimate leaves no room for a second group
  const auto alone = narrow.run_to_end(run);
  EXPECT_EQ(digest_of(ahead.results.at(task_of(spec)), "sae.safetensors"),
            digest_of(alone.results.at(task_of(spec)), "sae.safetensors"));
}

// Without a cache a budget of one pass harvests every chunk once, however many train on it.
TEST_F(TrainRun, OnePassWithoutACacheHarvestsEveryChunkOnceForAll) {
  auto first = trial(Architecture::kTopK, 156), second = trial(Architecture::kStandard, 156);
  for (auto* spec : {&first, &second}) {
    spec->stream.data.games = 2000;  // two chunks
    spec->stream.tokens = 10'000;
    spec->stream.shuffle_rows = 1000;
    spec->training.eval_every = 0;
  }
  FakeAgent agent(state(), dir_.path() / "cache");
  auto run = run_of({train_member(first), train_member(second)}, kNever);
  const auto streamed = agent.run_to_end(run);
  EXPECT_EQ(streamed.trained, 2u * 156 * 64);
  EXPECT_EQ(agent.chunk_counters().misses, 0u) << "nobody asked the cache";
  run.set_cache_bytes(std::uint64_t{1} << 30);
  run.set_run_id(2);
  const auto cached = agent.run_to_end(run);
  EXPECT_GT(agent.chunk_counters().misses, 0u);
  EXPECT_EQ(streamed.harvested, cached.harvested) << "with a cache it is every chunk once";
  EXPECT_EQ(digest_of(streamed.results.at(task_of(first)), "sae.safetensors"),
            digest_of(cached.results.at(task_of(first)), "sae.safetensors"));
}

class FilteredRun : public TrainRun, public testing::WithParamInterface<Architecture> {};
INSTANTIATE_TEST_SUITE_P(TrainRun, FilteredRun,
                         testing::Values(Architecture::kTopK, Architecture::kEndToEnd));

TEST_P(FilteredRun, FiltersAreInTheConfigurationAndSurviveADeath) {
  auto spec = trial(GetParam(), 60);
  spec.stream.filters = {
      .remove_bos = true, .exclude_special_tokens = {3}, .max_activation_norm_multiple = 1.05};
  spec.stream.tokens = 1500;
  spec.stream.normalize = sweeps::Normalize::kUnitMeanSquare;
  const auto whole = undisturbed(spec);
  const Json config = parse_json(bytes_of(whole, "config.json", "undisturbed")).value();
  EXPECT_THAT(JsonSchemaCheck::problems(config, JsonSchemaCheck::schema("config")),
              testing::IsEmpty());
  EXPECT_EQ(config["filters"]["remove_bos"], true);
  EXPECT_EQ(config["filters"]["exclude_special_tokens"], Json::array({3}));
  EXPECT_EQ(config["filters"]["max_activation_norm_multiple"], 1.05);
  EXPECT_GT(config["filters"]["dropped_rows"], 0.1);
  EXPECT_LT(config["filters"]["dropped_rows"], 0.9);

  protocol::CheckpointRef stands_at;
  {
    FakeAgent agent(state());
    agent.send_run(run_of({train_member(spec)}));
    const auto checkpoint = agent.wait_for(checkpoint_number(17));
    ASSERT_TRUE(checkpoint);
    stands_at = checkpoint->checkpointed().checkpoint();
    agent.kill();
  }
  FakeAgent agent(state());
  auto member = train_member(spec, 2);
  *member.mutable_resume() = stands_at;
  const auto resumed = agent.run_to_end(run_of({member}, kNever));
  EXPECT_EQ(digest_of(resumed.results.at(task_of(spec)), "sae.safetensors"),
            digest_of(whole, "sae.safetensors"));
  auto other = spec;
  other.stream.filters.max_activation_norm_multiple = 0;
  EXPECT_NE(digest_of(undisturbed(other), "sae.safetensors"), digest_of(whole, "sae.safetensors"));
}

TEST_F(TrainRun, ACacheThatCannotBeHadIsDoneWithout) {
  const auto spec = trial(Architecture::kTopK, 20);
  FakeAgent agent(state());  // its service answers FULL
  auto run = run_of({train_member(spec)}, kNever);
  run.set_cache_bytes(std::uint64_t{1} << 30);
  const auto left = agent.run_to_end(run);
  EXPECT_EQ(digest_of(left.results.at(task_of(spec)), "sae.safetensors"),
            digest_of(undisturbed(spec), "sae.safetensors"));
}

TEST_F(TrainRun, AThresholdThatWasNeverUpdatedIsCalibrated) {
  auto spec = trial(Architecture::kBatchTopK, 20);
  spec.training.threshold_start_step = 1000;
  for (const double holdout : {0.1, 0.0}) {
    spec.stream.holdout = holdout;
    FakeAgent agent(state());
    const auto left = agent.run_to_end(run_of({train_member(spec)}, kNever));
    const Json config = parse_json(bytes_of(left.results.at(task_of(spec)), "config.json")).value();
    EXPECT_EQ(config["threshold_calibrated"], true);
  }
}

TEST_F(TrainRun, ATrialThatDivergesTakesNothingAlong) {
  auto wild = trial(Architecture::kStandard, 60);
  wild.training.lr = 1e30;
  const auto tame = trial(Architecture::kTopK, 60);
  FakeAgent agent(state());
  const auto left = agent.run_to_end(run_of({train_member(wild), train_member(tame)}, kNever));
  const auto& result = left.results.at(task_of(wild));
  EXPECT_EQ(result.outcome(), protocol::OUTCOME_DIVERGED);
  EXPECT_THAT(result.reason(), HasSubstr("step"));
  EXPECT_EQ(digest_of(left.results.at(task_of(tame)), "sae.safetensors"),
            digest_of(undisturbed(tame), "sae.safetensors"));
}

TEST_F(TrainRun, ActivationsOfSomebodyElseNeedNoModel) {
  constexpr std::uint64_t kRows = 8192, kWidth = 16;
  std::vector<float> values(kRows * kWidth);
  Rng rng(1, "test.activations");
  for (float& value : values) value = static_cast<float>(rng.normal());
  const storage::TensorToWrite tensor{
      "x", "F32", {kRows, kWidth}, std::as_bytes(std::span(values))};
  const auto file = dir_.path() / "acts.safetensors";
  std::ofstream(file, std::ios::binary) << storage::serialize_safetensors(std::span(&tensor, 1));

  auto spec = trial(Architecture::kTopK, 40);
  spec.stream.model.reset();
  spec.stream.hook.clear();
  spec.stream.data = {};
  spec.stream.data.source = "activations";
  spec.stream.data.path = file.string();
  spec.stream.data.tensor = "x";
  spec.stream.holdout = 0;
  FakeAgent agent(state());
  const auto left = agent.run_to_end(run_of({train_member(spec)}, kNever));
  const auto& result = left.results.at(task_of(spec));
  EXPECT_EQ(result.outcome(), protocol::OUTCOME_DONE) << result.reason();
  EXPECT_EQ(parse_json(bytes_of(result, "config.json")).value()["model_digest"], nullptr);
}

// What can never succeed: the reason is for the author of the sweep.
struct BadInput : Scene {
  void expect_failure(const sweeps::TrialSpec& spec, const std::string& reason) {
    FakeAgent agent(state());
    const auto left = agent.run_to_end(run_of({train_member(spec)}, kNever));
    const auto& result = left.results.at(task_of(spec));
    EXPECT_EQ(result.outcome(), protocol::OUTCOME_FAILED);
    EXPECT_THAT(result.reason(), HasSubstr(reason));
  }
};

TEST_F(BadInput, AnUnknownHookNamesTheNearest) {
  auto spec = trial(Architecture::kTopK);
  spec.stream.hook = "blocks.0.hook_resid_pots";
  expect_failure(spec, "blocks.0.hook_resid_post");
}

TEST_F(BadInput, AModelThatIsMissing) {
  auto spec = trial(Architecture::kTopK);
  spec.stream.model->path = (dir_.path() / "nowhere").string();
  expect_failure(spec, "nowhere");
}

TEST_F(BadInput, WeightsThatAreNotFinite) {
  auto model = worker::Transformer::load(model_).value();
  model.weights().at("wte.weight").mutable_data_ptr<float>()[0] = std::nanf("");
  ASSERT_TRUE(model.save(model_));
  expect_failure(trial(Architecture::kTopK), "wte.weight");
}

TEST_F(BadInput, AModelFileThatIsCutOff) {
  std::filesystem::resize_file(model_ / "model.safetensors", 1000);
  expect_failure(trial(Architecture::kTopK), "model.safetensors");
}

TEST_F(BadInput, AModelThatChangedSinceTheSweepWasPlanned) {
  const auto spec = trial(Architecture::kTopK);
  auto model = worker::Transformer::load(model_).value();
  model.weights().at("wte.weight").mutable_data_ptr<float>()[0] += 1;
  ASSERT_TRUE(model.save(model_));
  expect_failure(spec, "changed since the sweep was planned");
}

TEST_F(BadInput, FewerTokensThanAskedFor) {
  auto spec = trial(Architecture::kTopK);
  spec.stream.tokens = 1'000'000;
  expect_failure(spec, "1000000");
}

TEST_F(BadInput, ASpecThatIsNone) {
  FakeAgent agent(state());
  auto member = train_member(trial(Architecture::kTopK));
  member.set_spec("{\"stream\": 3}");
  const auto left = agent.run_to_end(run_of({member}));
  EXPECT_EQ(left.results.at(member.task()).outcome(), protocol::OUTCOME_FAILED);
}

TEST_F(TrainRun, AFullDiskIsPassingTrouble) {
  const auto spec = trial(Architecture::kTopK, 50);
  FakeAgent agent(state());
  agent.wait_for([](const auto& envelope) { return envelope.has_executor_hello(); });
  // Files may not grow past this: the write fails as it does on a full disk.
  const ::rlimit limit{1000, 1000};
  ASSERT_EQ(::prlimit(agent.pid(), RLIMIT_FSIZE, &limit, nullptr), 0);
  const auto left = agent.run_to_end(run_of({train_member(spec)}));
  const auto& result = left.results.at(task_of(spec));
  EXPECT_EQ(result.outcome(), protocol::OUTCOME_RETRY);
  EXPECT_THAT(result.reason(), StartsWith("disk full"));
  EXPECT_FALSE(result.out_of_memory());
}

TEST_F(TrainRun, TooLittleMemoryIsPassingTrouble) {
  const auto modest = trial(Architecture::kTopK, 20);
  auto greedy = trial(Architecture::kTopK, 20);
  greedy.training.d_sae = std::uint64_t{1} << 44;  // no machine has it
  FakeAgent agent(state());
  const auto left = agent.run_to_end(run_of({train_member(greedy)}, kNever));
  const auto& result = left.results.at(task_of(greedy));
  EXPECT_EQ(result.outcome(), protocol::OUTCOME_RETRY) << result.reason();
  EXPECT_TRUE(result.out_of_memory());
  // The executor is still of use.
  const auto after = agent.run_to_end(run_of({train_member(modest)}, kNever, 2));
  EXPECT_EQ(after.results.at(task_of(modest)).outcome(), protocol::OUTCOME_DONE);
}

}  // namespace
}  // namespace saesweep::test
