#include "scheduler/service/query_desk.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "core/log.h"
#include "scheduler/decisions/decide.h"
#include "scheduler/service/commands.h"
#include "scheduler/service/executor_logs.h"
#include "scheduler/service/result_json.h"
#include "scheduler/service/sweep_result.h"
#include "scheduler/service/views.h"

namespace saesweep::scheduler {
namespace {

constexpr std::size_t kIdDigits = 12;
constexpr std::array<std::string_view, 5> kWishes{"submit", "sweep", "priority", "worker",
                                                  "backup"};

Result<Json> answer_explain(const QueryDesk::View& view, const Json& body) {
  SAE_TRY(const ChosenTrial chosen, one_trial(view.state, body));
  const journal::Subject& trial = *chosen.trial;
  Json tasks = Json::array();
  const auto add = [&](const std::string& id) {
    if (!id.empty()) tasks.push_back(explain(view.state, id, view.now));
  };
  add(trial.train_task());
  for (const std::string& id : trial.evaluate_tasks()) add(id);
  const SubjectOutcome outcome = outcome_of(view.state, *chosen.sweep, trial);
  return Json{{"schema", 1},
              {"sweep", chosen.sweep->name()},
              {"trial", trial.identity().substr(0, kIdDigits)},
              {"number", trial.number()},
              {"state", outcome.state},
              {"reason", outcome.reason},
              {"tasks", std::move(tasks)}};
}

Result<Json> answer_status(const QueryDesk::View& view, const Json& body) {
  SAE_TRY(const std::string word, text_of(body, "sweep"));
  if (word.empty()) return status_view(view.state);
  SAE_TRY(const journal::Sweep* sweep, find_sweep(view.state, word));
  return sweep_view(view.state, *sweep);
}

Result<Json> answer_result(const QueryDesk::View& view, const Json& body) {
  SAE_TRY(const std::string word, text_of(body, "sweep"));
  SAE_TRY(const journal::Sweep* sweep, find_sweep(view.state, word));
  SAE_TRY(const SweepResult result, to_result(view.state, sweep->name(), view.store_directory));
  return to_json(result);
}

Result<Json> answer_events(const QueryDesk::View& view, const EventRing& events, const Json& body) {
  SAE_TRY(const std::string word, text_of(body, "sweep"));
  SAE_TRY(const std::uint64_t since, number_of(body, "since", ~std::uint64_t{0}));
  SAE_TRY(const journal::Sweep* sweep, find_sweep(view.state, word));
  Json answer = events.after(since, sweep->name());
  answer["epoch"] = view.state.meta().epoch();
  answer["sweep"] = sweep_summary(view.state, *sweep);
  return answer;
}

Result<Json> answer_log(const QueryDesk::View& view, const Json& body) {
  SAE_TRY(const ChosenTrial chosen, one_trial(view.state, body));
  SAE_TRY(const std::uint64_t offset, number_of(body, "offset", 0));
  SAE_TRY(const std::uint64_t attempt, number_of(body, "attempt", 0));
  return read_log(view.state, *chosen.sweep, *chosen.trial, view.store_directory, offset, attempt);
}

}  // namespace

// ---- events -------------------------------------------------------------------------------------

void EventRing::add(Json event) {
  ++last_;
  events_.push_back(std::move(event));
  if (events_.size() > kKept) events_.pop_front();
}

Json EventRing::after(std::uint64_t since, const std::string& sweep) const {
  // Who knows more than there is knew a scheduler before this one.
  since = std::min(since, last_);
  const std::uint64_t oldest = last_ - events_.size();  // number before the first kept
  Json answer{{"schema", 1}, {"missed", since < oldest}, {"events", Json::array()}};
  std::uint64_t next = std::max(since, oldest);
  for (; next < last_ && answer["events"].size() < kMostAtOnce; ++next) {
    const Json& event = events_[next - oldest];
    if (sweep.empty() || event.value("sweep", sweep) == sweep) answer["events"].push_back(event);
  }
  answer["next"] = next;
  return answer;
}

// ---- questions ----------------------------------------------------------------------------------

bool is_wish(const std::string& verb) { return std::ranges::find(kWishes, verb) != kWishes.end(); }

Result<Json> answer_question(const QueryDesk::View& view, const EventRing& events,
                             const std::string& verb, const Json& body) {
  if (verb == "ping") return Json{{"schema", 1}, {"epoch", view.state.meta().epoch()}};
  if (verb == "status") return answer_status(view, body);
  if (verb == "workers") return workers_view(view.state, view.now);
  if (verb == "top") return top_view(view.state, view.now);
  if (verb == "result") return answer_result(view, body);
  if (verb == "events") return answer_events(view, events, body);
  if (verb == "explain") return answer_explain(view, body);
  if (verb == "log") return answer_log(view, body);
  return fail(ErrorCode::kInvalidArgument, "the scheduler does not know the verb '{}'", verb);
}

// ---- the desk -----------------------------------------------------------------------------------

std::vector<void*> QueryDesk::handles() const {
  std::vector<void*> handles;
  for (const protocol::QueryServer& server : servers_) handles.push_back(server.handle());
  return handles;
}

void QueryDesk::hear(const SweepState& state, const std::string& trouble, const Grant& grant) {
  for (std::size_t i = 0; i < servers_.size(); ++i) {
    auto queries = servers_[i].take();
    for (protocol::HeardQuery& query : queries) query.asker.server = i;
    sort_out(std::move(queries), state, trouble, grant);
  }
}
void QueryDesk::hear(const protocol::HeardMessage& heard, const SweepState& state,
                     const std::string& trouble, const Grant& grant) {
  sort_out(servers_.front().take(heard), state, trouble, grant);
}

void QueryDesk::sort_out(std::vector<protocol::HeardQuery> queries, const SweepState& state,
                         const std::string& trouble, const Grant& grant) {
  for (protocol::HeardQuery& query : queries) {
    if (is_wish(query.verb))
      grant_one(std::move(query), state, trouble, grant);
    else
      questions_.push_back(std::move(query));
  }
}

void QueryDesk::grant_one(protocol::HeardQuery query, const SweepState& state,
                          const std::string& trouble, const Grant& grant) {
  if (query.key.empty())
    return server_of(query.asker)
        .refuse(query.asker, {ErrorCode::kInvalidArgument, "a wish without its key"});
  if (const auto waiting = granted_.find(query.key); waiting != granted_.end()) {
    waiting->second.asker = query.asker;  // asked again while it waits for the disk
    return;
  }
  const auto& known = state.meta().granted();
  const auto same = std::ranges::find(known, query.key, &journal::GrantedWish::key);
  if (same != known.end())
    if (const auto answer = parse_json(same->answer()))
      return server_of(query.asker).answer(query.asker, *answer);
  if (!trouble.empty())
    return server_of(query.asker)
        .refuse(query.asker,
                {ErrorCode::kUnavailable, fmt::format("the scheduler is read-only: {}", trouble)});
  log::info("query.wish verb={}", query.verb);
  auto answer = grant(query);
  if (!answer) return server_of(query.asker).refuse(query.asker, answer.error());
  granted_.emplace(query.key, Granted{query.asker, std::move(*answer)});
}

void QueryDesk::settle() {
  for (const auto& [key, granted] : granted_)
    server_of(granted.asker).answer(granted.asker, granted.answer);
  granted_.clear();
}

void QueryDesk::answer(const View& view) {
  for (const protocol::HeardQuery& query : std::exchange(questions_, {})) {
    auto answer = answer_question(view, events_, query.verb, query.body);
    if (!answer) {
      server_of(query.asker).refuse(query.asker, answer.error());
      continue;
    }
    if (!view.trouble.empty()) (*answer)["trouble"] = view.trouble;
    server_of(query.asker).answer(query.asker, *answer);
  }
}

}  // namespace saesweep::scheduler
