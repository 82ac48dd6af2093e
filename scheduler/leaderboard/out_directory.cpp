#include "scheduler/leaderboard/out_directory.h"

#include <algorithm>
#include <array>
#include <fstream>

#include "core/check.h"
#include "core/files.h"
#include "scheduler/leaderboard/report_page.h"

namespace saesweep::scheduler {
namespace {

namespace fs = std::filesystem;

// Names come from our own plans, not from a user.
bool is_plain_name(const std::string& name) {
  return !name.empty() && name.find('/') == std::string::npos && name != "." && name != "..";
}

bool same_content(const fs::path& a, const fs::path& b) {
  std::error_code error;
  const auto size_a = fs::file_size(a, error);
  if (error) return false;
  const auto size_b = fs::file_size(b, error);
  if (error || size_a != size_b) return false;
  std::ifstream stream_a(a, std::ios::binary), stream_b(b, std::ios::binary);
  std::vector<char> block_a(1 << 20), block_b(1 << 20);
  while (stream_a && stream_b) {
    stream_a.read(block_a.data(), static_cast<std::streamsize>(block_a.size()));
    stream_b.read(block_b.data(), static_cast<std::streamsize>(block_b.size()));
    if (stream_a.gcount() != stream_b.gcount() ||
        !std::equal(block_a.begin(), block_a.begin() + stream_a.gcount(), block_b.begin()))
      return false;
  }
  return stream_a.eof() && stream_b.eof();
}

// Rewriting what is there would only wear the disk and change the time that people sort by.
Result<void> put_bytes(const fs::path& path, const std::string& bytes) {
  if (const auto present = read_file(path, bytes.size()); present && *present == bytes) return {};
  return write_file_atomically(path, bytes);
}

Result<void> put_copy(const fs::path& path, const fs::path& source) {
  if (same_content(path, source)) return {};
  SAE_TRY(const std::string bytes, read_file(source));
  return write_file_atomically(path, bytes);
}

Result<void> put_files(const fs::path& folder, const std::vector<OutFile>& files) {
  if (files.empty()) return {};
  SAE_TRY_VOID(make_directories(folder));
  for (const OutFile& file : files) {
    SAE_CHECK(is_plain_name(file.name), "\"{}\"", file.name);
    SAE_TRY_VOID(file.source.empty() ? put_bytes(folder / file.name, file.bytes)
                                     : put_copy(folder / file.name, file.source));
  }
  return {};
}

}  // namespace

std::string hook_folder(const std::string& hook) {
  if (hook.empty()) return "activations";
  std::string folder = hook;
  std::ranges::replace_if(
      folder, [](char c) { return c == '/' || c == '\\' || static_cast<unsigned char>(c) < 0x20; },
      '_');
  if (folder.front() == '.') folder.front() = '_';
  return folder;
}

Result<void> write_out(const fs::path& directory, const OutContents& contents) {
  SAE_TRY_VOID(make_directories(directory));
  for (const OutFolder& trial : contents.trials) {
    SAE_CHECK(is_plain_name(trial.name), "\"{}\"", trial.name);
    SAE_TRY_VOID(put_files(directory / "trials" / trial.name, trial.files));
  }
  for (const OutFolder& baseline : contents.baselines) {
    SAE_CHECK(is_plain_name(baseline.name), "\"{}\"", baseline.name);
    SAE_TRY_VOID(put_files(directory / "baselines" / hook_folder(baseline.hook) / baseline.name,
                           baseline.files));
  }
  SAE_TRY_VOID(put_files(directory / "model", contents.model));
  return put_files(directory, {{"sweep.yaml", {}, contents.sweep_yaml},
                               {"run.json", {}, pretty_json(contents.run)},
                               {"leaderboard.csv", {}, leaderboard_csv(contents.board)},
                               {"report.html", {}, report_page(contents.board)},
                               {"leaderboard.json", {}, leaderboard_json(contents.board)}});
}

}  // namespace saesweep::scheduler
