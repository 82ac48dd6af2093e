// A family of trials and its expansion by index: points x lists x seeds, computed one at a time, so
// that a sweep of any size costs no memory before its trials are asked for.
//
// Order of trials within a family and hook, slowest first: drawn point, lists in the order of
// parameters(), seed. It does not depend on the order in which keys are written.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "sweeps/parameter_axis.h"

namespace saesweep::sweeps {

inline constexpr std::uint64_t kMaxTrials = 100'000;

struct Assignment {
  std::array<std::optional<ParameterValue>, kParameterCount> values;
  std::uint64_t seed = 0;
  const std::optional<ParameterValue>& operator[](ParameterId id) const {
    return values[static_cast<std::size_t>(id)];
  }
};

struct Search {
  Strategy strategy = Strategy::kSobol;
  std::uint64_t seed = 0;
};

// Parameters that `train` gives to every family.
struct SharedParameters {
  std::vector<ParameterAxis> axes;
  std::optional<std::vector<std::uint64_t>> seeds;
  std::vector<std::string> hooks;
  std::vector<const YamlNode*> hook_nodes;
};

// `hook`: a name or a list of them. Leaves the shared ones alone if the section has no such key.
void read_hooks(const Section& section, SharedParameters& shared, Problems& problems);

class Family {
 public:
  Architecture architecture = Architecture::kTopK;
  const YamlNode* node = nullptr;
  std::string path;  // "trials[0]"
  // Each a stream, empty: all of the sweep. Of transcoders what is read, one a stream; of a
  // crosscoder all that it reads together.
  std::vector<std::string> hooks;
  std::vector<const YamlNode*> hook_nodes;
  std::vector<std::string>
      hooks_out;  // of transcoders: what is predicted, one beside each of hooks
  std::vector<const YamlNode*> hook_out_nodes;

  // The hooks of each stream; nothing where the sweep says them.
  std::vector<std::vector<std::string>> streams() const;
  const char* hook_key() const;  // "hook", of a crosscoder "hooks"

  // Trials per hook; kMaxTrials + 1 if there are more than kMaxTrials.
  std::uint64_t count() const;
  Assignment at(std::uint64_t index) const;
  // Where a parameter was written; nullptr if nowhere.
  const ParameterAxis* axis(ParameterId id) const;

 private:
  friend std::optional<Family> read_family(const YamlNode&, const std::string&,
                                           const SharedParameters&, const Search&, Problems&);
  std::vector<ParameterAxis> axes_;  // in the order of parameters()
  std::vector<std::uint64_t> seeds_{0};
  std::optional<PointSource> points_;
};

// Nothing if it is wrong, which is reported.
std::optional<Family> read_family(const YamlNode& node, const std::string& path,
                                  const SharedParameters& shared, const Search& search,
                                  Problems& problems);

}  // namespace saesweep::sweeps
