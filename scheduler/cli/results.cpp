#include "scheduler/cli/results.h"

#include <map>
#include <set>

#include "core/files.h"
#include "scheduler/cli/people.h"
#include "scheduler/leaderboard/ranking.h"

namespace saesweep::cli {
namespace {

using scheduler::LeaderboardRow;
using scheduler::RowState;
using scheduler::SubjectResult;
using scheduler::SweepResult;

constexpr std::uint64_t kMostFileBytes = std::uint64_t{1} << 30;
constexpr std::size_t kIdDigits = 12;
constexpr const char* kDetailsFile = "scores-details.json";

// Shown whenever they are set.
constexpr const char* kMainParameters[] = {"d_sae", "k", "l1", "l0_target", "l0_coefficient"};
// Never a parameter: columns of their own, or not a choice of the sweep's author.
const std::set<std::string> kNotParameters = {"architecture", "seed", "recipe_hash", "init_path"};

std::string name_of(const SubjectResult& subject) {
  if (!subject.baseline) return "trial " + subject.identity.substr(0, kIdDigits);
  return "baseline " + subject.spec.value("name", std::string("?"));
}

tl::unexpected<Error> about(const SubjectResult& subject, const Error& error) {
  return fail(error.code, "{}: {}", name_of(subject), error.message);
}

Json member(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found == object.end() ? Json() : *found;
}

std::string word(const Json& object, const char* key) {
  const Json value = member(object, key);
  return value.is_string() ? value.get<std::string>() : std::string();
}

// The hook whose row it is; a baseline may read another stream (the neurons of the hook's block).
// What reads a and predicts b stands under "a->b", what reconstructs both under "a+b".
std::string hook_of(const SubjectResult& subject) {
  if (subject.baseline && subject.spec.contains("hook")) return word(subject.spec, "hook");
  const Json stream = member(subject.spec, "stream");
  if (!stream.is_object()) return {};
  std::string hook = word(stream, "hook");
  const Json training = member(subject.spec, "training");
  const bool predicts =
      training.is_object() && !word(training, "architecture").ends_with("crosscoder");
  if (const Json joined = member(stream, "joined"); joined.is_array())
    for (const Json& each : joined)
      if (each.is_string()) hook += (predicts ? "->" : "+") + each.get<std::string>();
  return hook;
}

// By architecture, the training keys whose values differ between the trials.
std::map<std::string, std::set<std::string>> varying_parameters(const SweepResult& sweep) {
  std::map<std::string, Json> first;
  std::map<std::string, std::set<std::string>> varying;
  for (const SubjectResult& subject : sweep.subjects) {
    const Json training = member(subject.spec, "training");
    if (subject.baseline || !training.is_object()) continue;
    const std::string arch = word(training, "architecture");
    const auto [seen, is_first] = first.emplace(arch, training);
    if (is_first) continue;
    for (const Json& one : {training, seen->second})
      for (const auto& [key, value] : one.items())
        if (!kNotParameters.contains(key) &&
            member(training, key.c_str()) != member(seen->second, key.c_str()))
          varying[arch].insert(key);
  }
  return varying;
}

// Where an evaluation's details are: in its summary, or in an artifact beside it.
Result<Json> read_details(const SubjectResult& subject) {
  Json found = Json::object();
  const auto file = subject.files.find(kDetailsFile);
  if (file != subject.files.end()) {
    SAE_TRY(const std::string text, read_file(file->second, kMostFileBytes));
    SAE_TRY(found, parse_json(text));
  }
  for (const Json& evaluation : subject.evaluations)
    for (const char* key : {"details", "histogram", "heldout"})
      if (const auto value = evaluation.find(key); value != evaluation.end()) found[key] = *value;
  return found;
}

Result<scheduler::Scores> union_of_scores(const SubjectResult& subject) {
  scheduler::Scores all;
  for (const Json& evaluation : subject.evaluations) {
    auto scores = scheduler::parse_scores(evaluation);
    if (!scores) return about(subject, scores.error());
    all.merge(*scores);
  }
  return all;
}

Result<scheduler::DensityHistogram> parse_histogram(const Json& json) {
  scheduler::DensityHistogram density;
  if (!json.is_object()) return density;
  try {
    density.log10_edges = json.value("log10_edges", std::vector<double>());
    density.counts = json.value("counts", std::vector<std::uint64_t>());
    density.never = json.value("never", std::uint64_t{0});
  } catch (const Json::exception& error) {
    return fail(ErrorCode::kCorrupted, "histogram: {}", error.what());
  }
  if (!density.counts.empty() && density.log10_edges.size() != density.counts.size() + 1)
    return fail(ErrorCode::kCorrupted, "histogram: {} edges of {} bins", density.log10_edges.size(),
                density.counts.size());
  return density;
}

// What the report shows when a row is opened, besides the row itself.
Json details_of(const SubjectResult& subject, const Json& training) {
  Json details = Json::object();
  if (training.is_object())
    for (const char* key : {"recipe", "batch", "lr", "precision", "device"})
      if (training.contains(key)) details[key] = training[key];
  for (const auto& [key, value] : subject.train_summary.items())
    if (value.is_primitive()) details[key] = value;
  return details;
}

Result<LeaderboardRow> to_row(const SubjectResult& subject,
                              const std::map<std::string, std::set<std::string>>& varying,
                              const BoardOptions& options) {
  LeaderboardRow row;
  const Json training = member(subject.spec, "training");
  const Json stream = member(subject.spec, "stream");
  const Json model = stream.is_object() ? member(stream, "model") : Json();
  row.hook = hook_of(subject);
  if (model.is_object())
    row.model = fmt::format("{}@{}", word(model, "name"), word(model, "digest").substr(0, 12));
  if (subject.baseline) {
    row.baseline = word(subject.spec, "name");
  } else {
    row.number = subject.number;
    row.trial = subject.identity.substr(0, kIdDigits);
  }
  if (training.is_object()) {
    row.arch = word(training, "architecture");
    if (const Json seed = member(training, "seed"); seed.is_number_unsigned())
      row.seed = seed.get<std::uint64_t>();
    for (const char* key : kMainParameters)
      if (training.contains(key)) row.params[key] = training[key];
    if (const auto more = varying.find(row.arch); more != varying.end() && !subject.baseline)
      for (const std::string& key : more->second)
        if (training.contains(key)) row.params[key] = training[key];
  }
  const auto state = scheduler::parse_row_state(subject.state);
  if (!state)
    return fail(ErrorCode::kCorrupted, "{}: unknown state '{}'", name_of(subject), subject.state);
  row.state = *state;
  row.reason = subject.reason;
  row.tokens = subject.tokens;
  SAE_TRY(row.scores, union_of_scores(subject));
  if (!options.curves) return row;

  row.details = details_of(subject, training);
  auto details = read_details(subject);
  if (!details) return about(subject, details.error());
  auto density = parse_histogram(member(*details, "histogram"));
  if (!density) return about(subject, density.error());
  row.density = std::move(*density);
  if (const auto file = subject.files.find("curve.csv"); file != subject.files.end()) {
    auto text = read_file(file->second, kMostFileBytes);
    if (!text) return about(subject, text.error());
    auto curve = scheduler::parse_curve_csv(*text);
    if (!curve) return about(subject, curve.error());
    row.curve = std::move(*curve);
  }
  return row;
}

std::string baseline_folder(const SubjectResult& subject) {
  const std::string name = word(subject.spec, "name");
  const Json training = member(subject.spec, "training");
  if (name == "random_sae" && training.is_object())
    return fmt::format("{}-{}", name, training.value("d_sae", std::uint64_t{0}));
  return name;
}

}  // namespace

Result<scheduler::Leaderboard> to_leaderboard(const SweepResult& sweep,
                                              const BoardOptions& options) {
  scheduler::Leaderboard board{.sweep = sweep.name, .commit = options.commit, .rows = {}};
  const auto varying = varying_parameters(sweep);
  for (const SubjectResult& subject : sweep.subjects) {
    SAE_TRY(LeaderboardRow row, to_row(subject, varying, options));
    board.rows.push_back(std::move(row));
  }
  scheduler::rank(board.rows);
  return board;
}

Result<std::string> scores_json(const SubjectResult& subject) {
  if (subject.evaluations.empty()) return std::string();
  SAE_TRY(const scheduler::Scores scores, union_of_scores(subject));
  auto details = read_details(subject);
  if (!details) return about(subject, details.error());
  // Numbers by the thousand are for programs: one line each. The scores are for people too.
  std::string text = "{\n";
  for (const char* key : {"details", "heldout", "histogram"})
    if (details->contains(key))
      text += fmt::format(" \"{}\": {},\n", key, canonical_json((*details)[key]));
  text += " \"scores\": {";
  bool first = true;
  const Json by_name = scheduler::scores_to_json(scores);
  for (const auto& [name, score] : by_name.items()) {
    text += fmt::format("{}\n  \"{}\": {}", first ? "" : ",", name, canonical_json(score));
    first = false;
  }
  return text + (first ? "}\n}\n" : "\n }\n}\n");
}

Result<scheduler::OutContents> to_out_contents(const SweepResult& sweep, const RunFacts& facts,
                                               const std::string& commit) {
  scheduler::OutContents contents;
  SAE_TRY(contents.board, to_leaderboard(sweep, {.commit = commit}));
  contents.sweep_yaml = sweep.effective_yaml;
  contents.run = {{"sweep", sweep.name},
                  {"host", facts.host},
                  {"started", rfc3339(sweep.started)},
                  {"finished", sweep.ended ? Json(rfc3339(*sweep.ended)) : Json()},
                  {"state", facts.state.string()},
                  {"out", facts.out.string()},
                  {"versions", facts.versions}};
  if (sweep.ended) contents.run["seconds"] = std::max(0.0, *sweep.ended - sweep.started);

  for (const SubjectResult& subject : sweep.subjects) {
    scheduler::OutFolder folder;
    if (!subject.baseline) {
      folder.name = subject.identity.substr(0, kIdDigits);
      for (const char* name : {"sae.safetensors", "config.json", "curve.csv"})
        if (const auto file = subject.files.find(name); file != subject.files.end())
          folder.files.push_back({name, file->second, {}});
    } else {
      folder.name = baseline_folder(subject);
      folder.hook = hook_of(subject);
    }
    SAE_TRY(std::string scores, scores_json(subject));
    if (!scores.empty()) folder.files.push_back({"scores.json", {}, std::move(scores)});
    if (folder.files.empty()) continue;
    (subject.baseline ? contents.baselines : contents.trials).push_back(std::move(folder));
  }
  for (const auto& [name, file] : sweep.model_files) contents.model.push_back({name, file, {}});
  return contents;
}

}  // namespace saesweep::cli
