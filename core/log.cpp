#include "core/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <string>

namespace saesweep::log {
namespace {

spdlog::level::level_enum to_spdlog(Level level) {
  switch (level) {
    case Level::kDebug:
      return spdlog::level::debug;
    case Level::kInfo:
      return spdlog::level::info;
    case Level::kWarn:
      return spdlog::level::warn;
    case Level::kError:
      return spdlog::level::err;
    case Level::kOff:
      return spdlog::level::off;
  }
  return spdlog::level::info;
}

spdlog::logger& logger() {
  static const std::shared_ptr<spdlog::logger> kInstance = [] {
    auto made = std::make_shared<spdlog::logger>(
        "saesweep", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
    made->set_pattern("%Y-%m-%dT%H:%M:%S.%e %^%l%$ %n %v");
    made->set_level(spdlog::level::warn);
    return made;
  }();
  return *kInstance;
}

}  // namespace

void set_level(Level level) { logger().set_level(to_spdlog(level)); }

void set_name(std::string_view name) {
  std::string as_text;  // a percent sign would start a field of the pattern
  for (const char c : name) as_text.append(c == '%' ? 2 : 1, c);
  logger().set_pattern("%Y-%m-%dT%H:%M:%S.%e %^%l%$ " + as_text + " %v");
}

bool enabled(Level level) { return logger().should_log(to_spdlog(level)); }

void write(Level level, std::string_view line) {
  logger().log(to_spdlog(level), spdlog::string_view_t(line.data(), line.size()));
}

}  // namespace saesweep::log
