// Numbers, sizes and times as people read them.
#pragma once

#include <string>
#include <string_view>

namespace saesweep::cli {

std::string count_text(double value);       // 950, 12.3k, 4.00M
std::string bytes_text(double bytes);       // 512 B, 3.2 MiB, 41 GiB
std::string duration_text(double seconds);  // 8s, 1m05s, 2h03m, 3d04h
std::string rfc3339(double unix_seconds);   // 2026-03-09T17:04:05Z

// Control characters of a message must not reach a terminal.
std::string printable(std::string_view text);

}  // namespace saesweep::cli
