#include "scheduler/cli/program.h"

int main(int argc, char** argv) { return saesweep::cli::run_program(argc, argv); }
