// A process to be killed, or to hold a lock: RocksDB's threads do not survive a fork, so tests
// start this program instead.
//
//   crash_child cache <directory> <first> <count>    puts chunks first, first + 1, ... for ever
//   crash_child journal <directory> <count>          commits rows 0, 1, ... for ever
//   crash_child hold-cache|hold-journal <directory>  opens and waits
//
// Writes one byte to stdout after `count` of them, or when it holds what it should.
#include <unistd.h>

#include <cstdlib>
#include <string_view>

#include "tests/storage/storage_words.h"

namespace saesweep::storage {
namespace {

void say() {
  if (::write(STDOUT_FILENO, "x", 1) != 1) _exit(3);
}

int put_chunks(const char* directory, std::uint32_t first, std::uint32_t count) {
  auto cache = ActivationCache::open(directory, kPlenty, kSmallBuffers).value();
  const auto pin = cache.pin("stream").value();
  for (std::uint32_t i = 0;; ++i) {
    if (!cache.put(pin, first + i, kShape, values_of(first + i))) return 1;
    if (i == count) say();
  }
}

int commit_rows(const char* directory, std::uint64_t count) {
  auto journal = Journal::open(directory, {.families = {"a", "b"}}).value();
  for (std::uint64_t i = 0;; ++i) {
    if (!journal.commit(rows_of(i))) return 1;
    say();  // this one was acknowledged
    if (i == count) return 0;
  }
}

}  // namespace
}  // namespace saesweep::storage

int main(int argc, char** argv) {
  using namespace saesweep::storage;
  const std::string_view verb = argc > 2 ? argv[1] : "";
  if (verb == "cache" && argc == 5) {
    return put_chunks(argv[2], static_cast<std::uint32_t>(std::atoi(argv[3])),
                      static_cast<std::uint32_t>(std::atoi(argv[4])));
  }
  if (verb == "journal" && argc == 4) {
    return commit_rows(argv[2], static_cast<std::uint64_t>(std::atoi(argv[3])));
  }
  if (verb == "hold-cache") {
    const auto cache = ActivationCache::open(argv[2], kPlenty).value();
    say();
    for (;;) ::pause();
  }
  if (verb == "hold-journal") {
    const auto journal = Journal::open(argv[2], {.families = {"a", "b"}}).value();
    say();
    for (;;) ::pause();
  }
  return 2;
}
