// From what a client asks for to what `decide` hears.
#pragma once

#include <string>

#include "core/json.h"
#include "core/result.h"
#include "scheduler/decisions/decide.h"

namespace saesweep::scheduler {

// Fields of a body; empty or `otherwise` when absent. Errors: kInvalidArgument, naming the field.
Result<std::string> text_of(const Json& body, const char* name);
Result<std::uint64_t> number_of(const Json& body, const char* name, std::uint64_t otherwise);

// The one trial that "trial", a selector, means in "sweep", a name or last.
// Errors: kInvalidArgument, kNotFound.
struct ChosenTrial {
  const journal::Sweep* sweep;
  const journal::Subject* trial;
};
Result<ChosenTrial> one_trial(const SweepState& state, const Json& body);

//   sweep     {"sweep", "verb": cancel|pause|resume|retry, "trials": [selectors], "failed": bool}
//             without trials: all of it; "failed": only rows that failed
//   priority  {"sweep", "priority": -100..100, "weight"}
//   worker    {"worker": name or session, "verb": drain|undrain}
// Errors: kInvalidArgument, kNotFound.
Result<Heard> to_command(const SweepState& state, const std::string& verb, const Json& body);

}  // namespace saesweep::scheduler
