#include "scheduler/service/executor_logs.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/files.h"
#include "scheduler/decisions/decide.h"

namespace saesweep::scheduler {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kPieceBytes = 64 << 10;
constexpr std::size_t kIdDigits = 12;

// Length of the UTF-8 sequence at `at`, 0 if there is none, -1 if it goes on beyond the end.
int sequence_at(const std::string& text, std::size_t at) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(at);
  const int length = first < 0x80                    ? 1
                     : first >= 0xc2 && first < 0xe0 ? 2
                     : first >= 0xe0 && first < 0xf0 ? 3
                     : first >= 0xf0 && first < 0xf5 ? 4
                                                     : 0;
  for (int i = 1; i < length; ++i) {
    if (at + static_cast<std::size_t>(i) >= text.size()) return -1;
    if ((byte(at + static_cast<std::size_t>(i)) & 0xc0) != 0x80) return 0;
  }
  if (length == 3 && ((first == 0xe0 && byte(at + 1) < 0xa0) ||  // too long for what it says
                      (first == 0xed && byte(at + 1) >= 0xa0)))  // a surrogate
    return 0;
  if (length == 4 &&
      ((first == 0xf0 && byte(at + 1) < 0x90) || (first == 0xf4 && byte(at + 1) >= 0x90)))
    return 0;
  return length;
}

// Replaces what is no UTF-8. A sequence that is cut off at the end is left out, unless nothing
// else is there; the number of bytes used.
std::size_t make_utf8(std::string& text) {
  std::size_t at = 0;
  while (at < text.size()) {
    const int length = sequence_at(text, at);
    if (length < 0 && at > 0) {
      text.resize(at);
      return at;
    }
    if (length > 0) {
      at += static_cast<std::size_t>(length);
      continue;
    }
    text[at++] = '?';
  }
  return text.size();
}

// One that trained, else one that scored.
const journal::Task* task_with_attempts(const SweepState& state, const journal::Subject& trial) {
  std::vector<std::string> ids{trial.train_task()};
  ids.insert(ids.end(), trial.evaluate_tasks().begin(), trial.evaluate_tasks().end());
  for (const std::string& id : ids)
    if (const journal::Task* task = state.find_task(id);
        task != nullptr && task->attempts_size() > 0)
      return task;
  return nullptr;
}

// "run-<id>.log"
bool is_run_log(const std::string& name, std::uint64_t& run) {
  constexpr std::string_view kPrefix = "run-", kEnding = ".log";
  const char* end = name.data() + name.size();
  return name.starts_with(kPrefix) && name.ends_with(kEnding) &&
         std::from_chars(name.data() + kPrefix.size(), end, run).ptr == end - kEnding.size();
}

}  // namespace

Result<Json> read_log(const SweepState& state, const journal::Sweep& sweep,
                      const journal::Subject& trial, const fs::path& store, std::uint64_t offset,
                      std::uint64_t attempt) {
  const std::string id = trial.identity().substr(0, kIdDigits);
  const std::string outcome = outcome_of(state, sweep, trial).state;
  const journal::Task* task = task_with_attempts(state, trial);
  if (task == nullptr && outcome != "unfinished")
    return fail(ErrorCode::kNotFound, "trial {} was never run", id);
  const auto attempts = task == nullptr ? 0 : task->attempts_size();
  const journal::Attempt* newest = attempts == 0 ? nullptr : &task->attempts(attempts - 1);
  const journal::Attempt* asked = newest;
  if (attempt != 0) {
    std::vector<std::uint64_t> known;  // the oldest ones are forgotten
    asked = nullptr;
    for (int i = 0; i < attempts; ++i) {
      known.push_back(task->attempts(i).fence());
      if (known.back() == attempt) asked = &task->attempts(i);
    }
    if (asked == nullptr)
      return fail(ErrorCode::kNotFound, "trial {} has no attempt {}; {} would be right", id,
                  attempt, known.empty() ? "later" : fmt::format("{}", fmt::join(known, ", ")));
  }
  const bool goes_on = outcome == "unfinished" && asked == newest;
  const std::uint64_t run = asked == nullptr ? 0 : asked->run();
  Json answer{
      {"schema", 1},    {"trial", id},      {"attempt", asked == nullptr ? 0 : asked->fence()},
      {"run", run},     {"state", outcome}, {"offset", offset},
      {"next", offset}, {"text", ""},       {"more", goes_on}};
  if (run == 0) return answer;
  const fs::path file = store / "logs" / fmt::format("run-{}.log", run);
  std::error_code problem;
  const std::uintmax_t size = fs::file_size(file, problem);
  if (problem) {
    // An executor that prints nothing leaves no log.
    return answer;
  }
  std::ifstream in(file, std::ios::binary);
  const std::uint64_t count =
      size > offset ? std::min<std::uint64_t>(size - offset, kPieceBytes) : 0;
  std::string text(count, '\0');
  in.seekg(static_cast<std::streamoff>(offset));
  if (count > 0 && !in.read(text.data(), static_cast<std::streamsize>(count)))
    return fail(ErrorCode::kUnavailable, "cannot read {}", file.string());
  const std::size_t used = make_utf8(text);
  answer["text"] = std::move(text);
  answer["next"] = offset + used;
  answer["more"] = goes_on || offset + used < size;
  return answer;
}

Result<void> write_log(const fs::path& store, const std::string& name, std::uint64_t offset,
                       const std::string& bytes) {
  std::uint64_t run = 0;
  if (!is_run_log(name, run)) return fail(ErrorCode::kInvalidArgument, "'{}' names no log", name);
  if (offset > kMostLogBytes || bytes.size() > kMostLogBytes - offset)
    return fail(ErrorCode::kInvalidArgument, "{}: at most {} bytes are kept", name, kMostLogBytes);
  SAE_TRY_VOID(make_directories(store / "logs"));
  const fs::path file = store / "logs" / name;
  std::fstream out(file, std::ios::in | std::ios::out | std::ios::binary);
  if (!out) out.open(file, std::ios::out | std::ios::binary);
  out.seekp(static_cast<std::streamoff>(offset));
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  out.flush();
  if (!out) return fail(ErrorCode::kUnavailable, "cannot write {}", file.string());
  return {};
}

void prune_logs(const fs::path& store, std::size_t kept) {
  std::vector<std::pair<std::uint64_t, fs::path>> logs;
  std::error_code problem;
  for (const auto& entry : fs::directory_iterator(store / "logs", problem)) {
    const std::string name = entry.path().filename().string();
    std::uint64_t run = 0;
    if (!is_run_log(name, run)) continue;
    logs.emplace_back(run, entry.path());
  }
  if (logs.size() <= kept) return;
  std::ranges::sort(logs, std::greater{});
  for (std::size_t i = kept; i < logs.size(); ++i) fs::remove(logs[i].second, problem);
}

}  // namespace saesweep::scheduler
