#include "scheduler/service/state_directory.h"

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <random>

#include "core/files.h"

namespace saesweep::scheduler {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kMostBytes = 64 << 10;
constexpr const char* kEndpoint = "endpoint.json";
constexpr const char* kStore = "store.json";
constexpr const char* kToken = "store-token";

std::string new_token() {
  std::random_device random;
  std::string token;
  for (int i = 0; i < 8; ++i) token += fmt::format("{:08x}", random());
  return token;
}

}  // namespace

std::string this_host() {
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  return name.data();
}

Result<fs::path> recorded_store(const fs::path& state_directory) {
  const auto text = read_file(state_directory / kStore, kMostBytes);
  if (!text) {
    if (text.error().code == ErrorCode::kNotFound) return state_directory;
    return fail(text.error());
  }
  const auto json = parse_json(*text);
  if (!json || !json->is_object() || !json->contains("directory") ||
      !json->at("directory").is_string())
    return fail(ErrorCode::kCorrupted, "{} does not say where the store is",
                (state_directory / kStore).string());
  return fs::path(json->at("directory").get<std::string>());
}

Result<Store> open_store(const fs::path& state_directory, const fs::path& wanted) {
  SAE_TRY(const fs::path recorded, recorded_store(state_directory));
  std::error_code ignored;
  const bool is_new = !fs::exists(state_directory / kStore, ignored) &&
                      !fs::exists(state_directory / kToken, ignored) &&
                      !fs::exists(state_directory / "artifacts", ignored);
  Store store{recorded, {}};
  if (!wanted.empty() && wanted != recorded) {
    if (!is_new)
      return fail(ErrorCode::kInvalidArgument,
                  "{}: its checkpoints and artifacts are in {}, not in {}",
                  state_directory.string(), recorded.string(), wanted.string());
    SAE_TRY_VOID(make_directories(wanted));
    SAE_TRY_VOID(write_file_atomically(state_directory / kStore,
                                       pretty_json({{"directory", wanted.string()}})));
    store.directory = wanted;
  }
  SAE_TRY_VOID(make_directories(store.directory));
  auto token = read_file(store.directory / kToken, kMostBytes);
  if (!token) {
    if (token.error().code != ErrorCode::kNotFound) return fail(token.error());
    token = new_token();
    SAE_TRY_VOID(write_file_atomically(store.directory / kToken, std::string_view(*token)));
  }
  store.token = std::move(*token);
  return store;
}

Result<void> write_endpoint(const fs::path& state_directory, const Endpoint& endpoint) {
  const Json json{{"schema", 1},
                  {"endpoint", endpoint.workers},
                  {"clients", endpoint.clients.empty() ? Json(nullptr) : Json(endpoint.clients)},
                  {"data", endpoint.data.empty() ? Json(nullptr) : Json(endpoint.data)},
                  {"pid", endpoint.pid},
                  {"host", endpoint.host},
                  {"build", endpoint.build},
                  {"epoch", endpoint.epoch}};
  return write_file_atomically(state_directory / kEndpoint, pretty_json(json));
}

void remove_endpoint(const fs::path& state_directory) {
  std::error_code ignored;
  fs::remove(state_directory / kEndpoint, ignored);
}

std::optional<Endpoint> living_endpoint(const fs::path& state_directory) {
  const auto text = read_file(state_directory / kEndpoint, kMostBytes);
  if (!text) return std::nullopt;
  const auto json = parse_json(*text);
  if (!json || !json->is_object()) return std::nullopt;
  const auto word = [&](const char* name) {
    const auto found = json->find(name);
    return found != json->end() && found->is_string() ? found->get<std::string>() : std::string();
  };
  Endpoint endpoint{
      word("endpoint"), word("clients"), word("data"), 0, word("host"), word("build"), 0};
  if (const auto pid = json->find("pid"); pid != json->end() && pid->is_number_integer())
    endpoint.pid = pid->get<int>();
  if (const auto epoch = json->find("epoch"); epoch != json->end() && epoch->is_number_unsigned())
    endpoint.epoch = epoch->get<std::uint64_t>();
  if (endpoint.pid <= 0) return std::nullopt;
  if (endpoint.host == this_host() && ::kill(endpoint.pid, 0) != 0 && errno == ESRCH)
    return std::nullopt;
  return endpoint;
}

}  // namespace saesweep::scheduler
