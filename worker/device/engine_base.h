// What engines share: parameters on the device, a step made of a pass and an update, products.
//
// A step is told what it needs by StepTerms on the device, and is the same launches each time: from
// the second of a form on they are replayed as one graph.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "worker/device/parameters.h"
#include "worker/device/session.h"

namespace saesweep::worker::device {

class EngineBase : public StepEngine {
 public:
  Result<void> write(const TrainerState& state) final { return own_->write(state); }
  Result<void> read(const TrainerState& state) const final { return own_->read(state); }
  Result<void> read_gradients(const SaeTensors& gradients) const final {
    return own_->read_gradients(gradients);
  }
  Result<void> begin_step(const at::Tensor& x, const StepOrder& order) final;
  Result<StepFindings> end_step() final { return own_->findings(begun_rows_); }
  Result<StepFindings> look(const at::Tensor& rows, const StepOrder& order,
                            std::vector<char>& fired) final;

 protected:
  EngineBase(Session& session, const sweeps::TrainingSpec& spec, DecoderNorm decoder_norm,
             std::unique_ptr<Parameters> parameters)
      : session_(session),
        device_(session.device()),
        spec_(spec),
        d_in_(parameters->shape().d_in),
        d_out_(parameters->shape().d_out),
        latents_(parameters->shape().latents),
        own_(std::move(parameters)),
        decoder_norm_(decoder_norm) {}

  // What the launches of a step depend on, beside the spec. Whatever else changes from step to step
  // is in StepTerms, on the device.
  struct Form {
    std::int64_t rows;
    bool bends;  // the penalty is one on sums of f^p
    std::int64_t dead_after;
    std::uint64_t moves;  // of the session's memory
    bool operator==(const Form&) const = default;
  };
  // Fills gradients, the silence of after the step, and the sums, which are 0 before, as `fired`
  // is.
  virtual Result<void> pass(const Rows& x, const Form& form, std::uint8_t* fired) = 0;
  // Of the penalty, as the sweep file has it.
  virtual double coefficient() const { return spec_.l1.value_or(0); }

  // A matrix, and its rounded copy where products want one.
  Result<DenseRows> rows(const std::string& purpose, std::int64_t count, std::int64_t width);
  const void* operand(const DenseRows& rows) const {
    return rounds() ? static_cast<const void*>(rows.rounded) : rows.values;
  }
  // So many values as products take them.
  Result<const void*> operand(const float* values, std::int64_t count, const std::string& purpose);
  // What the encoder reads of rows of the stream: their first d_in values, less `bias` if there is
  // one.
  Result<DenseRows> read_rows(const Rows& x, const float* bias);
  // Reads the first values of a row and predicts the others.
  bool predicts() const { return sweeps::is_transcoder(spec_.architecture); }
  // What is reconstructed or predicted: d_out values of each row, `stride` apart; their variance.
  struct Target {
    const float* values;
    std::int64_t stride, count;
    const double* variance;
  };
  Result<Target> target(const Rows& x);
  // The encoder's product with them, without its bias.
  Result<void> encode(const DenseRows& read, std::int64_t count, float* z);
  // out [rows, columns], summed over `depth`.
  struct Shape {
    std::int64_t rows, columns, depth;
  };
  enum class Lies : std::uint8_t { kNotTransposed, kLeftTransposed, kRightTransposed };
  Result<void> multiply(const void* left, const void* right, float* out, const Shape& shape,
                        Lies lies);
  // x_hat = f W_dec + b_dec: its gradient, the squared errors of rows, and the gradient of f.
  struct Decoded {
    DenseRows g, back;
    const double* squares;
  };
  Result<Decoded> reconstruct(const DenseRows& f, const Target& x, const void* w_dec,
                              const std::string& of);
  // What a pass over all activations found, as far as all have it in common.
  SumDense sum_dense(const Target& x, const Decoded& decoded, const std::int32_t* active) const;
  // dL/dW_dec = f^T g, dL/dW_enc = back^T read.
  Result<void> weight_gradients(const DenseRows& f, const DenseRows& g, const DenseRows& back,
                                const DenseRows& read, std::int64_t count);
  // Adds the pull of a penalty on sums of f^p to the gradient of f; what it is of each row, at p
  // and at the next p.
  struct Bent {
    const double *now, *next;
  };
  Result<Bent> bend(const DenseRows& gradient, const float* f, std::int64_t count);
  // b_dec's gradient from that of the reconstruction, [count, stride]; less what comes through the
  // encoder, if that reads x less b_dec: from the gradients of the pre-activations, summed over
  // rows.
  Result<void> grade_b_dec(const float* g, std::int64_t count, std::int64_t stride,
                           const float* pulls);
  // As floats: sums over rows.
  Result<void> store(const double* sums, std::int64_t count, float* to);
  Result<void> advance_silence(const std::uint8_t* fired, std::int64_t count,
                               std::int64_t dead_after, std::uint32_t* dead);
  bool rounds() const { return spec_.precision == sweeps::Precision::kBFloat16; }

  Session& session_;
  Device& device_;
  sweeps::TrainingSpec spec_;
  std::int64_t d_in_, d_out_, latents_;
  std::unique_ptr<Parameters> own_;

 private:
  StepTerms terms(const StepOrder& order) const;
  Form form(const Rows& x, const StepOrder& order) const {
    return {x.count, order.bend.has_value(), order.dead_after, session_.moves()};
  }
  Result<void> run(const Rows& x, const Form& form);
  Result<void> whole_step(const Rows& x, const Form& form);

  DecoderNorm decoder_norm_;
  std::int64_t begun_rows_ = 0;
  std::optional<Form> last_form_;   // of the step before
  std::optional<Form> graph_form_;  // of what graph_ replays
  Graph graph_;
  bool takes_notes_ = true;  // false: the device refused to
};

// Of an SAE on rows of these parts.
Parameters::Shape shape_of(const sweeps::TrainingSpec& spec, const std::vector<RowPart>& parts);

Result<std::unique_ptr<StepEngine>> make_sparse_engine(Session& session,
                                                       const sweeps::TrainingSpec& spec,
                                                       const std::vector<RowPart>& parts);
Result<std::unique_ptr<StepEngine>> make_relu_engine(Session& session,
                                                     const sweeps::TrainingSpec& spec,
                                                     const std::vector<RowPart>& parts);
Result<std::unique_ptr<StepEngine>> make_gated_engine(Session& session,
                                                      const sweeps::TrainingSpec& spec,
                                                      const std::vector<RowPart>& parts);
Result<std::unique_ptr<StepEngine>> make_jumprelu_engine(Session& session,
                                                         const sweeps::TrainingSpec& spec,
                                                         const std::vector<RowPart>& parts);
}  // namespace saesweep::worker::device
