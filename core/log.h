// The log: an event name, then fields, to stderr. log::info("lease.expired trial={}", trial).
// `error` means a person must act, `warn` that we coped, `info` is a trial's life, `debug` a step.
#pragma once

#include <fmt/core.h>

#include <string_view>
#include <utility>

namespace saesweep::log {

enum class Level { kDebug, kInfo, kWarn, kError, kOff };

void set_level(Level level);
// Who speaks, shown in every line ("scheduler", "task 2").
void set_name(std::string_view name);
bool enabled(Level level);
void write(Level level, std::string_view line);

template <class... Args>
void debug(fmt::format_string<Args...> format, Args&&... args) {
  if (enabled(Level::kDebug))
    write(Level::kDebug, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void info(fmt::format_string<Args...> format, Args&&... args) {
  if (enabled(Level::kInfo)) write(Level::kInfo, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void warn(fmt::format_string<Args...> format, Args&&... args) {
  if (enabled(Level::kWarn)) write(Level::kWarn, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void error(fmt::format_string<Args...> format, Args&&... args) {
  if (enabled(Level::kError))
    write(Level::kError, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace saesweep::log
