#include "worker/training/dense_trainer.h"

#include <utility>

namespace saesweep::worker {
namespace {

// The dense products cost what the sparse passes cost at this share of active latents; part of the
// numerics.
constexpr double kFewBelow = 1.0 / 16;

}  // namespace

DenseTrainer::Found DenseTrainer::find(const CentredRows& rows, const PackedEncoder& encoder,
                                       const std::function<Encoded()>& encode_everything) {
  const double limit = kFewBelow * static_cast<double>(rows.rows) * static_cast<double>(d_sae());
  const auto is_few = [limit](std::int64_t above) { return static_cast<double>(above) < limit; };
  if (!expects_few_) {
    const Encoded encoded = encode_everything();
    // A selection leaves out what is not finite; the step is skipped then.
    expects_few_ = encoded.finite && is_few(encoded.above);
    if (!expects_few_) return {std::nullopt, encoded.above, encoded.finite};
  }
  SparseCodes codes;
  const bool finite = select_above(*pool_, rows, encoder, 0, codes);
  const std::int64_t above = std::ssize(codes.entries);
  expects_few_ = is_few(above);
  if (expects_few_) return {std::move(codes), above, finite};
  const Encoded encoded = encode_everything();
  return {std::nullopt, encoded.above, encoded.finite};
}

void DenseTrainer::dense_weight_gradients(const Slabs& f, const Slabs& d_z, const float* g,
                                          const CentredRows& read) {
  const products::Numbers numbers = numbers_of(spec_);
  const products::Panels of_g =
      right_operand(*pool_, columns_of(g, d_out()), d_out(), batch(), numbers);
  const products::Panels of_read =
      right_operand(*pool_, columns_of(read.data, read.d), read.d, batch(), numbers);
  for_product_blocks([&](std::int64_t first, std::int64_t count, std::int64_t) {
    gradient_of_latents(f, of_g, first, count,
                        gradients_.w_dec.mutable_data_ptr<float>() + first * d_out());
    gradient_of_latents(d_z, of_read, first, count,
                        gradients_.w_enc.mutable_data_ptr<float>() + first * d_in());
  });
}

}  // namespace saesweep::worker
