#include "sweeps/train_lm_section.h"

#include <fmt/format.h>

#include <array>

#include "sweeps/stream_source.h"

namespace saesweep::sweeps {

std::optional<TrainLmSpec> read_train_lm(const Section& top, const std::filesystem::path& directory,
                                         Problems& problems) {
  using namespace std::string_view_literals;
  static constexpr std::array kActivations{"gelu"sv, "gelu_new"sv, "relu"sv};
  static constexpr std::array kOptimizers{"adamw"sv, "muon"sv};
  static constexpr std::array kPrecisions{"fp32"sv, "bf16"sv};
  constexpr std::array kTargets{"sampled"sv, "exact"sv};
  static constexpr std::array kHoldout{"holdout"sv};
  const std::size_t problems_before = problems.size();
  for (const std::string_view other : {"trials"sv, "model"sv, "train"sv, "search"sv, "evaluate"sv,
                                       "baselines"sv, "early_stopping"sv})
    if (top.node().find(other) != nullptr)
      top.add(other,
              "stands beside train_lm, which trains a model instead of dictionaries; one of "
              "them would be right");
  TrainLmSpec spec;
  StreamSource source;
  spec.data = read_data(top, directory, source, problems);
  if (source.is_activations())
    top.add("data",
            "has 'source: activations', which has no tokens to train a model on; 'source: "
            "othello' would be right");
  if (const YamlNode* activations = top.find("activations")) {
    const Section section(*activations, "activations", kHoldout, problems);
    if (activations->is_map()) spec.holdout = read_holdout(section, problems);
  }

  const Section section(*top.find("train_lm"), "train_lm", known_keys(KeySet::kTrainLm), problems);
  if (!section.node().is_map()) return std::nullopt;
  section.read_int("layers", spec.layers, 1, 1024);
  section.read_int("d_model", spec.d_model, 1, 1 << 16);
  section.read_int("heads", spec.heads, 1, 1 << 12);
  spec.d_mlp = 4 * spec.d_model;
  section.read_int("d_mlp", spec.d_mlp, 1, 1 << 18);
  // Inputs of a full game: all moves but the last.
  spec.context = spec.data.board * spec.data.board - 5;
  section.read_int("context", spec.context, 1, 1 << 14);
  if (const auto word = section.read_word("activation", kActivations))
    spec.activation = kActivations[*word];
  section.read_bool("tied", spec.tied);
  section.read_bool("bias", spec.bias);
  spec.batch = 64;
  spec.lr = 1e-3;
  const bool has_games =
      section.require("games", "a number of games to train on, like 1M, would be right") != nullptr;
  section.read_count("games", spec.games, 1, std::uint64_t{1} << 40);
  section.read_count("batch", spec.batch, 1, 1 << 20);
  section.read_real("lr", spec.lr, 0, /*low_open=*/true);
  section.read_real("final_lr_fraction", spec.final_lr_fraction, 0);
  section.read_real("weight_decay", spec.weight_decay, 0);
  section.read_real("grad_clip", spec.grad_clip, 0, /*low_open=*/true);
  if (const auto word = section.read_word("optimizer", kOptimizers))
    spec.optimizer = kOptimizers[*word];
  if (const auto word = section.read_word("targets", kTargets)) spec.targets = kTargets[*word];
  if (const auto word = section.read_word("precision", kPrecisions))
    spec.precision = static_cast<Precision>(*word);
  section.read_real("init_scale", spec.init_scale, 0, /*low_open=*/true);
  section.read_count("seed", spec.seed);
  if (spec.d_model % spec.heads != 0)
    section.add(section.node().find("heads") != nullptr ? "heads" : "d_model",
                fmt::format("{} heads do not divide d_model {}; a divisor of it would be right",
                            spec.heads, spec.d_model));
  if (has_games && spec.games > 0 && spec.games < spec.batch)
    section.add("games", fmt::format("{} games are less than one batch of {}; at least {} would be "
                                     "right",
                                     spec.games, spec.batch, spec.batch));
  StepCount warmup{.is_share = true, .percent = 5};
  if (const YamlNode* node = section.find("warmup_steps"))
    if (const auto text = scalar_text(*node, section.path_of("warmup_steps"),
                                      "a number of steps or a share would be right", problems)) {
      const auto steps = parse_steps(*text);
      if (steps)
        warmup = *steps;
      else
        section.add("warmup_steps", steps.error().message);
    }
  spec.warmup_steps = warmup.of(spec.steps());
  if (spec.steps() > 0 && spec.warmup_steps >= spec.steps())
    section.add("warmup_steps",
                fmt::format("{} steps do not end before the run, which has {} (games / batch); at "
                            "most {}, e.g. 5%, would be right",
                            spec.warmup_steps, spec.steps(), spec.steps() - 1));
  if (problems.size() != problems_before) return std::nullopt;
  return spec;
}

}  // namespace saesweep::sweeps
