// A run of train_lm tasks: a transformer trained from scratch, with the numbers that say how good
// it is.
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>

#include "core/files.h"
#include "core/json.h"
#include "core/log.h"
#include "worker/executor/checkpoint_folder.h"
#include "worker/executor/run_tools.h"
#include "worker/models/train_lm.h"

namespace saesweep::worker {
namespace {

constexpr double kDefaultCheckpointEvery = 60;  // seconds
constexpr std::uint64_t kMeasuredGames = 2000;  // held out; about 60 000 targets on a 6x6 board
constexpr const char* kStateFile = "state.safetensors";

class TrainLmRun {
 public:
  TrainLmRun(RunReport& report, const RunTools& tools, const protocol::Member& member)
      : report_(report), tools_(tools), member_(member), checkpoints_(tools.state, member) {}

  void run() {
    const auto made = make_trainer();
    if (!made) return report_.give_up(member_, made.error());
    TimePoint last_checkpoint = tools_.clock.now();
    const double every = report_.run().checkpoint_every_s() > 0 ? report_.run().checkpoint_every_s()
                                                                : kDefaultCheckpointEvery;
    while (trainer_->step() < trainer_->steps()) {
      answer_requests();
      if (!report_.is_open(member_)) return;
      const auto step = trainer_->train_step();
      if (!step) return report_.give_up(member_, step.error());
      report_.count_trained(step->tokens);
      tell_progress(step->loss);
      if (tools_.clock.now() - last_checkpoint < std::chrono::duration<double>(every)) continue;
      if (const auto written = write_checkpoint("interval"); !written)
        return report_.give_up(member_, written.error(), RunReport::During::kDisk);
      last_checkpoint = tools_.clock.now();
    }
    answer_requests();
    if (report_.is_open(member_)) deliver();
  }

 private:
  Result<void> make_trainer() {
    SAE_TRY(const Json json, parse_json(member_.spec()));
    SAE_TRY(spec_, sweeps::TrainLmSpec::from_json(json));
    for (const auto& directory : checkpoints_.to_restore()) {
      SAE_TRY(trainer_, LmTrainer::create(spec_, tools_.pool));
      const auto loaded = trainer_->load(directory / kStateFile);
      if (loaded) {
        log::info("train_lm.resumed task={} step={}", member_.task(), trainer_->step());
        checkpoints_.went_on_from(trainer_->step());
        return {};
      }
      log::warn("checkpoint.unusable path={} problem={}", directory.string(),
                loaded.error().message);
    }
    SAE_TRY(trainer_, LmTrainer::create(spec_, tools_.pool));
    return {};
  }

  Result<void> write_checkpoint(const char* reason) {
    if (trainer_->step() == checkpoints_.last_step()) return {};
    const auto written =
        checkpoints_.write(trainer_->step(), trainer_->tokens(),
                           [&](const std::filesystem::path& directory) -> Result<void> {
                             SAE_TRY_VOID(make_directories(directory));
                             return trainer_->save(directory / kStateFile);
                           });
    if (!written) return fail(written.error());
    report_.checkpointed(member_, *written, reason);
    return {};
  }

  void answer_requests() {
    report_.answer_requests([this](const protocol::Member& member, bool pause) {
      if (!pause || member.task() != member_.task()) return;
      if (const auto written = write_checkpoint("pause"); !written)
        log::warn("checkpoint.not_written task={} problem={}", member.task(),
                  written.error().message);
    });
  }

  void tell_progress(double loss) {
    if (!report_.progress_is_due()) return;
    protocol::MemberProgress progress;
    progress.set_task(member_.task());
    progress.set_fence(member_.fence());
    progress.set_step(trainer_->step());
    progress.set_steps(trainer_->steps());
    progress.set_tokens(trainer_->tokens());
    (*progress.mutable_metrics())["loss"] = loss;
    // Games differ in length: the total is what the rest will have if it is like what was seen.
    const double per_step =
        static_cast<double>(trainer_->tokens()) / static_cast<double>(trainer_->step());
    report_.progress("train_lm", trainer_->tokens(),
                     static_cast<std::uint64_t>(per_step * static_cast<double>(trainer_->steps())),
                     {std::move(progress)});
  }

  void deliver() {
    const LmQuality quality = trainer_->measure(kMeasuredGames);
    const Json training{{"cross_entropy", quality.cross_entropy},
                        {"optimum", quality.optimum},
                        {"illegal_rate", quality.illegal_rate},
                        {"recipe", spec_.to_json()},
                        {"games", quality.games},
                        {"targets", quality.targets}};
    protocol::TaskResult result;
    if (const auto kept = keep_files(training, result); !kept)
      return report_.give_up(member_, kept.error(), RunReport::During::kDisk);
    result.set_outcome(protocol::OUTCOME_DONE);
    result.set_summary(canonical_json(training));
    report_.finish(member_, std::move(result));
  }

  Result<void> keep_files(const Json& training, protocol::TaskResult& result) {
    SAE_TRY(const auto scratch, checkpoints_.scratch());
    const auto keep = [&]() -> Result<void> {
      SAE_TRY_VOID(trainer_->model().save(scratch));
      for (const char* name : {"config.json", "model.safetensors"}) {
        SAE_TRY(const std::string bytes, read_file(scratch / name));
        SAE_TRY(*result.add_artifacts(), tools_.artifacts.put(name, bytes));
      }
      SAE_TRY(*result.add_artifacts(),
              tools_.artifacts.put("training.json", pretty_json(training)));
      return {};
    };
    auto kept = keep();
    std::error_code ignored;
    std::filesystem::remove_all(scratch, ignored);
    return kept;
  }

  RunReport& report_;
  const RunTools& tools_;
  const protocol::Member& member_;
  CheckpointFolder checkpoints_;
  sweeps::TrainLmSpec spec_;
  std::optional<LmTrainer> trainer_;
};

}  // namespace

void train_lm(RunReport& report, const RunTools& tools) {
  for (const protocol::Member* member : report.open_members())
    if (report.is_open(*member)) TrainLmRun(report, tools, *member).run();
}

}  // namespace saesweep::worker
