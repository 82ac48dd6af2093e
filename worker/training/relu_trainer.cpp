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
#include <optional>

#include "worker/training/dense_trainer.h"
#include "worker/training/kernels.h"

namespace saesweep::worker {
namespace {

class ReluTrainer final : public DenseTrainer {
 public:
  ReluTrainer(const sweeps::TrainingSpec& spec, const std::vector<RowPart>& parts, ThreadPool& pool)
      : DenseTrainer(spec, parts, pool,
                     weighs_norms(spec.architecture) ? DecoderNorm::kFree : DecoderNorm::kUnit,
                     crosses(spec.architecture) ? 0.08F : 0.1F) {
    if (spec.architecture == sweeps::Architecture::kPAnneal) annealing_.emplace(spec);
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
  at::Tensor part_norms() const;
  PassSums pass(const at::Tensor& x) override;
  // A batch on its way through a pass.
  struct Batch {
    const float* x;
    CentredRows read;          // x - b_dec
    double scale;              // of the penalty, of a mean over rows
    std::vector<float> pulls;  // of the penalty on each latent, padded, unless it is curved
    bool curved;
  };
  struct Sums {
    DecodeSums decoded;
    Annealing::Penalty penalty;     // only if curved
    std::vector<double> f_columns;  // by latent
  };
  // Both fill the gradients of W_dec (of the reconstruction), W_enc and b_enc.
  Sums dense(const Batch& batch_in, const Slabs& f);
  Sums sparse(const Batch& batch_in, const SparseCodes& codes);
  // The penalty pulls on the norms of the decoder's rows too.
  void pull_norms(const Batch& batch_in, const std::vector<double>& f_columns,
                  const at::Tensor& norms);

  void draw() override;
  Json config() const override;
  void finish_sae(Sae& sae) const override;
  bool folds_decoder_norms() const override { return !crosses(); }
};

at::Tensor ReluTrainer::part_norms() const {
  const std::int64_t d = d_in(), of_part = part_width(), parts = d / of_part;
  at::Tensor norms = at::empty({d_sae(), parts}, at::kFloat);
  const float* rows = parameters_.w_dec.const_data_ptr<float>();
  float* out = norms.mutable_data_ptr<float>();
  for_blocks([&](std::int64_t first, std::int64_t count, std::int64_t) {
    for (std::int64_t at = first * parts; at < (first + count) * parts; ++at)
      out[at] =
          static_cast<float>(std::sqrt(kernels::sum_of_squares(rows + at * of_part, of_part)));
  });
  return norms;
}

ReluTrainer::Sums ReluTrainer::dense(const Batch& batch_in, const Slabs& f) {
  const std::int64_t d = d_in(), width = d_sae(), rows = batch();
  const Slabs d_z(rows, width);
  const products::Scratch g(rows * d);  // gradient of the reconstruction
  const float* b_dec = parameters_.b_dec.const_data_ptr<float>();
  const PackedDecoder decoder =
      pack_decoder(*pool_, parameters_.w_dec.const_data_ptr<float>(), width, d, numbers_of(spec_));
  struct TileSums {
    DecodeSums decoded;
    Annealing::Penalty penalty;
    std::vector<float> f, d_z;  // by latent, padded
  };
  std::vector<TileSums> tile_sums(static_cast<std::size_t>(tiles()));
  for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    TileSums& sum = tile_sums[static_cast<std::size_t>(index)];
    float* gradient = g.data() + first * d;
    {
      const products::Scratch error(count * d);
      decode_tile(decoder.forth, f, first, count, error.data());
      sum.decoded = finish_tile(b_dec, batch_in.x + first * d,
                                static_cast<float>(2.0 / static_cast<double>(rows)), count, d,
                                error.data(), gradient);
    }
    std::optional<Slabs> pulls;
    if (batch_in.curved) {
      pulls.emplace(count, width);
      annealing_->bend_tile(f, first, count, width, batch_in.scale, *pulls, sum.penalty);
    }
    sum.f.assign(batch_in.pulls.size(), 0);
    sum.d_z.assign(batch_in.pulls.size(), 0);
    decode_back_tile(
        decoder.back, gradient, count,
        [&](std::int64_t row, std::int64_t latent, const float* d_f, std::int64_t height) {
          const auto column = static_cast<std::size_t>(latent);
          dense_blocks::relu_backward(f.block(first + row, latent), d_f,
                                      pulls ? pulls->block(row, latent) : &batch_in.pulls[column],
                                      pulls ? Slabs::kSlab : 0, d_z.block(first + row, latent),
                                      {&sum.f[column], &sum.d_z[column]}, height);
        });
  });

  Sums sums;
  sums.f_columns.assign(static_cast<std::size_t>(width), 0);
  std::vector<double> b_enc(static_cast<std::size_t>(width), 0);
  for (const TileSums& tile : tile_sums) {
    sums.decoded.add(tile.decoded);
    sums.penalty.now += tile.penalty.now;
    sums.penalty.next += tile.penalty.next;
    add_to(sums.f_columns, tile.f);
    add_to(b_enc, tile.d_z);
  }
  store(b_enc, gradients_.b_enc);
  dense_weight_gradients(f, d_z, g.data(), batch_in.read);
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
  std::vector<Annealing::Penalty> penalties(decoded.size());
  for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    const auto tile = static_cast<std::size_t>(index);
    decoded[tile] = decode_rows(codes, decoder, batch_in.x, batch_in.read.data,
                                static_cast<float>(2.0 / static_cast<double>(rows)), first, count,
                                error.data(), d_codes, &g_and_x);
    std::vector<float> f, pull;
    for (std::int64_t row = first; row < first + count; ++row) {
      const auto begin = static_cast<std::size_t>(codes.begin(row));
      const auto active = static_cast<std::size_t>(codes.end(row)) - begin;
      if (batch_in.curved) {
        f.resize(active);
        pull.resize(active);
        for (std::size_t i = 0; i < active; ++i) f[i] = codes.entries[begin + i].value;
        annealing_->bend(f, batch_in.scale, pull, penalties[tile]);
      }
      for (std::size_t i = 0; i < active; ++i)
        d_codes[begin + i] +=
            batch_in.curved
                ? pull[i]
                : batch_in.pulls[static_cast<std::size_t>(codes.entries[begin + i].latent)];
    }
  });
  sparse_weight_gradients(codes, d_codes, g_and_x, /*add=*/false);
  Sums sums;
  sums.f_columns.assign(static_cast<std::size_t>(d_sae()), 0);
  for (const auto& code : codes.entries)
    sums.f_columns[static_cast<std::size_t>(code.latent)] += code.value;
  for (std::size_t tile = 0; tile < decoded.size(); ++tile) {
    sums.decoded.add(decoded[tile]);
    sums.penalty.now += penalties[tile].now;
    sums.penalty.next += penalties[tile].next;
  }
  return sums;
}

void ReluTrainer::pull_norms(const Batch& batch_in, const std::vector<double>& f_columns,
                             const at::Tensor& norms) {
  const std::int64_t d = d_in(), of_part = part_width(), parts = d / of_part;
  const float* norm = norms.const_data_ptr<float>();
  const float* rows = parameters_.w_dec.const_data_ptr<float>();
  float* out = gradients_.w_dec.mutable_data_ptr<float>();
  for_blocks([&](std::int64_t first, std::int64_t count, std::int64_t) {
    for (std::int64_t latent = first; latent < first + count; ++latent) {
      const double mean = f_columns[static_cast<std::size_t>(latent)] * batch_in.scale;
      for (std::int64_t part = 0; part < parts; ++part) {
        const float own = norm[latent * parts + part];
        const std::int64_t at = latent * d + part * of_part;
        if (own > 0) kernels::axpy(static_cast<float>(mean / own), rows + at, out + at, of_part);
      }
    }
  });
}

PassSums ReluTrainer::pass(const at::Tensor& x) {
  const double scale = sparsity_scale() * coefficient();
  const auto inverse_rows = 1.0 / static_cast<double>(batch());
  std::optional<products::Scratch> x_centred;
  if (!crosses()) x_centred.emplace(centred(x));
  at::Tensor norm, norms_of_parts;  // of decoder rows, where the penalty weighs them
  if (weighs_norms(spec_.architecture)) {
    norms_of_parts = part_norms();
    norm = norms_of_parts.sum(1);
  } else {
    norm = at::ones({d_sae()}, at::kFloat);
  }
  const auto scaled = static_cast<float>(scale * inverse_rows);
  const at::Tensor pulls = norm * scaled;
  const float* x_values = x.const_data_ptr<float>();
  const Batch batch_in{.x = x_values,
                       .read = rows_of_batch(x_centred ? x_centred->data() : x_values),
                       .scale = scale * inverse_rows,
                       .pulls = products::padded(pulls.const_data_ptr<float>(), d_sae(), 0),
                       .curved = annealing_ && annealing_->is_curved()};
  const PackedEncoder encoder = packed_encoder();

  PassSums result;
  std::optional<Slabs> f;
  const auto encode_everything = [&] {
    f.emplace(batch(), d_sae());
    return encode_all(batch_in.read, encoder,
                      [&](std::int64_t row, std::int64_t latent, const float* z,
                          std::int64_t height, dense_blocks::Seen& seen) {
                        dense_blocks::relu_forward(z,
                                                   &encoder.bias[static_cast<std::size_t>(latent)],
                                                   f->block(row, latent), height, seen);
                      });
  };
  const Found found = find(batch_in.read, encoder, encode_everything);
  result.finite = found.finite;
  Sums sums = found.few ? sparse(batch_in, *found.few) : dense(batch_in, *f);

  std::vector<char> fired(static_cast<std::size_t>(d_sae()), 0);
  for (std::size_t i = 0; i < fired.size(); ++i) fired[i] = sums.f_columns[i] > 0 ? 1 : 0;
  if (norms_of_parts.defined()) pull_norms(batch_in, sums.f_columns, norms_of_parts);
  if (!batch_in.curved) {
    const float* norms = norm.const_data_ptr<float>();
    for (std::size_t i = 0; i < sums.f_columns.size(); ++i)
      sums.penalty.now += sums.f_columns[i] * norms[i];
  }
  if (!crosses())  // its encoder reads x itself
    subtract_through_encoder(gradients_.b_enc.const_data_ptr<float>(), sums.decoded.g_columns);
  store(sums.decoded.g_columns, gradients_.b_dec);
  last_penalty_ = {sums.penalty.now * inverse_rows, sums.penalty.next * inverse_rows};
  result.reconstruction = sums.decoded.squared_error * inverse_rows;
  result.sparsity = last_penalty_.now * scale;
  result.l0 = static_cast<double>(found.above) * inverse_rows;
  result.fve = variance_explained(x, sums.decoded.squared_error);
  next_silence_ = advance_silence(fired);
  return result;
}

void ReluTrainer::draw() {
  if (!crosses()) return TrainerBase::draw();
  draw_directions(parameters_.w_dec, "init.w_dec", part_width(), 0.08);
  parameters_.w_enc.copy_(parameters_.w_dec);
}

Json ReluTrainer::config() const {
  Json json = TrainerBase::config();
  if (crosses()) describe_parts(json);
  return json;
}

void ReluTrainer::finish_sae(Sae& sae) const {
  sae.selection = Sae::Selection::kRelu;
  if (!crosses()) return;
  fold_parts(sae);
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
