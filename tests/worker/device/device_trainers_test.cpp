// Trainers whose steps are done by the kernels of a GPU, against those of the CPU.
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

constexpr std::int64_t kIn = 12;
constexpr std::uint64_t kBatch = 300, kSteps = 24;

const std::vector<Architecture> kOnDevice = [] {
  std::vector<Architecture> all;
  for (const Architecture architecture : kAllArchitectures)
    if (device::has_engine(architecture)) all.push_back(architecture);
  return all;
}();

TrainingSpec lively(Architecture architecture, std::uint64_t seed = 0) {
  TrainingSpec spec = lively_spec(architecture, kBatch, kSteps);
  spec.seed = seed;
  return spec;
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
  for (const auto architecture : kOnDevice) {
    TrainingSpec spec = lively(architecture);
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
    if (of_topk_family(architecture)) {
      EXPECT_GT(here->summary()["dead_fraction"], 0.0);
    }
  }
}

}  // namespace
}  // namespace saesweep::worker::test
