#include "worker/executor/open_stream.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "core/json.h"
#include "core/log.h"
#include "worker/activations/chunk_client.h"
#include "worker/activations/harvest.h"

namespace saesweep::worker {
namespace {

// Opens a stream at the agent.
Result<ChunkClient> connect(const sweeps::StreamSpec& spec, std::int64_t d_in,
                            std::uint64_t rows_per_chunk, std::uint64_t cache_bytes,
                            AgentLink& link) {
  protocol::ChunkOpen request;
  request.set_stream(spec.cache_name());
  request.set_stream_json(canonical_json(spec.cache_json()));
  request.set_cache_bytes(cache_bytes);
  request.set_rows_per_chunk(static_cast<std::uint32_t>(rows_per_chunk));
  request.set_d_in(static_cast<std::uint32_t>(d_in));
  request.set_dtype(static_cast<std::uint32_t>(spec.dtype));
  SAE_TRY(const auto opened, link.open_chunks(request));
  return ChunkClient::open(
      request.stream(), opened.message, opened.memory.get(),
      static_cast<std::size_t>(d_in) * size_of(spec.dtype),
      [&link](const protocol::ChunkRequest& asked) { return link.ask(asked); });
}

// What a stream takes of a cache, about.
std::uint64_t cached_bytes(const sweeps::StreamSpec& spec, std::int64_t d_in) {
  return spec.tokens * static_cast<std::uint64_t>(d_in) * size_of(spec.dtype) + sweeps::kChunkBytes;
}

// Fetches chunks of a stream, and hands in those of its siblings, through the agent. Connects at
// the first chunk, when it is known how many rows one has at most.
class ChunkFetcher {
 public:
  // The harvester outlives this.
  ChunkFetcher(sweeps::StreamSpec spec, const Harvester& harvester, std::uint64_t cache_bytes,
               AgentLink& link, std::function<bool()> stop)
      : spec_(std::move(spec)),
        harvester_(harvester),
        cache_bytes_(cache_bytes),
        link_(link),
        stop_(std::move(stop)) {}
  // What no run reads may be evicted.
  ~ChunkFetcher() {
    for (auto& client : clients_)
      if (client) client->close();
  }
  ChunkFetcher(const ChunkFetcher&) = delete;
  ChunkFetcher& operator=(const ChunkFetcher&) = delete;

  Result<std::optional<std::uint32_t>> fetch(std::uint32_t index, std::span<std::byte> out,
                                             const HarvestChunk& harvest, Duration most) {
    if (clients_.empty()) connect_all(out.size());
    if (!clients_[0]) return harvest(out, {});
    std::vector<ChunkClient::Beside> beside;
    for (const MemberChunk& chunk : harvester_.beside(index))
      if (auto& client = clients_[chunk.member]) beside.push_back({chunk, &*client});
    if (most == kPatiently) return clients_[0]->fetch(index, out, harvest, stop_, beside);
    return clients_[0]->fetch_within(most, index, out, harvest, stop_, beside);
  }

 private:
  void connect_all(std::size_t chunk_bytes) {
    const std::int64_t d_in = harvester_.d_in();
    const std::size_t rows = chunk_bytes / (static_cast<std::size_t>(d_in) * size_of(spec_.dtype));
    add(spec_, connect(spec_, d_in, rows, cache_bytes_, link_));
    std::uint64_t room = cache_bytes_ - std::min(cache_bytes_, cached_bytes(spec_, d_in));
    for (const Harvester::Sibling& sibling : harvester_.siblings()) {
      const std::uint64_t needed = cached_bytes(sibling.spec, sibling.d_in);
      if (!clients_[0] || needed > room) {
        clients_.emplace_back();
        continue;
      }
      room -= needed;
      add(sibling.spec,
          connect(sibling.spec, sibling.d_in, sibling.max_chunk_rows, cache_bytes_, link_));
      if (clients_.back())
        log::info("harvest.along hook={} sibling={}", spec_.label(), sibling.spec.label());
    }
  }

  void add(const sweeps::StreamSpec& spec, Result<ChunkClient> client) {
    clients_.emplace_back();
    if (client)
      clients_.back() = std::move(*client);
    else
      log::warn("chunks.without_cache stream={} problem={}", spec.cache_name(),
                client.error().message);
  }

  sweeps::StreamSpec spec_;
  const Harvester& harvester_;
  std::uint64_t cache_bytes_;
  AgentLink& link_;
  std::function<bool()> stop_;
  // Of the stream, then of its siblings; nothing for those that are not cached.
  std::vector<std::optional<ChunkClient>> clients_;
};

}  // namespace

const Documents& StreamSources::documents() const {
  if (tokens != nullptr) return *tokens;
  return *activations;
}

Result<StreamSources> open_sources(const sweeps::StreamSpec& spec, const RunTools& tools) {
  StreamSources sources;
  if (spec.data.source == "activations") {
    SAE_TRY(sources.activations, tools.warm.activations(spec.data, spec.holdout));
    return sources;
  }
  if (!spec.model)
    return fail(ErrorCode::kInvalidArgument, "data.source '{}' needs a model", spec.data.source);
  SAE_TRY(sources.model, tools.warm.model(*spec.model));
  for (const std::string& hook : spec.hooks()) SAE_TRY_VOID(sources.model->check_hook(hook));
  SAE_TRY(sources.tokens, tools.warm.tokens(spec.data, spec.holdout,
                                            sources.model->config().context, tools.pool.threads()));
  return sources;
}

Result<std::vector<sweeps::StreamSpec>> siblings_of(const protocol::Run& run) {
  std::vector<sweeps::StreamSpec> siblings;
  for (const std::string& text : run.siblings()) {
    SAE_TRY(const Json json, parse_json(text));
    SAE_TRY(auto spec, sweeps::StreamSpec::from_json(json));
    siblings.push_back(std::move(spec));
  }
  return siblings;
}

Result<std::unique_ptr<CachedStream>> open_stream(const sweeps::StreamSpec& spec,
                                                  const StreamSources& sources,
                                                  const protocol::Run& run, const RunTools& tools,
                                                  StreamEvents events) {
  const std::uint64_t cache_bytes = run.cache_bytes();
  std::vector<sweeps::StreamSpec> siblings;  // have no use for chunks that nobody keeps
  if (cache_bytes > 0) {
    SAE_TRY(siblings, siblings_of(run));
  }
  auto harvester = sources.tokens != nullptr
                       ? make_harvester(spec, sources.model, sources.tokens, tools.pool, siblings)
                       : make_harvester(spec, sources.activations);
  if (!harvester) return fail(std::move(harvester.error()));
  FetchChunk fetch;
  if (cache_bytes > 0) {
    const auto fetcher =
        std::make_shared<ChunkFetcher>(spec, **harvester, cache_bytes, tools.link, events.stop);
    fetch = [fetcher](std::uint32_t index, std::span<std::byte> out, const HarvestChunk& harvest,
                      Duration most) { return fetcher->fetch(index, out, harvest, most); };
  }
  return CachedStream::open(spec, std::move(*harvester), std::move(fetch), std::move(events));
}

}  // namespace saesweep::worker
