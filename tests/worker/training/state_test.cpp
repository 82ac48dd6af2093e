// Bytes: of threads, neighbours, looking on, stopping and going on again; and what is damaged.
#include <fstream>

#include "core/files.h"
#include "core/json.h"
#include "tests/support/temp_dir.h"
#include "tests/worker/training/trainers.h"
#include "worker/products/isa.h"
#include "worker/training/cohort.h"

namespace saesweep::worker::test {
namespace {

namespace fs = std::filesystem;
using saesweep::test::TempDir;

constexpr std::int64_t kIn = 12;
constexpr std::uint64_t kBatch = 300, kSteps = 24;

TrainingSpec lively(Architecture architecture, std::uint64_t seed = 0) {
  TrainingSpec spec = lively_spec(architecture, kBatch, kSteps);
  spec.seed = seed;
  return spec;
}

at::Tensor rows() { return sparse_rows(7 * kBatch, directions(30, kIn, 1), 4, 2); }

std::string trained(const TrainingSpec& spec, unsigned threads = 2) {
  ThreadPool pool(threads);
  const auto trainer = make_trainer(spec, kIn, pool);
  train(*trainer, rows(), kSteps);
  return result_bytes(*trainer);
}

TEST(Bytes, DoNotDependOnTheNumberOfThreads) {
  for (const auto architecture : kAllArchitectures) {
    const std::string one = trained(lively(architecture), 1);
    EXPECT_TRUE(one == trained(lively(architecture), 2)) << to_string(architecture);
    EXPECT_TRUE(one == trained(lively(architecture), 3)) << to_string(architecture);
    TrainingSpec rounded = lively(architecture);
    rounded.precision = sweeps::Precision::kBFloat16;
    EXPECT_TRUE(trained(rounded, 1) == trained(rounded, 2)) << to_string(architecture);
  }
}

TEST(Bytes, DoNotDependOnLookingOn) {
  TempDir folder;
  ThreadPool pool(2);
  for (const auto architecture : kAllArchitectures) {
    const auto trainer = make_trainer(lively(architecture), kIn, pool);
    for (std::uint64_t step = 1; step <= kSteps; ++step) {
      train(*trainer, rows(), step);
      (void)result_bytes(*trainer);
      if (step % 5 != 0) continue;
      const std::string name = std::string(to_string(architecture)) + std::to_string(step);
      ASSERT_TRUE(trainer->save(folder.path() / name));
    }
    EXPECT_TRUE(result_bytes(*trainer) == trained(lively(architecture)));
  }
}

TEST(Bytes, DoNotDependOnStoppingAndGoingOn) {
  for (const auto architecture : kAllArchitectures) {
    TempDir folder;
    ThreadPool pool(2);
    std::unique_ptr<SaeTrainer> trainer = make_trainer(lively(architecture), kIn, pool);
    for (const std::uint64_t stop : {1, 7, 11, 23}) {
      train(*trainer, rows(), stop);
      const fs::path at = folder.path() / std::to_string(stop);
      ASSERT_TRUE(trainer->save(at));
      ASSERT_TRUE(trainer->save(at));  // again: nothing happens
      trainer = make_trainer(lively(architecture), kIn, pool);
      const auto restored = trainer->restore(at);
      ASSERT_TRUE(restored) << restored.error().message;
      EXPECT_EQ(trainer->step(), stop);
      EXPECT_EQ(trainer->position(), stop * kBatch);
    }
    train(*trainer, rows(), kSteps);
    EXPECT_TRUE(result_bytes(*trainer) == trained(lively(architecture))) << to_string(architecture);
    // The checkpoint of the end is the same file by file.
    const auto whole = make_trainer(lively(architecture), kIn, pool);
    train(*whole, rows(), kSteps);
    ASSERT_TRUE(whole->save(folder.path() / "whole"));
    ASSERT_TRUE(trainer->save(folder.path() / "pieces"));
    for (const char* name : {"weights.safetensors", "optim.safetensors", "manifest.json"})
      EXPECT_TRUE(read_file(folder.path() / "whole" / name).value() ==
                  read_file(folder.path() / "pieces" / name).value())
          << name;
    EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 6);  // nothing left over
  }
}

// What was expected of a batch from the one before is not in a checkpoint: it must not matter.
TEST(Bytes, DoNotDependOnStoppingWhileLatentsFallSilent) {
  ThreadPool pool(2);
  for (const auto architecture :
       {Architecture::kStandard, Architecture::kStandardBricken, Architecture::kPAnneal}) {
    TrainingSpec spec = lively(architecture);
    spec.lr = 0.03;
    spec.l1 = 10;
    const auto whole = make_trainer(spec, kIn, pool);
    std::vector<double> l0;
    while (!whole->finished()) {
      const auto report = whole->train_step(step_rows(rows(), whole->step(), kBatch));
      ASSERT_TRUE(report);
      l0.push_back(report->l0);
    }
    ASSERT_GT(l0.front(), 150.0 / 16);
    ASSERT_LT(l0.back(), 150.0 / 16) << to_string(architecture);
    for (std::uint64_t stop = 1; stop < kSteps; stop += 3) {
      TempDir folder;
      const auto first = make_trainer(spec, kIn, pool);
      train(*first, rows(), stop);
      ASSERT_TRUE(first->save(folder.path() / "stopped"));
      const auto second = make_trainer(spec, kIn, pool);
      ASSERT_TRUE(second->restore(folder.path() / "stopped"));
      train(*second, rows(), kSteps);
      EXPECT_TRUE(result_bytes(*second) == result_bytes(*whole)) << to_string(architecture);
    }
  }
}

// FMA rounds once whether eight or sixteen numbers stand side by side.
TEST(Bytes, AreTheSameOnEveryVectorPath) {
  if (products::best_isa() < products::Isa::kAvx512) GTEST_SKIP() << "one vector path";
  for (const auto architecture : kAllArchitectures) {
    std::vector<std::string> results;
    for (const auto isa : {products::Isa::kAvx2, products::Isa::kAvx512}) {
      const products::ForcedIsa forced(isa);
      results.push_back(trained(lively(architecture)));
    }
    EXPECT_TRUE(results[0] == results[1]) << to_string(architecture);
  }
}

TEST(Checkpoint, ThatIsDamagedIsRefusedAndChangesNothing) {
  TempDir folder;
  ThreadPool pool(1);
  const TrainingSpec spec = lively(Architecture::kPAnneal);
  const auto trainer = make_trainer(spec, kIn, pool);
  train(*trainer, rows(), 10);
  const fs::path good = folder.path() / "good", bad = folder.path() / "bad";
  ASSERT_TRUE(trainer->save(good));
  const auto other = make_trainer(spec, kIn, pool);
  train(*other, rows(), 3);
  const std::string before = result_bytes(*other);

  for (const char* name : {"weights.safetensors", "optim.safetensors", "manifest.json"}) {
    const std::string bytes = read_file(good / name).value();
    for (int damage = 0; damage < 4; ++damage) {
      fs::remove_all(bad);
      fs::copy(good, bad);
      std::string changed = bytes;
      if (damage == 0) changed[changed.size() / 2] ^= 4;
      if (damage == 1) changed.resize(changed.size() / 2);
      if (damage == 2) changed.clear();
      if (damage == 3) changed = "{}";
      if (damage == 0 && std::string(name) == "manifest.json")
        changed.replace(changed.find("\"step\":10"), 9, "\"step\":\"x\"");
      std::ofstream(bad / name, std::ios::binary) << changed;
      const auto restored = other->restore(bad);
      ASSERT_FALSE(restored) << name << " damage " << damage;
      EXPECT_EQ(restored.error().code, ErrorCode::kCorrupted)
          << name << " damage " << damage << ": " << restored.error().message;
      EXPECT_TRUE(result_bytes(*other) == before) << name << " damage " << damage;
    }
    fs::remove_all(bad);
    fs::copy(good, bad);
    fs::remove(bad / name);
    EXPECT_FALSE(other->restore(bad)) << name;
  }
  EXPECT_EQ(other->restore(folder.path() / "none").error().code, ErrorCode::kNotFound);
  ASSERT_TRUE(other->restore(good));
}

TEST(Checkpoint, OfAnotherTrialIsRefused) {
  TempDir folder;
  ThreadPool pool(1);
  const auto trainer = make_trainer(lively(Architecture::kTopK), kIn, pool);
  train(*trainer, rows(), 3);
  ASSERT_TRUE(trainer->save(folder.path() / "c"));
  TrainingSpec spec = lively(Architecture::kTopK);
  spec.lr *= 2;
  for (const auto& other : {spec, lively(Architecture::kTopK, 1), lively(Architecture::kBatchTopK)})
    EXPECT_EQ(make_trainer(other, kIn, pool)->restore(folder.path() / "c").error().code,
              ErrorCode::kInvalidArgument);
  EXPECT_EQ(make_trainer(lively(Architecture::kTopK), kIn + 1, pool)
                ->restore(folder.path() / "c")
                .error()
                .code,
            ErrorCode::kInvalidArgument);
}

TEST(Checkpoint, ThatAKilledWriterLeftUnfinishedHarmsNobody) {
  TempDir folder;
  ThreadPool pool(1);
  const auto trainer = make_trainer(lively(Architecture::kTopK), kIn, pool);
  train(*trainer, rows(), 2);
  const fs::path old = folder.path() / "step-2", next = folder.path() / "step-3";
  ASSERT_TRUE(trainer->save(old));
  train(*trainer, rows(), 3);
  // What the death of a writer leaves: a temporary folder with some of the files.
  fs::create_directories(next.string() + ".tmp-" + std::to_string(::getpid()));
  std::ofstream(fs::path(next.string() + ".tmp-" + std::to_string(::getpid())) /
                "weights.safetensors")
      << "half";
  EXPECT_EQ(trainer->restore(next).error().code, ErrorCode::kNotFound);
  ASSERT_TRUE(trainer->save(next));
  const auto again = make_trainer(lively(Architecture::kTopK), kIn, pool);
  ASSERT_TRUE(again->restore(old));
  EXPECT_EQ(again->step(), 2U);
  ASSERT_TRUE(again->restore(next));
  EXPECT_EQ(again->step(), 3U);
}

TEST(Checkpoint, ThatCannotBeWrittenIsAnError) {
  TempDir folder;
  ThreadPool pool(1);
  const auto trainer = make_trainer(lively(Architecture::kTopK), kIn, pool);
  std::ofstream(folder.path() / "file") << "in the way";
  EXPECT_FALSE(trainer->save(folder.path() / "file" / "checkpoint"));
}

// One step of everybody until all are finished; members that end are removed.
void advance_all(Cohort& cohort, std::map<std::string, ErrorCode>& ended) {
  while (true) {
    const auto outcomes = cohort.advance();
    ASSERT_TRUE(outcomes) << outcomes.error().message;
    if (outcomes->empty()) return;
    for (const auto& outcome : *outcomes)
      if (!outcome.report) {
        ended[outcome.name] = outcome.report.error().code;
        EXPECT_NE(cohort.remove(outcome.name), nullptr);
      }
  }
}

TEST(Cohort, IsToTheByteItsMembersTrainedAlone) {
  ThreadPool pool(2);
  std::map<std::string, std::string> want;
  std::vector<std::pair<std::string, TrainingSpec>> members;
  for (const auto architecture : kAllArchitectures)
    for (const std::uint64_t seed : {0, 1}) {
      const std::string name = std::string(to_string(architecture)) + std::to_string(seed);
      members.emplace_back(name, lively(architecture, seed));
      want[name] = trained(lively(architecture, seed));
    }
  for (const bool backwards : {false, true}) {
    TensorStream stream(rows());
    Cohort cohort(stream, pool);
    if (backwards) std::reverse(members.begin(), members.end());
    for (const auto& [name, spec] : members) cohort.add(name, make_trainer(spec, kIn, pool));
    std::map<std::string, ErrorCode> ended;
    advance_all(cohort, ended);
    EXPECT_TRUE(ended.empty());
    EXPECT_EQ(stream.reads, static_cast<int>(kSteps));  // once for all
    for (const auto& [name, bytes] : want)
      EXPECT_TRUE(result_bytes(*cohort.find(name)) == bytes) << name;
  }
}

TEST(Cohort, LosesOnlyTheMemberThatDiverges) {
  ThreadPool pool(2);
  TensorStream stream(rows());
  Cohort cohort(stream, pool);
  for (const auto architecture : kAllArchitectures) {
    cohort.add(std::string(to_string(architecture)), make_trainer(lively(architecture), kIn, pool));
    auto poisoned = make_trainer(lively(architecture, 5), kIn, pool);
    inside(*poisoned).parameters().w_enc[3][2] = std::nanf("");
    cohort.add("bad " + std::string(to_string(architecture)), std::move(poisoned));
  }
  std::map<std::string, ErrorCode> ended;
  advance_all(cohort, ended);
  ASSERT_EQ(ended.size(), kAllArchitectures.size());
  for (const auto& [name, code] : ended) {
    EXPECT_EQ(name.rfind("bad ", 0), 0U) << name;
    EXPECT_EQ(code, ErrorCode::kDiverged);
  }
  for (const auto architecture : kAllArchitectures)
    EXPECT_TRUE(result_bytes(*cohort.find(std::string(to_string(architecture)))) ==
                trained(lively(architecture)))
        << to_string(architecture);
}

TEST(Cohort, LetsALateMemberCatchUpAndABatchOfItsOwn) {
  ThreadPool pool(2);
  TensorStream stream(rows());
  Cohort cohort(stream, pool);
  TrainingSpec small = lively(Architecture::kTopK, 3);
  small.batch = 100;
  small.tokens = small.batch * kSteps;
  cohort.add("first", make_trainer(lively(Architecture::kTopK), kIn, pool));
  cohort.add("small", make_trainer(small, kIn, pool));
  for (int i = 0; i < 6; ++i) ASSERT_TRUE(cohort.advance());
  cohort.add("late", make_trainer(lively(Architecture::kStandard), kIn, pool));
  const auto outcomes = cohort.advance();
  ASSERT_TRUE(outcomes);
  ASSERT_EQ(outcomes->size(), 1U);  // who is furthest behind goes first
  EXPECT_EQ(outcomes->front().name, "late");
  std::map<std::string, ErrorCode> ended;
  advance_all(cohort, ended);
  EXPECT_TRUE(ended.empty());
  EXPECT_TRUE(result_bytes(*cohort.find("first")) == trained(lively(Architecture::kTopK)));
  EXPECT_TRUE(result_bytes(*cohort.find("late")) == trained(lively(Architecture::kStandard)));
  EXPECT_TRUE(result_bytes(*cohort.find("small")) == trained(small));
}

TEST(Cohort, ReportsThatTheStreamCannotBeRead) {
  ThreadPool pool(1);
  TensorStream stream(rows());
  stream.fail_at = 2 * kBatch;
  Cohort cohort(stream, pool);
  cohort.add("a", make_trainer(lively(Architecture::kTopK), kIn, pool));
  ASSERT_TRUE(cohort.advance());
  ASSERT_TRUE(cohort.advance());
  const auto stopped = cohort.advance();
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(cohort.find("a")->step(), 2U);
  stream.fail_at.reset();
  std::map<std::string, ErrorCode> ended;
  advance_all(cohort, ended);
  EXPECT_TRUE(result_bytes(*cohort.find("a")) == trained(lively(Architecture::kTopK)));
}

TEST(Steps, ThatAreNotFiniteAreSkippedAndTenInARowEndTheTrial) {
  ThreadPool pool(1);
  for (const auto architecture : kAllArchitectures) {
    const auto trainer = make_trainer(lively(architecture), kIn, pool);
    train(*trainer, rows(), 2);
    const at::Tensor before = inside(*trainer).parameters().w_enc.clone();
    at::Tensor x = step_rows(rows(), 2, kBatch).clone();
    x[7][1] = INFINITY;
    for (int i = 0; i < 9; ++i) {
      const auto report = trainer->train_step(x);
      ASSERT_TRUE(report);
      EXPECT_FALSE(report->applied);
    }
    EXPECT_TRUE(same_bytes(inside(*trainer).parameters().w_enc, before));
    train(*trainer, rows(), 12);  // a good one: counted anew
    EXPECT_EQ(trainer->summary().at("skipped_steps"), 9);
    for (int i = 0; i < 9; ++i) ASSERT_TRUE(trainer->train_step(x));
    const auto last = trainer->train_step(x);
    ASSERT_FALSE(last);
    EXPECT_EQ(last.error().code, ErrorCode::kDiverged);
    EXPECT_NE(last.error().message.find("step 22"), std::string::npos) << last.error().message;
  }
}

TEST(Start, DependsOnSeedArchitectureAndWidthAlone) {
  ThreadPool pool(1);
  for (const auto architecture : kAllArchitectures) {
    TrainingSpec spec = lively(architecture, 7);
    const auto a = make_trainer(spec, kIn, pool);
    if (spec.k) spec.k = 9;
    if (spec.l1) spec.l1 = 3;
    spec.lr = 1;
    spec.tokens *= 2;
    const auto b = make_trainer(spec, kIn, pool);
    spec.seed = 8;
    const auto c = make_trainer(spec, kIn, pool);
    EXPECT_TRUE(same_bytes(inside(*a).parameters().w_enc, inside(*b).parameters().w_enc));
    EXPECT_TRUE(same_bytes(inside(*a).parameters().b_enc, inside(*b).parameters().b_enc));
    EXPECT_FALSE(same_bytes(inside(*a).parameters().w_enc, inside(*c).parameters().w_enc));
  }
}

TEST(Start, FromAFileTakesItInPlaceOfEverything) {
  TempDir folder;
  ThreadPool pool(1);
  const double factor = 0.5;
  for (const auto architecture : kSingleArchitectures) {
    TrainingSpec spec = lively(architecture);
    const auto donor = make_trainer(spec, kIn, pool, factor);
    train(*donor, rows() * factor, kSteps);
    const fs::path path = folder.path() / (std::string(to_string(architecture)) + ".safetensors");
    ASSERT_TRUE(write_file_atomically(path, serialize_sae(donor->sae())));
    spec.init_path = path;
    const auto trainer = make_trainer(spec, kIn, pool, factor);
    const Sae want = donor->sae(), got = trainer->sae();
    EXPECT_LT(distance(got.b_dec, want.b_dec), 1e-6);
    EXPECT_LT(distance(got.w_enc, want.w_enc), 1e-5);
    for (const auto member :
         {&Sae::b_enc, &Sae::b_gate, &Sae::b_mag, &Sae::r_mag, &Sae::threshold}) {
      ASSERT_EQ((got.*member).defined(), (want.*member).defined());
      // A threshold that stands for a selection over batches is found anew.
      if ((want.*member).defined() && !(member == &Sae::threshold && over_batch(architecture)))
        EXPECT_LT(distance(got.*member, want.*member), 1e-5) << to_string(architecture);
    }
    // No geometric median: the first step of rate 0 leaves b_dec as it was read.
    const at::Tensor b_dec = inside(*trainer).parameters().b_dec.clone();
    ASSERT_TRUE(trainer->train_step(step_rows(rows(), 0, kBatch)));
    EXPECT_TRUE(same_bytes(inside(*trainer).parameters().b_dec, b_dec));
    // Another width does not fit.
    TrainingSpec wide = spec;
    wide.d_sae = 151;
    EXPECT_EQ(SaeTrainer::create(wide, kIn, 1, pool).error().code, ErrorCode::kInvalidArgument);
  }
  TrainingSpec spec = lively(Architecture::kTopK);
  spec.init_path = folder.path() / "absent.safetensors";
  EXPECT_EQ(SaeTrainer::create(spec, kIn, 1, pool).error().code, ErrorCode::kNotFound);
  spec.init_path.clear();
  spec.k = 151;
  EXPECT_EQ(SaeTrainer::create(spec, kIn, 1, pool).error().code, ErrorCode::kInvalidArgument);
}

TEST(Latents, InAnotherOrderTrainToTheSameDictionary) {
  ThreadPool pool(1);
  for (const auto architecture : kAllArchitectures) {
    if (architecture == Architecture::kMatryoshka) continue;  // its groups are places in the order
    const auto a = make_trainer(lively(architecture), kIn, pool);
    const auto b = make_trainer(lively(architecture), kIn, pool);
    const at::Tensor order = at::arange(149, -1, -1, at::kLong);
    SaeTensors& parameters = inside(*b).parameters();
    for (at::Tensor* tensor : {&parameters.w_enc, &parameters.b_enc, &parameters.w_dec})
      tensor->copy_(tensor->index_select(0, order));
    train(*a, rows(), 10);
    train(*b, rows(), 10);
    const SaeTensors& left = inside(*a).parameters();
    EXPECT_LT(distance(left.w_enc.index_select(0, order), parameters.w_enc), 1e-4)
        << to_string(architecture);
    EXPECT_LT(distance(left.w_dec.index_select(0, order), parameters.w_dec), 1e-4);
    EXPECT_LT(distance(left.b_dec, parameters.b_dec), 1e-4);
  }
}

// The dictionary for raw rows says of x what the trained one says of x times the factor.
TEST(Dictionary, HasNormalisationAndDecoderNormsFoldedIn) {
  ThreadPool pool(1);
  const double factor = 0.37;
  for (const auto architecture : kSingleArchitectures) {
    const auto trainer = make_trainer(lively(architecture), kIn, pool, factor);
    train(*trainer, rows() * factor, kSteps);
    const SaeTensors& of = inside(*trainer).parameters();
    const Sae sae = trainer->sae();
    const at::Tensor x = rows().narrow(0, 0, 200);
    const bool centred = architecture != Architecture::kJumpRelu;
    const at::Tensor z =
        at::addmm(of.b_enc, centred ? x * factor - of.b_dec : x * factor, of.w_enc.t());
    at::Tensor f = z.clamp_min(0);
    if (is_gated(architecture))
      f = z.gt(0) * ((z - of.b_enc) * of.more.at("r_mag").exp() + of.more.at("b_mag")).clamp_min(0);
    if (architecture == Architecture::kJumpRelu) f = f * z.gt(of.more.at("threshold"));
    EXPECT_EQ(trainer->config().at("apply_b_dec_to_input"), centred);
    if (architecture == Architecture::kTopK) {
      const auto top = f.topk(2, -1);
      f = at::zeros_like(f).scatter(-1, std::get<1>(top), std::get<0>(top));
    }
    if (over_batch(architecture)) f = f * f.gt(sae.threshold[0].item<float>() * factor);
    const at::Tensor want = at::addmm(of.b_dec, f, of.w_dec) / factor;
    EXPECT_LT(distance(sae.decode(sae.encode(x)), want), 1e-4) << to_string(architecture);
    const at::Tensor norms = sae.w_dec.square().sum(1).sqrt();
    EXPECT_LT(distance(norms, at::ones_like(norms)), 1e-6) << to_string(architecture);
    EXPECT_EQ(trainer->config().at("normalization_factor"), factor);
    EXPECT_EQ(trainer->config().at("tokens"), kSteps * kBatch);
    EXPECT_EQ(trainer->config().at("architecture"), std::string(to_string(architecture)));
    EXPECT_EQ(trainer->config().at("recipe"), "saebench-v1");
  }
}

TEST(Curve, HasAboutTwoHundredPointsAndEndsWithTheLastStep) {
  ThreadPool pool(1);
  TrainingSpec spec = make_spec(Architecture::kTopK, 16, 8, 1003);
  const auto trainer = make_trainer(spec, 4, pool);
  train(*trainer, normal_tensor({80, 4}, 1), 1003);
  const std::string csv = trainer->curve_csv();
  const auto lines = std::count(csv.begin(), csv.end(), '\n');
  EXPECT_GE(lines, 200);
  EXPECT_LE(lines, 210);
  EXPECT_EQ(csv.rfind("step,tokens,loss,mse,fve,l0,dead_fraction,grad_norm\n", 0), 0U);
  EXPECT_NE(csv.find("\n1003,8024,"), std::string::npos);
}

TEST(Memory, IsMoreForMoreAndAtLeastTheState) {
  const TrainingSpec spec = make_spec(Architecture::kTopK, 4096, 2048, 10);
  const std::uint64_t state = 4 * 4 * (2 * 512 * 4096);  // weights, gradients, two moments
  EXPECT_GT(training_memory_bytes(spec, 512), state);
  EXPECT_LT(training_memory_bytes(spec, 512), 3 * state);
  TrainingSpec dense = make_spec(Architecture::kStandard, 4096, 2048, 10);
  EXPECT_GT(training_memory_bytes(dense, 512), training_memory_bytes(spec, 512));
}

}  // namespace
}  // namespace saesweep::worker::test
