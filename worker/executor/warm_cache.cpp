#include "worker/executor/warm_cache.h"

#include "core/json.h"
#include "core/log.h"
#include "sweeps/estimates.h"
#include "sweeps/model_shapes.h"

namespace saesweep::worker {
namespace {

std::string data_key(const sweeps::DataSpec& data, double holdout, int context) {
  return canonical_json({{"source", data.source},
                         {"board", data.board},
                         {"play", data.play},
                         {"games", data.games},
                         {"seed", data.seed},
                         {"path", data.path},
                         {"tensor", data.tensor},
                         {"digest", data.digest},
                         {"holdout", holdout},
                         {"context", context}});
}

// Files may have been replaced since the sweep was planned: results would bear the wrong name.
Result<void> check_unchanged(const std::string& what, const std::string& path,
                             const std::string& expected, const Result<std::string>& actual) {
  if (!actual) return fail(actual.error());
  if (expected.empty() || *actual == expected) return {};
  return fail(ErrorCode::kInvalidArgument,
              "the {} in {} changed since the sweep was planned (digest {}, planned {}); run the "
              "sweep file again",
              what, path, actual->substr(0, 12), expected.substr(0, 12));
}

}  // namespace

std::uint64_t loaded_bytes(const Transformer& model) { return model.bytes(); }

std::uint64_t loaded_bytes(const TokenDocuments& documents) {
  // A byte a token, the last target included, and one for the length.
  return documents.count() * (documents.max_rows() + 2) +
         documents.held_out_documents().size() * sizeof(std::uint64_t);
}

std::uint64_t loaded_bytes(const ActivationDocuments& documents) {
  return documents.count() / 8 + documents.held_out_documents().size() * sizeof(std::uint64_t);
}

Result<std::shared_ptr<const Transformer>> WarmCache::model(const sweeps::ModelSpec& spec) {
  const std::string key = canonical_json({{"path", spec.path},
                                          {"digest", spec.digest},
                                          {"random", spec.random_weights},
                                          {"seed", spec.seed},
                                          {"precision", sweeps::to_string(spec.precision)}});
  return models_.get(key, [&]() -> Result<std::shared_ptr<const Transformer>> {
    log::info("model.load path={} random_weights={}", spec.path, spec.random_weights);
    SAE_TRY(Transformer model,
            Transformer::load_or_random(spec.path, spec.random_weights, spec.seed));
    if (!spec.digest.empty()) {
      SAE_TRY(const auto shape, sweeps::read_model_shape(spec.path));
      SAE_TRY_VOID(
          check_unchanged("model", spec.path, spec.digest,
                          sweeps::model_digest(spec.path, shape, spec.random_weights, spec.seed)));
    }
    model.prepare(spec.precision);
    return std::make_shared<const Transformer>(std::move(model));
  });
}

Result<std::shared_ptr<const TokenDocuments>> WarmCache::tokens(const sweeps::DataSpec& data,
                                                                double holdout, int context,
                                                                unsigned threads) {
  return tokens_.get(data_key(data, holdout, context), [&] {
    log::info("data.generate source={} board={} games={}", data.source, data.board, data.games);
    return TokenDocuments::open(data, holdout, context, threads);
  });
}

Result<std::shared_ptr<const ActivationDocuments>> WarmCache::activations(
    const sweeps::DataSpec& data, double holdout) {
  return activations_.get(
      data_key(data, holdout, 0), [&]() -> Result<std::shared_ptr<const ActivationDocuments>> {
        log::info("data.open path={}", data.path);
        if (!data.digest.empty()) {
          SAE_TRY(const auto files, sweeps::read_activation_files(data.path, data.tensor));
          SAE_TRY_VOID(check_unchanged("activations", data.path, data.digest,
                                       sweeps::files_digest(files.files)));
        }
        return ActivationDocuments::open(data, holdout);
      });
}

std::uint64_t WarmCache::bytes() const {
  return models_.bytes() + tokens_.bytes() + activations_.bytes();
}

void WarmCache::make_room(std::uint64_t memory, std::uint64_t needed) {
  if (memory == 0) return;
  needed += sweeps::kExecutorBytes;
  const std::uint64_t limit = memory > needed ? memory - needed : 0;
  const std::uint64_t before = bytes();
  while (bytes() > limit && (tokens_.drop_one() || activations_.drop_one() || models_.drop_one())) {
  }
  if (const std::uint64_t after = bytes(); after < before)
    log::info("warm.dropped bytes={} left={} limit={}", before - after, after, limit);
}

void WarmCache::clear() {
  models_.clear();
  tokens_.clear();
  activations_.clear();
}

}  // namespace saesweep::worker
