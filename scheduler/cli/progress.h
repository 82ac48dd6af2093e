// How far a sweep is, as text: a few lines redrawn in place on a terminal, a plain line now and
// then in a log. Fed with the events of the scheduler and a time, gives back the bytes to write, so
// a test needs neither terminal nor clock.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/json.h"

namespace saesweep::cli {

enum class ProgressStyle : std::uint8_t { kNone, kTerminal, kLog };

class Progress {
 public:
  explicit Progress(ProgressStyle style) : style_(style) {}

  // Seconds of a clock that never goes back; not before those of an earlier call.
  void hear(const Json& event, double now_s);
  // What to write now, possibly nothing: a terminal is redrawn at most five times a second, a log
  // gets a line at most every 10 s.
  std::string tick(double now_s, std::size_t width);
  // A line for people that stays (with its newline), above the bars on a terminal.
  std::string say(const std::string& line);
  // The bars go; what was said stays.
  std::string finish();

  std::uint64_t trials_done() const { return done_; }
  std::uint64_t trials_failed() const { return failed_; }

 private:
  struct Stage {
    std::string name;
    std::string unit;
    double done = 0, total = 0;
    std::optional<double> rate;                    // as reported
    std::optional<double> waiting;                 // share of the time, as reported
    std::deque<std::pair<double, double>> lately;  // (seconds, done), for a rate of our own
    double heard_s = 0;
  };
  Stage& stage(const std::string& name);
  static std::optional<double> rate_of(const Stage& stage);
  std::string stage_line(const Stage& stage, std::size_t width) const;
  std::string summary(double now_s) const;
  std::vector<std::string> frame(double now_s, std::size_t width) const;
  std::string erase();

  ProgressStyle style_;
  std::vector<Stage> stages_;  // in order of their first event
  std::uint64_t trials_ = 0, done_ = 0, failed_ = 0;
  std::optional<double> started_s_;
  std::optional<double> written_s_;
  std::size_t lines_shown_ = 0;
};

}  // namespace saesweep::cli
