// A sweep as the journal would tell it: two architectures, two seeds, baselines, files on disk.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "core/digest.h"
#include "core/files.h"
#include "scheduler/service/scheduler_service.h"
#include "sweeps/spec.h"

namespace saesweep::test {

inline Json score_json(double value, double half_width) {
  return {{"value", value},
          {"low", value - half_width},
          {"high", value + half_width},
          {"n", std::uint64_t{40'000}},
          {"version", 1}};
}

inline Json core_summary(double l0, double quality) {
  return {{"scores",
           {{"core.l0", score_json(l0, 0.01)},
            {"core.ce_loss_score", score_json(quality, 0.001)},
            {"recon.fve", score_json(quality - 0.05, 0.001)}}},
          {"heldout", true}};
}

inline Json board_summary(double coverage) {
  return {{"scores", {{"board.cov_occurring", score_json(coverage, 0.01)}}}, {"heldout", true}};
}

inline sweeps::StreamSpec sample_stream() {
  sweeps::StreamSpec stream;
  stream.model.emplace();
  stream.model->name = "othello-6x6";
  stream.model->path = "/models/othello-6x6";
  stream.model->digest = sha256("model").hex();
  stream.data.source = "othello";
  stream.data.board = 6;
  stream.data.games = 1000;
  stream.hook = "blocks.2.hook_resid_post";
  stream.tokens = 10'000;
  return stream;
}

inline sweeps::TrialSpec topk_spec(std::uint64_t d_sae, std::uint64_t k, std::uint64_t seed) {
  sweeps::TrialSpec spec{sample_stream(), {}};
  spec.training.architecture = sweeps::Architecture::kTopK;
  spec.training.recipe = "saebench-v1";
  spec.training.d_sae = d_sae;
  spec.training.k = k;
  spec.training.tokens = 10'000;
  spec.training.batch = 1000;
  spec.training.lr = 3e-4;
  spec.training.seed = seed;
  return spec;
}

inline sweeps::TrialSpec standard_spec(double l1, double lr) {
  sweeps::TrialSpec spec = topk_spec(64, 0, 0);
  spec.training.architecture = sweeps::Architecture::kStandard;
  spec.training.k.reset();
  spec.training.l1 = l1;
  spec.training.lr = lr;
  return spec;
}

class SampleSweep {
 public:
  // Files lie in `directory`.
  explicit SampleSweep(std::filesystem::path directory) : directory_(std::move(directory)) {
    result.name = "sample";
    result.finished = true;
    result.started = 1'700'000'000;
    result.ended = result.started + 65;
    result.effective_yaml = "name: sample\n";
    add(topk_spec(64, 8, 0), 8, 0.95);
    add(topk_spec(64, 8, 1), 8, 0.951);
    add(topk_spec(128, 8, 0), 8, 0.96);
    add(standard_spec(0.01, 1e-3), 20, 0.90);
    add(standard_spec(0.02, 3e-3), 15, 0.85);
    add_baseline("identity", {}, 128, 1);
    sweeps::TrainingSpec random = topk_spec(64, 8, 0).training;
    add_baseline("random_sae", random, 8, 0.4);
  }

  scheduler::SubjectResult& trial(std::size_t number) { return result.subjects.at(number); }
  std::filesystem::path write(const std::string& name, const std::string& text) const {
    const std::filesystem::path path = directory_ / name;
    if (!write_file_atomically(path, std::string_view(text))) std::abort();
    return path;
  }

  scheduler::SweepResult result;

 private:
  void add(const sweeps::TrialSpec& spec, double l0, double quality) {
    scheduler::SubjectResult& subject = result.subjects.emplace_back();
    subject.number = static_cast<std::uint32_t>(result.subjects.size() - 1);
    subject.identity = spec.identity().hex();
    subject.spec = spec.to_json();
    subject.state = "done";
    subject.tokens = 10'000;
    subject.train_summary = {{"l0_train", l0}, {"steps", 10}};
    const std::string at = subject.identity.substr(0, 12);
    subject.files["sae.safetensors"] = write(at + "-sae", "weights of " + at);
    subject.files["config.json"] = write(at + "-config", "{}\n");
    subject.files["curve.csv"] = write(at + "-curve", "step,tokens,loss\n1,1000,3.5\n2,2000,2\n");
    subject.files["scores-details.json"] = write(
        at + "-details", R"({"details":[{"density":0.5}],"heldout":true,)"
                         R"("histogram":{"log10_edges":[-2,-1,0],"counts":[3,4],"never":1}})");
    subject.evaluations = {core_summary(l0, quality), board_summary(quality / 2)};
  }

  void add_baseline(const std::string& name, std::optional<sweeps::TrainingSpec> training,
                    double l0, double quality) {
    sweeps::BaselineSpec spec;
    spec.name = name;
    spec.stream = sample_stream();
    spec.hook = spec.stream.hook;
    // Reads another stream than the hook it belongs to.
    if (name == "identity") spec.stream.hook = "blocks.2.mlp.hook_post";
    spec.training = std::move(training);
    scheduler::SubjectResult& subject = result.subjects.emplace_back();
    subject.baseline = true;
    subject.identity = spec.identity().hex();
    subject.spec = spec.to_json();
    subject.state = "done";
    subject.evaluations = {core_summary(l0, quality)};
  }

  std::filesystem::path directory_;
};

}  // namespace saesweep::test
