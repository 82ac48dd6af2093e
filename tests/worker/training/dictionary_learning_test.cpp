// Step by step what the library dictionary_learning makes of the same weights and batches. The
// files in golden/ are written by tests/scripts/make_dictionary_learning_golden.py.
#include "core/json.h"
#include "storage/formats/safetensors.h"
#include "tests/worker/training/reference.h"
#include "worker/tensor_bytes.h"

namespace saesweep::worker::test {
namespace {

constexpr double kTolerance = 1e-4;

storage::Safetensors golden(const std::string& name) {
  auto file = storage::Safetensors::open(std::string(SAESWEEP_SOURCE_DIR) +
                                         "/tests/worker/training/golden/" + name + ".safetensors");
  EXPECT_TRUE(file) << file.error().message;
  return std::move(*file);
}

at::Tensor read(const storage::Safetensors& file, const std::string& name) {
  const auto* view = file.find(name);
  EXPECT_NE(view, nullptr) << name;
  return to_tensor(*view, name).value();
}

TrainingSpec spec_of(Architecture architecture, const Json& settings) {
  TrainingSpec spec;
  spec.architecture = architecture;
  spec.recipe = "saebench-v1";
  spec.d_sae = 64;
  spec.batch = settings.at("batch");
  spec.tokens = spec.batch * settings.at("steps").get<std::uint64_t>();
  spec.lr = settings.at("lr");
  spec.warmup_steps = settings.at("warmup_steps");
  spec.decay_start = settings.at("decay_start");
  if (of_topk_family(architecture)) {
    spec.k = settings.at("k").get<std::uint64_t>();
    spec.aux_k_weight = settings.at("auxk_alpha");
    spec.threshold_beta = settings.at("threshold_beta");
    spec.threshold_start_step = settings.at("threshold_start_step");
    spec.dead_after_tokens = settings.at("dead_after_tokens");
    spec.grad_clip = 1.0;
    if (architecture == Architecture::kMatryoshka)
      spec.group_fractions = settings.at("group_fractions").get<std::vector<double>>();
    return spec;
  }
  spec.sparsity_warmup_steps = settings.at("sparsity_warmup_steps");
  if (is_gated(architecture) || architecture == Architecture::kJumpRelu) spec.adam_beta1 = 0;
  if (architecture == Architecture::kJumpRelu) {
    spec.grad_clip = 1.0;
    spec.l0_target = settings.at("target_l0").get<double>();
    spec.l0_coefficient = settings.at("sparsity_penalty").get<double>();
    spec.bandwidth = settings.at("bandwidth");
    return spec;
  }
  if (architecture == Architecture::kStandard) spec.grad_clip = 1.0;
  if (!is_annealed(architecture)) {
    spec.l1 = settings.at("l1_penalty").get<double>();
    return spec;
  }
  spec.l1 = settings.at("initial_sparsity_penalty").get<double>();
  spec.anneal_start = settings.at("anneal_start");
  spec.anneal_end = spec.steps();
  spec.n_sparsity_updates = settings.at("n_sparsity_updates");
  spec.p_end = settings.at("p_end");
  spec.sparsity_function = settings.at("sparsity_function") == "Lp"
                               ? sweeps::SparsityFunction::kLp
                               : sweeps::SparsityFunction::kLpP;
  return spec;
}

void expect_same_training(const std::string& name, Architecture architecture) {
  const auto inputs = golden("inputs");
  const auto want = golden(name);
  const auto settings = parse_json(want.metadata().at("settings")).value();
  const TrainingSpec spec = spec_of(architecture, settings);
  const at::Tensor rows = read(inputs, "rows");
  ThreadPool pool(2);
  const auto trainer = make_trainer(spec, rows.size(1), pool);
  const Named parameters = named_parameters(inside(*trainer).parameters());
  const double scale = starts_at_unit_norm(architecture) ? 10 : 1;
  for (const auto& [key, tensor] : parameters) {
    if (key == "b_dec") continue;
    const bool other = key == "b_enc" && of_topk_family(architecture);
    tensor.copy_(read(inputs, other ? "b_enc_topk" : key) * (key[0] == 'W' ? scale : 1));
  }

  const at::Tensor losses = read(want, "losses");
  ASSERT_EQ(losses.numel(), 100);
  for (std::uint64_t step = 0; step < spec.steps(); ++step) {
    const auto report = trainer->train_step(step_rows(rows, step, spec.batch));
    ASSERT_TRUE(report) << report.error().message;
    const double loss = losses.const_data_ptr<double>()[step];
    ASSERT_NEAR(report->loss, loss, kTolerance * loss) << name << " step " << step;
  }
  for (const auto& [key, tensor] : parameters)
    EXPECT_LT(distance(tensor, read(want, key)), kTolerance) << name << " " << key;
  // The weights moved, or agreement would mean nothing.
  EXPECT_GT(distance(parameters.at("W_enc"), read(inputs, "W_enc") * scale), 0.05);
  for (const char* key : {"b_mag", "r_mag", "threshold"})
    if (parameters.contains(key))
      EXPECT_GT(distance(parameters.at(key), read(inputs, key)), 0.02) << key;

  if (!of_topk_family(architecture)) return;
  const double threshold = read(want, "threshold").item<float>();
  const double ours = architecture == Architecture::kTopK
                          ? trainer->config().at("threshold").get<double>()
                          : trainer->sae().threshold[0].item<float>();
  EXPECT_NEAR(ours, threshold, kTolerance);
  const at::Tensor silence = read(want, "tokens_since_fired");
  const auto dead =
      silence.ge(static_cast<std::int64_t>(spec.dead_after_tokens)).sum().item<std::int64_t>();
  EXPECT_NEAR(trainer->summary().at("dead_fraction").get<double>(), static_cast<double>(dead) / 64,
              1e-9);
}

TEST(DictionaryLearning, TopKTrainsAlike) { expect_same_training("topk", Architecture::kTopK); }

TEST(DictionaryLearning, BatchTopKTrainsAlike) {
  expect_same_training("batchtopk", Architecture::kBatchTopK);
}

TEST(DictionaryLearning, StandardOfApril2024TrainsAlike) {
  expect_same_training("standard", Architecture::kStandard);
}

TEST(DictionaryLearning, StandardWithAUnitDecoderTrainsAlike) {
  expect_same_training("standard_bricken", Architecture::kStandardBricken);
}

TEST(DictionaryLearning, PAnnealTrainsAlike) {
  expect_same_training("p_anneal", Architecture::kPAnneal);
  expect_same_training("p_anneal_lp", Architecture::kPAnneal);
}

TEST(DictionaryLearning, GatedTrainsAlike) { expect_same_training("gated", Architecture::kGated); }

TEST(DictionaryLearning, GatedPAnnealTrainsAlike) {
  expect_same_training("gated_p_anneal", Architecture::kGatedPAnneal);
}

TEST(DictionaryLearning, JumpReluTrainsAlike) {
  expect_same_training("jumprelu", Architecture::kJumpRelu);
}

TEST(DictionaryLearning, MatryoshkaTrainsAlike) {
  expect_same_training("matryoshka", Architecture::kMatryoshka);
}

}  // namespace
}  // namespace saesweep::worker::test
