#include "worker/evaluation/baselines.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/check.h"
#include "core/philox.h"

namespace saesweep::worker {
namespace {

constexpr std::uint64_t kRowsAtOnce = 4096;

}  // namespace

Sae identity_dictionary() {
  Sae sae;
  sae.name = "identity";
  sae.selection = Sae::Selection::kIdentity;
  return sae;
}

Sae random_dictionary(const sweeps::TrainingSpec& shape, std::int64_t d_in) {
  Sae sae;
  sae.name = "random_sae";
  sae.selection = Sae::Selection::kTopK;
  const auto d_sae = static_cast<std::int64_t>(shape.d_sae);
  sae.k = static_cast<std::int64_t>(std::min(shape.k.value_or(32), shape.d_sae));
  sae.w_dec = at::empty({d_sae, d_in}, at::kFloat);
  float* values = sae.w_dec.mutable_data_ptr<float>();
  std::vector<double> row(static_cast<std::size_t>(d_in));
  for (std::int64_t i = 0; i < d_sae; ++i) {
    Rng rng(shape.seed, "baseline.random_sae", static_cast<std::uint64_t>(i));
    double squares = 0;
    for (double& each : row) {
      each = rng.normal();
      squares += each * each;
    }
    for (const double each : row) *values++ = static_cast<float>(each / std::sqrt(squares));
  }
  sae.w_enc = sae.w_dec;
  sae.b_enc = at::zeros({d_sae}, at::kFloat);
  sae.b_dec = at::zeros({d_in}, at::kFloat);
  return sae;
}

Result<RowMoments> row_moments(RowStream& stream, ThreadPool& pool,
                               const std::function<bool()>& stop) {
  const std::int64_t d = stream.d_in();
  RowMoments moments;
  at::Tensor sum = at::zeros({d}, at::kDouble), products = at::zeros({d, d}, at::kDouble);
  // One reader, then a product a thread; sums are added in the order of the rows.
  const std::size_t wave = pool.threads();
  std::vector<at::Tensor> rows(wave), wave_sum(wave), wave_products(wave);
  const std::uint64_t total = stream.rows_per_pass();
  for (std::uint64_t first = 0; first < total;) {
    if (stop && stop()) return fail(ErrorCode::kUnavailable, "asked to stop");
    std::size_t pieces = 0;
    for (; pieces < wave && first < total; ++pieces) {
      const std::uint64_t count = std::min(kRowsAtOnce, total - first);
      rows[pieces] = at::empty({static_cast<std::int64_t>(count), d}, at::kFloat);
      SAE_TRY_VOID(stream.read(first, count, rows[pieces].mutable_data_ptr<float>()));
      first += count;
    }
    pool.run(static_cast<std::int64_t>(pieces), [&](std::int64_t piece) {
      const auto i = static_cast<std::size_t>(piece);
      const at::Tensor x = rows[i].to(at::kDouble);
      wave_sum[i] = x.sum(0);
      wave_products[i] = at::mm(x.t(), x);
    });
    for (std::size_t i = 0; i < pieces; ++i) {
      sum += wave_sum[i];
      products += wave_products[i];
    }
  }
  if (total == 0) return fail(ErrorCode::kInvalidArgument, "the training stream has no rows");
  const double factor = stream.norm_factor(), n = static_cast<double>(total);
  moments.rows = total;
  moments.mean = sum / n;
  moments.covariance = products / n - at::outer(moments.mean, moments.mean);
  moments.mean /= factor;
  moments.covariance /= factor * factor;
  return moments;
}

Sae principal_components(const RowMoments& moments, std::int64_t components) {
  const std::int64_t d = moments.mean.size(0);
  SAE_CHECK(components >= 1 && components <= d, "{} components of {}", components, d);
  const at::Tensor vectors = std::get<1>(at::linalg_eigh(moments.covariance));    // ascending
  at::Tensor rows = vectors.t().flip({0}).narrow(0, 0, components).contiguous();  // [components, d]
  const at::Tensor largest = rows.gather(1, rows.abs().argmax(1, /*keepdim=*/true));
  rows = rows * at::where(largest < 0, -1.0, 1.0).to(at::kDouble);
  Sae sae;
  sae.name = "pca";
  sae.selection = Sae::Selection::kLinear;
  sae.w_enc = rows.to(at::kFloat).contiguous();
  sae.w_dec = sae.w_enc;
  sae.b_enc = at::zeros({components}, at::kFloat);
  sae.b_dec = moments.mean.to(at::kFloat);
  return sae;
}

}  // namespace saesweep::worker
