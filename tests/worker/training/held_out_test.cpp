// Looks at held-out rows: what they find, when they come, and that training knows nothing of them.
#include <algorithm>
#include <fstream>
#include <limits>
#include <sstream>

#include "core/files.h"
#include "core/json.h"
#include "tests/support/temp_dir.h"
#include "tests/worker/training/trainers.h"

namespace saesweep::worker::test {
namespace {

namespace fs = std::filesystem;
using saesweep::test::TempDir;

constexpr std::int64_t kIn = 12;
constexpr std::uint64_t kBatch = 300, kSteps = 24;

// Each of the few steps is followed by a look.
TrainingSpec looked_at(Architecture architecture, std::uint64_t eval_every = kBatch) {
  TrainingSpec spec = lively_spec(architecture, kBatch, kSteps);
  spec.eval_every = eval_every;
  return spec;
}

at::Tensor rows() { return sparse_rows(7 * kBatch, directions(30, kIn, 1), 4, 2); }
// Of the same kind, in pieces of 234 and 233.
at::Tensor held_out() { return sparse_rows(467, directions(30, kIn, 1), 4, 3); }

// Goes on to `until` steps, with the looks that are due.
void train_and_look(SaeTrainer& trainer, std::uint64_t until) {
  const at::Tensor training = rows(), apart = held_out();
  while (trainer.step() < until) {
    train(trainer, training, trainer.step() + 1);
    if (trainer.held_out_is_due()) (void)trainer.score_held_out(apart).value();
  }
}

// The columns of training alone.
std::string training_columns(const std::string& csv) {
  std::string kept;
  int commas = 0;
  for (const char c : csv) {
    if (c == '\n') commas = 0;
    if (c == ',') ++commas;
    if (commas < 8) kept += c;
  }
  return kept;
}

TEST(HeldOut, LooksChangeNoByteOfTraining) {
  ThreadPool pool(2);
  for (const auto architecture : kAllArchitectures)
    for (const auto precision : {sweeps::Precision::kFloat32, sweeps::Precision::kBFloat16}) {
      SCOPED_TRACE(to_string(architecture));
      TempDir folder;
      TrainingSpec spec = looked_at(architecture);
      spec.precision = precision;
      const auto seen = make_trainer(spec, kIn, pool);
      spec.eval_every = 0;
      const auto unseen = make_trainer(spec, kIn, pool);
      for (const std::uint64_t until : {std::uint64_t{11}, kSteps}) {
        train_and_look(*seen, until);
        train_and_look(*unseen, until);
        const fs::path at = folder.path() / std::to_string(until);
        ASSERT_TRUE(seen->save(at.string() + "-seen"));
        ASSERT_TRUE(unseen->save(at.string() + "-unseen"));
        const auto file = [&](const char* whose, const char* name) {
          return read_file(at.string() + whose + "/" + name).value();
        };
        for (const char* name : {"weights.safetensors", "optim.safetensors"})
          EXPECT_TRUE(file("-seen", name) == file("-unseen", name)) << name;
        Json manifest = parse_json(file("-seen", "manifest.json")).value();
        EXPECT_EQ(manifest["held_out"].size(), until);
        manifest.erase("held_out");
        EXPECT_EQ(canonical_json(manifest), file("-unseen", "manifest.json"));
      }
      EXPECT_TRUE(serialize_sae(seen->sae()) == serialize_sae(unseen->sae()));
      EXPECT_EQ(seen->config(), unseen->config());
      EXPECT_EQ(training_columns(seen->curve_csv()), unseen->curve_csv());
    }
}

TEST(HeldOut, StoppingAndGoingOnLeavesTheSameCurve) {
  for (const auto architecture : kAllArchitectures) {
    SCOPED_TRACE(to_string(architecture));
    ThreadPool pool(2), alone(1);
    const TrainingSpec spec = looked_at(architecture, 2 * kBatch);
    const auto whole = make_trainer(spec, kIn, alone);
    train_and_look(*whole, kSteps);
    TempDir folder;
    auto pieces = make_trainer(spec, kIn, pool);
    for (const std::uint64_t stop : {1, 6, 7, 23}) {
      train_and_look(*pieces, stop);
      const fs::path at = folder.path() / std::to_string(stop);
      ASSERT_TRUE(pieces->save(at));
      pieces = make_trainer(spec, kIn, pool);
      const auto restored = pieces->restore(at);
      ASSERT_TRUE(restored) << restored.error().message;
      EXPECT_FALSE(pieces->held_out_is_due()) << "it was taken before the checkpoint";
    }
    train_and_look(*pieces, kSteps);
    EXPECT_TRUE(result_bytes(*pieces) == result_bytes(*whole));
    EXPECT_NE(whole->curve_csv().find("heldout_fve"), std::string::npos);
  }
}

// A look at the rows of the next batch says what the next step will say of them.
TEST(HeldOut, ALookFindsWhatAStepWouldFind) {
  ThreadPool pool(2);
  for (const auto architecture : kAllArchitectures) {
    SCOPED_TRACE(to_string(architecture));
    const auto trainer = make_trainer(looked_at(architecture, 0), kIn, pool);
    for (const std::uint64_t step : {1, 9, 20}) {
      train(*trainer, rows(), step);
      const at::Tensor next = step_rows(rows(), step, kBatch);
      const HeldOutReport look = trainer->score_held_out(next).value();
      EXPECT_EQ(look.step, step);
      EXPECT_EQ(look.tokens, step * kBatch);
      const StepReport report = trainer->train_step(next).value();
      EXPECT_DOUBLE_EQ(look.loss, report.loss);
      EXPECT_DOUBLE_EQ(look.mse, report.mse);
      EXPECT_NEAR(look.fve, report.fve, 1e-9);
      EXPECT_DOUBLE_EQ(look.l0, report.l0);
    }
  }
}

// Against the dictionary that is delivered, for those that select row by row.
TEST(HeldOut, ALookFindsWhatTheDictionaryMakesOfTheRows) {
  ThreadPool pool(2);
  const at::Tensor x = held_out();
  for (const auto architecture : kAllArchitectures) {
    if (over_batch(architecture)) continue;  // by the batch in training, by a threshold later
    SCOPED_TRACE(to_string(architecture));
    const auto trainer = make_trainer(looked_at(architecture, 0), kIn, pool);
    train(*trainer, rows(), kSteps);
    const HeldOutReport look = trainer->score_held_out(x).value();
    const Sae sae = trainer->sae();
    const at::Tensor f = sae.encode(x.narrow(1, 0, sae.d_in()).contiguous());
    const at::Tensor y = x.narrow(1, kIn - sae.d_out(), sae.d_out());
    const at::Tensor x_hat = sae.reconstruct(x.narrow(1, 0, sae.d_in()).contiguous(), f);
    const double squares = (x_hat - y).to(at::kDouble).square().sum().item<double>();
    const double variance = (y - y.mean(0)).to(at::kDouble).square().sum().item<double>();
    const auto count = static_cast<double>(x.size(0));
    EXPECT_NEAR(look.mse, squares / count, 1e-4 * squares / count);
    EXPECT_NEAR(look.fve, 1 - squares / variance, 1e-4);
    EXPECT_NEAR(look.l0, f.ne(0).sum().item<double>() / count, 2 / count);
    EXPECT_NEAR(look.dead_fraction, f.gt(0).sum(0).eq(0).to(at::kDouble).mean().item<double>(),
                1.5 / 150);
  }
}

TEST(HeldOut, ComesAtTheFirstPointOfTheCurveInEachIntervalAndAtTheEnd) {
  ThreadPool pool(1);
  const auto steps_of = [&](std::uint64_t steps, std::uint64_t eval_every) {
    TrainingSpec spec = make_spec(Architecture::kTopK, 16, 8, steps);
    spec.eval_every = eval_every;
    const auto trainer = make_trainer(spec, 4, pool);
    const at::Tensor some = normal_tensor({80, 4}, 1);
    std::vector<std::uint64_t> looks;
    EXPECT_FALSE(trainer->held_out_is_due()) << "before the first step";
    while (!trainer->finished()) {
      train(*trainer, some, trainer->step() + 1);
      if (!trainer->held_out_is_due()) continue;
      looks.push_back(trainer->score_held_out(some).value().step);
      EXPECT_FALSE(trainer->held_out_is_due()) << "once is enough";
    }
    return looks;
  };
  using Steps = std::vector<std::uint64_t>;
  EXPECT_EQ(steps_of(100, 320), (Steps{40, 80, 100}));  // a point after every step
  EXPECT_EQ(steps_of(100, 316), (Steps{40, 79, 100}));
  EXPECT_EQ(steps_of(1000, 2040), (Steps{255, 510, 765, 1000}));  // one after every fifth
  EXPECT_EQ(steps_of(1000, 2000), (Steps{250, 500, 750, 1000}));
  EXPECT_EQ(steps_of(100, 10'000), (Steps{100}));
  EXPECT_EQ(steps_of(100, 0), Steps{});
  EXPECT_EQ(steps_of(1000, 1).size(), 200u) << "as many as the curve has points";
}

TEST(HeldOut, TheCurveHasEmptyCellsWhereNobodyLooked) {
  ThreadPool pool(1);
  TrainingSpec spec = make_spec(Architecture::kStandard, 16, 8, 4);
  spec.eval_every = 16;
  const auto trainer = make_trainer(spec, 4, pool);
  const at::Tensor some = normal_tensor({8, 4}, 1);
  std::vector<HeldOutReport> looks;
  while (!trainer->finished()) {
    train(*trainer, some, trainer->step() + 1);
    if (trainer->held_out_is_due()) looks.push_back(trainer->score_held_out(some).value());
  }
  std::vector<std::string> lines;
  std::istringstream csv(trainer->curve_csv());
  for (std::string line; std::getline(csv, line);) lines.push_back(line);
  ASSERT_EQ(lines.size(), 5u);
  EXPECT_EQ(lines[0],
            "step,tokens,loss,mse,fve,l0,dead_fraction,grad_norm,heldout_loss,heldout_mse,"
            "heldout_fve,heldout_l0,heldout_dead_fraction");
  for (const std::string& line : lines) EXPECT_EQ(std::count(line.begin(), line.end(), ','), 12);
  EXPECT_TRUE(lines[1].ends_with(",,,,,"));
  EXPECT_FALSE(lines[2].ends_with(",,,,,"));
  EXPECT_TRUE(lines[3].ends_with(",,,,,"));
  EXPECT_FALSE(lines[4].ends_with(",,,,,"));
  ASSERT_EQ(looks.size(), 2u);
  EXPECT_EQ(trainer->summary().at("loss_heldout"), looks[1].loss);
  EXPECT_EQ(trainer->summary().at("fve_heldout"), looks[1].fve);
}

TEST(HeldOut, RowsThatAreNotFiniteLeaveEmptyCellsAndTrainingAlone) {
  ThreadPool pool(1);
  at::Tensor wrong = held_out();
  wrong.mutable_data_ptr<float>()[5] = std::numeric_limits<float>::infinity();
  for (const auto architecture : kAllArchitectures) {
    SCOPED_TRACE(to_string(architecture));
    const auto disturbed = make_trainer(looked_at(architecture), kIn, pool);
    const auto quiet = make_trainer(looked_at(architecture, 0), kIn, pool);
    for (const std::uint64_t step : {1, 2, 3, 4, 5}) {
      train(*disturbed, rows(), step);
      EXPECT_FALSE(std::isfinite(disturbed->score_held_out(wrong).value().loss));
    }
    train(*quiet, rows(), 5);
    EXPECT_TRUE(serialize_sae(disturbed->sae()) == serialize_sae(quiet->sae()));
    EXPECT_EQ(training_columns(disturbed->curve_csv()), quiet->curve_csv());
    // And a checkpoint of it is read again.
    TempDir folder;
    ASSERT_TRUE(disturbed->save(folder.path() / "at"));
    const auto restored = make_trainer(looked_at(architecture), kIn, pool);
    ASSERT_TRUE(restored->restore(folder.path() / "at"));
    EXPECT_EQ(restored->curve_csv(), disturbed->curve_csv());
  }
}

TEST(HeldOut, ACheckpointWithADamagedCurveIsRefused) {
  ThreadPool pool(1);
  const auto trainer = make_trainer(looked_at(Architecture::kTopK), kIn, pool);
  train_and_look(*trainer, 3);
  TempDir folder;
  ASSERT_TRUE(trainer->save(folder.path() / "at"));
  const fs::path file = folder.path() / "at" / "manifest.json";
  const Json whole = parse_json(read_file(file).value()).value();
  for (const Json& damaged : {Json(3), Json::array({1, 2}), Json::array({Json::array({1, 2})})}) {
    Json manifest = whole;
    manifest["held_out"] = damaged;
    std::ofstream(file) << canonical_json(manifest);
    const auto restored =
        make_trainer(looked_at(Architecture::kTopK), kIn, pool)->restore(folder.path() / "at");
    ASSERT_FALSE(restored) << damaged;
    EXPECT_EQ(restored.error().code, ErrorCode::kCorrupted);
  }
}

}  // namespace
}  // namespace saesweep::worker::test
