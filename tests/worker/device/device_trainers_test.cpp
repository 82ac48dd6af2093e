// Trainers whose steps are done by the kernels of a GPU, against those of the CPU.
#include <c10/util/BFloat16.h>
#include <dlfcn.h>

#include <filesystem>

#include "core/files.h"
#include "tests/support/temp_dir.h"
#include "tests/worker/training/trainers.h"
#include "worker/device/session.h"
#include "worker/training/cohort.h"

namespace saesweep::worker::test {
namespace {

namespace fs = std::filesystem;
using device::Session;
using saesweep::test::TempDir;
using sweeps::Precision;
using sweeps::SparsityFunction;

constexpr std::int64_t kIn = 12;
constexpr std::uint64_t kBatch = 140, kFewRows = 35, kSteps = 24;

const std::vector<Architecture> kOnDevice = [] {
  std::vector<Architecture> all;
  for (const Architecture architecture : kAllArchitectures)
    if (sweeps::trains_on_gpu(architecture)) all.push_back(architecture);
  return all;
}();

TrainingSpec lively(Architecture architecture, std::uint64_t seed = 0) {
  TrainingSpec spec = lively_spec(architecture, kBatch, kSteps);
  spec.seed = seed;
  return spec;
}

// All that is done on the device, with both penalties that bend.
std::vector<TrainingSpec> lively_specs() {
  std::vector<TrainingSpec> specs;
  for (const Architecture architecture : kOnDevice) {
    specs.push_back(lively(architecture));
    if (!is_annealed(architecture)) continue;
    specs.push_back(specs.back());
    specs.back().sparsity_function = specs.back().sparsity_function == SparsityFunction::kLp
                                         ? SparsityFunction::kLpP
                                         : SparsityFunction::kLp;
  }
  return specs;
}

TrainingSpec on_device(TrainingSpec spec) {
  spec.device = "cuda";
  return spec;
}

at::Tensor rows() { return sparse_rows(7 * kBatch, directions(30, kIn, 1), 4, 2); }

class OnDevice : public testing::Test {
 protected:
  OnDevice() {
    const auto api = device::load_module(EMULATED_GPU);
    EXPECT_TRUE(api) << api.error().message;
    device_ = std::move(*device::Device::open(**api, 0));
  }

  // Of the emulated module, beside the table.
  template <class Function>
  static Function emulated(const char* name) {
    void* module = ::dlopen(EMULATED_GPU, RTLD_NOW | RTLD_NOLOAD);
    EXPECT_NE(module, nullptr);
    const auto found = reinterpret_cast<Function>(::dlsym(module, name));
    EXPECT_NE(found, nullptr) << name;
    return found;
  }
  // Since the device was opened first.
  struct Calls {
    std::uint64_t waits = 0, asked = 0, replays = 0;
  };
  static Calls calls() {
    using Count = std::uint64_t*;
    Calls calls;
    emulated<void (*)(Count, Count, Count)>("saesweep_emulated_calls")(&calls.waits, &calls.asked,
                                                                       &calls.replays);
    return calls;
  }

  std::unique_ptr<SaeTrainer> make(const TrainingSpec& spec, std::int64_t width = kIn) {
    sessions_.push_back(std::make_unique<Session>(*device_));
    return make(spec, *sessions_.back(), width);
  }
  std::unique_ptr<SaeTrainer> make(const TrainingSpec& spec, Session& session,
                                   std::int64_t width = kIn) {
    auto trainer =
        SaeTrainer::create(on_device(spec), parts_of(spec, width), pool_, nullptr, &session);
    EXPECT_TRUE(trainer) << trainer.error().message;
    return std::move(*trainer);
  }
  static std::string bytes_of(SaeTrainer& trainer) {
    EXPECT_TRUE(trainer.settle());
    return result_bytes(trainer);
  }

  ThreadPool pool_{2};
  std::unique_ptr<device::Device> device_;
  std::vector<std::unique_ptr<Session>> sessions_;
};

// Not the same bytes: sums are in another order.
void expect_near(SaeTrainer& there, SaeTrainer& here, double most) {
  ASSERT_TRUE(there.settle());
  const SaeTensors &a = inside(there).parameters(), &b = inside(here).parameters();
  const std::string name(to_string(here.spec().architecture));
  EXPECT_LT(distance(a.w_enc, b.w_enc), most) << name;
  EXPECT_LT(distance(a.b_enc, b.b_enc), most) << name;
  EXPECT_LT(distance(a.w_dec, b.w_dec), most) << name;
  EXPECT_LT(distance(a.b_dec, b.b_dec), most) << name;
  for (const auto& [key, tensor] : b.more)
    EXPECT_LT(distance(a.more.at(key), tensor), most) << name << " " << key;
}

TEST_F(OnDevice, TrainsAsOnTheCpu) {
  for (TrainingSpec spec : lively_specs()) {
    const Architecture architecture = spec.architecture;
    spec.lr = 3e-4;
    const auto here = make_trainer(spec, kIn, pool_);
    const auto there = make(spec);
    for (std::uint64_t step = 0; step < kSteps; ++step) {
      const auto a = there->train_step(step_rows(rows(), step, kBatch));
      const auto b = here->train_step(step_rows(rows(), step, kBatch));
      ASSERT_TRUE(a && b) << to_string(architecture);
      EXPECT_NEAR(a->loss, b->loss, 1e-4 * b->loss) << to_string(architecture) << step;
      EXPECT_NEAR(a->mse, b->mse, 1e-4 * b->mse) << to_string(architecture) << step;
      EXPECT_NEAR(a->fve, b->fve, 1e-4) << to_string(architecture) << step;
      EXPECT_NEAR(a->l0, b->l0, 0.01) << to_string(architecture) << step;
      EXPECT_NEAR(a->grad_norm, b->grad_norm, 1e-3 * b->grad_norm)
          << to_string(architecture) << step;
      EXPECT_NEAR(a->dead_fraction, b->dead_fraction, 0.01) << to_string(architecture) << step;
    }
    expect_near(*there, *here, 2e-5);
    // Latents fell silent and learned from the residual, so that all of this was tried.
    if (has_k(architecture)) {
      EXPECT_GT(here->summary()["dead_fraction"], 0.0);
    }
  }
}

SaeTensors zeros_like(const SaeTensors& tensors) {
  SaeTensors made{at::zeros_like(tensors.w_enc),
                  at::zeros_like(tensors.b_enc),
                  at::zeros_like(tensors.w_dec),
                  at::zeros_like(tensors.b_dec),
                  {}};
  for (const auto& [name, tensor] : tensors.more) made.more.emplace(name, at::zeros_like(tensor));
  return made;
}

void copy(SaeTensors& to, const SaeTensors& from) {
  to.w_enc.copy_(from.w_enc);
  to.b_enc.copy_(from.b_enc);
  to.w_dec.copy_(from.w_dec);
  to.b_dec.copy_(from.b_dec);
  for (const auto& [name, tensor] : from.more) to.more.at(name).copy_(tensor);
}

// From the same state, so that nothing has had time to drift.
void expect_same_gradients(Session& session, const TrainingSpec& spec, ThreadPool& pool) {
  const std::string name(to_string(spec.architecture));
  const auto here = make_trainer(spec, kIn, pool);
  train(*here, rows(), 9);
  const SaeTensors& parameters = inside(*here).parameters();
  auto engine = session.make(on_device(spec), parts_of(spec, kIn));
  ASSERT_TRUE(engine) << engine.error().message;
  SaeTensors moments = zeros_like(parameters), found = zeros_like(parameters);
  std::vector<std::int64_t> silence(spec.d_sae, 0);
  ASSERT_TRUE((*engine)->write({parameters, moments, moments, silence}));
  const at::Tensor x = step_rows(rows(), 9, kBatch);
  std::vector<char> fired;
  ASSERT_TRUE(
      (*engine)->look(x, {.step = 9, .adam_step = 1, .sparsity_scale = 1, .dead_after = 1}, fired));
  ASSERT_TRUE((*engine)->read_gradients(found));

  TrainingSpec at_full_scale = spec;
  at_full_scale.sparsity_warmup_steps = 0;
  const auto fresh = make_trainer(at_full_scale, kIn, pool);
  copy(inside(*fresh).parameters(), parameters);
  inside(*fresh).pass_for_test(x);
  const SaeTensors& expected = inside(*fresh).gradients();
  EXPECT_GT(expected.w_dec.abs().max().item<float>(), 0);
  EXPECT_LT(relative_distance(found.w_enc, expected.w_enc), 1e-5) << name;
  EXPECT_LT(relative_distance(found.b_enc, expected.b_enc), 1e-5) << name;
  EXPECT_LT(relative_distance(found.w_dec, expected.w_dec), 1e-5) << name;
  EXPECT_LT(relative_distance(found.b_dec, expected.b_dec), 1e-5) << name;
  for (const auto& [key, gradient] : expected.more)
    EXPECT_LT(relative_distance(found.more.at(key), gradient), 1e-4) << name << " " << key;
}

TEST_F(OnDevice, GradientsAreThoseOfTheCpu) {
  Session session(*device_);
  for (const auto architecture : kOnDevice)
    expect_same_gradients(session, lively(architecture), pool_);
  for (const auto loss :
       {sweeps::SparsityLoss::kL0, sweeps::SparsityLoss::kL0Target, sweeps::SparsityLoss::kTanh})
    expect_same_gradients(session, jumprelu_spec(loss, 150, kBatch, kSteps), pool_);
}

TEST_F(OnDevice, RoundedProductsStayNear) {
  for (const auto architecture : kOnDevice) {
    TrainingSpec spec = lively(architecture);
    spec.lr = 1e-4;
    spec.precision = Precision::kBFloat16;
    const auto here = make_trainer(spec, kIn, pool_);
    const auto there = make(spec);
    train(*here, rows(), kSteps);
    train(*there, rows(), kSteps);
    ASSERT_TRUE(there->settle());
    const double moved = distance(inside(*here).parameters().w_enc,
                                  inside(*make_trainer(spec, kIn, pool_)).parameters().w_enc);
    EXPECT_LT(distance(inside(*there).parameters().w_enc, inside(*here).parameters().w_enc), moved)
        << to_string(architecture);
    const double fve = here->summary()["fve_train"], there_fve = there->summary()["fve_train"];
    EXPECT_NEAR(there_fve, fve, 0.02 * (1 + std::abs(fve))) << to_string(architecture);
  }
}

TEST_F(OnDevice, BytesDoNotDependOnStoppingAndLookingOn) {
  for (const auto architecture : kOnDevice) {
    TrainingSpec spec = lively(architecture);
    spec.eval_every = 5 * kBatch;
    const at::Tensor apart = sparse_rows(700, directions(30, kIn, 1), 4, 77);
    const auto with_looks = [&](SaeTrainer& trainer, std::uint64_t until) {
      while (trainer.step() < until) {
        train(trainer, rows(), trainer.step() + 1);
        if (!trainer.held_out_is_due()) continue;
        ASSERT_TRUE(trainer.score_held_out(apart));
      }
    };
    const auto whole = make(spec);
    with_looks(*whole, kSteps);
    TempDir folder;
    auto trainer = make(spec);
    for (const std::uint64_t stop : {1, 7, 11, 23}) {
      with_looks(*trainer, stop);
      ASSERT_TRUE(trainer->save(folder.path() / std::to_string(stop)));
      trainer = make(spec);
      const auto restored = trainer->restore(folder.path() / std::to_string(stop));
      ASSERT_TRUE(restored) << restored.error().message;
    }
    with_looks(*trainer, kSteps);
    EXPECT_TRUE(bytes_of(*trainer) == bytes_of(*whole)) << to_string(architecture);
    ASSERT_TRUE(trainer->save(folder.path() / "pieces"));
    ASSERT_TRUE(whole->save(folder.path() / "whole"));
    for (const char* name : {"weights.safetensors", "optim.safetensors", "manifest.json"})
      EXPECT_TRUE(read_file(folder.path() / "whole" / name).value() ==
                  read_file(folder.path() / "pieces" / name).value())
          << to_string(architecture) << " " << name;
    // Looking on changes nothing but the curve.
    spec.eval_every = 0;
    const auto unseen = make(spec);
    train(*unseen, rows(), kSteps);
    ASSERT_TRUE(unseen->settle());
    EXPECT_TRUE(serialize_sae(unseen->sae()) == serialize_sae(whole->sae()));
  }
}

// Neither on the order of blocks and threads, nor on whether these are more than loops.
TEST_F(OnDevice, BytesDoNotDependOnThreads) {
  const auto emulate = emulated<void (*)(bool, int)>("saesweep_emulate");
  std::vector<TrainingSpec> specs;
  for (const auto architecture : kOnDevice)
    specs.push_back(lively_spec(architecture, kFewRows, kSteps));
  specs.push_back(jumprelu_spec(sweeps::SparsityLoss::kTanh, 150, kFewRows, kSteps));
  for (const TrainingSpec& spec : specs) {
    std::vector<std::string> results;
    for (const auto& [has_threads, order] :
         {std::pair(false, 0), std::pair(false, 1), std::pair(true, 2)}) {
      const auto trainer = make(spec);
      emulate(has_threads, order);
      train(*trainer, rows(), 5);
      emulate(false, 0);
      results.push_back(bytes_of(*trainer));
    }
    for (const std::string& result : results)
      EXPECT_TRUE(result == results.front()) << to_string(spec.architecture);
  }
}

TEST_F(OnDevice, HeldOutRowsScoreAsOnTheCpu) {
  for (const auto architecture : kOnDevice) {
    TrainingSpec spec = lively(architecture);
    spec.lr = 1e-4;
    const at::Tensor apart = sparse_rows(700, directions(30, kIn, 1), 4, 77);
    const auto here = make_trainer(spec, kIn, pool_);
    const auto there = make(spec);
    train(*here, rows(), 10);
    train(*there, rows(), 10);
    const auto a = there->score_held_out(apart).value(), b = here->score_held_out(apart).value();
    EXPECT_NEAR(a.loss, b.loss, 1e-3 * b.loss) << to_string(architecture);
    EXPECT_NEAR(a.mse, b.mse, 1e-3 * b.mse) << to_string(architecture);
    EXPECT_NEAR(a.fve, b.fve, 1e-3) << to_string(architecture);
    EXPECT_NEAR(a.l0, b.l0, 0.01) << to_string(architecture);
    EXPECT_NEAR(a.dead_fraction, b.dead_fraction, 0.01) << to_string(architecture);
  }
}

// Members of a cohort share the device's memory for what is on its way, and nothing else.
TEST_F(OnDevice, ACohortTrainsAsItsMembersAlone) {
  TensorStream stream(rows());
  Session session(*device_);
  Cohort cohort(stream, pool_);
  for (const auto architecture : kOnDevice) {
    TrainingSpec spec = lively(architecture);
    cohort.add(std::string(to_string(architecture)), make(spec, session));
    spec.d_sae = 77;  // narrower than the scratch memory of the one before
    spec.seed = 1;
    cohort.add(std::string(to_string(architecture)) + " narrow", make(spec, session));
  }
  for (std::uint64_t step = 0; step < kSteps; ++step) {
    const auto outcomes = cohort.advance();
    ASSERT_TRUE(outcomes);
    EXPECT_EQ(outcomes->size(), 2 * kOnDevice.size());
    for (const auto& outcome : *outcomes) EXPECT_TRUE(outcome.report);
  }
  EXPECT_EQ(stream.reads, static_cast<int>(kSteps));
  for (const auto architecture : kOnDevice) {
    TrainingSpec spec = lively(architecture);
    const auto alone = make(spec);
    train(*alone, rows(), kSteps);
    SaeTrainer& member = *cohort.find(std::string(to_string(architecture)));
    EXPECT_TRUE(bytes_of(member) == bytes_of(*alone)) << to_string(architecture);
  }
}

TEST_F(OnDevice, WhatIsNotFiniteIsSkippedAndHarmsNobodyElse) {
  for (const auto architecture : kOnDevice) {
    TensorStream stream(rows());
    Session session(*device_);
    Cohort cohort(stream, pool_);
    cohort.add("well", make(lively(architecture, 1), session));
    cohort.add("ill", make(lively(architecture, 2), session));
    cohort.add("last", make(lively(architecture, 3), session));
    for (int step = 0; step < 3; ++step) ASSERT_TRUE(cohort.advance());
    // Its parameters are damaged by way of a checkpoint, as memory might be.
    TempDir folder;
    auto ill = cohort.remove("ill");
    ASSERT_TRUE(ill->save(folder.path() / "ill"));
    ASSERT_TRUE(ill->restore(folder.path() / "ill"));
    inside(*ill).parameters().w_enc.index_put_({5, 3}, std::nanf(""));
    cohort.add("ill", std::move(ill));
    int skipped = 0;
    std::optional<Error> ended;
    for (std::uint64_t step = 3; step < kSteps; ++step) {
      const auto outcomes = cohort.advance();
      ASSERT_TRUE(outcomes);
      for (const auto& outcome : *outcomes) {
        if (outcome.name != "ill") {
          ASSERT_TRUE(outcome.report && outcome.report->applied);
        } else if (outcome.report) {
          EXPECT_FALSE(outcome.report->applied);
          ++skipped;
        } else {
          ended = outcome.report.error();
        }
      }
      if (ended && cohort.find("ill") != nullptr) cohort.remove("ill");
    }
    EXPECT_EQ(skipped, 9) << to_string(architecture);
    ASSERT_TRUE(ended);
    EXPECT_EQ(ended->code, ErrorCode::kDiverged);
    for (const std::uint64_t seed : {1, 3}) {
      const auto alone = make(lively(architecture, seed));
      train(*alone, rows(), kSteps);
      EXPECT_TRUE(bytes_of(*cohort.find(seed == 1 ? "well" : "last")) == bytes_of(*alone))
          << to_string(architecture);
    }
  }
}

// A gradient that overflows is found on the device: nothing has moved.
TEST_F(OnDevice, AStepThatIsSkippedChangesNothing) {
  for (const auto architecture : kOnDevice) {
    const auto trainer = make(lively(architecture));
    train(*trainer, rows(), 5);
    TempDir folder;
    ASSERT_TRUE(trainer->save(folder.path() / "before"));
    at::Tensor wrong = step_rows(rows(), 5, kBatch).clone();
    wrong.index_put_({17, 4}, INFINITY);
    const auto report = trainer->train_step(wrong);
    ASSERT_TRUE(report);
    EXPECT_FALSE(report->applied);
    ASSERT_TRUE(trainer->save(folder.path() / "after"));
    for (const char* name : {"weights.safetensors", "optim.safetensors"})
      EXPECT_TRUE(read_file(folder.path() / "before" / name).value() ==
                  read_file(folder.path() / "after" / name).value())
          << to_string(architecture) << " " << name;
  }
}

TEST_F(OnDevice, ThresholdsAreThoseOfTheCpu) {
  for (const auto architecture : kOnDevice) {
    if (!over_batch(architecture)) continue;
    for (const std::uint64_t start : {2, 1000}) {
      TrainingSpec spec = lively(architecture);
      spec.lr = 1e-4;
      spec.threshold_start_step = start;
      const auto here = make_trainer(spec, kIn, pool_);
      const auto there = make(spec);
      train(*here, rows(), kSteps);
      train(*there, rows(), kSteps);
      ASSERT_TRUE(there->settle());
      EXPECT_EQ(there->needs_threshold(), start == 1000);
      EXPECT_EQ(there->calibrate_threshold(rows()), here->calibrate_threshold(rows()));
      EXPECT_LT(relative_distance(there->sae().threshold, here->sae().threshold), 1e-3)
          << to_string(architecture);
    }
  }
}

// A step of many is asked for in a few calls, and waited for once.
TEST_F(OnDevice, ACohortIsWaitedForOnceAStep) {
  TensorStream stream(rows());
  Session session(*device_);
  Cohort cohort(stream, pool_);
  for (const auto architecture : kOnDevice)
    cohort.add(std::string(to_string(architecture)), make(lively(architecture), session));
  // All have done a step of their last form by then.
  while (cohort.find("topk")->step() < kSteps - 3) ASSERT_TRUE(cohort.advance());
  const Calls before = calls();
  for (int step = 0; step < 3; ++step) ASSERT_TRUE(cohort.advance());
  const Calls after = calls();
  EXPECT_EQ(after.waits - before.waits, 3U);
  EXPECT_EQ(after.replays - before.replays, 3 * kOnDevice.size());
  // Beside what is replayed each is told the step's terms, and the batch's variance is computed.
  EXPECT_EQ(after.asked - before.asked, 3 * (kOnDevice.size() + 4));
}

TEST_F(OnDevice, BytesDoNotDependOnGraphs) {
  const auto emulate_without_graphs = emulated<void (*)(bool)>("saesweep_emulate_without_graphs");
  for (const TrainingSpec& spec : lively_specs()) {
    const auto with = make(spec), without = make(spec);
    const Calls before = calls();
    train(*with, rows(), kSteps);
    const Calls between = calls();
    emulate_without_graphs(true);
    train(*without, rows(), kSteps);
    emulate_without_graphs(false);
    EXPECT_GT(between.replays - before.replays, kSteps / 2) << to_string(spec.architecture);
    EXPECT_EQ(calls().replays, between.replays);
    EXPECT_TRUE(bytes_of(*without) == bytes_of(*with)) << to_string(spec.architecture);
  }
}

// Memory that members share moves when a larger one joins: what was noted before would be of what
// is no longer theirs.
TEST_F(OnDevice, ALargerMemberMayJoinLater) {
  TensorStream stream(rows());
  Session session(*device_);
  Cohort cohort(stream, pool_);
  cohort.add("first", make(lively(Architecture::kBatchTopK), session));
  for (int step = 0; step < 6; ++step) ASSERT_TRUE(cohort.advance());
  TrainingSpec large = lively(Architecture::kBatchTopK, 3);
  large.d_sae = 900;
  cohort.add("large", make(large, session));
  while (!cohort.find("large")->finished()) ASSERT_TRUE(cohort.advance());
  for (const TrainingSpec& spec : {lively(Architecture::kBatchTopK), large}) {
    const auto alone = make(spec);
    train(*alone, rows(), kSteps);
    EXPECT_TRUE(bytes_of(*cohort.find(spec.d_sae == 900 ? "large" : "first")) == bytes_of(*alone));
  }
}

TEST(Rounding, IsThatOfLibTorch) {
  std::vector<float> values = {0,        -0.0F,     1,      1.00390625F, 1.01171875F, 3.3895314e38F,
                               INFINITY, -INFINITY, 1e-40F, 65536.5F};
  Rng rng(1, "test.bf16");
  while (values.size() < 5000) values.push_back(static_cast<float>(rng.normal()));
  for (const float value : values)
    EXPECT_EQ(device::bfloat16_bits(value), c10::BFloat16(value).x) << value;
  EXPECT_TRUE(
      std::isnan(device::float_of(std::uint32_t{device::bfloat16_bits(std::nanf(""))} << 16)));
}

TEST_F(OnDevice, WhatIsNotThereIsSaid) {
  TrainingSpec spec = on_device(lively(Architecture::kTopK));
  spec.architecture = Architecture::kEndToEnd;
  Session session(*device_);
  const auto unknown = session.make(spec, {{kIn, 1}});
  ASSERT_FALSE(unknown);
  EXPECT_NE(unknown.error().message.find("end_to_end is not trained on a GPU"), std::string::npos);
  const auto nowhere =
      SaeTrainer::create(on_device(lively(Architecture::kTopK)), {{kIn, 1}}, pool_);
  ASSERT_FALSE(nowhere);
  EXPECT_EQ(nowhere.error().code, ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace saesweep::worker::test
