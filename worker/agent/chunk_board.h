// What the chunk service tells the thread that serves other nodes, and hears from it: which chunks
// are being harvested here or are about to be, how long that takes, and what was served.
//
// Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "core/clock.h"
#include "scheduler/protocol/messages.pb.h"

namespace saesweep::agent {

// A mean that follows what it is of: the newest value counts a quarter.
class MovingMean {
 public:
  void add(double value) { mean_ = mean_ ? *mean_ + (value - *mean_) / 4 : value; }
  const std::optional<double>& value() const { return mean_; }  // nothing: none was added

 private:
  std::optional<double> mean_;
};

class ChunkBoard {
 public:
  // An executor harvests the chunk, and no longer.
  void begin(const std::string& stream, std::uint32_t index);
  void end(const std::string& stream, std::uint32_t index);
  bool is_coming(const std::string& stream, std::uint32_t index) const;
  // No other node has it: an executor here is about to harvest it. Ends with begin(), or with
  // forget(), of one or of all of a stream.
  void expect(const std::string& stream, std::uint32_t index);
  void forget(const std::string& stream, std::optional<std::uint32_t> index = {});

  // A node as others reach it.
  struct NodeName {
    std::string endpoint, server_key;
    auto operator<=>(const NodeName&) const = default;
  };
  // Two nodes may ask each other for the same chunk in the same moment: then the one with the lower
  // name harvests it. We, known to it by our name, ask another node; it says that the chunk is
  // coming; it gave it to us, or did not and we are about to harvest it.
  void begin_to_ask(const std::string& stream, std::uint32_t index, NodeName other, NodeName own);
  void hear_that_it_comes(const std::string& stream, std::uint32_t index);
  void end_asking(const std::string& stream, std::uint32_t index, bool is_given);
  // The node that asks us is the one that we ask for the same chunk, and it is to wait: it is we
  // who harvest, or it is not settled yet.
  bool is_to_wait(const std::string& stream, std::uint32_t index, const NodeName& other) const;

  void harvest_took(const std::string& stream, Duration time);
  // What a chunk takes, lately, in seconds; nothing if none was harvested here since we began.
  std::optional<double> harvest_seconds(const std::string& stream) const;

  // Another node asked for a chunk of the stream that is not here and that nobody here harvests: it
  // is going to, so it is ahead of us.
  void note_ahead(protocol::ChunkSource node);
  bool is_ahead(const std::string& stream) const;
  // The last one, once.
  std::optional<protocol::ChunkSource> take_ahead(const std::string& stream);

  std::atomic<std::uint64_t> served = 0;  // chunks
  std::atomic<std::uint64_t> served_bytes = 0;

 private:
  mutable std::mutex mutex_;
  using ChunkName = std::pair<std::string, std::uint32_t>;  // stream, index
  std::set<ChunkName> coming_, expected_;                   // under mutex_
  struct Asked {
    NodeName other, own;
    bool is_coming_there = false;
  };
  std::map<ChunkName, Asked> asked_;                    // under mutex_
  std::map<std::string, MovingMean> took_;              // under mutex_
  std::map<std::string, protocol::ChunkSource> ahead_;  // under mutex_
};

}  // namespace saesweep::agent
