// Lines that are to become a journal: whatever they are, they are refused or a scheduler can go on
// from them.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "scheduler/service/journal_tools.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace saesweep;
  std::string_view text(reinterpret_cast<const char*>(data), size);
  scheduler::JournalImport import;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    if (!import.take(text.substr(0, end))) return 0;
    text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
  }
  (void)import.check();
  return 0;
}
