#include "scheduler/service/journal_tools.h"

#include <fmt/chrono.h>

#include <chrono>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/files.h"
#include "core/json.h"
#include "scheduler/protocol/message_json.h"
#include "scheduler/service/state_store.h"
#include "scheduler/service/submission.h"

namespace saesweep::scheduler {
namespace {

namespace fs = std::filesystem;

// The key under which the state store keeps an object, from what it says of itself.
std::string key_of(const journal::Meta&) { return "state"; }
std::string key_of(const journal::Sweep& sweep) { return sweep.name(); }
std::string key_of(const journal::Task& task) { return task.spec().id(); }
std::string key_of(const journal::Run& run) { return fmt::format("{:016x}", run.id()); }
std::string key_of(const journal::Event& event) { return fmt::format("{:016x}", event.sequence()); }

constexpr std::size_t kMostLineBytes = std::size_t{1} << 30;
constexpr std::size_t kRowsOfABatch = 10'000;

tl::unexpected<Error> wrong(const std::string& what) {
  return fail(ErrorCode::kInvalidArgument, "{}", what);
}

}  // namespace

Result<std::uint64_t> export_journal(const fs::path& journal,
                                     const std::function<bool(std::string_view)>& line) {
  SAE_TRY(const StateStore store, StateStore::open(journal, StateStore::Mode::kReadOnly));
  const SweepState& state = store.state();
  std::uint64_t rows = 0;
  bool goes_on = true;
  Result<void> readable;
  const auto put = [&](const char* family, const auto& object) {
    if (!goes_on) return false;
    auto json = protocol::message_json(object);
    if (!json)
      readable = fail(json.error().code, "the journal's {} {}: {}", family, key_of(object),
                      json.error().message);
    goes_on = json && line(fmt::format(R"({{"schema":1,"family":"{}","key":{},"value":{}}})",
                                       family, Json(key_of(object)).dump(), *json));
    rows += goes_on ? 1 : 0;
    return goes_on;
  };
  put("meta", state.meta());
  for (const auto& [name, sweep] : state.sweeps()) put("sweep", sweep);
  std::map<std::string_view, const journal::Task*> tasks;
  for (const auto& [id, entry] : state.tasks()) tasks.emplace(id, &entry.task);
  for (const auto& [id, task] : tasks) put("task", *task);
  for (const auto& [id, run] : state.runs()) put("run", run);
  SAE_TRY_VOID(store.read_events([&](const journal::Event& event) { return put("event", event); }));
  if (!readable) return fail(readable.error());
  if (goes_on)
    (void)line(fmt::format(R"({{"schema":1,"family":"end","key":"rows","value":{}}})", rows));
  return rows;
}

// ---- import -------------------------------------------------------------------------------------

struct JournalImport::State {
  std::optional<journal::Meta> meta;
  SweepState objects;
  std::map<std::string, journal::Task> tasks;
  std::map<std::string, std::map<std::string, std::string>> rows;  // by family and key
  std::uint64_t taken = 0;
  std::optional<Json> said;  // at the end: how many rows there were
  bool checked = false;

  void load(journal::Meta read) {
    meta = read;
    objects.load(std::move(read));
  }
  void load(journal::Sweep read) { objects.load(std::move(read)); }
  void load(journal::Task read) {
    tasks[read.spec().id()] = read;
    objects.load(std::move(read));
  }
  void load(journal::Run read) { objects.load(std::move(read)); }
  void load(const journal::Event&) {}

  template <class Object>
  Result<void> take(const std::string& family, const std::string& key, const std::string& value) {
    Object object;
    SAE_TRY_VOID(protocol::parse_message_json(value, object));
    if (key_of(object) != key)
      return wrong(
          fmt::format("the {} '{}' stands under the key '{}'", family, key_of(object), key));
    if (!rows[family].emplace(key, object.SerializeAsString()).second)
      return wrong(fmt::format("the {} '{}' is there twice", family, key));
    ++taken;
    load(std::move(object));
    return {};
  }

  // Whatever an object names is there.
  Result<void> check_references() const {
    for (const auto& [id, run] : objects.runs())
      for (const std::string& task : run.tasks())
        if (const auto found = tasks.find(task); found == tasks.end() || found->second.run() != id)
          return wrong(fmt::format("run {} names {}, which is not its own", id, task));
    for (const auto& [id, task] : tasks) {
      if (!task.spec().needs().empty() && !tasks.contains(task.spec().needs()))
        return wrong(fmt::format("{} needs {}, which is not there", id, task.spec().needs()));
      if (task.run() != 0 && objects.find_run(task.run()) == nullptr)
        return wrong(fmt::format("{} is of run {}, which is not there", id, task.run()));
    }
    return {};
  }

  // Names, folders and references are those that a submission may have.
  Result<void> check_sweeps() const {
    std::map<std::uint64_t, const journal::TaskSpec*> in_order;
    for (const auto& [id, task] : tasks)
      if (!in_order.emplace(task.order(), &task.spec()).second)
        return wrong(fmt::format("{} is not alone at its place", id));
    for (const auto& [name, sweep] : objects.sweeps()) {
      Submission submission{.sweep = sweep, .tasks = {}, .lost = {}};
      for (const auto& [order, spec] : in_order) submission.tasks.push_back(*spec);
      if (auto fits = check_submission(submission); !fits)
        return wrong(fmt::format("sweep {}: {}", name, fits.error().message));
    }
    return {};
  }
};

JournalImport::JournalImport() : state_(std::make_unique<State>()) {}
JournalImport::JournalImport(JournalImport&&) noexcept = default;
JournalImport::~JournalImport() = default;

Result<void> JournalImport::take(std::string_view line) {
  state_->checked = false;
  auto row = parse_json(line, 64, kMostLineBytes);
  if (!row) return fail(row.error());
  const auto text = [&](const char* name) {
    const auto found = row->find(name);
    return found != row->end() && found->is_string() ? found->get<std::string>() : std::string();
  };
  if (!row->is_object() || row->value("schema", Json()) != 1 || !row->contains("value"))
    return wrong("no row of saesweep journal export");
  const std::string family = text("family"), key = text("key"), value = row->at("value").dump();
  if (state_->said) return wrong("a row after the last");
  if (family == "end") {
    state_->said = row->at("value");
    return {};
  }
  if (family == "meta") return state_->take<journal::Meta>(family, key, value);
  if (family == "sweep") return state_->take<journal::Sweep>(family, key, value);
  if (family == "task") return state_->take<journal::Task>(family, key, value);
  if (family == "run") return state_->take<journal::Run>(family, key, value);
  if (family == "event") return state_->take<journal::Event>(family, key, value);
  return wrong(
      fmt::format("the family '{}'; meta, sweep, task, run or event would be right", family));
}

Result<void> JournalImport::check() {
  if (!state_->said || *state_->said != state_->taken)
    return wrong(fmt::format("{} rows, and the last line does not say so: the export is not whole",
                             state_->taken));
  if (!state_->meta) return wrong("there is no row of the family meta");
  // Keys are numbers of one width, so the last is the highest.
  const auto& events = state_->rows["event"];
  const std::uint64_t last = state_->meta->last_event();
  const auto is_at = [](const auto& entry, std::uint64_t number) {
    return entry->first == fmt::format("{:016x}", number);
  };
  if (events.size() != last ||
      (last > 0 && !(is_at(events.begin(), 1) && is_at(events.rbegin(), last))))
    return wrong(fmt::format("{} events; 1 to {} would be right", events.size(), last));
  SAE_TRY_VOID(state_->check_references());
  SAE_TRY_VOID(state_->check_sweeps());
  state_->objects.settle_indexes();
  // As a scheduler finds it that begins on it: nobody works for it yet.
  SweepState begun = state_->objects;
  journal::Event started;
  started.mutable_process_started()->set_epoch(begun.meta().epoch() + 1);
  begun.apply(started);
  if (const std::string broken = begun.broken_invariant(); !broken.empty()) return wrong(broken);
  state_->checked = true;
  return {};
}

Result<std::uint64_t> JournalImport::write(const fs::path& state_directory) {
  SAE_CHECK(state_->checked, "an import is written that was not checked");
  const fs::path journal = state_directory / "journal",
                 scratch = state_directory / "journal.import";
  std::error_code ignored;
  if (fs::exists(journal, ignored))
    return wrong(fmt::format("{} is there already; a state directory without one would be right",
                             journal.string()));
  SAE_TRY_VOID(make_directories(state_directory));
  fs::remove_all(scratch, ignored);  // of an import that did not end
  std::uint64_t rows = 0;
  {
    SAE_TRY(storage::Journal opened, open_journal(scratch, StateStore::Mode::kWrite));
    std::vector<storage::JournalWrite> batch;
    const auto commit = [&]() -> Result<void> {
      rows += batch.size();
      SAE_TRY_VOID(opened.commit(batch));
      batch.clear();
      return {};
    };
    for (const auto& [family, of_family] : state_->rows)
      for (const auto& [key, value] : of_family) {
        batch.push_back({family, key, value});
        if (batch.size() == kRowsOfABatch) SAE_TRY_VOID(commit());
      }
    SAE_TRY_VOID(commit());
  }
  fs::rename(scratch, journal, ignored);
  if (ignored) return fail(ErrorCode::kUnavailable, "{}: {}", journal.string(), ignored.message());
  SAE_TRY_VOID(sync_directory(state_directory));
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
