// bench train: SAEs trained side by side against the same SAEs one run after another, or against
// LibTorch's own autograd and operators.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/dtype.h"
#include "core/files.h"
#include "core/philox.h"
#include "sweeps/known_keys.h"
#include "sweeps/recipes.h"
#include "worker/activations/row_stream.h"
#include "worker/device/gpu.h"
#include "worker/device/session.h"
#include "worker/executor/bench.h"
#include "worker/parallel/thread_pool.h"
#include "worker/products/isa.h"
#include "worker/products/product.h"
#include "worker/sae/sae.h"
#include "worker/training/cohort.h"
#include "worker/training/encoder.h"
#include "worker/training/packing.h"
#include "worker/training/sae_trainer.h"

namespace saesweep::worker {
namespace {

// Sparse sums of random directions in bf16, read in shuffled order: what a loaded shuffle group of
// the activation cache costs to read.
class SyntheticRows final : public RowStream {
 public:
  SyntheticRows(std::uint64_t rows, std::int64_t d_in)
      : width_(static_cast<std::size_t>(d_in)),
        rows_(rows),
        order_(rows, 0, "bench.order"),
        values_(rows * width_) {
    constexpr std::size_t kDirections = 1024, kActive = 16;
    std::vector<float> directions(kDirections * width_);
    Rng rng(0, "bench.directions");
    const auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(d_in)));
    for (float& value : directions) value = static_cast<float>(rng.normal()) * scale;
    std::vector<float> row(width_);
    for (std::uint64_t i = 0; i < rows; ++i) {
      std::ranges::fill(row, 0.F);
      for (std::size_t j = 0; j < kActive; ++j) {
        const float* direction = &directions[rng.below(kDirections) * width_];
        const auto weight = static_cast<float>(rng.uniform());
        for (std::size_t c = 0; c < width_; ++c) row[c] += weight * direction[c];
      }
      for (std::size_t c = 0; c < width_; ++c) values_[i * width_ + c] = to_bf16(row[c]);
    }
  }
  std::int64_t d_in() const override { return static_cast<std::int64_t>(width_); }
  std::uint64_t rows_per_pass() const override { return rows_; }
  double norm_factor() const override { return 1; }
  Result<void> read(std::uint64_t first, std::uint64_t count, float* out) override {
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::uint16_t* row = &values_[order_((first + i) % rows_) * width_];
      for (std::size_t c = 0; c < width_; ++c) *out++ = from_bf16(row[c]);
    }
    return {};
  }

 private:
  std::size_t width_;
  std::uint64_t rows_;
  Permutation order_;
  std::vector<std::uint16_t> values_;
};

Result<sweeps::TrainingSpec> make_spec(const TrainBench& bench, std::uint64_t steps) {
  const auto architecture = sweeps::parse_architecture(bench.arch);
  if (!architecture)
    return fail(ErrorCode::kInvalidArgument, "--arch {}: one of {} would be right", bench.arch,
                fmt::join(sweeps::architecture_names(), ", "));
  if (bench.precision != "fp32" && bench.precision != "bf16")
    return fail(ErrorCode::kInvalidArgument, "--precision {}: fp32 or bf16 would be right",
                bench.precision);
  if (bench.saes == 0 || bench.d_in == 0 || bench.d_sae == 0 || bench.batch == 0 ||
      bench.steps == 0)
    return fail(ErrorCode::kInvalidArgument,
                "-n, --d-in, --d-sae, --batch and --steps are at least 1");
  if (bench.device != "cpu" && bench.device != "cuda")
    return fail(ErrorCode::kInvalidArgument, "--device {}: cpu or cuda would be right",
                bench.device);
  auto spec = sweeps::recipe_training("saebench-v1", *architecture, steps);
  spec.device = bench.device;
  spec.d_sae = bench.d_sae;
  const auto applies = [&](sweeps::ParameterId id) {
    return sweeps::parameter(id).applies(*architecture);
  };
  if (applies(sweeps::ParameterId::kK)) spec.k = bench.k;
  if (applies(sweeps::ParameterId::kL1)) spec.l1 = bench.l1;
  if (applies(sweeps::ParameterId::kL0Target)) spec.l0_target = bench.l0_target;
  spec.batch = bench.batch;
  spec.tokens = bench.batch * steps;
  spec.precision =
      bench.precision == "bf16" ? sweeps::Precision::kBFloat16 : sweeps::Precision::kFloat32;
  return spec;
}

// A file with an SAE of random directions whose gates open, or thresholds are passed, by about `l0`
// latents a row; removed at the end.
class SparseStart {
 public:
  static Result<std::unique_ptr<SparseStart>> make(const sweeps::TrainingSpec& spec, double l0,
                                                   RowStream& stream) {
    const auto width = static_cast<std::int64_t>(spec.d_sae), d = stream.d_in();
    if (spec.k || l0 > static_cast<double>(width))
      return fail(ErrorCode::kInvalidArgument,
                  "--l0 {}: of an architecture without k, at most d_sae {}", l0, width);
    Sae sae;
    sae.w_dec = at::empty({width, d}, at::kFloat);
    Rng rng(1, "bench.start");
    for (std::int64_t i = 0; i < width * d; ++i)
      sae.w_dec.mutable_data_ptr<float>()[i] = static_cast<float>(rng.normal());
    sae.w_dec.div_(sae.w_dec.norm(2, {1}, true));
    sae.w_enc = sae.w_dec;
    sae.b_dec = at::zeros({d}, at::kFloat);
    at::Tensor sample = at::empty({256, d}, at::kFloat);
    SAE_TRY_VOID(stream.read(0, 256, sample.mutable_data_ptr<float>()));
    const at::Tensor z = at::mm(sample, sae.w_enc.t()).flatten();
    const auto above = static_cast<std::int64_t>(l0 * 256);
    const at::Tensor height = std::get<0>(z.kthvalue(std::max<std::int64_t>(1, z.numel() - above)));
    const at::Tensor heights = height.expand({width}).contiguous();
    sae.b_enc = heights.neg();
    if (spec.architecture == sweeps::Architecture::kJumpRelu) {
      sae.selection = Sae::Selection::kThreshold;
      sae.b_enc = at::zeros({width}, at::kFloat);
      sae.threshold = heights;
    } else if (spec.architecture == sweeps::Architecture::kGated ||
               spec.architecture == sweeps::Architecture::kGatedPAnneal) {
      sae.selection = Sae::Selection::kGated;
      sae.b_gate = sae.b_mag = sae.b_enc;
      sae.r_mag = at::zeros({width}, at::kFloat);
    }
    auto made = std::make_unique<SparseStart>();
    SAE_TRY(made->directory_,
            make_private_directory(std::filesystem::temp_directory_path(), "saesweep-bench-"));
    SAE_TRY_VOID(write_file_atomically(made->path(), serialize_sae(sae)));
    return made;
  }
  SparseStart() = default;
  SparseStart(const SparseStart&) = delete;
  SparseStart& operator=(const SparseStart&) = delete;
  ~SparseStart() {
    std::error_code ignored;
    if (!directory_.empty()) std::filesystem::remove_all(directory_, ignored);
  }
  std::string path() const { return (directory_ / "sae.safetensors").string(); }

 private:
  std::filesystem::path directory_;
};

// Trainers that go on from round to round.
class OurSaes {
 public:
  // gpu: nullptr unless the spec wants one.
  static Result<std::unique_ptr<OurSaes>> make(const sweeps::TrainingSpec& spec, unsigned saes,
                                               RowStream& stream, ThreadPool& pool,
                                               device::Device* gpu) {
    auto made = std::make_unique<OurSaes>();
    if (gpu != nullptr) made->session_ = std::make_unique<device::Session>(*gpu);
    made->cohort_ = std::make_unique<Cohort>(stream, pool);
    for (unsigned i = 0; i < saes; ++i) {
      auto own = spec;
      own.seed = i;
      SAE_TRY(auto trainer,
              SaeTrainer::create(own, {{stream.d_in(), 1}}, pool, nullptr, made->session_.get()));
      made->cohort_->add(std::to_string(i), std::move(trainer));
    }
    return made;
  }
  // Each SAE `steps` steps on.
  Result<void> advance(std::uint64_t steps) {
    for (std::uint64_t step = 0; step < steps; ++step) {
      SAE_TRY(const auto outcomes, cohort_->advance());
      for (const auto& outcome : outcomes) {
        if (!outcome.report) return fail(outcome.report.error());
        l0_ = outcome.report->l0;
      }
    }
    return {};
  }
  double l0() const { return l0_; }  // of the last step

 private:
  double l0_ = 0;
  std::unique_ptr<device::Session> session_;  // outlives the trainers
  std::unique_ptr<Cohort> cohort_;
};

// The same SAE written the usual way: LibTorch's operators on all threads, autograd, Adam. One
// after another.
class AutogradSae {
 public:
  AutogradSae(const sweeps::TrainingSpec& spec, std::int64_t d_in) : spec_(spec) {
    const auto d_sae = static_cast<std::int64_t>(spec.d_sae);
    w_dec_ = at::randn({d_sae, d_in});
    w_dec_ = w_dec_ / w_dec_.norm(2, {1}, true);
    parameters_ = {w_dec_.clone(), at::zeros({d_sae}), w_dec_, at::zeros({d_in})};
    if (spec.architecture == sweeps::Architecture::kJumpRelu)
      parameters_.push_back(at::full({d_sae}, spec.init_threshold));
    for (at::Tensor& parameter : parameters_) {
      parameter.requires_grad_(true);
      first_.push_back(at::zeros_like(parameter));
      second_.push_back(at::zeros_like(parameter));
    }
  }

  void train_step(const at::Tensor& x) {
    std::vector<at::Tensor> gradients;
    {
      const c10::AutoGradMode with_gradients(true);
      const auto [codes, sparsity] = encode(x);
      const at::Tensor error = at::addmm(parameters_[3], codes, parameters_[2]) - x;
      const at::Tensor loss = error.square().sum(-1).mean() + sparsity;
      gradients = torch::autograd::grad({loss}, parameters_);
    }
    ++step_;
    const double correction1 = 1 - std::pow(spec_.adam_beta1, static_cast<double>(step_));
    const double correction2 = 1 - std::pow(spec_.adam_beta2, static_cast<double>(step_));
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      first_[i].mul_(spec_.adam_beta1).add_(gradients[i], 1 - spec_.adam_beta1);
      second_[i].mul_(spec_.adam_beta2).addcmul_(gradients[i], gradients[i], 1 - spec_.adam_beta2);
      const at::Tensor denominator =
          (second_[i].sqrt() / std::sqrt(correction2)).add_(spec_.adam_epsilon);
      parameters_[i].detach().addcdiv_(first_[i], denominator, -spec_.lr / correction1);
    }
  }

 private:
  // Codes, and the penalty on them.
  std::pair<at::Tensor, at::Tensor> encode(const at::Tensor& x) const {
    if (spec_.architecture == sweeps::Architecture::kJumpRelu) return jump(x);
    const at::Tensor z = at::addmm(parameters_[1], x - parameters_[3], parameters_[0].t()).relu();
    if (!spec_.k) return {z, (z * parameters_[2].norm(2, {1})).sum(-1).mean() * *spec_.l1};
    const auto k = static_cast<std::int64_t>(*spec_.k);
    const bool over_batch = spec_.architecture == sweeps::Architecture::kBatchTopK;
    const at::Tensor among = over_batch ? z.flatten() : z;
    const auto [values, places] = among.topk(over_batch ? k * z.size(0) : k, -1);
    return {at::zeros_like(among).scatter(-1, places, values).view_as(z), at::zeros({})};
  }
  // The window's gradient reaches the threshold through a term that is 0.
  std::pair<at::Tensor, at::Tensor> jump(const at::Tensor& x) const {
    const at::Tensor& threshold = parameters_[4];
    const at::Tensor z = at::addmm(parameters_[1], x, parameters_[0].t());
    const at::Tensor fixed = threshold.detach(), zero = threshold - fixed;
    const at::Tensor above = z.detach().gt(fixed).to(at::kFloat);
    const at::Tensor window = (z.detach() - fixed).abs().lt(spec_.bandwidth / 2).to(at::kFloat);
    const at::Tensor slopes = window / spec_.bandwidth;
    const at::Tensor l0 = (above - slopes * zero).sum(-1).mean();
    return {z * above - slopes * fixed * zero,
            (l0 / *spec_.l0_target - 1).square() * *spec_.l0_coefficient};
  }

  sweeps::TrainingSpec spec_;
  at::Tensor w_dec_;
  // W_enc, b_enc, W_dec, b_dec; of jumprelu the threshold
  std::vector<at::Tensor> parameters_, first_, second_;
  std::uint64_t step_ = 0;
};

// What the step's arithmetic comes to against the inner loop alone, both for a second of one core.
// FLOPs of hand-written passes: the encoder's product and sparse decoding and gradients, or five
// products of that size (seven of the gated family, which reconstructs twice). Bytes of the
// weights: gradients written, read for their norm and by Adam, which reads and writes weights and
// moments; bytes of the activations of dense passes, written and read.
Json roofline(const sweeps::TrainingSpec& spec, std::int64_t d_in, double l0, const Rates& rates) {
  using enum sweeps::Architecture;
  const auto d = static_cast<double>(d_in), width = static_cast<double>(spec.d_sae);
  const bool gated = spec.architecture == kGated || spec.architecture == kGatedPAnneal;
  const bool sparse = spec.k || l0 < width / 16;
  const double flops =
      sparse ? 2 * d * width + (gated ? 12 : 8) * d * l0 : (gated ? 14 : 10) * d * width;
  const double visits = gated ? 9 : spec.architecture == kJumpRelu ? 8 : 6;
  products::Numbers numbers = numbers_of(spec);
  if (spec.k &&
      is_filtered(spec, static_cast<std::int64_t>(*spec.k), static_cast<std::int64_t>(spec.d_sae)))
    numbers = filter_numbers();
  const double ceiling = products::flops_per_second(numbers);
  const double reached = flops * rates.ours_per_cpu_second;
  return {{"flops_per_sae_token", flops},
          {"weight_bytes_per_sae_token", 72 * d * width / static_cast<double>(spec.batch)},
          {"activation_bytes_per_sae_token", sparse ? 0 : 4 * visits * width},
          {"gflops_per_core", reached * 1e-9},
          {"ceiling_gflops_per_core", ceiling * 1e-9},
          {"share", reached / ceiling},
          {"instructions", products::to_string(products::current_isa())}};
}

}  // namespace

namespace {

Result<std::string> name_of(device::Device& device) {
  SAE_TRY(const device::DeviceInfo info, device.info());
  return std::string(info.name);
}

}  // namespace

Result<Json> bench_train(const TrainBench& bench) {
  // Rounds and the one that warms up.
  const std::uint64_t steps = bench.steps * (1 + std::max(1U, bench.rounds));
  SAE_TRY(auto spec, make_spec(bench, steps));
  const bool autograd = bench.against == "autograd";
  if (!autograd && bench.against != "separate")
    return fail(ErrorCode::kInvalidArgument, "--against {}: separate or autograd would be right",
                bench.against);
  using enum sweeps::Architecture;
  constexpr std::array kWithAutograd{kTopK, kBatchTopK, kJumpRelu, kStandard, kStandardBricken};
  if (autograd && std::ranges::find(kWithAutograd, spec.architecture) == kWithAutograd.end())
    return fail(
        ErrorCode::kInvalidArgument,
        "--against autograd has topk, batchtopk, jumprelu, standard and standard_bricken, not {}",
        bench.arch);

  ThreadPool pool(bench_threads(bench.threads));
  const auto d_in = static_cast<std::int64_t>(bench.d_in);
  SyntheticRows stream(8 * bench.batch, d_in);
  std::unique_ptr<SparseStart> start;
  if (bench.l0 > 0) {
    SAE_TRY(start, SparseStart::make(spec, bench.l0, stream));
    spec.init_path = start->path();
  }
  device::Gpu gpu;
  device::Device* device = nullptr;
  if (spec.device == "cuda") {
    SAE_TRY(device, gpu.open());
  }
  SAE_TRY(const auto together, OurSaes::make(spec, bench.saes, stream, pool, device));
  std::vector<std::unique_ptr<OurSaes>> separate;
  std::vector<AutogradSae> plain;
  for (unsigned i = 0; i < bench.saes; ++i) {
    if (autograd) {
      plain.emplace_back(spec, d_in);
    } else {
      auto own = spec;
      own.seed = i;
      SAE_TRY(auto one, OurSaes::make(own, 1, stream, pool, device));
      separate.push_back(std::move(one));
    }
  }

  Result<void> problem;
  const auto ours = [&] {
    if (auto done = together->advance(bench.steps); !done) problem = std::move(done);
  };
  std::uint64_t position = 0;
  at::Tensor batch = at::empty({static_cast<std::int64_t>(bench.batch), d_in}, at::kFloat);
  const auto baseline = [&] {
    for (const auto& one : separate)
      if (auto done = one->advance(bench.steps); !done) problem = std::move(done);
    if (plain.empty()) return;
    at::set_num_threads(static_cast<int>(pool.threads()));
    for (AutogradSae& one : plain) {
      for (std::uint64_t step = 0; step < bench.steps; ++step) {
        if (auto read = stream.read(position, bench.batch, batch.mutable_data_ptr<float>()); !read)
          problem = std::move(read);
        position += bench.batch;
        one.train_step(batch);
      }
    }
    at::set_num_threads(1);
  };
  const auto units = static_cast<double>(bench.saes * bench.steps * bench.batch);
  const Rates rates = compare(bench.rounds, units, ours, baseline);
  if (!problem) return fail(problem.error());
  const char* name = autograd ? "LibTorch operators and autograd" : "separate runs";
  Json measured{{"sae_tokens_per_s", rates.ours},
                {"sae_tokens_per_cpu_s", rates.ours_per_cpu_second},
                {"l0", together->l0()},
                {"baseline", {{"name", name}, {"sae_tokens_per_s", rates.baseline}}},
                {"ratio", rates.ours / rates.baseline},
                {"arch", bench.arch},
                {"n", bench.saes},
                {"d_in", bench.d_in},
                {"d_sae", bench.d_sae},
                {"k", spec.k ? Json(*spec.k) : Json(nullptr)},
                {"l1", spec.l1 ? Json(*spec.l1) : Json(nullptr)},
                {"l0_target", spec.l0_target ? Json(*spec.l0_target) : Json(nullptr)},
                {"batch", bench.batch},
                {"device", bench.device},
                {"precision", bench.precision},
                {"deterministic", true},
                {"threads", pool.threads()},
                {"steps", bench.steps},
                {"rounds", bench.rounds}};
  if (device == nullptr)
    measured["roofline"] = roofline(spec, d_in, together->l0(), rates);
  else {
    SAE_TRY(measured["gpu"], name_of(*device));
  }
  return measured;
}

}  // namespace saesweep::worker
