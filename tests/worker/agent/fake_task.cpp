// Stands in for saesweep-task: speaks to the agent over the inherited socket and does what the spec
// of a run's first member says.
//
//   {"do": "finish"}                 every member is done; the summary tells of this process
//   {"do": "signal", "number": 11}   dies; also {"do": "exit", "code": 3}
//   {"do": "vanish", "kills": PATH}  appends to PATH as the kernel's count of kills, dies by
//   SIGKILL
//   {"do": "wait"}                   until it is asked to pause or cancel
//   {"do": "deaf"}                   reads its socket no more
//   {"do": "linger", "until": PATH}  answers, but ends the run only when PATH is there
//   {"do": "forget"}                 ends the run with an answer to its first member only
//   {"do": "half", ...}              answers the first member, then dies
//   {"do": "chatter", "messages": n} that much progress, then done
//   {"do": "garbage"}                bytes that are no message
//   {"do": "train", ...}             goes on from its checkpoint, makes "checkpoints" more and the
//                                    artifact "text", waits for "until" (a path) if it is there;
//                                    the summary says what it found: "resumed", "inputs"
//   {"do": "chunks", "count": n}     fetches chunks through the agent; the summary counts harvests
// With "say": what it prints to stderr first; "tokens": how many it trained on.
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/digest.h"
#include "core/dtype.h"
#include "core/json.h"
#include "scheduler/protocol/executor_channel.h"
#include "worker/activations/chunk_client.h"

namespace saesweep::test {
namespace {

using namespace std::chrono_literals;

constexpr std::uint32_t kRows = 32, kWidth = 8;
constexpr std::size_t kRowBytes = kWidth * 2;

class FakeTask {
 public:
  explicit FakeTask(int socket) : channel_(socket) {}

  int serve() {
    protocol::Envelope hello;
    hello.mutable_executor_hello()->set_pid(::getpid());
    send(hello);
    while (true) {
      const auto heard = channel_.receive(10s);
      if (!heard) return 0;
      if (!*heard) continue;
      const protocol::Envelope& envelope = (*heard)->envelope;
      if (envelope.has_start()) start_ = envelope.start();
      if (envelope.has_run()) perform(envelope.run());
      if (envelope.has_control()) leave(envelope.control());
    }
  }

 private:
  void send(const protocol::Envelope& envelope) {
    if (!channel_.send(envelope)) std::_Exit(0);
  }

  void perform(const protocol::Run& run) {
    run_ = run;
    ++runs_;
    const Json spec = Json::parse(run.members(0).spec());
    if (spec.contains("say")) std::fputs(spec["say"].get<std::string>().c_str(), stderr);
    if (spec.contains("tokens")) {
      protocol::Envelope envelope;
      envelope.mutable_tokens_done()->set_trained(spec["tokens"]);
      send(envelope);
    }
    const auto what = spec.value("do", "finish");
    if (what == "finish") return finish_all(about_me());
    if (what == "signal" || what == "half") {
      if (what == "half") finish(run.members(0), about_me());
      ::raise(spec.value("number", SIGSEGV));
    }
    if (what == "exit") std::_Exit(spec["code"]);
    if (what == "vanish") {
      std::ofstream(spec["kills"].get<std::string>()) << "oom 1\noom_kill 1\n";
      ::raise(SIGKILL);
    }
    if (what == "deaf") std::this_thread::sleep_for(1h);
    if (what == "linger") {
      for (const auto& member : run.members()) finish(member, about_me());
      const std::filesystem::path until = spec["until"].get<std::string>();
      while (!std::filesystem::exists(until)) std::this_thread::sleep_for(2ms);
      return end_run();
    }
    if (what == "forget") {
      finish(run.members(0), about_me());
      return end_run();
    }
    if (what == "chatter") {
      const std::uint64_t messages = spec["messages"];
      for (std::uint64_t i = 1; i <= messages; ++i) {
        protocol::Envelope envelope;
        envelope.mutable_progress()->set_run_id(run.run_id());
        envelope.mutable_progress()->set_done(i);
        send(envelope);
      }
      return finish_all(about_me());
    }
    if (what == "train") return train(run.members(0), spec);
    if (what == "garbage") {
      const std::string bytes("\x04\0\0\0\xff\xff\xff\xff", 8);
      if (::write(channel_.socket(), bytes.data(), bytes.size()) < 0) std::_Exit(1);
      std::this_thread::sleep_for(1h);
    }
    if (what == "chunks") return finish_all(fetch_chunks(spec));
    // "wait": for a word of the agent.
  }

  Json about_me() const {
    Json me = {
        {"pid", ::getpid()},     {"group", ::getpgrp()},      {"runs", runs_},
        {"slot", start_.slot()}, {"threads", run_.threads()}, {"state", start_.state_directory()}};
    me["environment"] = Json::array();
    for (char** variable = environ; *variable != nullptr; ++variable)
      me["environment"].push_back(
          std::string(*variable).substr(0, std::string(*variable).find('=')));
    me["descriptors"] = Json::array();
    for (int i = 0; i < 256; ++i) {
      struct ::stat info {};
      if (::fstat(i, &info) == 0) me["descriptors"].push_back(i);
    }
    return me;
  }

  void finish(const protocol::Member& member, const Json& summary) {
    protocol::Envelope envelope;
    auto& result = *envelope.mutable_result();
    result.set_run_id(run_.run_id());
    result.set_task(member.task());
    result.set_fence(member.fence());
    result.set_outcome(protocol::OUTCOME_DONE);
    result.set_summary(summary.dump());
    send(envelope);
  }
  static std::string read(const std::filesystem::path& file) {
    std::ifstream in(file, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  // Steps are numbered on, and a checkpoint's text is that of the one before with its step.
  void train(const protocol::Member& member, const Json& spec) {
    const std::filesystem::path state = start_.state_directory();
    Json summary{{"resumed", ""}, {"inputs", Json::array()}, {"spec", spec}};
    std::uint64_t step = 0;
    std::string text;
    if (member.has_resume()) {
      text = read(state / member.resume().path() / "state.txt");
      step = member.resume().step();
      summary["resumed"] = text;
    }
    for (const auto& input : member.inputs())
      summary["inputs"].push_back(read(state / "artifacts" / input.sha256()));
    for (int i = 0; i < spec.value("checkpoints", 0); ++i) {
      text += fmt::format(" {}", ++step);
      const std::string path =
          fmt::format("{}/f{}/step-{}", member.trial_directory(), member.fence(), step);
      std::filesystem::create_directories(state / path);
      std::ofstream(state / path / "state.txt") << text;
      protocol::Envelope envelope;
      auto& checkpointed = *envelope.mutable_checkpointed();
      checkpointed.set_run_id(run_.run_id());
      checkpointed.set_task(member.task());
      checkpointed.set_fence(member.fence());
      checkpointed.mutable_checkpoint()->set_path(path);
      checkpointed.mutable_checkpoint()->set_step(step);
      send(envelope);
    }
    const std::filesystem::path until = spec.value("until", "");
    while (!until.empty() && !std::filesystem::exists(until)) std::this_thread::sleep_for(2ms);
    const std::string made = spec.value("text", "");
    protocol::Envelope envelope;
    auto& result = *envelope.mutable_result();
    result.set_run_id(run_.run_id());
    result.set_task(member.task());
    result.set_fence(member.fence());
    result.set_outcome(protocol::OUTCOME_DONE);
    result.set_summary(summary.dump());
    if (!made.empty()) {
      auto& artifact = *result.add_artifacts();
      artifact.set_name("text");
      artifact.set_sha256(sha256(made).hex());
      artifact.set_bytes(made.size());
      std::filesystem::create_directories(state / "artifacts");
      std::ofstream(state / "artifacts" / artifact.sha256()) << made;
    }
    send(envelope);
    end_run();
  }
  void end_run() {
    protocol::Envelope envelope;
    envelope.mutable_run_finished()->set_run_id(run_.run_id());
    send(envelope);
    run_.Clear();
  }
  void finish_all(const Json& summary) {
    for (const auto& member : run_.members()) finish(member, summary);
    end_run();
  }

  void leave(const protocol::Control& control) {
    for (const auto& member : run_.members()) {
      protocol::Envelope envelope;
      if (control.verb() == "pause") {
        auto& checkpointed = *envelope.mutable_checkpointed();
        checkpointed.set_run_id(run_.run_id());
        checkpointed.set_task(member.task());
        checkpointed.set_fence(member.fence());
        checkpointed.mutable_checkpoint()->set_step(42);
        checkpointed.set_reason("pause");
        send(envelope);
      }
      auto& done = *envelope.mutable_control_done();
      done.set_run_id(run_.run_id());
      done.set_task(member.task());
      done.set_fence(member.fence());
      done.set_verb(control.verb());
      done.set_outcome(control.verb() == "pause" ? "paused" : "cancelled");
      send(envelope);
    }
    if (run_.members_size() > 0) end_run();
  }

  Json fetch_chunks(const Json& spec) {
    protocol::Envelope open;
    open.mutable_chunk_open()->set_stream("stream");
    open.mutable_chunk_open()->set_cache_bytes(run_.cache_bytes());
    open.mutable_chunk_open()->set_rows_per_chunk(kRows);
    open.mutable_chunk_open()->set_d_in(kWidth);
    open.mutable_chunk_open()->set_dtype(static_cast<std::uint32_t>(DType::kBFloat16));
    send(open);
    auto opened = channel_.receive(10s);
    if (!opened || !*opened || (*opened)->descriptor < 0) std::_Exit(91);
    const auto ask = [&](protocol::ChunkRequest request) -> Result<protocol::ChunkReply> {
      protocol::Envelope envelope;
      *envelope.mutable_chunk_request() = std::move(request);
      send(envelope);
      auto heard = channel_.receive(10s);
      if (!heard || !*heard) std::_Exit(92);
      return (*heard)->envelope.chunk_reply();
    };
    auto client = worker::ChunkClient::open("stream", (*opened)->envelope.chunk_opened(),
                                            (*opened)->descriptor, kRowBytes, ask);
    if (!client) std::_Exit(93);
    ::close((*opened)->descriptor);
    std::uint64_t harvested = 0, wrong = 0;
    std::vector<std::byte> chunk(kRows * kRowBytes);
    for (std::uint32_t index = 0; index < spec["count"].get<std::uint32_t>(); ++index) {
      const auto value = static_cast<std::byte>(index * 7 + 1);
      const auto rows = client->fetch(index, chunk, [&](std::span<std::byte> out, auto) {
        ++harvested;
        std::memset(out.data(), static_cast<int>(value), out.size());
        return Result<std::uint32_t>(kRows);
      });
      if (!rows || *rows != kRows) std::_Exit(94);
      for (const std::byte byte : chunk) wrong += byte == value ? 0 : 1;
    }
    return {{"harvested", harvested}, {"wrong", wrong}};
  }

  protocol::ExecutorChannel channel_;
  protocol::ExecutorStart start_;
  protocol::Run run_;
  int runs_ = 0;
};

}  // namespace
}  // namespace saesweep::test

int main(int argc, char** argv) {
  if (argc != 3 || std::string(argv[1]) != "--channel") return 2;
  return saesweep::test::FakeTask(std::atoi(argv[2])).serve();
}
