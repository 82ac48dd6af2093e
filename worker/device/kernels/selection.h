// Which activations are kept: the k largest positive ones of each row, or those of a whole batch.
// Exact; ties go to the first row and the lowest latent. By radix: positive floats are in the order
// of their bits, of which three looks fix 11, 11 and 10.
//
// An activation is z + bias, z: [rows, width].
#pragma once

#include "worker/device/kernels/block.h"

namespace saesweep::worker::device {

// Activations kept of row r: entries [begin[r], begin[r] + count[r]), in order of latents.
struct CodeLists {
  std::int64_t* begin;
  std::int32_t* count;
  std::int32_t* latent;
  float* value;
  float* pull;  // gradient of the pre-activation
};

// Latents among which is chosen: all, or those that have long been silent.
struct Candidates {
  const float *z, *bias;
  std::int64_t width;
  const std::int64_t* silence;  // nullptr: all
  std::int64_t dead_after;

  SAE_DEVICE float at(std::int64_t row, std::int64_t latent) const {
    return z[row * width + latent] + bias[latent];
  }
  SAE_DEVICE bool has(std::int64_t latent) const {
    return silence == nullptr || silence[latent] >= dead_after;
  }
};

struct Radix {
  static constexpr int kLooks = 3;
  static constexpr int kBins = 2048;

  static SAE_DEVICE int shift(int look) { return look == 0 ? 21 : look == 1 ? 10 : 0; }
  static SAE_DEVICE std::uint32_t bin(std::uint32_t key, int look) {
    return (key >> shift(look)) & (look == 2 ? 0x3ffU : 0x7ffU);
  }
  // Bits that the looks before have fixed.
  static SAE_DEVICE bool fits(std::uint32_t key, std::uint32_t prefix, int look) {
    if (look == 0) return true;
    return (key >> shift(look - 1)) == (prefix >> shift(look - 1));
  }
};

// What is known of the smallest key that is kept.
struct Cut {
  std::uint32_t key;        // larger ones are kept, and of equal ones `remaining`
  std::uint32_t all;        // no more are positive than wanted
  std::uint64_t remaining;  // that are still to be found among those with this prefix
};

// The bin of `histogram` in which the wanted one lies, counted from the largest.
template <int kThreads>
struct BinSearch {
  std::uint64_t parts[kThreads];

  template <class Block>
  SAE_DEVICE void find(Block& block, const std::uint32_t* histogram, int look, Cut& cut) {
    constexpr int kPerThread = Radix::kBins / kThreads;
    block.each([&](int thread) {
      std::uint64_t sum = 0;
      for (int i = 0; i < kPerThread; ++i) sum += histogram[thread * kPerThread + i];
      parts[thread] = sum;
    });
    block.each([&](int thread) {
      if (thread != 0) return;
      if (look == 0) {
        std::uint64_t positive = 0;
        for (int i = 0; i < kThreads; ++i) positive += parts[i];
        if (positive <= cut.remaining) {
          cut.all = 1;
          cut.key = 0;
          cut.remaining = 0;
        }
      }
      if (cut.all != 0) return;
      int part = kThreads - 1;
      while (part > 0 && parts[part] < cut.remaining) cut.remaining -= parts[part--];
      int bin = part * kPerThread + kPerThread - 1;
      while (bin > part * kPerThread && histogram[bin] < cut.remaining)
        cut.remaining -= histogram[bin--];
      cut.key |= static_cast<std::uint32_t>(bin) << Radix::shift(look);
    });
  }
};

// Writes what a cut keeps of one row, in order of latents: bits are set in any order and read in
// theirs, so many latents at a time.
template <int kThreads>
struct RowWriter {
  static constexpr int kWordsPerThread = 4;
  static constexpr int kWords = kThreads * kWordsPerThread;
  static constexpr std::int64_t kLatents = kWords * 32;

  std::uint32_t above[kWords], equal[kWords];
  std::uint32_t above_before[kThreads], equal_before[kThreads];
  std::uint32_t above_here, equal_here;
  std::uint32_t smallest;

  // `quota`: of equal ones. Returns nothing; codes.count[row] and *smallest_out say how many and
  // the smallest, infinity if there is none.
  template <class Block>
  SAE_DEVICE void write(Block& block, const Candidates& from, std::int64_t row, std::uint32_t key,
                        std::uint32_t quota, std::int64_t begin, const CodeLists& codes,
                        float* smallest_out, std::uint8_t* fired) {
    std::uint32_t above_so_far = 0, equal_so_far = 0;
    block.each([&](int thread) {
      if (thread == 0) smallest = 0x7f800000U;
    });
    for (std::int64_t first = 0; first < from.width; first += kLatents) {
      const std::int64_t end = first + kLatents < from.width ? first + kLatents : from.width;
      block.each([&](int thread) {
        for (int i = thread; i < kWords; i += kThreads) above[i] = equal[i] = 0;
      });
      block.each([&](int thread) {
        for (std::int64_t latent = first + thread; latent < end; latent += kThreads) {
          const float value = from.at(row, latent);
          if (!(value > 0) || !from.has(latent)) continue;
          const std::uint32_t bits = bits_of(value);
          if (bits < key) continue;
          const auto offset = static_cast<std::uint32_t>(latent - first);
          block.bit_or(bits > key ? &above[offset / 32] : &equal[offset / 32], 1U << (offset % 32));
        }
      });
      block.each([&](int thread) {
        above_before[thread] = equal_before[thread] = 0;
        for (int i = 0; i < kWordsPerThread; ++i) {
          above_before[thread] += bits_set(above[thread * kWordsPerThread + i]);
          equal_before[thread] += bits_set(equal[thread * kWordsPerThread + i]);
        }
      });
      scan_shared<kThreads>(block, above_before, above_here);
      scan_shared<kThreads>(block, equal_before, equal_here);
      block.each([&](int thread) {
        std::uint32_t larger = above_so_far + above_before[thread];
        std::uint32_t same = equal_so_far + equal_before[thread];
        for (int i = 0; i < kWordsPerThread; ++i) {
          const int word = thread * kWordsPerThread + i;
          for (std::uint32_t left = above[word] | equal[word]; left != 0; left &= left - 1) {
            const std::uint32_t bit = left & (~left + 1);
            const bool is_above = (above[word] & bit) != 0;
            const std::uint32_t at = larger + (same < quota ? same : quota);
            const bool kept = is_above || same < quota;
            is_above ? ++larger : ++same;
            if (!kept) continue;
            const auto latent =
                static_cast<std::int32_t>(first + std::int64_t{word} * 32 + bits_set(bit - 1));
            const float value = from.at(row, latent);
            codes.latent[begin + at] = latent;
            codes.value[begin + at] = value;
            block.least(&smallest, bits_of(value));
            if (fired != nullptr) block.mark(&fired[latent]);
          }
        }
      });
      above_so_far += above_here;
      equal_so_far += equal_here;
    }
    block.each([&](int thread) {
      if (thread != 0) return;
      codes.begin[row] = begin;
      codes.count[row] =
          static_cast<std::int32_t>(above_so_far + (equal_so_far < quota ? equal_so_far : quota));
      smallest_out[row] = float_of(smallest);
    });
  }
};

// The k largest of each row; a block a row. `wanted`: k, or nullptr for `k`.
struct SelectRow {
  static constexpr int kThreads = 256;
  struct Shared {
    std::uint32_t histogram[Radix::kBins];
    BinSearch<kThreads> search;
    RowWriter<kThreads> writer;
    Cut cut;
  };

  Candidates from;
  std::int64_t k, stride;     // entries of row r begin at r * stride
  const std::uint32_t* most;  // of the candidates in all; nullptr: width. 0: nothing to do
  CodeLists codes;
  float* smallest;            // [rows]
  std::uint8_t* fired;        // [width], or nullptr
  std::uint32_t* not_finite;  // set where an activation is not; or nullptr

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared& shared) const {
    const std::int64_t row = block.index;
    if (most != nullptr && *most == 0) {
      block.each([&](int thread) {
        if (thread != 0) return;
        codes.begin[row] = row * stride;
        codes.count[row] = 0;
      });
      return;
    }
    block.each([&](int thread) {
      if (thread != 0) return;
      std::int64_t wanted = k;
      if (most != nullptr && *most < wanted) wanted = *most;
      shared.cut = {0, 0, static_cast<std::uint64_t>(wanted)};
    });
    for (int look = 0; look < Radix::kLooks; ++look) {
      if (shared.cut.all != 0) break;
      block.each([&](int thread) {
        for (int i = thread; i < Radix::kBins; i += kThreads) shared.histogram[i] = 0;
      });
      block.each([&](int thread) {
        for (std::int64_t latent = thread; latent < from.width; latent += kThreads) {
          const float value = from.at(row, latent);
          if (look == 0 && not_finite != nullptr && !is_finite(value)) block.mark(not_finite);
          if (!(value > 0) || !from.has(latent)) continue;
          const std::uint32_t key = bits_of(value);
          if (Radix::fits(key, shared.cut.key, look))
            block.add(&shared.histogram[Radix::bin(key, look)], 1U);
        }
      });
      shared.search.find(block, shared.histogram, look, shared.cut);
    }
    shared.writer.write(block, from, row, shared.cut.key,
                        static_cast<std::uint32_t>(shared.cut.remaining), row * stride, codes,
                        smallest, fired);
  }
};

// Before the first look; one block.
struct BeginCut {
  static constexpr int kThreads = 256;
  using Shared = Nothing;

  Cut* cut;
  std::uint32_t* histogram;
  std::uint64_t wanted;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared&) const {
    block.each([&](int thread) {
      for (int i = thread; i < Radix::kBins; i += kThreads) histogram[i] = 0;
      if (thread == 0) *cut = {0, 0, wanted};
    });
  }
};

// One look at all rows of a batch, some rows a block. `histogram` is all zero before.
struct CountBins {
  static constexpr int kThreads = 256;
  static constexpr std::int64_t kRows = 8;
  struct Shared {
    std::uint32_t histogram[Radix::kBins];
  };

  Candidates from;
  std::int64_t rows;
  const Cut* cut;
  std::uint32_t* histogram;
  std::uint32_t* not_finite;
  std::int32_t look;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared& shared) const {
    if (cut->all != 0) return;
    const std::int64_t first = block.index * kRows;
    const std::int64_t end = first + kRows < rows ? first + kRows : rows;
    block.each([&](int thread) {
      for (int i = thread; i < Radix::kBins; i += kThreads) shared.histogram[i] = 0;
    });
    block.each([&](int thread) {
      for (std::int64_t row = first; row < end; ++row)
        for (std::int64_t latent = thread; latent < from.width; latent += kThreads) {
          const float value = from.at(row, latent);
          if (look == 0 && !is_finite(value)) block.mark(not_finite);
          if (!(value > 0)) continue;
          const std::uint32_t key = bits_of(value);
          if (Radix::fits(key, cut->key, look))
            block.add(&shared.histogram[Radix::bin(key, look)], 1U);
        }
    });
    block.each([&](int thread) {
      for (int i = thread; i < Radix::kBins; i += kThreads)
        if (shared.histogram[i] != 0) block.add(&histogram[i], shared.histogram[i]);
    });
  }
};

// What a look has found; one block. Leaves the histogram zero.
struct NarrowCut {
  static constexpr int kThreads = 256;
  struct Shared {
    BinSearch<kThreads> search;
    Cut cut;
  };

  Cut* cut;
  std::uint32_t* histogram;
  std::int32_t look;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared& shared) const {
    block.each([&](int thread) {
      if (thread == 0) shared.cut = *cut;
    });
    if (shared.cut.all != 0) return;
    shared.search.find(block, histogram, look, shared.cut);
    block.each([&](int thread) {
      for (int i = thread; i < Radix::kBins; i += kThreads) histogram[i] = 0;
      if (thread == 0) *cut = shared.cut;
    });
  }
};

// Of each row how many are above the cut, and how many at it; a block a row.
struct CountKept {
  static constexpr int kThreads = 256;
  struct Shared {
    std::uint32_t above, equal;
  };

  Candidates from;
  const Cut* cut;
  std::uint32_t *above, *equal;  // [rows]

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared& shared) const {
    const std::int64_t row = block.index;
    block.each([&](int thread) {
      if (thread == 0) shared.above = shared.equal = 0;
    });
    block.each([&](int thread) {
      std::uint32_t larger = 0, same = 0;
      for (std::int64_t latent = thread; latent < from.width; latent += kThreads) {
        const float value = from.at(row, latent);
        if (!(value > 0)) continue;
        const std::uint32_t key = bits_of(value);
        larger += key > cut->key ? 1 : 0;
        same += key == cut->key ? 1 : 0;
      }
      block.add(&shared.above, larger);
      block.add(&shared.equal, same);
    });
    block.each([&](int thread) {
      if (thread != 0) return;
      above[row] = shared.above;
      equal[row] = shared.equal;
    });
  }
};

// Where each row's entries begin, and how many of its equal ones are kept: the first rows' first.
// One block.
struct PlaceRows {
  static constexpr int kThreads = 256;
  struct Shared {
    std::int64_t above_before[kThreads], equal_before[kThreads];
    std::int64_t above_total, equal_total;
  };

  std::int64_t rows;
  const Cut* cut;
  const std::uint32_t* above;
  std::uint32_t* equal;  // becomes the quota
  std::int64_t* begin;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared& shared) const {
    const std::int64_t each = (rows + kThreads - 1) / kThreads;
    block.each([&](int thread) {
      std::int64_t larger = 0, same = 0;
      for (std::int64_t row = thread * each; row < rows && row < (thread + 1) * each; ++row) {
        larger += above[row];
        same += equal[row];
      }
      shared.above_before[thread] = larger;
      shared.equal_before[thread] = same;
    });
    scan_shared<kThreads>(block, shared.above_before, shared.above_total);
    scan_shared<kThreads>(block, shared.equal_before, shared.equal_total);
    block.each([&](int thread) {
      const auto wanted = static_cast<std::int64_t>(cut->remaining);
      std::int64_t larger = shared.above_before[thread], same = shared.equal_before[thread];
      for (std::int64_t row = thread * each; row < rows && row < (thread + 1) * each; ++row) {
        const std::int64_t left = same < wanted ? wanted - same : 0;
        begin[row] = larger + (same < wanted ? same : wanted);
        larger += above[row];
        same += equal[row];
        if (equal[row] > left) equal[row] = static_cast<std::uint32_t>(left);
      }
    });
  }
};

// What the cut keeps of each row; a block a row.
struct WriteKept {
  static constexpr int kThreads = 256;
  struct Shared {
    RowWriter<kThreads> writer;
  };

  Candidates from;
  const Cut* cut;
  const std::uint32_t* quota;  // [rows]
  CodeLists codes;             // begin: as PlaceRows left it
  float* smallest;
  std::uint8_t* fired;

  template <class Block>
  SAE_DEVICE void run(Block& block, Shared& shared) const {
    const std::int64_t row = block.index;
    shared.writer.write(block, from, row, cut->key, quota[row], codes.begin[row], codes, smallest,
                        fired);
  }
};

}  // namespace saesweep::worker::device
