#include "worker/agent/shipping.h"

#include <algorithm>
#include <utility>

#include "core/log.h"
#include "worker/agent/object_transfer.h"

namespace saesweep::agent {
namespace {

using namespace std::chrono_literals;
using protocol::Checkpointed;
using protocol::ControlDone;
using protocol::MessageType;
using protocol::TaskResult;

constexpr Duration kFirstWait = 500ms;  // after a push that failed; doubles
constexpr int kDoublings = 6;
constexpr int kMostTimesSaidAgain = 5;  // a result whose artifacts keep vanishing

bool is_final(const TaskResult& result) {
  return result.outcome() == protocol::OUTCOME_DONE ||
         result.outcome() == protocol::OUTCOME_DIVERGED ||
         result.outcome() == protocol::OUTCOME_FAILED;
}

// What was trained cannot be handed over: it has to be done again.
TaskResult without_artifacts(const TaskResult& result, const std::string& why) {
  TaskResult lost;
  lost.set_run_id(result.run_id());
  lost.set_task(result.task());
  lost.set_fence(result.fence());
  lost.set_outcome(protocol::OUTCOME_RETRY);
  lost.set_reason("its artifacts cannot be handed over: " + why);
  return lost;
}

bool is_checkpoint(const std::string& object) { return object.starts_with("trials/"); }

std::vector<std::string> artifacts_of(const TaskResult& result) {
  std::vector<std::string> objects;
  for (const auto& artifact : result.artifacts())
    objects.push_back("artifacts/" + artifact.sha256());
  return objects;
}

}  // namespace

void Shipping::travel(OwnStore store, const protocol::ClientSecurity& security,
                      protocol::DataClient::Patience patience) {
  store_.emplace(std::move(store));
  courier_.emplace("data push", security, patience,
                   [&from = *store_](protocol::DataClient& client, const std::string& object,
                                     const std::stop_token& stop) {
                     const storage::ObjectStore& store =
                         is_checkpoint(object) ? from.outgoing() : from.objects();
                     return push_object(client, store, object, stop);
                   });
}

void Shipping::go_to(const std::string& data_endpoint) {
  if (!courier_) return;
  courier_->go_to(data_endpoint);
  for (auto& [run, queue] : queues_)
    for (Word& word : queue) word.not_before = {};
  step();
}

void Shipping::pass(const Body& body) {
  if (const auto* checkpoint = std::get_if<Checkpointed>(&body))
    outbox_.say(MessageType::kCheckpointed, *checkpoint);
  else if (const auto* done = std::get_if<ControlDone>(&body))
    outbox_.say(MessageType::kControlDone, *done);
  else
    outbox_.say_result(std::get<TaskResult>(body));
}

void Shipping::let_go(const Word& word) const {
  for (const std::string& object : word.objects) {
    if (!is_checkpoint(object)) continue;
    std::size_t holders = 0;  // a checkpoint at a rung travels for its own word and for the result
    for (const auto& [run, queue] : queues_)
      for (const Word& other : queue) holders += std::ranges::count(other.objects, object);
    if (holders <= 1) store_->let_go(object);
  }
}

// ---- what is said -------------------------------------------------------------------------------

void Shipping::say(Checkpointed word) {
  if (!travels()) return pass(word);
  const std::string object = word.checkpoint().path();
  if (const auto held = store_->hold(object); !held) {
    // The one before still stands.
    log::warn("checkpoint.not_sent path={} error={}", object, held.error().message);
    return;
  }
  word.set_travelled(true);
  for (Word& other : queues_[word.run_id()]) {
    auto* older = std::get_if<Checkpointed>(&other.body);
    if (older == nullptr || other.errand != 0 || older->task() != word.task()) continue;
    if (other.objects.front() != object) let_go(other);
    other.body = std::move(word);
    other.objects = {object};
    return step();
  }
  enqueue({.body = std::move(word), .objects = {object}});
}

void Shipping::say(ControlDone word) { enqueue({.body = std::move(word), .objects = {}}); }

void Shipping::say(TaskResult word, bool is_old) {
  if (!travels()) return pass(word);
  if (is_final(word)) {
    auto& queue = queues_[word.run_id()];
    std::erase_if(queue, [&](const Word& other) {
      const auto* checkpoint = std::get_if<Checkpointed>(&other.body);
      const bool is_needless =
          checkpoint != nullptr && other.errand == 0 && checkpoint->task() == word.task();
      if (is_needless) let_go(other);
      return is_needless;
    });
  }
  std::vector<std::string> objects = artifacts_of(word);
  if (word.outcome() == protocol::OUTCOME_AT_RUNG) {
    const std::string& checkpoint = word.checkpoint().path();
    if (const auto held = store_->hold(checkpoint); !held)
      return enqueue({.body = without_artifacts(word, held.error().message), .objects = {}});
    objects.push_back(checkpoint);
  }
  word.set_travelled(!objects.empty());
  enqueue({.body = std::move(word), .objects = std::move(objects), .is_old = is_old});
}

void Shipping::say_again(TaskResult word) {
  int& times = said_again_[{word.task(), word.fence()}];
  if (!travels() || ++times > kMostTimesSaidAgain)
    word = without_artifacts(word, "the scheduler's store does not keep them");
  say(std::move(word));
}

void Shipping::acknowledged(const std::string& task, std::uint64_t fence) {
  said_again_.erase({task, fence});
}

void Shipping::enqueue(Word word) {
  const std::uint64_t run =
      std::visit([](const auto& body) -> std::uint64_t { return body.run_id(); }, word.body);
  queues_[run].push_back(std::move(word));
  flush(run);
  step();
}

// Says what is ready at the front.
void Shipping::flush(std::uint64_t run) {
  Queue& queue = queues_[run];
  while (!queue.empty() && queue.front().objects.empty()) {
    pass(queue.front().body);
    queue.pop_front();
  }
  if (queue.empty()) queues_.erase(run);
}

bool Shipping::is_of(const Word& word, const std::string& task, std::uint64_t fence) {
  return std::visit(
      [&](const auto& body) {
        return (task.empty() || body.task() == task) && (fence == 0 || body.fence() == fence);
      },
      word.body);
}

bool Shipping::has(std::uint64_t run, const std::string& task, std::uint64_t fence) const {
  const auto found = queues_.find(run);
  return found != queues_.end() && std::ranges::any_of(found->second, [&](const Word& word) {
           return is_of(word, task, fence);
         });
}

void Shipping::drop(std::uint64_t run, const std::string& task, std::uint64_t fence) {
  const auto found = queues_.find(run);
  if (found == queues_.end()) return;
  std::erase_if(found->second, [&](const Word& word) {
    if (!is_of(word, task, fence)) return false;
    if (word.errand != 0) courier_->give_up();
    let_go(word);
    return true;
  });
  flush(run);
}

void Shipping::abandon() {
  for (auto& [run, queue] : queues_)
    for (Word& word : queue)
      if (word.objects.empty() || std::holds_alternative<ControlDone>(word.body)) pass(word.body);
  queues_.clear();
  if (courier_) courier_->give_up();
}

std::vector<Shipping::Waiting> Shipping::waiting() const {
  std::vector<Waiting> all;
  for (const auto& [run, queue] : queues_)
    for (const Word& word : queue) {
      if (std::holds_alternative<Checkpointed>(word.body)) continue;
      std::visit(
          [&, run = run](const auto& body) {  // clang 14 captures no bindings
            all.push_back({run, body.task(), body.fence(),
                           std::holds_alternative<TaskResult>(word.body), word.is_old});
          },
          word.body);
    }
  return all;
}

void Shipping::add_in_use(std::set<std::string>& objects) const {
  for (const auto& [run, queue] : queues_)
    for (const Word& word : queue) objects.insert(word.objects.begin(), word.objects.end());
}

// ---- what is carried ----------------------------------------------------------------------------

int Shipping::signal() const { return courier_ ? courier_->signal() : -1; }

void Shipping::step() {
  if (!courier_) return;
  if (const auto done = courier_->delivered()) {
    for (auto& [run, queue] : queues_) {
      const auto word = std::ranges::find(queue, done->id, &Word::errand);
      if (word == queue.end()) continue;
      word->errand = 0;
      if (!finish(*word, *done)) queue.erase(word);
      flush(run);
      break;
    }
  }
  send_next();
}

// False: there is nothing to say any more.
bool Shipping::finish(Word& word, const Courier::Delivered& done) {
  if (done.outcome) {
    let_go(word);
    word.objects.clear();
    return true;
  }
  const Error& error = done.outcome.error();
  auto* result = std::get_if<TaskResult>(&word.body);
  const bool is_hopeless =
      error.code == ErrorCode::kNotFound || error.code == ErrorCode::kInvalidArgument;
  if (!is_hopeless) {
    // A full disk over there, a line that is cut, a piece that was damaged: again.
    if (result != nullptr)
      word.objects.erase(word.objects.begin(),
                         word.objects.begin() + static_cast<std::ptrdiff_t>(done.carried));
    word.not_before = clock_.now() + kFirstWait * (1 << std::min(word.tries, kDoublings));
    if (word.tries++ == 0)
      log::warn("data.not_pushed object={} error={}", word.objects.front(), error.message);
    return true;
  }
  log::error("data.cannot_push object={} error={}", word.objects[done.carried], error.message);
  let_go(word);
  word.objects.clear();
  if (result == nullptr) return false;  // the checkpoint before still stands
  word.body = without_artifacts(*result, error.message);
  return true;
}

void Shipping::send_next() {
  if (!courier_->is_idle() || queues_.empty()) return;
  const TimePoint now = clock_.now();
  // Runs take turns.
  auto at = queues_.upper_bound(last_run_);
  for (std::size_t i = 0; i < queues_.size(); ++i, ++at) {
    if (at == queues_.end()) at = queues_.begin();
    Word& word = at->second.front();
    if (word.objects.empty() || word.not_before > now) continue;
    last_run_ = at->first;
    word.errand = ++last_errand_;
    return courier_->carry(word.errand, word.objects);
  }
}

}  // namespace saesweep::agent
