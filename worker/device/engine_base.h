// What engines share: parameters on the device, a step made of a pass and an update, products.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "worker/device/parameters.h"
#include "worker/device/session.h"

namespace saesweep::worker::device {

enum class DecoderNorm : std::uint8_t { kFree, kUnit, kUnitEpsilon };  // as in TrainerBase

class EngineBase : public StepEngine {
 public:
  Result<void> write(const TrainerState& state) final { return own_.write(state); }
  Result<void> read(const TrainerState& state) const final { return own_.read(state); }
  Result<void> read_gradients(const SaeTensors& gradients) const final {
    return own_.read_gradients(gradients);
  }
  Result<StepFindings> step(const at::Tensor& x, const StepOrder& order) final;
  Result<StepFindings> look(const at::Tensor& rows, const StepOrder& order,
                            std::vector<char>& fired) final;

 protected:
  EngineBase(Session& session, const sweeps::TrainingSpec& spec, std::int64_t d_in,
             DecoderNorm decoder_norm, Parameters parameters)
      : session_(session),
        device_(session.device()),
        spec_(spec),
        d_(d_in),
        latents_(static_cast<std::int64_t>(spec.d_sae)),
        own_(std::move(parameters)),
        decoder_norm_(decoder_norm) {}

  // Fills gradients, the silence of after the step, and the sums, which are 0 before, as `fired`
  // is.
  virtual Result<void> pass(const Rows& x, const StepOrder& order, std::uint8_t* fired) = 0;

  // A matrix, and its rounded copy where products want one.
  Result<DenseRows> rows(const std::string& purpose, std::int64_t count, std::int64_t width);
  const void* operand(const DenseRows& rows) const {
    return rounds() ? static_cast<const void*>(rows.rounded) : rows.values;
  }
  // A weight [latents, d] as products take it.
  Result<const void*> operand(const float* weight, const std::string& purpose);
  // out [rows, columns], summed over `depth`.
  struct Shape {
    std::int64_t rows, columns, depth;
  };
  enum class Lies : std::uint8_t { kNotTransposed, kLeftTransposed, kRightTransposed };
  Result<void> multiply(const void* left, const void* right, float* out, const Shape& shape,
                        Lies lies);
  // dL/dW_dec = f^T g, dL/dW_enc = back^T read.
  Result<void> weight_gradients(const DenseRows& f, const DenseRows& g, const DenseRows& back,
                                const DenseRows& read, std::int64_t count);
  // From sums over rows to b_dec's gradient; what comes through the encoder, too, if it reads x
  // less b_dec, once b_enc's gradient is there.
  Result<void> grade_b_dec(const float* g, std::int64_t count, std::int64_t stride,
                           bool through_encoder);
  Result<void> advance_silence(const std::uint8_t* fired, std::int64_t count,
                               std::int64_t dead_after, std::uint32_t* dead);
  bool rounds() const { return spec_.precision == sweeps::Precision::kBFloat16; }

  Session& session_;
  Device& device_;
  sweeps::TrainingSpec spec_;
  std::int64_t d_, latents_;
  Parameters own_;

 private:
  Result<void> run(const Rows& x, const StepOrder& order);
  DecoderNorm decoder_norm_;
};

Result<std::unique_ptr<StepEngine>> make_sparse_engine(Session& session,
                                                       const sweeps::TrainingSpec& spec,
                                                       std::int64_t d_in);
Result<std::unique_ptr<StepEngine>> make_relu_engine(Session& session,
                                                     const sweeps::TrainingSpec& spec,
                                                     std::int64_t d_in);
Result<std::unique_ptr<StepEngine>> make_jumprelu_engine(Session& session,
                                                         const sweeps::TrainingSpec& spec,
                                                         std::int64_t d_in);
}  // namespace saesweep::worker::device
