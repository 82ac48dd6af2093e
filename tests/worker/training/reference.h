// The losses as the papers write them, densely, in double, for LibTorch's autograd.
//
// What training holds still stands in `held`: a copy of the parameters that no gradient reaches. A
// step without a slope gets the gradient that training gives it by a term that is 0 and has it.
#pragma once

#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <map>
#include <string>
#include <vector>

#include "tests/worker/training/trainers.h"

namespace saesweep::worker::test {

using Named = std::map<std::string, at::Tensor>;

inline Named named_parameters(const SaeTensors& of) {
  Named all = {{"W_enc", of.w_enc}, {"b_enc", of.b_enc}, {"W_dec", of.w_dec}, {"b_dec", of.b_dec}};
  all.insert(of.more.begin(), of.more.end());
  return all;
}

inline Named in_double(const Named& of) {
  Named all;
  for (const auto& [name, tensor] : of) all[name] = tensor.detach().to(at::kDouble).clone();
  return all;
}

struct Forward {
  at::Tensor loss;
  at::Tensor codes;  // selected
};

inline at::Tensor keep(const at::Tensor& f, std::int64_t count) {
  const auto top = f.topk(count, -1);
  return at::zeros_like(f).scatter(-1, std::get<1>(top), 1.0);
}

inline at::Tensor squared(const at::Tensor& error) { return error.square().sum(1).mean(); }

// sum_i f_i^p of each row, or its 1/p-th power; mean over rows.
inline at::Tensor powers_of(const at::Tensor& f, const TrainingSpec& spec) {
  const at::Tensor on = f.gt(0).detach();
  const at::Tensor of_row =
      (at::where(on, f, at::ones_like(f)).pow(spec.p_start) * on).sum(1);  // 0^p has no slope
  const bool lp = spec.sparsity_function == sweeps::SparsityFunction::kLp;
  return (lp ? of_row.pow(1 / spec.p_start) : of_row).mean();
}

inline Forward gated_forward(const TrainingSpec& spec, const Named& p, const Named& held,
                             const at::Tensor& x) {
  const at::Tensor u = at::mm(x - p.at("b_dec"), p.at("W_enc").t());
  const at::Tensor gate = (u + p.at("b_enc")).relu();
  const at::Tensor f = gate.gt(0).detach() * (p.at("r_mag").exp() * u + p.at("b_mag")).relu();
  const at::Tensor penalty =
      spec.architecture == Architecture::kGated ? gate.sum(1).mean() : powers_of(gate, spec);
  return {squared(x - at::addmm(p.at("b_dec"), f, p.at("W_dec"))) + *spec.l1 * penalty +
              squared(x - at::addmm(held.at("b_dec"), gate, held.at("W_dec"))),
          f.detach()};
}

inline Forward jumprelu_forward(const TrainingSpec& spec, const Named& p, const Named& held,
                                const at::Tensor& row) {
  using sweeps::SparsityLoss;
  const at::Tensor x = row.narrow(1, 0, p.at("W_enc").size(1));
  const std::int64_t d_out = p.at("W_dec").size(1);
  const at::Tensor y = row.narrow(1, row.size(1) - d_out, d_out);
  const double bandwidth = spec.bandwidth;
  const at::Tensor z = at::addmm(p.at("b_enc"), x, p.at("W_enc").t());
  const at::Tensor& threshold = p.at("threshold");
  const at::Tensor on = z.gt(threshold).detach();
  const auto near = [&](const at::Tensor& value) {
    return ((value - threshold) / bandwidth).abs().lt(0.5).to(at::kDouble).detach();
  };
  const at::Tensor moves = threshold - held.at("threshold");  // 0, with a slope
  const at::Tensor f = z * on - (held.at("threshold") / bandwidth) * near(z) * moves;
  const bool to_target = spec.sparsity_loss == SparsityLoss::kL0Target;
  const at::Tensor step =
      f.gt(threshold).to(at::kDouble).detach() - near(to_target ? f : z) / bandwidth * moves;
  const at::Tensor l0 = step.sum(1).mean();
  at::Tensor penalty = *spec.l0_coefficient * l0;
  if (to_target) penalty = *spec.l0_coefficient * (l0 / *spec.l0_target - 1).square();
  if (spec.sparsity_loss == SparsityLoss::kTanh) {
    const at::Tensor norms = p.at("W_dec").norm(2, {1});
    penalty = *spec.l0_coefficient * (spec.tanh_scale * f * norms).tanh().sum(1).mean() +
              spec.pre_act_weight * ((threshold - z).relu() * norms).sum(1).mean();
  }
  return {squared(y - at::addmm(p.at("b_dec"), f, p.at("W_dec"))) + penalty, f.detach()};
}

// The dead, who are silent in this batch, reconstruct the residual.
inline at::Tensor auxiliary_loss(const TrainingSpec& spec, const Named& p, const at::Tensor& f,
                                 const at::Tensor& codes, const at::Tensor& residual) {
  const at::Tensor silent = codes.gt(0).any(0).logical_not();
  const std::int64_t dead = silent.sum().item<std::int64_t>();
  if (dead == 0 || spec.dead_after_tokens > spec.batch) return at::zeros({}, at::kDouble);
  const at::Tensor e = residual.detach();
  const at::Tensor of_dead = at::where(silent, f, at::zeros_like(f));
  const at::Tensor kept = of_dead * keep(of_dead, std::min(e.size(1) / 2, dead)).detach();
  return spec.aux_k_weight * squared(e - at::mm(kept, p.at("W_dec"))) / squared(e - e.mean(0));
}

inline Forward topk_forward(const TrainingSpec& spec, const Named& p, const at::Tensor& x) {
  const auto k = static_cast<std::int64_t>(*spec.k);
  const at::Tensor read = sweeps::is_crosscoder(spec.architecture) ? x : x - p.at("b_dec");
  const at::Tensor f = at::addmm(p.at("b_enc"), read, p.at("W_enc").t()).relu();  // [rows, d_sae]
  const at::Tensor kept = spec.architecture == Architecture::kTopK
                              ? keep(f, k)
                              : keep(f.flatten(), std::min(k * x.size(0), f.numel())).view_as(f);
  const at::Tensor codes = f * kept.detach();
  const at::Tensor residual = x - at::addmm(p.at("b_dec"), codes, p.at("W_dec"));
  at::Tensor loss = squared(residual);
  if (spec.architecture == Architecture::kMatryoshka) {
    const auto sizes = spec.group_sizes();
    const double weight = 1.0 / static_cast<double>(sizes.size() * sizes.size());
    loss = at::zeros({}, at::kDouble);
    std::int64_t end = 0;
    for (const std::uint64_t size : sizes) {
      end += static_cast<std::int64_t>(size);
      loss = loss + weight * squared(x - at::addmm(p.at("b_dec"), codes.narrow(1, 0, end),
                                                   p.at("W_dec").narrow(0, 0, end)));
    }
  }
  return {loss + auxiliary_loss(spec, p, f, codes, residual), codes.detach()};
}

inline Forward relu_forward(const TrainingSpec& spec, const Named& p, const at::Tensor& x) {
  const at::Tensor f = at::addmm(p.at("b_enc"), x - p.at("b_dec"), p.at("W_enc").t()).relu();
  at::Tensor penalty = f.sum(1).mean();
  if (spec.architecture == Architecture::kStandard)
    penalty = (f * p.at("W_dec").norm(2, {1})).sum(1).mean();
  if (spec.architecture == Architecture::kPAnneal) penalty = powers_of(f, spec);
  return {squared(x - at::addmm(p.at("b_dec"), f, p.at("W_dec"))) + *spec.l1 * penalty, f.detach()};
}

// A row holds what is read, then what is predicted.
inline Forward transcoder_forward(const TrainingSpec& spec, const Named& p, const at::Tensor& row) {
  const std::int64_t d_in = p.at("W_enc").size(1);
  const at::Tensor x = row.narrow(1, 0, d_in), y = row.narrow(1, d_in, row.size(1) - d_in);
  const at::Tensor f = at::addmm(p.at("b_enc"), x, p.at("W_enc").t()).relu();
  const at::Tensor codes = f * keep(f, static_cast<std::int64_t>(*spec.k)).detach();
  at::Tensor y_hat = at::addmm(p.at("b_dec"), codes, p.at("W_dec"));
  if (spec.architecture == Architecture::kSkipTranscoder)
    y_hat = y_hat + at::mm(x, p.at("W_skip").t());
  const at::Tensor fvu = (y - y_hat).square().sum() / (y - y.mean(0)).square().sum();
  return {fvu + auxiliary_loss(spec, p, f, codes, y - y_hat), codes.detach()};
}

// Two hooks side by side.
inline Forward crosscoder_forward(const TrainingSpec& spec, const Named& p, const at::Tensor& x) {
  const at::Tensor f = at::addmm(p.at("b_enc"), x, p.at("W_enc").t()).relu();
  at::Tensor loss = at::zeros({}, at::kDouble), norms = at::zeros({f.size(1)}, at::kDouble);
  for (std::int64_t half = 0; half < 2; ++half) {
    const std::int64_t d = x.size(1) / 2, column = half * d;
    const at::Tensor w_dec = p.at("W_dec").narrow(1, column, d);
    loss = loss + squared(x.narrow(1, column, d) -
                          at::addmm(p.at("b_dec").narrow(0, column, d), f, w_dec));
    norms = norms + w_dec.norm(2, {1});
  }
  return {loss + *spec.l1 * (f * norms).sum(1).mean(), f.detach()};
}

// All in double.
inline Forward forward(const TrainingSpec& spec, const Named& parameters, const Named& held,
                       const at::Tensor& x) {
  switch (spec.architecture) {
    case Architecture::kGated:
    case Architecture::kGatedPAnneal:
      return gated_forward(spec, parameters, held, x);
    case Architecture::kJumpRelu:
    case Architecture::kJumpReluTranscoder:
      return jumprelu_forward(spec, parameters, held, x);
    case Architecture::kTopK:
    case Architecture::kBatchTopK:
    case Architecture::kMatryoshka:
    case Architecture::kBatchTopKCrosscoder:
      return topk_forward(spec, parameters, x);
    case Architecture::kTranscoder:
    case Architecture::kSkipTranscoder:
      return transcoder_forward(spec, parameters, x);
    case Architecture::kCrosscoder:
      return crosscoder_forward(spec, parameters, x);
    default:
      return relu_forward(spec, parameters, x);
  }
}

struct Reference {
  double loss = 0;
  Named gradients;
  at::Tensor codes;
};

inline Reference reference(const TrainingSpec& spec, const SaeTensors& of, const at::Tensor& x) {
  Named parameters = in_double(named_parameters(of));
  const Named held = in_double(parameters);
  std::vector<at::Tensor> inputs;
  for (auto& [name, tensor] : parameters) inputs.push_back(tensor.requires_grad_(true));
  const c10::AutoGradMode with_gradients(true);
  const Forward result = forward(spec, parameters, held, x.to(at::kDouble));
  const auto gradients = torch::autograd::grad({result.loss}, inputs);
  Reference reference{result.loss.item<double>(), {}, result.codes};
  std::size_t i = 0;
  for (const auto& [name, tensor] : parameters) reference.gradients[name] = gradients[i++];
  return reference;
}

}  // namespace saesweep::worker::test
