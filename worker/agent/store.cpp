#include "worker/agent/store.h"

#include "core/files.h"

namespace saesweep::agent {
namespace {

constexpr std::uint64_t kMostTokenBytes = 4096;

}  // namespace

Result<std::filesystem::path> find_store(const protocol::Welcome& welcome,
                                         const std::filesystem::path& before) {
  const std::filesystem::path named = welcome.store_directory();
  if (named.empty()) return named;
  if (!before.empty() && before != named)
    return fail(ErrorCode::kInvalidArgument,
                "another scheduler answers: its store is {}, the one before had {}", named.string(),
                before.string());
  const auto token = read_file(named / "store-token", kMostTokenBytes);
  if (!named.is_absolute() || !token || *token != welcome.store_token())
    return fail(ErrorCode::kInvalidArgument,
                "the scheduler keeps checkpoints and artifacts in {}, which this machine does not "
                "share with it: run the worker where it is, or serve with --artifacts DIR on a "
                "file system that both see",
                named.string());
  SAE_TRY_VOID(make_directories(named / "logs"));
  return named;
}

}  // namespace saesweep::agent
