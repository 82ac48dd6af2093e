#include "tests/sim/worker_node.h"

#include <fmt/format.h>

#include <algorithm>
#include <span>

#include "core/check.h"
#include "core/digest.h"
#include "core/json.h"
#include "scheduler/protocol/running_set.h"
#include "tests/sim/words.h"

namespace saesweep::sim {

using namespace std::chrono_literals;
using protocol::MessageType;

namespace {

constexpr Duration kTurn = 1s;
constexpr Duration kHelloEvery = 1s;
constexpr Duration kLonelyAfter = 10s;
constexpr Duration kRepeatAfter = 5s;
constexpr Duration kOrphanGrace = 600s;
constexpr Duration kExecutorPatience = 120s;
constexpr double kCheckpointEvery = 15;  // seconds of work

template <class Body>
Body parse(const protocol::OutgoingFrame& frame) {
  Body body;
  SAE_CHECK(body.ParseFromString(frame.body), "a body of {} bytes", frame.body.size());
  return body;
}

}  // namespace

void WorkerNode::start() {
  alive_ = true;
  ++life_;
  clock_ = LocalClock::draw(rng_, timeline_.now(), faults_.drift);
  session_.clear();
  while (session_.size() < 16) session_.push_back(static_cast<char>(1 + rng_.below(255)));
  conversation_.emplace(low_half(session_));
  peer_.emplace(conversation_->session(), kUnlimited);
  waiting_.clear();
  results_.clear();
  fences_.clear();
  slots_.assign(machine_.slots, {});
  welcomed_ = leaving_ = false;
  epoch_ = 0;
  next_hello_ = clock();
  last_word_ = last_turn_ = clock();
  last_heartbeat_ = paused_until_ = last_resend_ = last_told_ = {};
  told_epoch_ = 0;
  turn_later();
}

void WorkerNode::crash() {
  alive_ = false;
  ++life_;
  slots_.clear();
}

void WorkerNode::turn_later() {
  timeline_.after(kTurn, [this, life = life_] {
    if (!alive_ || life != life_) return;
    if (timeline_.now() >= paused_until_) turn();
    if (alive_ && life == life_) turn_later();
  });
}

void WorkerNode::turn() {
  const TimePoint now = clock();
  const double seconds = std::chrono::duration<double>(now - last_turn_).count() * machine_.speed;
  last_turn_ = now;
  for (Slot& slot : slots_) {
    work(slot, seconds);
    if (slot.run && slot.hangs && now - slot.heard > kExecutorPatience)
      die(slot, false, "it said nothing for 120 s");
  }
  if (now - last_word_ > kOrphanGrace) leaving_ = true;
  if (leaving_ && std::ranges::none_of(slots_, [](const Slot& s) { return s.run.has_value(); })) {
    flush();
    if ((waiting_.empty() && peer_->unacknowledged() == 0) || now - last_word_ > kOrphanGrace) {
      protocol::Bye bye;
      bye.set_reason("stopping");
      mention(MessageType::kBye, bye);
      crash();
      timeline_.after(std::chrono::seconds(1 + rng_.below(60)), [this, life = life_] {
        if (!alive_ && life == life_) start();
      });
      return;
    }
  }
  if ((!welcomed_ || now - last_word_ > kLonelyAfter) && now >= next_hello_) say_hello();
  if (welcomed_ && now - last_heartbeat_ >= 1s) say_heartbeat();
  for (const auto& frame : peer_->due(now)) network_.send_up(session_, frame);
  flush();
}

// ---- words --------------------------------------------------------------------------------------

void WorkerNode::say(MessageType type, const google::protobuf::MessageLite& body) {
  waiting_.emplace_back(type, body.SerializeAsString());
  flush();
}

void WorkerNode::flush() {
  while (!waiting_.empty()) {
    auto frame = peer_->reliable(waiting_.front().first, waiting_.front().second, clock());
    if (!frame) return;
    waiting_.pop_front();
    network_.send_up(session_, *frame);
  }
}

void WorkerNode::mention(MessageType type, const google::protobuf::MessageLite& body) {
  network_.send_up(session_, peer_->unreliable(type, body.SerializeAsString()));
}

void WorkerNode::say_result(protocol::TaskResult result) {
  say(MessageType::kResult, result);
  Grant grant(result.task(), result.fence());
  results_.insert_or_assign(std::move(grant), std::move(result));
}

void WorkerNode::say_hello() {
  protocol::Hello hello;
  hello.set_worker_name(machine_.name);
  hello.set_host("host of " + machine_.name);
  hello.set_slots(machine_.slots);
  hello.set_memory_bytes(machine_.memory_bytes);
  hello.set_known_epoch(epoch_);
  hello.set_last_seq_received(peer_->last_received());
  mention(MessageType::kHello, hello);
  next_hello_ = clock() + kHelloEvery;
}

std::vector<protocol::Resync::Lease> WorkerNode::leases() const {
  std::vector<protocol::Resync::Lease> all;
  const auto add = [&](std::uint64_t run, const std::string& task, std::uint64_t fence) {
    protocol::Resync::Lease& lease = all.emplace_back();
    lease.set_run_id(run);
    lease.set_task(task);
    lease.set_fence(fence);
  };
  for (const Slot& slot : slots_) {
    for (const auto& [task, member] : slot.unfinished)
      add(slot.run->run_id(), task, member.member.fence());
    if (slot.next)
      for (const auto& member : slot.next->members())
        add(slot.next->run_id(), member.task(), member.fence());
  }
  return all;
}

std::set<std::pair<std::string, std::uint64_t>> WorkerNode::running() const {
  std::set<std::pair<std::string, std::uint64_t>> all;
  for (const auto& lease : leases()) all.emplace(lease.task(), lease.fence());
  return all;
}

void WorkerNode::say_heartbeat() {
  last_heartbeat_ = clock();
  protocol::Heartbeat beat;
  std::uint32_t free = 0;
  for (const Slot& slot : slots_) free += slot.is_free() ? 1 : 0;
  std::uint64_t hash = 0;
  const auto running = leases();
  for (const auto& lease : running) hash ^= protocol::lease_hash(lease.task(), lease.fence());
  beat.set_running(static_cast<std::uint32_t>(running.size()));
  beat.set_running_hash(hash);
  beat.set_free_slots(leaving_ ? 0 : free);
  mention(MessageType::kHeartbeat, beat);
}

void WorkerNode::say_all_that_runs() {
  if (told_epoch_ == epoch_ && clock() - last_told_ < kRepeatAfter) return;
  told_epoch_ = epoch_;
  last_told_ = clock();
  protocol::Resync resync;
  resync.set_epoch(epoch_);
  for (protocol::Resync::Lease& lease : leases()) *resync.add_running() = std::move(lease);
  for (const auto& [grant, result] : results_) {
    auto& lease = *resync.add_finished();
    lease.set_run_id(result.run_id());
    lease.set_task(grant.first);
    lease.set_fence(grant.second);
  }
  say(MessageType::kResync, resync);
}

void WorkerNode::say_lost(const protocol::Run& run, const std::string& task, std::uint64_t fence,
                          bool alone, const std::string& reason) {
  protocol::TaskResult lost;
  lost.set_run_id(run.run_id());
  lost.set_task(task);
  lost.set_fence(fence);
  lost.set_outcome(protocol::OUTCOME_LOST);
  lost.set_reason(reason);
  lost.set_executor_died_alone(alone && !leaving_);
  say_result(std::move(lost));
}

// ---- what is heard ------------------------------------------------------------------------------

void WorkerNode::hear_frame(const protocol::OutgoingFrame& frame) {
  if (!alive_) return;
  if (timeline_.now() < paused_until_) {
    timeline_.at(paused_until_, [this, life = life_, frame] {
      if (alive_ && life == life_) hear_frame(frame);
    });
    return;
  }
  const auto standing = conversation_->hear(frame.header.session);
  if (standing == protocol::Standing::kOld) return;
  if (standing == protocol::Standing::kNew)
    peer_->begin_anew(conversation_->session());
  else
    peer_->set_session(conversation_->session());
  if (!peer_->accept(frame.header, clock())) return;
  peer_->confirm();
  last_word_ = clock();
  switch (frame.header.type) {
    case MessageType::kWelcome:
      return hear(parse<protocol::Welcome>(frame));
    case MessageType::kHeartbeatAck:
      return hear(parse<protocol::HeartbeatAck>(frame));
    case MessageType::kAssign: {
      const auto assign = parse<protocol::Assign>(frame);
      for (const auto& run : assign.runs()) take(run);
      return;
    }
    case MessageType::kControl:
      return control(parse<protocol::Control>(frame));
    case MessageType::kResultAck: {
      const auto ack = parse<protocol::ResultAck>(frame);
      results_.erase({ack.task(), ack.fence()});
      return;
    }
    default:
      SAE_CHECK(false, "a scheduler does not say {}", to_string(frame.header.type));
  }
}

void WorkerNode::hear(const protocol::Welcome& welcome) {
  if (welcome.epoch() < epoch_) return;
  const bool other_scheduler = epoch_ != 0 && welcome.epoch() != epoch_;
  welcomed_ = true;
  epoch_ = welcome.epoch();
  if (welcome.resume() && clock() - last_resend_ >= kRepeatAfter) {
    last_resend_ = clock();
    for (const auto& frame : peer_->resend_after(welcome.last_seq_received(), clock()))
      network_.send_up(session_, frame);
  }
  if (other_scheduler)
    for (const auto& [grant, result] : results_) say(MessageType::kResult, result);
  say_all_that_runs();
}

void WorkerNode::hear(const protocol::HeartbeatAck& ack) {
  if (ack.epoch() > epoch_) {
    if (welcomed_) next_hello_ = clock() + std::chrono::milliseconds(rng_.below(2000));
    welcomed_ = false;
  } else if (welcomed_ && ack.epoch() == epoch_ && ack.want_full_list()) {
    say_all_that_runs();
  }
}

void WorkerNode::take(const protocol::Run& run) {
  protocol::AssignReply reply;
  reply.set_run_id(run.run_id());
  Slot* best = nullptr;
  for (Slot& slot : slots_) {
    const bool has_it = (slot.run && slot.run->run_id() == run.run_id()) ||
                        (slot.next && slot.next->run_id() == run.run_id());
    if (has_it) {
      reply.set_accepted(true);
      return say(MessageType::kAssignReply, reply);
    }
    if (slot.is_free() && (best == nullptr || (best->run && !slot.run))) best = &slot;
  }
  const bool is_stale = std::ranges::any_of(run.members(), [&](const auto& member) {
    const auto known = fences_.find(member.task());
    return known != fences_.end() && member.fence() <= known->second;
  });
  if (leaving_)
    reply.set_reason("the agent stops");
  else if (best == nullptr)
    reply.set_reason("no free slot");
  else if (is_stale)
    reply.set_reason("stale fence");
  reply.set_accepted(reply.reason().empty());
  say(MessageType::kAssignReply, reply);
  if (!reply.accepted()) return;
  for (const auto& member : run.members()) fences_[member.task()] = member.fence();
  if (best->run)
    best->next = run;
  else
    begin(*best, run);
}

void WorkerNode::begin(Slot& slot, protocol::Run run) {
  protocol::Started started;
  started.set_run_id(run.run_id());
  say(MessageType::kStarted, started);
  slot.hangs = false;
  slot.ending = 0;
  slot.heard = clock();
  slot.controls.clear();
  for (const auto& member : run.members()) {
    monitor_.began(session_, member.task(), member.fence());
    slot.unfinished[member.task()] = {member, static_cast<double>(member.resume().step()),
                                      static_cast<double>(member.resume().step())};
  }
  slot.run = std::move(run);
}

void WorkerNode::control(const protocol::Control& wanted) {
  for (Slot& slot : slots_)
    if (slot.run && slot.run->run_id() == wanted.run_id()) {
      slot.controls.push_back(wanted);
      return;
    }
  for (Slot& slot : slots_)
    if (slot.next && slot.next->run_id() == wanted.run_id()) {
      const protocol::Run run = *std::exchange(slot.next, std::nullopt);
      for (const auto& member : run.members())
        say_lost(run, member.task(), member.fence(), false, "it had not begun");
      return;
    }
  protocol::ControlDone done;
  done.set_run_id(wanted.run_id());
  done.set_task(wanted.task());
  done.set_fence(wanted.fence());
  done.set_verb(wanted.verb());
  done.set_outcome("not running");
  say(MessageType::kControlDone, done);
}

// ---- executors ----------------------------------------------------------------------------------

void WorkerNode::work(Slot& slot, double seconds) {
  if (!slot.run || slot.hangs) return;
  slot.heard = clock();
  answer_controls(slot);
  if (leaving_)
    while (!slot.unfinished.empty()) {
      protocol::Control pause;
      pause.set_run_id(slot.run->run_id());
      pause.set_verb("pause");
      slot.controls.push_back(pause);
      answer_controls(slot);
    }
  std::vector<std::string> tasks;
  for (const auto& [task, member] : slot.unfinished) tasks.push_back(task);
  for (const std::string& task : tasks)
    if (!work_on(slot, slot.unfinished.at(task), seconds)) return;
  if (!slot.unfinished.empty()) {
    protocol::Progress progress;
    progress.set_run_id(slot.run->run_id());
    for (const auto& [task, member] : slot.unfinished) {
      auto& each = *progress.add_members();
      each.set_task(task);
      each.set_fence(member.member.fence());
    }
    if (rng_.below(4) == 0) mention(MessageType::kProgress, progress);
    return;
  }
  // Its members have their answers; it winds down for a moment.
  if (slot.ending == 0) slot.ending = 0.1 + 2 * rng_.uniform();
  slot.ending -= seconds;
  if (slot.ending <= 0) end_of_run(slot);
}

bool WorkerNode::work_on(Slot& slot, MemberOfRun& member, double seconds) {
  const std::string task = member.member.task();
  const Character character = character_(task);
  const double event_at = character.event_at * character.seconds;
  const double before = member.done;
  const auto until = static_cast<double>(member.member.until_tokens());
  member.done += seconds;
  if (until > 0) member.done = std::min(member.done, until);
  const bool happens = before <= event_at && member.done > event_at;
  const auto tries = member.member.attempt();
  switch (character.nature) {
    case Nature::kPoison:
      if (!happens) break;
      die(slot, true, "signal 11");
      return false;
    case Nature::kDiesOnce:
      if (!happens || tries > 1) break;
      die(slot, true, "signal 6");
      return false;
    case Nature::kDiverges:
      if (!happens) break;
      finish(slot, task, protocol::OUTCOME_DIVERGED, "the loss is not finite");
      return true;
    case Nature::kFails:
      if (!happens) break;
      finish(slot, task, protocol::OUTCOME_FAILED, "no such hook");
      return true;
    case Nature::kHungry:
      if (!happens || slot.run->members_size() == 1) break;
      finish(slot, task, protocol::OUTCOME_RETRY, "12 GiB", true);
      return true;
    case Nature::kStarved:
      if (!happens) break;
      finish(slot, task, protocol::OUTCOME_RETRY, "12 GiB", true);
      return true;
    case Nature::kFlaky:
      if (!happens || tries > 3) break;
      finish(slot, task, protocol::OUTCOME_RETRY, "a file could not be read");
      return true;
    case Nature::kPlain:
      break;
  }
  if (member.done >= character.seconds)
    finish(slot, task, protocol::OUTCOME_DONE, "");
  else if (until > 0 && member.done >= until)
    stop_at_rung(slot, member);
  else if (member.done - member.checkpointed >= kCheckpointEvery)
    checkpoint(slot, member);
  return true;
}

void WorkerNode::checkpoint(const Slot& slot, MemberOfRun& member) {
  if (member.member.trial_directory().empty()) return;
  const auto step = static_cast<std::uint64_t>(member.done);
  if (step <= member.member.resume().step() ||
      step <= static_cast<std::uint64_t>(member.checkpointed))
    return;
  member.checkpointed = static_cast<double>(step);
  protocol::Checkpointed said;
  said.set_run_id(slot.run->run_id());
  said.set_task(member.member.task());
  said.set_fence(member.member.fence());
  said.mutable_checkpoint()->set_path(
      fmt::format("{}/f{}/step-{}", member.member.trial_directory(), member.member.fence(), step));
  said.mutable_checkpoint()->set_step(step);
  said.mutable_checkpoint()->set_tokens(step);  // a second of work is a token
  files_.insert(said.checkpoint().path());
  say(MessageType::kCheckpointed, said);
}

// Worth what its name and its tokens say, so whoever trains it says the same.
void WorkerNode::stop_at_rung(Slot& slot, MemberOfRun& member) {
  const std::string task = member.member.task();
  const std::uint64_t tokens = member.member.until_tokens();
  checkpoint(slot, member);  // unless it stands there already
  protocol::TaskResult result;
  result.set_run_id(slot.run->run_id());
  result.set_task(task);
  result.set_fence(member.member.fence());
  result.set_outcome(protocol::OUTCOME_AT_RUNG);
  if (member.member.resume().step() == tokens) {
    *result.mutable_checkpoint() = member.member.resume();
  } else {
    result.mutable_checkpoint()->set_path(fmt::format(
        "{}/f{}/step-{}", member.member.trial_directory(), member.member.fence(), tokens));
    result.mutable_checkpoint()->set_step(tokens);
    result.mutable_checkpoint()->set_tokens(tokens);
  }
  Json scores = Json::object();
  for (const char* name : {"core.m0", "core.m1"}) {
    const std::string key = fmt::format("{} {} {}", task, tokens, name);
    scores[name] = {{"value", xxh3_64(std::as_bytes(std::span(key))) % 50}};
  }
  Json evaluations = Json::array();
  const Json asked = parse_json(member.member.rung_evaluations()).value();
  for (const Json& each : asked) evaluations.push_back({{"evaluation", each}, {"scores", scores}});
  result.set_summary(canonical_json({{"tokens", tokens}, {"evaluations", evaluations}}));
  slot.unfinished.erase(task);
  say_result(std::move(result));
}

void WorkerNode::answer_controls(Slot& slot) {
  for (const protocol::Control& wanted : std::exchange(slot.controls, {})) {
    bool found = false;
    std::vector<std::string> tasks;
    for (const auto& [task, member] : slot.unfinished) tasks.push_back(task);
    for (const std::string& task : tasks) {
      MemberOfRun& member = slot.unfinished.at(task);
      const bool is_meant = wanted.task().empty() ||
                            (wanted.task() == task &&
                             (wanted.fence() == 0 || wanted.fence() == member.member.fence()));
      if (!is_meant) continue;
      found = true;
      if (wanted.verb() == "pause") checkpoint(slot, member);
      protocol::ControlDone done;
      done.set_run_id(wanted.run_id());
      done.set_task(task);
      done.set_fence(member.member.fence());
      done.set_verb(wanted.verb());
      done.set_outcome(wanted.verb() == "pause" ? "paused" : "cancelled");
      slot.unfinished.erase(task);
      say(MessageType::kControlDone, done);
    }
    if (found) continue;
    protocol::ControlDone done;
    done.set_run_id(wanted.run_id());
    done.set_task(wanted.task());
    done.set_fence(wanted.fence());
    done.set_verb(wanted.verb());
    done.set_outcome("finished");
    say(MessageType::kControlDone, done);
  }
}

void WorkerNode::finish(Slot& slot, const std::string& task, protocol::Outcome outcome,
                        const std::string& reason, bool out_of_memory) {
  protocol::TaskResult result;
  result.set_run_id(slot.run->run_id());
  result.set_task(task);
  result.set_fence(slot.unfinished.at(task).member.fence());
  result.set_outcome(outcome);
  result.set_reason(reason);
  result.set_out_of_memory(out_of_memory);
  if (outcome == protocol::OUTCOME_DONE) {
    result.set_summary("{\"of\":\"" + task + "\"}");
    auto& artifact = *result.add_artifacts();
    artifact.set_name("sae.safetensors");
    artifact.set_sha256("digest of " + task);
  }
  slot.unfinished.erase(task);
  say_result(std::move(result));
}

void WorkerNode::die(Slot& slot, bool alone, const std::string& reason) {
  const protocol::Run run = *std::exchange(slot.run, std::nullopt);
  for (const auto& [task, member] : std::exchange(slot.unfinished, {}))
    say_lost(run, task, member.member.fence(), alone, reason);
  slot.hangs = false;
  if (slot.next) begin(slot, *std::exchange(slot.next, std::nullopt));
}

void WorkerNode::end_of_run(Slot& slot) {
  slot.run.reset();
  slot.ending = 0;
  if (slot.next) begin(slot, *std::exchange(slot.next, std::nullopt));
  if (welcomed_) say_heartbeat();
}

void WorkerNode::leave() { leaving_ = true; }

void WorkerNode::crash_executor() {
  if (slots_.empty() || !alive_) return;
  Slot& slot = slots_[rng_.below(static_cast<std::uint32_t>(slots_.size()))];
  if (slot.run && !slot.unfinished.empty()) die(slot, rng_.below(2) == 0, "signal 9");
}

void WorkerNode::hang_executor() {
  if (slots_.empty() || !alive_) return;
  Slot& slot = slots_[rng_.below(static_cast<std::uint32_t>(slots_.size()))];
  if (slot.run && !slot.unfinished.empty()) slot.hangs = true;
}

}  // namespace saesweep::sim
