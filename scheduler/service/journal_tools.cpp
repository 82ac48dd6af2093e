#include "scheduler/service/journal_tools.h"

#include <fmt/chrono.h>

#include <chrono>

#include "core/files.h"
#include "core/json.h"
#include "scheduler/protocol/message_json.h"
#include "scheduler/service/state_store.h"

namespace saesweep::scheduler {
namespace {

namespace fs = std::filesystem;

template <class Object>
Result<std::string> value_json(std::string_view bytes) {
  Object object;
  if (!object.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
    return fail(ErrorCode::kCorrupted, "its bytes are no {}", Object::descriptor()->name());
  return protocol::message_json(object);
}

struct Family {
  const char* name;
  Result<std::string> (*to_json)(std::string_view);
};
constexpr Family kFamilies[] = {{"meta", value_json<journal::Meta>},
                                {"sweep", value_json<journal::Sweep>},
                                {"task", value_json<journal::Task>},
                                {"run", value_json<journal::Run>},
                                {"event", value_json<journal::Event>}};

}  // namespace

Result<std::uint64_t> export_journal(const fs::path& journal,
                                     const std::function<bool(std::string_view)>& line) {
  SAE_TRY(const storage::Journal opened, open_journal(journal, StateStore::Mode::kReadOnly));
  std::uint64_t rows = 0;
  bool goes_on = true;
  for (const Family& family : kFamilies) {
    Result<void> readable;
    SAE_TRY_VOID(opened.scan(family.name, "", [&](std::string_view key, std::string_view value) {
      auto json = family.to_json(value);
      if (!json) {
        readable = fail(json.error().code, "the journal's {} {}: {}", family.name, key,
                        json.error().message);
        return false;
      }
      goes_on = line(fmt::format(R"({{"schema":1,"family":"{}","key":{},"value":{}}})", family.name,
                                 Json(key).dump(), *json));
      rows += goes_on ? 1 : 0;
      return goes_on;
    }));
    if (!readable) return fail(readable.error());
    if (!goes_on) break;
  }
  return rows;
}

Result<fs::path> next_backup(const fs::path& state_directory) {
  const auto now = std::chrono::system_clock::now();
  const auto milliseconds =
      std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count() % 1000;
  const fs::path parent = state_directory / "backups";
  SAE_TRY_VOID(make_directories(parent));
  return parent / fmt::format("{:%Y%m%dT%H%M%S}-{:03}Z",
                              fmt::gmtime(std::chrono::system_clock::to_time_t(now)), milliseconds);
}

Result<fs::path> backup_journal(const fs::path& state_directory) {
  // A look first: opening for writing would make a journal where there is none.
  SAE_TRY_VOID(open_journal(state_directory / "journal", StateStore::Mode::kReadOnly)
                   .map([](const storage::Journal&) {}));
  SAE_TRY(const storage::Journal journal,
          open_journal(state_directory / "journal", StateStore::Mode::kWrite));
  SAE_TRY(fs::path to, next_backup(state_directory));
  SAE_TRY_VOID(journal.backup(to));
  return to;
}

}  // namespace saesweep::scheduler
