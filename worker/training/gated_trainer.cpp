// The gated family: one encoder decides whether a latent speaks (the gate) and, scaled and shifted,
// how loud (the magnitude), so that the penalty on the gate shrinks no reconstruction.
//   gated           penalty l1 * relu(gate)     (Rajamanoharan et al. 2024, arXiv 2404.16014)
//   gated_p_anneal  penalty l1 * relu(gate)^p while p falls  (Karvonen et al. 2024)
// As dictionary_learning trains them; the recipe states every reduction.
//
// The main reconstruction gives the gate no gradient. It learns from the penalty and from an
// auxiliary reconstruction out of relu(gate), through a decoder that is held still.
#include <ATen/ATen.h>

#include <algorithm>
#include <optional>
#include <span>

#include "worker/training/dense_trainer.h"

namespace saesweep::worker {
namespace {

class GatedTrainer final : public DenseTrainer {
 public:
  GatedTrainer(const sweeps::TrainingSpec& spec, std::int64_t d_in, double norm_factor,
               ThreadPool& pool)
      : DenseTrainer(spec, d_in, norm_factor, pool, DecoderNorm::kUnit, 1.0F) {
    if (spec.architecture == sweeps::Architecture::kGatedPAnneal) annealing_.emplace(spec);
    add_parameter("b_mag", {d_sae()});
    add_parameter("r_mag", {d_sae()});
  }

 private:
  struct TileSums {
    DecodeSums decoded;
    double auxiliary = 0;        // squared error of the gates' reconstruction
    Annealing::Penalty penalty;  // only if curved
    std::vector<float> b_gate, b_mag, r_mag, d_z, active, gates;  // as GatedSums, padded
    void resize(std::size_t n) {
      for (auto* each : {&b_gate, &b_mag, &r_mag, &d_z, &active, &gates}) each->assign(n, 0);
    }
  };
  // A batch on its way through a pass. What belongs to latents is padded.
  struct Batch {
    const float* x;
    CentredRows read;  // x - b_dec
    double scale;      // of the penalty, of a mean over rows
    bool curved;
    std::vector<float> ratio, b_mag, shift, pulls;
    float factor() const { return static_cast<float>(2.0 / static_cast<double>(read.rows)); }
  };

  PassSums pass(const at::Tensor& x) override;
  // Both fill the gradients of W_dec and W_enc. openings: the gates' pre-activations, which are
  // given up, and f, of all latents; codes: those of open gates.
  std::vector<TileSums> dense(const Batch& batch_in, const Slabs& openings, const Slabs& f);
  std::vector<TileSums> sparse(const Batch& batch_in, const SparseCodes& codes);
  void start_from(const Sae& sae) override {
    parameters_.b_enc.copy_(sae.b_gate * norm_factor_);
    parameters_.more.at("b_mag").copy_(sae.b_mag * norm_factor_);
    parameters_.more.at("r_mag").copy_(sae.r_mag);
  }
  void finish_sae(Sae& sae) const override {
    sae.selection = Sae::Selection::kGated;
    sae.b_gate = sae.b_enc;
    sae.b_enc.reset();
    sae.b_mag = folded(parameters_.more.at("b_mag"));
    sae.r_mag = parameters_.more.at("r_mag").clone();  // a ratio: no unit
  }
};

std::vector<GatedTrainer::TileSums> GatedTrainer::dense(const Batch& batch_in,
                                                        const Slabs& openings, const Slabs& f) {
  constexpr std::int64_t kHeight = products::kBlockRows;
  const std::int64_t d = d_in(), width = d_sae(), rows = batch();
  const float* b_dec = parameters_.b_dec.const_data_ptr<float>();
  const products::Scratch g(rows * d);  // gradient of the main reconstruction
  const PackedDecoder decoder =
      pack_decoder(*pool_, parameters_.w_dec.const_data_ptr<float>(), width, d, numbers_of(spec_));
  std::vector<TileSums> sums(static_cast<std::size_t>(tiles()));
  for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    TileSums& sum = sums[static_cast<std::size_t>(index)];
    // Gradients of both reconstructions, eight rows of the one and eight of the other in turn: a
    // block of the way back is followed by its like.
    const std::int64_t whole = (count + kHeight - 1) / kHeight * kHeight;
    const products::Scratch gradients(2 * whole * d);
    std::optional<Slabs> pulls;
    {
      const Slabs gates(count, width);
      for (std::int64_t latent = 0; latent < width; latent += Slabs::kSlab)
        dense_blocks::relu(openings.block(first, latent), gates.block(0, latent), count);
      if (batch_in.curved) {
        pulls.emplace(count, width);
        annealing_->bend_tile(gates, 0, count, width, batch_in.scale, *pulls, sum.penalty);
      }
      const products::Scratch error(count * d), of_gates(count * d);
      const float* x = batch_in.x + first * d;
      decode_tile(decoder.forth, gates, 0, count, error.data());
      sum.auxiliary =
          finish_tile(b_dec, x, batch_in.factor(), count, d, error.data(), of_gates.data())
              .squared_error;
      decode_tile(decoder.forth, f, first, count, error.data());
      float* of_codes = g.data() + first * d;
      sum.decoded = finish_tile(b_dec, x, batch_in.factor(), count, d, error.data(), of_codes);
      std::fill_n(gradients.data() + 2 * (whole - kHeight) * d, 2 * kHeight * d, 0.0F);
      for (std::int64_t row = 0; row < count; row += kHeight) {
        const std::int64_t values = std::min(kHeight, count - row) * d;
        std::copy_n(of_codes + row * d, values, gradients.data() + 2 * row * d);
        std::copy_n(of_gates.data() + row * d, values, gradients.data() + (2 * row + kHeight) * d);
      }
    }
    sum.resize(batch_in.ratio.size());
    alignas(64) float d_f[kHeight * products::kBlockColumns];
    decode_back_tile(
        decoder.back, gradients.data(), 2 * whole,
        [&](std::int64_t twice, std::int64_t latent, const float* d_gate, std::int64_t) {
          if (twice / kHeight % 2 == 0) return void(std::copy_n(d_gate, std::size(d_f), d_f));
          const std::int64_t row = (twice - kHeight) / 2;
          const auto at = static_cast<std::size_t>(latent);
          float* d_z = openings.block(first + row, latent);
          dense_blocks::gated_backward(d_z, f.block(first + row, latent), &batch_in.ratio[at],
                                       &batch_in.b_mag[at],
                                       pulls ? pulls->block(row, latent) : &batch_in.pulls[at],
                                       pulls ? Slabs::kSlab : 0, d_f, d_gate,
                                       {&sum.b_gate[at], &sum.b_mag[at], &sum.r_mag[at],
                                        &sum.d_z[at], &sum.active[at], &sum.gates[at]},
                                       std::min(kHeight, count - row));
        });
  });
  dense_weight_gradients(f, openings, g.data(), batch_in.read);
  return sums;
}

std::vector<GatedTrainer::TileSums> GatedTrainer::sparse(const Batch& batch_in,
                                                         const SparseCodes& gates) {
  const std::int64_t d = d_in(), rows = batch();
  const Decoder decoder{parameters_.w_dec.const_data_ptr<float>(),
                        parameters_.b_dec.const_data_ptr<float>(), d};
  const products::Scratch error(rows * d);
  SparseCodes codes = gates;
  std::vector<float> d_gates(codes.entries.size()), d_codes(codes.entries.size());
  SlicedRows g_and_x(rows, d);
  std::vector<TileSums> sums(static_cast<std::size_t>(tiles()));
  for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    TileSums& sum = sums[static_cast<std::size_t>(index)];
    sum.resize(batch_in.ratio.size());
    const auto begin = static_cast<std::size_t>(gates.begin(first));
    const auto open = static_cast<std::size_t>(gates.begin(first + count)) - begin;
    std::vector<float> openings(open), ratio(open), shift(open), f(open), pulls(open);
    for (std::size_t i = 0; i < open; ++i) {
      const kernels::Code& gate = gates.entries[begin + i];
      const auto latent = static_cast<std::size_t>(gate.latent);
      openings[i] = gate.value;
      ratio[i] = batch_in.ratio[latent];
      shift[i] = batch_in.shift[latent];
      pulls[i] = batch_in.pulls[latent];
    }
    dense_blocks::gated_codes(openings.data(), ratio.data(), shift.data(), f.data(), std::ssize(f));
    for (std::size_t i = 0; i < open; ++i) codes.entries[begin + i].value = f[i];
    if (batch_in.curved)
      for (std::int64_t row = first; row < first + count; ++row) {
        const auto from = static_cast<std::size_t>(gates.begin(row)) - begin;
        const auto n = static_cast<std::size_t>(gates.end(row) - gates.begin(row));
        annealing_->bend(std::span(openings).subspan(from, n), batch_in.scale,
                         std::span(pulls).subspan(from, n), sum.penalty);
      }
    sum.auxiliary = decode_rows(gates, decoder, batch_in.x, batch_in.read.data, batch_in.factor(),
                                first, count, error.data(), d_gates, nullptr)
                        .squared_error;
    sum.decoded = decode_rows(codes, decoder, batch_in.x, batch_in.read.data, batch_in.factor(),
                              first, count, error.data(), d_codes, &g_and_x);
    for (std::size_t i = 0; i < open; ++i) {
      const auto latent = static_cast<std::size_t>(gates.entries[begin + i].latent);
      const float of_magnitude = f[i] > 0 ? d_codes[begin + i] : 0.0F;
      const float of_gate = d_gates[begin + i] + pulls[i];
      const float both = of_magnitude * ratio[i] + of_gate;
      sum.b_gate[latent] += of_gate;
      sum.b_mag[latent] += of_magnitude;
      sum.r_mag[latent] += of_magnitude * (f[i] - batch_in.b_mag[latent]);
      sum.d_z[latent] += both;
      sum.active[latent] += f[i] > 0 ? 1.0F : 0.0F;
      sum.gates[latent] += openings[i];
      d_codes[begin + i] = both;
    }
  });
  sparse_weight_gradients(codes, d_codes, g_and_x, /*add=*/false);
  return sums;
}

PassSums GatedTrainer::pass(const at::Tensor& x) {
  const std::int64_t width = d_sae();
  const auto latents = static_cast<std::size_t>(width);
  const double inverse_rows = 1.0 / static_cast<double>(batch());
  const double scale = sparsity_scale() * coefficient();
  const products::Scratch x_centred = centred(x);
  const at::Tensor ratio = parameters_.more.at("r_mag").exp();
  const at::Tensor& b_mag = parameters_.more.at("b_mag");
  const at::Tensor shift = b_mag - ratio * parameters_.b_enc;
  const auto padded = [&](const at::Tensor& values) {
    return products::padded(values.const_data_ptr<float>(), width, 0);
  };
  const Batch batch_in{.x = x.const_data_ptr<float>(),
                       .read = rows_of_batch(x_centred.data()),
                       .scale = scale * inverse_rows,
                       .curved = annealing_ && annealing_->is_curved(),
                       .ratio = padded(ratio),
                       .b_mag = padded(b_mag),
                       .shift = padded(shift),
                       .pulls = std::vector<float>(latents + products::kBlockColumns,
                                                   static_cast<float>(scale * inverse_rows))};
  const PackedEncoder encoder = packed_encoder();

  std::optional<Slabs> openings, f;
  const auto encode_everything = [&] {
    openings.emplace(batch(), width);
    f.emplace(batch(), width);
    return encode_all(batch_in.read, encoder,
                      [&](std::int64_t row, std::int64_t latent, const float* z,
                          std::int64_t height, dense_blocks::Seen& seen) {
                        const auto at = static_cast<std::size_t>(latent);
                        dense_blocks::gated_forward(
                            z, &encoder.bias[at], &batch_in.ratio[at], &batch_in.shift[at],
                            openings->block(row, latent), f->block(row, latent), height, seen);
                      });
  };
  const Found found = find(batch_in.read, encoder, encode_everything);
  const std::vector<TileSums> sums =
      found.few ? sparse(batch_in, *found.few) : dense(batch_in, *openings, *f);

  PassSums result;
  result.finite = found.finite;
  DecodeSums decoded;
  double auxiliary = 0;
  Annealing::Penalty penalty;
  std::vector<double> of_gate(latents, 0), of_magnitude(latents, 0), of_ratio(latents, 0);
  std::vector<double> d_z(latents, 0), active(latents, 0), gates(latents, 0);
  for (const TileSums& sum : sums) {
    decoded.add(sum.decoded);
    auxiliary += sum.auxiliary;
    penalty.now += sum.penalty.now;
    penalty.next += sum.penalty.next;
    add_to(of_gate, sum.b_gate);
    add_to(of_magnitude, sum.b_mag);
    add_to(of_ratio, sum.r_mag);
    add_to(d_z, sum.d_z);
    add_to(active, sum.active);
    add_to(gates, sum.gates);
  }
  double active_in_all = 0;
  std::vector<char> fired(latents, 0);
  for (std::size_t i = 0; i < latents; ++i) {
    active_in_all += active[i];
    fired[i] = active[i] > 0 ? 1 : 0;
    if (!batch_in.curved) penalty.now += gates[i];
  }
  // The encoder subtracts b_dec from what both reconstructions see.
  store(d_z, gradients_.b_enc);
  subtract_through_encoder(gradients_.b_enc.const_data_ptr<float>(), decoded.g_columns);
  store(of_gate, gradients_.b_enc);
  store(of_magnitude, gradients_.more.at("b_mag"));
  store(of_ratio, gradients_.more.at("r_mag"));
  store(decoded.g_columns, gradients_.b_dec);
  last_penalty_ = {penalty.now * inverse_rows, penalty.next * inverse_rows};
  result.reconstruction = decoded.squared_error * inverse_rows;
  result.auxiliary = auxiliary * inverse_rows;
  result.sparsity = last_penalty_.now * scale;
  result.l0 = active_in_all * inverse_rows;
  result.fve = variance_explained(x, decoded.squared_error);
  next_silence_ = advance_silence(fired);
  return result;
}

}  // namespace

Result<std::unique_ptr<SaeTrainer>> make_gated_trainer(const sweeps::TrainingSpec& spec,
                                                       std::int64_t d_in, double norm_factor,
                                                       ThreadPool& pool) {
  auto trainer = std::make_unique<GatedTrainer>(spec, d_in, norm_factor, pool);
  SAE_TRY_VOID(trainer->initialise());
  return trainer;
}

}  // namespace saesweep::worker
