// What a run leaves for people in --out:
//
//   leaderboard.json, leaderboard.csv, report.html
//   sweep.yaml                           effective
//   run.json                             host, times, paths, versions
//   trials/<id>/<file>                   sae.safetensors, config.json, scores.json, curve.csv
//   baselines/<hook>/<folder>/<file>     scores.json
//   model/<file>                         of train_lm
//
// Every file is whole or absent, and the leaderboard comes last, so that one that is there speaks
// of files that are there. Writing the same again changes nothing; files of other trials that lie
// in the directory stay.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "core/json.h"
#include "core/result.h"
#include "scheduler/leaderboard/leaderboard.h"

namespace saesweep::scheduler {

// A file by its name in its folder, with its content here or in another file (an artifact).
struct OutFile {
  std::string name;
  std::filesystem::path source;  // empty: `bytes`
  std::string bytes;
};

struct OutFolder {
  std::string hook;  // of baselines
  std::string name;  // a trial's id; a baseline's folder
  std::vector<OutFile> files;
};

struct OutContents {
  Leaderboard board;  // ranked
  std::string sweep_yaml;
  Json run = Json::object();
  std::vector<OutFolder> trials;
  std::vector<OutFolder> baselines;
  std::vector<OutFile> model;
};

// Errors: kNotFound for a source that is gone; kResourceExhausted on a full disk; kUnavailable.
Result<void> write_out(const std::filesystem::path& directory, const OutContents& contents);

// The hook as a folder: "blocks.2.hook_resid_post"; "activations" where there is no hook.
// Characters that a path gives a meaning become "_".
std::string hook_folder(const std::string& hook);

}  // namespace saesweep::scheduler
