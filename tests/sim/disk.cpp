#include "tests/sim/disk.h"

#include <fmt/format.h>

#include "core/check.h"

namespace saesweep::sim {
namespace {

using scheduler::SweepState;

std::map<std::string, std::string> rows_of(const SweepState& state) {
  std::map<std::string, std::string> rows{{"meta", state.meta().SerializeAsString()}};
  for (const auto& [name, sweep] : state.sweeps())
    rows["sweep " + name] = sweep.SerializeAsString();
  for (const auto& [id, entry] : state.tasks()) rows["task " + id] = entry.task.SerializeAsString();
  for (const auto& [id, run] : state.runs())
    rows[fmt::format("run {:016x}", id)] = run.SerializeAsString();
  return rows;
}

template <class Object>
Object parse(const std::string& bytes) {
  Object object;
  SAE_CHECK(object.ParseFromString(bytes), "a row of {} bytes cannot be read", bytes.size());
  return object;
}

}  // namespace

bool Disk::commit(const SweepState& state, const std::vector<journal::Event>& events,
                  const scheduler::Changes& changes) {
  if (full) return false;
  for (const journal::Event& event : events) events_.push_back(event.SerializeAsString());
  if (changes.meta) rows_["meta"] = state.meta().SerializeAsString();
  for (const std::string& name : changes.sweeps)
    rows_["sweep " + name] = state.sweeps().at(name).SerializeAsString();
  for (const auto* named : changes.tasks)
    rows_["task " + named->first] = named->second.task.SerializeAsString();
  for (const std::uint64_t id : changes.runs) {
    const journal::Run* run = state.find_run(id);
    const std::string key = fmt::format("run {:016x}", id);
    if (run == nullptr)
      rows_.erase(key);
    else
      rows_[key] = run->SerializeAsString();
  }
  return true;
}

SweepState Disk::load() const {
  SweepState state;
  for (const auto& [key, value] : rows_) {
    if (key.starts_with("meta")) state.load(parse<journal::Meta>(value));
    if (key.starts_with("sweep ")) state.load(parse<journal::Sweep>(value));
    if (key.starts_with("task ")) state.load(parse<journal::Task>(value));
    if (key.starts_with("run ")) state.load(parse<journal::Run>(value));
  }
  state.settle_indexes();
  return state;
}

std::string Disk::broken() const {
  SweepState folded;
  std::uint64_t last = 0;
  for (const std::string& bytes : events_) {
    const auto event = parse<journal::Event>(bytes);
    if (event.sequence() != last + 1)
      return fmt::format("event {} follows {}", event.sequence(), last);
    last = event.sequence();
    folded.apply(event);
  }
  const auto expected = rows_of(folded);
  for (const auto& [key, value] : expected) {
    const auto found = rows_.find(key);
    if (found == rows_.end()) return key + ": the events make it, but it is not stored";
    if (found->second != value) return key + ": is not what the events make of it";
  }
  for (const auto& [key, value] : rows_)
    if (!expected.contains(key)) return key + ": is stored, but no event makes it";
  return {};
}

std::optional<journal::Task> Disk::task(const std::string& id) const {
  const auto found = rows_.find("task " + id);
  if (found == rows_.end()) return std::nullopt;
  return parse<journal::Task>(found->second);
}

}  // namespace saesweep::sim
