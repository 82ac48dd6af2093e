#include "worker/agent/chunk_service.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "core/files.h"
#include "core/log.h"

namespace saesweep::agent {
namespace {

using protocol::ChunkReply;
using protocol::ChunkRequest;

// Far above any chunk: a number beyond it is a mistake, not a wish.
constexpr std::uint64_t kMaxSlotBytes = std::uint64_t{4} << 30;

// Who claims what is being fetched. Executors' connections begin at 1.
constexpr ConnectionId kFetcher = 0;

Result<storage::ChunkShape> shape_of(const protocol::ChunkOpen& request) {
  const auto dtype = static_cast<DType>(request.dtype());
  if (request.dtype() != static_cast<std::uint32_t>(DType::kFloat32) &&
      request.dtype() != static_cast<std::uint32_t>(DType::kBFloat16)) {
    return fail(ErrorCode::kInvalidArgument, "unknown dtype {}", request.dtype());
  }
  // 2^32 rows of 2^32 values are the most the two fields can say: in 64 bits, but for their size.
  const std::uint64_t values = std::uint64_t{request.rows_per_chunk()} * request.d_in();
  if (values == 0 || values > kMaxSlotBytes / size_of(dtype)) {
    return fail(ErrorCode::kInvalidArgument, "chunks of [{}, {}] {}", request.rows_per_chunk(),
                request.d_in(), to_string(dtype));
  }
  return storage::ChunkShape{request.rows_per_chunk(), request.d_in(), dtype};
}

// Memory of a fixed size that both processes map.
Result<OwnedFd> sealed_memory(std::uint64_t bytes) {
  OwnedFd memory(::memfd_create("saesweep-chunks", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (memory.get() < 0) return fail(system_error(errno, "create shared memory"));
  if (::ftruncate(memory.get(), static_cast<off_t>(bytes)) != 0) {
    return fail(system_error(errno, fmt::format("size shared memory to {} bytes", bytes)));
  }
  // With SEAL nobody can take the other two off again.
  if (::fcntl(memory.get(), F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) != 0) {
    return fail(system_error(errno, "seal shared memory"));
  }
  return memory;
}

}  // namespace

OwnedFd::~OwnedFd() {
  if (value_ >= 0) ::close(value_);
}

ChunkService::~ChunkService() = default;

ChunkService::Session::~Session() {
  if (memory != nullptr) ::munmap(memory, memory_bytes);
}

std::span<std::byte> ChunkService::Session::slot(std::uint32_t index) const {
  return {memory + index * full.bytes(), full.bytes()};
}

ChunkService::Opened ChunkService::open(ConnectionId connection,
                                        const protocol::ChunkOpen& request) {
  Opened opened;
  const auto attempt = [&]() -> Result<void> {
    SAE_TRY(const storage::ChunkShape full, shape_of(request));
    const std::uint64_t bytes = kSlots * full.bytes();
    SAE_TRY(OwnedFd memory, sealed_memory(bytes));
    void* const mapped =
        ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory.get(), 0);
    if (mapped == MAP_FAILED) return fail(system_error(errno, "map shared memory"));

    sessions_.erase({connection, request.stream()});
    Session& session = sessions_[{connection, request.stream()}];
    session.full = full;
    session.memory = static_cast<std::byte*>(mapped);
    session.memory_bytes = bytes;
    session.cache_bytes = request.cache_bytes();
    if (cache_ != nullptr && request.cache_bytes() > 0) {
      auto pin = cache_->pin(request.stream());
      if (!pin) {
        sessions_.erase({connection, request.stream()});
        return fail(std::move(pin.error()));
      }
      session.pin = std::move(*pin);
    }
    apply_budget();
    opened.message.set_slots(kSlots);
    opened.message.set_slot_bytes(full.bytes());
    opened.memory = std::move(memory);
    return {};
  };
  if (auto done = attempt(); !done) {
    log::warn("chunks.open connection={} stream={} problem=\"{}\"", connection, request.stream(),
              done.error().message);
    opened.message.set_problem(done.error().message);
  }
  return opened;
}

void ChunkService::apply_budget() {
  if (cache_ == nullptr) return;
  std::uint64_t budget = 0;
  for (const auto& [name, session] : sessions_) budget = std::max(budget, session.cache_bytes);
  // While nobody caches, what is there stays for the next who does.
  if (budget > 0) cache_->set_budget(budget);
}

protocol::ChunkReply ChunkService::handle(ConnectionId connection, const ChunkRequest& request,
                                          TimePoint now) {
  ChunkReply reply;
  reply.set_id(request.id());
  const auto found = sessions_.find({connection, request.stream()});
  const bool uses_slot =
      request.verb() == ChunkRequest::READ || request.verb() == ChunkRequest::WRITE;
  if (found == sessions_.end() || (uses_slot && request.slot() >= kSlots) ||
      request.rows() > found->second.full.rows) {
    log::warn("chunks.malformed connection={} stream={} verb={} slot={} rows={}", connection,
              request.stream(), static_cast<int>(request.verb()), request.slot(), request.rows());
    return reply;
  }
  const Session& session = found->second;
  const ChunkName chunk{request.stream(), request.index()};
  std::uint32_t rows = 0;
  switch (request.verb()) {
    case ChunkRequest::READ:
      reply.set_status(read(session, connection, request, now, rows));
      reply.set_rows(rows);
      break;
    case ChunkRequest::CLAIM:
      reply.set_status(claim(session, connection, chunk, now));
      if (reply.status() == ChunkReply::OK) claim_beside(connection, request, now, reply);
      break;
    case ChunkRequest::WRITE:
      reply.set_status(write(session, connection, request, now));
      break;
    case ChunkRequest::RELEASE:
      release(connection, chunk);
      reply.set_status(ChunkReply::OK);
      break;
    case ChunkRequest::CLOSE:
      close_stream(connection, request.stream());  // `session` is gone
      reply.set_status(ChunkReply::OK);
      break;
    default:
      break;
  }
  return reply;
}

ChunkReply::Status ChunkService::read(const Session& session, ConnectionId connection,
                                      const ChunkRequest& request, TimePoint now,
                                      std::uint32_t& rows) {
  if (!session.pin) return ChunkReply::MISSING;
  // While somebody else harvests it, it need not be looked for.
  const auto claimed = claims_.find({request.stream(), request.index()});
  if (claimed != claims_.end() && claimed->second.owner != connection &&
      now < claimed->second.ends) {
    return ChunkReply::MISSING;
  }
  if (read_aside(session, {request.stream(), request.index()}, request.slot(), rows)) {
    return ChunkReply::OK;
  }
  auto shape = cache_->get(*session.pin, request.index(), session.slot(request.slot()));
  if (shape && (shape->d_in != session.full.d_in || shape->dtype != session.full.dtype)) {
    shape = fail(ErrorCode::kCorrupted, "chunk {} of {} is {} wide", request.index(),
                 request.stream(), shape->d_in);
  }
  auto& present = present_[request.stream()];
  if (shape) {
    ++counters_.hits;
    present.insert(request.index());
    rows = shape->rows;
    return ChunkReply::OK;
  }
  present.erase(request.index());
  switch (shape.error().code) {
    case ErrorCode::kNotFound:
      begin_fetch(request, now);
      return ChunkReply::MISSING;
    case ErrorCode::kCorrupted:
    case ErrorCode::kInvalidArgument:  // larger than a slot: not a chunk of this stream
      ++counters_.corrupt;
      begin_fetch(request, now);
      return ChunkReply::CORRUPT;
    default:
      log::warn("chunks.read stream={} index={} problem=\"{}\"", request.stream(), request.index(),
                shape.error().message);
      return ChunkReply::MISSING;
  }
}

ChunkReply::Status ChunkService::claim(const Session& session, ConnectionId connection,
                                       const ChunkName& chunk, TimePoint now) {
  if (session.pin) {  // whoever has no cache shares nothing
    if (present_[chunk.first].contains(chunk.second) || is_aside(chunk)) return ChunkReply::BUSY;
    const auto [held, fresh] = claims_.try_emplace(chunk, Claim{connection, now + claim_term_});
    if (!fresh) {
      if (held->second.owner != connection && now < held->second.ends) return ChunkReply::BUSY;
      held->second = Claim{connection, now + claim_term_};
    }
    if (board_ != nullptr) board_->begin(chunk.first, chunk.second);
  }
  ++counters_.misses;
  return ChunkReply::OK;
}

void ChunkService::claim_beside(ConnectionId connection, const ChunkRequest& request, TimePoint now,
                                ChunkReply& reply) {
  for (int i = 0; i < request.beside_size(); ++i) {
    const ChunkName chunk{request.beside(i).stream(), request.beside(i).index()};
    const auto found = sessions_.find({connection, chunk.first});
    if (found == sessions_.end()) {
      log::warn("chunks.malformed connection={} beside={}", connection, chunk.first);
      continue;
    }
    // Another node has begun to harvest the stream: it is not to be done twice.
    if (board_ != nullptr && board_->is_ahead(chunk.first)) continue;
    if (found->second.pin && is_missing(found->second, chunk) &&
        claim(found->second, connection, chunk, now) == ChunkReply::OK)
      reply.add_granted(static_cast<std::uint32_t>(i));
  }
}

bool ChunkService::is_missing(const Session& session, const ChunkName& chunk) {
  if (present_[chunk.first].contains(chunk.second)) return false;
  if (!cache_->has(*session.pin, chunk.second)) return true;
  present_[chunk.first].insert(chunk.second);
  return false;
}

ChunkReply::Status ChunkService::write(const Session& session, ConnectionId connection,
                                       const ChunkRequest& request, TimePoint now) {
  const ChunkName chunk{request.stream(), request.index()};
  const auto claimed = claims_.find(chunk);
  if (board_ != nullptr && claimed != claims_.end() && claimed->second.owner == connection)
    board_->harvest_took(chunk.first, now - (claimed->second.ends - claim_term_));
  bool is_stored = false;
  if (session.pin) {
    const storage::ChunkShape shape{request.rows(), session.full.d_in, session.full.dtype};
    const auto stored = cache_->put(*session.pin, request.index(), shape,
                                    session.slot(request.slot()).first(shape.bytes()));
    is_stored = stored.has_value();
    if (!stored && stored.error().code != ErrorCode::kResourceExhausted) {
      log::warn("chunks.write stream={} index={} problem=\"{}\"", chunk.first, chunk.second,
                stored.error().message);
    }
  }
  // Stored or not, this harvest is over, and now others may see it. A later owner's claim stands
  // until its own write.
  release(connection, chunk);
  if (not_there_.erase(chunk) > 0) board_->forget(chunk.first, chunk.second);
  if (is_stored) {
    present_[chunk.first].insert(chunk.second);
    return ChunkReply::OK;
  }
  ++counters_.refused_writes;
  return ChunkReply::FULL;
}

// ---- other nodes --------------------------------------------------------------------------------

void ChunkService::join_others(ChunkBoard& board, ChunkFetching& fetching) {
  board_ = &board;
  fetching_ = &fetching;
}

int ChunkService::signal() const { return fetching_ == nullptr ? -1 : fetching_->signal(); }

void ChunkService::learn(const protocol::ChunkSource& source) {
  if (fetching_ == nullptr) return;
  fetching_->learn(source);
  std::erase_if(not_there_, [&](const auto& chunk) { return chunk.first == source.stream(); });
  board_->forget(source.stream());
}

// Nobody here has a claim on it. False: it is to be harvested.
bool ChunkService::begin_fetch(const ChunkRequest& request, TimePoint now) {
  const ChunkName chunk{request.stream(), request.index()};
  if (fetching_ == nullptr) return false;
  // Who lets us down, or is not known, makes way for one that is ahead.
  if (!fetching_->knows(chunk.first) || not_there_.contains(chunk))
    if (const auto ahead = board_->take_ahead(chunk.first)) learn(*ahead);
  if (not_there_.contains(chunk)) return false;
  const auto held = claims_.find(chunk);
  if (held != claims_.end() && now < held->second.ends) return false;
  if (!fetching_->begin(chunk.first, chunk.second, now)) return false;
  claims_.insert_or_assign(chunk, Claim{kFetcher, now + kFetchTerm});
  return true;
}

void ChunkService::step(TimePoint now) {
  if (fetching_ == nullptr) return;
  for (ChunkFetching::Arrived& arrived : fetching_->arrived(now)) take(std::move(arrived), now);
}

void ChunkService::take(ChunkFetching::Arrived arrived, TimePoint now) {
  const ChunkName chunk{arrived.stream, arrived.index};
  const auto claimed = claims_.find(chunk);
  if (claimed != claims_.end() && claimed->second.owner == kFetcher) claims_.erase(claimed);
  const Session* session = session_with(arrived.stream);
  if (session == nullptr) {  // nobody waits for it any more
    board_->forget(chunk.first, chunk.second);
    return;
  }
  if (arrived.value &&
      (arrived.shape.d_in != session->full.d_in || arrived.shape.dtype != session->full.dtype ||
       arrived.shape.rows > session->full.rows)) {
    log::warn("chunks.of_another_shape stream={} index={} rows={} d_in={}", arrived.stream,
              arrived.index, arrived.shape.rows, arrived.shape.d_in);
    fetching_->distrust(arrived.stream, now);
    arrived.value.reset();
  }
  if (!arrived.value) {
    ++counters_.failed_fetches;
    not_there_.insert(chunk);
    board_->expect(chunk.first, chunk.second);
    return;
  }
  if (counters_.fetched == 0) log::info("chunks.fetching stream={}", arrived.stream);
  ++counters_.fetched;
  counters_.fetched_bytes += arrived.value->size();
  const auto stored = cache_->put(*session->pin, arrived.index, arrived.shape, arrived.values());
  if (stored) {
    present_[chunk.first].insert(chunk.second);
    return;
  }
  if (aside_.size() >= kMostAside) aside_.pop_front();
  aside_.push_back(std::move(arrived));
}

bool ChunkService::is_aside(const ChunkName& chunk) const {
  return std::any_of(aside_.begin(), aside_.end(), [&](const auto& arrived) {
    return arrived.stream == chunk.first && arrived.index == chunk.second;
  });
}

bool ChunkService::read_aside(const Session& session, const ChunkName& chunk, std::uint32_t slot,
                              std::uint32_t& rows) {
  const auto found = std::find_if(aside_.begin(), aside_.end(), [&](const auto& arrived) {
    return arrived.stream == chunk.first && arrived.index == chunk.second;
  });
  if (found == aside_.end() || found->shape.d_in != session.full.d_in ||
      found->shape.dtype != session.full.dtype || found->shape.rows > session.full.rows)
    return false;
  std::ranges::copy(found->values(), session.slot(slot).begin());
  rows = found->shape.rows;
  aside_.erase(found);
  return true;
}

const ChunkService::Session* ChunkService::session_with(const std::string& stream) const {
  for (const auto& [name, session] : sessions_)
    if (name.second == stream && session.pin) return &session;
  return nullptr;
}

// ---- ends ---------------------------------------------------------------------------------------

void ChunkService::release(ConnectionId connection, const ChunkName& chunk) {
  const auto held = claims_.find(chunk);
  if (held == claims_.end() || held->second.owner != connection) return;
  claims_.erase(held);
  if (board_ != nullptr) board_->end(chunk.first, chunk.second);
}

void ChunkService::release_all(ConnectionId connection, const std::string* stream) {
  std::erase_if(claims_, [&](const auto& claim) {
    const auto& [chunk, held] = claim;
    if (held.owner != connection || (stream != nullptr && chunk.first != *stream)) return false;
    if (board_ != nullptr) board_->end(chunk.first, chunk.second);
    return true;
  });
}

void ChunkService::close(ConnectionId connection) {
  release_all(connection, nullptr);
  std::erase_if(sessions_, [&](const auto& session) { return session.first.first == connection; });
  forget_unpinned();
  apply_budget();
}

void ChunkService::close_stream(ConnectionId connection, const std::string& stream) {
  release_all(connection, &stream);
  sessions_.erase({connection, stream});
  forget_unpinned();
  apply_budget();
}

void ChunkService::forget_unpinned() {
  // An unpinned stream may be evicted, so what was known of it no longer holds.
  const auto is_unpinned = [&](const std::string& stream) {
    return session_with(stream) == nullptr;
  };
  std::erase_if(present_, [&](const auto& stream) {
    if (!is_unpinned(stream.first)) return false;
    if (board_ != nullptr) board_->forget(stream.first);
    return true;
  });
  std::erase_if(not_there_, [&](const auto& chunk) { return is_unpinned(chunk.first); });
  std::erase_if(aside_, [&](const auto& arrived) { return is_unpinned(arrived.stream); });
}

ChunkCounters ChunkService::counters() const {
  ChunkCounters counters = counters_;
  if (cache_ != nullptr) {
    const storage::CacheStats stats = cache_->stats();
    counters.bytes = stats.bytes;
    counters.evicted_bytes = stats.evicted_bytes;
  }
  if (board_ != nullptr) {
    counters.served = board_->served.load();
    counters.served_bytes = board_->served_bytes.load();
  }
  return counters;
}

std::vector<std::pair<std::string, std::uint64_t>> ChunkService::streams(std::size_t most) const {
  if (cache_ == nullptr) return {};
  return cache_->largest_streams(most);
}

}  // namespace saesweep::agent
