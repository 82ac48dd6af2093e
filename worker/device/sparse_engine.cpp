#include "worker/device/sparse_engine.h"

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "worker/device/parameters.h"

namespace saesweep::worker::device {
namespace {

class SparseEngine final : public StepEngine {
 public:
  // group_end: past the last latent of each prefix that reconstructs; d_sae alone where none does.
  SparseEngine(Session& session, const sweeps::TrainingSpec& spec, std::int64_t d_in,
               const std::vector<std::int64_t>& group_end, Parameters parameters)
      : session_(session),
        device_(session.device()),
        spec_(spec),
        d_(d_in),
        latents_(static_cast<std::int64_t>(spec.d_sae)),
        k_(static_cast<std::int64_t>(spec.k.value_or(1))),
        groups_(static_cast<std::int64_t>(group_end.size())),
        own_(std::move(parameters)) {}

  // Errors: kResourceExhausted; kUnavailable.
  Result<void> prepare(const std::vector<std::int64_t>& group_end) {
    const std::size_t bytes = group_end.size() * sizeof(std::int64_t);
    SAE_TRY_VOID(group_end_.reserve(device_, bytes));
    return device_.upload(group_end_.as<void>(), group_end.data(), bytes);
  }

  Result<void> write(const TrainerState& state) override { return own_.write(state); }
  Result<void> read(const TrainerState& state) const override { return own_.read(state); }
  Result<void> read_gradients(const SaeTensors& gradients) const override {
    return own_.read_gradients(gradients);
  }
  Result<StepFindings> step(const at::Tensor& x, const StepOrder& order) override;
  Result<StepFindings> look(const at::Tensor& rows, const StepOrder& order,
                            std::vector<char>& fired) override;

 private:
  bool over_batch() const { return spec_.architecture != sweeps::Architecture::kTopK; }
  bool is_nested() const { return groups_ > 1; }
  bool revives() const { return spec_.aux_k_weight > 0; }
  std::int64_t aux_k() const {
    return std::min(spec_.aux_k > 0 ? static_cast<std::int64_t>(spec_.aux_k)
                                    : std::max<std::int64_t>(1, d_ / 2),
                    latents_);
  }

  // Fills the gradients, the silence of after the step, and the sums.
  Result<void> pass(const Rows& x);
  Result<const float*> encode(const Rows& x, float* read);
  Result<void> select(const Candidates& all, std::int64_t rows, const CodeLists& codes,
                      float* smallest, std::uint8_t* fired);
  Result<CodeLists> lists(const std::string& purpose, std::int64_t rows, std::int64_t entries);
  // `groups`: of g.
  Result<void> gather(const CodeLists& codes, std::int64_t rows, std::int64_t entries,
                      const float* g, std::int64_t groups, const float* read, bool add,
                      const std::uint32_t* unless_none);

  Session& session_;
  Device& device_;
  sweeps::TrainingSpec spec_;
  std::int64_t d_, latents_, k_, groups_;
  Memory group_end_;
  Parameters own_;
};

Result<const float*> SparseEngine::encode(const Rows& x, float* read) {
  const bool rounded = spec_.precision == sweeps::Precision::kBFloat16;
  std::uint16_t *x_rounded = nullptr, *w_rounded = nullptr;
  if (rounded) {
    SAE_TRY(x_rounded, session_.scratch<std::uint16_t>("rounded rows", x.count * d_));
    SAE_TRY(w_rounded, session_.scratch<std::uint16_t>("rounded W_enc", latents_ * d_));
    SAE_TRY_VOID(device_.launch(RoundValues{own_.w_enc(), w_rounded, latents_ * d_},
                                blocks_of(latents_ * d_, RoundValues::kValues)));
  }
  SAE_TRY(auto* const z, session_.scratch<float>("pre-activations", x.count * latents_));
  SAE_TRY_VOID(device_.launch(CentreRow{x.values, own_.b_dec(), d_, d_, read, x_rounded}, x.count));
  Product product{};
  product.left = rounded ? static_cast<const void*>(x_rounded) : read;
  product.right = rounded ? static_cast<const void*>(w_rounded) : own_.w_enc();
  product.out = z;
  product.rows = x.count;
  product.columns = latents_;
  product.depth = d_;
  product.right_transposed = true;
  product.rounded = rounded;
  SAE_TRY_VOID(device_.multiply(product));
  return z;
}

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
  std::uint32_t* not_finite = &own_.sums()->not_finite;
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
      GatherGradients{touches, g, read, d_, d_, groups,
                      groups > 1 ? group_end_.as<std::int64_t>() : nullptr, own_.w_enc_gradient(),
                      own_.b_enc_gradient(), own_.w_dec_gradient(), add, unless_none},
      latents_);
}

Result<void> SparseEngine::pass(const Rows& x) {
  const std::int64_t rows = x.count;
  SAE_TRY_VOID(device_.clear(own_.sums(), sizeof(StepSums)));
  SAE_TRY(auto* const fired, session_.scratch<std::uint8_t>("fired", latents_));
  SAE_TRY_VOID(device_.clear(fired, static_cast<std::size_t>(latents_)));
  SAE_TRY(auto* const dead, session_.scratch<std::uint32_t>("dead", 1));
  SAE_TRY_VOID(device_.clear(dead, sizeof *dead));

  SAE_TRY(auto* const read, session_.scratch<float>("what the encoder reads", rows * d_));
  SAE_TRY(auto* const z, encode(x, read));
  const Candidates all{z, own_.b_enc(), latents_, nullptr, 0};
  SAE_TRY(const CodeLists codes, lists("codes", rows, rows * k_));
  SAE_TRY(auto* const smallest, session_.scratch<float>("smallest", rows));
  SAE_TRY_VOID(select(all, rows, codes, smallest, fired));

  SAE_TRY(auto* const error, session_.scratch<float>("error", rows * d_));
  SAE_TRY(auto* const g,
          session_.scratch<float>("gradient of the reconstruction", rows * groups_ * d_));
  SAE_TRY(auto* const squares, session_.scratch<double>("squared errors", rows));
  SAE_TRY(auto* const prefixes, session_.scratch<double>("squared errors of prefixes", rows));
  const double mean = 2.0 / static_cast<double>(rows);
  if (is_nested()) {
    const double weight = 1.0 / static_cast<double>(groups_ * groups_);
    SAE_TRY_VOID(device_.launch(
        DecodePrefixes{codes, own_.w_dec(), own_.b_dec(), x.values, d_, groups_,
                       group_end_.as<std::int64_t>(), static_cast<float>(mean * weight), weight,
                       error, g, squares, prefixes},
        rows));
  } else {
    SAE_TRY_VOID(
        device_.launch(DecodeRow{codes, own_.w_dec(), own_.b_dec(), x.values, nullptr, d_, d_,
                                 static_cast<float>(mean), nullptr, nullptr, error, g, squares},
                       rows));
  }
  SAE_TRY(auto* const direct, session_.scratch<double>("columns of the gradient", d_));
  // b_dec is in every prefix.
  SAE_TRY_VOID(session_.sum_columns(g, nullptr, rows, d_, groups_ * d_, direct));
  SAE_TRY_VOID(gather(codes, rows, rows * k_, g, groups_, read, /*add=*/false, nullptr));
  SAE_TRY_VOID(
      device_.launch(AdvanceSilence{fired, own_.silence(), own_.next_silence(), latents_, rows,
                                    static_cast<std::int64_t>(spec_.dead_after_tokens), dead},
                     blocks_of(latents_, AdvanceSilence::kThreads)));

  SumPass sum{};
  sum.rows = rows;
  sum.row_squares = squares;
  sum.row_prefixes = is_nested() ? prefixes : nullptr;
  sum.counts = codes.count;
  sum.smallest = smallest;
  sum.over_batch = over_batch();
  sum.variance = x.variance;
  sum.weight = spec_.aux_k_weight;
  sum.sums = own_.sums();
  if (revives()) {
    // Dead latents reconstruct the residual, held still. Where none is dead, nothing is done.
    SAE_TRY(auto* const variance, session_.scratch<double>("variance of the residual", 1));
    SAE_TRY(auto* const factor, session_.scratch<float>("factor of the revival", 1));
    SAE_TRY(auto* const missed, session_.scratch<double>("squares of what is missed", rows));
    SAE_TRY(const CodeLists revived, lists("revived", rows, rows * aux_k()));
    SAE_TRY(auto* const least, session_.scratch<float>("smallest revived", rows));
    SAE_TRY_VOID(session_.variance(error, rows, d_, variance));
    SAE_TRY_VOID(device_.launch(ScaleRevival{variance, spec_.aux_k_weight, factor}, 1));
    Candidates silent = all;
    silent.silence = own_.next_silence();
    silent.dead_after = static_cast<std::int64_t>(spec_.dead_after_tokens);
    SAE_TRY_VOID(device_.launch(
        SelectRow{silent, aux_k(), aux_k(), dead, revived, least, nullptr, nullptr}, rows));
    SAE_TRY_VOID(device_.launch(DecodeRow{revived, own_.w_dec(), nullptr, nullptr, error, d_, d_, 0,
                                          factor, dead, nullptr, g, missed},
                                rows));
    SAE_TRY_VOID(gather(revived, rows, rows * aux_k(), g, 1, read, /*add=*/true, dead));
    sum.dead = dead;
    sum.missed_squares = missed;
    sum.residual_variance = variance;
  }
  SAE_TRY_VOID(device_.launch(sum, 1));
  SAE_TRY(auto* const through, session_.scratch<double>("columns through the encoder", d_));
  SAE_TRY_VOID(
      session_.sum_columns(own_.w_enc(), own_.b_enc_gradient(), latents_, d_, d_, through));
  return device_.launch(GradeBias{direct, through, d_, own_.b_dec_gradient()},
                        blocks_of(d_, GradeBias::kThreads));
}

Result<StepFindings> SparseEngine::step(const at::Tensor& x, const StepOrder& order) {
  SAE_TRY(const Rows rows, session_.stream_rows(x, order.step * spec_.batch));
  SAE_TRY_VOID(pass(rows));
  Parameters::Update update{};
  update.rates = adam_rates(spec_, order);
  update.clip = spec_.grad_clip.value_or(0);
  update.unit_norm = true;
  update.projection_epsilon = 1e-6;
  update.norm_epsilon = static_cast<double>(std::numeric_limits<float>::epsilon());
  update.rows = rows.count;
  update.dead_after = order.dead_after;
  SAE_TRY_VOID(own_.update(session_, update));
  return own_.findings(rows.count);
}

Result<StepFindings> SparseEngine::look(const at::Tensor& x, const StepOrder&,
                                        std::vector<char>& fired) {
  SAE_TRY(const Rows rows, session_.other_rows(x));
  SAE_TRY_VOID(pass(rows));
  SAE_TRY_VOID(session_.read_fired(latents_, fired));
  return own_.findings(rows.count);
}

}  // namespace

Result<std::unique_ptr<StepEngine>> make_sparse_engine(Session& session,
                                                       const sweeps::TrainingSpec& spec,
                                                       std::int64_t d_in) {
  SAE_TRY(auto parameters, Parameters::allocate(session.device(),
                                                static_cast<std::int64_t>(spec.d_sae), d_in, d_in));
  std::vector<std::int64_t> group_end;
  std::int64_t end = 0;
  for (const std::uint64_t size : spec.group_sizes())
    group_end.push_back(end += static_cast<std::int64_t>(size));
  if (group_end.empty()) group_end = {static_cast<std::int64_t>(spec.d_sae)};
  auto engine =
      std::make_unique<SparseEngine>(session, spec, d_in, group_end, std::move(parameters));
  SAE_TRY_VOID(engine->prepare(group_end));
  return engine;
}

}  // namespace saesweep::worker::device
