#include "worker/training/cohort.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <utility>

#include "core/check.h"
#include "worker/products/scratch.h"
#include "worker/thrown.h"

namespace saesweep::worker {

namespace {

// What is thrown for one member ends that one alone.
template <class Body>
auto guarded(const SaeTrainer& trainer, const Body& body) -> decltype(body()) {
  try {
    return body();
  } catch (const std::exception& thrown) {
    Error error = error_of(thrown);
    error.message = fmt::format("step {}: {}", trainer.step(), error.message);
    return fail(std::move(error));
  }
}

}  // namespace

struct Cohort::State {
  RowStream* stream;
  struct Member {
    std::string name;
    std::unique_ptr<SaeTrainer> trainer;
  };
  std::vector<Member> members;
  at::Tensor batch;                    // [rows, d_in], the rows read last
  std::uint64_t first = 0, count = 0;  // of them

  Result<void> read(std::uint64_t from, std::uint64_t rows) {
    if (count == rows && first == from) return {};
    count = 0;
    const auto height = static_cast<std::int64_t>(rows);
    if (!batch.defined() || batch.size(0) != height)
      batch = at::empty({height, stream->d_in()}, at::kFloat);
    SAE_TRY_VOID(stream->read(from, rows, batch.mutable_data_ptr<float>()));
    first = from;
    count = rows;
    return {};
  }
};

Cohort::Cohort(RowStream& stream, ThreadPool&) : state_(std::make_unique<State>()) {
  state_->stream = &stream;
}
Cohort::~Cohort() { products::Scratch::drop_idle(); }

void Cohort::add(std::string name, std::unique_ptr<SaeTrainer> trainer) {
  SAE_CHECK(find(name) == nullptr, "{} joined twice", name);
  state_->members.push_back({std::move(name), std::move(trainer)});
}

std::unique_ptr<SaeTrainer> Cohort::remove(const std::string& name) {
  const auto found = std::find_if(state_->members.begin(), state_->members.end(),
                                  [&](const auto& member) { return member.name == name; });
  if (found == state_->members.end()) return nullptr;
  auto trainer = std::move(found->trainer);
  state_->members.erase(found);
  return trainer;
}

bool Cohort::empty() const { return state_->members.empty(); }

SaeTrainer* Cohort::find(const std::string& name) {
  for (auto& member : state_->members)
    if (member.name == name) return member.trainer.get();
  return nullptr;
}

std::vector<std::string> Cohort::names() const {
  std::vector<std::string> names;
  for (const auto& member : state_->members) names.push_back(member.name);
  return names;
}

Result<std::vector<Cohort::Outcome>> Cohort::advance() {
  const SaeTrainer* last = nullptr;  // furthest behind
  for (const auto& member : state_->members)
    if (!member.trainer->finished() &&
        (last == nullptr || member.trainer->position() < last->position()))
      last = member.trainer.get();
  std::vector<Outcome> outcomes;
  if (last == nullptr) return outcomes;
  const std::uint64_t position = last->position(), rows = last->spec().batch;
  SAE_TRY_VOID(state_->read(position, rows));
  // What is done elsewhere is asked for, for all members, before the first is waited for.
  std::vector<std::pair<State::Member*, Result<void>>> begun;
  for (auto& member : state_->members) {
    const SaeTrainer& trainer = *member.trainer;
    if (trainer.finished() || trainer.position() != position || trainer.spec().batch != rows)
      continue;
    begun.emplace_back(&member, guarded(*member.trainer,
                                        [&] { return member.trainer->begin_step(state_->batch); }));
  }
  for (auto& [member, asked] : begun) {
    SaeTrainer& trainer = *member->trainer;
    outcomes.push_back(
        {member->name, asked ? guarded(trainer, [&] { return trainer.train_step(state_->batch); })
                             : Result<StepReport>(fail(asked.error()))});
  }
  return outcomes;
}

}  // namespace saesweep::worker
