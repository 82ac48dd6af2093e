// The TopK family and transcoders (worker/training/topk_trainer.cpp, matryoshka_trainer.cpp and
// transcoder_trainer.cpp are the same on the CPU): pre-activations of all latents from one product,
// then only what is kept.
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "worker/device/engine_base.h"

namespace saesweep::worker::device {
namespace {

class SparseEngine final : public EngineBase {
 public:
  SparseEngine(Session& session, const sweeps::TrainingSpec& spec,
               std::unique_ptr<Parameters> parameters)
      : EngineBase(session, spec,
                   sweeps::is_transcoder(spec.architecture) ? DecoderNorm::kFree
                                                            : DecoderNorm::kUnitEpsilon,
                   std::move(parameters)),
        k_(static_cast<std::int64_t>(spec.k.value_or(1))) {}

  // group_end: past the last latent of each prefix that reconstructs; none: all of them, once.
  // Errors: kResourceExhausted; kUnavailable.
  Result<void> prepare(const std::vector<std::int64_t>& group_end) {
    if (group_end.empty()) return {};
    groups_ = std::ssize(group_end);
    const std::size_t bytes = group_end.size() * sizeof(std::int64_t);
    SAE_TRY_VOID(group_end_.reserve(device_, bytes));
    return device_.upload(group_end_.as<void>(), group_end.data(), bytes);
  }

 private:
  bool subtracts() const { return !predicts() && !sweeps::is_crosscoder(spec_.architecture); }
  bool skips() const { return spec_.architecture == sweeps::Architecture::kSkipTranscoder; }
  bool over_batch() const {
    return !predicts() && spec_.architecture != sweeps::Architecture::kTopK;
  }
  bool is_nested() const { return groups_ > 1; }
  bool revives() const { return spec_.aux_k_weight > 0; }
  std::int64_t aux_k() const {
    return std::min(spec_.aux_k > 0 ? static_cast<std::int64_t>(spec_.aux_k)
                                    : std::max<std::int64_t>(1, d_out_ / 2),
                    latents_);
  }

  Result<void> pass(const Rows& x, const Form& form, std::uint8_t* fired) override;
  // What W_skip predicts, and its gradient.
  Result<const float*> skipped(const DenseRows& read, std::int64_t rows);
  Result<void> grade_skip(const float* g, const DenseRows& read, std::int64_t rows);
  Result<void> select(const Candidates& all, std::int64_t rows, const CodeLists& codes,
                      float* smallest, std::uint8_t* fired);
  Result<CodeLists> lists(const std::string& purpose, std::int64_t rows, std::int64_t entries);
  // `groups`: of g.
  Result<void> gather(const CodeLists& codes, std::int64_t rows, std::int64_t entries,
                      const float* g, std::int64_t groups, const float* read, bool add,
                      const std::uint32_t* unless_none);

  std::int64_t k_, groups_ = 1;
  Memory group_end_;
};

Result<CodeLists> SparseEngine::lists(const std::string& purpose, std::int64_t rows,
                                      std::int64_t entries) {
  CodeLists codes{};
  SAE_TRY(codes.begin, session_.scratch<std::int64_t>(purpose + ": begin", rows));
  SAE_TRY(codes.count, session_.scratch<std::int32_t>(purpose + ": count", rows));
  SAE_TRY(codes.latent, session_.scratch<std::int32_t>(purpose + ": latent", entries));
  SAE_TRY(codes.value, session_.scratch<float>(purpose + ": value", entries));
  SAE_TRY(codes.pull, session_.scratch<float>(purpose + ": pull", entries));
  return codes;
}

Result<void> SparseEngine::select(const Candidates& all, std::int64_t rows, const CodeLists& codes,
                                  float* smallest, std::uint8_t* fired) {
  std::uint32_t* not_finite = &own_->sums()->not_finite;
  if (!over_batch())
    return device_.launch(SelectRow{all, k_, k_, nullptr, codes, smallest, fired, not_finite},
                          rows);
  SAE_TRY(auto* const cut, session_.scratch<Cut>("cut", 1));
  SAE_TRY(auto* const histogram, session_.scratch<std::uint32_t>("histogram", Radix::kBins));
  SAE_TRY(auto* const above, session_.scratch<std::uint32_t>("above the cut", rows));
  SAE_TRY(auto* const equal, session_.scratch<std::uint32_t>("at the cut", rows));
  SAE_TRY_VOID(device_.launch(BeginCut{cut, histogram, static_cast<std::uint64_t>(k_ * rows)}, 1));
  for (std::int32_t look = 0; look < Radix::kLooks; ++look) {
    SAE_TRY_VOID(device_.launch(CountBins{all, rows, cut, histogram, not_finite, look},
                                blocks_of(rows, CountBins::kRows)));
    SAE_TRY_VOID(device_.launch(NarrowCut{cut, histogram, look}, 1));
  }
  SAE_TRY_VOID(device_.launch(CountKept{all, cut, above, equal}, rows));
  SAE_TRY_VOID(device_.launch(PlaceRows{rows, cut, above, equal, codes.begin}, 1));
  return device_.launch(WriteKept{all, cut, equal, codes, smallest, fired}, rows);
}

Result<void> SparseEngine::gather(const CodeLists& codes, std::int64_t rows, std::int64_t entries,
                                  const float* g, std::int64_t groups, const float* read, bool add,
                                  const std::uint32_t* unless_none) {
  const std::int64_t words = blocks_of(rows, 32);
  TouchLists touches{};
  touches.latents = latents_;
  SAE_TRY(touches.bits, session_.scratch<std::uint32_t>("rows of latents", words * latents_));
  SAE_TRY(touches.begin, session_.scratch<std::int64_t>("touches: begin", latents_ + 1));
  SAE_TRY(touches.touches, session_.scratch<Touch>("touches", entries));
  SAE_TRY_VOID(device_.launch(ClearBits{touches, unless_none}, words));
  SAE_TRY_VOID(device_.launch(SetBits{codes, touches}, rows));
  SAE_TRY_VOID(device_.launch(CountTouches{touches, words, unless_none},
                              blocks_of(latents_, CountTouches::kThreads)));
  SAE_TRY_VOID(device_.launch(PlaceLatents{touches, unless_none}, 1));
  SAE_TRY_VOID(device_.launch(WriteTouches{codes, touches}, rows));
  return device_.launch(
      GatherGradients{touches, g, read, d_in_, d_out_, groups,
                      groups > 1 ? group_end_.as<std::int64_t>() : nullptr, own_->w_enc_gradient(),
                      own_->b_enc_gradient(), own_->w_dec_gradient(), add, unless_none},
      latents_);
}

Result<const float*> SparseEngine::skipped(const DenseRows& read, std::int64_t rows) {
  SAE_TRY(auto* const w_skip, operand(own_->more(0), d_out_ * d_in_, "W_skip"));
  SAE_TRY(auto* const out, session_.scratch<float>("what is skipped", rows * d_out_));
  SAE_TRY_VOID(multiply(operand(read), w_skip, out, {rows, d_out_, d_in_}, Lies::kRightTransposed));
  return out;
}

Result<void> SparseEngine::grade_skip(const float* g, const DenseRows& read, std::int64_t rows) {
  SAE_TRY(auto* const left, operand(g, rows * d_out_, "gradient of what is skipped"));
  return multiply(left, operand(read), own_->more_gradient(0), {d_out_, d_in_, rows},
                  Lies::kLeftTransposed);
}

Result<void> SparseEngine::pass(const Rows& x, const Form&, std::uint8_t* fired) {
  const std::int64_t rows = x.count;
  const auto dead_after = static_cast<std::int64_t>(spec_.dead_after_tokens);
  SAE_TRY(auto* const dead, session_.scratch<std::uint32_t>("dead", 1));
  SAE_TRY_VOID(device_.clear(dead, sizeof *dead));

  SAE_TRY(const DenseRows reads, read_rows(x, subtracts() ? own_->b_dec() : nullptr));
  const float* const read = reads.values;
  SAE_TRY(auto* const z, session_.scratch<float>("pre-activations", rows * latents_));
  SAE_TRY_VOID(encode(reads, rows, z));
  const Candidates all{z, own_->b_enc(), latents_, nullptr, 0};
  SAE_TRY(const CodeLists codes, lists("codes", rows, rows * k_));
  SAE_TRY(auto* const smallest, session_.scratch<float>("smallest", rows));
  SAE_TRY_VOID(select(all, rows, codes, smallest, fired));

  SAE_TRY(const Target wanted, target(x));
  SAE_TRY(auto* const error, session_.scratch<float>("error", rows * d_out_));
  SAE_TRY(auto* const g,
          session_.scratch<float>("gradient of the reconstruction", rows * groups_ * d_out_));
  SAE_TRY(auto* const squares, session_.scratch<double>("squared errors", rows));
  SAE_TRY(auto* const prefixes, session_.scratch<double>("squared errors of prefixes", rows));
  const double mean = 2.0 / static_cast<double>(rows);
  if (is_nested()) {
    const double weight = 1.0 / static_cast<double>(groups_ * groups_);
    SAE_TRY_VOID(device_.launch(
        DecodePrefixes{codes, own_->w_dec(), own_->b_dec(), x.values, d_out_, groups_,
                       group_end_.as<std::int64_t>(), static_cast<float>(mean * weight), weight,
                       error, g, squares, prefixes},
        rows));
  } else {
    DecodeRow decode{};
    decode.codes = codes;
    decode.w_dec = own_->w_dec();
    decode.b_dec = own_->b_dec();
    decode.x = wanted.values;
    decode.width = d_out_;
    decode.stride = wanted.stride;
    decode.factor = static_cast<float>(mean);
    decode.error = error;
    decode.g = g;
    decode.square = squares;
    if (predicts()) {
      SAE_TRY(auto* const factor, session_.scratch<float>("factor of the prediction", 1));
      SAE_TRY_VOID(device_.launch(ScaleByVariance{wanted.variance, 1, factor}, 1));
      decode.factor_there = factor;
    }
    if (skips()) {
      SAE_TRY(decode.residual, skipped(reads, rows));
    }
    SAE_TRY_VOID(device_.launch(decode, rows));
    if (skips()) SAE_TRY_VOID(grade_skip(g, reads, rows));
  }
  SAE_TRY_VOID(gather(codes, rows, rows * k_, g, groups_, read, /*add=*/false, nullptr));
  SAE_TRY_VOID(advance_silence(fired, rows, dead_after, dead));

  SumPass sum{};
  sum.rows = rows;
  sum.row_squares = squares;
  sum.row_prefixes = is_nested() ? prefixes : nullptr;
  sum.share_of_variance = predicts();
  sum.counts = codes.count;
  sum.smallest = smallest;
  sum.over_batch = over_batch();
  sum.variance = wanted.variance;
  sum.weight = spec_.aux_k_weight;
  sum.sums = own_->sums();
  if (revives()) {
    // Dead latents reconstruct the residual, held still. Where none is dead, nothing is done.
    SAE_TRY(auto* const variance, session_.scratch<double>("variance of the residual", 1));
    SAE_TRY(auto* const factor, session_.scratch<float>("factor of the revival", 1));
    SAE_TRY(auto* const missed, session_.scratch<double>("squares of what is missed", rows));
    SAE_TRY(const CodeLists revived, lists("revived", rows, rows * aux_k()));
    SAE_TRY(auto* const g_of_dead,
            session_.scratch<float>("gradient of the revival", rows * d_out_));
    SAE_TRY(auto* const least, session_.scratch<float>("smallest revived", rows));
    SAE_TRY_VOID(session_.variance(error, rows, d_out_, d_out_, variance));
    SAE_TRY_VOID(device_.launch(ScaleByVariance{variance, spec_.aux_k_weight, factor}, 1));
    Candidates silent = all;
    silent.silence = own_->next_silence();
    silent.dead_after = dead_after;
    SAE_TRY_VOID(device_.launch(
        SelectRow{silent, aux_k(), aux_k(), dead, revived, least, nullptr, nullptr}, rows));
    SAE_TRY_VOID(device_.launch(DecodeRow{revived, own_->w_dec(), nullptr, nullptr, error, d_out_,
                                          d_out_, 0, factor, dead, nullptr, g_of_dead, missed},
                                rows));
    SAE_TRY_VOID(gather(revived, rows, rows * aux_k(), g_of_dead, 1, read, /*add=*/true, dead));
    sum.dead = dead;
    sum.missed_squares = missed;
    sum.residual_variance = variance;
  }
  SAE_TRY_VOID(device_.launch(sum, 1));
  // b_dec is in every prefix.
  return grade_b_dec(g, rows, groups_ * d_out_, subtracts() ? own_->b_enc_gradient() : nullptr);
}

}  // namespace

Result<std::unique_ptr<StepEngine>> make_sparse_engine(Session& session,
                                                       const sweeps::TrainingSpec& spec,
                                                       const std::vector<RowPart>& parts) {
  const Parameters::Shape shape = shape_of(spec, parts);
  std::vector<Parameters::More> more;
  if (spec.architecture == sweeps::Architecture::kSkipTranscoder)
    more.push_back({"W_skip", shape.d_out, shape.d_in});
  SAE_TRY(auto parameters, Parameters::allocate(session, shape, std::move(more)));
  std::vector<std::int64_t> group_end;
  std::int64_t end = 0;
  for (const std::uint64_t size : spec.group_sizes())
    group_end.push_back(end += static_cast<std::int64_t>(size));
  auto engine = std::make_unique<SparseEngine>(session, spec, std::move(parameters));
  SAE_TRY_VOID(engine->prepare(group_end));
  return engine;
}

}  // namespace saesweep::worker::device
