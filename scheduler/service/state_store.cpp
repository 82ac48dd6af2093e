#include "scheduler/service/state_store.h"

#include <map>
#include <type_traits>

#include "core/check.h"
#include "scheduler/decisions/recount.h"

namespace saesweep::scheduler {
namespace {

constexpr std::uint32_t kVersion = 2;
constexpr const char* kMeta = "meta";
constexpr const char* kSweep = "sweep";
constexpr const char* kTask = "task";
constexpr const char* kRun = "run";
constexpr const char* kEvent = "event";
constexpr const char* kMetaKey = "state";

std::string key_of(std::uint64_t number) { return fmt::format("{:016x}", number); }

// Until `take`, if it answers, says no.
template <class Object, class Take>
Result<void> read_family(const storage::Journal& journal, const char* family, const Take& take,
                         std::string_view from = {}) {
  std::string broken;
  SAE_TRY_VOID(journal.scan(
      family, "",
      [&](std::string_view key, std::string_view value) {
        Object object;
        if (!object.ParseFromArray(value.data(), static_cast<int>(value.size()))) {
          broken = key;
          return false;
        }
        if constexpr (std::is_same_v<bool, decltype(take(std::move(object)))>)
          return take(std::move(object));
        take(std::move(object));
        return true;
      },
      from));
  if (!broken.empty())
    return fail(ErrorCode::kCorrupted, "the journal's {} {} cannot be read", family, broken);
  return {};
}

// Every object as its row.
using Rows = std::map<std::string, std::string>;
Rows rows_of(const SweepState& state) {
  Rows rows;
  rows[fmt::format("{} {}", kMeta, kMetaKey)] = state.meta().SerializeAsString();
  for (const auto& [name, sweep] : state.sweeps())
    rows[fmt::format("{} {}", kSweep, name)] = sweep.SerializeAsString();
  for (const auto& [id, entry] : state.tasks())
    rows[fmt::format("{} {}", kTask, id)] = entry.task.SerializeAsString();
  for (const auto& [id, run] : state.runs())
    rows[fmt::format("{} {}", kRun, key_of(id))] = run.SerializeAsString();
  return rows;
}

}  // namespace

Result<storage::Journal> open_journal(const std::filesystem::path& journal, StateStore::Mode mode) {
  return storage::Journal::open(journal, {.families = {kMeta, kSweep, kTask, kRun, kEvent},
                                          .appended = {kEvent},
                                          .version = kVersion,
                                          .read_only = mode == StateStore::Mode::kReadOnly});
}

Result<StateStore> StateStore::open(const std::filesystem::path& journal, Mode mode,
                                    Unfolded most) {
  SAE_TRY(storage::Journal opened, open_journal(journal, mode));
  StateStore store(std::move(opened), most);
  SAE_TRY_VOID(store.load());
  return store;
}

Result<void> StateStore::load() {
  SAE_TRY_VOID(read_family<journal::Meta>(
      journal_, kMeta, [this](journal::Meta meta) { state_.load(std::move(meta)); }));
  SAE_TRY_VOID(read_family<journal::Sweep>(
      journal_, kSweep, [this](journal::Sweep sweep) { state_.load(std::move(sweep)); }));
  SAE_TRY_VOID(read_family<journal::Task>(
      journal_, kTask, [this](journal::Task task) { state_.load(std::move(task)); }));
  SAE_TRY_VOID(read_family<journal::Run>(
      journal_, kRun, [this](journal::Run run) { state_.load(std::move(run)); }));
  state_.settle_indexes();
  return read_family<journal::Event>(
      journal_, kEvent,
      [this](const journal::Event& event) {
        ++unfolded_.events;
        unfolded_.bytes += event.ByteSizeLong();
        state_.apply(event, &changes_);
      },
      key_of(state_.meta().last_event() + 1));
}

Result<void> StateStore::read_events(const std::function<bool(const journal::Event&)>& take) const {
  return read_family<journal::Event>(journal_, kEvent, take);
}

void StateStore::apply(std::vector<journal::Event> events, double unix_time) {
  for (journal::Event& event : events) {
    if (is_passing(event)) {
      state_.apply(event);
      continue;
    }
    event.set_sequence(state_.meta().last_event() + 1);
    event.set_time(unix_time);
    state_.apply(event, &changes_);
    pending_.push_back(std::move(event));
  }
}

void StateStore::add_objects(std::vector<storage::JournalWrite>& batch) const {
  batch.push_back({kMeta, kMetaKey, state_.meta().SerializeAsString()});
  for (const std::string& name : changes_.sweeps)
    batch.push_back({kSweep, name, state_.sweeps().at(name).SerializeAsString()});
  for (const auto* named : changes_.tasks)
    batch.push_back({kTask, named->first, named->second.task.SerializeAsString()});
  for (const std::uint64_t id : changes_.runs) {
    const journal::Run* run = state_.find_run(id);
    batch.push_back({kRun, key_of(id),
                     run == nullptr ? std::nullopt : std::optional(run->SerializeAsString())});
  }
}

Result<void> StateStore::commit() {
  if (pending_.empty()) return {};
  if (failed_) SAE_TRY_VOID(journal_.reopen());
  Unfolded unfolded = unfolded_;
  std::vector<storage::JournalWrite> batch;
  for (const journal::Event& event : pending_) {
    std::string bytes = event.SerializeAsString();
    ++unfolded.events;
    unfolded.bytes += bytes.size();
    batch.push_back({kEvent, key_of(event.sequence()), std::move(bytes)});
  }
  const bool folds = unfolded.events >= most_.events || unfolded.bytes >= most_.bytes;
  if (folds) add_objects(batch);
  auto committed = journal_.commit(batch);
  failed_ = !committed;
  if (!committed) return committed;
  pending_.clear();
  unfolded_ = folds ? Unfolded{0, 0} : unfolded;
  if (folds) changes_ = {};
  return {};
}

Result<std::vector<std::string>> verify_journal(const std::filesystem::path& journal) {
  SAE_TRY(const storage::Journal opened, open_journal(journal, StateStore::Mode::kReadOnly));
  Rows stored, expected;
  std::uint64_t as_of = 0;  // the event
  SAE_TRY_VOID(read_family<journal::Meta>(
      opened, kMeta, [&](const journal::Meta& meta) { as_of = meta.last_event(); }));
  for (const char* family : {kMeta, kSweep, kTask, kRun})
    SAE_TRY_VOID(opened.scan(family, "", [&](std::string_view key, std::string_view value) {
      stored[fmt::format("{} {}", family, key)] = value;
      return true;
    }));
  SweepState folded;
  std::vector<std::string> differences;
  SAE_TRY_VOID(read_family<journal::Event>(opened, kEvent, [&](const journal::Event& event) {
    if (auto wrong = broken_decision(folded, event); !wrong.empty())
      differences.push_back(fmt::format("event {}: {}", event.sequence(), wrong));
    folded.apply(event);
    if (event.sequence() == as_of) expected = rows_of(folded);
  }));
  if (folded.meta().last_event() < as_of)
    differences.push_back(fmt::format("the objects are as of event {}, but the last one is {}",
                                      as_of, folded.meta().last_event()));
  for (const auto& [key, value] : expected)
    if (const auto found = stored.find(key); found == stored.end())
      differences.push_back(fmt::format("{}: the events make it, but it is not stored", key));
    else if (found->second != value)
      differences.push_back(fmt::format("{}: is not what the events make of it", key));
  for (const auto& [key, value] : stored)
    if (!expected.contains(key))
      differences.push_back(fmt::format("{}: is stored, but no event makes it", key));
  return differences;
}

}  // namespace saesweep::scheduler
