#include "worker/agent/store.h"

#include <string_view>

#include "core/files.h"

namespace saesweep::agent {
namespace {

constexpr std::uint64_t kMostTokenBytes = 4096;
constexpr std::string_view kAnyHost = "tcp://*:", kTcp = "tcp://";

// "tcp://*:PORT" at the host over which we speak to the scheduler.
std::string with_host(const std::string& endpoint, const std::string& found_at) {
  const std::size_t colon = found_at.rfind(':');
  if (!endpoint.starts_with(kAnyHost) || !found_at.starts_with(kTcp) || colon < kTcp.size())
    return endpoint;
  return found_at.substr(0, colon + 1) + endpoint.substr(kAnyHost.size());
}

bool is_in_sight(const protocol::Welcome& welcome) {
  const std::filesystem::path named = welcome.store_directory();
  if (!named.is_absolute()) return false;
  const auto token = read_file(named / "store-token", kMostTokenBytes);
  return token && *token == welcome.store_token();
}

}  // namespace

Result<StoreInUse> find_store(const protocol::Welcome& welcome, const StoreInUse& before,
                              const std::string& found_at) {
  StoreInUse store;
  store.is_known = true;
  store.token = welcome.store_token();
  const std::string& named = welcome.store_directory();
  if (before.is_known && before.token != store.token)
    return fail(ErrorCode::kInvalidArgument,
                "another scheduler answers: its store is {}, not the one before", named);
  if (named.empty()) return store;
  // How it was found first is how it stays: what is under way is where it began.
  const bool in_sight = !(before.is_known && before.travels) && is_in_sight(welcome);
  if (in_sight) {
    store.directory = named;
    SAE_TRY_VOID(make_directories(store.directory / "logs"));
    return store;
  }
  if (welcome.data_endpoint().empty() || (before.is_known && !before.travels))
    return fail(ErrorCode::kInvalidArgument,
                "the scheduler keeps checkpoints and artifacts in {}, which this machine does not "
                "share with it, and it has no data port: run the worker where it is, serve with "
                "--data-listen, or with --artifacts DIR on a file system that both see",
                named);
  store.travels = true;
  store.data_endpoint = with_host(welcome.data_endpoint(), found_at);
  return store;
}

}  // namespace saesweep::agent
