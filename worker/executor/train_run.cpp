// A run of train tasks: the trials of one stream side by side.
#include <ATen/ATen.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/json.h"
#include "core/log.h"
#include "sweeps/estimates.h"
#include "worker/activations/document_stream.h"
#include "worker/device/session.h"
#include "worker/evaluation/evaluate.h"
#include "worker/executor/checkpoint_folder.h"
#include "worker/executor/held_out_rows.h"
#include "worker/executor/open_stream.h"
#include "worker/executor/run_tools.h"
#include "worker/executor/timed_stream.h"
#include "worker/sae/sae.h"
#include "worker/thrown.h"
#include "worker/training/cohort.h"
#include "worker/training/sae_trainer.h"

namespace saesweep::worker {
namespace {

constexpr double kDefaultCheckpointEvery = 60;  // seconds
constexpr std::chrono::seconds kLongLoading{1};
// Enough for a threshold: the quantile of this many rows moves by less than one in a thousand.
constexpr std::uint64_t kCalibrationRows = std::uint64_t{1} << 16;
// What an evaluation at a rung holds beside the dictionary, about: see EvaluationCache.
constexpr std::uint64_t kEvaluationBytes = std::uint64_t{512} << 20;

struct Student {
  const protocol::Member* wire;
  sweeps::TrialSpec spec;
  CheckpointFolder checkpoints;
  std::vector<sweeps::EvaluationSpec> at_rung;  // computed where it is told to stop
  std::optional<StepReport> last = std::nullopt;
  std::optional<HeldOutReport> held_out = std::nullopt;  // the last look
  std::uint64_t step = 0;
  std::optional<protocol::CheckpointRef> stands_at = std::nullopt;  // the newest durable one

  std::uint64_t until() const { return wire->until_tokens(); }  // 0: its end
  // Where this lease takes it, if nothing comes between.
  std::uint64_t goal_tokens() const {
    const std::uint64_t end = spec.training.steps() * spec.training.batch;
    return until() == 0 ? end : std::min(end, until());
  }
};

// Trials of one stream. Its functions answer for the members they end.
class TrainRun {
 public:
  TrainRun(RunReport& report, const RunTools& tools, std::vector<Student> students)
      : report_(report), tools_(tools) {
    for (Student& student : students) students_.emplace(student.wire->task(), std::move(student));
  }

  void run() {
    auto opened = open();
    while (!opened && report_.is_asked()) {
      answer_requests();
      if (all_answered()) return;
      opened = open();
    }
    if (!opened) return give_up_all(opened.error());
    make_room();
    TimedStream rows(*stream_, tools_.clock);
    Cohort cohort(rows, tools_.pool);
    cohort_ = &cohort;
    for (auto& [task, student] : students_)
      if (report_.is_open(*student.wire)) join(student);
    last_checkpoint_ = tools_.clock.now();
    while (!cohort.empty()) {
      answer_requests();
      finish_those_at_the_end();
      stop_those_at_a_rung();
      if (cohort.empty()) break;
      const TimePoint begin = tools_.clock.now();
      const Duration waited = rows.waited();
      auto outcomes = cohort.advance();
      const TimePoint stepped = tools_.clock.now();
      report_.count_time(stepped - begin, rows.waited() - waited);
      if (!outcomes) {
        if (outcomes.error().code == ErrorCode::kUnavailable && report_.is_asked()) continue;
        give_up_all(outcomes.error());
        break;
      }
      training_ = true;
      last_loaded_ = 0;
      for (auto& outcome : *outcomes) note(outcome);
      stepping_ += stepped - begin;
      looking_ += tools_.clock.now() - stepped;
      write_checkpoints_if_due();
      tell_progress();
    }
    cohort_ = nullptr;
    is_over_ = true;
    tell_cost_of_looking();
  }

 private:
  const sweeps::StreamSpec& stream_spec() const { return students_.begin()->second.spec.stream; }
  bool reads_documents() const {
    return sweeps::is_end_to_end(students_.begin()->second.spec.training.architecture);
  }

  Result<void> open() {
    SAE_TRY(sources_, open_sources(stream_spec(), tools_));
    stream_.reset();
    plan_ = nullptr;
    rows_ = nullptr;
    documents_ = nullptr;
    StreamEvents events;
    events.harvested = [this](std::uint64_t rows) { report_.count_harvested(rows); };
    events.loading = [this](std::uint64_t done, std::uint64_t total) { tell_loading(done, total); };
    events.stop = [this] { return report_.is_asked() || is_over_; };
    // What a factor or a filter reads before anything is trained is waited for, too.
    const TimePoint begin = tools_.clock.now();
    const auto opened = reads_documents() ? open_documents(events) : open_cached(events);
    const Duration took = tools_.clock.now() - begin;
    report_.count_time(took, took);
    return opened;
  }

  Result<void> open_documents(const StreamEvents& events) {
    if (sources_.tokens == nullptr)
      return fail(ErrorCode::kInvalidArgument, "data.source '{}' has no documents of tokens",
                  stream_spec().data.source);
    const bool downstream = std::ranges::any_of(
        students_, [](const auto& entry) { return entry.second.spec.training.in_to_orig > 0; });
    SAE_TRY(auto documents, DocumentStream::open(stream_spec(), sources_.model, sources_.tokens,
                                                 tools_.pool, downstream, events));
    documents_ = documents.get();
    stream_ = std::move(documents);
    return {};
  }

  Result<void> open_cached(const StreamEvents& events) {
    SAE_TRY(auto cached, open_stream(stream_spec(), sources_, report_.run(), tools_, events));
    plan_ = &cached->plan();
    rows_ = cached.get();
    stream_ = std::move(cached);
    return {};
  }

  std::uint64_t row_bytes() const {
    return static_cast<std::uint64_t>(stream_->d_in()) * size_of(stream_spec().dtype);
  }

  // What earlier runs left loaded goes before a cohort that does not fit beside it.
  void make_room() {
    std::uint64_t needed = 0;
    if (plan_ != nullptr)  // a group and a chunk of it are in memory
      needed = (plan_->group_rows() + plan_->max_chunk_rows()) * row_bytes();
    std::uint64_t evaluation = 0, spliced = 0;
    for (const auto& [task, student] : students_) {
      if (!report_.is_open(*student.wire)) continue;
      needed += training_memory_bytes(student.spec.training, stream_->d_in());
      if (student.until() > 0) evaluation = kEvaluationBytes;
      if (documents_ != nullptr)
        spliced = std::max(spliced, documents_->splice_bytes(student.spec.training.batch,
                                                             student.spec.training.in_to_orig > 0));
    }
    needed += spliced;
    // Held-out rows of learning curves, and what of them is to be predicted.
    needed +=
        2 * sweeps::kHeldOutRows * static_cast<std::uint64_t>(stream_->d_in()) * sizeof(float);
    needed += evaluation;
    const std::uint64_t memory = report_.run().memory_bytes();
    tools_.warm.make_room(memory, needed);
    if (plan_ == nullptr) return;
    // The next group beside the one that is read, where there is room for both.
    const std::uint64_t group = plan_->group_rows() * row_bytes();
    if (memory != 0 && sweeps::kExecutorBytes + tools_.warm.bytes() + needed + group > memory)
      return;
    std::uint64_t goal = 0;
    for (const auto& [task, student] : students_)
      if (report_.is_open(*student.wire)) goal = std::max(goal, student.goal_tokens());
    rows_->bring_ahead(goal);
  }

  void join(Student& student) {
    auto trainer = make_trainer(student);
    if (!trainer) return report_.give_up(*student.wire, trainer.error());
    student.step = (*trainer)->step();
    cohort_->add(student.wire->task(), std::move(*trainer));
  }

  // What is thrown for one member ends that one alone.
  template <class Body>
  static auto guarded(const Body& body) -> decltype(body()) {
    try {
      return body();
    } catch (const std::exception& thrown) {
      return fail(error_of(thrown));
    }
  }

  Result<std::unique_ptr<SaeTrainer>> make_trainer(Student& student) {
    const auto create = [&] {
      return SaeTrainer::create(student.spec.training, stream_->parts(), tools_.pool, documents_,
                                gpu_.get());
    };
    SAE_TRY_VOID(open_gpu(student.spec.training));
    if (documents_ != nullptr) SAE_TRY_VOID(documents_->check_batch(student.spec.training.batch));
    const auto candidates = student.checkpoints.to_restore();
    for (const auto& directory : candidates) {
      SAE_TRY(auto trainer, create());
      auto restored = guarded([&] { return trainer->restore(directory); });
      if (restored && student.until() > 0 && trainer->position() > student.until())
        restored = fail(ErrorCode::kInvalidArgument, "it is past {} tokens", student.until());
      if (restored) {
        if (directory == candidates.front()) student.stands_at = student.wire->resume();
        log::info("train.resumed task={} step={}", student.wire->task(), trainer->step());
        student.checkpoints.went_on_from(trainer->step());
        return trainer;
      }
      if (restored.error().code == ErrorCode::kResourceExhausted) return fail(restored.error());
      log::warn("checkpoint.unusable path={} problem={}", directory.string(),
                restored.error().message);
    }
    if (student.wire->has_resume())
      log::warn("train.from_the_beginning task={}", student.wire->task());
    return create();
  }

  Result<void> open_gpu(const sweeps::TrainingSpec& training) {
    if (training.device != "cuda" || gpu_ != nullptr) return {};
    SAE_TRY(device::Device* const device, tools_.gpu.open());
    gpu_ = std::make_unique<device::Session>(*device);
    return {};
  }

  void note(Cohort::Outcome& outcome) {
    Student& student = students_.at(outcome.name);
    if (!outcome.report) {
      cohort_->remove(outcome.name);
      return report_.give_up(*student.wire, outcome.report.error());
    }
    student.last = *outcome.report;
    student.step = outcome.report->step;
    report_.count_trained(student.spec.training.batch);
    look_at_held_out_rows(student);
  }

  // Concerns nobody but the curve of this member.
  void look_at_held_out_rows(Student& student) {
    SaeTrainer& trainer = *cohort_->find(student.wire->task());
    if (!trainer.held_out_is_due()) return;
    const auto scored = guarded([&]() -> Result<HeldOutReport> {
      if (!curve_rows_.defined()) {
        curve_rows_ = documents_ != nullptr
                          ? documents_->read_held_out(sweeps::kHeldOutRows)
                          : held_out_rows(stream_spec(), sources_, stream_->parts(),
                                          sweeps::kHeldOutRows, tools_.pool);
        if (curve_rows_.size(0) == 0)
          log::warn("train.nothing_held_out hook={}", stream_spec().label());
      }
      if (curve_rows_.size(0) == 0) return fail(ErrorCode::kNotFound, "no row is held out");
      return trainer.score_held_out(curve_rows_);
    });
    if (scored) {
      student.held_out = *scored;
    } else if (scored.error().code != ErrorCode::kNotFound) {
      cohort_->remove(student.wire->task());
      report_.give_up(*student.wire, scored.error());
    }
  }

  void tell_cost_of_looking() const {
    const std::chrono::duration<double> stepping = stepping_, looking = looking_;
    if (curve_rows_.defined() && stepping.count() > 0)
      log::info("train.held_out rows={} seconds={:.3f} share_of_training={:.4f}",
                curve_rows_.size(0), looking.count(), looking / stepping);
  }

  void finish_those_at_the_end() {
    for (const std::string& task : cohort_->names()) {
      if (!cohort_->find(task)->finished()) continue;
      Student& student = students_.at(task);
      auto trainer = cohort_->remove(task);
      if (trainer->needs_threshold()) {
        const auto rows = calibration_rows();
        if (!rows && rows.error().code == ErrorCode::kUnavailable && report_.is_asked()) {
          cohort_->add(task, std::move(trainer));  // first what is asked, then this again
          return;
        }
        if (!rows) {
          report_.give_up(*student.wire, rows.error());
          continue;
        }
        if (const auto settled = trainer->settle(); !settled) {
          report_.give_up(*student.wire, settled.error());
          continue;
        }
        trainer->calibrate_threshold(*rows);
      }
      deliver(student, *trainer);
    }
  }

  // Those that are trained as far as they were told: what they are worth by now, and no further.
  void stop_those_at_a_rung() {
    for (const std::string& task : cohort_->names()) {
      Student& student = students_.at(task);
      if (student.until() == 0 || cohort_->find(task)->position() < student.until()) continue;
      // Durable first; what is done to the trainer from here on is in no checkpoint.
      if (const auto written = write_checkpoint_of_rung(student); !written) {
        cohort_->remove(task);
        report_.give_up(*student.wire, written.error(), RunReport::During::kDisk);
        continue;
      }
      auto trainer = cohort_->remove(task);
      auto result = guarded([&] { return report_of(student, *trainer); });
      if (result) {
        report_.finish(*student.wire, std::move(*result));
      } else if (result.error().code == ErrorCode::kUnavailable && report_.is_asked()) {
        cohort_->add(task, std::move(trainer));  // first what is asked, then this again
        return;
      } else {
        report_.give_up(*student.wire, result.error());
      }
    }
  }

  Result<void> write_checkpoint_of_rung(Student& student) {
    const SaeTrainer& trainer = *cohort_->find(student.wire->task());
    if (student.stands_at && student.stands_at->step() == trainer.step()) return {};
    student.checkpoints.went_on_from(0);  // where it went on from was not what it was told
    return write_checkpoint(student, "rung");
  }

  Result<protocol::TaskResult> report_of(const Student& student, SaeTrainer& trainer) {
    SAE_TRY_VOID(trainer.settle());
    if (trainer.needs_threshold()) {
      SAE_TRY(const at::Tensor rows, calibration_rows());
      trainer.calibrate_threshold(rows);
    }
    const Sae sae = trainer.sae();
    const Json summary = trainer.summary();
    EvaluationInputs inputs;
    inputs.stream = stream_spec();
    inputs.model = sources_.model;
    inputs.tokens = sources_.tokens;
    inputs.activations = sources_.activations;
    inputs.pool = &tools_.pool;
    inputs.cache = &evaluation_cache_;
    inputs.stop = [this] { return report_.is_asked(); };
    inputs.progress = [this](std::uint64_t done, std::uint64_t total) {
      report_.progress("evaluate", done, total);
    };
    Json evaluations = Json::array();
    for (const sweeps::EvaluationSpec& evaluation : student.at_rung) {
      SAE_TRY(const Json scores, evaluate_sae(evaluation, sae, summary, inputs));
      Json one{{"evaluation", evaluation.to_json()}, {"scores", scores["scores"]}};
      if (scores.contains("heldout")) one["heldout"] = scores["heldout"];
      evaluations.push_back(std::move(one));
    }
    protocol::TaskResult result;
    result.set_outcome(protocol::OUTCOME_AT_RUNG);
    *result.mutable_checkpoint() = *student.stands_at;
    result.set_summary(
        canonical_json({{"tokens", trainer.position()}, {"evaluations", std::move(evaluations)}}));
    return result;
  }

  void deliver(const Student& student, SaeTrainer& trainer) {
    std::string tensors;
    const auto written = guarded([&]() -> Result<void> {
      SAE_TRY_VOID(trainer.settle());
      tensors = serialize_sae(trainer.sae());
      return {};
    });
    if (!written) return report_.give_up(*student.wire, written.error());
    Json config = trainer.config();
    const auto& stream = student.spec.stream;
    config.update(stream.hooks_json(student.spec.training.architecture));
    config["model_digest"] = stream.model ? Json(stream.model->digest) : Json(nullptr);
    config["model_precision"] =
        stream.model ? Json(sweeps::to_string(stream.model->precision)) : Json(nullptr);
    config["trial"] = student.spec.identity().hex();
    if (stream.filters.any()) {
      config["filters"] = stream.filters.to_json();
      config["filters"]["dropped_rows"] =
          documents_ != nullptr ? documents_->dropped() : plan_->dropped();
    }
    protocol::TaskResult result;
    const auto put = [&](const char* name, const std::string& bytes) -> Result<void> {
      SAE_TRY(*result.add_artifacts(), tools_.artifacts.put(name, bytes));
      return {};
    };
    auto kept = put("sae.safetensors", tensors);
    if (kept) kept = put("config.json", pretty_json(config));
    if (kept) kept = put("curve.csv", trainer.curve_csv());
    if (!kept) return report_.give_up(*student.wire, kept.error(), RunReport::During::kDisk);
    result.set_outcome(protocol::OUTCOME_DONE);
    result.set_summary(canonical_json(trainer.summary()));
    report_.finish(*student.wire, std::move(result));
  }

  // Rows no trial was trained on, as the trials see rows; rows of the stream if none are held out.
  Result<at::Tensor> calibration_rows() {
    if (!calibration_rows_.defined()) {
      SAE_TRY(calibration_rows_, rows_for_calibration(stream_spec(), sources_, *stream_,
                                                      kCalibrationRows, tools_.pool));
    }
    return calibration_rows_;
  }

  Result<void> write_checkpoint(Student& student, const char* reason) {
    const SaeTrainer* trainer = cohort_ == nullptr ? nullptr : cohort_->find(student.wire->task());
    if (trainer == nullptr || trainer->step() == student.checkpoints.last_step()) return {};
    const auto written = student.checkpoints.write(
        trainer->step(), trainer->position(),
        [&](const std::filesystem::path& directory) { return trainer->save(directory); });
    if (!written) return fail(written.error());
    student.stands_at = *written;
    report_.checkpointed(*student.wire, *written, reason);
    return {};
  }

  void write_checkpoints_if_due() {
    const double every = report_.run().checkpoint_every_s() > 0 ? report_.run().checkpoint_every_s()
                                                                : kDefaultCheckpointEvery;
    if (tools_.clock.now() - last_checkpoint_ < std::chrono::duration<double>(every)) return;
    for (const std::string& task : cohort_->names()) {
      if (cohort_->find(task)->finished()) continue;  // its result is next
      Student& student = students_.at(task);
      if (const auto written = write_checkpoint(student, "interval"); !written) {
        cohort_->remove(task);
        report_.give_up(*student.wire, written.error(), RunReport::During::kDisk);
      }
    }
    last_checkpoint_ = tools_.clock.now();
  }

  void answer_requests() {
    report_.answer_requests([this](const protocol::Member& member, bool pause) {
      const auto found = students_.find(member.task());
      if (found == students_.end()) return;  // of a stream whose turn has not come
      if (pause) {
        // Without a new checkpoint the one before still stands.
        if (const auto written = write_checkpoint(found->second, "pause"); !written)
          log::warn("checkpoint.not_written task={} problem={}", member.task(),
                    written.error().message);
      }
      if (cohort_ != nullptr) cohort_->remove(member.task());
    });
  }

  // Between two steps a group is mostly there in no time: only a long wait is a stage of its own.
  void tell_loading(std::uint64_t done, std::uint64_t total) {
    const TimePoint now = tools_.clock.now();
    if (last_loaded_ == 0 || done <= last_loaded_) loading_since_ = now;
    last_loaded_ = done;
    if (!training_ || now - loading_since_ > kLongLoading) report_.progress("harvest", done, total);
  }

  void tell_progress() {
    if (!report_.progress_is_due()) return;
    std::uint64_t done = 0, total = 0;
    std::vector<protocol::MemberProgress> members;
    for (const auto& [task, student] : students_) {
      const auto& training = student.spec.training;
      done += student.step * training.batch;
      total += student.goal_tokens();
      if (!report_.is_open(*student.wire)) continue;
      protocol::MemberProgress member;
      member.set_task(task);
      member.set_fence(student.wire->fence());
      member.set_step(student.step);
      member.set_steps(training.steps());
      member.set_tokens(student.step * training.batch);
      if (student.last) {
        auto& metrics = *member.mutable_metrics();
        metrics["loss"] = student.last->loss;
        metrics["fve"] = student.last->fve;
        metrics["l0"] = student.last->l0;
        metrics["dead_fraction"] = student.last->dead_fraction;
        metrics["grad_norm"] = student.last->grad_norm;
      }
      if (student.held_out) {
        auto& metrics = *member.mutable_metrics();
        metrics["heldout_tokens"] = static_cast<double>(student.held_out->tokens);
        metrics["heldout_loss"] = student.held_out->loss;
        metrics["heldout_mse"] = student.held_out->mse;
        metrics["heldout_fve"] = student.held_out->fve;
        metrics["heldout_l0"] = student.held_out->l0;
        metrics["heldout_dead_fraction"] = student.held_out->dead_fraction;
      }
      members.push_back(std::move(member));
    }
    report_.progress("train", done, total, std::move(members));
  }

  bool all_answered() const {
    return std::ranges::none_of(
        students_, [this](const auto& entry) { return report_.is_open(*entry.second.wire); });
  }

  void give_up_all(const Error& error) {
    for (const auto& [task, student] : students_) report_.give_up(*student.wire, error);
  }

  RunReport& report_;
  const RunTools& tools_;
  std::map<std::string, Student> students_;  // by task
  StreamSources sources_;
  std::atomic<bool> is_over_ = false;     // nobody waits for chunks any more
  std::unique_ptr<device::Session> gpu_;  // of the trials that train on one
  std::unique_ptr<RowStream> stream_;
  CachedStream* rows_ = nullptr;         // what stream_ is for all others,
  const ChunkPlan* plan_ = nullptr;      // and its plan
  DocumentStream* documents_ = nullptr;  // what stream_ is for end-to-end trials
  Cohort* cohort_ = nullptr;             // while run() has one
  at::Tensor calibration_rows_;
  at::Tensor curve_rows_;  // held out, of learning curves; without rows if there are none
  EvaluationCache evaluation_cache_;  // what members at a rung share of the stream
  TimePoint last_checkpoint_{};
  bool training_ = false;          // a step has been done
  std::uint64_t last_loaded_ = 0;  // rows of the group that is loading; 0: none was begun
  TimePoint loading_since_{};
  // What steps took in all, and what came after them: looks at held-out rows.
  TimePoint::duration stepping_{}, looking_{};
};

Result<sweeps::TrialSpec> read_spec(const protocol::Member& member) {
  SAE_TRY(const Json json, parse_json(member.spec()));
  return sweeps::TrialSpec::from_json(json);
}

Result<std::vector<sweeps::EvaluationSpec>> read_rung(const protocol::Member& member) {
  std::vector<sweeps::EvaluationSpec> specs;
  if (member.until_tokens() == 0) return specs;
  SAE_TRY(const Json json, parse_json(member.rung_evaluations()));
  if (!json.is_array() || json.empty())
    return fail(ErrorCode::kInvalidArgument, "nothing to compute at {} tokens",
                member.until_tokens());
  for (const Json& each : json) {
    SAE_TRY(auto spec, sweeps::EvaluationSpec::from_json(each));
    specs.push_back(std::move(spec));
  }
  return specs;
}

}  // namespace

void train(RunReport& report, const RunTools& tools) {
  // The scheduler puts trials of one stream into a run; should it ever mix them, they take turns.
  std::vector<std::vector<Student>> by_stream;
  for (const protocol::Member* member : report.open_members()) {
    auto spec = read_spec(*member);
    if (!spec) {
      report.give_up(*member, spec.error());
      continue;
    }
    auto at_rung = read_rung(*member);
    if (!at_rung) {
      report.give_up(*member, at_rung.error());
      continue;
    }
    Student student{member, std::move(*spec), CheckpointFolder(tools.state, *member),
                    std::move(*at_rung)};
    const auto same = std::ranges::find_if(by_stream, [&](const std::vector<Student>& group) {
      const auto reads_documents = [](const Student& one) {
        return sweeps::is_end_to_end(one.spec.training.architecture);
      };
      return group.front().spec.stream == student.spec.stream &&
             reads_documents(group.front()) == reads_documents(student);
    });
    if (same != by_stream.end())
      same->push_back(std::move(student));
    else
      by_stream.emplace_back().push_back(std::move(student));
  }
  for (auto& group : by_stream) {
    std::erase_if(group, [&](const Student& one) { return !report.is_open(*one.wire); });
    if (!group.empty()) TrainRun(report, tools, std::move(group)).run();
  }
}

}  // namespace saesweep::worker
