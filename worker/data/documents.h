// The documents of a data set: token sequences (games), or runs of rows of activations somebody
// else harvested. Which are held out for evaluation depends on their content alone.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/result.h"
#include "sweeps/spec.h"

namespace saesweep::worker {

class Documents {
 public:
  virtual ~Documents() = default;
  virtual std::uint64_t count() const = 0;
  virtual std::uint64_t rows(std::uint64_t document) const = 0;  // activation rows it yields
  virtual std::uint64_t max_rows() const = 0;                    // of any document
  virtual bool held_out(std::uint64_t document) const = 0;
  // Held-out documents in file order.
  virtual const std::vector<std::uint64_t>& held_out_documents() const = 0;
};

// Games as text. A document's inputs are its first moves up to `context`; each has the next move as
// its target, the last input included; rows() counts inputs.
class TokenDocuments final : public Documents {
 public:
  // Generates `data` (source othello) with up to `threads` threads; the same bytes for any number.
  // Errors: kInvalidArgument (another source, a board or number of games that cannot be);
  // kResourceExhausted.
  static Result<std::shared_ptr<const TokenDocuments>> open(const sweeps::DataSpec& data,
                                                            double holdout, int context,
                                                            unsigned threads);
  std::uint64_t count() const override { return lengths_.size(); }
  std::uint64_t rows(std::uint64_t document) const override;
  std::uint64_t max_rows() const override;
  bool held_out(std::uint64_t document) const override { return held_out_[document]; }
  const std::vector<std::uint64_t>& held_out_documents() const override { return held_out_list_; }

  // All tokens of a document: inputs and the last target. Ids as the model's vocabulary.
  std::span<const std::uint8_t> tokens(std::uint64_t document) const;
  int board() const { return board_; }
  int vocabulary() const { return vocabulary_; }
  int context() const { return context_; }
  // Mean over targets of ln(number of legal moves): the cross entropy no model can beat.
  double optimum() const { return optimum_; }

 private:
  int board_ = 0, vocabulary_ = 0, context_ = 0;
  std::size_t stride_ = 0;
  double optimum_ = 0;
  std::vector<std::uint8_t> tokens_;   // [count, stride], padded with 0
  std::vector<std::uint8_t> lengths_;  // tokens of each
  std::vector<bool> held_out_;
  std::vector<std::uint64_t> held_out_list_;
};

// Rows of safetensors files; kRowsPerActivationDocument consecutive rows are a document.
class ActivationDocuments final : public Documents {
 public:
  // Errors: kNotFound; kCorrupted; kInvalidArgument (no such tensor, not [n, d], unknown dtype),
  // naming file and tensor.
  static Result<std::shared_ptr<const ActivationDocuments>> open(const sweeps::DataSpec& data,
                                                                 double holdout);
  ~ActivationDocuments() override;
  std::uint64_t count() const override;
  std::uint64_t rows(std::uint64_t document) const override;
  std::uint64_t max_rows() const override { return sweeps::kRowsPerActivationDocument; }
  bool held_out(std::uint64_t document) const override;
  const std::vector<std::uint64_t>& held_out_documents() const override;

  std::int64_t d_in() const;
  // Rows of a document as fp32, row-major, into out[rows(document) * d_in].
  void read(std::uint64_t document, float* out) const;

 private:
  ActivationDocuments();
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace saesweep::worker
