// Reading maps the file and trusts nothing in it: every rule of the format is checked before the
// first view is handed out. Writing is a pure function from tensors to bytes.
#include "storage/formats/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <limits>
#include <string_view>
#include <utility>

#include "core/check.h"
#include "core/files.h"
#include "core/json.h"

namespace saesweep::storage {
namespace {

// Source: huggingface/safetensors refuses longer headers too.
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;
// An object of objects of lists needs three.
constexpr std::size_t kMaxHeaderDepth = 4;
constexpr std::string_view kMetadata = "__metadata__";

struct Width {
  std::string_view dtype;
  std::uint64_t bytes;
};
constexpr std::array kWidths = {
    Width{"BOOL", 1}, Width{"U8", 1},  Width{"I8", 1},  Width{"F8_E4M3", 1}, Width{"F8_E5M2", 1},
    Width{"U16", 2},  Width{"I16", 2}, Width{"F16", 2}, Width{"BF16", 2},    Width{"U32", 4},
    Width{"I32", 4},  Width{"F32", 4}, Width{"U64", 8}, Width{"I64", 8},     Width{"F64", 8},
};

// 0 for a dtype the format does not know.
std::uint64_t width_of(std::string_view dtype) {
  for (const Width& width : kWidths) {
    if (width.dtype == dtype) return width.bytes;
  }
  return 0;
}

struct Entry {
  std::string name;
  TensorView view;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

// A JSON number that is a whole number of [0, 2^63).
bool is_count(const Json& value) {
  if (value.is_number_unsigned()) {
    return value.get<std::uint64_t>() <=
           static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  }
  return value.is_number_integer() && value.get<std::int64_t>() >= 0;
}

Result<Entry> read_entry(const std::string& name, const Json& value) {
  const auto bad = [&](std::string_view why) {
    return fail(ErrorCode::kCorrupted, "safetensors: tensor '{}': {}", name, why);
  };
  if (!value.is_object()) return bad("its entry is not an object");
  const auto dtype = value.find("dtype");
  const auto shape = value.find("shape");
  const auto offsets = value.find("data_offsets");
  if (dtype == value.end() || !dtype->is_string()) return bad("no dtype");
  if (shape == value.end() || !shape->is_array()) return bad("no shape");
  if (offsets == value.end() || !offsets->is_array() || offsets->size() != 2 ||
      !is_count((*offsets)[0]) || !is_count((*offsets)[1])) {
    return bad("data_offsets is not [begin, end]");
  }

  Entry entry;
  entry.name = name;
  entry.view.dtype = dtype->get<std::string>();
  entry.begin = (*offsets)[0].get<std::uint64_t>();
  entry.end = (*offsets)[1].get<std::uint64_t>();
  std::uint64_t bytes = width_of(entry.view.dtype);
  if (bytes == 0) return bad("unknown dtype '" + entry.view.dtype + "'");
  bool overflows = false;
  for (const Json& size : *shape) {
    if (!is_count(size)) return bad("a size of its shape is not a whole number >= 0");
    const auto extent = size.get<std::int64_t>();
    entry.view.shape.push_back(extent);
    overflows |= __builtin_mul_overflow(bytes, static_cast<std::uint64_t>(extent), &bytes);
  }
  if (overflows) return bad("its shape overflows 64 bits");
  if (entry.end < entry.begin) return bad("it ends before it begins");
  if (entry.end - entry.begin != bytes) {
    return bad(fmt::format("its shape needs {} bytes, its offsets hold {}", bytes,
                           entry.end - entry.begin));
  }
  return entry;
}

// The tensors must tile the data: no overlap, no hole, nothing beyond the end.
Result<void> check_tiling(std::vector<Entry>& entries, std::uint64_t data_bytes) {
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  std::uint64_t position = 0;
  for (const Entry& entry : entries) {
    if (entry.end > data_bytes) {
      return fail(ErrorCode::kCorrupted, "safetensors: tensor '{}' ends at {}, the data at {}",
                  entry.name, entry.end, data_bytes);
    }
    if (entry.begin != position) {
      return fail(
          ErrorCode::kCorrupted, "safetensors: tensor '{}' begins at {}, {} {}", entry.name,
          entry.begin,
          entry.begin < position ? "inside the one before, which ends at" : "after a hole from",
          position);
    }
    position = entry.end;
  }
  if (position != data_bytes) {
    return fail(ErrorCode::kCorrupted, "safetensors: {} bytes of data, the tensors fill {}",
                data_bytes, position);
  }
  return {};
}

// The text of a JSON string; bytes that are no UTF-8 become U+FFFD instead of an exception.
std::string json_string(std::string_view text) {
  return Json(text).dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::uint64_t load_le64(const std::byte* from) {
  std::uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = value << 8 | std::to_integer<std::uint64_t>(from[i]);
  return value;
}

}  // namespace

struct Safetensors::State {
  std::string owned;          // the bytes, if parsed from memory
  void* mapped = MAP_FAILED;  // or the file
  std::size_t mapped_bytes = 0;
  std::map<std::string, TensorView> tensors;
  std::map<std::string, std::string> metadata;

  State() = default;
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() {
    if (mapped != MAP_FAILED) ::munmap(mapped, mapped_bytes);
  }

  Result<void> read(std::span<const std::byte> file);
};

Result<void> Safetensors::State::read(std::span<const std::byte> file) {
  if (file.size() < 8) {
    return fail(ErrorCode::kCorrupted, "safetensors: {} bytes hold no header", file.size());
  }
  const std::uint64_t header_bytes = load_le64(file.data());
  if (header_bytes > kMaxHeaderBytes || header_bytes > file.size() - 8) {
    return fail(ErrorCode::kCorrupted, "safetensors: a header of {} bytes in a file of {}",
                header_bytes, file.size());
  }
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + 8, header_bytes);
  if (!text.starts_with('{')) {
    return fail(ErrorCode::kCorrupted, "safetensors: the header does not begin with '{{'");
  }
  auto header = parse_json(text, kMaxHeaderDepth, kMaxHeaderBytes);
  if (!header) {
    return fail(ErrorCode::kCorrupted, "safetensors: header: {}", header.error().message);
  }
  if (!header->is_object()) {
    return fail(ErrorCode::kCorrupted, "safetensors: the header is not an object");
  }

  const std::span<const std::byte> data = file.subspan(8 + header_bytes);
  std::vector<Entry> entries;
  for (const auto& [name, value] : header->items()) {
    if (name == kMetadata) {
      if (!value.is_object()) {
        return fail(ErrorCode::kCorrupted, "safetensors: {} is not an object", kMetadata);
      }
      for (const auto& [key, word] : value.items()) {
        if (!word.is_string()) {
          return fail(ErrorCode::kCorrupted, "safetensors: {}.{} is not a string", kMetadata, key);
        }
        metadata.emplace(key, word.get<std::string>());
      }
      continue;
    }
    SAE_TRY(Entry entry, read_entry(name, value));
    entries.push_back(std::move(entry));
  }
  SAE_TRY_VOID(check_tiling(entries, data.size()));
  for (Entry& entry : entries) {
    entry.view.bytes = data.subspan(entry.begin, entry.end - entry.begin);
    tensors.emplace(std::move(entry.name), std::move(entry.view));
  }
  return {};
}

Safetensors::Safetensors(std::unique_ptr<State> state) : state_(std::move(state)) {}
Safetensors::Safetensors(Safetensors&&) noexcept = default;
Safetensors& Safetensors::operator=(Safetensors&&) noexcept = default;
Safetensors::~Safetensors() = default;

Result<Safetensors> Safetensors::open(const std::filesystem::path& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return fail(system_error(errno, fmt::format("open {}", path.string())));
  struct ::stat status {};
  auto state = std::make_unique<State>();
  int error = 0;
  if (::fstat(file, &status) != 0) {
    error = errno;
  } else if (!S_ISREG(status.st_mode)) {
    error = S_ISDIR(status.st_mode) ? EISDIR : EINVAL;
  } else if (status.st_size > 0) {
    state->mapped_bytes = static_cast<std::size_t>(status.st_size);
    state->mapped = ::mmap(nullptr, state->mapped_bytes, PROT_READ, MAP_PRIVATE, file, 0);
    if (state->mapped == MAP_FAILED) error = errno;
  }
  ::close(file);
  if (error != 0) return fail(system_error(error, fmt::format("map {}", path.string())));

  // An empty file is not mapped; it has no header and is refused below.
  const std::size_t bytes = state->mapped_bytes;
  const auto* begin = bytes == 0 ? nullptr : static_cast<const std::byte*>(state->mapped);
  if (auto read = state->read({begin, bytes}); !read) {
    return fail(read.error().code, "{}: {}", path.string(), read.error().message);
  }
  return Safetensors(std::move(state));
}

Result<Safetensors> Safetensors::parse(std::string bytes) {
  auto state = std::make_unique<State>();
  state->owned = std::move(bytes);
  SAE_TRY_VOID(state->read(std::as_bytes(std::span(state->owned))));
  return Safetensors(std::move(state));
}

const std::map<std::string, TensorView>& Safetensors::tensors() const { return state_->tensors; }
const std::map<std::string, std::string>& Safetensors::metadata() const { return state_->metadata; }

const TensorView* Safetensors::find(const std::string& name) const {
  const auto found = state_->tensors.find(name);
  return found == state_->tensors.end() ? nullptr : &found->second;
}

std::string serialize_safetensors(std::span<const TensorToWrite> tensors,
                                  const std::map<std::string, std::string>& metadata) {
  // Some loaders refuse a file that does not name its framework.
  std::map<std::string, std::string> words = metadata;
  words.emplace("format", "pt");

  std::string header = fmt::format("{{{}:{{", json_string(kMetadata));
  for (const auto& [key, word] : words) {
    if (!header.ends_with('{')) header += ',';
    header += fmt::format("{}:{}", json_string(key), json_string(word));
  }
  header += '}';
  std::uint64_t position = 0;
  for (const TensorToWrite& tensor : tensors) {
    std::uint64_t bytes = width_of(tensor.dtype);
    SAE_CHECK(bytes > 0, "tensor '{}' has dtype '{}'", tensor.name, tensor.dtype);
    std::string shape;
    for (const std::int64_t extent : tensor.shape) {
      SAE_CHECK(extent >= 0, "tensor '{}' has a size of {}", tensor.name, extent);
      bytes *= static_cast<std::uint64_t>(extent);
      if (!shape.empty()) shape += ',';
      shape += std::to_string(extent);
    }
    SAE_CHECK(bytes == tensor.bytes.size(), "tensor '{}' [{}] needs {} bytes and has {}",
              tensor.name, shape, bytes, tensor.bytes.size());
    header +=
        fmt::format(",{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                    json_string(tensor.name), tensor.dtype, shape, position, position + bytes);
    position += bytes;
  }
  header += '}';
  header.append((8 - header.size() % 8) % 8, ' ');
  SAE_CHECK(header.size() <= kMaxHeaderBytes, "a header of {} bytes", header.size());

  std::string file;
  file.reserve(8 + header.size() + position);
  for (int i = 0; i < 8; ++i) file += static_cast<char>(header.size() >> (8 * i) & 0xff);
  file += header;
  for (const TensorToWrite& tensor : tensors) {
    file.append(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size());
  }
  return file;
}

}  // namespace saesweep::storage
