// An executor's side of the activation cache: fetches a chunk through shared memory, or harvests it
// and hands it in, with chunks of other streams that were harvested beside it. Several executors
// that fetch the same chunks harvest each only once. No LibTorch.
//
// The protocol is described in worker/agent/chunk_service.h.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "core/clock.h"
#include "core/result.h"
#include "scheduler/protocol/messages.pb.h"
#include "worker/activations/chunk_order.h"

namespace saesweep::worker {

// Sends a request to the agent and waits for its reply.
using ChunkTransport = std::function<Result<protocol::ChunkReply>(protocol::ChunkRequest)>;

struct ChunkClientOptions {
  // How long to wait for a chunk that another executor harvests, before harvesting it here: longer
  // than the agent's claims last, so that a claim of the dead is taken over first.
  Duration patience = std::chrono::minutes(5);
  Duration first_wait = std::chrono::milliseconds(2);  // doubles up to `longest_wait`
  Duration longest_wait = std::chrono::milliseconds(250);
  std::function<TimePoint()> now = {};       // empty: the monotonic clock
  std::function<void(Duration)> sleep = {};  // empty: of this thread
};

class ChunkClient {
 public:
  // `memory` is the descriptor that came with `opened`; it is mapped here and stays the caller's.
  // `row_bytes` is d_in times the size of a value.
  // Errors: kInvalidArgument with the agent's problem, or if the slots hold no row;
  // kResourceExhausted or kUnavailable if the memory cannot be mapped.
  static Result<ChunkClient> open(std::string stream, const protocol::ChunkOpened& opened,
                                  int memory, std::size_t row_bytes, ChunkTransport transport,
                                  ChunkClientOptions options = {});
  ChunkClient(ChunkClient&& other) noexcept;
  ChunkClient& operator=(ChunkClient&& other) noexcept;
  ~ChunkClient();

  // A chunk that could be harvested beside another, and who hands it in: this client, or one of
  // another stream at the same agent.
  struct Beside {
    MemberChunk chunk;
    ChunkClient* stream;
  };
  // Brings chunk `index` into `out`, which holds a whole chunk, and returns its rows. `harvest` is
  // called at most once, with `out` and those of `beside` that are missing and nobody else's; what
  // becomes of them changes nothing here. `stop` is asked while waiting for another executor.
  // A cache that is full or gone never fails this: the chunk is harvested.
  // Errors: those of `harvest` and of the transport; kUnavailable when stopped.
  Result<std::uint32_t> fetch(std::uint32_t index, std::span<std::byte> out,
                              const HarvestChunk& harvest, const std::function<bool()>& stop = {},
                              std::span<const Beside> beside = {});

  // The same with less patience: nothing if another executor still harvests the chunk after `most`.
  Result<std::optional<std::uint32_t>> fetch_within(Duration most, std::uint32_t index,
                                                    std::span<std::byte> out,
                                                    const HarvestChunk& harvest,
                                                    const std::function<bool()>& stop = {},
                                                    std::span<const Beside> beside = {});

  // Lets the agent evict the stream. Nothing is fetched after it. The agent's failures do not
  // matter: it frees everything when the connection ends.
  void close();

 private:
  ChunkClient() = default;
  // Nothing if another executor harvests the chunk now.
  Result<std::optional<std::uint32_t>> try_fetch(std::uint32_t index, std::span<std::byte> out,
                                                 const HarvestChunk& harvest,
                                                 std::span<const Beside> beside);
  Result<protocol::ChunkReply> ask(protocol::ChunkRequest::Verb verb, std::uint32_t index,
                                   std::uint32_t rows = 0, std::span<const Beside> beside = {});
  Result<std::uint32_t> harvest_and_write(std::uint32_t index, std::span<std::byte> out,
                                          const HarvestChunk& harvest, bool claimed,
                                          std::span<const Beside> beside = {});
  // Errors: those of the transport.
  Result<void> write(std::uint32_t index, std::span<const std::byte> bytes, std::uint32_t rows);

  std::string stream_;
  std::byte* memory_ = nullptr;
  std::size_t memory_bytes_ = 0;
  std::size_t slot_bytes_ = 0;
  std::size_t row_bytes_ = 0;
  bool is_full_ = false;  // the cache did not take what was written last
  std::uint64_t last_id_ = 0;
  ChunkTransport transport_;
  ChunkClientOptions options_;
};

}  // namespace saesweep::worker
