// The ReLU family: an encoder with ReLU and a penalty on its activations.
//   standard          penalty l1 * f_i |W_dec_i|, decoder free      (Anthropic, April 2024)
//   standard_bricken  penalty l1 * f_i, decoder rows of unit norm   (Bricken et al. 2023)
//   p_anneal          penalty l1 * f_i^p while p falls, unit norm   (Karvonen et al. 2024)
//   crosscoder        several hooks side by side in a row, each with its own decoder rows: penalty
//                     l1 * f_i sum_m |W_dec_m_i|, decoders free, b_dec not subtracted from what is
//                     read                                          (Lindsey et al. 2024)
// As dictionary_learning trains them, crosscoders as ckkissane/crosscoder-model-diff-replication;
// the recipe states every reduction.
//
// While many latents are active a pass is five dense products; once few are, only the encoder's
// product is dense and the rest touches what is active. Which, the batch's own L0 decides.
#include <ATen/ATen.h>

#include <cmath>
#include <deque>

#include "worker/training/kernels.h"
#include "worker/training/packing.h"
#include "worker/training/selection.h"
#include "worker/training/slabs.h"
#include "worker/training/sparse_passes.h"
#include "worker/training/trainer_base.h"

namespace saesweep::worker {
namespace {

constexpr std::size_t kQueue = 10;  // steps whose penalties rescale the coefficient
// Four dense products cost what the sparse passes cost at this share of active latents; part of the
// numerics.
constexpr double kSparseBelow = 1.0 / 16;

class ReluTrainer final : public TrainerBase {
 public:
  ReluTrainer(const sweeps::TrainingSpec& spec, const std::vector<RowPart>& parts, ThreadPool& pool)
      : TrainerBase(spec, parts, pool,
                    weighs_norms(spec.architecture) ? DecoderNorm::kFree : DecoderNorm::kUnit,
                    crosses(spec.architecture) ? 0.08F : 0.1F),
        anneals_(spec.architecture == sweeps::Architecture::kPAnneal),
        l1_(spec.l1.value_or(0)),
        p_(spec.p_start) {
    if (!anneals_) return;
    // torch.linspace, with its roundings.
    const auto n = static_cast<std::int64_t>(spec.n_sparsity_updates);
    const at::Tensor steps = at::linspace(static_cast<std::int64_t>(spec.anneal_start),
                                          static_cast<std::int64_t>(spec.anneal_end), n, at::kLong);
    const at::Tensor values = at::linspace(spec.p_start, spec.p_end, n, at::kFloat);
    for (std::int64_t i = 0; i < n; ++i) {
      update_steps_.push_back(static_cast<std::uint64_t>(steps.const_data_ptr<std::int64_t>()[i]));
      p_values_.push_back(values.const_data_ptr<float>()[i]);
    }
  }

 private:
  static bool crosses(sweeps::Architecture architecture) {
    return architecture == sweeps::Architecture::kCrosscoder;
  }
  static bool weighs_norms(sweeps::Architecture architecture) {
    return architecture == sweeps::Architecture::kStandard || crosses(architecture);
  }
  bool crosses() const { return crosses(spec_.architecture); }
  // Values of one hook in a row.
  std::int64_t part_width() const { return parts_.front().width; }
  // |W_dec_m_i| of each latent and hook, [d_sae, hooks].
  at::Tensor part_norms(const at::Tensor& w_dec) const {
    if (!crosses()) return w_dec.square().sum(1, /*keepdim=*/true).sqrt();
    return w_dec.view({d_sae(), -1, part_width()}).square().sum(2).sqrt();
  }
  PassSums pass(const at::Tensor& x) override;
  // A batch on its way through a pass.
  struct Batch {
    const at::Tensor& x;
    CentredRows rows;  // x - b_dec
    const PackedEncoder& encode;
    const float* norm;         // of decoder rows, where the penalty weighs them
    double scale;              // of the penalty, of a mean over rows
    std::vector<float> pulls;  // of the penalty on each latent, unless it is curved
    bool curved;
  };
  struct Sums {
    double squared_error = 0, penalty = 0, next_penalty = 0;  // penalties only if curved
    std::vector<double> g_columns;                            // gradient of the reconstruction
    std::vector<double> f_columns;                            // by latent
  };
  // Both fill the gradients of W_dec (of the reconstruction), W_enc and b_enc.
  Sums dense(const Batch& batch_in, const Slabs& f);
  Sums sparse(const Batch& batch_in, const SparseCodes& codes);
  // f = relu of all pre-activations. Returns how many are > 0; nothing if one is not finite.
  std::optional<std::int64_t> encode_all(const Batch& batch_in, const Slabs& f) const;
  SparseCodes positive(const Slabs& f) const;
  bool is_sparse(double active) const {
    return active < kSparseBelow * static_cast<double>(batch()) * static_cast<double>(d_sae());
  }

  // The pull on each latent of a row under a penalty of powers, scaled; adds up the row's penalty
  // at p and at the next p. For all latents of a row or the active ones.
  void bend(const float* f, double scale, std::vector<double>& powers, std::vector<float>& pull,
            double& penalty, double& next_penalty) const;
  void keep_bookkeeping() override;
  Json state() const override;
  Result<void> set_state(const Json& json) override;
  void draw() override;
  Json config() const override;
  void finish_sae(Sae& sae) const override;
  bool folds_decoder_norms() const override { return !crosses(); }

  // Sums of f^p over a row and what they become: as they are (lp_p) or their 1/p-th power (lp).
  double penalty_of_row(double sum, double p) const {
    return spec_.sparsity_function == sweeps::SparsityFunction::kLp ? std::pow(sum, 1 / p) : sum;
  }

  bool anneals_;
  double l1_;  // rescaled as p falls
  double p_;
  std::optional<double> next_p_;
  std::vector<std::uint64_t> update_steps_;      // at which p moves on
  std::vector<double> p_values_;                 // and to what
  std::uint64_t updates_ = 0;                    // of p so far
  std::deque<std::pair<double, double>> queue_;  // mean penalty at p and at next_p
  std::pair<double, double> last_penalties_{};   // of the last pass
  bool expect_sparse_ = false;                   // as the last batch was: speed only
};

void ReluTrainer::bend(const float* f, double scale, std::vector<double>& powers,
                       std::vector<float>& pull, double& penalty, double& next_penalty) const {
  double sum = 0, next = 0;
  for (std::size_t i = 0; i < powers.size(); ++i) {
    if (!(f[i] > 0)) continue;
    const double value = f[i];
    powers[i] = p_ == 1 ? value : std::pow(value, p_);
    sum += powers[i];
    if (next_p_) next += std::pow(value, *next_p_);
  }
  double outer = p_;  // d penalty / d f = outer * f^(p - 1)
  if (spec_.sparsity_function == sweeps::SparsityFunction::kLp)
    outer = sum > 0 ? std::pow(sum, 1 / p_ - 1) : 0;
  // f^(p - 1) is infinite at 0, where nothing pulls.
  for (std::size_t i = 0; i < powers.size(); ++i)
    if (f[i] > 0) pull[i] = static_cast<float>(scale * outer * powers[i] / f[i]);
  penalty += penalty_of_row(sum, p_);
  if (next_p_) next_penalty += penalty_of_row(next, *next_p_);
}

std::optional<std::int64_t> ReluTrainer::encode_all(const Batch& batch_in, const Slabs& f) const {
  const std::int64_t d = d_in(), width = d_sae();
  std::vector<std::int64_t> active(static_cast<std::size_t>(tiles()), 0);
  std::vector<float> checks(active.size(), 0);
  for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    const auto left = left_operand(rows_of(batch_in.rows.data + first * d, d), count, d,
                                   batch_in.encode.panels.numbers());
    std::int64_t found = 0;
    float check = 0;
    products::for_each_block(
        left, batch_in.encode.panels,
        [&](std::int64_t row, std::int64_t latent, const float* block) {
          const std::int64_t height = std::min(products::kBlockRows, count - row);
          const std::int64_t wide = std::min(products::kBlockColumns, width - latent);
          for (std::int64_t i = 0; i < height; ++i)
            found += kernels::relu_of(block + i * products::kBlockColumns,
                                      &batch_in.encode.bias[static_cast<std::size_t>(latent)],
                                      f.at(first + row + i, latent), check, wide);
        });
    active[static_cast<std::size_t>(index)] = found;
    checks[static_cast<std::size_t>(index)] = check;
  });
  std::int64_t total = 0;
  for (const std::int64_t of_tile : active) total += of_tile;
  for (const float check : checks)
    if (check != 0 || std::isnan(check)) return std::nullopt;
  return total;
}

SparseCodes ReluTrainer::positive(const Slabs& f) const {
  std::vector<std::vector<kernels::Code>> found(static_cast<std::size_t>(tiles()));
  std::vector<std::int64_t> counts(static_cast<std::size_t>(batch()));
  for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    auto& out = found[static_cast<std::size_t>(index)];
    for (std::int64_t row = first; row < first + count; ++row) {
      const std::size_t before = out.size();
      for (std::int64_t latent = 0; latent < d_sae(); latent += Slabs::kSlab) {
        const std::size_t of_slab = out.size();
        kernels::collect_above(f.at(row, latent), std::min(Slabs::kSlab, d_sae() - latent), 0, out);
        for (std::size_t i = of_slab; i < out.size(); ++i)
          out[i].latent += static_cast<std::int32_t>(latent);
      }
      counts[static_cast<std::size_t>(row)] = static_cast<std::int64_t>(out.size() - before);
    }
  });
  SparseCodes codes;
  codes.assign(counts, found);
  return codes;
}

ReluTrainer::Sums ReluTrainer::dense(const Batch& batch_in, const Slabs& f) {
  const std::int64_t d = d_in(), width = d_sae(), rows = batch();
  const products::Numbers numbers = batch_in.encode.panels.numbers();
  const Slabs d_pre(rows, width);       // gradient of the pre-activations
  const products::Scratch g(rows * d);  // gradient of the reconstruction
  const float* w_dec = parameters_.w_dec.const_data_ptr<float>();
  const float* b_dec = parameters_.b_dec.const_data_ptr<float>();
  const float* x = batch_in.x.const_data_ptr<float>();
  const products::Panels decode = right_operand(*pool_, columns_of(w_dec, d), d, width, numbers);
  const products::Panels decode_back = right_operand(*pool_, rows_of(w_dec, d), width, d, numbers);
  struct TileSums {
    double squared_error = 0, penalty = 0, next_penalty = 0;
    std::vector<double> g_columns;
    std::vector<float> f_columns, d_columns;
  };
  std::vector<TileSums> tile_sums(static_cast<std::size_t>(tiles()));
  for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    TileSums& sum = tile_sums[static_cast<std::size_t>(index)];
    const products::Scratch error(count * d);
    {
      products::Panels codes(count, width, products::kBlockRows, numbers);
      for (std::int64_t slab = 0; slab < codes.chunks(); ++slab)
        codes.pack_chunk(f.of_rows(first, slab), slab);
      products::multiply(codes, decode, error.data(), d);
    }
    float* gradient = g.data() + first * d;
    const auto factor = static_cast<float>(2.0 / static_cast<double>(rows));
    sum.g_columns.assign(static_cast<std::size_t>(d), 0);
    for (std::int64_t row = 0; row < count; ++row)
      for (std::int64_t j = 0; j < d; ++j) {
        float& e = error.data()[row * d + j];
        e = e + b_dec[j] - x[(first + row) * d + j];
        gradient[row * d + j] = e * factor;
        sum.g_columns[static_cast<std::size_t>(j)] += gradient[row * d + j];
      }
    sum.squared_error = kernels::sum_of_squares(error.data(), count * d);

    if (batch_in.curved) {
      // The pull waits where the gradient will stand.
      std::vector<float> f_row(static_cast<std::size_t>(width)), pull(f_row.size(), 0.0F);
      std::vector<double> powers(f_row.size());
      for (std::int64_t row = first; row < first + count; ++row) {
        for (std::int64_t latent = 0; latent < width; latent += Slabs::kSlab)
          std::copy_n(f.at(row, latent), std::min(Slabs::kSlab, width - latent),
                      f_row.begin() + latent);
        bend(f_row.data(), batch_in.scale, powers, pull, sum.penalty, sum.next_penalty);
        for (std::int64_t latent = 0; latent < width; latent += Slabs::kSlab)
          std::copy_n(pull.begin() + latent, std::min(Slabs::kSlab, width - latent),
                      d_pre.at(row, latent));
      }
    }
    sum.f_columns.assign(static_cast<std::size_t>(width), 0);
    sum.d_columns.assign(static_cast<std::size_t>(width), 0);
    products::for_each_block(
        left_operand(rows_of(gradient, d), count, d, numbers), decode_back,
        [&](std::int64_t row, std::int64_t latent, float* block) {
          const std::int64_t height = std::min(products::kBlockRows, count - row);
          const std::int64_t wide = std::min(products::kBlockColumns, width - latent);
          const auto column = static_cast<std::size_t>(latent);
          for (std::int64_t i = 0; i < height; ++i) {
            float* to = d_pre.at(first + row + i, latent);
            float* of_row = block + i * products::kBlockColumns;
            kernels::relu_row(f.at(first + row + i, latent),
                              batch_in.curved ? to : &batch_in.pulls[column], of_row,
                              &sum.f_columns[column], &sum.d_columns[column], wide);
            std::copy_n(of_row, wide, to);
          }
        });
  });

  Sums sums;
  sums.g_columns.assign(static_cast<std::size_t>(d), 0);
  sums.f_columns.assign(static_cast<std::size_t>(width), 0);
  std::vector<double> d_columns(static_cast<std::size_t>(width), 0);
  for (const TileSums& tile : tile_sums) {
    sums.squared_error += tile.squared_error;
    sums.penalty += tile.penalty;
    sums.next_penalty += tile.next_penalty;
    for (std::size_t j = 0; j < sums.g_columns.size(); ++j) sums.g_columns[j] += tile.g_columns[j];
    for (std::size_t i = 0; i < d_columns.size(); ++i) {
      sums.f_columns[i] += tile.f_columns[i];
      d_columns[i] += tile.d_columns[i];
    }
  }
  for (std::size_t i = 0; i < d_columns.size(); ++i)
    gradients_.b_enc.mutable_data_ptr<float>()[i] = static_cast<float>(d_columns[i]);
  const products::Panels g_right = right_operand(*pool_, columns_of(g.data(), d), d, rows, numbers);
  const products::Panels x_right =
      right_operand(*pool_, columns_of(batch_in.rows.data, d), d, rows, numbers);
  for_product_blocks([&](std::int64_t first, std::int64_t count, std::int64_t) {
    const auto gradient_of = [&](const Slabs& codes, const products::Panels& right, float* out) {
      products::Panels left(count, rows, products::kBlockRows, numbers);
      for (std::int64_t chunk = 0; chunk < left.chunks(); ++chunk)
        left.pack_chunk(codes.of_latents(first, chunk * products::kDepthChunk), chunk);
      products::multiply(left, right, out + first * d, d);
    };
    gradient_of(f, g_right, gradients_.w_dec.mutable_data_ptr<float>());
    gradient_of(d_pre, x_right, gradients_.w_enc.mutable_data_ptr<float>());
  });
  return sums;
}

ReluTrainer::Sums ReluTrainer::sparse(const Batch& batch_in, const SparseCodes& codes) {
  const std::int64_t d = d_in(), rows = batch();
  const Decoder decoder{parameters_.w_dec.const_data_ptr<float>(),
                        parameters_.b_dec.const_data_ptr<float>(), d};
  std::vector<float> d_codes(codes.entries.size());
  const products::Scratch error(rows * d);
  SlicedRows g_and_x(rows, d);
  std::vector<DecodeSums> decoded(static_cast<std::size_t>(tiles()));
  std::vector<std::pair<double, double>> penalties(decoded.size());  // at p, at the next p
  for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    const auto tile = static_cast<std::size_t>(index);
    decoded[tile] =
        decode_rows(codes, decoder, batch_in.x.const_data_ptr<float>(), batch_in.rows.data,
                    static_cast<float>(2.0 / static_cast<double>(rows)), first, count, error.data(),
                    d_codes, g_and_x);
    std::vector<float> f, pull;
    std::vector<double> powers;
    for (std::int64_t row = first; row < first + count; ++row) {
      const auto begin = static_cast<std::size_t>(codes.begin(row));
      const auto active = static_cast<std::size_t>(codes.end(row)) - begin;
      if (batch_in.curved) {
        f.resize(active);
        pull.resize(active);
        powers.resize(active);
        for (std::size_t i = 0; i < active; ++i) f[i] = codes.entries[begin + i].value;
        bend(f.data(), batch_in.scale, powers, pull, penalties[tile].first, penalties[tile].second);
      }
      for (std::size_t i = 0; i < active; ++i)
        d_codes[begin + i] +=
            batch_in.curved
                ? pull[i]
                : batch_in.pulls[static_cast<std::size_t>(codes.entries[begin + i].latent)];
    }
  });
  weight_gradients(
      *pool_, codes, d_codes, g_and_x, /*add=*/false,
      {gradients_.w_dec.mutable_data_ptr<float>(), gradients_.w_enc.mutable_data_ptr<float>(),
       gradients_.b_enc.mutable_data_ptr<float>(), d_sae()});
  Sums sums;
  sums.g_columns.assign(static_cast<std::size_t>(d), 0);
  sums.f_columns.assign(static_cast<std::size_t>(d_sae()), 0);
  for (const auto& code : codes.entries)
    sums.f_columns[static_cast<std::size_t>(code.latent)] += code.value;
  for (std::size_t tile = 0; tile < decoded.size(); ++tile) {
    sums.squared_error += decoded[tile].squared_error;
    sums.penalty += penalties[tile].first;
    sums.next_penalty += penalties[tile].second;
    for (std::size_t j = 0; j < sums.g_columns.size(); ++j)
      sums.g_columns[j] += decoded[tile].g_columns[j];
  }
  return sums;
}

PassSums ReluTrainer::pass(const at::Tensor& x) {
  const std::int64_t d = d_in(), width = d_sae(), rows = batch();
  const double scale = sparsity_scale() * l1_;
  const auto inverse_rows = 1.0 / static_cast<double>(rows);
  const products::Scratch x_centred(rows * d);
  for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t) {
    const float* b_dec = parameters_.b_dec.const_data_ptr<float>();
    const float* from = x.const_data_ptr<float>();
    for (std::int64_t row = first; row < first + count; ++row)
      for (std::int64_t j = 0; j < d; ++j)
        x_centred.data()[row * d + j] = from[row * d + j] - (crosses() ? 0.0F : b_dec[j]);
  });
  at::Tensor norms, norms_of_parts;
  if (weighs_norms(spec_.architecture)) {
    norms_of_parts = part_norms(parameters_.w_dec).contiguous();
    norms = crosses() ? norms_of_parts.sum(1) : norms_of_parts.view({-1});
  }
  const PackedEncoder encode =
      pack_encoder(*pool_, parameters_.w_enc.const_data_ptr<float>(),
                   parameters_.b_enc.const_data_ptr<float>(), width, d, numbers_of(spec_));
  Batch batch_in{.x = x,
                 .rows = {x_centred.data(), rows, d, kRowsPerTile},
                 .encode = encode,
                 .norm = norms.defined() ? norms.const_data_ptr<float>() : nullptr,
                 .scale = scale * inverse_rows,
                 .pulls = std::vector<float>(static_cast<std::size_t>(width)),
                 // While p is 1 and stays it, p_anneal has the penalty of standard_bricken.
                 .curved = anneals_ && (p_ != 1 || next_p_)};
  const float* norm = batch_in.norm;
  for (std::int64_t i = 0; i < width; ++i)
    batch_in.pulls[static_cast<std::size_t>(i)] =
        static_cast<float>(batch_in.scale) * (norm != nullptr ? norm[i] : 1.0F);

  // Pre-activations are the same bytes whichever way they are looked at, so that what is expected
  // changes the speed alone.
  PassSums result;
  Sums sums;
  std::int64_t active = 0;
  SparseCodes codes;
  bool counted = false;
  if (expect_sparse_) {
    result.finite = select_above(*pool_, batch_in.rows, encode, 0, codes);
    active = static_cast<std::int64_t>(codes.entries.size());
    counted = is_sparse(static_cast<double>(active));
  }
  if (counted) {
    sums = sparse(batch_in, codes);
  } else {
    const Slabs f(rows, width);
    const auto found = encode_all(batch_in, f);
    result.finite = found.has_value();
    active = found.value_or(0);
    expect_sparse_ = found && is_sparse(static_cast<double>(active));
    sums = expect_sparse_ ? sparse(batch_in, positive(f)) : dense(batch_in, f);
  }

  std::vector<char> fired(static_cast<std::size_t>(width), 0);
  for (std::size_t i = 0; i < fired.size(); ++i) fired[i] = sums.f_columns[i] > 0 ? 1 : 0;
  std::vector<std::vector<double>> through_encoder(static_cast<std::size_t>(product_blocks()));
  for_product_blocks([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    if (norm != nullptr) {
      // The penalty pulls on the decoder's norms too.
      float* rows_out = gradients_.w_dec.mutable_data_ptr<float>();
      for (std::int64_t latent = first; latent < first + count; ++latent) {
        const double mean = sums.f_columns[static_cast<std::size_t>(latent)] * batch_in.scale;
        const std::int64_t of_part = part_width(), parts = d / of_part;
        for (std::int64_t part = 0; part < parts; ++part) {
          const float own = norms_of_parts.const_data_ptr<float>()[latent * parts + part];
          if (own > 0)
            kernels::axpy(static_cast<float>(mean / own),
                          parameters_.w_dec.const_data_ptr<float>() + latent * d + part * of_part,
                          rows_out + latent * d + part * of_part, of_part);
        }
      }
    }
    if (crosses()) return;  // its encoder reads x alone
    auto& through = through_encoder[static_cast<std::size_t>(index)];
    through.assign(static_cast<std::size_t>(d), 0);
    const float* encoder = parameters_.w_enc.const_data_ptr<float>();
    for (std::int64_t latent = first; latent < first + count; ++latent) {
      const double pull = gradients_.b_enc.const_data_ptr<float>()[latent];
      for (std::int64_t j = 0; j < d; ++j)
        through[static_cast<std::size_t>(j)] += pull * encoder[latent * d + j];
    }
  });
  double penalty = sums.penalty;
  if (!batch_in.curved)
    for (std::size_t i = 0; i < sums.f_columns.size(); ++i)
      penalty += sums.f_columns[i] * (norm != nullptr ? norm[i] : 1.0F);
  // b_dec is subtracted before the encoder as well.
  std::vector<double>& b_dec = sums.g_columns;
  for (const auto& through : through_encoder)
    for (std::size_t j = 0; j < through.size(); ++j) b_dec[j] -= through[j];
  for (std::int64_t j = 0; j < d; ++j)
    gradients_.b_dec.mutable_data_ptr<float>()[j] =
        static_cast<float>(b_dec[static_cast<std::size_t>(j)]);
  result.reconstruction = sums.squared_error * inverse_rows;
  result.sparsity = penalty * inverse_rows * scale;
  result.l0 = static_cast<double>(active) * inverse_rows;
  result.fve = variance_explained(x, sums.squared_error);
  next_silence_ = advance_silence(fired);
  last_penalties_ = {penalty * inverse_rows, sums.next_penalty * inverse_rows};
  return result;
}

void ReluTrainer::keep_bookkeeping() {
  if (!anneals_) return;
  if (next_p_) {
    queue_.push_back(last_penalties_);
    if (queue_.size() > kQueue) queue_.pop_front();
  }
  if (updates_ >= update_steps_.size() || step_ < update_steps_[updates_]) return;
  if (next_p_) {
    // The penalty stays what it is while p falls.
    double now = 0, next = 0;
    for (const auto& [at_p, at_next] : queue_) {
      now += at_p;
      next += at_next;
    }
    if (next > 0) l1_ *= now / next;
  }
  p_ = p_values_[updates_];
  next_p_ = updates_ + 1 < p_values_.size() ? p_values_[updates_ + 1] : spec_.p_end;
  ++updates_;
}

void ReluTrainer::draw() {
  if (!crosses()) return TrainerBase::draw();
  draw_directions(parameters_.w_dec, "init.w_dec", part_width(), 0.08);
  parameters_.w_enc.copy_(parameters_.w_dec);
}

Json ReluTrainer::config() const {
  Json json = TrainerBase::config();
  if (!crosses()) return json;
  json["apply_b_dec_to_input"] = false;
  json["d_in"] = part_width();
  json.erase("normalization_factor");
  for (const RowPart& part : parts_) json["normalization_factors"].push_back(part.norm_factor);
  return json;
}

void ReluTrainer::finish_sae(Sae& sae) const {
  sae.selection = Sae::Selection::kRelu;
  if (!crosses()) return;
  // Each hook's rows were multiplied with its own factor; then a latent's norms over all hooks are
  // scaled to sum to 1, so that activations are in units of what they write.
  sae.apply_b_dec_to_input = false;
  sae.sources = static_cast<std::int64_t>(parts_.size());
  at::Tensor w_enc = parameters_.w_enc.to(at::kDouble, /*non_blocking=*/false, /*copy=*/true);
  at::Tensor w_dec = parameters_.w_dec.to(at::kDouble, false, true);
  at::Tensor b_dec = parameters_.b_dec.to(at::kDouble, false, true);
  for (std::int64_t part = 0; part < sae.sources; ++part) {
    const double factor = parts_[static_cast<std::size_t>(part)].norm_factor;
    const std::int64_t column = part * part_width();
    w_enc.narrow(1, column, part_width()).mul_(factor);
    w_dec.narrow(1, column, part_width()).div_(factor);
    b_dec.narrow(0, column, part_width()).div_(factor);
  }
  const at::Tensor sums = part_norms(w_dec).sum(1);
  const at::Tensor norms = at::where(sums.gt(0), sums, at::ones_like(sums));
  sae.w_enc = (w_enc * norms.unsqueeze(1)).to(at::kFloat);
  sae.b_enc = (parameters_.b_enc.to(at::kDouble) * norms).to(at::kFloat);
  sae.w_dec = (w_dec / norms.unsqueeze(1)).to(at::kFloat);
  sae.b_dec = b_dec.to(at::kFloat);
}

Json ReluTrainer::state() const {
  if (!anneals_) return Json::object();
  Json json{{"l1", l1_}, {"p", p_}, {"updates", updates_}, {"queue", Json::array()}};
  json["next_p"] = next_p_ ? Json(*next_p_) : Json();
  for (const auto& [at_p, at_next] : queue_) json["queue"].push_back({at_p, at_next});
  return json;
}

Result<void> ReluTrainer::set_state(const Json& json) {
  if (!anneals_) return {};
  for (const char* key : {"l1", "p", "updates"})
    if (!json.contains(key) || !json[key].is_number())
      return fail(ErrorCode::kCorrupted, "a checkpoint without state.{}", key);
  l1_ = json["l1"].get<double>();
  p_ = json["p"].get<double>();
  updates_ = json["updates"].get<std::uint64_t>();
  next_p_.reset();
  if (json.contains("next_p") && json["next_p"].is_number()) next_p_ = json["next_p"].get<double>();
  queue_.clear();
  for (const Json& pair : json.value("queue", Json::array())) {
    if (!pair.is_array() || pair.size() != 2 || !pair[0].is_number() || !pair[1].is_number())
      return fail(ErrorCode::kCorrupted, "a checkpoint with a damaged state.queue");
    queue_.emplace_back(pair[0].get<double>(), pair[1].get<double>());
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<SaeTrainer>> make_relu_trainer(const sweeps::TrainingSpec& spec,
                                                      const std::vector<RowPart>& parts,
                                                      ThreadPool& pool) {
  auto trainer = std::make_unique<ReluTrainer>(spec, parts, pool);
  SAE_TRY_VOID(trainer->initialise());
  return trainer;
}

}  // namespace saesweep::worker
