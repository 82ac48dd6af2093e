// Models and documents that stay loaded between runs: the next run on a slot mostly needs the same
// ones. Each kind keeps the few that were used last, and all together no more than a run leaves
// them. Trial thread.
#pragma once

#include <cstddef>
#include <cstdint>
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

// Bytes in memory; rows of activations are in mapped files.
std::uint64_t loaded_bytes(const Transformer& model);
std::uint64_t loaded_bytes(const TokenDocuments& documents);
std::uint64_t loaded_bytes(const ActivationDocuments& documents);

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
  std::uint64_t bytes() const {
    std::uint64_t sum = 0;
    for (const auto& [key, value] : entries_) sum += loaded_bytes(*value);
    return sum;
  }
  // Drops the oldest that nobody else holds; false if there is none.
  bool drop_one() {
    for (auto entry = entries_.end(); entry != entries_.begin();) {
      if ((--entry)->second.use_count() > 1) continue;
      entries_.erase(entry);
      return true;
    }
    return false;
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
  std::uint64_t bytes() const;
  // Before a run that takes `needed` of the slot's `memory` (0: unknown, nothing is done) beside
  // what stays loaded and LibTorch itself: drops what nobody holds until it fits, or nothing of
  // that kind is left. Documents before models: they are larger, and quicker to have again.
  void make_room(std::uint64_t memory, std::uint64_t needed);
  void clear();

 private:
  RecentlyUsed<Transformer> models_{2};
  RecentlyUsed<TokenDocuments> tokens_{2};
  RecentlyUsed<ActivationDocuments> activations_{2};
};

}  // namespace saesweep::worker
