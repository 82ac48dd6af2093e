// The chunks of this node's cache for the agents of other nodes: a data port of our own. A thread
// of its own answers from the cache, so that neither heartbeats nor executors wait for it.
//
// Who may ask: over TCP, whoever holds the key pair that the scheduler gives to every worker that
// it welcomes (a new one each time that it starts). Our own key is made here and told to others by
// the scheduler. Without keys, on loopback, everybody on this machine.
//
// Serves whole chunks as the cache keeps them, checksum included; one that is longer than a message
// carries is not served. Chunks that an executor here is harvesting are COMING.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/result.h"
#include "scheduler/protocol/data_port.h"
#include "scheduler/protocol/messages.pb.h"
#include "scheduler/protocol/security.h"
#include "storage/activation_cache.h"
#include "worker/agent/chunk_board.h"

namespace saesweep::agent {

class ChunkServer {
 public:
  // `endpoint` may end in port "*". `encrypted`: make a key and let nobody in before admit();
  // else only loopback is listened at. `cache` and `board` outlive it.
  // Errors: as DataServer::start().
  static Result<ChunkServer> start(const std::string& endpoint, bool encrypted,
                                   storage::ActivationCache& cache, ChunkBoard& board);

  ChunkServer(ChunkServer&&) noexcept;
  ~ChunkServer();

  // From here on whoever holds this key may ask, and nobody else.
  void admit(const protocol::PublicKey& key);

  std::string announced() const { return server_.announced(); }
  std::string public_key() const;  // its 32 bytes; empty without keys

 private:
  struct Desk;
  ChunkServer(std::unique_ptr<Desk> desk, protocol::ServerSecurity security,
              std::shared_ptr<protocol::KeyRing> ring, protocol::DataServer server);
  std::unique_ptr<Desk> desk_;  // before who reads it
  protocol::ServerSecurity security_;
  std::shared_ptr<protocol::KeyRing> ring_;
  protocol::DataServer server_;
};

// The key pair that a WELCOME gives; null: none.
std::shared_ptr<const protocol::KeyPair> chunk_keys_of(const protocol::Welcome& welcome);

// Where a worker that reaches its scheduler at `scheduler` serves chunks if nobody says otherwise:
// a free port, on loopback if that is where the scheduler is, else at every address; nowhere
// (empty) for a scheduler that is no tcp:// one.
std::string usual_chunks_endpoint(const std::string& scheduler);

}  // namespace saesweep::agent
