#include "worker/executor/requests.h"

#include <utility>

namespace saesweep::worker {

void Requests::expect(std::uint64_t run_id) {
  const std::lock_guard lock(mutex_);
  asked_.try_emplace(run_id);
}

bool Requests::put(const protocol::Control& control) {
  const std::lock_guard lock(mutex_);
  const auto run = asked_.find(control.run_id());
  if (run == asked_.end()) return false;
  run->second.push_back(control);
  ++count_;
  return true;
}

void Requests::pause_all() {
  const std::lock_guard lock(mutex_);
  for (auto& [run_id, asked] : asked_) {
    protocol::Control control;
    control.set_run_id(run_id);
    control.set_verb("pause");
    asked.push_back(std::move(control));
    ++count_;
  }
}

bool Requests::any(std::uint64_t run_id) const {
  if (count_ == 0) return false;
  const std::lock_guard lock(mutex_);
  const auto run = asked_.find(run_id);
  return run != asked_.end() && !run->second.empty();
}

std::vector<protocol::Control> Requests::take(std::uint64_t run_id) {
  if (count_ == 0) return {};
  const std::lock_guard lock(mutex_);
  const auto run = asked_.find(run_id);
  if (run == asked_.end()) return {};
  count_ -= static_cast<std::uint32_t>(run->second.size());
  return std::exchange(run->second, {});
}

std::vector<protocol::Control> Requests::forget(std::uint64_t run_id) {
  const std::lock_guard lock(mutex_);
  auto run = asked_.extract(run_id);
  if (run.empty()) return {};
  count_ -= static_cast<std::uint32_t>(run.mapped().size());
  return std::move(run.mapped());
}

}  // namespace saesweep::worker
