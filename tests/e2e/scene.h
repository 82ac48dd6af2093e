// A folder with a tiny model shape and a sweep file, and saesweep run in it: the words of the
// end-to-end tests.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "core/json.h"
#include "tests/e2e/program.h"
#include "tests/support/temp_dir.h"

namespace saesweep::test {

class Scene {
 public:
  Scene();
  const std::filesystem::path& path() const { return dir_.path(); }

  // Files are written below path().
  void write(const std::string& name, const std::string& text) const;
  std::string read(const std::filesystem::path& file) const;

  // `saesweep WORDS...`, with the state directory and --out named after `place` for `run`.
  std::vector<std::string> words(const std::vector<std::string>& words) const;
  Finished saesweep(const std::vector<std::string>& words) const;
  std::vector<std::string> run_words(const std::string& sweep, const std::string& place,
                                     const std::vector<std::string>& more = {}) const;
  Finished run(const std::string& sweep, const std::string& place,
               const std::vector<std::string>& more = {}) const;

  std::filesystem::path state(const std::string& place) const {
    return path() / (place + "-state");
  }
  std::filesystem::path out(const std::string& place) const { return path() / (place + "-out"); }

  // Results that must not depend on how often a run was killed: every sae.safetensors, config.json,
  // curve.csv, scores.json, and leaderboard.json.
  std::map<std::string, std::string> results(const std::string& place) const;
  Json leaderboard(const std::string& place) const;

 private:
  TempDir dir_;
};

// Four architectures on a random 4x4 model: seconds, with `tokens` a trial.
std::string tiny_sweep(const std::string& tokens, const std::string& checkpoint_every = "60s");

}  // namespace saesweep::test
