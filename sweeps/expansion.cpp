#include "sweeps/expansion.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/check.h"
#include "sweeps/nearest.h"

namespace saesweep::sweeps {
namespace {

std::optional<Architecture> read_architecture(const Section& section, Problems& problems) {
  const std::string right =
      fmt::format("one of {} would be right", fmt::join(architecture_names(), ", "));
  const YamlNode* node = section.require("arch", right);
  if (node == nullptr) return std::nullopt;
  const auto text = scalar_text(*node, section.path_of("arch"), right, problems);
  if (!text) return std::nullopt;
  if (const auto architecture = parse_architecture(*text)) return architecture;
  section.add("arch", fmt::format("{} is no architecture; {}", describe(*node),
                                  suggestion(*text, architecture_names())));
  return std::nullopt;
}

// The sparsity keys of which an architecture must have one.
std::vector<ParameterId> sparsity_keys(Architecture architecture) {
  std::vector<ParameterId> keys;
  for (const ParameterId id :
       {ParameterId::kK, ParameterId::kL1, ParameterId::kL0Target, ParameterId::kL0Coefficient})
    if (parameter(id).applies(architecture) &&
        // Beside an l1 it only steers.
        !(id == ParameterId::kL0Target && parameter(ParameterId::kL1).applies(architecture)))
      keys.push_back(id);
  return keys;
}

// "k", "l0_target or l0_coefficient"
std::string sparsity_key_names(Architecture architecture) {
  std::string names;
  for (const ParameterId id : sparsity_keys(architecture))
    names += (names.empty() ? "" : " or ") + std::string(parameter(id).name);
  return names;
}

// A name or a list of them.
void read_names(const Section& section, std::string_view key, std::vector<std::string>& names,
                std::vector<const YamlNode*>& nodes, Problems& problems) {
  const YamlNode* node = section.find(key);
  if (node == nullptr) return;
  const auto add = [&](const YamlNode& item, const std::string& path) {
    const auto text =
        scalar_text(item, path, "the name of a hook, or a list of them, would be right", problems);
    if (!text) return;
    names.push_back(*text);
    nodes.push_back(&item);
  };
  if (!node->is_sequence()) return add(*node, section.path_of(key));
  if (node->items.empty()) section.add(key, "is an empty list; at least one hook would be right");
  for (std::size_t i = 0; i < node->items.size(); ++i)
    add(node->items[i], fmt::format("{}[{}]", section.path_of(key), i));
}

// hook and hook_out of transcoders, one beside the other.
void read_pairs(const Section& section, Family& family, Problems& problems) {
  const std::string_view arch = to_string(family.architecture);
  if (family.hooks.empty() && section.node().find("hook") == nullptr)
    section.require("hook",
                    fmt::format("{} needs the hook it reads, like blocks.2.hook_resid_mid", arch));
  if (section.require("hook_out",
                      fmt::format("{} needs the hook it predicts, like blocks.2.hook_mlp_out",
                                  arch)) == nullptr)
    return;
  read_names(section, "hook_out", family.hooks_out, family.hook_out_nodes, problems);
  if (family.hooks.empty() || family.hooks_out.empty()) return;
  if (family.hooks_out.size() != family.hooks.size())
    return section.add("hook_out",
                       fmt::format("names {} hooks and hook {}; one beside each would be right",
                                   family.hooks_out.size(), family.hooks.size()));
  for (std::size_t i = 0; i < family.hooks.size(); ++i)
    if (family.hooks[i] == family.hooks_out[i])
      problems.add(*family.hook_out_nodes[i], section.path_of("hook_out"),
                   fmt::format("'{}' is what is read; another hook, or arch: topk, would be right",
                               family.hooks_out[i]));
}

// hooks of a crosscoder, read together.
void read_joint(const Section& section, Family& family, Problems& problems) {
  family.hooks.clear();  // `train.hook` is about single hooks
  family.hook_nodes.clear();
  if (section.require("hooks",
                      "crosscoder needs the hooks it reads together, like "
                      "[blocks.1.hook_resid_post, blocks.2.hook_resid_post]") == nullptr)
    return;
  const std::size_t problems_before = problems.size();
  read_names(section, "hooks", family.hooks, family.hook_nodes, problems);
  if (problems.size() != problems_before) return;
  if (family.hooks.size() < 2)
    return section.add("hooks", "is one hook; two or more, or another arch, would be right");
  for (std::size_t i = 0; i < family.hooks.size(); ++i)
    if (std::find(family.hooks.begin(), family.hooks.begin() + static_cast<std::ptrdiff_t>(i),
                  family.hooks[i]) != family.hooks.begin() + static_cast<std::ptrdiff_t>(i))
      problems.add(*family.hook_nodes[i], fmt::format("{}[{}]", section.path_of("hooks"), i),
                   fmt::format("'{}' stands twice; once would be right", family.hooks[i]));
}

void read_family_hooks(const Section& section, const SharedParameters& shared, Family& family,
                       std::optional<Architecture> architecture, Problems& problems) {
  SharedParameters own = {
      .axes = {}, .seeds = {}, .hooks = shared.hooks, .hook_nodes = shared.hook_nodes};
  const bool crosses = architecture && is_crosscoder(*architecture);
  if (!crosses) read_hooks(section, own, problems);
  family.hooks = std::move(own.hooks);
  family.hook_nodes = std::move(own.hook_nodes);
  if (!architecture) return;
  const auto refuse = [&](const char* key, bool is_meant, const char* right) {
    if (!is_meant && section.node().find(key) != nullptr)
      section.add(key, fmt::format("does not apply to {}; {} would be right",
                                   to_string(*architecture), right));
  };
  refuse("hook", !crosses, "hooks, a list,");
  refuse("hook_out", is_transcoder(*architecture), "leaving it out");
  refuse("hooks", crosses, is_transcoder(*architecture) ? "hook and hook_out" : "hook");
  if (is_transcoder(*architecture)) read_pairs(section, family, problems);
  if (crosses) read_joint(section, family, problems);
}

bool check_draws(const std::vector<ParameterAxis>& axes, const Search& search, Problems& problems) {
  const ParameterAxis* first = nullptr;
  bool ok = true;
  for (const ParameterAxis& axis : axes) {
    if (!axis.draw) continue;
    if (first == nullptr) {
      first = &axis;
      continue;
    }
    if (axis.samples != first->samples) {
      problems.add(*axis.node, axis.path,
                   fmt::format("has {} samples and {} has {}; drawn axes of a family are drawn "
                               "jointly, one number for all would be right",
                               axis.samples, first->path, first->samples));
      ok = false;
    }
    if (search.strategy == Strategy::kGrid) {
      problems.add(*axis.node, axis.path,
                   fmt::format("is drawn and so is {}; under 'strategy: grid' one drawn axis, with "
                               "lists for the others, would be right",
                               first->path));
      ok = false;
    }
  }
  return ok;
}

ParameterValue drawn_parameter(const ParameterAxis& axis, const DrawnValue& drawn) {
  const ParameterKind kind = parameter(axis.id).kind;
  if (axis.draw->kind == DrawnAxis::Kind::kChoice) return axis.values[std::get<1>(drawn)];
  if (axis.draw->kind != DrawnAxis::Kind::kIntUniform) return std::get<0>(drawn);
  const std::uint64_t whole = std::get<1>(drawn);
  if (kind == ParameterKind::kSteps) return StepCount{.steps = whole};
  if (kind == ParameterKind::kReal) return static_cast<double>(whole);
  return whole;
}

}  // namespace

void read_hooks(const Section& section, SharedParameters& shared, Problems& problems) {
  if (section.find("hook") == nullptr) return;
  shared.hooks.clear();
  shared.hook_nodes.clear();
  read_names(section, "hook", shared.hooks, shared.hook_nodes, problems);
}

std::vector<std::vector<std::string>> Family::streams() const {
  if (is_crosscoder(architecture)) return {hooks};
  std::vector<std::vector<std::string>> all;
  for (std::size_t i = 0; i < hooks.size(); ++i) {
    all.push_back({hooks[i]});
    if (is_transcoder(architecture)) all.back().push_back(hooks_out[i]);
  }
  return all;
}

const char* Family::hook_key() const { return is_crosscoder(architecture) ? "hooks" : "hook"; }

std::uint64_t Family::count() const {
  std::uint64_t count = 1;
  const auto multiply = [&count](std::uint64_t factor) {
    count = std::min(count * std::min(factor, kMaxTrials + 1), kMaxTrials + 1);
  };
  if (points_) multiply(points_->samples());
  for (const ParameterAxis& axis : axes_)
    if (!axis.draw) multiply(axis.values.size());
  multiply(seeds_.size());
  return count;
}

Assignment Family::at(std::uint64_t index) const {
  SAE_CHECK(index < count(), "trial {} of {}", index, count());
  Assignment assignment;
  assignment.seed = seeds_[index % seeds_.size()];
  index /= seeds_.size();
  for (auto axis = axes_.rbegin(); axis != axes_.rend(); ++axis) {
    if (axis->draw) continue;
    assignment.values[static_cast<std::size_t>(axis->id)] =
        axis->values[index % axis->values.size()];
    index /= axis->values.size();
  }
  if (points_) {
    const auto point = points_->point(index);
    for (const ParameterAxis& axis : axes_) {
      if (!axis.draw) continue;
      for (std::size_t i = 0; i < point.size(); ++i)
        if (points_->axes()[i].name == axis.draw->name)
          assignment.values[static_cast<std::size_t>(axis.id)] = drawn_parameter(axis, point[i]);
    }
  }
  return assignment;
}

const ParameterAxis* Family::axis(ParameterId id) const {
  for (const ParameterAxis& each : axes_)
    if (each.id == id) return &each;
  return nullptr;
}

std::optional<Family> read_family(const YamlNode& node, const std::string& path,
                                  const SharedParameters& shared, const Search& search,
                                  Problems& problems) {
  const std::size_t problems_before = problems.size();
  const Section section(node, path, known_keys(KeySet::kFamily), problems);
  if (!node.is_map()) return std::nullopt;
  Family family;
  family.node = &node;
  family.path = path;
  const auto architecture = read_architecture(section, problems);
  if (architecture) family.architecture = *architecture;
  read_family_hooks(section, shared, family, architecture, problems);
  if (shared.seeds) family.seeds_ = *shared.seeds;
  if (const YamlNode* seed = section.find("seed"))
    if (auto seeds = read_seeds(*seed, section.path_of("seed"), problems))
      family.seeds_ = std::move(*seeds);
  for (const Parameter& each : parameters()) {
    if (const YamlNode* value = section.find(each.name)) {
      if (architecture && !each.applies(*architecture)) {
        section.add(each.name,
                    fmt::format("does not apply to {}; leaving it out would be right, its "
                                "sparsity key is {}",
                                to_string(*architecture), sparsity_key_names(*architecture)));
        continue;
      }
      if (auto axis = read_axis(each, *value, section.path_of(each.name), problems))
        family.axes_.push_back(std::move(*axis));
      continue;
    }
    if (!architecture || !each.applies(*architecture)) continue;
    for (const ParameterAxis& axis : shared.axes)
      if (axis.id == each.id) family.axes_.push_back(axis);
  }
  if (problems.size() != problems_before || !architecture) return std::nullopt;
  const auto sparsity = sparsity_keys(*architecture);
  if (family.axis(ParameterId::kDSae) == nullptr)
    section.require("d_sae",
                    fmt::format("{} needs it, here or in train", to_string(*architecture)));
  if (std::none_of(sparsity.begin(), sparsity.end(),
                   [&](ParameterId id) { return family.axis(id) != nullptr; }))
    section.require(parameter(sparsity.front()).name,
                    fmt::format("{} needs {}, here or in train", to_string(*architecture),
                                sparsity.size() == 1 ? "it" : sparsity_key_names(*architecture)));
  if (!check_draws(family.axes_, search, problems)) return std::nullopt;
  std::vector<DrawnAxis> draws;
  std::uint64_t samples = 0;
  for (const ParameterAxis& axis : family.axes_) {
    if (!axis.draw) continue;
    draws.push_back(*axis.draw);
    samples = axis.samples;
  }
  if (!draws.empty())
    family.points_.emplace(search.strategy, search.seed, std::move(draws), samples);
  if (problems.size() != problems_before) return std::nullopt;
  return family;
}

}  // namespace saesweep::sweeps
