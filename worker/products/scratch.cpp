#include "worker/products/scratch.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace saesweep::worker::products {
namespace {

constexpr std::size_t kLine = 64, kHugePage = std::size_t{2} << 20;

struct Buffer {
  float* data;
  std::size_t bytes;
};

// Buffers that nobody uses, the one given back last at the end.
struct Store {
  std::mutex mutex;
  std::vector<Buffer> idle;                                         // under mutex
  std::size_t idle_bytes = 0, used_bytes = 0, most_used_bytes = 0;  // under mutex

  Buffer take(std::size_t bytes) {
    {
      const std::lock_guard lock(mutex);
      // The smallest that is large enough without wasting half of it.
      auto best = idle.end();
      for (auto at = idle.begin(); at != idle.end(); ++at)
        if (at->bytes >= bytes && at->bytes / 2 <= bytes &&
            (best == idle.end() || at->bytes < best->bytes))
          best = at;
      if (best != idle.end()) {
        const Buffer buffer = *best;
        idle.erase(best);
        idle_bytes -= buffer.bytes;
        count(buffer.bytes);
        return buffer;
      }
    }
    const std::size_t alignment = bytes >= kHugePage ? kHugePage : kLine;
    const std::size_t whole = (bytes + alignment - 1) / alignment * alignment;
    auto* data = static_cast<float*>(std::aligned_alloc(alignment, whole));
    if (data == nullptr) throw std::bad_alloc();
    if (alignment == kHugePage) ::madvise(data, whole, MADV_HUGEPAGE);  // only a wish
    const std::lock_guard lock(mutex);
    count(whole);
    return {data, whole};
  }

  void give_back(Buffer buffer) {
    std::vector<Buffer> dropped;
    {
      const std::lock_guard lock(mutex);
      used_bytes -= buffer.bytes;
      idle.push_back(buffer);
      idle_bytes += buffer.bytes;
      while (2 * idle_bytes > 3 * most_used_bytes) {
        dropped.push_back(idle.front());
        idle_bytes -= idle.front().bytes;
        idle.erase(idle.begin());
      }
    }
    for (const Buffer& each : dropped) std::free(each.data);
  }

  void drop_idle() {
    const std::lock_guard lock(mutex);
    for (const Buffer& each : idle) std::free(each.data);
    idle.clear();
    idle_bytes = 0;
    most_used_bytes = used_bytes;
  }

 private:
  void count(std::size_t bytes) {
    used_bytes += bytes;
    most_used_bytes = std::max(most_used_bytes, used_bytes);
  }
};

Store& store() {
  static Store* const instance = new Store;  // outlives every thread
  return *instance;
}

}  // namespace

Scratch::Scratch(std::int64_t floats) {
  const Buffer buffer =
      store().take(static_cast<std::size_t>(std::max<std::int64_t>(floats, 1)) * sizeof(float));
  data_ = buffer.data;
  bytes_ = buffer.bytes;
}
Scratch::~Scratch() {
  if (data_ != nullptr) store().give_back({data_, bytes_});
}
Scratch::Scratch(Scratch&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}

void Scratch::drop_idle() { store().drop_idle(); }

std::size_t Scratch::idle_bytes() {
  const std::lock_guard lock(store().mutex);
  return store().idle_bytes;
}

}  // namespace saesweep::worker::products
