// report.html: the leaderboard as one page that opens without a network.
//
// The page is scheduler/web/report/, the charts are Chart.js, both embedded in the program; the
// data stands in it as JSON. It loads nothing, and its content security policy forbids that it ever
// does.
#pragma once

#include <string>

#include "scheduler/leaderboard/leaderboard.h"

namespace saesweep::scheduler {

// `board` has been ranked. Equal boards give equal bytes.
std::string report_page(const Leaderboard& board);

// What the page reads: rows with curves thinned so that the page stays small with many trials.
Json report_data(const Leaderboard& board);

// JSON that may stand inside <script>: no "<", ">", "&", and ASCII only, so that neither
// "</script>" nor U+2028 ends it.
std::string script_safe_json(const Json& value);

}  // namespace saesweep::scheduler
