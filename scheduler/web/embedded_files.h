// The files of the pages as they were at build time.
#pragma once

#include <string_view>

namespace saesweep::scheduler {

// The bytes of a file under scheduler/web/, "report/report.css"; empty if there is none of that
// name.
std::string_view embedded_file(std::string_view name);

}  // namespace saesweep::scheduler
