// A run of evaluate tasks, one after another: they share the loaded model and documents.
#include <optional>
#include <string>
#include <utility>

#include "core/files.h"
#include "core/json.h"
#include "core/log.h"
#include "worker/evaluation/evaluate.h"
#include "worker/executor/open_stream.h"
#include "worker/executor/run_tools.h"
#include "worker/sae/sae.h"

namespace saesweep::worker {
namespace {

// What an EvaluationCache holds at most, about.
constexpr std::uint64_t kSharedBytes = std::uint64_t{512} << 20;

// What an evaluate task's spec says.
struct Question {
  sweeps::EvaluationSpec evaluation;
  std::optional<sweeps::TrialSpec> trial;  // either of the two
  std::optional<sweeps::BaselineSpec> baseline;
  Json trained = Json::object();  // the summary of the train task

  const sweeps::StreamSpec& stream() const { return trial ? trial->stream : baseline->stream; }
};

Result<Question> read_question(const std::string& spec) {
  SAE_TRY(const Json json, parse_json(spec));
  if (!json.is_object() || !json.contains("evaluation") || !json.contains("spec") ||
      !json.contains("subject") || !json["subject"].is_string())
    return fail(ErrorCode::kInvalidArgument, "an evaluate task needs evaluation, subject, spec");
  Question question;
  SAE_TRY(question.evaluation, sweeps::EvaluationSpec::from_json(json["evaluation"]));
  if (json["subject"] == "trial") {
    SAE_TRY(question.trial, sweeps::TrialSpec::from_json(json["spec"]));
  } else {
    SAE_TRY(question.baseline, sweeps::BaselineSpec::from_json(json["spec"]));
  }
  if (const auto trained = json.find("trained"); trained != json.end() && trained->is_object())
    question.trained = *trained;
  return question;
}

Result<std::optional<Sae>> load_trained(const protocol::Member& member, const RunTools& tools) {
  std::filesystem::path tensors, config;
  for (const protocol::Artifact& input : member.inputs()) {
    if (input.name() == "sae.safetensors") {
      SAE_TRY(tensors, tools.artifacts.find(input));
    } else if (input.name() == "config.json") {
      SAE_TRY(config, tools.artifacts.find(input));
    }
  }
  if (tensors.empty() || config.empty()) return std::optional<Sae>();
  SAE_TRY(const std::string text, read_file(config));
  SAE_TRY(const Json json, parse_json(text));
  SAE_TRY(Sae sae, load_sae(tensors, json));
  return std::optional<Sae>(std::move(sae));
}

class EvaluateRun {
 public:
  EvaluateRun(RunReport& report, const RunTools& tools) : report_(report), tools_(tools) {}

  void run() {
    const auto total = static_cast<std::uint64_t>(report_.open_members().size());
    std::uint64_t number = 0;
    for (const protocol::Member* member : report_.open_members()) {
      log::debug("evaluate.begin task={} number={} of={}", member->task(), ++number, total);
      answer(*member);
    }
    answer_requests();
  }

 private:
  void answer_requests() {
    // Nothing to keep: an evaluation begins anew.
    report_.answer_requests([](const protocol::Member&, bool) {});
  }

  void answer(const protocol::Member& member) {
    for (;;) {
      answer_requests();
      if (!report_.is_open(member)) return;
      const auto result = scores_of(member);
      if (result) return deliver(member, *result);
      // Stopped because of a request: perhaps of another member, then once more.
      if (result.error().code == ErrorCode::kUnavailable && report_.is_asked()) continue;
      return report_.give_up(member, result.error());
    }
  }

  Result<Json> scores_of(const protocol::Member& member) {
    SAE_TRY(const Question question, read_question(member.spec()));
    SAE_TRY(const std::optional<Sae> sae, load_trained(member, tools_));
    if (question.trial && !sae)
      return fail(ErrorCode::kInvalidArgument, "no trained SAE came with the task");
    SAE_TRY(const StreamSources sources, open_sources(question.stream(), tools_));
    tools_.warm.make_room(report_.run().memory_bytes(),
                          kSharedBytes + (sae ? 2 * sae->w_enc.nbytes() : 0));

    EvaluationInputs inputs;
    inputs.stream = question.stream();
    inputs.model = sources.model;
    inputs.tokens = sources.tokens;
    inputs.activations = sources.activations;
    inputs.pool = &tools_.pool;
    inputs.cache = &cache_;
    inputs.stop = [this] { return report_.is_asked(); };
    inputs.progress = [&](std::uint64_t done, std::uint64_t total) {
      if (!report_.progress_is_due()) return;
      protocol::MemberProgress progress;
      progress.set_task(member.task());
      progress.set_fence(member.fence());
      progress.set_step(done);
      progress.set_steps(total);
      progress.set_tokens(done);
      report_.progress("evaluate", done, total, {std::move(progress)});
    };
    inputs.open_stream = [&]() -> Result<std::unique_ptr<RowStream>> {
      StreamEvents events;
      events.harvested = [this](std::uint64_t rows) { report_.count_harvested(rows); };
      events.loading = [this](std::uint64_t done, std::uint64_t total) {
        report_.progress("harvest", done, total);
      };
      events.stop = inputs.stop;
      SAE_TRY(auto stream,
              open_stream(inputs.stream, sources, report_.run(), tools_, std::move(events)));
      return std::unique_ptr<RowStream>(std::move(stream));
    };
    if (question.trial) return evaluate_sae(question.evaluation, *sae, question.trained, inputs);
    return evaluate_baseline(question.evaluation, *question.baseline, sae ? &*sae : nullptr,
                             inputs);
  }

  // What is long goes into an artifact, so that the journal stays small.
  void deliver(const protocol::Member& member, Json scores) {
    protocol::TaskResult result;
    Json details = Json::object();
    for (const char* key : {"details", "histogram"}) {
      if (const auto found = scores.find(key); found != scores.end()) {
        details[key] = std::move(*found);
        scores.erase(key);
      }
    }
    if (!details.empty()) {
      if (scores.contains("heldout")) details["heldout"] = scores["heldout"];
      auto kept = tools_.artifacts.put("scores-details.json", canonical_json(details));
      if (!kept) return report_.give_up(member, kept.error(), RunReport::During::kDisk);
      *result.add_artifacts() = std::move(*kept);
    }
    result.set_outcome(protocol::OUTCOME_DONE);
    result.set_summary(canonical_json(scores));
    report_.finish(member, std::move(result));
  }

  RunReport& report_;
  const RunTools& tools_;
  EvaluationCache cache_;  // what the members of a run share of a stream
};

}  // namespace

void evaluate(RunReport& report, const RunTools& tools) { EvaluateRun(report, tools).run(); }

}  // namespace saesweep::worker
