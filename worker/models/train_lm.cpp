#include "worker/models/train_lm.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <numbers>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/files.h"
#include "core/philox.h"
#include "storage/formats/safetensors.h"
#include "worker/data/othello.h"
#include "worker/tensor_bytes.h"

namespace saesweep::worker {
namespace {

constexpr std::int64_t kGamesPerPiece = 32;  // part of the numerics: changes the order of sums
constexpr double kBeta1 = 0.9, kBeta2 = 0.95, kEpsilon = 1e-8;
constexpr double kMuonMomentum = 0.95;
// Makes the root mean square of a muon step that of a typical AdamW step, so that both share one
// rate and one weight decay. Source: Moonlight, arXiv:2502.16982, section 2.2.
constexpr double kMuonScale = 0.2;

struct Batch {
  at::Tensor inputs;   // [games, context] int64
  at::Tensor targets;  // [games, context] int64, -100 where there is none
  at::Tensor exact;    // [games, context, vocabulary]: probability of each next move, if asked for
  std::uint64_t target_count = 0;
};

// Uniform play: every legal move is as likely as the others.
void fill_exact_targets(const TokenDocuments& documents, const std::vector<std::uint64_t>& games,
                        at::Tensor& exact) {
  const othello::Rules rules(documents.board());
  auto probability = exact.accessor<float, 3>();
  for (std::size_t row = 0; row < games.size(); ++row) {
    const auto tokens = documents.tokens(games[row]);
    othello::Position position = rules.start();
    for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
      position = rules.play(position, rules.bit_of(rules.square_of_token(tokens[i])));
      othello::Bits legal = rules.legal(position);
      const float each = 1.0F / static_cast<float>(std::popcount(legal));
      for (; legal != 0; legal &= legal - 1) {
        const int token = rules.token_of(rules.square_of(legal & (~legal + 1)));
        probability[static_cast<std::int64_t>(row)][static_cast<std::int64_t>(i)][token] = each;
      }
    }
  }
}

Batch make_batch(const TokenDocuments& documents, const std::vector<std::uint64_t>& games,
                 bool exact = false) {
  const auto rows = static_cast<std::int64_t>(games.size());
  const std::int64_t length = documents.context();
  Batch batch;
  batch.inputs = at::zeros({rows, length}, at::kLong);
  batch.targets = at::full({rows, length}, -100, at::kLong);
  auto inputs = batch.inputs.accessor<std::int64_t, 2>();
  auto targets = batch.targets.accessor<std::int64_t, 2>();
  for (std::int64_t row = 0; row < rows; ++row) {
    const auto tokens = documents.tokens(games[static_cast<std::size_t>(row)]);
    for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
      inputs[row][static_cast<std::int64_t>(i)] = tokens[i];
      targets[row][static_cast<std::int64_t>(i)] = tokens[i + 1];
      ++batch.target_count;
    }
  }
  if (exact) {
    batch.exact = at::zeros({rows, length, documents.vocabulary()}, at::kFloat);
    fill_exact_targets(documents, games, batch.exact);
  }
  return batch;
}

at::Tensor summed_cross_entropy(const Transformer& model, const Batch& batch,
                                sweeps::Precision precision) {
  ForwardRequest request;
  request.bf16_products = precision == sweeps::Precision::kBFloat16;
  const at::Tensor logits = model.forward(batch.inputs, request).logits;
  if (batch.exact.defined()) return -(at::log_softmax(logits, -1) * batch.exact).sum();
  return at::cross_entropy_loss(logits.reshape({-1, logits.size(-1)}), batch.targets.reshape({-1}),
                                {}, at::Reduction::Sum, -100);
}

// Matrices inside the blocks; embeddings, head, gains and biases are not.
bool is_block_matrix(const std::string& name, const at::Tensor& weight) {
  return weight.dim() == 2 && name.rfind("h.", 0) == 0;
}

// U V^T of the singular value decomposition U S V^T, roughly: singular values end near 1, between
// 0.7 and 1.2.   matrix: [rows, columns] -> [rows, columns]
// Source: Newton-Schulz iteration of fifth order, coefficients of Muon (K. Jordan,
// https://kellerjordan.github.io/posts/muon), which is stable in bf16.
at::Tensor orthogonalised(const at::Tensor& matrix, sweeps::Precision precision) {
  const bool tall = matrix.size(0) > matrix.size(1);
  at::Tensor x = tall ? matrix.t() : matrix;
  x = x / (x.norm() + 1e-7);
  if (precision == sweeps::Precision::kBFloat16) x = x.to(at::kBFloat16);
  for (int i = 0; i < 5; ++i) {
    const at::Tensor a = at::mm(x, x.t());
    const at::Tensor b = at::addmm(a, a, a, -4.7750, 2.0315);
    x = at::addmm(x, b, x, 3.4445, 1.0);
  }
  return (tall ? x.t() : x).to(at::kFloat);
}

}  // namespace

LmTrainer::LmTrainer(sweeps::TrainLmSpec spec, Transformer model, ThreadPool& pool,
                     std::shared_ptr<const TokenDocuments> documents)
    : spec_(std::move(spec)),
      model_(std::move(model)),
      pool_(&pool),
      documents_(std::move(documents)) {
  for (std::uint64_t game = 0; game < documents_->count(); ++game)
    if (!documents_->held_out(game)) training_games_.push_back(game);
  for (auto& [name, weight] : model_.weights()) {
    first_moment_.emplace(name, at::zeros_like(weight));
    second_moment_.emplace(name, at::zeros_like(weight));
    // Absent biases stay zero.
    const bool is_affine_bias = name.find("ln_") == std::string::npos && name.size() > 5 &&
                                name.compare(name.size() - 5, 5, ".bias") == 0;
    weight.requires_grad_(spec_.bias || !is_affine_bias);
  }
}

Result<LmTrainer> LmTrainer::create(const sweeps::TrainLmSpec& spec, ThreadPool& pool) {
  SAE_TRY(auto documents,
          TokenDocuments::open(spec.data, spec.holdout, spec.context, pool.threads()));
  TransformerConfig config;
  config.layers = spec.layers;
  config.d_model = spec.d_model;
  config.heads = spec.heads;
  config.d_mlp = spec.d_mlp;
  config.context = spec.context;
  config.vocabulary = documents->vocabulary();
  config.activation = spec.activation;
  config.tied = spec.tied;
  config.bias = spec.bias;
  // from_json holds the rules about shapes.
  SAE_TRY(config, TransformerConfig::from_json(config.to_json()));
  SAE_TRY(Transformer model, Transformer::random(config, spec.seed));
  for (auto& [name, weight] : model.weights())
    if (weight.dim() > 1) weight.mul_(spec.init_scale);
  LmTrainer trainer(spec, std::move(model), pool, std::move(documents));
  if (trainer.training_games_.empty())
    return fail(ErrorCode::kInvalidArgument, "data.games {}: none is left for training",
                spec.data.games);
  return trainer;
}

double LmTrainer::learning_rate() const {
  const auto step = static_cast<double>(step_);
  const auto warmup = static_cast<double>(spec_.warmup_steps);
  if (step < warmup) return spec_.lr * (step + 1) / warmup;
  const double done = (step - warmup) / std::max(1.0, static_cast<double>(steps()) - warmup);
  const double low = spec_.final_lr_fraction;
  return spec_.lr * (low + (1 - low) / 2 * (1 + std::cos(std::numbers::pi * std::min(1.0, done))));
}

void LmTrainer::move_by_adamw(const std::string& name, at::Tensor& weight,
                              const at::Tensor& gradient, double clip) {
  const double rate = learning_rate();
  const auto t = static_cast<double>(step_ + 1);
  const auto correction1 = static_cast<float>(1 / (1 - std::pow(kBeta1, t)));
  const auto correction2 = static_cast<float>(1 / (1 - std::pow(kBeta2, t)));
  float* w = weight.mutable_data_ptr<float>();
  float* m = first_moment_.at(name).mutable_data_ptr<float>();
  float* v = second_moment_.at(name).mutable_data_ptr<float>();
  const float* g = gradient.const_data_ptr<float>();
  const auto decay = static_cast<float>(weight.dim() > 1 ? 1 - rate * spec_.weight_decay : 1.0);
  const auto rate32 = static_cast<float>(rate);
  const auto clip32 = static_cast<float>(clip);
  constexpr auto kB1 = static_cast<float>(kBeta1), kB2 = static_cast<float>(kBeta2);
  for (std::int64_t j = 0; j < weight.numel(); ++j) {
    const float clipped = g[j] * clip32;
    m[j] = kB1 * m[j] + (1 - kB1) * clipped;
    v[j] = kB2 * v[j] + (1 - kB2) * clipped * clipped;
    w[j] = w[j] * decay - rate32 * (m[j] * correction1) /
                              (std::sqrt(v[j] * correction2) + static_cast<float>(kEpsilon));
  }
}

void LmTrainer::move_by_muon(const std::string& name, at::Tensor& weight,
                             const at::Tensor& gradient, double clip) {
  const double rate = learning_rate();
  at::Tensor& momentum = first_moment_.at(name);
  momentum.mul_(kMuonMomentum).add_(gradient, clip);
  const at::Tensor nesterov = gradient * clip + momentum * kMuonMomentum;
  weight.mul_(1 - rate * spec_.weight_decay);
  // Queries, keys and values are three matrices that share a tensor.
  const std::int64_t parts = name.find("c_attn") == std::string::npos ? 1 : 3;
  const auto moves = nesterov.chunk(parts, 1);
  auto targets = weight.chunk(parts, 1);
  for (std::size_t i = 0; i < moves.size(); ++i) {
    const auto widest = static_cast<double>(std::max(moves[i].size(0), moves[i].size(1)));
    targets[i].sub_(orthogonalised(moves[i], spec_.precision),
                    rate * kMuonScale * std::sqrt(widest));
  }
}

Result<LmStep> LmTrainer::train_step() {
  // The step's games: positions of the endless sequence of seeded permutations.
  std::vector<std::uint64_t> games;
  const std::uint64_t per_pass = training_games_.size();
  for (std::uint64_t i = 0; i < spec_.batch; ++i) {
    const std::uint64_t position = step_ * spec_.batch + i;
    const Permutation order(per_pass, spec_.seed, "train_lm.order", position / per_pass);
    games.push_back(training_games_[order(position % per_pass)]);
  }

  std::vector<std::string> names;
  std::vector<at::Tensor> parameters;
  for (const auto& [name, weight] : model_.weights()) {
    if (!weight.requires_grad()) continue;
    names.push_back(name);
    parameters.push_back(weight);
  }
  const std::int64_t pieces =
      (static_cast<std::int64_t>(games.size()) + kGamesPerPiece - 1) / kGamesPerPiece;
  std::vector<std::vector<at::Tensor>> gradients(static_cast<std::size_t>(pieces));
  std::vector<double> losses(static_cast<std::size_t>(pieces), 0);
  std::vector<std::uint64_t> counts(static_cast<std::size_t>(pieces), 0);
  pool_->run(pieces, [&](std::int64_t piece) {
    const c10::AutoGradMode with_gradients(true);
    const auto begin = games.begin() + piece * kGamesPerPiece;
    const auto end = std::min(games.end(), begin + kGamesPerPiece);
    const Batch batch = make_batch(*documents_, {begin, end}, spec_.targets == "exact");
    const at::Tensor loss = summed_cross_entropy(model_, batch, spec_.precision);
    const auto at = static_cast<std::size_t>(piece);
    losses[at] = loss.item<double>();
    counts[at] = batch.target_count;
    gradients[at] = torch::autograd::grad({loss}, parameters);
  });

  LmStep result;
  double loss = 0;
  for (std::size_t piece = 0; piece < losses.size(); ++piece) {
    loss += losses[piece];
    result.tokens += counts[piece];
  }
  const double scale = 1 / static_cast<double>(std::max<std::uint64_t>(1, result.tokens));
  result.loss = loss * scale;
  std::vector<double> squares(parameters.size(), 0);
  pool_->run(static_cast<std::int64_t>(parameters.size()), [&](std::int64_t i) {
    const auto at = static_cast<std::size_t>(i);
    at::Tensor& sum = gradients[0][at];
    sum = sum.contiguous();
    for (std::size_t piece = 1; piece < gradients.size(); ++piece) sum.add_(gradients[piece][at]);
    sum.mul_(scale);
    const float* values = sum.const_data_ptr<float>();
    for (std::int64_t j = 0; j < sum.numel(); ++j)
      squares[at] += static_cast<double>(values[j]) * values[j];
  });
  double norm_squared = 0;
  for (const double square : squares) norm_squared += square;
  result.grad_norm = std::sqrt(norm_squared);
  if (!std::isfinite(result.loss) || !std::isfinite(result.grad_norm))
    return fail(ErrorCode::kDiverged, "step {}: loss {}, gradient norm {}", step_, result.loss,
                result.grad_norm);

  const double clip = spec_.grad_clip > 0 && result.grad_norm > spec_.grad_clip
                          ? spec_.grad_clip / result.grad_norm
                          : 1.0;
  pool_->run(static_cast<std::int64_t>(parameters.size()), [&](std::int64_t i) {
    const auto at = static_cast<std::size_t>(i);
    at::Tensor weight = parameters[at].detach();
    if (spec_.optimizer == "muon" && is_block_matrix(names[at], weight))
      move_by_muon(names[at], weight, gradients[0][at], clip);
    else
      move_by_adamw(names[at], weight, gradients[0][at], clip);
  });
  ++step_;
  tokens_ += result.tokens;
  return result;
}

LmQuality LmTrainer::measure(std::uint64_t games) const {
  const auto& held_out = documents_->held_out_documents();
  const std::size_t count = std::min<std::size_t>(games, held_out.size());
  const othello::Rules rules(documents_->board());
  const std::int64_t pieces =
      (static_cast<std::int64_t>(count) + kGamesPerPiece - 1) / kGamesPerPiece;
  struct Sums {
    double cross_entropy = 0, optimum = 0;
    std::uint64_t targets = 0, illegal = 0;
  };
  std::vector<Sums> sums(static_cast<std::size_t>(pieces));
  pool_->run(pieces, [&](std::int64_t piece) {
    Sums& sum = sums[static_cast<std::size_t>(piece)];
    const auto first = static_cast<std::size_t>(piece * kGamesPerPiece);
    const auto last = std::min(count, first + static_cast<std::size_t>(kGamesPerPiece));
    std::vector<std::uint64_t> some;
    for (std::size_t i = first; i < last; ++i) some.push_back(held_out[i]);
    const Batch batch = make_batch(*documents_, some);
    const at::Tensor logits = model_.forward(batch.inputs, {}).logits;
    sum.cross_entropy =
        at::cross_entropy_loss(logits.reshape({-1, logits.size(-1)}), batch.targets.reshape({-1}),
                               {}, at::Reduction::Sum, -100)
            .item<double>();
    const at::Tensor top = logits.argmax(-1);
    const auto guess = top.accessor<std::int64_t, 2>();
    for (std::size_t row = 0; row < some.size(); ++row) {
      const auto tokens = documents_->tokens(some[row]);
      othello::Position position = rules.start();
      for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
        position = rules.play(position, rules.bit_of(rules.square_of_token(tokens[i])));
        const othello::Bits legal = rules.legal(position);
        ++sum.targets;
        sum.optimum += std::log(static_cast<double>(std::popcount(legal)));
        const int square = rules.square_of_token(
            static_cast<int>(guess[static_cast<std::int64_t>(row)][static_cast<std::int64_t>(i)]));
        if (square < 0 || (legal & rules.bit_of(square)) == 0) ++sum.illegal;
      }
    }
  });
  LmQuality quality;
  quality.games = count;
  std::uint64_t illegal = 0;
  for (const Sums& sum : sums) {
    quality.cross_entropy += sum.cross_entropy;
    quality.optimum += sum.optimum;
    quality.targets += sum.targets;
    illegal += sum.illegal;
  }
  const auto targets = static_cast<double>(std::max<std::uint64_t>(1, quality.targets));
  quality.cross_entropy /= targets;
  quality.optimum /= targets;
  quality.illegal_rate = static_cast<double>(illegal) / targets;
  return quality;
}

Result<void> LmTrainer::save(const std::filesystem::path& file) const {
  std::map<std::string, at::Tensor> tensors;
  for (const auto& [name, weight] : model_.weights()) {
    tensors.emplace("weight/" + name, weight.detach());
    tensors.emplace("m/" + name, first_moment_.at(name));
    tensors.emplace("v/" + name, second_moment_.at(name));
  }
  return write_file_atomically(file,
                               serialize_tensors(tensors, {{"step", std::to_string(step_)},
                                                           {"tokens", std::to_string(tokens_)},
                                                           {"identity", spec_.identity().hex()}}));
}

Result<void> LmTrainer::load(const std::filesystem::path& path) {
  SAE_TRY(const auto file, storage::Safetensors::open(path));
  const auto& metadata = file.metadata();
  const auto value = [&](const char* key) {
    const auto found = metadata.find(key);
    return found == metadata.end() ? std::string() : found->second;
  };
  if (value("identity") != spec_.identity().hex())
    return fail(ErrorCode::kCorrupted, "{} is a checkpoint of another job", path.string());
  const auto number = [&](const char* key) -> Result<std::uint64_t> {
    const std::string text = value(key);
    std::uint64_t parsed = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), parsed);
    if (error != std::errc() || end != text.data() + text.size())
      return fail(ErrorCode::kCorrupted, "{}: {} is \"{}\"", path.string(), key, text);
    return parsed;
  };
  SAE_TRY(const std::uint64_t step, number("step"));
  SAE_TRY(const std::uint64_t tokens, number("tokens"));

  // Everything is read before anything changes.
  std::vector<std::pair<at::Tensor, at::Tensor>> copies;  // to, from
  const auto restore = [&](const std::string& key, const at::Tensor& target) -> Result<void> {
    const auto* view = file.find(key);
    if (view == nullptr || view->dtype != "F32" || view->shape != target.sizes().vec())
      return fail(ErrorCode::kCorrupted, "{}: no tensor \"{}\" of the right shape", path.string(),
                  key);
    SAE_TRY(at::Tensor tensor, to_float_tensor(*view, key));
    copies.emplace_back(target.detach(), std::move(tensor));
    return {};
  };
  for (const auto& [name, weight] : model_.weights()) {
    SAE_TRY_VOID(restore("weight/" + name, weight));
    SAE_TRY_VOID(restore("m/" + name, first_moment_.at(name)));
    SAE_TRY_VOID(restore("v/" + name, second_moment_.at(name)));
  }
  for (auto& [to, from] : copies) to.copy_(from);
  step_ = step;
  tokens_ = tokens;
  return {};
}

}  // namespace saesweep::worker
