// Where people and programs ask: questions are answered from the state, wishes change it and are
// answered once what they changed is durable. In the scheduler's thread.
#pragma once

#include <cstdint>
#include <deque>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/clock.h"
#include "core/json.h"
#include "core/result.h"
#include "scheduler/decisions/sweep_state.h"
#include "scheduler/protocol/query.h"

namespace saesweep::scheduler {

// What observers heard lately, numbered from 1: those who watch ask for what came after the last
// they know. Only so much is kept; who asks too late misses the older ones and is told.
class EventRing {
 public:
  static constexpr std::size_t kKept = 1 << 14;
  static constexpr std::size_t kMostAtOnce = 1000;

  void add(Json event);
  // {"schema", "next", "missed", "events"}: after `since`, of the sweep if one is named.
  Json after(std::uint64_t since, const std::string& sweep) const;
  std::uint64_t last() const { return last_; }

 private:
  std::deque<Json> events_;
  std::uint64_t last_ = 0;
};

class QueryDesk {
 public:
  struct View {
    const SweepState& state;
    const std::filesystem::path& state_directory;
    const std::filesystem::path& store_directory;
    TimePoint now;
    std::string trouble;  // why nothing can be made durable now; empty: it can
  };
  // Decides what a wish asks for: the answer to give once it is durable.
  using Grant = std::function<Result<Json>(const protocol::HeardQuery&)>;

  explicit QueryDesk(protocol::QueryServer server) { servers_.push_back(std::move(server)); }
  // Another address to ask at.
  void also_at(protocol::QueryServer server) { servers_.push_back(std::move(server)); }
  void answer_at_link(protocol::QueryServer::Send send) {
    servers_.front().answer_at_link(std::move(send));
  }

  std::string endpoint() const { return servers_.front().endpoint(); }
  std::vector<void*> handles() const;

  // Reads what was asked. Wishes are granted at once, or refused while there is trouble; one that
  // was granted before, as the state knows, gets its answer again.
  void hear(const SweepState& state, const std::string& trouble, const Grant& grant);
  // The same of one that came to the agents' socket.
  void hear(const protocol::HeardMessage& heard, const SweepState& state,
            const std::string& trouble, const Grant& grant);
  // What was granted is durable.
  void settle();
  // Answers the questions that were heard.
  void answer(const View& view);
  void note(const Json& event) { events_.add(event); }

 private:
  void sort_out(std::vector<protocol::HeardQuery> queries, const SweepState& state,
                const std::string& trouble, const Grant& grant);
  void grant_one(protocol::HeardQuery query, const SweepState& state, const std::string& trouble,
                 const Grant& grant);

  protocol::QueryServer& server_of(const protocol::Asker& asker) { return servers_[asker.server]; }

  std::vector<protocol::QueryServer> servers_;
  EventRing events_;
  std::vector<protocol::HeardQuery> questions_;
  struct Granted {
    protocol::Asker asker;
    Json answer;
  };
  std::map<std::string, Granted> granted_;  // by key; not durable yet
};

// One answer. Verbs: ping, status, workers, top, explain, result, events, log.
// Errors: kInvalidArgument for a verb or body that is none; kNotFound; kUnavailable.
Result<Json> answer_question(const QueryDesk::View& view, const EventRing& events,
                             const std::string& verb, const Json& body);

// Verbs that change something: their queries carry a key.
bool is_wish(const std::string& verb);

}  // namespace saesweep::scheduler
