// Activation chunks for the executors of one node: what they ask of the cache, and who harvests a
// chunk that is not there.
//
// Each (connection, stream) shares a memfd of kSlots slots with its executor, sealed in its size,
// so that neither side can pull it from under the other. READ copies a chunk from the cache into a
// slot, WRITE from a slot into the cache; the bytes never travel through the socket.
//
//   READ(index, slot)
//     OK with rows; MISSING; CORRUPT (harvest it again, the write replaces it)
//   CLAIM(index, beside)
//     OK: yours to harvest, and of `beside`, chunks of streams that the connection has open, those
//     that are not there and nobody else's (on another node: that we know of): all in one moment,
//     so that two executors do not each take what the other would have brought along. BUSY:
//     somebody has just written it or is harvesting it, read again later. A claim ends with the
//     write, RELEASE, CLOSE, its connection, or after `claim_term`, when others may take it over
//   WRITE(index, slot, rows)
//     OK; FULL: not stored (no budget, or the disk is full), train from the slot
//   RELEASE(index)
//     OK; the claim is given up
//   CLOSE
//     OK; slots and pin of the stream are given up, so that it may be evicted
//   anything malformed
//     STATUS_UNSPECIFIED
//
// A chunk that is missing may be on another node: then it is fetched (chunk_fetching.h), and to
// executors that is as if another one of this node harvested it.
//
// Where there is no cache (cache_bytes 0, or it could not be opened) everything works: READ says
// MISSING, CLAIM always OK, WRITE always FULL.
//
// No sockets and no clock: the agent's loop owns those. One thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <unordered_set>
#include <utility>

#include "core/clock.h"
#include "core/result.h"
#include "scheduler/protocol/messages.pb.h"
#include "storage/activation_cache.h"
#include "worker/agent/chunk_board.h"
#include "worker/agent/chunk_fetching.h"

namespace saesweep::agent {

// A descriptor that closes itself.
class OwnedFd {
 public:
  OwnedFd() = default;
  explicit OwnedFd(int value) : value_(value) {}
  OwnedFd(OwnedFd&& other) noexcept : value_(std::exchange(other.value_, -1)) {}
  OwnedFd& operator=(OwnedFd&& other) noexcept {
    std::swap(value_, other.value_);
    return *this;
  }
  ~OwnedFd();
  int get() const { return value_; }

 private:
  int value_ = -1;
};

using ConnectionId = std::uint64_t;

struct ChunkCounters {
  std::uint64_t hits = 0;            // chunks read from the cache
  std::uint64_t misses = 0;          // chunks given to somebody to harvest
  std::uint64_t corrupt = 0;         // chunks whose bytes were damaged
  std::uint64_t refused_writes = 0;  // answered FULL
  std::uint64_t bytes = 0;           // held by the cache now
  std::uint64_t evicted_bytes = 0;
  std::uint64_t fetched = 0;  // chunks that came from other nodes
  std::uint64_t fetched_bytes = 0;
  std::uint64_t failed_fetches = 0;  // asked for there and harvested after all
  std::uint64_t served = 0;          // chunks that went to other nodes
  std::uint64_t served_bytes = 0;
};

class ChunkService {
 public:
  // Of each stream of each connection. Pages that nobody touches cost nothing.
  static constexpr std::uint32_t kSlots = 4;
  // Longer than a chunk takes to harvest, shorter than anybody waits for one that died unseen.
  static constexpr std::chrono::seconds kClaimTerm{120};
  // Of a chunk that is being fetched, whatever becomes of the thread that fetches.
  static constexpr std::chrono::seconds kFetchTerm{15};
  // Fetched chunks that the cache did not take wait for their executor, so many of them.
  static constexpr std::size_t kMostAside = ChunkFetching::kMostInFlight;

  // `cache` may be null: none could be opened. It outlives this. Open it without a budget: the runs
  // bring theirs.
  explicit ChunkService(storage::ActivationCache* cache, Duration claim_term = kClaimTerm)
      : cache_(cache), claim_term_(claim_term) {}
  ~ChunkService();

  // Harvests are told to `board`; what is missing is looked for by `fetching`. Both outlive this.
  void join_others(ChunkBoard& board, ChunkFetching& fetching);

  ChunkService(const ChunkService&) = delete;
  ChunkService& operator=(const ChunkService&) = delete;

  struct Opened {
    protocol::ChunkOpened message;  // `problem` is empty if it was opened
    OwnedFd memory;                 // to be passed along; closed by whoever holds this
  };
  // Opens a stream for a connection, or opens it anew with fresh slots. The budget of the cache is
  // the largest cache_bytes of those who have a stream open.
  Opened open(ConnectionId connection, const protocol::ChunkOpen& request);

  protocol::ChunkReply handle(ConnectionId connection, const protocol::ChunkRequest& request,
                              TimePoint now);

  // Takes in what arrived from other nodes. signal() is readable then; -1: nothing ever arrives.
  void step(TimePoint now);
  int signal() const;
  // Another node has chunks of a stream.
  void learn(const protocol::ChunkSource& source);

  // Frees the claims, pins and slots of a connection that ended.
  void close(ConnectionId connection);

  ChunkCounters counters() const;
  // What the cache holds: streams and bytes, the largest `most` first.
  std::vector<std::pair<std::string, std::uint64_t>> streams(std::size_t most) const;

 private:
  struct Session {
    storage::ChunkShape full;  // of a chunk with rows_per_chunk rows
    std::uint64_t cache_bytes = 0;
    std::optional<storage::ActivationCache::Pin> pin;  // none: without a cache
    std::byte* memory = nullptr;                       // kSlots * full.bytes()
    std::uint64_t memory_bytes = 0;
    Session() = default;
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
    ~Session();
    std::span<std::byte> slot(std::uint32_t index) const;
  };
  struct Claim {
    ConnectionId owner;
    TimePoint ends;
  };
  using ChunkName = std::pair<std::string, std::uint32_t>;  // stream, index
  using SessionName = std::pair<ConnectionId, std::string>;

  protocol::ChunkReply::Status read(const Session& session, ConnectionId connection,
                                    const protocol::ChunkRequest& request, TimePoint now,
                                    std::uint32_t& rows);
  protocol::ChunkReply::Status claim(const Session& session, ConnectionId connection,
                                     const ChunkName& chunk, TimePoint now);
  // Adds those that are granted to `reply`.
  void claim_beside(ConnectionId connection, const protocol::ChunkRequest& request, TimePoint now,
                    protocol::ChunkReply& reply);
  bool is_missing(const Session& session, const ChunkName& chunk);
  protocol::ChunkReply::Status write(const Session& session, ConnectionId connection,
                                     const protocol::ChunkRequest& request, TimePoint now);
  bool begin_fetch(const protocol::ChunkRequest& request, TimePoint now);
  void take(ChunkFetching::Arrived arrived, TimePoint now);
  bool read_aside(const Session& session, const ChunkName& chunk, std::uint32_t slot,
                  std::uint32_t& rows);
  bool is_aside(const ChunkName& chunk) const;
  const Session* session_with(const std::string& stream) const;
  void release(ConnectionId connection, const ChunkName& chunk);
  // Its claims; null: of all streams.
  void release_all(ConnectionId connection, const std::string* stream);
  void close_stream(ConnectionId connection, const std::string& stream);
  void forget_unpinned();
  void apply_budget();

  storage::ActivationCache* cache_;
  Duration claim_term_;
  std::map<SessionName, Session> sessions_;
  std::map<ChunkName, Claim> claims_;
  // Chunks known to be in the cache since somebody wrote or read them, of streams that are open:
  // who saw MISSING before the write must not harvest the chunk again.
  std::map<std::string, std::unordered_set<std::uint32_t>> present_;
  ChunkBoard* board_ = nullptr;
  ChunkFetching* fetching_ = nullptr;
  std::set<ChunkName> not_there_;             // asked for in vain, and not harvested yet
  std::deque<ChunkFetching::Arrived> aside_;  // the cache did not take them; the oldest goes first
  ChunkCounters counters_;
};

}  // namespace saesweep::agent
