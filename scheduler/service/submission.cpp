#include "scheduler/service/submission.h"

#include <algorithm>
#include <map>

#include "core/json.h"
#include "metrics/scores/metric_version.h"
#include "sweeps/estimates.h"

namespace saesweep::scheduler {
namespace {

using sweeps::EvaluationSpec;
using sweeps::StreamSpec;
using sweeps::TrialSpec;

constexpr std::uint64_t kRowsLoadedAhead = 1 << 16;

class Builder {
 public:
  explicit Builder(const sweeps::SweepPlan& plan) : plan_(plan), evaluations_(plan.evaluations) {
    // The first file of details that a row finds is that of core.
    std::ranges::stable_partition(evaluations_,
                                  [](const EvaluationSpec& each) { return each.kind == "core"; });
  }

  Submission build() {
    journal::Sweep& sweep = submission_.sweep;
    sweep.set_name(plan_.name);
    sweep.set_effective_yaml(plan_.effective_yaml);
    sweep.set_memory_bytes(plan_.resources.memory_bytes);
    sweep.set_cache_bytes(plan_.cache_bytes);
    sweep.set_checkpoint_every_s(plan_.checkpoint_every_s);
    if (plan_.train_lm) sweep.set_lm_task(add_train_lm(*plan_.train_lm));
    for (const sweeps::PlannedTrial& trial : plan_.trials) {
      journal::Subject& subject = *sweep.add_subjects();
      subject.set_number(trial.number);
      subject.set_identity(trial.identity.hex());
      subject.set_spec(canonical_json(trial.spec.to_json()));
      subject.set_train_task(add_train(trial.spec, trial.identity));
      add_evaluations(subject, trial.identity, trial.spec.stream, "trial");
    }
    for (const sweeps::PlannedBaseline& baseline : plan_.baselines) {
      journal::Subject& subject = *sweep.add_subjects();
      subject.set_baseline(true);
      subject.set_identity(baseline.identity.hex());
      subject.set_spec(canonical_json(baseline.spec.to_json()));
      if (baseline.spec.name == "random_model" && baseline.spec.training) {
        const TrialSpec trained{baseline.spec.stream, *baseline.spec.training};
        subject.set_train_task(add_train(trained, trained.identity()));
      }
      add_evaluations(subject, baseline.identity, baseline.spec.stream, "baseline");
    }
    return std::move(submission_);
  }

 private:
  // False if the sweep has the task already.
  bool add(journal::TaskSpec task) {
    if (!known_.insert(task.id()).second) return false;
    submission_.tasks.push_back(std::move(task));
    return true;
  }

  std::uint64_t d_in_of(const StreamSpec& stream) const {
    for (const sweeps::PlannedStream& planned : plan_.streams)
      if (planned.spec == stream) return planned.d_in;
    // random_model and neurons read the stream of the same hook, or one nearly as wide.
    for (const sweeps::PlannedStream& planned : plan_.streams)
      if (planned.spec.hook == stream.hook) return planned.d_in;
    return plan_.streams.empty() ? 0 : plan_.streams.front().d_in;
  }

  std::string add_train(const TrialSpec& spec, const Sha256& identity) {
    journal::TaskSpec task;
    task.set_id("train:" + identity.hex());
    task.set_kind(protocol::TASK_KIND_TRAIN);
    task.set_spec(canonical_json(spec.to_json()));
    // What reads the same rows in the same way trains side by side.
    const Json group{{"stream", spec.stream.to_json()},
                     {"device", spec.training.device},
                     {"precision", sweeps::to_string(spec.training.precision)},
                     {"deterministic", spec.training.deterministic}};
    task.set_group(sha256(canonical_json(group)).hex());
    const std::uint64_t d_in = d_in_of(spec.stream);
    task.set_memory_bytes(sweeps::estimated_training_memory(spec.training, d_in));
    task.set_directory("trials/" + identity.short_hex());
    task.set_tokens(spec.training.steps() * spec.training.batch);
    task.set_stream(
        sha256(canonical_json(spec.stream.cache_json())).hex());  // as executors name it
    std::string id = task.id();
    add(std::move(task));
    return id;
  }

  std::string add_train_lm(const sweeps::TrainLmSpec& spec) {
    const Sha256 identity = spec.identity();
    journal::TaskSpec task;
    task.set_id("lm:" + identity.hex());
    task.set_kind(protocol::TASK_KIND_TRAIN_LM);
    task.set_spec(canonical_json(spec.to_json()));
    task.set_directory("trials/" + identity.short_hex());
    std::string id = task.id();
    add(std::move(task));
    return id;
  }

  void add_evaluations(journal::Subject& subject, const Sha256& identity, const StreamSpec& stream,
                       const char* word) {
    for (const EvaluationSpec& evaluation : evaluations_) {
      journal::TaskSpec task;
      task.set_id("eval:" + sweeps::score_identity(identity, evaluation,
                                                   metrics::metric_version(evaluation.kind))
                                .hex());
      task.set_kind(protocol::TASK_KIND_EVALUATE);
      task.set_spec(canonical_json(Json{{"evaluation", evaluation.to_json()},
                                        {"subject", word},
                                        {"spec", *parse_json(subject.spec())}}));
      // What runs the same model over the same documents stays with whom has them loaded.
      const Json json = stream.to_json();
      const Json group{{"model", stream.model ? stream.model->digest : ""}, {"data", json["data"]}};
      task.set_group(sha256(canonical_json(group)).hex());
      task.set_memory_bytes(kRowsLoadedAhead * 4 * d_in_of(stream));
      task.set_needs(subject.train_task());
      subject.add_evaluate_tasks(task.id());
      add(std::move(task));
    }
  }

  const sweeps::SweepPlan& plan_;
  std::vector<EvaluationSpec> evaluations_;
  Submission submission_;
  std::set<std::string> known_;
};

}  // namespace

Submission to_submission(const sweeps::SweepPlan& plan) { return Builder(plan).build(); }

}  // namespace saesweep::scheduler
