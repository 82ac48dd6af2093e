// A dictionary that is trained on what the model says in place of what it reconstructs: the
// divergence of next-token distributions with the reconstruction spliced in, and a penalty on its
// activations (Braun et al. 2024, arXiv 2405.12241; github.com/ApolloResearch/e2e_sae, "e2e").
//   f = relu(x W_enc^T + b_enc), x_hat = f W + b_dec with W_i = V_i / |V_i|
//   loss = KL(P || Q) + l1 s(step) sum_i f_i / d, means over rows
// V are what is optimised; they are free, and their norms mean nothing. The way from x_hat to the
// loss is SplicedModel's.
#include <ATen/ATen.h>

#include <cmath>

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
  // Rows that are held out belong to no document of the stream.
  bool held_out_is_due() const override { return false; }

 private:
  PassSums pass(const at::Tensor& x) override;
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

void EndToEndTrainer::draw() {
  draw_directions(parameters_.w_dec, "init.w_dec", d_in(), 1.0);
  // A linear layer as its framework draws it.
  const double bound = 1 / std::sqrt(static_cast<double>(d_in()));
  Rng rng(spec_.seed, "init.encoder");
  for (at::Tensor* each : {&parameters_.w_enc, &parameters_.b_enc}) {
    float* values = each->mutable_data_ptr<float>();
    for (std::int64_t i = 0; i < each->numel(); ++i)
      values[i] = static_cast<float>((2 * rng.uniform() - 1) * bound);
  }
}

PassSums EndToEndTrainer::pass(const at::Tensor& x) {
  const std::int64_t d = d_in(), width = d_sae(), rows = batch();
  const auto latents = static_cast<std::size_t>(width);
  const double inverse_rows = 1.0 / static_cast<double>(rows);
  const double pull =
      sparsity_scale() * spec_.l1.value_or(0) * inverse_rows / static_cast<double>(d);
  const at::Tensor lengths = norms();
  const at::Tensor decoder_rows = directions(lengths);
  const at::Tensor decoder = operand(decoder_rows);
  const at::Tensor encoder_t = operand(parameters_.w_enc).t();

  struct Sums {
    double squared_error = 0, activations = 0, active = 0;
    bool finite = true;
    std::vector<double> g_columns, d_columns;
    std::vector<char> fired;
  };
  std::vector<Sums> sums(static_cast<std::size_t>(tiles()));
  Kept kept(rows, width, d);
  at::Tensor reconstruction = at::empty({rows, d}, at::kFloat);
  for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    Sums& sum = sums[static_cast<std::size_t>(index)];
    kept.x.narrow(0, first, count).copy_(x.narrow(0, first, count));
    at::Tensor f = kept.f.narrow(0, first, count);
    multiply(f, kept.x.narrow(0, first, count), encoder_t);
    f.add_(parameters_.b_enc);
    sum.finite = kernels::all_finite(f.const_data_ptr<float>(), count * width);
    f.clamp_min_(0);
    at::Tensor out = reconstruction.narrow(0, first, count);
    multiply(out, f, decoder);
    out.add_(parameters_.b_dec);
    const at::Tensor error = out - x.narrow(0, first, count);
    sum.squared_error = kernels::sum_of_squares(error.const_data_ptr<float>(), count * d);
    sum.fired.assign(latents, 0);
    const float* values = f.const_data_ptr<float>();
    for (std::int64_t row = 0; row < count; ++row)
      for (std::size_t i = 0; i < latents; ++i, ++values) {
        if (*values <= 0) continue;
        sum.activations += *values;
        sum.active += 1;
        sum.fired[i] = 1;
      }
  });
  PassSums result;
  for (const Sums& sum : sums) result.finite = result.finite && sum.finite;
  // Nothing is asked of the model about what is no number; the step is skipped.
  SplicedModel::Said said;
  if (result.finite)
    said = model_->splice(position(), reconstruction);
  else
    said.gradient = at::zeros_like(reconstruction);

  for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t index) {
    Sums& sum = sums[static_cast<std::size_t>(index)];
    at::Tensor g = kept.g.narrow(0, first, count);
    g.copy_(said.gradient.narrow(0, first, count));
    sum.g_columns.assign(static_cast<std::size_t>(d), 0);
    add_rows(g, sum.g_columns);
    at::Tensor d_z = kept.d_z.narrow(0, first, count);
    multiply(d_z, g, decoder.t());
    d_z.add_(pull).mul_(kept.f.narrow(0, first, count) > 0);
    sum.d_columns.assign(latents, 0);
    add_rows(d_z, sum.d_columns);
  });
  weight_gradients(kept);
  // From W to V: what pulls along V_i changes nothing.
  const at::Tensor along =
      (gradients_.w_dec * decoder_rows).sum(1, /*keepdim=*/true) * decoder_rows;
  gradients_.w_dec.sub_(along).div_(lengths.clamp_min(1e-12));

  double squared_error = 0, activations = 0, active = 0;
  std::vector<double> b_dec(static_cast<std::size_t>(d), 0), b_enc(latents, 0);
  std::vector<char> fired(latents, 0);
  for (const Sums& sum : sums) {
    squared_error += sum.squared_error;
    activations += sum.activations;
    active += sum.active;
    for (std::size_t j = 0; j < b_dec.size(); ++j) b_dec[j] += sum.g_columns[j];
    for (std::size_t i = 0; i < latents; ++i) {
      b_enc[i] += sum.d_columns[i];
      fired[i] |= sum.fired[i];
    }
  }
  store(b_enc, gradients_.b_enc);
  store(b_dec, gradients_.b_dec);
  result.in_place = said.kl;
  result.sparsity = activations * pull;
  result.reconstruction = squared_error * inverse_rows;
  result.l0 = active * inverse_rows;
  result.fve = variance_explained(x, squared_error);
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
