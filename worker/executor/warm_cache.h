// Models and documents that stay loaded between runs: the next run on a slot mostly needs the same
// ones. Each kind keeps the few that were used last. Trial thread.
#pragma once

#include <cstddef>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <utility>

#include "core/result.h"
#include "sweeps/spec.h"
#include "worker/data/documents.h"
#include "worker/models/transformer.h"

namespace saesweep::worker {

// The last `kept` values by key.
template <class T>
class RecentlyUsed {
 public:
  explicit RecentlyUsed(std::size_t kept) : kept_(kept) {}

  Result<std::shared_ptr<const T>> get(
      const std::string& key, const std::function<Result<std::shared_ptr<const T>>()>& load) {
    for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
      if (entry->first != key) continue;
      entries_.splice(entries_.begin(), entries_, entry);
      return entry->second;
    }
    // Room first: two large values need not fit at once with the new one.
    while (entries_.size() >= kept_) entries_.pop_back();
    SAE_TRY(auto value, load());
    entries_.emplace_front(key, value);
    return value;
  }
  void clear() { entries_.clear(); }

 private:
  std::size_t kept_;
  std::list<std::pair<std::string, std::shared_ptr<const T>>> entries_;  // newest first
};

class WarmCache {
 public:
  // Errors: kNotFound; kCorrupted; kInvalidArgument, also when the files are no longer those that
  // spec.digest names.
  Result<std::shared_ptr<const Transformer>> model(const sweeps::ModelSpec& spec);
  Result<std::shared_ptr<const TokenDocuments>> tokens(const sweeps::DataSpec& data, double holdout,
                                                       int context, unsigned threads);
  Result<std::shared_ptr<const ActivationDocuments>> activations(const sweeps::DataSpec& data,
                                                                 double holdout);
  void clear();

 private:
  RecentlyUsed<Transformer> models_{2};
  RecentlyUsed<TokenDocuments> tokens_{2};
  RecentlyUsed<ActivationDocuments> activations_{2};
};

}  // namespace saesweep::worker
