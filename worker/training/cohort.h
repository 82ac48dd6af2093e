// Trials trained side by side on one stream: each batch is read once and lent to every member that
// stands there. A member that diverges, errs or leaves takes nothing along: the bytes of the others
// are those of training alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/result.h"
#include "worker/activations/row_stream.h"
#include "worker/training/sae_trainer.h"

namespace saesweep::worker {

class Cohort {
 public:
  explicit Cohort(RowStream& stream, ThreadPool& pool);  // outlives this
  ~Cohort();

  // Joins at its own position; reads from there until it meets the others.
  void add(std::string name, std::unique_ptr<SaeTrainer> trainer);
  std::unique_ptr<SaeTrainer> remove(const std::string& name);  // nullptr if there is none
  bool empty() const;
  SaeTrainer* find(const std::string& name);
  std::vector<std::string> names() const;

  struct Outcome {
    std::string name;
    Result<StepReport> report;  // an error ends this member alone: remove it
  };
  // One batch for the members that are furthest behind (those that share position and batch), one
  // after another. Finished members are passed over; nothing if all are finished.
  // Errors: those of reading the stream, which concern all.
  Result<std::vector<Outcome>> advance();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace saesweep::worker
