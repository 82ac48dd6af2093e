// What families share whose activations may be many or few: a pass goes over all of them, block by
// block, or over those alone that are there. And an annealed penalty, of those that have one.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "worker/training/annealing.h"
#include "worker/training/dense_blocks.h"
#include "worker/training/dense_passes.h"
#include "worker/training/trainer_base.h"

namespace saesweep::worker {

class DenseTrainer : public TrainerBase {
 protected:
  using TrainerBase::TrainerBase;

  // A pass over all pre-activations: take(row, latent, z, height, seen) gets each block of the
  // encoder's product, without the bias, and notes what it sees.
  struct Encoded {
    std::int64_t above = 0;  // how many were worth a look
    bool finite = true;
  };
  template <class Take>
  Encoded encode_all(const CentredRows& rows, const PackedEncoder& encoder,
                     const Take& take) const {
    std::vector<dense_blocks::Seen> seen(static_cast<std::size_t>(tiles()));
    for_tiles([&](std::int64_t first, std::int64_t count, std::int64_t index) {
      encode_tile(rows, encoder, first, count,
                  [&](std::int64_t row, std::int64_t latent, float* z, std::int64_t height) {
                    take(row, latent, z, height, seen[static_cast<std::size_t>(index)]);
                  });
    });
    Encoded encoded;
    for (const dense_blocks::Seen& of_tile : seen) {
      encoded.above += of_tile.count();
      encoded.finite = encoded.finite && of_tile.finite();
    }
    return encoded;
  }
  // What is above the encoder's floors, as codes if that is little of the batch; else
  // `encode_everything` was called. Which way is taken depends on the batch alone; what the last
  // one was like decides which is tried first.
  struct Found {
    std::optional<SparseCodes> few;
    std::int64_t above = 0;
    bool finite = true;
  };
  Found find(const CentredRows& rows, const PackedEncoder& encoder,
             const std::function<Encoded()>& encode_everything);

  // Gradients of W_dec and W_enc over the whole batch: f^T g and d_z^T read.
  void dense_weight_gradients(const Slabs& f, const Slabs& d_z, const float* g,
                              const CentredRows& read);

  // The penalty's coefficient before its warm-up.
  double coefficient() const {
    return annealing_ ? annealing_->coefficient() : spec_.l1.value_or(0);
  }

  std::optional<Annealing> annealing_;  // of families whose penalty bends
  Annealing::Penalty last_penalty_;     // of the last pass, means over rows

 private:
  void complete(StepOrder& order) const override {
    if (annealing_) annealing_->complete(order);
  }
  void note(const StepFindings& found) override { last_penalty_ = {found.bent, found.next_bent}; }
  void keep_bookkeeping() override {
    if (annealing_) annealing_->advance(step_, last_penalty_);
  }
  Json state() const override { return annealing_ ? annealing_->state() : Json::object(); }
  Result<void> set_state(const Json& json) override {
    return annealing_ ? annealing_->set_state(json) : Result<void>();
  }

  bool expects_few_ = false;  // speed only
};

}  // namespace saesweep::worker
