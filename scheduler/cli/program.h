// The program `saesweep`: its verbs, global flags and exit codes.
#pragma once

#include "core/error.h"

namespace saesweep::cli {

inline constexpr int kExitDone = 0;
inline constexpr int kExitSomeFailed = 1;     // finished, but some trials failed or diverged
inline constexpr int kExitMisuse = 2;         // wrong arguments or input; nothing started
inline constexpr int kExitTryLater = 3;       // cannot go on now: state held, disk full
inline constexpr int kExitInterrupted = 130;  // resumable

// What a verb that met this error ends with.
int exit_code_of(ErrorCode code);

// Parses, acts, says what is wrong; never throws. The exit code.
int run_program(int argc, char** argv);

}  // namespace saesweep::cli
