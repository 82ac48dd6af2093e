#include "sweeps/evaluations.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "sweeps/nearest.h"
#include "sweeps/recipes.h"

namespace saesweep::sweeps {
namespace {

using namespace std::string_view_literals;

constexpr std::array kKinds{"core"sv, "board"sv};
constexpr std::uint64_t kUsualTokens = 40'000;
constexpr std::uint64_t kUsualGames = 2000;

// How many documents evaluations may draw on. Documents are held out by a hash of their content, so
// their number is binomial: eight standard deviations to either side is as good as certain.
struct HeldOut {
  std::uint64_t surely = 0, at_most = 0;
};
HeldOut held_out_documents(const StreamSource& source) {
  const double documents = static_cast<double>(source.documents);
  const double share = source.stream.holdout;
  if (share == 0) return {source.documents, source.documents};
  const double mean = documents * share;
  const double spread = 8 * std::sqrt(mean * (1 - share));
  return {static_cast<std::uint64_t>(std::max(0.0, mean - spread)),
          static_cast<std::uint64_t>(std::min(documents, std::ceil(mean + spread)))};
}

class EvaluationReader {
 public:
  EvaluationReader(const StreamSource& source, Problems& problems)
      : source_(source), problems_(problems), held_out_(held_out_documents(source)) {}

  std::vector<EvaluationSpec> read(const Section& top) {
    const YamlNode* node = top.find("evaluate");
    if (node == nullptr) {
      specs_.push_back(usual("core"));
      return std::move(specs_);
    }
    if (!node->is_sequence()) {
      top.add("evaluate", fmt::format("is {}; a list like [core: {{tokens: 40k}}] would be right",
                                      describe(*node)));
      return {};
    }
    if (node->items.empty())
      top.add("evaluate", "is an empty list; [core], or leaving the key out, would be right");
    for (std::size_t i = 0; i < node->items.size(); ++i)
      read_one(node->items[i], fmt::format("evaluate[{}]", i));
    return std::move(specs_);
  }

 private:
  EvaluationSpec usual(std::string_view kind) const {
    EvaluationSpec spec;
    spec.kind = kind;
    const bool known = source_.documents != 0;
    // A board game's documents are nearly all of full length; runs of rows are but for the last.
    const std::uint64_t tokens = held_out_.surely * source_.rows_per_document;
    if (kind == "core")
      spec.tokens = known && tokens > 0 ? std::min(kUsualTokens, tokens) : kUsualTokens;
    else
      spec.games = known && held_out_.surely >= 2 ? std::min(kUsualGames, held_out_.surely / 2 * 2)
                                                  : kUsualGames;
    return spec;
  }

  void read_one(const YamlNode& item, const std::string& path) {
    static const YamlNode kNoSettings = [] {
      YamlNode node;
      node.kind = YamlNode::Kind::kMap;
      return node;
    }();
    std::string kind;
    const YamlNode* settings = &kNoSettings;
    if (item.is_scalar()) {
      kind = item.text;
    } else if (item.is_map() && item.items.size() == 1) {
      kind = item.keys[0].text;
      if (!item.items[0].is_null()) settings = &item.items[0];
    } else {
      problems_.add(item, path,
                    fmt::format("is {}; one evaluation like core: {{tokens: 40k}} would "
                                "be right",
                                item.is_map() ? "a map of several" : describe(item)));
      return;
    }
    if (std::find(kKinds.begin(), kKinds.end(), kind) == kKinds.end()) {
      problems_.add(item, path,
                    fmt::format("'{}' is no evaluation of this version; {}", kind.substr(0, 60),
                                suggestion(kind, kKinds)));
      return;
    }
    for (const EvaluationSpec& other : specs_)
      if (other.kind == kind) {
        problems_.add(item, path, fmt::format("'{}' stands twice; once would be right", kind));
        return;
      }
    const std::string inner = join_path(path, kind);
    EvaluationSpec spec = usual(kind);
    if (kind == "core") {
      const Section section(*settings, inner, known_keys(KeySet::kCore), problems_);
      section.read_count("tokens", spec.tokens, 1, std::uint64_t{1} << 50);
      check(section, "tokens", spec.tokens, held_out_.at_most * source_.rows_per_document);
    } else {
      if (source_.has_data && !source_.is_board_game()) {
        problems_.add(item, path,
                      "needs a board game and its model, and data has 'source: activations'; core, "
                      "or 'source: othello', would be right");
        return;
      }
      const Section section(*settings, inner, known_keys(KeySet::kBoard), problems_);
      section.read_count("games", spec.games, 2, std::uint64_t{1} << 32);
      if (spec.games % 2 != 0)
        section.add("games", fmt::format("{} cannot be halved; half are for thresholds, half for "
                                         "scores, {} would be right",
                                         spec.games, spec.games + 1));
      check(section, "games", spec.games, held_out_.at_most);
    }
    specs_.push_back(std::move(spec));
  }

  void check(const Section& section, std::string_view key, std::uint64_t asked,
             std::uint64_t at_most) const {
    if (source_.documents == 0 || asked <= at_most || !section.node().is_map()) return;
    const bool all = source_.stream.holdout == 0;
    std::string message =
        all ? fmt::format(
                  "{} are more than data has; at most {}, or more documents, would be right", asked,
                  at_most)
            : fmt::format(
                  "{} are more than the held-out documents have: {} of data are held out, "
                  "some {:.0f}; at most {}, more documents or a larger activations.holdout "
                  "would be right",
                  asked, fmt::format("{:g} %", source_.stream.holdout * 100),
                  source_.stream.holdout * static_cast<double>(source_.documents), at_most);
    if (section.node().find(key) != nullptr)
      section.add(key, std::move(message));
    else
      problems_.add_at(0, 0, section.path_of(key), std::move(message));
  }

  const StreamSource& source_;
  Problems& problems_;
  HeldOut held_out_;
  std::vector<EvaluationSpec> specs_;
};

bool has_board_scores_only(std::string_view name) {
  return name == "neurons" || name == "linear_probe" || name == "always_on" || name == "placement";
}

}  // namespace

std::vector<EvaluationSpec> read_evaluations(const Section& top, const StreamSource& source,
                                             Problems& problems) {
  return EvaluationReader(source, problems).read(top);
}

std::vector<std::string> read_baseline_names(const Section& top, const StreamSource& source,
                                             Problems& problems) {
  const YamlNode* node = top.find("baselines");
  if (node == nullptr) return {};
  if (!node->is_sequence()) {
    top.add("baselines",
            fmt::format("is {}; a list like [identity, pca] would be right", describe(*node)));
    return {};
  }
  std::vector<std::string> names;
  for (std::size_t i = 0; i < node->items.size(); ++i) {
    const YamlNode& item = node->items[i];
    const std::string path = fmt::format("baselines[{}]", i);
    const auto name = scalar_text(item, path, "the name of a baseline would be right", problems);
    if (!name) continue;
    const auto known = baseline_names();
    if (std::find(known.begin(), known.end(), *name) == known.end())
      problems.add(item, path,
                   fmt::format("{} is no baseline; {}", describe(item), suggestion(*name, known)));
    else if (std::find(names.begin(), names.end(), *name) != names.end())
      problems.add(item, path, fmt::format("'{}' stands twice; once would be right", *name));
    else if (source.is_activations() && (has_board_scores_only(*name) || *name == "random_model"))
      problems.add(
          item, path,
          fmt::format("'{}' needs {}, and data has 'source: activations'; identity, pca or "
                      "random_sae would be right",
                      *name, *name == "random_model" ? "a model" : "a board game"));
    else
      names.push_back(*name);
  }
  return names;
}

namespace {

class BaselinePlanner {
 public:
  BaselinePlanner(const StreamSource& source, std::span<const PlannedTrial> trials,
                  const BaselineSettings& settings, const Section& top, Problems& problems)
      : source_(source), trials_(trials), settings_(settings), top_(top), problems_(problems) {
    std::vector<std::uint64_t> sparsities;
    // Of what is trained on single hooks, as baselines are, if there is any.
    const auto is_single = [](const PlannedTrial& trial) {
      return trial.spec.stream.joined.empty();
    };
    const bool any_single = std::any_of(trials.begin(), trials.end(), is_single);
    for (const PlannedTrial& trial : trials) {
      if (any_single && !is_single(trial)) continue;
      widths_.push_back(trial.spec.training.d_sae);
      if (trial.spec.training.k) sparsities.push_back(*trial.spec.training.k);
    }
    keep_distinct(widths_);
    keep_distinct(sparsities);
    if (!sparsities.empty()) k_ = sparsities[(sparsities.size() - 1) / 2];
  }

  void add(const std::string& name, const PlannedStream& stream) {
    BaselineSpec spec;
    spec.name = name;
    spec.hook = stream.spec.hook;
    spec.stream = stream.spec;
    if (name == "random_sae") {
      for (const std::uint64_t width : widths_) {
        spec.training = random_dictionary(width);
        push(spec);
      }
      return;
    }
    if (name == "neurons") {
      const auto block =
          source_.shape ? hook_block(*source_.shape, stream.spec.hook) : std::nullopt;
      if (!block) {
        top_.add("baselines", fmt::format("neurons: '{}' lies in no block, so there are no neurons "
                                          "of its block; leaving neurons out would be right",
                                          stream.spec.hook));
        return;
      }
      spec.stream.hook = fmt::format("blocks.{}.mlp.hook_post", *block);
    }
    if (name == "random_model" && !make_random_model(spec)) return;
    push(std::move(spec));
  }

  std::vector<PlannedBaseline> take() { return std::move(planned_); }

 private:
  static void keep_distinct(std::vector<std::uint64_t>& values) {
    std::sort(values.begin(), values.end());
    values.erase(std::unique(values.begin(), values.end()), values.end());
  }

  void push(BaselineSpec spec) {
    PlannedBaseline planned;
    planned.identity = spec.identity();
    planned.spec = std::move(spec);
    planned_.push_back(std::move(planned));
  }

  TrainingSpec random_dictionary(std::uint64_t width) const {
    TrainingSpec training;
    training.architecture = Architecture::kTopK;
    training.recipe = settings_.train->recipe;
    training.d_sae = width;
    training.k = std::min(k_, width);
    training.precision = settings_.train->precision;
    training.deterministic = settings_.train->deterministic;
    training.device = settings_.train->device;
    return training;
  }

  // A TopK dictionary of the smallest width, trained as `train` says; of a list there, the first
  // value, of a range its first point. `init` belongs to trials: another model is another basis.
  bool make_random_model(BaselineSpec& spec) {
    ModelSpec& model = *spec.stream.model;
    model.random_weights = true;
    const auto digest = model_digest(model.path, *source_.shape, true, model.seed);
    if (!digest) {
      top_.add("baselines", "random_model: " + digest.error().message);
      return false;
    }
    model.digest = *digest;
    if (!random_model_training_) {
      YamlNode node;
      node.kind = YamlNode::Kind::kMap;
      const YamlNode& at = *top_.node().find("baselines");
      node.line = at.line;
      node.column = at.column;
      node.origin = at.origin;
      const auto set = [&node](std::string key, std::string value) {
        node.keys.push_back(YamlKey{std::move(key), node.line, node.column});
        YamlNode scalar = yaml_scalar(std::move(value));
        scalar.line = node.line;
        scalar.column = node.column;
        node.items.push_back(std::move(scalar));
      };
      set("arch", "topk");
      set("seed", "0");
      set("d_sae", std::to_string(widths_.front()));
      set("k", std::to_string(std::min(k_, widths_.front())));
      SharedParameters shared = *settings_.shared;
      std::erase_if(shared.axes,
                    [](const ParameterAxis& axis) { return axis.id == ParameterId::kInit; });
      const bool has_tokens =
          std::any_of(shared.axes.begin(), shared.axes.end(),
                      [](const ParameterAxis& axis) { return axis.id == ParameterId::kTokens; });
      if (!has_tokens) set("tokens", std::to_string(trials_.front().spec.training.tokens));
      const auto family =
          read_family(node, "baselines.random_model", shared, settings_.search, problems_);
      if (!family) return false;
      random_model_training_ =
          resolve_training(*family, family->at(0), *settings_.train, InitFiles{}, problems_);
      if (!random_model_training_) return false;
      random_model_training_->eval_every = 0;  // nobody sees its curve
    }
    spec.training = random_model_training_;
    return true;
  }

  const StreamSource& source_;
  std::span<const PlannedTrial> trials_;
  const BaselineSettings& settings_;
  const Section& top_;
  Problems& problems_;
  std::vector<std::uint64_t> widths_;  // distinct, ascending
  std::uint64_t k_ = 32;               // lower median of the sweep's distinct k
  std::optional<TrainingSpec> random_model_training_;
  std::vector<PlannedBaseline> planned_;
};

}  // namespace

std::vector<PlannedBaseline> plan_baselines(std::span<const std::string> names,
                                            const StreamSource& source,
                                            std::span<const PlannedStream> streams,
                                            std::span<const PlannedTrial> trials,
                                            const BaselineSettings& settings, const Section& top,
                                            Problems& problems) {
  BaselinePlanner planner(source, trials, settings, top, problems);
  if (trials.empty() || names.empty()) return {};
  if (std::none_of(streams.begin(), streams.end(),
                   [](const PlannedStream& stream) { return stream.spec.joined.empty(); }))
    top.add("baselines",
            "are of single hooks, and every trial reads several at once; activations.hooks for "
            "them, or leaving them out, would be right");
  // What a baseline of several hooks at once would be, nobody has said.
  for (const PlannedStream& stream : streams)
    if (stream.spec.joined.empty())
      for (const std::string& name : names) planner.add(name, stream);
  return planner.take();
}

}  // namespace saesweep::sweeps
