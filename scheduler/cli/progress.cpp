#include "scheduler/cli/progress.h"

#include <fmt/format.h>

#include <algorithm>

#include "scheduler/cli/people.h"

namespace saesweep::cli {
namespace {

constexpr double kRedrawEvery_s = 0.2;
constexpr double kLogEvery_s = 10;
constexpr double kRateWindow_s = 20;
constexpr std::size_t kWidestBar = 30, kNarrowestBar = 8;

double number(const Json& event, const char* key, double otherwise = 0) {
  const auto found = event.find(key);
  return found != event.end() && found->is_number() ? found->get<double>() : otherwise;
}

std::string text(const Json& event, const char* key) {
  const auto found = event.find(key);
  return found != event.end() && found->is_string() ? found->get<std::string>() : std::string();
}

std::string bar(double share, std::size_t width) {
  const auto full = static_cast<std::size_t>(share * static_cast<double>(width) + 0.5);
  std::string drawn(std::min(full, width), '=');
  if (full > 0 && full < width) drawn.back() = '>';
  drawn.resize(width, ' ');
  return drawn;
}

}  // namespace

Progress::Stage& Progress::stage(const std::string& name) {
  for (Stage& known : stages_)
    if (known.name == name) return known;
  stages_.push_back({.name = name, .unit = {}, .rate = {}, .waiting = {}, .lately = {}});
  return stages_.back();
}

void Progress::hear(const Json& event, double now_s) {
  if (!started_s_) started_s_ = now_s;
  const std::string word = text(event, "event");
  if (word == "sweep.started") {
    trials_ = static_cast<std::uint64_t>(number(event, "trials"));
    done_ = static_cast<std::uint64_t>(number(event, "done"));
  }
  if (word == "trial.finished") ++done_;
  if (word == "trial.failed") ++failed_;
  if (word != "stage.progress") return;
  Stage& heard = stage(printable(text(event, "stage")));
  heard.unit = printable(text(event, "unit"));
  heard.done = number(event, "done");
  heard.total = number(event, "total");
  heard.rate.reset();
  if (event.contains("rate")) heard.rate = number(event, "rate");
  heard.waiting.reset();
  if (event.contains("waiting")) heard.waiting = number(event, "waiting");
  heard.heard_s = now_s;
  heard.lately.emplace_back(now_s, heard.done);
  while (heard.lately.size() > 2 && heard.lately.front().first < now_s - kRateWindow_s)
    heard.lately.pop_front();
}

std::optional<double> Progress::rate_of(const Stage& stage) {
  if (stage.rate && *stage.rate > 0) return stage.rate;
  if (stage.lately.size() < 2) return std::nullopt;
  const auto& [from_s, from] = stage.lately.front();
  const auto& [to_s, to] = stage.lately.back();
  if (to_s - from_s < 0.5 || to < from) return std::nullopt;
  return (to - from) / (to_s - from_s);
}

// "train    [=====>    ]  53%  2.12M/4.00M tokens  61.2k/s  ETA 31s  4% waiting"; what does not fit
// goes, the bar first.
std::string Progress::stage_line(const Stage& stage, std::size_t width) const {
  const double share = stage.total > 0 ? std::clamp(stage.done / stage.total, 0.0, 1.0) : 0;
  std::size_t longest = 0;
  for (const Stage& other : stages_) longest = std::max(longest, other.name.size());
  const std::string head = fmt::format("{:<{}}", stage.name, std::min<std::size_t>(longest, 20));
  std::string tail =
      fmt::format("{:3.0f}%  {}/{}", share * 100, count_text(stage.done), count_text(stage.total));
  if (!stage.unit.empty()) tail += " " + stage.unit;
  const bool over = stage.total > 0 && stage.done >= stage.total;
  if (const auto rate = rate_of(stage); rate && *rate > 0 && !over) {
    tail += fmt::format("  {}/s", count_text(*rate));
    if (stage.total > 0)
      tail += fmt::format("  ETA {}", duration_text((stage.total - stage.done) / *rate));
  }
  if (stage.waiting && !over) tail += fmt::format("  {:.0f}% waiting", *stage.waiting * 100);
  const std::size_t fixed = head.size() + 2 + tail.size();
  std::string line;
  if (width >= fixed + kNarrowestBar + 3) {
    const std::size_t room = std::min(kWidestBar, width - fixed - 3);
    line = fmt::format("{}  [{}] {}", head, bar(share, room), tail);
  } else {
    line = fmt::format("{}  {}", head, tail);
  }
  if (line.size() > width) line.resize(width);
  return line;
}

std::string Progress::summary(double now_s) const {
  std::string line = fmt::format("trials {}/{} done", done_, trials_);
  if (failed_ > 0) line += fmt::format(", {} failed", failed_);
  return line + fmt::format("  {}", duration_text(now_s - started_s_.value_or(now_s)));
}

std::vector<std::string> Progress::frame(double now_s, std::size_t width) const {
  std::vector<std::string> lines;
  for (const Stage& known : stages_) lines.push_back(stage_line(known, width));
  lines.push_back(summary(now_s));
  if (lines.back().size() > width) lines.back().resize(width);
  return lines;
}

std::string Progress::erase() {
  std::string bytes;
  // Up to the first line, then clear to the end of the screen.
  if (lines_shown_ > 0) bytes = fmt::format("\x1b[{}A\r\x1b[J", lines_shown_);
  lines_shown_ = 0;
  return bytes;
}

std::string Progress::tick(double now_s, std::size_t width) {
  if (style_ == ProgressStyle::kNone || !started_s_) return {};
  const double every_s = style_ == ProgressStyle::kTerminal ? kRedrawEvery_s : kLogEvery_s;
  if (written_s_ && now_s - *written_s_ < every_s) return {};
  if (style_ == ProgressStyle::kTerminal) {
    written_s_ = now_s;
    std::string bytes = erase();
    // The last column stays free: a terminal that wraps there would shift every line below.
    const auto lines = frame(now_s, std::max<std::size_t>(width, 21) - 1);
    for (const std::string& line : lines) bytes += line + "\n";
    lines_shown_ = lines.size();
    return bytes;
  }
  const auto newest = std::ranges::max_element(stages_, {}, &Stage::heard_s);
  if (newest == stages_.end()) return {};  // nothing has moved: no line
  std::string bytes;
  for (const Stage& known : stages_) {
    const bool moved = !written_s_ || known.heard_s > *written_s_;
    if (!moved) continue;
    if (!bytes.empty()) bytes += "; ";
    bytes += fmt::format("{} {}/{}", known.name, count_text(known.done), count_text(known.total));
    if (!known.unit.empty()) bytes += " " + known.unit;
    const auto rate = rate_of(known);
    if (known.done >= known.total || !rate || *rate <= 0) continue;
    bytes += fmt::format(" at {}/s, ETA {}", count_text(*rate),
                         duration_text((known.total - known.done) / *rate));
    if (known.waiting) bytes += fmt::format(", {:.0f}% waiting", *known.waiting * 100);
  }
  if (bytes.empty()) return {};
  written_s_ = now_s;
  return fmt::format("{}; {}\n", bytes, summary(now_s));
}

std::string Progress::say(const std::string& line) {
  written_s_ = style_ == ProgressStyle::kTerminal ? std::nullopt : written_s_;
  return erase() + line + "\n";
}

std::string Progress::finish() { return erase(); }

}  // namespace saesweep::cli
