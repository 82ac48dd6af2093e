// A dictionary that is trained on what the model says in place of what it reconstructs: the
// divergence of next-token distributions with the reconstruction spliced in, and a penalty on its
// activations (Braun et al. 2024, arXiv 2405.12241; github.com/ApolloResearch/e2e_sae, "e2e").
//   f = relu(x W_enc^T + b_enc), x_hat = f W + b_dec with W_i = V_i / |V_i|
//   loss = KL(P || Q) + l1 s(step) sum_i f_i / d, means over rows
// and, as "e2e+ds", in_to_orig times the squared error of the residual streams behind the hook, and
// out_to_in times that of x_hat itself, means over rows and values.
// V are what is optimised; they are free, and their norms mean nothing. The way from x_hat to the
// loss is SplicedModel's.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cmath>

#include "core/check.h"
#include "core/philox.h"
#include "worker/activations/spliced_model.h"
#include "worker/training/dense_trainer.h"
#include "worker/training/kernels.h"

namespace saesweep::worker {
namespace {

class EndToEndTrainer final : public DenseTrainer {
 public:
  EndToEndTrainer(const sweeps::TrainingSpec& spec, const RowPart& part, SplicedModel& model,
                  ThreadPool& pool)
      : DenseTrainer(spec, part.width, part.norm_factor, pool, DecoderNorm::kFree, 1.0F),
        model_(&model) {}

  Json config() const override {
    Json json = TrainerBase::config();
    json["apply_b_dec_to_input"] = false;
    return json;
  }

 private:
  PassSums pass(const at::Tensor& x) override;
  SplicedModel::Said splice(const at::Tensor& reconstruction) const {
    if (held_out_first_)
      return model_->splice_held_out(*held_out_first_, reconstruction, spec_.in_to_orig);
    return model_->splice(position(), reconstruction, spec_.in_to_orig);
  }
  std::vector<std::int64_t> held_out_ends(std::int64_t rows) const override;
  void draw() override;
  void finish_sae(Sae& sae) const override {
    sae.selection = Sae::Selection::kRelu;
    sae.apply_b_dec_to_input = false;
    sae.w_dec = directions(norms()).clone();
  }
  bool folds_decoder_norms() const override { return false; }

  at::Tensor norms() const { return parameters_.w_dec.square().sum(1, /*keepdim=*/true).sqrt(); }
  // W, [d_sae, d]; of a row of zeros zeros.
  at::Tensor directions(const at::Tensor& norms) const {
    return parameters_.w_dec / norms.clamp_min(1e-12);
  }

  SplicedModel* model_;
};

// Documents stay whole: what a model says depends on all that came before.
std::vector<std::int64_t> EndToEndTrainer::held_out_ends(std::int64_t rows) const {
  std::vector<std::int64_t> ends;
  std::int64_t first = 0, last = 0;  // of the batch that grows
  for (const std::int64_t end : model_->held_out_documents_end()) {
    if (last > first && end - first > static_cast<std::int64_t>(spec_.batch)) {
      ends.push_back(last);
      first = last;
    }
    last = end;
  }
  SAE_CHECK(last == rows, "{} held-out rows of {}", rows, last);
  ends.push_back(last);
  return ends;
}

// As the reference has it: what torch.nn.init.orthogonal_ draws, which of more latents than values
// are orthonormal columns, so that rows are about sqrt(d / d_sae) long; the rest as
// torch.nn.Linear draws it.
void EndToEndTrainer::draw() {
  at::Tensor normal = at::empty({d_sae(), d_in()}, at::kDouble);
  double* out = normal.mutable_data_ptr<double>();
  for (std::int64_t latent = 0; latent < d_sae(); ++latent) {
    Rng rng(spec_.seed, "init.w_dec", static_cast<std::uint64_t>(latent));
    for (std::int64_t j = 0; j < d_in(); ++j) *out++ = rng.normal();
  }
  if (at::get_num_threads() != 1) at::set_num_threads(1);
  const bool is_tall = d_sae() >= d_in();
  const auto [q, r] = at::linalg_qr(is_tall ? normal : normal.t());
  q.mul_(r.diagonal().sgn());  // else the factorisation's choice of signs shows
  parameters_.w_dec.copy_(is_tall ? q : q.t());

  const auto draw_uniform = [](Rng& rng, at::Tensor& values, std::int64_t inputs) {
    const double bound = 1 / std::sqrt(static_cast<double>(inputs));
    float* to = values.mutable_data_ptr<float>();
    for (std::int64_t i = 0; i < values.numel(); ++i)
      to[i] = static_cast<float>((2 * rng.uniform() - 1) * bound);
  };
  Rng encoder(spec_.seed, "init.encoder"), decoder(spec_.seed, "init.b_dec");
  draw_uniform(encoder, parameters_.w_enc, d_in());
  draw_uniform(encoder, parameters_.b_enc, d_in());
  draw_uniform(decoder, parameters_.b_dec, d_sae());
}

PassSums EndToEndTrainer::pass(const at::Tensor& x) {
  const std::int64_t d = d_in(), width = d_sae(), rows = batch();
  const auto latents = static_cast<std::size_t>(width);
  const double inverse_rows = 1.0 / static_cast<double>(rows);
  const double pull =
      sparsity_scale() * spec_.l1.value_or(0) * inverse_rows / static_cast<double>(d);
  const at::Tensor lengths = norms();
  const at::Tensor decoder_rows = directions(lengths);
  const float* x_values = x.const_data_ptr<float>();
  const CentredRows read = rows_of_batch(x_values);
  const PackedEncoder encoder = packed_encoder();
  const PackedDecoder decoder =
      pack_decoder(*pool_, decoder_rows.const_data_ptr<float>(), width, d, numbers_of(spec_));

  const Slabs f(rows, width), d_z(rows, width);
  const Encoded encoded =
      encode_all(read, encoder,
                 [&](std::int64_t row, std::int64_t latent, const float* z, std::int64_t height,
                     dense_blocks::Seen& seen) {
                   dense_blocks::relu_forward(z, &encoder.bias[static_cast<std::size_t>(latent)],
                                              f.block(row, latent), height, seen);
                 });
  struct Sums {
    DecodeSums decoded;
    std::vector<float> f, d_z;  // by latent, padded
  };
  std::vector<Sums> sums(static_cast<std::size_t>(tiles()));
  at::Tensor reconstruction = at::empty({rows, d}, at::kFloat);
  for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    float* out = reconstruction.mutable_data_ptr<float>() + first * d;
    decode_tile(decoder.forth, f, first, count, out);
    std::vector<float> error(static_cast<std::size_t>(d));
    for (std::int64_t row = 0; row < count; ++row) {
      kernels::axpy(1, parameters_.b_dec.const_data_ptr<float>(), out + row * d, d);
      std::copy_n(out + row * d, d, error.begin());
      kernels::axpy(-1, x_values + (first + row) * d, error.data(), d);
      sums[static_cast<std::size_t>(index)].decoded.squared_error +=
          kernels::sum_of_squares(error.data(), d);
    }
  });
  PassSums result;
  result.finite = encoded.finite;
  // Nothing is asked of the model about what is no number; the step is skipped.
  SplicedModel::Said said;
  if (result.finite)
    said = splice(reconstruction);
  else
    said.gradient = at::zeros_like(reconstruction);

  const double local = spec_.out_to_in * inverse_rows / static_cast<double>(d);
  if (local > 0) said.gradient.add_(reconstruction - x, 2 * local);
  const float* g = said.gradient.const_data_ptr<float>();
  const std::vector<float> pulls(encoder.bias.size(), static_cast<float>(pull));
  for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    Sums& sum = sums[static_cast<std::size_t>(index)];
    sum.decoded.g_columns.assign(static_cast<std::size_t>(d), 0);
    for (std::int64_t row = first; row < first + count; ++row)
      kernels::add_scaled(1, g + row * d, sum.decoded.g_columns.data(), d);
    sum.f.assign(pulls.size(), 0);
    sum.d_z.assign(pulls.size(), 0);
    decode_back_tile(
        decoder.back, g + first * d, count,
        [&](std::int64_t row, std::int64_t latent, const float* d_f, std::int64_t height) {
          const auto at = static_cast<std::size_t>(latent);
          dense_blocks::relu_backward(f.block(first + row, latent), d_f, &pulls[at], 0,
                                      d_z.block(first + row, latent), {&sum.f[at], &sum.d_z[at]},
                                      height);
        });
  });
  dense_weight_gradients(f, d_z, g, read);
  // From W to V: what pulls along V_i changes nothing.
  const at::Tensor along =
      (gradients_.w_dec * decoder_rows).sum(1, /*keepdim=*/true) * decoder_rows;
  gradients_.w_dec.sub_(along).div_(lengths.clamp_min(1e-12));

  DecodeSums decoded;
  double activations = 0;
  std::vector<double> b_enc(latents, 0), of_f(latents, 0);
  for (const Sums& sum : sums) {
    decoded.add(sum.decoded);
    add_to(of_f, sum.f);
    add_to(b_enc, sum.d_z);
  }
  std::vector<char> fired(latents, 0);
  for (std::size_t i = 0; i < latents; ++i) {
    activations += of_f[i];
    fired[i] = of_f[i] > 0 ? 1 : 0;
  }
  store(b_enc, gradients_.b_enc);
  store(decoded.g_columns, gradients_.b_dec);
  result.in_place = said.kl;
  result.auxiliary = spec_.in_to_orig * said.downstream + local * decoded.squared_error;
  result.sparsity = activations * pull;
  result.reconstruction = decoded.squared_error * inverse_rows;
  result.l0 = static_cast<double>(encoded.above) * inverse_rows;
  result.fve = variance_explained(x, decoded.squared_error);
  next_silence_ = advance_silence(fired);
  return result;
}

}  // namespace

Result<std::unique_ptr<SaeTrainer>> make_end_to_end_trainer(const sweeps::TrainingSpec& spec,
                                                            const RowPart& part,
                                                            SplicedModel& model, ThreadPool& pool) {
  auto trainer = std::make_unique<EndToEndTrainer>(spec, part, model, pool);
  SAE_TRY_VOID(trainer->initialise());
  return trainer;
}

}  // namespace saesweep::worker
