// The executor with a GPU's module beside it: the emulated one of tests/worker/device.
#include <gmock/gmock.h>

#include <filesystem>

#include "tests/worker/executor/scene.h"

namespace saesweep::test {
namespace {

namespace fs = std::filesystem;
using sweeps::Architecture;
using testing::HasSubstr;

class GpuRun : public Scene {
 protected:
  // A copy of the program, and beside it the module if `with_module`.
  fs::path program(bool with_module) const {
    const fs::path folder = dir_.path() / (with_module ? "with" : "without");
    if (fs::exists(folder)) return folder / "saesweep-task";
    fs::create_directory(folder);
    fs::copy_file(SAESWEEP_BINARY_DIR "/bin/saesweep-task", folder / "saesweep-task");
    if (with_module) fs::copy_file(EMULATED_GPU, folder / "libsaesweep_cuda.so");
    return folder / "saesweep-task";
  }
  sweeps::TrialSpec on_gpu(Architecture architecture, std::uint64_t steps = 60) const {
    sweeps::TrialSpec spec = trial(architecture, steps);
    spec.training.device = "cuda";
    spec.training.lr = 1e-4;
    return spec;
  }
};

TEST_F(GpuRun, TrainsADictionaryLikeThatOfTheCpu) {
  for (const Architecture architecture : {Architecture::kTopK, Architecture::kBatchTopK,
                                          Architecture::kMatryoshka, Architecture::kStandard}) {
    const auto spec = on_gpu(architecture);
    FakeAgent agent(state(), std::nullopt, program(true));
    auto left = agent.run_to_end(run_of({train_member(spec)}, kNever));
    const auto& result = left.results[task_of(spec)];
    ASSERT_EQ(result.outcome(), protocol::OUTCOME_DONE) << result.reason();
    EXPECT_THAT(bytes_of(result, "config.json"), HasSubstr(to_string(architecture)));
    auto there = spec;
    there.training.device = "cpu";
    FakeAgent cpu(state("cpu"));
    const auto expected = cpu.run_to_end(run_of({train_member(there)}, kNever));
    const Json own = parse_json(result.summary()).value();
    const Json other = parse_json(expected.results.at(task_of(there)).summary()).value();
    EXPECT_NEAR(own["fve_train"].get<double>(), other["fve_train"].get<double>(), 0.01);
    EXPECT_NEAR(own["l0_train"].get<double>(), other["l0_train"].get<double>(), 0.1);
  }
}

TEST_F(GpuRun, GoesOnFromACheckpointWithTheSameBytes) {
  const auto spec = on_gpu(Architecture::kBatchTopK);
  FakeAgent undisturbed(state("whole"), std::nullopt, program(true));
  auto whole = undisturbed.run_to_end(run_of({train_member(spec)}, kNever));
  protocol::Member member = train_member(spec);
  std::optional<protocol::Envelope> seen;
  {
    FakeAgent first(state(), std::nullopt, program(true));
    first.send_run(run_of({member}));
    seen = first.wait_for(checkpoint_number(9));
    ASSERT_TRUE(seen);
    first.kill();
  }
  *member.mutable_resume() = seen->checkpointed().checkpoint();
  member.set_fence(2);
  FakeAgent second(state(), std::nullopt, program(true));
  auto left = second.run_to_end(run_of({member}, kNever, 2));
  const auto &result = left.results[task_of(spec)], &expected = whole.results[task_of(spec)];
  ASSERT_EQ(result.outcome(), protocol::OUTCOME_DONE) << result.reason();
  for (const char* name : {"sae.safetensors", "curve.csv", "config.json"})
    EXPECT_EQ(digest_of(result, name), digest_of(expected, name)) << name;
}

TEST_F(GpuRun, SaysWhatIsMissing) {
  const auto spec = on_gpu(Architecture::kTopK);
  FakeAgent agent(state(), std::nullopt, program(false));
  auto left = agent.run_to_end(run_of({train_member(spec)}, kNever));
  const auto& result = left.results[task_of(spec)];
  EXPECT_EQ(result.outcome(), protocol::OUTCOME_RETRY);
  EXPECT_THAT(result.reason(), HasSubstr("libsaesweep_cuda.so is not there"));
}

}  // namespace
}  // namespace saesweep::test
