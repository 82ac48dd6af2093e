// Documents and activations made of arithmetic: any shape, no model, no file, and every value says
// which row it belongs to.
#pragma once

#include <cstring>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "core/dtype.h"
#include "core/philox.h"
#include "worker/activations/chunk_plan.h"
#include "worker/activations/harvest.h"
#include "worker/data/documents.h"

namespace saesweep::worker::test {

class SyntheticDocuments final : public Documents {
 public:
  // Lengths in [1, max_rows]; max_rows for all if `ragged` is false.
  SyntheticDocuments(std::uint64_t count, std::uint64_t max_rows, double holdout,
                     bool ragged = true, std::uint64_t seed = 0)
      : max_rows_(max_rows) {
    Rng rng(seed, "test.documents");
    for (std::uint64_t i = 0; i < count; ++i) {
      lengths_.push_back(ragged ? 1 + rng.below64(max_rows) : max_rows);
      held_out_.push_back(rng.uniform() < holdout);
      if (held_out_.back()) held_out_list_.push_back(i);
    }
  }
  std::uint64_t count() const override { return lengths_.size(); }
  std::uint64_t rows(std::uint64_t document) const override { return lengths_[document]; }
  std::uint64_t max_rows() const override { return max_rows_; }
  bool held_out(std::uint64_t document) const override { return held_out_[document]; }
  const std::vector<std::uint64_t>& held_out_documents() const override { return held_out_list_; }

  std::uint64_t training_rows() const {
    std::uint64_t rows = 0;
    for (std::uint64_t i = 0; i < count(); ++i) rows += held_out_[i] ? 0 : lengths_[i];
    return rows;
  }

 private:
  std::uint64_t max_rows_;
  std::vector<std::uint64_t> lengths_;
  std::vector<bool> held_out_;
  std::vector<std::uint64_t> held_out_list_;
};

// (document, row in it)
using RowName = std::pair<std::uint64_t, std::uint64_t>;

inline std::vector<RowName> rows_of_chunk(const ChunkPlan& plan, const Documents& documents,
                                          std::uint32_t chunk) {
  std::vector<RowName> rows;
  for (const std::uint64_t document : plan.documents_of(chunk))
    for (std::uint64_t row = 0; row < documents.rows(document); ++row)
      rows.emplace_back(document, row);
  return rows;
}

// The rows of a pass as they are read, spelled out.
inline std::vector<RowName> rows_of_pass(const ChunkPlan& plan, const Documents& documents,
                                         std::uint64_t pass) {
  std::vector<RowName> read;
  for (std::uint64_t group = 0; read.size() < plan.rows(); ++group) {
    std::vector<RowName> joined;
    for (const auto& piece : plan.pieces_of_group(pass, group)) {
      const auto rows = rows_of_chunk(plan, documents, piece.chunk);
      for (std::uint64_t i = 0; i < piece.count; ++i) joined.push_back(rows.at(piece.first + i));
    }
    const Permutation order = plan.order_of_group(pass, group);
    for (std::uint64_t i = 0; i < joined.size(); ++i)
      read.push_back(joined[plan.permutes_rows() ? order(i) : i]);
  }
  return read;
}

// Between -4 and 4; a multiple of 1/2^20, which fp32 holds exactly.
inline float value_of(RowName name, std::size_t column) {
  const std::uint64_t mixed =
      (name.first * 1'000'003 + name.second * 8191 + column * 131 + 17) * 0x9e3779b97f4a7c15ULL;
  return static_cast<float>(static_cast<std::int64_t>(mixed >> 41) - (1 << 22)) / (1 << 20);
}

class SyntheticHarvester final : public Harvester {
 public:
  SyntheticHarvester(std::shared_ptr<const SyntheticDocuments> documents, std::int64_t d_in,
                     DType dtype)
      : documents_(std::move(documents)), d_in_(d_in), dtype_(dtype) {}
  std::int64_t d_in() const override { return d_in_; }
  const Documents& documents() const override { return *documents_; }
  Result<std::uint32_t> harvest(const ChunkPlan& plan, std::uint32_t chunk,
                                std::span<std::byte> out, std::span<ChunkOrder>) override {
    const auto rows = rows_of_chunk(plan, *documents_, chunk);
    std::byte* at = out.data();
    for (const RowName& row : rows)
      for (std::size_t j = 0; j < static_cast<std::size_t>(d_in_); ++j) {
        const float value = value_of(row, j);
        const std::uint16_t rounded = to_bf16(value);
        if (dtype_ == DType::kFloat32)
          std::memcpy(at, &value, sizeof(value));
        else
          std::memcpy(at, &rounded, sizeof(rounded));
        at += size_of(dtype_);
      }
    return static_cast<std::uint32_t>(rows.size());
  }

 private:
  std::shared_ptr<const SyntheticDocuments> documents_;
  std::int64_t d_in_;
  DType dtype_;
};

inline sweeps::StreamSpec stream_spec(std::uint64_t tokens, std::uint64_t shuffle_rows = 0,
                                      DType dtype = DType::kFloat32) {
  sweeps::StreamSpec spec;
  spec.tokens = tokens;
  spec.shuffle_rows = shuffle_rows;
  spec.dtype = dtype;
  return spec;
}

}  // namespace saesweep::worker::test
