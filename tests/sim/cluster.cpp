#include "tests/sim/cluster.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/digest.h"

namespace saesweep::sim {
namespace {

using namespace std::chrono_literals;
using namespace scheduler;

constexpr Duration kPatience = 12h;  // for what is left to finish once nothing fails any more

class Cluster {
 public:
  explicit Cluster(std::uint64_t seed)
      : seed_(seed),
        rng_(seed, "sim.cluster"),
        faults_(Faults::draw(rng_)),
        network_(timeline_, faults_, rng_),
        scheduler_(timeline_, network_, faults_, rng_, monitor_) {
    network_.to_scheduler = [this](const std::string& session, const auto& frame) {
      scheduler_.hear_frame(session, frame);
    };
    network_.to_worker = [this](const std::string& session, const auto& frame) {
      for (auto& worker : workers_)
        if (worker->is_alive() && worker->session() == session) worker->hear_frame(frame);
    };
    character_ = [this](const std::string& task) { return character_of(task); };
    // Mostly a few, sometimes many.
    const std::uint32_t count = rng_.below(20) == 0 ? 10 + rng_.below(41) : 1 + rng_.below(6);
    for (std::uint32_t i = 0; i < count; ++i)
      workers_.push_back(std::make_unique<WorkerNode>(
          WorkerNode::Machine{.name = fmt::format("w{}", i),
                              .slots = 1 + rng_.below(3),
                              .memory_bytes = rng_.below(3) == 0 ? 0 : 1000 * (1 + rng_.below(4)),
                              .speed = 0.5 + rng_.uniform()},
          timeline_, network_, faults_, rng_, monitor_, scheduler_.files, character_));
  }

  Outcome run() {
    const TimePoint begin = timeline_.now();
    scheduler_.start();
    for (auto& worker : workers_)
      timeline_.after(std::chrono::milliseconds(rng_.below(20'000)),
                      [&worker] { worker->start(); });
    const std::uint32_t sweeps = 1 + rng_.below(4);
    for (std::uint32_t i = 0; i < sweeps; ++i)
      timeline_.after(std::chrono::seconds(rng_.below(300)), [this, i] { submit(i); });
    begin_faults();
    const Duration bad_times = 300s + std::chrono::seconds(rng_.below(600));
    while (timeline_.now() - begin < bad_times && is_well()) timeline_.step();
    end_faults();
    const TimePoint end = timeline_.now();
    while (is_well() && !is_finished_for_good()) {
      if (timeline_.now() - end > kPatience) {
        monitor_.violated("it never ends: " + what_is_left());
        break;
      }
      timeline_.step();
    }
    if (is_well()) check_the_end();
    return {.violation = monitor_.violation(),
            .hash = monitor_.hash(),
            .events = monitor_.events(),
            .frames = network_.delivered(),
            .steps = timeline_.steps(),
            .restarts = scheduler_.state().meta().epoch(),
            .workers = workers_.size(),
            .tasks = scheduler_.state().tasks().size(),
            .hours = std::chrono::duration<double>(timeline_.now() - begin).count() / 3600};
  }

 private:
  bool is_well() const { return monitor_.violation().empty(); }

  Character character_of(const std::string& task) const {
    Rng rng(seed_, "sim.character", xxh3_64(std::as_bytes(std::span(task))));
    const bool is_short = task.starts_with("eval:");
    Character character;
    character.seconds = is_short ? 1 + 10 * rng.uniform() : 10 + 90 * rng.uniform();
    character.event_at = rng.uniform();
    const std::uint32_t lot = rng.below(100);
    if (lot < 4)
      character.nature = Nature::kDiverges;
    else if (lot < 7)
      character.nature = Nature::kFails;
    else if (lot < 10)
      character.nature = Nature::kPoison;
    else if (lot < 14)
      character.nature = Nature::kHungry;
    else if (lot < 16)
      character.nature = Nature::kStarved;
    else if (lot < 20)
      character.nature = Nature::kFlaky;
    else if (lot < 26)
      character.nature = Nature::kDiesOnce;
    return character;
  }

  // ---- people

  // Sweeps share trials: trial i of sweep s is trial i + 4 s of a long row, cut to its length.
  Submission submission(std::uint32_t number) const {
    Rng rng(seed_, "sim.sweep", number);
    Submission made;
    made.sweep.set_name(fmt::format("s{}", number));
    made.sweep.set_memory_bytes(2000);
    made.sweep.set_checkpoint_every_s(15);
    const std::uint32_t trials = 2 + rng.below(14);
    for (std::uint32_t i = 0; i < trials; ++i) {
      const std::string id = fmt::format("{:064x}", i + 4 * number);
      auto& subject = *made.sweep.add_subjects();
      subject.set_number(i);
      subject.set_identity(id);
      subject.set_spec("{}");
      subject.set_train_task("train:" + id);
      journal::TaskSpec train;
      train.set_id("train:" + id);
      train.set_kind(protocol::TASK_KIND_TRAIN);
      train.set_spec("{}");
      train.set_group(fmt::format("g{}", (i + 4 * number) % 3));
      train.set_memory_bytes(200 + 100 * ((i + 4 * number) % 7));
      train.set_directory("trials/" + id);
      train.set_tokens(1000);
      made.tasks.push_back(train);
      const std::string evaluation = fmt::format("eval:{}", id);
      subject.add_evaluate_tasks(evaluation);
      journal::TaskSpec evaluate;
      evaluate.set_id(evaluation);
      evaluate.set_kind(protocol::TASK_KIND_EVALUATE);
      evaluate.set_spec("{}");
      evaluate.set_group("e");
      evaluate.set_memory_bytes(100);
      evaluate.set_needs("train:" + id);
      made.tasks.push_back(evaluate);
    }
    if (rng.below(2) == 0) compete(made, rng);
    return made;
  }
  // Early stopping of some kind. Rungs may come after the end of a trial, which nobody knows.
  static void compete(Submission& made, Rng& rng) {
    auto& settings = *made.sweep.mutable_early_stopping();
    const std::uint32_t lot = rng.below(8);
    settings.set_rule(lot < 5    ? "asha"
                      : lot == 5 ? "hyperband"
                      : lot == 6 ? "percentile"
                                 : "patience");
    settings.set_promotes(lot < 4 || lot == 5);
    settings.set_eta(2 + rng.below(2));
    settings.set_min_reports(settings.eta());
    std::uint64_t tokens = 4 + rng.below(10);
    for (int rung = 0; rung < 3; ++rung, tokens *= settings.eta()) settings.add_rungs(tokens);
    settings.set_brackets(lot == 5 ? 3 : 1);
    settings.set_percentile(50);
    settings.set_min_trials(2);
    settings.set_patience(1);
    const int metrics = lot < 6 && rng.below(3) == 0 ? 2 : 1;
    for (int i = 0; i < metrics; ++i) {
      auto& metric = *settings.add_metrics();
      metric.set_name(fmt::format("core.m{}", i));
      metric.set_maximize(i == 0);
      metric.set_evaluation(R"({"kind":"core"})");
    }
    for (auto& subject : *made.sweep.mutable_subjects()) {
      subject.set_batch(1 + rng.below(3));
      subject.set_bracket(rng.below(settings.brackets()));
    }
  }
  // Until somebody says that it was durable.
  void submit(std::uint32_t number) {
    if (acknowledged_.contains(number)) return;
    wanted_.insert(number);
    scheduler_.command(submission(number), [this, number](const Answer*) {
      acknowledged_.insert(number);
      monitor_sweep(number);
    });
    timeline_.after(10s, [this, number] { submit(number); });
  }
  void monitor_sweep(std::uint32_t number) {
    if (!scheduler_.disk().load().sweeps().contains(fmt::format("s{}", number)))
      monitor_.violated("a sweep was acknowledged and is not on disk");
  }

  void command() {
    const auto& state = scheduler_.state();
    if (!scheduler_.is_alive() || state.sweeps().empty()) return;
    auto it = state.sweeps().begin();
    std::advance(it, rng_.below(static_cast<std::uint32_t>(state.sweeps().size())));
    const journal::Sweep& sweep = it->second;
    SweepCommand command{.sweep = sweep.name(), .verb = "", .trials = {}};
    if (rng_.below(2) == 0)
      for (std::uint32_t i = 0; i <= rng_.below(3); ++i)
        command.trials.push_back(sweep
                                     .subjects(static_cast<int>(rng_.below(
                                         static_cast<std::uint32_t>(sweep.subjects_size()))))
                                     .identity());
    const std::string worker =
        fmt::format("w{}", rng_.below(static_cast<std::uint32_t>(workers_.size())));
    switch (rng_.below(9)) {
      case 0:
        command.verb = "cancel";
        break;
      case 1:
      case 2:
        command.verb = "pause";
        break;
      case 3:
      case 4:
        command.verb = "resume";
        break;
      case 5:
        command.verb = "retry";
        break;
      case 6:
        return scheduler_.command(
            SweepPriority{sweep.name(), static_cast<int>(rng_.below(3)) - 1, 0.5 + rng_.uniform()});
      case 7:
        return scheduler_.command(WorkerCommand{worker, "drain"});
      default:
        return scheduler_.command(WorkerCommand{worker, "undrain"});
    }
    scheduler_.command(std::move(command));
  }

  // ---- what fails

  void again_and_again(Duration mean, std::function<void()> what) {
    if (mean == Duration::zero()) return;
    const auto wait = std::chrono::duration_cast<Duration>(mean * -std::log(1.0 - rng_.uniform()));
    timeline_.after(wait, [this, mean, what] {
      if (faults_.is_over) return;
      what();
      again_and_again(mean, what);
    });
  }
  WorkerNode& some_worker() {
    return *workers_[rng_.below(static_cast<std::uint32_t>(workers_.size()))];
  }
  Duration up_to(Duration most) {
    return std::chrono::duration_cast<Duration>(most * rng_.uniform() * rng_.uniform());
  }
  void begin_faults() {
    again_and_again(faults_.reconnect, [this] { network_.reconnect(some_worker().session()); });
    again_and_again(faults_.one_way_cut, [this] {
      const bool up = rng_.below(2) == 0;
      network_.cut(some_worker().session(), up, !up, up_to(200s));
    });
    again_and_again(faults_.both_ways_cut,
                    [this] { network_.cut(some_worker().session(), true, true, up_to(300s)); });
    again_and_again(faults_.scheduler_crash, [this] {
      if (!scheduler_.is_alive()) return;
      scheduler_.crash();
      timeline_.after(up_to(200s), [this] {
        if (!scheduler_.is_alive()) scheduler_.start();
      });
    });
    again_and_again(faults_.scheduler_pause, [this] { scheduler_.pause(up_to(300s)); });
    again_and_again(faults_.worker_crash, [this] { crash(some_worker()); });
    again_and_again(faults_.worker_pause, [this] { some_worker().pause(up_to(600s)); });
    again_and_again(faults_.worker_leaves, [this] { some_worker().leave(); });
    again_and_again(faults_.executor_crash, [this] { some_worker().crash_executor(); });
    again_and_again(faults_.executor_hang, [this] { some_worker().hang_executor(); });
    again_and_again(faults_.disk_full, [this] {
      scheduler_.disk().full = true;
      timeline_.after(up_to(120s), [this] { scheduler_.disk().full = false; });
    });
    again_and_again(faults_.command, [this] { command(); });
    again_and_again(faults_.wall_jump, [this] {
      const Duration by = up_to(5h);
      scheduler_.jump_wall_clock(rng_.below(2) == 0 ? by : -by);
    });
  }
  void crash(WorkerNode& worker) {
    if (!worker.is_alive()) return;
    worker.crash();
    timeline_.after(up_to(120s), [&worker] {
      if (!worker.is_alive()) worker.start();
    });
  }
  void end_faults() {
    faults_.is_over = true;
    scheduler_.disk().full = false;
    scheduler_.pause(0s);
    if (!scheduler_.is_alive()) scheduler_.start();
    for (auto& worker : workers_) {
      worker->pause(0s);
      if (!worker->is_alive()) worker->start();
    }
    make_everything_go_on();
  }
  // What people held back goes on, until that is durable.
  void make_everything_go_on() {
    const auto& state = scheduler_.state();
    for (const auto& [name, sweep] : state.sweeps()) {
      const bool is_held =
          sweep.paused() ||
          std::ranges::any_of(sweep.subjects(), [](const auto& s) { return s.paused(); });
      if (is_held && !sweep.cancelled()) scheduler_.command(SweepCommand{name, "resume", {}});
    }
    for (const auto& [session, worker] : state.workers())
      if (state.is_draining(session)) scheduler_.command(WorkerCommand{worker.name, "undrain"});
    timeline_.after(10s, [this] { make_everything_go_on(); });
  }

  // ---- the end

  bool is_finished_for_good() const {
    const auto& state = scheduler_.state();
    if (acknowledged_ != wanted_ || wanted_.empty()) return false;
    // What waits after a death and is wanted no more, stays: it may be wanted again.
    for (const auto& [id, run] : state.runs())
      if (!run.worker().empty() ||
          std::ranges::any_of(run.tasks(), [&](const auto& task) { return state.is_wanted(task); }))
        return false;
    for (const auto& [name, sweep] : state.sweeps())
      if (sweep.ended() == 0) return false;
    return std::ranges::all_of(workers_,
                               [](const auto& worker) { return worker->running().empty(); });
  }
  std::string what_is_left() const {
    const auto& state = scheduler_.state();
    std::string text;
    for (const auto& [id, entry] : state.tasks())
      if (!is_finished(entry.task) && text.size() < 3000)
        text += explain(state, id, timeline_.now()).dump() + "\n";
    for (const auto& [name, sweep] : state.sweeps())
      text += fmt::format("sweep {} ended {} cancelled {} paused {} open {}\n", name, sweep.ended(),
                          sweep.cancelled(), sweep.paused(), state.desk(name).open);
    for (const auto& worker : workers_)
      for (const auto& [task, fence] : worker->running())
        text += fmt::format("a worker runs {} with fence {}\n", task, fence);
    return text;
  }
  void check_the_end() {
    const auto& state = scheduler_.state();
    for (const std::uint32_t number : wanted_)
      for (const journal::TaskSpec& spec : submission(number).tasks) {
        const journal::Task* task = state.find_task(spec.id());
        if (task == nullptr) return monitor_.violated(spec.id() + " is missing");
        if (!is_finished(*task)) {
          if (state.is_wanted(spec.id())) return monitor_.violated(spec.id() + " is not finished");
          continue;
        }
        check_result(*task);
      }
    if (auto broken = scheduler_.disk().broken(); !broken.empty()) monitor_.violated(broken);
    if (auto broken = state.broken_invariant(); !broken.empty()) monitor_.violated(broken);
  }
  // By nature: what can succeed has, what cannot says so.
  void check_result(const journal::Task& task) {
    const Nature nature = character_of(task.spec().id()).nature;
    const std::string id = task.spec().id();
    if (task.has_succeeded()) {
      const bool can = nature != Nature::kDiverges && nature != Nature::kFails &&
                       nature != Nature::kPoison && nature != Nature::kStarved;
      if (!can) monitor_.violated(id + " succeeded, which it cannot");
      if (task.result().summary() != "{\"of\":\"" + id + "\"}")
        monitor_.violated(id + " has the result of another");
    }
    if (task.has_diverged() && nature != Nature::kDiverges) monitor_.violated(id + " diverged");
    if (task.has_stopped() && task.stopped().reason().empty())
      monitor_.violated(id + " was stopped for no reason");
    if (task.has_failed() && task.failed().reason().empty())
      monitor_.violated(id + " failed for no reason");
    if (task.attempts_size() > 32) monitor_.violated(id + " has a long history");
    for (const auto& attempt : task.attempts())
      if (attempt.ending() == journal::ENDING_UNSPECIFIED)
        monitor_.violated(fmt::format("attempt {} of {} goes on", attempt.fence(), id));
  }

  const std::uint64_t seed_;
  Rng rng_;
  Timeline timeline_;
  Faults faults_;
  Monitor monitor_;
  Network network_;
  SchedulerNode scheduler_;
  CharacterOf character_;
  std::vector<std::unique_ptr<WorkerNode>> workers_;
  std::set<std::uint32_t> wanted_, acknowledged_;
};

}  // namespace

Outcome simulate(std::uint64_t seed) { return Cluster(seed).run(); }

}  // namespace saesweep::sim
