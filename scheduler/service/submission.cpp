#include "scheduler/service/submission.h"

#include <algorithm>
#include <array>
#include <functional>
#include <iterator>
#include <limits>
#include <unordered_map>

#include "core/json.h"
#include "metrics/scores/metric_version.h"
#include "scheduler/early_stopping/rungs.h"
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
    std::stable_partition(evaluations_.begin(), evaluations_.end(),
                          [](const EvaluationSpec& each) { return each.kind == "core"; });
    find_families();
  }

  Submission build() {
    journal::Sweep& sweep = submission_.sweep;
    sweep.set_name(plan_.name);
    sweep.set_effective_yaml(plan_.effective_yaml);
    sweep.set_memory_bytes(plan_.resources.memory_bytes);
    sweep.set_cache_bytes(plan_.cache_bytes);
    sweep.set_checkpoint_every_s(plan_.checkpoint_every_s);
    if (plan_.train_lm) sweep.set_lm_task(add_train_lm(*plan_.train_lm));
    if (plan_.early_stopping) add_early_stopping(*plan_.early_stopping, sweep);
    for (const sweeps::PlannedTrial& trial : plan_.trials) {
      journal::Subject& subject = *sweep.add_subjects();
      subject.set_number(trial.number);
      subject.set_identity(trial.identity.hex());
      subject.set_spec(canonical_json(trial.spec.to_json()));
      subject.set_train_task(add_train(trial.spec, trial.identity));
      if (plan_.early_stopping) {
        subject.set_batch(trial.spec.training.batch);
        subject.set_bracket(next_bracket(sweep.early_stopping()));
      }
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
  void find_families() {
    std::map<std::string, std::set<std::string>> streams;  // by family
    const auto add = [&](const StreamSpec& stream) {
      if (const std::string family = stream.family(); !family.empty())
        streams[family].insert(stream.cache_name());
    };
    for (const sweeps::PlannedStream& planned : plan_.streams) add(planned.spec);
    for (const sweeps::PlannedBaseline& planned : plan_.baselines) add(planned.spec.stream);
    for (const auto& [family, members] : streams)
      if (members.size() > 1)
        for (const std::string& stream : members) families_[stream] = family;
  }

  void add_early_stopping(const sweeps::EarlyStoppingSpec& spec, journal::Sweep& sweep) {
    journal::EarlyStopping& settings = *sweep.mutable_early_stopping();
    const bool is_median = spec.rule == sweeps::StoppingRule::kMedian;
    settings.set_rule(
        std::string(sweeps::to_string(is_median ? sweeps::StoppingRule::kPercentile : spec.rule)));
    settings.set_promotes(spec.promotes);
    for (const sweeps::StoppingMetric& metric : spec.metrics) {
      auto& each = *settings.add_metrics();
      each.set_name(metric.name);
      each.set_maximize(metric.maximize);
      each.set_evaluation(canonical_json(metric.evaluation.to_json()));
    }
    std::uint64_t most = 0;
    for (const sweeps::PlannedTrial& trial : plan_.trials)
      most = std::max(most, trial.spec.training.steps() * trial.spec.training.batch);
    settings.set_eta(spec.eta);
    settings.set_min_reports(spec.min_reports);
    settings.set_brackets(1);
    if (spec.halves()) {
      for (const std::uint64_t tokens : rung_tokens(spec.min_tokens, most, spec.eta))
        if (tokens < most) settings.add_rungs(tokens);
      if (spec.rule == sweeps::StoppingRule::kHyperband)
        settings.set_brackets(last_bracket(spec.min_tokens, most, spec.eta) + 1);
    } else {
      for (std::uint64_t tokens = spec.interval; tokens < most; tokens += spec.interval)
        settings.add_rungs(tokens);
      settings.set_percentile(is_median ? 50 : spec.percentile);
      settings.set_warmup_tokens(spec.warmup);
      settings.set_min_trials(spec.min_trials);
      settings.set_patience(spec.reports);
      settings.set_min_delta(spec.min_delta);
      if (spec.low) settings.set_low(*spec.low);
      if (spec.high) settings.set_high(*spec.high);
    }
    brackets_ = Brackets(settings.brackets());
  }

  // Each rung of a bracket costs about as much as its first: fewer trials go on to more tokens.
  std::uint32_t next_bracket(const journal::EarlyStopping& settings) {
    const std::size_t bracket = brackets_.next();
    const auto first = static_cast<int>(bracket);
    if (first < settings.rungs_size())
      brackets_.charge(bracket, settings.rungs(first) *
                                    static_cast<std::uint64_t>(settings.rungs_size() - first + 1));
    return static_cast<std::uint32_t>(bracket);
  }

  // False if the sweep has the task already.
  bool add(journal::TaskSpec task) {
    if (!known_.insert(task.id()).second) return false;
    submission_.tasks.push_back(std::move(task));
    return true;
  }

  void set_stream(journal::TaskSpec& task, const StreamSpec& stream) const {
    task.set_stream(stream.cache_name());
    if (const auto found = families_.find(task.stream()); found != families_.end())
      task.set_stream_family(found->second);
  }

  std::uint64_t d_in_of(const StreamSpec& stream) const {
    for (const sweeps::PlannedStream& planned : plan_.streams)
      if (planned.spec == stream) return planned.d_in;
    // random_model and neurons read the stream of the same hook, or one nearly as wide.
    for (const sweeps::PlannedStream& planned : plan_.streams)
      if (planned.spec.hooks() == stream.hooks()) return planned.d_in;
    return plan_.streams.empty() ? 0 : plan_.streams.front().d_in;
  }

  std::string add_train(const TrialSpec& spec, const Sha256& identity) {
    journal::TaskSpec task;
    task.set_id("train:" + identity.hex());
    task.set_kind(protocol::TASK_KIND_TRAIN);
    task.set_spec(canonical_json(spec.to_json()));
    // What reads the same rows in the same way trains side by side.
    Json group{{"stream", spec.stream.to_json()},
               {"device", spec.training.device},
               {"precision", sweeps::to_string(spec.training.precision)},
               {"deterministic", spec.training.deterministic}};
    const bool reads_documents = sweeps::is_end_to_end(spec.training.architecture);
    if (reads_documents) group["reads"] = "documents";
    task.set_group(sha256(canonical_json(group)).hex());
    const std::uint64_t d_in = d_in_of(spec.stream);
    std::uint64_t of_model = 0;
    for (const sweeps::PlannedStream& planned : plan_.streams)
      if (planned.spec == spec.stream)
        of_model = sweeps::estimated_splice_memory(spec.training, planned);
    task.set_memory_bytes(sweeps::estimated_training_memory(spec.training, d_in) + of_model);
    task.set_shared_memory_bytes(of_model);
    task.set_directory("trials/" + identity.short_hex());
    task.set_tokens(spec.training.steps() * spec.training.batch);
    if (spec.training.device == "cuda") {
      task.set_needs_gpu(true);
      task.set_gpu_memory_bytes(sweeps::estimated_gpu_memory(spec.training, d_in));
      task.set_shared_gpu_memory_bytes(sweeps::shared_gpu_memory(spec.training, d_in));
    }
    if (!reads_documents) set_stream(task, spec.stream);
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
    task.set_memory_bytes(sweeps::estimated_lm_memory(spec));
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
      const Json group{{"model", stream.model ? stream.model->identity() : ""},
                       {"data", json["data"]}};
      task.set_group(sha256(canonical_json(group)).hex());
      task.set_memory_bytes(kRowsLoadedAhead * 4 * d_in_of(stream));
      set_stream(task, stream);
      task.set_needs(subject.train_task());
      subject.add_evaluate_tasks(task.id());
      add(std::move(task));
    }
  }

  const sweeps::SweepPlan& plan_;
  std::vector<EvaluationSpec> evaluations_;
  Submission submission_;
  std::set<std::string> known_;
  std::map<std::string, std::string> families_;  // of streams with siblings, by cache name
  Brackets brackets_{1};
};

// What a client may send.
class Checker {
 public:
  explicit Checker(const Submission& submission) : submission_(submission) {}

  Result<void> check() {
    const journal::Sweep& sweep = submission_.sweep;
    if (!is_name(sweep.name()))
      return wrong("its name: up to 100 letters, digits, '.', '_' or '-' would be right");
    if (!(sweep.checkpoint_every_s() >= 0 && sweep.checkpoint_every_s() <= kLongestInterval))
      return wrong("its checkpoint interval");
    tasks_.reserve(submission_.tasks.size());
    for (const journal::TaskSpec& task : submission_.tasks) SAE_TRY_VOID(check(task));
    if (!sweep.lm_task().empty() && find(sweep.lm_task(), protocol::TASK_KIND_TRAIN_LM) == nullptr)
      return wrong("its model's task is not among its tasks");
    if (sweep.has_early_stopping()) SAE_TRY_VOID(check(sweep.early_stopping()));
    for (const journal::Subject& subject : sweep.subjects()) SAE_TRY_VOID(check(subject));
    if (submission_.tasks.empty()) return wrong("it has no tasks");
    return {};
  }

 private:
  static constexpr std::size_t kMostSpecBytes = std::size_t{256} << 10;
  static constexpr double kLongestInterval = 1e9;

  static bool is_name(std::string_view name) {
    const auto fits = [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
             c == '.' || c == '_' || c == '-';
    };
    return !name.empty() && name.size() <= 100 && name[0] != '.' && name[0] != '-' &&
           std::ranges::all_of(name, fits);
  }
  static bool is_hex(std::string_view text, std::size_t digits) {
    return text.size() == digits && std::ranges::all_of(text, [](char c) {
             return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
           });
  }
  static bool is_spec(const std::string& text) {
    const auto json = parse_json(text, 16, kMostSpecBytes);
    return json && json->is_object();
  }
  static tl::unexpected<Error> wrong(const std::string& what) {
    return fail(ErrorCode::kInvalidArgument, "the submission is not right: {}", what);
  }

  static Result<void> check(const journal::EarlyStopping& settings) {
    constexpr std::array kRules{"asha", "hyperband", "percentile", "patience", "threshold"};
    const bool halves = settings.rule() == "asha" || settings.rule() == "hyperband";
    const auto& rungs = settings.rungs();
    const std::vector<std::uint64_t> tokens(rungs.begin(), rungs.end());
    if (std::ranges::find(kRules, settings.rule()) == kRules.end() ||
        (settings.promotes() && !halves))
      return wrong("the rule of its early stopping");
    if (tokens.empty() || tokens.size() > sweeps::kMostRungs || tokens[0] == 0 ||
        !std::ranges::is_sorted(tokens, std::less_equal()))
      return wrong("the rungs of its early stopping");
    if (settings.eta() < 2 || settings.brackets() < 1 || settings.brackets() > tokens.size())
      return wrong("the brackets of its early stopping");
    if (settings.metrics_size() < 1 || settings.metrics_size() > (halves ? 2 : 1))
      return wrong("the metrics of its early stopping");
    for (const auto& metric : settings.metrics())
      if (!is_spec(metric.evaluation())) return wrong("an evaluation of its early stopping");
    const bool is_curve_right =
        halves ||
        (settings.percentile() >= 0 && settings.percentile() <= 100 && settings.min_trials() >= 1 &&
         settings.patience() >= 1 && settings.min_delta() >= 0);
    if (!is_curve_right) return wrong("the numbers of its early stopping");
    return {};
  }

  Result<void> check(const journal::TaskSpec& task) {
    const std::string_view id = task.id();
    const std::size_t colon = std::min(id.find(':'), id.size());
    const std::string_view kind = id.substr(0, colon);
    const bool fits = task.kind() == protocol::TASK_KIND_TRAIN      ? kind == "train"
                      : task.kind() == protocol::TASK_KIND_EVALUATE ? kind == "eval"
                      : task.kind() == protocol::TASK_KIND_TRAIN_LM ? kind == "lm"
                                                                    : false;
    if (!fits || colon == id.size() || !is_hex(id.substr(colon + 1), 64))
      return wrong("a task's name");
    if (!is_spec(task.spec())) return wrong(fmt::format("the parameters of {}", id));
    if (!is_hex(task.group(), 64) && !(task.group().empty() && kind == "lm"))
      return wrong(fmt::format("the group of {}", id));
    const std::string folder = "trials/" + std::string(id.substr(colon + 1, 12));
    if (task.directory() != (kind == "eval" ? "" : folder))
      return wrong(fmt::format("the folder of {}", id));
    // What is needed comes before who needs it, so nothing waits for itself.
    if (!task.needs().empty() && !tasks_.contains(task.needs()))
      return wrong(fmt::format("what {} needs is not there before it", id));
    if (!tasks_.emplace(task.id(), &task).second)
      return wrong(fmt::format("{} is there twice", id));
    return {};
  }
  Result<void> check(const journal::Subject& subject) {
    if (!is_hex(subject.identity(), 64)) return wrong("a trial's identity");
    const std::string id = subject.identity().substr(0, 12);
    const journal::TaskSpec* train = find(subject.train_task(), protocol::TASK_KIND_TRAIN);
    if (!subject.train_task().empty() && train == nullptr)
      return wrong(fmt::format("the training of {} is not among its tasks", id));
    // Those of a trial are those of its training, which were checked.
    if ((train == nullptr || train->spec() != subject.spec()) && !is_spec(subject.spec()))
      return wrong(fmt::format("the parameters of {}", id));
    if (!subject.baseline() && subject.train_task().empty())
      return wrong(fmt::format("trial {} trains nothing", id));
    const journal::Sweep& sweep = submission_.sweep;
    if (sweep.has_early_stopping() && !subject.baseline() &&
        (subject.batch() == 0 || subject.bracket() >= sweep.early_stopping().brackets()))
      return wrong(fmt::format("the rungs of {}", id));
    for (const std::string& task : subject.evaluate_tasks())
      if (find(task, protocol::TASK_KIND_EVALUATE) == nullptr)
        return wrong(fmt::format("an evaluation of {} is not among its tasks", id));
    return {};
  }
  const journal::TaskSpec* find(const std::string& task, protocol::TaskKind kind) const {
    const auto found = tasks_.find(task);
    return found != tasks_.end() && found->second->kind() == kind ? found->second : nullptr;
  }

  const Submission& submission_;
  std::unordered_map<std::string_view, const journal::TaskSpec*> tasks_;  // by id
};

}  // namespace

Submission to_submission(const sweeps::SweepPlan& plan) { return Builder(plan).build(); }

std::string to_payload(Submission submission) {
  journal::SweepSubmitted submitted;
  *submitted.mutable_sweep() = std::move(submission.sweep);
  submitted.mutable_tasks()->Reserve(static_cast<int>(submission.tasks.size()));
  for (journal::TaskSpec& task : submission.tasks) *submitted.add_tasks() = std::move(task);
  return submitted.SerializeAsString();
}

Result<Submission> parse_submission(std::string_view payload) {
  journal::SweepSubmitted submitted;
  if (payload.size() > static_cast<std::size_t>(std::numeric_limits<int>::max()) ||
      !submitted.ParseFromArray(payload.data(), static_cast<int>(payload.size())))
    return fail(ErrorCode::kInvalidArgument, "the payload is no submission");
  Submission submission;
  submission.sweep = std::move(*submitted.mutable_sweep());
  submission.tasks.assign(std::make_move_iterator(submitted.mutable_tasks()->begin()),
                          std::make_move_iterator(submitted.mutable_tasks()->end()));
  // What only the scheduler says of a sweep.
  submission.sweep.clear_submission();
  submission.sweep.clear_started();
  submission.sweep.clear_ended();
  submission.sweep.clear_active();
  SAE_TRY_VOID(check_submission(submission));
  return submission;
}

Result<void> check_submission(const Submission& submission) { return Checker(submission).check(); }

}  // namespace saesweep::scheduler
