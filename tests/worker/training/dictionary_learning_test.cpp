// Step by step what the library dictionary_learning makes of the same weights and batches. The
// files in golden/ are written by tests/scripts/make_dictionary_learning_golden.py.
#include "core/json.h"
#include "storage/formats/safetensors.h"
#include "tests/worker/training/trainers.h"
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
    return spec;
  }
  spec.sparsity_warmup_steps = settings.at("sparsity_warmup_steps");
  if (architecture == Architecture::kStandard) spec.grad_clip = 1.0;
  if (architecture != Architecture::kPAnneal) {
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
  SaeTensors& parameters = inside(*trainer).parameters();
  const double scale = of_topk_family(architecture) ? 10 : 1;
  parameters.w_enc.copy_(read(inputs, "W_enc") * scale);
  parameters.w_dec.copy_(read(inputs, "W_dec") * scale);
  parameters.b_enc.copy_(read(inputs, of_topk_family(architecture) ? "b_enc_topk" : "b_enc"));

  const at::Tensor losses = read(want, "losses");
  ASSERT_EQ(losses.numel(), 100);
  for (std::uint64_t step = 0; step < spec.steps(); ++step) {
    const auto report = trainer->train_step(step_rows(rows, step, spec.batch));
    ASSERT_TRUE(report) << report.error().message;
    const double loss = losses.const_data_ptr<double>()[step];
    ASSERT_NEAR(report->loss, loss, kTolerance * loss) << name << " step " << step;
  }
  EXPECT_LT(distance(parameters.w_enc, read(want, "W_enc")), kTolerance) << name;
  EXPECT_LT(distance(parameters.b_enc, read(want, "b_enc")), kTolerance) << name;
  EXPECT_LT(distance(parameters.w_dec, read(want, "W_dec")), kTolerance) << name;
  EXPECT_LT(distance(parameters.b_dec, read(want, "b_dec")), kTolerance) << name;
  // The weights moved, or agreement would mean nothing.
  EXPECT_GT(distance(parameters.w_enc, read(inputs, "W_enc") * scale), 0.05);

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

}  // namespace
}  // namespace saesweep::worker::test
