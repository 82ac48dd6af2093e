// Any bytes as a sweep file: reading answers, never throws; what it accepts is written as an
// effective file that plans the same trials.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

#include "core/check.h"
#include "sweeps/sweep_plan.h"

namespace {

namespace fs = std::filesystem;

// A folder with a small model, made once and left to the machine's temporary files.
fs::path model_folder() {
  static const fs::path kFolder = [] {
    const fs::path folder = fs::temp_directory_path() / "saesweep-sweep-file-fuzz";
    fs::create_directories(folder / "m");
    std::ofstream(folder / "m/config.json")
        << R"({"n_layer":2,"n_embd":8,"n_head":2,"n_positions":31,"vocab_size":33})";
    return folder;
  }();
  return kFolder;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using saesweep::sweeps::plan_sweep_text;
  const std::string text(reinterpret_cast<const char*>(data), size);
  const auto plan = plan_sweep_text(text, "fuzz.yaml", model_folder());
  if (!plan) {
    SAE_CHECK(!plan.error().empty(), "refused without a reason");
    for (const auto& error : plan.error()) SAE_CHECK(!error.message.empty(), "{}", error.key);
    return 0;
  }
  const auto again = plan_sweep_text(plan->effective_yaml, "again.yaml", "/");
  SAE_CHECK(again.has_value(), "{}: {}", again.error()[0].to_string(), plan->effective_yaml);
  SAE_CHECK(again->trials.size() == plan->trials.size(), "{}", plan->effective_yaml);
  for (std::size_t i = 0; i < plan->trials.size(); ++i)
    SAE_CHECK(again->trials[i].identity == plan->trials[i].identity, "{}", plan->effective_yaml);
  SAE_CHECK(again->baselines.size() == plan->baselines.size(), "{}", plan->effective_yaml);
  return 0;
}
