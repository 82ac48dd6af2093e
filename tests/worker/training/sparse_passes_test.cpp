// Decoding and gradients over what is active, against dense products in double.
#include "worker/training/sparse_passes.h"

#include "tests/worker/training/trainers.h"

namespace saesweep::worker::test {
namespace {

struct SparsePassesTest : testing::TestWithParam<std::int64_t> {  // d: whole and ragged slices
  static constexpr std::int64_t kRows = 90, kLatents = 50;
  std::int64_t d = GetParam();
  ThreadPool pool{2};
  at::Tensor x = normal_tensor({kRows, d}, 1), x_centred = normal_tensor({kRows, d}, 2);
  at::Tensor w_dec = normal_tensor({kLatents, d}, 3), b_dec = normal_tensor({d}, 4);
  at::Tensor dense = at::zeros({kRows, kLatents});
  SparseCodes codes;
  std::vector<float> d_codes;

  void SetUp() override {
    Rng rng(5, "test.codes");
    codes.row_begin.push_back(0);
    for (std::int64_t row = 0; row < kRows; ++row) {
      for (std::int32_t latent = 0; latent < kLatents; ++latent) {
        if (row % 7 == 0 || latent == 11 || rng.uniform() > 0.2) continue;  // rows, latents without
        const auto value = static_cast<float>(rng.uniform());
        codes.entries.push_back({latent, value});
        dense[row][latent] = value;
      }
      codes.row_begin.push_back(std::ssize(codes.entries));
    }
    d_codes.resize(codes.entries.size());
  }
  at::Tensor as_dense(const std::vector<float>& values) const {
    at::Tensor matrix = at::zeros({kRows, kLatents}, at::kDouble);
    for (std::int64_t row = 0; row < kRows; ++row)
      for (std::int64_t at = codes.begin(row); at < codes.end(row); ++at)
        matrix[row][codes.entries[static_cast<std::size_t>(at)].latent] =
            values[static_cast<std::size_t>(at)];
    return matrix;
  }
};

TEST_P(SparsePassesTest, AreThoseOfDenseProducts) {
  const float factor = 0.3F;
  at::Tensor error = at::empty({kRows, d});
  SlicedRows g_and_x(kRows, d);
  const Decoder decoder{w_dec.const_data_ptr<float>(), b_dec.const_data_ptr<float>(), d};
  double squared_error = 0;
  for (const auto& [first, count] : {std::pair{0, 64}, std::pair{64, 26}})
    squared_error +=
        decode_rows(codes, decoder, x.const_data_ptr<float>(), x_centred.const_data_ptr<float>(),
                    factor, first, count, error.mutable_data_ptr<float>(), d_codes, &g_and_x)
            .squared_error;
  const at::Tensor f = dense.to(at::kDouble);
  const at::Tensor want =
      at::mm(f, w_dec.to(at::kDouble)) + b_dec.to(at::kDouble) - x.to(at::kDouble);
  EXPECT_LT(relative_distance(error, want), 1e-6);
  EXPECT_NEAR(squared_error, want.square().sum().item<double>(), 1e-5 * squared_error);
  const at::Tensor g = want * factor;
  EXPECT_LT(relative_distance(as_dense(d_codes), at::mm(g, w_dec.to(at::kDouble).t()) * f.ne(0)),
            1e-5);

  at::Tensor d_dec = at::full({kLatents, d}, 7.0F), d_enc = at::full({kLatents, d}, 7.0F);
  at::Tensor d_bias = at::full({kLatents}, 7.0F);
  const WeightGradients out{d_dec.mutable_data_ptr<float>(), d_enc.mutable_data_ptr<float>(),
                            d_bias.mutable_data_ptr<float>(), kLatents};
  const at::Tensor want_dec = at::mm(f.t(), g);
  const at::Tensor want_enc = at::mm(as_dense(d_codes).t(), x_centred.to(at::kDouble));
  const at::Tensor want_bias = as_dense(d_codes).sum(0);
  for (const double times : {1.0, 2.0}) {
    weight_gradients(pool, codes, d_codes, g_and_x, /*add=*/times > 1, out);
    EXPECT_LT(relative_distance(d_dec, want_dec * times), 1e-5);
    EXPECT_LT(relative_distance(d_enc, want_enc * times), 1e-5);
    EXPECT_LT(relative_distance(d_bias, want_bias * times), 1e-5);
  }
  EXPECT_EQ(d_dec[11].abs().max().item<float>(), 0);
}

TEST_P(SparsePassesTest, FourRowsAtATimeAreOneAfterAnother) {
  const float* rows[4];
  float values[4], together[4];
  for (std::int64_t i = 0; i < 4; ++i) {
    rows[i] = w_dec.const_data_ptr<float>() + (5 + 3 * i) * d;
    values[i] = x.const_data_ptr<float>()[i % d] + 0.3F;
  }
  at::Tensor one = b_dec.clone(), four = b_dec.clone();
  for (std::int64_t i = 0; i < 4; ++i)
    kernels::axpy(values[i], rows[i], one.mutable_data_ptr<float>(), d);
  kernels::axpy4(values, rows, four.mutable_data_ptr<float>(), d);
  EXPECT_TRUE(same_bytes(one, four));
  kernels::dot4(b_dec.const_data_ptr<float>(), rows, together, d);
  for (std::int64_t i = 0; i < 4; ++i)
    EXPECT_EQ(together[i], kernels::dot(b_dec.const_data_ptr<float>(), rows[i], d));
}

INSTANTIATE_TEST_SUITE_P(Widths, SparsePassesTest, testing::Values(1, 16, 37, 96));

}  // namespace
}  // namespace saesweep::worker::test
