// What all architectures share: parameters, Adam, schedules, unit-norm decoders, skipped steps, the
// learning curve, checkpoints. An architecture adds its forward and backward pass.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "worker/training/l0_controller.h"
#include "worker/training/sae_trainer.h"
#include "worker/training/selection.h"
#include "worker/training/sparse_passes.h"
#include "worker/training/step_engine.h"

namespace saesweep::worker {

// Rows of a batch that one thread computes; part of the numerics, as are the latents of a block.
inline constexpr std::int64_t kRowsPerTile = 256;
inline constexpr std::int64_t kLatentsPerBlock = 64;

struct SaeTensors {
  at::Tensor w_enc;  // [d_sae, d_in]
  at::Tensor b_enc;  // [d_sae]; of the gated family the gate's
  at::Tensor w_dec;  // [d_sae, d_out]; d_out is d_in but for transcoders
  at::Tensor b_dec;  // [d_out]
  // What only some architectures have, by its name in checkpoints.
  std::map<std::string, at::Tensor> more;
};

// What one forward and backward pass found.
struct PassSums {
  double reconstruction = 0;  // squared error summed over d_out, mean over rows
  double sparsity = 0;        // penalty as added to the loss
  double auxiliary = 0;       // as added to the loss
  double fve = 0;
  double l0 = 0;
  bool finite = true;  // false: a pre-activation was not
  // What is optimised in place of reconstruction: of nested prefixes; of transcoders its share of
  // the variance.
  std::optional<double> in_place = {};
  double loss() const { return in_place.value_or(reconstruction) + sparsity + auxiliary; }
};

enum class DecoderNorm { kFree, kUnit, kUnitEpsilon };  // the last as the TopK family does it

class TrainerBase : public SaeTrainer {
 public:
  const sweeps::TrainingSpec& spec() const override { return spec_; }
  std::uint64_t step() const override { return step_; }
  Result<void> begin_step(const at::Tensor& x) override;
  Result<StepReport> train_step(const at::Tensor& x) override;
  bool held_out_is_due() const override;
  Result<HeldOutReport> score_held_out(const at::Tensor& rows) override;
  Result<void> save(const std::filesystem::path& directory) const override;
  Result<void> restore(const std::filesystem::path& directory) override;
  bool calibrate_threshold(const at::Tensor&) override { return false; }
  bool needs_threshold() const override { return false; }
  Result<void> settle() final { return fetch(); }
  Sae sae() const override;
  Json config() const override;
  std::string curve_csv() const override;
  Json summary() const override;

  // Draws the initial parameters, or reads them from spec.init_path.
  Result<void> initialise();
  // From now on steps are done there.
  void use(std::unique_ptr<StepEngine> engine) { engine_ = std::move(engine); }
  // For tests: parameters and the gradients of the last pass.
  SaeTensors& parameters() { return parameters_; }
  const SaeTensors& gradients() const { return gradients_; }
  // The pass alone, without a step: fills gradients().
  PassSums pass_for_test(const at::Tensor& x) { return pass(x); }

 protected:
  TrainerBase(const sweeps::TrainingSpec& spec, std::vector<RowPart> parts, ThreadPool& pool,
              DecoderNorm decoder_norm, float initial_norm);
  TrainerBase(const sweeps::TrainingSpec& spec, std::int64_t d_in, double norm_factor,
              ThreadPool& pool, DecoderNorm decoder_norm, float initial_norm)
      : TrainerBase(spec, {{d_in, norm_factor}}, pool, decoder_norm, initial_norm) {}

  // Fills gradients_ and next_silence_ from batch() rows; must not change state that a skipped step
  // should keep: held-out rows go this way, too.
  virtual PassSums pass(const at::Tensor& x) = 0;
  // What else a step is told that is done elsewhere, and what it found; before keep_bookkeeping().
  virtual void complete(StepOrder&) const {}
  virtual void note(const StepFindings&) {}
  // Called when the step counts: makes the bookkeeping of the last pass real.
  virtual void keep_bookkeeping() {}
  virtual void before_first_step(const at::Tensor&) {}
  // Where held-out rows are cut into the batches of a look: the end of each.
  virtual std::vector<std::int64_t> held_out_ends(std::int64_t rows) const;
  // The initial parameters, unless an SAE was read: rows of W_dec in random directions, W_enc the
  // same, biases as the recipe says.
  virtual void draw();
  // What initialise() draws nothing for; the rest of an SAE that was read.
  virtual void start_from(const Sae&) {}
  virtual Json state() const { return Json::object(); }  // more of a checkpoint
  virtual Result<void> set_state(const Json&) { return {}; }
  virtual void finish_sae(Sae& sae) const = 0;  // selection, threshold
  virtual bool folds_decoder_norms() const { return true; }

  // A parameter of its own kind, 0 at first; Adam moves it and checkpoints hold it. To be called in
  // constructors.
  void add_parameter(const std::string& name, at::IntArrayRef shape);
  // Of an SAE that reads and reconstructs all parts: each part's own factor folded in, then a
  // latent's norms over all parts scaled to sum to 1, so that activations are in units of what they
  // write. Returns what activations were multiplied with, [d_sae] in double.
  at::Tensor fold_parts(Sae& sae) const;
  // What config.json says of it.
  void describe_parts(Json& config) const;
  // A value of each latent in units of its activation, as raw rows and folded decoders need it.
  at::Tensor folded(const at::Tensor& of_latents) const;

  // Rows in random directions of this norm; of each block of `block` columns.
  void draw_directions(at::Tensor& rows, std::string_view purpose, std::int64_t block,
                       double norm) const;

  // Of the penalty's coefficient: min(step / sparsity_warmup_steps, 1), times what steers it.
  double sparsity_scale() const;
  std::int64_t d_in() const { return d_in_; }
  std::int64_t d_out() const { return d_out_; }
  std::int64_t d_sae() const { return static_cast<std::int64_t>(spec_.d_sae); }
  std::int64_t batch() const { return rows_in_pass_; }
  std::int64_t tiles() const { return (batch() + kRowsPerTile - 1) / kRowsPerTile; }
  std::int64_t latents_per_product() const;
  std::int64_t product_blocks() const {
    return (d_sae() + latents_per_product() - 1) / latents_per_product();
  }
  std::int64_t blocks() const { return (d_sae() + kLatentsPerBlock - 1) / kLatentsPerBlock; }
  // Calls piece(first, count, index) for each tile of rows / block of latents.
  using Piece = std::function<void(std::int64_t first, std::int64_t count, std::int64_t index)>;
  void for_tiles(const Piece& piece) const;
  // Blocks for matrix products over the batch: large, since each product copies the batch anew.
  void for_product_blocks(const Piece& piece) const;
  void for_blocks(const Piece& piece) const;
  // x - b_dec for rows [rows, d_in].
  products::Scratch centred(const at::Tensor& x) const;
  // Rows of a batch as the encoder reads them, and the encoder. floors: see PackedEncoder.
  CentredRows rows_of_batch(const float* read) const {
    return {read, batch(), d_in_, kRowsPerTile};
  }
  PackedEncoder packed_encoder(const float* floors = nullptr) const;
  // Gradients of W_dec, W_enc and b_enc from those of the codes; `add`: to what is there.
  void sparse_weight_gradients(const SparseCodes& codes, std::span<const float> d_codes,
                               const SlicedRows& g_and_x, bool add);
  // Takes from the gradient of b_dec, which the encoder subtracts from x, what comes back through
  // the encoder. pulls: the gradient of the pre-activations, summed over rows, [d_sae].
  void subtract_through_encoder(const float* pulls, std::vector<double>& b_dec) const;
  // Squared distance of the rows of the batch from their mean, in all.
  double variance_of(const at::Tensor& rows) const;
  // Fraction of variance explained from sums of squares of error and of the batch.
  double variance_explained(const at::Tensor& x, double squared_error) const;
  // Tokens since each latent last fired, after this batch; `fired` in this batch.
  std::vector<std::int64_t> advance_silence(const std::vector<char>& fired) const;
  std::uint64_t dead_after() const;

  sweeps::TrainingSpec spec_;
  std::vector<RowPart> parts_;  // of a row of the stream
  std::int64_t d_in_, d_out_;   // values that are read, and predicted
  double norm_factor_;          // of the first part
  ThreadPool* pool_;            // outlives this
  SaeTensors parameters_, gradients_;
  // Tokens since each latent last fired.
  mutable std::vector<std::int64_t> silence_;  // also fetch() writes it
  std::vector<std::int64_t> next_silence_;
  std::uint64_t step_ = 0;
  // Of a pass over held-out rows, which of them comes first; nothing while training.
  std::optional<std::int64_t> held_out_first_;

 private:
  struct Stepped {
    PassSums sums;
    double norm = 0;  // of the gradient
    bool applied = false;
  };
  Stepped step_here(const at::Tensor& x);
  Result<Stepped> step_elsewhere();
  // The pass over held-out rows; says which latents fired.
  Result<PassSums> look(const at::Tensor& rows, std::vector<char>& fired);
  TrainerState state_here() const { return {parameters_, first_, second_, silence_}; }
  StepOrder order() const;
  Result<void> hand_over();    // to the engine, what it does not have yet
  Result<void> fetch() const;  // from it

  // The norm of the gradient, that of W_dec as it is used: `along`[i] times row i of W_dec is to be
  // taken from row i of its gradient, so that rows of unit norm only turn.
  double gradient_norm(std::vector<float>& along) const;
  void update(double rate, double clip, const std::vector<float>& along);
  void record(const PassSums& sums, double norm, bool applied);
  std::uint64_t steps_per_point() const;  // of the learning curve
  double dead_fraction() const;           // by the steps so far

  std::int64_t rows_in_pass_;
  DecoderNorm decoder_norm_;
  float initial_norm_;
  std::optional<L0Controller> controller_;  // of a penalty l1 with an l0_target
  SaeTensors first_, second_;               // Adam's moments
  std::uint64_t adam_steps_ = 0, skipped_ = 0, skipped_in_row_ = 0;
  std::unique_ptr<StepEngine> engine_;  // null: steps are done here
  bool engine_is_behind_ = true;        // what is here was not handed over yet
  mutable bool engine_is_ahead_ = false;
  bool has_begun_ = false;  // the next step
  double dead_fraction_there_ = 0;
  std::vector<std::array<double, 8>> curve_;
  std::array<double, 5> sums_{};  // of loss, mse, fve, l0, grad_norm since the last point
  std::uint64_t summed_ = 0;
  // Step, then loss, mse, fve, l0, dead fraction of held-out rows; at steps of points of curve_.
  std::vector<std::array<double, 6>> held_out_;
};

// Adds the floats of a tile to sums over the batch, as far as those go.
void add_to(std::vector<double>& sums, const std::vector<float>& of_tile);
// values as fp32, into a vector of that size.
void store(const std::vector<double>& values, at::Tensor& out);

Result<std::unique_ptr<SaeTrainer>> make_relu_trainer(const sweeps::TrainingSpec& spec,
                                                      const std::vector<RowPart>& parts,
                                                      ThreadPool& pool);
Result<std::unique_ptr<SaeTrainer>> make_transcoder_trainer(const sweeps::TrainingSpec& spec,
                                                            const std::vector<RowPart>& parts,
                                                            ThreadPool& pool);
Result<std::unique_ptr<SaeTrainer>> make_end_to_end_trainer(const sweeps::TrainingSpec& spec,
                                                            const RowPart& part,
                                                            SplicedModel& model, ThreadPool& pool);
Result<std::unique_ptr<SaeTrainer>> make_topk_trainer(const sweeps::TrainingSpec& spec,
                                                      const std::vector<RowPart>& parts,
                                                      ThreadPool& pool);
Result<std::unique_ptr<SaeTrainer>> make_gated_trainer(const sweeps::TrainingSpec& spec,
                                                       std::int64_t d_in, double norm_factor,
                                                       ThreadPool& pool);
Result<std::unique_ptr<SaeTrainer>> make_jumprelu_trainer(const sweeps::TrainingSpec& spec,
                                                          const std::vector<RowPart>& parts,
                                                          ThreadPool& pool);
Result<std::unique_ptr<SaeTrainer>> make_matryoshka_trainer(const sweeps::TrainingSpec& spec,
                                                            std::int64_t d_in, double norm_factor,
                                                            ThreadPool& pool);

}  // namespace saesweep::worker
