// What a sweep will cost: memory, disk, time. Rough on purpose, from the plan alone; the constants
// stand in the source with where they come from.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "sweeps/sweep_plan.h"

namespace saesweep::sweeps {

// An executor before it holds a model: LibTorch, its libraries, thread stacks.
inline constexpr std::uint64_t kExecutorBytes = std::uint64_t{350} << 20;

// What training one SAE takes beside the stream it reads: parameters, gradients, Adam's moments,
// activations of a batch.
std::uint64_t estimated_training_memory(const TrainingSpec& spec, std::uint64_t d_in);

// What that takes of a GPU's memory. Of a transcoder `d_in` is what a row holds in all.
std::uint64_t estimated_gpu_memory(const TrainingSpec& spec, std::uint64_t d_in);
// Of it, what trials that train side by side take once: all but parameters, gradients and moments.
std::uint64_t shared_gpu_memory(const TrainingSpec& spec, std::uint64_t d_in);

// What trials that read documents hold of the model, once for a run of them and whatever their
// number: what it says of a batch as it is, and of the micro-batches that `threads` splice at once
// what the way back needs. rows_per_document: on average, or at most.
struct SpliceShape {
  std::string_view hook;
  std::uint64_t batch = 0;
  double rows_per_document = 1;
  bool downstream = false;  // in_to_orig of one is not 0
};
std::uint64_t estimated_splice_memory(const ModelShape& model, const SpliceShape& splice,
                                      unsigned threads);
// The same of a trial alone, on a slot like those measured; 0 of one that reads rows.
std::uint64_t estimated_splice_memory(const TrainingSpec& spec, const PlannedStream& stream);

// What training a language model takes: the games, weights, gradients and moments, activations of a
// batch.
std::uint64_t estimated_lm_memory(const TrainLmSpec& spec);

struct SweepEstimate {
  std::uint64_t trials = 0, baselines = 0;
  std::uint64_t tokens = 0;        // trained on, all trials and random_model; train_lm: its tokens
  std::uint64_t memory_bytes = 0;  // of all slots together, at the fullest
  std::uint64_t gpu_memory_bytes = 0;  // of the largest trial that is trained on one
  std::uint64_t disk_bytes = 0;        // cache, one checkpoint a trial, dictionaries and scores
  double seconds = 0;                  // on a machine with two cores like those measured
};
SweepEstimate estimate(const SweepPlan& plan);

// What is legal and probably not meant: goes to plan.warnings.
std::vector<std::string> warnings_of(const SweepPlan& plan);

}  // namespace saesweep::sweeps
