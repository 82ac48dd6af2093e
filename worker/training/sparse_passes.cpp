#include "worker/training/sparse_passes.h"

#include <algorithm>
#include <cstring>

#include "worker/training/kernels.h"

namespace saesweep::worker {
namespace {

constexpr std::int64_t kIndexPieces = 4;

// Codes by latent, each in order of rows (a counting sort).
struct ByLatent {
  std::vector<std::int64_t> begin;  // one more than latents
  std::vector<kernels::Touch> touches;

  ByLatent(ThreadPool& pool, const SparseCodes& codes, std::span<const float> d_codes,
           std::int64_t latents)
      : begin(static_cast<std::size_t>(latents) + 1, 0), touches(codes.entries.size()) {
    for (const auto& code : codes.entries) ++begin[static_cast<std::size_t>(code.latent) + 1];
    for (std::size_t i = 1; i < begin.size(); ++i) begin[i] += begin[i - 1];
    std::vector<std::int64_t> next(begin.begin(), begin.end() - 1);
    // Each piece looks at all codes and places those of its own latents.
    const std::int64_t width = (latents + kIndexPieces - 1) / kIndexPieces;
    pool.run(kIndexPieces, [&](std::int64_t piece) {
      const std::int64_t first = piece * width;
      for (std::int64_t row = 0; row < codes.rows(); ++row)
        for (std::int64_t at = codes.begin(row); at < codes.end(row); ++at) {
          const auto& code = codes.entries[static_cast<std::size_t>(at)];
          const std::int64_t offset = code.latent - first;
          if (offset < 0 || offset >= width) continue;
          touches[static_cast<std::size_t>(next[static_cast<std::size_t>(code.latent)]++)] = {
              static_cast<std::int32_t>(row), code.value, d_codes[static_cast<std::size_t>(at)]};
        }
    });
  }
  std::span<const kernels::Touch> of(std::int64_t latent) const {
    const auto at = static_cast<std::size_t>(latent);
    return std::span(touches).subspan(static_cast<std::size_t>(begin[at]),
                                      static_cast<std::size_t>(begin[at + 1] - begin[at]));
  }
};

// Columns of a matrix that is `d` wide in a slice: fewer than 16 at its end, none past it.
std::int64_t columns_of(std::int64_t slice, std::int64_t d) {
  return std::clamp<std::int64_t>(d - slice * SlicedRows::kColumns, 0, SlicedRows::kColumns);
}

}  // namespace

void DecodeSums::add(const DecodeSums& of_tile) {
  squared_error += of_tile.squared_error;
  g_columns.resize(of_tile.g_columns.size());
  for (std::size_t j = 0; j < g_columns.size(); ++j) g_columns[j] += of_tile.g_columns[j];
}

void SlicedRows::put(std::int64_t row, const float* first, const float* second) {
  for (std::int64_t slice = 0; slice < slices(); ++slice) {
    float* to = memory_.data() + (slice * rows_ + row) * 2 * kColumns;
    const std::int64_t from = slice * kColumns;
    const std::int64_t of_first = columns_of(slice, d_first_);
    const std::int64_t of_second = columns_of(slice, d_second_);
    if (of_first < kColumns || of_second < kColumns) std::fill(to, to + 2 * kColumns, 0.0F);
    if (of_first > 0)
      std::memcpy(to, first + from, static_cast<std::size_t>(of_first) * sizeof(float));
    if (of_second > 0)
      std::memcpy(to + kColumns, second + from,
                  static_cast<std::size_t>(of_second) * sizeof(float));
  }
}

DecodeSums decode_rows(const SparseCodes& codes, const Decoder& decoder, const float* x,
                       const float* x_centred, float factor, std::int64_t first, std::int64_t count,
                       float* error, std::vector<float>& d_codes, SlicedRows* g_and_x) {
  const std::int64_t d = decoder.d;
  DecodeSums sums;
  sums.g_columns.assign(static_cast<std::size_t>(d), 0);
  std::vector<float> gradient(static_cast<std::size_t>(d));
  const auto decoder_row = [&](std::int64_t at) {
    return decoder.w_dec + codes.entries[static_cast<std::size_t>(at)].latent * d;
  };
  for (std::int64_t row = first; row < first + count; ++row) {
    float* e = error + row * d;
    if (decoder.b_dec != nullptr)
      std::copy_n(decoder.b_dec, d, e);
    else
      std::fill_n(e, d, 0.0F);
    // Four decoder rows at a time, the next four on their way.
    const std::int64_t end = codes.end(row),
                       fours = codes.begin(row) + (end - codes.begin(row)) / 4 * 4;
    std::int64_t at = codes.begin(row);
    for (; at < fours; at += 4) {
      for (std::int64_t next = at + 4; next < std::min(at + 8, end); ++next)
        kernels::prefetch(decoder_row(next), d);
      float values[4];
      const float* rows[4];
      for (std::int64_t i = 0; i < 4; ++i) {
        values[i] = codes.entries[static_cast<std::size_t>(at + i)].value;
        rows[i] = decoder_row(at + i);
      }
      kernels::axpy4(values, rows, e, d);
    }
    for (; at < end; ++at)
      kernels::axpy(codes.entries[static_cast<std::size_t>(at)].value, decoder_row(at), e, d);
    sums.squared_error +=
        kernels::finish_error(x + row * d, factor, e, gradient.data(), sums.g_columns.data(), d);
    if (g_and_x != nullptr)
      g_and_x->put(row, gradient.data(), x_centred + row * g_and_x->d_second());
    for (at = codes.begin(row); at < fours; at += 4) {
      const float* rows[4] = {decoder_row(at), decoder_row(at + 1), decoder_row(at + 2),
                              decoder_row(at + 3)};
      kernels::dot4(gradient.data(), rows, &d_codes[static_cast<std::size_t>(at)], d);
    }
    for (; at < end; ++at)
      d_codes[static_cast<std::size_t>(at)] = kernels::dot(gradient.data(), decoder_row(at), d);
  }
  return sums;
}

void weight_gradients(ThreadPool& pool, const SparseCodes& codes, std::span<const float> d_codes,
                      const SlicedRows& g_and_x, bool add, const WeightGradients& out) {
  const ByLatent index(pool, codes, d_codes, out.latents);
  const std::int64_t d_out = g_and_x.d_first(), d_in = g_and_x.d_second();
  pool.run(g_and_x.slices() + 1, [&](std::int64_t slice) {
    if (slice == g_and_x.slices()) {
      for (std::int64_t latent = 0; latent < out.latents; ++latent) {
        double sum = 0;
        for (const auto& touch : index.of(latent)) sum += touch.pull;
        out.b_enc[latent] = (add ? out.b_enc[latent] : 0.0F) + static_cast<float>(sum);
      }
      return;
    }
    const std::int64_t column = slice * SlicedRows::kColumns;
    const std::int64_t of_dec = columns_of(slice, d_out), of_enc = columns_of(slice, d_in);
    for (std::int64_t latent = 0; latent < out.latents; ++latent) {
      const auto touches = index.of(latent);
      // Nothing is read or written where a matrix has no columns left.
      float* dec = of_dec > 0 ? out.w_dec + latent * d_out + column : out.w_dec;
      float* enc = of_enc > 0 ? out.w_enc + latent * d_in + column : out.w_enc;
      kernels::gather_slice(touches.data(), std::ssize(touches), g_and_x.slice(slice), add, dec,
                            enc, of_dec, of_enc);
    }
  });
}

}  // namespace saesweep::worker
