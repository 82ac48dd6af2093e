#include "scheduler/service/state_store.h"

#include <algorithm>
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
                                          .appended = {kEvent, kTask},
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
      [this](journal::Event event) {
        ++unfolded_.events;
        unfolded_.bytes += event.ByteSizeLong();
        state_.apply(std::move(event), &changes_);
      },
      key_of(state_.meta().last_event() + 1));
}

Result<void> StateStore::read_events(const std::function<bool(const journal::Event&)>& take) const {
  return read_family<journal::Event>(journal_, kEvent, take);
}

void StateStore::apply(std::vector<journal::Event> events, double unix_time) {
  for (journal::Event& event : events) {
    if (is_passing(event)) {
      state_.apply(std::move(event));
      continue;
    }
    event.set_sequence(state_.meta().last_event() + 1);
    event.set_time(unix_time);
    pending_.push_back({kEvent, key_of(event.sequence()), event.SerializeAsString()});
    state_.apply(std::move(event), &changes_);
  }
}

void StateStore::add_objects(std::vector<storage::JournalWrite>& batch) const {
  batch.push_back({kMeta, kMetaKey, state_.meta().SerializeAsString()});
  for (const std::string& name : changes_.sweeps)
    batch.push_back({kSweep, name, state_.sweeps().at(name).SerializeAsString()});
  // In their order, which the journal likes best.
  std::vector<const SweepState::Tasks::Map::value_type*> tasks(changes_.tasks.begin(),
                                                               changes_.tasks.end());
  std::ranges::sort(tasks, {},
                    [](const auto* named) -> const std::string& { return named->first; });
  batch.reserve(batch.size() + changes_.sweeps.size() + tasks.size() + changes_.runs.size() + 1);
  for (const auto* named : tasks)
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
  // By what was there before: who waits for this commit does not wait for what a large one changed.
  const bool folds = unfolded_.events >= most_.events || unfolded_.bytes >= most_.bytes;
  const std::size_t events = pending_.size();
  if (folds) add_objects(pending_);
  auto committed = journal_.commit(pending_);
  failed_ = !committed;
  pending_.erase(pending_.begin() + static_cast<std::ptrdiff_t>(events), pending_.end());
  if (!committed) return committed;
  if (folds) {
    unfolded_ = {0, 0};
    changes_ = {};
  } else {
    unfolded_.events += events;
    for (const storage::JournalWrite& write : pending_) unfolded_.bytes += write.value->size();
  }
  pending_.clear();
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
