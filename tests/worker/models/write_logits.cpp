// Prints what a model folder predicts, for other programs to compare with.
//
//   write_logits FOLDER TOKENS.json > logits.json
//
// TOKENS.json holds sequences of equal length, [[1, 2, ...], ...]; the output has the logits of
// each position, [[[...], ...], ...], and what the sequences score: {"logits": ...,
// "cross_entropy": ...}, the mean over all next tokens that are not padding (0).
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/core.h>

#include <cstdio>
#include <filesystem>

#include "core/files.h"
#include "core/json.h"
#include "worker/models/transformer.h"

namespace saesweep::worker {
namespace {

Result<Json> logits_of(const std::filesystem::path& folder, const std::filesystem::path& file) {
  SAE_TRY(const Transformer model, Transformer::load(folder));
  SAE_TRY(const std::string text, read_file(file));
  SAE_TRY(const Json rows, parse_json(text));
  if (!rows.is_array() || rows.empty() || !rows[0].is_array() || rows[0].empty())
    return fail(ErrorCode::kInvalidArgument, "{}: no sequences", file.string());
  const auto batch = static_cast<std::int64_t>(rows.size());
  const auto length = static_cast<std::int64_t>(rows[0].size());
  if (length > model.config().context)
    return fail(ErrorCode::kInvalidArgument, "{}: {} tokens where the model reads {}",
                file.string(), length, model.config().context);
  at::Tensor tokens = at::zeros({batch, length}, at::kLong);
  auto ids = tokens.accessor<std::int64_t, 2>();
  for (std::int64_t row = 0; row < batch; ++row) {
    const Json& sequence = rows[static_cast<std::size_t>(row)];
    if (!sequence.is_array() || static_cast<std::int64_t>(sequence.size()) != length)
      return fail(ErrorCode::kInvalidArgument, "{}: sequence {} is not {} long", file.string(), row,
                  length);
    for (std::int64_t i = 0; i < length; ++i) {
      const Json& id = sequence[static_cast<std::size_t>(i)];
      if (!id.is_number_integer() || id.get<std::int64_t>() < 0 ||
          id.get<std::int64_t>() >= model.config().vocabulary)
        return fail(ErrorCode::kInvalidArgument, "{}: token {}", file.string(), id.dump());
      ids[row][i] = id.get<std::int64_t>();
    }
  }
  const at::Tensor logits = model.forward(tokens, {}).logits;
  Json written = Json::array();
  const auto values = logits.accessor<float, 3>();
  for (std::int64_t row = 0; row < batch; ++row) {
    Json& sequence = written.emplace_back(Json::array());
    for (std::int64_t i = 0; i < length; ++i) {
      Json& position = sequence.emplace_back(Json::array());
      for (std::int64_t token = 0; token < logits.size(2); ++token)
        position.push_back(static_cast<double>(values[row][i][token]));
    }
  }
  const at::Tensor predicted = logits.narrow(1, 0, length - 1).reshape({-1, logits.size(2)});
  const at::Tensor next = tokens.narrow(1, 1, length - 1).reshape({-1});
  const double cross_entropy =
      at::cross_entropy_loss(predicted, next, {}, at::Reduction::Mean, 0).item<double>();
  return Json{{"logits", written}, {"cross_entropy", cross_entropy}};
}

}  // namespace
}  // namespace saesweep::worker

int main(int argc, char** argv) {
  if (argc != 3) {
    fmt::print(stderr, "usage: write_logits FOLDER TOKENS.json\n");
    return 2;
  }
  const c10::AutoGradMode no_gradients(false);
  const auto json = saesweep::worker::logits_of(argv[1], argv[2]);
  if (!json) {
    fmt::print(stderr, "{}\n", json.error().message);
    return 2;
  }
  fmt::print("{}\n", saesweep::canonical_json(*json));
  return 0;
}
