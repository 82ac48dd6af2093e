// The sweeps that ship with the program, and the JSON Schema of the sweep file.
#include <gmock/gmock.h>

#include <algorithm>
#include <regex>
#include <set>

#include "core/files.h"
#include "sweeps/estimates.h"
#include "sweeps/known_keys.h"
#include "sweeps/recipes.h"
#include "sweeps/sweep_plan.h"
#include "sweeps/yaml_document.h"
#include "tests/support/json_schema_check.h"
#include "tests/support/temp_dir.h"

namespace saesweep::sweeps {
namespace {

using testing::IsEmpty;
using testing::SizeIs;
using testing::UnorderedElementsAreArray;

const std::filesystem::path kSweeps = std::filesystem::path(SAESWEEP_SOURCE_DIR) / "sweeps";

// As a YAML reader with the core schema sees it: numbers and truth values are no strings.
Json to_json(const YamlNode& node) {
  if (node.is_null()) return nullptr;
  if (node.is_scalar()) {
    if (node.text == "true" || node.text == "false") return node.text == "true";
    static const std::regex kNumber("[-+]?([0-9]+)(\\.[0-9]*)?([eE][-+]?[0-9]+)?");
    std::smatch parts;
    if (!std::regex_match(node.text, parts, kNumber)) return node.text;
    if (parts[2].matched || parts[3].matched) return std::stod(node.text);
    return std::stoll(node.text);
  }
  Json json = node.is_map() ? Json::object() : Json::array();
  for (std::size_t i = 0; i < node.items.size(); ++i) {
    if (node.is_map())
      json[node.keys[i].text] = to_json(node.items[i]);
    else
      json.push_back(to_json(node.items[i]));
  }
  return json;
}

std::vector<std::string> schema_problems(const std::string& yaml) {
  static const Json kSchema = test::JsonSchemaCheck::schema("sweep");
  return test::JsonSchemaCheck::problems(to_json(parse_yaml(yaml).value()), kSchema);
}

SweepPlan plan_of(const std::string& name, const PlanOptions& options = {}) {
  auto plan = plan_sweep(kSweeps / name, options);
  if (!plan) {
    for (const SweepFileError& error : plan.error()) ADD_FAILURE() << error.to_string();
    return {};
  }
  return std::move(*plan);
}

// The reference model's shape with random weights, so that the weights need not be there.
PlanOptions with_shape(const test::TempDir& dir) {
  const Json config = {{"n_layer", 4},
                       {"n_embd", 128},
                       {"n_head", 8},
                       {"n_inner", 512},
                       {"n_positions", 31},
                       {"vocab_size", 33},
                       {"activation_function", "gelu"}};
  EXPECT_TRUE(write_file_atomically(dir.path() / "config.json", config.dump()));
  return {.overrides = {"model.path=" + dir.path().string(), "model.random_weights=true"}};
}

std::vector<std::string> keys_of(const Json& properties) {
  std::vector<std::string> keys;
  for (const auto& [key, value] : properties.items()) keys.push_back(key);
  return keys;
}

TEST(SweepSchemaTest, KnowsTheKeysThatTheReaderKnows) {
  const Json schema = test::JsonSchemaCheck::schema("sweep");
  const Json& top = schema["properties"];
  const auto check = [](const Json& properties, KeySet set) {
    EXPECT_THAT(keys_of(properties), UnorderedElementsAreArray(known_keys(set)));
  };
  check(top, KeySet::kTop);
  check(top["model"]["properties"], KeySet::kModel);
  check(top["data"]["allOf"][0]["then"]["properties"], KeySet::kOthello);
  check(top["data"]["allOf"][1]["then"]["properties"], KeySet::kActivationData);
  check(top["activations"]["properties"], KeySet::kActivations);
  check(top["train"]["properties"], KeySet::kTrain);
  check(schema["$defs"]["family"]["properties"], KeySet::kFamily);
  check(top["search"]["properties"], KeySet::kSearch);
  check(top["resources"]["properties"], KeySet::kResources);
  check(top["train_lm"]["properties"], KeySet::kTrainLm);
  const Json& evaluate = top["evaluate"]["items"]["anyOf"];
  check(evaluate[1]["properties"]["core"]["anyOf"][1]["properties"], KeySet::kCore);
  check(evaluate[2]["properties"]["board"]["anyOf"][1]["properties"], KeySet::kBoard);
}

TEST(SweepSchemaTest, KnowsTheWordsThatTheReaderKnows) {
  const Json schema = test::JsonSchemaCheck::schema("sweep");
  const auto check = [](const Json& list, std::span<const std::string_view> words) {
    EXPECT_THAT(list.get<std::vector<std::string>>(), UnorderedElementsAreArray(words));
  };
  check(schema["$defs"]["family"]["properties"]["arch"]["enum"], architecture_names());
  check(schema["properties"]["baselines"]["items"]["enum"], baseline_names());
  check(schema["properties"]["train"]["properties"]["recipe"]["enum"], recipe_names());
}

TEST(SweepSchemaTest, AParameterHasOneTypeInTrainAndInFamilies) {
  const Json schema = test::JsonSchemaCheck::schema("sweep");
  for (const Parameter& each : parameters())
    EXPECT_EQ(schema["properties"]["train"]["properties"][std::string(each.name)],
              schema["$defs"]["family"]["properties"][std::string(each.name)]);
}

TEST(SweepSchemaTest, RefusesWhatTheReaderRefuses) {
  const std::string start =
      "data: {source: othello, games: 1k}\nactivations: {hooks: [h], tokens: 1k}\n";
  EXPECT_THAT(schema_problems(
                  start + "trials: [{arch: topk, d_sae: 8, k: {int_uniform: [1, 4], samples: 2}}]"),
              IsEmpty());
  for (const char* more :
       {"trials: []", "trials: [{d_sae: 8}]", "trials: [{arch: gatde}]",
        "trials: [{arch: topk, d_sea: 8}]", "trials: [{arch: topk, d_sae: eight}]",
        "trials: [{arch: topk, k: []}]", "trials: [{arch: topk, k: {uniform: [1, 2]}}]",
        "trials: [{arch: topk}]\ntrain_lm: {games: 5}",
        "trials: [{arch: topk}]\nearly_stopping: {}", "trials: [{arch: topk}]\nevaluate: [taste]",
        "trials: [{arch: topk}]\nbaselines: [zero]",
        "trials: [{arch: topk}]\nresources: {memory: 4GB}", "trials: [{arch: topk}]\nname: a/b",
        "trials: [{arch: topk}]\nsearch: {strategy: bayes}"}) {
    SCOPED_TRACE(more);
    EXPECT_THAT(schema_problems(start + more), testing::Not(IsEmpty()));
  }
}

TEST(ShippedSweepsTest, KeepTheSchemaBeforeAndAfterReading) {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kSweeps)) {
    if (entry.path().extension() != ".yaml") continue;
    SCOPED_TRACE(entry.path().filename());
    ++count;
    EXPECT_THAT(schema_problems(read_file(entry.path()).value()), IsEmpty());
    const bool needs_shape = entry.path().stem() == "othello-quickstart" ||
                             entry.path().stem() == "othello-architectures" ||
                             entry.path().stem() == "othello-transcoders";
    const test::TempDir dir;
    EXPECT_THAT(schema_problems(
                    plan_of(entry.path().filename(), needs_shape ? with_shape(dir) : PlanOptions{})
                        .effective_yaml),
                IsEmpty());
  }
  EXPECT_GE(count, 3);
}

// training.json beside the weights says what they were made with.
TEST(ShippedSweepsTest, TheReferenceModelsSweepIsTheOneItWasTrainedWith) {
  const SweepPlan plan = plan_of("othello-6x6-model.yaml");
  ASSERT_TRUE(plan.train_lm);
  EXPECT_EQ(plan.train_lm->data.board, 6);
  EXPECT_EQ(plan.train_lm->layers, 4);
  EXPECT_EQ(plan.train_lm->d_model, 128);
  EXPECT_EQ(plan.train_lm->context, 31);
  const auto record = kSweeps / "models/othello-6x6/training.json";
  ASSERT_TRUE(std::filesystem::exists(record)) << record;
  const Json training = parse_json(read_file(record).value()).value();
  EXPECT_EQ(TrainLmSpec::from_json(training.at("recipe")).value(), *plan.train_lm);
}

// What the quick start promises, counted without its model's weights.
TEST(ShippedSweepsTest, TheQuickStartHasTwelveTrialsOfFourArchitecturesAndAllBaselines) {
  const test::TempDir dir;
  const SweepPlan plan = plan_of("othello-quickstart.yaml", with_shape(dir));
  std::set<Architecture> architectures;
  std::set<std::uint64_t> seeds;
  std::set<std::string> baselines;
  for (const PlannedTrial& trial : plan.trials) {
    architectures.insert(trial.spec.training.architecture);
    seeds.insert(trial.spec.training.seed);
  }
  for (const PlannedBaseline& each : plan.baselines) baselines.insert(each.spec.name);
  EXPECT_GE(plan.trials.size(), 12u);
  EXPECT_GE(architectures.size(), 4u);
  EXPECT_THAT(seeds, SizeIs(2));
  EXPECT_THAT(baselines, UnorderedElementsAreArray(baseline_names()));
  EXPECT_THAT(plan.warnings, IsEmpty());
  EXPECT_THAT(plan.evaluations, SizeIs(2));
  const SweepEstimate sum = estimate(plan);
  EXPECT_LE(sum.memory_bytes, std::uint64_t{2} << 30);
  EXPECT_LE(sum.seconds, 300);
}

TEST(ShippedSweepsTest, TheSweepsOfArchitecturesAndTranscodersHaveThemAll) {
  const test::TempDir dir;
  std::set<Architecture> architectures;
  for (const char* name : {"othello-architectures.yaml", "othello-transcoders.yaml"}) {
    const SweepPlan plan = plan_of(name, with_shape(dir));
    for (const PlannedTrial& trial : plan.trials)
      architectures.insert(trial.spec.training.architecture);
    EXPECT_THAT(plan.warnings, IsEmpty());
    EXPECT_LE(estimate(plan).memory_bytes, std::uint64_t{2} << 30);
  }
  EXPECT_EQ(architectures.size(), architecture_names().size());
}

// One stream for each way of looking: one hook, a pair, three at once.
TEST(ShippedSweepsTest, TheSweepOfTranscodersReadsJointStreamsAndGivesThemNoBaselines) {
  const test::TempDir dir;
  const SweepPlan plan = plan_of("othello-transcoders.yaml", with_shape(dir));
  ASSERT_THAT(plan.streams, SizeIs(3));
  EXPECT_EQ(plan.streams[0].spec.label(), "blocks.2.hook_mlp_out");
  EXPECT_EQ(plan.streams[1].spec.label(), "blocks.2.ln2.hook_normalized+blocks.2.hook_mlp_out");
  EXPECT_EQ(plan.streams[2].spec.hooks().size(), 3u);
  EXPECT_EQ(plan.streams[1].d_in, 256u);
  EXPECT_EQ(plan.streams[2].d_in, 384u);
  for (const PlannedBaseline& baseline : plan.baselines)
    EXPECT_EQ(baseline.spec.stream, plan.streams[0].spec);
  EXPECT_THAT(plan.baselines, SizeIs(2));
}

TEST(ShippedSweepsTest, TheSmokeSweepCoversEveryArchitectureAndBaselineInSeconds) {
  const SweepPlan plan = plan_of("othello-smoke.yaml");
  std::set<Architecture> architectures;
  std::set<std::string> baselines;
  for (const PlannedTrial& trial : plan.trials)
    architectures.insert(trial.spec.training.architecture);
  for (const PlannedBaseline& each : plan.baselines) baselines.insert(each.spec.name);
  EXPECT_EQ(architectures.size(), architecture_names().size());
  EXPECT_THAT(baselines, UnorderedElementsAreArray(baseline_names()));
  EXPECT_LE(estimate(plan).seconds, 30);
}

}  // namespace
}  // namespace saesweep::sweeps
