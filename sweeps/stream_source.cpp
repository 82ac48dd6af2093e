#include "sweeps/stream_source.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "core/check.h"
#include "sweeps/model_weights.h"
#include "sweeps/nearest.h"

namespace saesweep::sweeps {
namespace {

namespace fs = std::filesystem;
using namespace std::string_view_literals;

// More games than any machine here holds; document numbers stay well inside 32 bits.
constexpr std::uint64_t kMaxGames = 1'000'000'000;
constexpr std::array kSources{"othello"sv, "activations"sv};

// 0.07 and 7% are one share: rounding to 12 digits takes away what the percent sign adds.
double share_of(double percent) {
  const std::string text = fmt::format("{:.12g}", percent / 100);
  double share = 0;
  std::from_chars(text.data(), text.data() + text.size(), share);
  return share;
}

// The word of data.source; nothing if it is missing or wrong, which is reported.
std::optional<std::string> read_source_word(const Section& top, const YamlNode& data,
                                            Problems& problems) {
  const YamlNode* node = data.is_map() ? data.find("source") : nullptr;
  const std::string path = join_path(top.path_of("data"), "source");
  if (node == nullptr || node->is_null()) {
    problems.add(data, data.is_map() ? path : top.path_of("data"),
                 data.is_map() ? "is missing; othello or activations would be right"
                               : fmt::format("is {}; a map with source: othello would be right",
                                             describe(data)));
    return std::nullopt;
  }
  auto text = scalar_text(*node, path, "othello or activations would be right", problems);
  if (!text) return std::nullopt;
  if (std::find(kSources.begin(), kSources.end(), *text) != kSources.end()) return text;
  const auto later = later_sources();
  if (std::find(later.begin(), later.end(), *text) != later.end())
    problems.add(*node, path,
                 fmt::format("'{}' is not available in this version; othello or "
                             "activations would be right",
                             *text));
  else
    problems.add(*node, path,
                 fmt::format("{} is no source; {}", describe(*node), suggestion(*text, kSources)));
  return std::nullopt;
}

void read_othello(const YamlNode& node, const std::string& path, StreamSource& source,
                  Problems& problems) {
  static constexpr std::array kBoards{"4"sv, "6"sv, "8"sv};
  static constexpr std::array kPlays{"uniform"sv};
  const Section section(node, path, known_keys(KeySet::kOthello), problems);
  if (const auto board = section.read_word("board", kBoards))
    source.data.board = 4 + 2 * static_cast<int>(*board);
  if (const auto play = section.read_word("play", kPlays)) source.data.play = kPlays[*play];
  section.read_count("seed", source.data.seed);
  if (section.require("games", "a number of games like 200k would be right") != nullptr)
    section.read_count("games", source.data.games, 1, kMaxGames);
  const auto board_size = static_cast<std::uint64_t>(source.data.board);
  const std::uint64_t squares = board_size * board_size;
  source.documents = source.data.games;
  // All moves of a full game but the last are inputs.
  source.rows_per_document = squares - 5;
}

void read_activation_data(const YamlNode& node, const std::string& path, const fs::path& directory,
                          StreamSource& source, Problems& problems) {
  const Section section(node, path, known_keys(KeySet::kActivationData), problems);
  const YamlNode* file =
      section.require("path", "a safetensors file, or a folder of them, would be right");
  const YamlNode* tensor = section.require("tensor", "the name of a tensor [n, d] would be right");
  if (file == nullptr || tensor == nullptr) return;
  const auto file_text =
      scalar_text(*file, section.path_of("path"), "a path would be right", problems);
  const auto tensor_text =
      scalar_text(*tensor, section.path_of("tensor"), "a name would be right", problems);
  if (!file_text || !tensor_text) return;
  const fs::path absolute = absolute_path(directory, *file_text);
  source.data.path = absolute.string();
  source.data.tensor = *tensor_text;
  const auto files = read_activation_files(absolute, *tensor_text);
  if (!files) {
    const bool names_tensor = files.error().code == ErrorCode::kInvalidArgument;
    return section.add(names_tensor ? "tensor" : "path", files.error().message);
  }
  const auto digest = files_digest(files->files);
  if (!digest) return section.add("path", digest.error().message);
  source.data.digest = *digest;
  source.width = files->d_in;
  source.documents = (files->rows + kRowsPerActivationDocument - 1) / kRowsPerActivationDocument;
  source.rows_per_document = kRowsPerActivationDocument;
}

void read_model(const Section& top, const fs::path& directory, StreamSource& source,
                Problems& problems) {
  const YamlNode* node = top.find("model");
  if (source.is_activations()) {
    if (node != nullptr)
      top.add("model",
              "stands beside 'source: activations', which needs no model; leaving it out "
              "would be right");
    return;
  }
  if (node == nullptr) {
    top.require("model", "{path: FOLDER} with config.json and model.safetensors would be right");
    return;
  }
  const std::size_t problems_before = problems.size();
  const Section section(*node, "model", known_keys(KeySet::kModel), problems);
  ModelSpec model;
  section.read_bool("random_weights", model.random_weights);
  section.read_count("seed", model.seed);
  static constexpr std::array kPrecisions{"fp32"sv, "bf16"sv};
  if (const auto word = section.read_word("precision", kPrecisions))
    model.precision = static_cast<Precision>(*word);
  if (!node->is_map()) return;
  const YamlNode* path = section.require("path",
                                         "a folder with config.json and model.safetensors "
                                         "would be right");
  if (path == nullptr) return;
  const auto text = scalar_text(*path, "model.path", "a folder would be right", problems);
  if (!text) return;
  const fs::path folder = absolute_path(directory, *text);
  model.path = folder.string();
  model.name = folder.filename().string();
  auto shape = read_model_shape(folder);
  if (!shape) return section.add("path", shape.error().message);
  source.shape = std::move(*shape);
  if (problems.size() != problems_before) return;
  if (!model.random_weights)
    if (const auto checked = check_model_weights(folder, *source.shape); !checked)
      return section.add("path", checked.error().message);
  const auto digest = model_digest(folder, *source.shape, model.random_weights, model.seed);
  if (!digest) return section.add("path", digest.error().message);
  model.digest = *digest;
  source.model = std::move(model);
}

// A model reads the games of its own board: ids must lie in its vocabulary.
void check_board(const Section& top, const StreamSource& source, Problems& problems) {
  if (!source.is_board_game() || !source.shape) return;
  const auto board_size = static_cast<std::uint64_t>(source.data.board);
  const std::uint64_t squares = board_size * board_size;
  if (source.shape->vocabulary >= squares - 3) return;
  const YamlNode* data = top.find("data");
  const YamlNode* board = data != nullptr && data->is_map() ? data->find("board") : nullptr;
  SAE_CHECK(data != nullptr, "a source without data");  // read_source saw it
  problems.add(board != nullptr ? *board : *data, "data.board",
               fmt::format("{} needs a vocabulary of {} tokens, the model has {}; the board the "
                           "model was trained on would be right",
                           source.data.board, squares - 3, source.shape->vocabulary));
}

void read_stream_hooks(const Section& section, StreamSource& source, Problems& problems) {
  const YamlNode* node = section.find("hooks");
  if (source.is_activations()) {
    if (node != nullptr)
      section.add("hooks",
                  "has no meaning for 'source: activations', which is one stream; leaving "
                  "it out would be right");
    source.hooks = {""};
    return;
  }
  if (node == nullptr) return;
  if (!node->is_sequence())
    return section.add("hooks",
                       fmt::format("is {}; a list like [blocks.2.hook_resid_post] would be "
                                   "right",
                                   describe(*node)));
  if (node->items.empty())
    return section.add("hooks", "is an empty list; at least one hook would be right");
  for (std::size_t i = 0; i < node->items.size(); ++i) {
    const YamlNode& item = node->items[i];
    const std::string path = fmt::format("activations.hooks[{}]", i);
    const auto text = scalar_text(item, path, "the name of a hook would be right", problems);
    if (!text || !check_hook(source, *text, item, path, problems)) continue;
    if (std::find(source.hooks.begin(), source.hooks.end(), *text) != source.hooks.end())
      problems.add(item, path, fmt::format("'{}' stands twice; once would be right", *text));
    else
      source.hooks.push_back(*text);
  }
}

void read_special_tokens(const Section& section, StreamSource& source, Problems& problems) {
  constexpr std::string_view kKey = "exclude_special_tokens";
  const YamlNode* node = section.find(kKey);
  if (node == nullptr) return;
  if (!node->is_sequence())
    return section.add(
        kKey, fmt::format("is {}; a list of token ids like [0] would be right", describe(*node)));
  // Without a shape the model is a problem of its own.
  const std::uint64_t most = source.shape ? source.shape->vocabulary - 1 : kNoLimit;
  std::vector<std::uint64_t>& tokens = source.stream.filters.exclude_special_tokens;
  for (std::size_t i = 0; i < node->items.size(); ++i) {
    const auto token = count_of(node->items[i], fmt::format("{}[{}]", section.path_of(kKey), i), 0,
                                most, problems);
    if (token) tokens.push_back(*token);
  }
  std::ranges::sort(tokens);
  tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
}

void read_filters(const Section& activations, StreamSource& source, Problems& problems) {
  const YamlNode* node = activations.find("filters");
  if (node == nullptr) return;
  const Section section(*node, activations.path_of("filters"), known_keys(KeySet::kFilters),
                        problems);
  if (!node->is_map()) return;
  if (source.is_activations()) {
    for (const char* key : {"remove_bos", "exclude_special_tokens"})
      if (section.find(key) != nullptr)
        section.add(key,
                    "has no meaning for 'source: activations', whose rows have no tokens; leaving "
                    "it out would be right");
  } else {
    section.read_bool("remove_bos", source.stream.filters.remove_bos);
    read_special_tokens(section, source, problems);
  }
  section.read_real("max_activation_norm_multiple",
                    source.stream.filters.max_activation_norm_multiple, 1, /*low_open=*/true);
}

void read_activations(const Section& top, StreamSource& source, Problems& problems) {
  static constexpr std::array kDTypes{"fp32"sv, "bf16"sv};
  static constexpr std::array kNormalizes{"none"sv, "unit_mean_square"sv, "sqrt_d"sv};
  static constexpr std::array kShuffles{"full"sv, "window"sv, "none"sv};
  const YamlNode* node = top.require("activations", "a map with hooks and tokens would be right");
  if (node == nullptr) return;
  const Section section(*node, "activations", known_keys(KeySet::kActivations), problems);
  if (!node->is_map()) return;
  StreamSpec& stream = source.stream;
  read_stream_hooks(section, source, problems);
  if (section.require("tokens",
                      "a number of training activations per hook, like 2M, would be "
                      "right") != nullptr)
    section.read_count("tokens", stream.tokens, 1, std::uint64_t{1} << 50);
  if (const auto word = section.read_word("dtype", kDTypes))
    stream.dtype = *word == 0 ? DType::kFloat32 : DType::kBFloat16;
  if (const auto word = section.read_word("normalize", kNormalizes))
    stream.normalize = static_cast<Normalize>(*word);
  if (const auto word = section.read_word("shuffle", kShuffles))
    stream.shuffle = static_cast<Shuffle>(*word);
  section.read_count("shuffle_rows", stream.shuffle_rows, 1, std::uint64_t{1} << 30);
  stream.holdout = read_holdout(section, problems);
  section.read_size("cache", source.cache_bytes);
  section.read_count("seed", stream.seed);
  read_filters(section, source, problems);
  const std::uint64_t rows_of_one =
      source.rows_per_document -
      (stream.filters.remove_bos && source.rows_per_document > 0 ? 1 : 0);
  const std::uint64_t rows = source.documents * rows_of_one;
  if (source.documents != 0 && stream.tokens > rows)
    section.add("tokens",
                fmt::format("{} are more than all of data has: {} documents of at most {} "
                            "tokens are {}; at most {}, or more documents, would be right",
                            stream.tokens, source.documents, rows_of_one, rows, rows));
}

}  // namespace

fs::path absolute_path(const fs::path& directory, const std::string& written) {
  std::error_code ignored;
  fs::path path = fs::absolute(directory / written, ignored).lexically_normal();
  if (!path.has_filename() && path.has_parent_path() && path != path.root_path())
    path = path.parent_path();
  return path;
}

StreamSpec StreamSource::stream_of(const std::string& hook) const {
  StreamSpec result = stream;
  result.model = model;
  result.data = data;
  result.hook = hook;
  return result;
}

std::uint64_t StreamSource::d_in(const std::string& hook) const {
  if (is_activations()) return width;
  return shape ? hook_width(*shape, hook).value_or(0) : 0;
}

DataSpec read_data(const Section& top, const fs::path& directory, StreamSource& source,
                   Problems& problems) {
  const std::size_t problems_before = problems.size();
  const YamlNode* node = top.require("data", "a map with source: othello would be right");
  if (node == nullptr) return source.data;
  const auto word = read_source_word(top, *node, problems);
  if (!word) return source.data;
  source.data.source = *word;
  if (*word == "othello")
    read_othello(*node, "data", source, problems);
  else
    read_activation_data(*node, "data", directory, source, problems);
  source.has_data = true;
  if (problems.size() != problems_before) source.documents = 0;
  return source.data;
}

double read_holdout(const Section& activations, Problems& problems) {
  constexpr double kDefault = 0.05;
  const YamlNode* node = activations.find("holdout");
  if (node == nullptr) return kDefault;
  const auto text = scalar_text(*node, activations.path_of("holdout"),
                                "a share like 5% would be right", problems);
  if (!text) return kDefault;
  const auto percent = parse_share_percent(*text);
  if (!percent) {
    activations.add("holdout", percent.error().message);
    return kDefault;
  }
  if (*percent >= 100) {
    activations.add("holdout", fmt::format("'{}' leaves nothing to train on; less than 100%, like "
                                           "5%, would be right",
                                           *text));
    return kDefault;
  }
  return share_of(*percent);
}

StreamSource read_stream_source(const Section& top, const fs::path& directory, Problems& problems) {
  StreamSource source;
  read_data(top, directory, source, problems);
  read_model(top, directory, source, problems);
  check_board(top, source, problems);
  if (source.is_board_game() && source.shape)
    source.rows_per_document = std::min(source.rows_per_document, source.shape->context);
  read_activations(top, source, problems);
  return source;
}

bool check_hook(const StreamSource& source, const std::string& hook, const YamlNode& node,
                const std::string& path, Problems& problems) {
  if (!source.shape || hook_width(*source.shape, hook)) return true;
  const std::vector<std::string> names = hook_names(*source.shape);
  const std::vector<std::string_view> words(names.begin(), names.end());
  const std::string_view nearest = nearest_word(hook, words);
  const std::string blocks = source.shape->layers == 1 ? std::string("the model has block 0")
                                                       : fmt::format("the model has blocks 0 to {}",
                                                                     source.shape->layers - 1);
  problems.add(
      node, path,
      nearest.empty()
          ? fmt::format("{} is no hook; {} and one like blocks.0.hook_resid_post would be "
                        "right",
                        describe(node), blocks)
          : fmt::format("{} is no hook; {}, did you mean '{}'?", describe(node), blocks, nearest));
  return false;
}

}  // namespace saesweep::sweeps
