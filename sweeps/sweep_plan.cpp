#include "sweeps/sweep_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <utility>

#include "core/files.h"
#include "sweeps/estimates.h"
#include "sweeps/evaluations.h"
#include "sweeps/expansion.h"
#include "sweeps/model_weights.h"
#include "sweeps/nearest.h"
#include "sweeps/overrides.h"
#include "sweeps/recipes.h"
#include "sweeps/stream_source.h"
#include "sweeps/train_lm_section.h"
#include "sweeps/training_rules.h"

namespace saesweep::sweeps {
namespace {

namespace fs = std::filesystem;
using namespace std::string_view_literals;

// A name becomes a folder of the output and a column of tables.
bool is_folder_name(std::string_view name) {
  if (name.empty() || name.size() > 100 || name[0] == '.' || name[0] == '-') return false;
  return std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  });
}

class SweepReader {
 public:
  SweepReader(const YamlNode& root, fs::path directory, const PlanOptions& options,
              Problems& problems)
      : top_(root, "", known_keys(KeySet::kTop), problems),
        directory_(std::move(directory)),
        options_(options),
        problems_(problems) {}

  SweepPlan read(std::string_view usual_name) {
    if (!top_.node().is_map()) return {};
    read_name(usual_name);
    read_resources();
    if (top_.node().find("train_lm") != nullptr) {
      if (top_.find("train_lm") != nullptr)
        plan_.train_lm = read_train_lm(top_, directory_, problems_);
      return std::move(plan_);
    }
    source_ = read_stream_source(top_, directory_, problems_);
    plan_.cache_bytes = source_.cache_bytes;
    read_search();
    const std::size_t problems_before_train = problems_.size();
    read_train();
    // A value of `train` that could not be read would be missed again in every trial.
    read_trials(/*resolve=*/problems_.size() == problems_before_train);
    plan_.evaluations = read_evaluations(top_, source_, problems_);
    plan_.early_stopping = read_early_stopping(top_, source_, plan_.evaluations, problems_);
    baseline_names_ = read_baseline_names(top_, source_, problems_);
    // What follows is made of all the sections, so it needs every one of them right.
    if (!problems_.empty()) return {};
    make_streams();
    make_trials();
    if (plan_.early_stopping) check_rungs(*plan_.early_stopping, plan_.trials, top_, problems_);
    if (!problems_.empty()) return {};
    plan_.baselines =
        plan_baselines(baseline_names_, source_, plan_.streams, plan_.trials,
                       {.shared = &shared_, .train = &train_, .search = search_}, top_, problems_);
    return std::move(plan_);
  }

 private:
  void read_name(std::string_view usual) {
    plan_.name = is_folder_name(usual) ? std::string(usual) : "sweep";
    const YamlNode* node = top_.find("name");
    if (node == nullptr) return;
    const auto text = scalar_text(*node, "name", "a name would be right", problems_);
    if (!text) return;
    if (is_folder_name(*text))
      plan_.name = *text;
    else
      top_.add("name",
               fmt::format("{} cannot name a folder; up to 100 letters, digits, '.', '_' or "
                           "'-', starting with a letter or digit, would be right",
                           describe(*node)));
  }

  void read_resources() {
    constexpr std::uint64_t kLeastMemory = std::uint64_t{64} << 20;
    const YamlNode* node = top_.find("resources");
    if (node == nullptr) return;
    const Section section(*node, "resources", known_keys(KeySet::kResources), problems_);
    section.read_size("memory", plan_.resources.memory_bytes);
    if (plan_.resources.memory_bytes < kLeastMemory)
      section.add("memory", fmt::format("{} bytes are too few to start a worker; at least 64MiB "
                                        "would be right",
                                        plan_.resources.memory_bytes));
    std::uint64_t slots = plan_.resources.slots;
    section.read_count("slots", slots, 1, 1024);
    plan_.resources.slots = static_cast<std::uint32_t>(slots);
  }

  void read_search() {
    static constexpr std::array kStrategies{"grid"sv, "random"sv, "lhs"sv, "sobol"sv};
    const YamlNode* node = top_.find("search");
    if (node == nullptr) return;
    const Section section(*node, "search", known_keys(KeySet::kSearch), problems_);
    if (const auto word = section.read_word("strategy", kStrategies))
      search_.strategy = *parse_strategy(kStrategies[*word]);
    section.read_count("seed", search_.seed);
  }

  void read_train() {
    static constexpr std::array kDevices{"auto"sv, "cpu"sv, "cuda"sv};
    static constexpr std::array kPrecisions{"fp32"sv, "bf16"sv};
    train_.device = options_.auto_device;
    plan_.device_is_auto = true;
    train_.holds_out = source_.stream.holdout > 0;
    const YamlNode* node = top_.find("train");
    if (node == nullptr) return;
    train_.node = node;
    const Section section(*node, "train", known_keys(KeySet::kTrain), problems_);
    if (!node->is_map()) return;
    if (const auto word = section.read_word("recipe", recipe_names()))
      train_.recipe = recipe_names()[*word];
    if (const auto word = section.read_word("device", kDevices); word && *word != 0) {
      train_.device = kDevices[*word];
      plan_.device_is_auto = false;
    }
    if (const auto word = section.read_word("precision", kPrecisions))
      train_.precision = static_cast<Precision>(*word);
    section.read_bool("deterministic", train_.deterministic);
    section.read_seconds("checkpoint_every", plan_.checkpoint_every_s);
    read_eval_every(section);
    if (const YamlNode* seed = section.find("seed"))
      shared_.seeds = read_seeds(*seed, section.path_of("seed"), problems_);
    read_hooks(section, shared_, problems_);
    for (const Parameter& each : parameters())
      if (const YamlNode* value = section.find(each.name))
        if (auto axis = read_axis(each, *value, section.path_of(each.name), problems_))
          shared_.axes.push_back(std::move(*axis));
  }

  void read_eval_every(const Section& section) {
    constexpr std::string_view kRight =
        "a number of tokens like 500k, a share of the run like 5%, or 0 for never, would be right";
    const YamlNode* node = section.find("eval_every");
    if (node == nullptr) return;
    const auto text = scalar_text(*node, section.path_of("eval_every"), kRight, problems_);
    if (!text) return;
    const auto every = parse_steps(*text);
    if (!every) return section.add("eval_every", fmt::format("is {}; {}", describe(*node), kRight));
    const bool never = every->steps == 0 && every->percent == 0;
    if (!never && !train_.holds_out)
      return section.add("eval_every",
                         fmt::format("is {}, and activations.holdout is 0, so that no row is held "
                                     "out; a share like 5% there, or 0 here, would be right",
                                     *text));
    train_.eval_every = *every;
  }

  void read_trials(bool resolve) {
    const YamlNode* node =
        top_.require("trials",
                     "a list of families like {arch: topk, d_sae: 512, k: 16}, or "
                     "train_lm, would be right");
    if (node == nullptr) return;
    if (!node->is_sequence() || node->items.empty()) {
      top_.add("trials", fmt::format("is {}; a list of families like {{arch: topk, d_sae: 512, k: "
                                     "16}} would be right",
                                     node->is_sequence() ? "an empty list" : describe(*node)));
      return;
    }
    for (std::size_t i = 0; i < node->items.size(); ++i) {
      auto family =
          read_family(node->items[i], fmt::format("trials[{}]", i), shared_, search_, problems_);
      if (!family) continue;
      check_hooks(*family);
      read_inits(*family);
      families_.push_back(std::move(*family));
    }
    std::uint64_t count = 0;
    for (const Family& family : families_)
      count += family.count() * std::max<std::size_t>(1, streams_of(family).size());
    if (count > kMaxTrials)
      return top_.add("trials", fmt::format("are more than {}; fewer values or samples would be "
                                            "right",
                                            kMaxTrials));
    check_device();
    if (resolve)
      for (const Family& family : families_) specs_.push_back(resolve_family(family));
  }

  // All trials of a sweep train on one kind of device.
  void check_device() {
    if (train_.device != "cuda") return;
    for (const Family& family : families_) {
      if (trains_on_gpu(family.architecture)) continue;
      if (plan_.device_is_auto) {
        train_.device = "cpu";
        plan_.warnings.push_back(fmt::format(
            "train.device: auto is cpu, although there is a GPU: {} is {}, which is not trained on "
            "one",
            family.path, to_string(family.architecture)));
        return;
      }
      problems_.add(*family.node, join_path(family.path, "arch"),
                    fmt::format("is {}, which is not trained on a GPU; train.device: cpu, or a "
                                "sweep of its own, would be right",
                                to_string(family.architecture)));
    }
  }

  std::vector<TrainingSpec> resolve_family(const Family& family) {
    std::vector<TrainingSpec> specs;
    for (std::uint64_t i = 0; i < family.count(); ++i)
      if (auto spec = resolve_training(family, family.at(i), train_, inits_, problems_))
        specs.push_back(std::move(*spec));
    return specs;
  }

  // The hooks of each stream that the family runs on.
  std::vector<std::vector<std::string>> streams_of(const Family& family) const {
    if (!family.hooks.empty()) return family.streams();
    std::vector<std::vector<std::string>> all;
    for (const std::string& hook : source_.hooks) all.push_back({hook});
    return all;
  }

  void check_hooks(Family& family) {
    if (source_.is_activations()) {
      if (is_joint(family.architecture))
        problems_.add(*family.node, join_path(family.path, "arch"),
                      fmt::format("{} reads several hooks of a model, and data has 'source: "
                                  "activations', which is one stream; another arch would be right",
                                  to_string(family.architecture)));
      else if (is_end_to_end(family.architecture))
        problems_.add(*family.node, join_path(family.path, "arch"),
                      "end_to_end is trained on what a model says, and data has 'source: "
                      "activations', which has none; another arch would be right");
      else if (!family.hooks.empty())
        problems_.add(*family.hook_nodes[0], join_path(family.path, "hook"),
                      "has no meaning for 'source: activations', which is one stream; leaving it "
                      "out would be right");
      return;
    }
    if (family.hooks.empty()) {
      const YamlNode* activations = top_.node().find("activations");
      if (activations != nullptr && activations->is_map() && activations->find("hooks") == nullptr)
        problems_.add(*activations, "activations.hooks",
                      fmt::format("is missing, and {} names no hook; a list like "
                                  "[blocks.2.hook_resid_post] would be right",
                                  family.path));
      return;
    }
    for (std::size_t i = 0; i < family.hooks.size(); ++i)
      check_hook(source_, family.hooks[i], *family.hook_nodes[i],
                 join_path(family.path, family.hook_key()), problems_);
    for (std::size_t i = 0; i < family.hooks_out.size(); ++i)
      check_hook(source_, family.hooks_out[i], *family.hook_out_nodes[i],
                 join_path(family.path, "hook_out"), problems_);
    // One matrix [hooks, d_sae, d_in] holds the decoders of all its hooks.
    if (is_crosscoder(family.architecture) && source_.shape)
      for (std::size_t i = 1; i < family.hooks.size(); ++i)
        if (const auto width = source_.d_in(family.hooks[i]), first = source_.d_in(family.hooks[0]);
            width != 0 && first != 0 && width != first)
          problems_.add(*family.hook_nodes[i], fmt::format("{}.hooks[{}]", family.path, i),
                        fmt::format("'{}' is {} wide and '{}' {}; hooks of one width would be "
                                    "right",
                                    family.hooks[i], width, family.hooks[0], first));
  }

  // Reads the shape and digest of each file that `init` names, once.
  void read_inits(const Family& family) {
    const ParameterAxis* axis = family.axis(ParameterId::kInit);
    if (axis == nullptr) return;
    for (const ParameterValue& value : axis->values) {
      const std::string& written = std::get<std::string>(value);
      if (inits_.contains(written)) continue;
      fs::path file = absolute_path(directory_, written);
      std::error_code ignored;
      if (fs::is_directory(file, ignored)) file /= "sae.safetensors";
      if (!fs::is_regular_file(file, ignored)) {
        problems_.add(*axis->node, axis->path,
                      fmt::format("there is no file '{}'; an SAE's sae.safetensors would be right",
                                  file.string()));
        continue;
      }
      const auto shape = read_sae_shape(file);
      const auto digest = shape ? sha256_file(file) : fail(shape.error());
      if (!digest) {
        problems_.add(*axis->node, axis->path, digest.error().message);
        continue;
      }
      inits_[written] = InitFile{file.string(), digest->hex()};
      init_shapes_[file.string()] = *shape;
    }
  }

  // The hooks of `activations`, then the streams that only a family names.
  void make_streams() {
    std::vector<std::vector<std::string>> streams;
    for (const std::string& hook : source_.hooks) streams.push_back({hook});
    for (const Family& family : families_)
      for (const auto& hooks : family.streams())
        if (!hooks.empty() && std::find(streams.begin(), streams.end(), hooks) == streams.end())
          streams.push_back(hooks);
    for (const auto& hooks : streams) {
      PlannedStream stream;
      stream.spec = source_.stream_of(hooks.front());
      stream.spec.joined.assign(hooks.begin() + 1, hooks.end());
      stream.documents = source_.documents;
      stream.rows_per_document = source_.rows_per_document;
      stream.shape = source_.shape;
      for (const std::string& hook : hooks) {
        stream.d_in += source_.d_in(hook);
        if (source_.shape)
          stream.model_parameters =
              std::max(stream.model_parameters, parameters_up_to(*source_.shape, hook));
      }
      plan_.streams.push_back(std::move(stream));
    }
  }

  const PlannedStream& stream_of(const std::vector<std::string>& hooks) const {
    return *std::find_if(plan_.streams.begin(), plan_.streams.end(),
                         [&](const PlannedStream& stream) { return stream.spec.hooks() == hooks; });
  }

  void make_trials() {
    std::set<Sha256> seen;
    for (std::size_t i = 0; i < families_.size(); ++i) {
      const Family& family = families_[i];
      for (const auto& hooks : streams_of(family)) {
        const PlannedStream& stream = stream_of(hooks);
        for (const TrainingSpec& spec : specs_[i]) {
          check_init(family, spec, stream);
          check_downstream(family, spec, stream);
          if (!problems_.empty()) continue;
          PlannedTrial trial;
          trial.spec = {stream.spec, spec};
          trial.identity = trial.spec.identity();
          if (!seen.insert(trial.identity).second) continue;
          trial.number = static_cast<std::uint32_t>(plan_.trials.size());
          plan_.trials.push_back(std::move(trial));
        }
      }
    }
  }

  void check_downstream(const Family& family, const TrainingSpec& spec,
                        const PlannedStream& stream) {
    if (spec.in_to_orig == 0 || !stream.shape) return;
    const std::string last = fmt::format("blocks.{}.hook_resid_post", stream.shape->layers - 1);
    if (stream.spec.hook != last && stream.spec.hook != "ln_final.hook_normalized") return;
    const ParameterAxis* axis = family.axis(ParameterId::kInToOrig);
    problems_.add(*axis->node, axis->path,
                  fmt::format("is {}, and no block lies behind {}, whose residual stream could be "
                              "compared; 0, or an earlier hook, would be right",
                              shortest(spec.in_to_orig), stream.spec.hook));
  }

  void check_init(const Family& family, const TrainingSpec& spec, const PlannedStream& stream) {
    if (spec.init_path.empty()) return;
    const auto& shape = init_shapes_.at(spec.init_path);
    if (shape[0] == spec.d_sae && shape[1] == stream.d_in) return;
    const ParameterAxis* axis = family.axis(ParameterId::kInit);
    problems_.add(
        *axis->node, axis->path,
        fmt::format("'{}' is an SAE of d_sae {} and d_in {}, the trial has {} and {}; one "
                    "of the same shape would be right",
                    spec.init_path, shape[0], shape[1], spec.d_sae, stream.d_in));
  }

  Section top_;
  fs::path directory_;
  const PlanOptions& options_;
  Problems& problems_;
  SweepPlan plan_;
  StreamSource source_;
  Search search_;
  TrainSettings train_;
  SharedParameters shared_;
  std::vector<Family> families_;
  std::vector<std::vector<TrainingSpec>> specs_;  // of each family, resolved
  InitFiles inits_;
  std::map<std::string, std::array<std::uint64_t, 2>> init_shapes_;  // by absolute path
  std::vector<std::string> baseline_names_;
};

void make_absolute(YamlNode* node, const fs::path& directory) {
  if (node == nullptr) return;
  if (node->is_scalar()) node->text = absolute_path(directory, node->text).string();
  for (YamlNode& item : node->items) make_absolute(&item, directory);
}

YamlNode& child(YamlNode& map, const std::string& key) {
  if (YamlNode* found = map.find(key)) return *found;
  map.keys.push_back(YamlKey{key, 0, 0});
  map.items.emplace_back();
  return map.items.back();
}

// `init` may be a path, a list of paths or {choice: [...], samples: n}.
void make_init_absolute(YamlNode* section, const fs::path& directory) {
  YamlNode* init = section != nullptr && section->is_map() ? section->find("init") : nullptr;
  if (init == nullptr) return;
  make_absolute(init->is_map() ? init->find("choice") : init, directory);
}

// The file as it can be run again from any folder: overrides applied, name and device written out,
// paths absolute.
std::string effective_yaml(YamlNode root, const SweepPlan& plan, const std::string& device,
                           const fs::path& directory) {
  child(root, "name") = yaml_scalar(plan.name);
  for (const char* section : {"model", "data"})
    if (YamlNode* node = root.find(section)) make_absolute(node->find("path"), directory);
  make_init_absolute(root.find("train"), directory);
  if (YamlNode* trials = root.find("trials"))
    for (YamlNode& family : trials->items) make_init_absolute(&family, directory);
  if (!plan.train_lm) {
    YamlNode& train = child(root, "train");
    train.kind = YamlNode::Kind::kMap;
    child(train, "device") = yaml_scalar(device);
  }
  return emit_yaml(root);
}

}  // namespace

std::string SweepFileError::to_string() const {
  std::string text = file;
  if (line > 0) text += fmt::format(":{}:{}", line, column);
  text += ": ";
  if (!key.empty()) text += key + ": ";
  return text + message;
}

tl::expected<SweepPlan, std::vector<SweepFileError>> plan_sweep_text(std::string_view text,
                                                                     const std::string& file_name,
                                                                     const fs::path& directory,
                                                                     const PlanOptions& options) {
  Problems problems(file_name);
  auto root = parse_yaml(text);
  if (!root) {
    const YamlProblem& problem = root.error();
    problems.add_at(problem.line, problem.column, "", problem.message);
    return tl::unexpected(problems.take());
  }
  refuse_duplicate_keys(*root, "", problems);
  if (root->is_map())
    for (const std::string& each : options.overrides) apply_override(*root, each, problems);
  SweepReader reader(*root, directory, options, problems);
  SweepPlan plan = reader.read(fs::path(file_name).stem().string());
  if (!problems.empty()) return tl::unexpected(problems.take());
  for (std::string& warning : warnings_of(plan)) plan.warnings.push_back(std::move(warning));
  const std::string device =
      plan.trials.empty() ? options.auto_device : plan.trials[0].spec.training.device;
  plan.effective_yaml = effective_yaml(std::move(*root), plan, device, directory);
  return plan;
}

tl::expected<SweepPlan, std::vector<SweepFileError>> plan_sweep(const fs::path& file,
                                                                const PlanOptions& options) {
  const auto text = read_file(file, kMaxYamlBytes);
  if (!text)
    return tl::unexpected(
        std::vector<SweepFileError>{{file.string(), 0, 0, "", text.error().message}});
  std::error_code ignored;
  return plan_sweep_text(*text, file.string(), fs::absolute(file, ignored).parent_path(), options);
}

}  // namespace saesweep::sweeps
