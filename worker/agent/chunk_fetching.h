// Brings chunks that are not in our cache from the cache of a node that has them, or is about to:
// the one that the scheduler named with a run (ASSIGN), or one that asked us for what we do not
// have either, and so is ahead of us. Whatever goes wrong means harvesting here, as if there were
// no other node; no run fails for it.
//
// A chunk is asked for when an executor misses it, and waited for at most kLongestWait, which only
// one that is being harvested over there takes; a node that does not answer is given kNodePatience.
// At most kMostInFlight chunks are on their way; who wants one more harvests it.
//
// When it is worth it: fetching is tried as long as nothing speaks against it, and from then on as
// long as a chunk of the stream takes no longer to fetch than to harvest. Both are means of what
// was observed lately (chunk_board.h): fetching from asking to arrival, of chunks that lay there;
// harvesting here, or where nothing was harvested yet, over there as the other node says. Where
// fetching is slower it is tried again once in kTryAgainAfter, for lines and loads change.
//
// A node that does not answer, refuses us or sends bytes that are not the chunk is left alone for
// kNodeRest.
//
// One thread, that of the agent, but for the one inside that carries.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/clock.h"
#include "scheduler/protocol/messages.pb.h"
#include "scheduler/protocol/security.h"
#include "storage/chunk_codec.h"
#include "worker/agent/chunk_board.h"

namespace saesweep::agent {

class ChunkFetching {
 public:
  static constexpr std::size_t kMostInFlight = 8;
  static constexpr std::chrono::milliseconds kNodePatience{2'000};
  static constexpr std::chrono::seconds kLongestWait{10};
  static constexpr std::chrono::seconds kNodeRest{30};
  static constexpr std::chrono::seconds kTryAgainAfter{60};

  // `board` outlives it.
  explicit ChunkFetching(ChunkBoard& board,
                         std::chrono::milliseconds node_patience = kNodePatience);
  ~ChunkFetching();
  ChunkFetching(const ChunkFetching&) = delete;
  ChunkFetching& operator=(const ChunkFetching&) = delete;

  // With which keys other nodes are asked; without, only those on loopback.
  void use(std::shared_ptr<const protocol::KeyPair> keys);
  // Where we serve chunks ourselves: told to those whom we ask.
  void introduce(std::string endpoint, std::string server_key);
  // From where chunks of a stream may come: instead of what was said before.
  void learn(const protocol::ChunkSource& source);

  bool knows(const std::string& stream) const { return sources_.contains(stream); }

  // True if the chunk is on its way now: it is among arrived() later. False: harvest it.
  bool begin(const std::string& stream, std::uint32_t index, TimePoint now);

  struct Arrived {
    std::string stream;
    std::uint32_t index = 0;
    // Verified for this index. Nothing: it does not come.
    std::optional<std::string> value;
    // Of `value`.
    storage::ChunkShape shape;
    std::span<const std::byte> values() const;
  };
  std::vector<Arrived> arrived(TimePoint now);
  // What arrived was not what it should be: its node is left alone.
  void distrust(const std::string& stream, TimePoint now);
  int signal() const;  // readable when something arrived

 private:
  struct Source {
    std::string endpoint, server_key;
    MovingMean fetch_seconds;
    std::optional<double> harvest_seconds;  // over there
    TimePoint try_again{};                  // where fetching is slower
  };
  struct Carrier;

  bool is_worth_it(const std::string& stream, Source& source, TimePoint now) const;

  ChunkBoard& board_;
  std::shared_ptr<const protocol::KeyPair> keys_;
  std::string own_endpoint_, own_key_;
  std::map<std::string, Source> sources_;     // by stream
  std::map<std::string, TimePoint> resting_;  // endpoints that are left alone, until when
  std::size_t in_flight_ = 0;
  std::unique_ptr<Carrier> carrier_;  // last: its thread ends first
};

}  // namespace saesweep::agent
